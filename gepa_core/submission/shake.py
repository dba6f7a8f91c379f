"""Tree shaking: of this package's modules, only what is reachable by name from some definitions.

Names are resolved within a module, through `from gepa_core.x import y` and `module.attribute`. What is
left is the original statements without annotations and docstrings, in an order in which they can be executed.
"""

import ast
import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path

PACKAGE = "gepa_core"
_CALLED_BY_TORCH = {"forward", "backward"}

Definition = tuple[str, str]
"""(module, name)."""


class _Strip(ast.NodeTransformer):
    """Drops annotations (a dataclass's fields keep the fact, not the type) and docstrings."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        arguments = node.args
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            argument.annotation = None
        node.returns = None
        return self._body(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        dataclass = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and dataclass:
                statement.annotation = ast.Constant(0)
        return self._body(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if isinstance(node.annotation, ast.Constant):
            return node
        return ast.Assign([node.target], node.value, lineno=node.lineno) if node.value else None

    def _body(self, node: ast.FunctionDef | ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        node.body = [s for s in node.body if not _is_literal(s)] or [ast.Pass()]
        return node


def _is_literal(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


class Module:
    """A source file's top-level definitions by name."""

    def __init__(self, name: str) -> None:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        tree = _Strip().visit(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
        self.name = name
        self.statements: list[ast.stmt] = tree.body
        self.definitions: dict[str, ast.stmt] = {}
        self.imported: dict[str, Definition | str] = {}
        """Names from this package: (module, name), or a module's name."""
        for statement in self.statements:
            for defined in _defined(statement):
                self.definitions[defined] = statement
            if isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith(PACKAGE):
                assert statement.module is not None
                package = importlib.util.find_spec(statement.module)
                has_modules = package is not None and package.submodule_search_locations is not None
                for alias in statement.names:
                    submodule = f"{statement.module}.{alias.name}"
                    whole = has_modules and importlib.util.find_spec(submodule)
                    self.imported[alias.asname or alias.name] = (
                        submodule if whole else (statement.module, alias.name)
                    )


def _defined(statement: ast.stmt) -> Iterator[str]:
    match statement:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            yield from (alias.asname or alias.name.split(".")[0] for alias in names)
        case ast.Assign(targets=targets):
            yield from (n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name))


class Shaken:
    """The reachable part of the package. `attributes` are all names used after a dot in it."""

    def __init__(self, roots: Iterable[Definition]) -> None:
        self._roots = tuple(roots)
        self._modules: dict[str, Module] = {}
        self._reach_all()
        # A method that nothing names is dead, and what only it called is dead with it.
        while self._drop_methods():
            self._reach_all()

    def _reach_all(self) -> None:
        self.kept: dict[str, set[str]] = {}
        self.attributes: set[str] = set()
        self.order: list[str] = []
        for module, name in self._roots:
            self._reach(module, name)

    def _reach(self, module_name: str, name: str) -> None:
        module = self._modules.get(module_name) or self._modules.setdefault(module_name, Module(module_name))
        kept = self.kept.setdefault(module_name, set())
        if name in kept or name not in module.definitions:
            return
        kept.add(name)
        target = module.imported.get(name)
        if isinstance(target, tuple):
            self._reach(*target)
        elif target is None and not isinstance(module.definitions[name], (ast.Import, ast.ImportFrom)):
            self._follow(module, module.definitions[name])
        if module_name not in self.order:
            self.order.append(module_name)

    def _follow(self, module: Module, statement: ast.stmt) -> None:
        for node in ast.walk(statement):
            match node:
                case ast.Name(id=name):
                    self._reach(module.name, name)
                case ast.Global(names=names):
                    for name in names:
                        self._reach(module.name, name)
                case ast.Attribute(value=ast.Name(id=name), attr=attribute):
                    self.attributes.add(attribute)
                    if isinstance(whole := module.imported.get(name), str):
                        self._reach(whole, attribute)
                case ast.Attribute(attr=attribute):
                    self.attributes.add(attribute)

    def _drop_methods(self) -> bool:
        dropped = False
        for module_name, kept in self.kept.items():
            for name in kept:
                statement = self._modules[module_name].definitions[name]
                if isinstance(statement, ast.ClassDef):
                    live = [s for s in statement.body if not self._dead(s)]
                    dropped |= len(live) < len(statement.body)
                    statement.body = live or [ast.Pass()]
        return dropped

    def _dead(self, statement: ast.stmt) -> bool:
        if not isinstance(statement, ast.FunctionDef) or statement.name in self.attributes | _CALLED_BY_TORCH:
            return False
        return not statement.name.startswith("__")

    def sources(self, renamed: dict[str, str]) -> Iterator[tuple[str, str]]:
        """(new module name, source) of each module, those imported by others first."""
        for module_name in self._import_order():
            module, kept = self._modules[module_name], self.kept[module_name]
            body = [s for s in (self._part(module, kept, s, renamed) for s in module.statements) if s]
            yield renamed[module_name], ast.unparse(ast.fix_missing_locations(ast.Module(body, [])))

    def _import_order(self) -> list[str]:
        result: list[str] = []

        def visit(module_name: str) -> None:
            for name in sorted(self.kept[module_name]):
                target = self._modules[module_name].imported.get(name)
                other = target[0] if isinstance(target, tuple) else target
                if other is not None and other not in result:
                    visit(other)
            if module_name not in result:
                result.append(module_name)

        for module_name in self.order:
            visit(module_name)
        return result

    def _part(
        self, module: Module, kept: set[str], statement: ast.stmt, renamed: dict[str, str]
    ) -> ast.stmt | None:
        if not kept.intersection(_defined(statement)):
            return None
        if not isinstance(statement, (ast.Import, ast.ImportFrom)):
            return statement
        names = [alias for alias in statement.names if (alias.asname or alias.name.split(".")[0]) in kept]
        if isinstance(statement, ast.Import):
            return ast.Import(names)
        whole = module.imported.get(names[0].asname or names[0].name)
        if isinstance(whole, str):
            return ast.Import([ast.alias(renamed[whole], names[0].asname or names[0].name)])
        source = statement.module or ""
        return ast.ImportFrom(renamed.get(source, source), names, 0)
