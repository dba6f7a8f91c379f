"""The files of a training script: which of its folder belong to it, their digest, and one archive of them."""

import fnmatch
import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from gepa_core.config import digest
from gepa_core.errors import ConfigError

IGNORED = (
    ".git", ".hg", ".svn", "__pycache__", "*.pyc", ".venv", "venv", "node_modules", ".DS_Store",
    ".ipynb_checkpoints", ".mypy_cache", ".ruff_cache", ".pytest_cache", "wandb",
)  # fmt: skip
MAX_FILES = 20_000


@dataclass(frozen=True)
class File:
    """A file of the script by its path in the folder, or (`link`) a symbolic link that leads out of it."""

    name: str
    size: int
    sha256: str
    executable: bool = False
    link: str | None = None


@dataclass(frozen=True)
class ScriptFiles:
    """What is copied for every attempt."""

    root: Path
    files: tuple[File, ...]

    @property
    def digest(self) -> str:
        """Of names, contents and who may be executed; a link that leads out counts by where it leads."""
        return digest([[f.name, f.sha256, f.executable, f.link] for f in self.files])

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    def archive(self) -> bytes:
        """A tar file, the same for the same files. Raises ConfigError where they have changed meanwhile."""
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as tar:
            for file in self.files:
                info = tarfile.TarInfo(file.name)
                info.mode = 0o755 if file.executable else 0o644
                if file.link is not None:
                    info.type, info.linkname = tarfile.SYMTYPE, file.link
                    tar.addfile(info)
                    continue
                data = (self.root / file.name).read_bytes()
                if hashlib.sha256(data).hexdigest() != file.sha256:
                    raise ConfigError(
                        f"{self.root / file.name} changed while the sweep was started; try again"
                    )
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return stream.getvalue()


def read_files(root: Path, ignore: Iterable[str], links: Mapping[str, str], max_mb: float) -> ScriptFiles:
    """The files below `root`, without what is ignored or linked and without stores of results.

    Raises ConfigError: they are too many or too large, with the largest of them, or cannot be read.
    """
    patterns = [*IGNORED, *_gitignore(root), *ignore, *(f"/{name}" for name in links)]
    # No more than can be taken: `/` is a folder too.
    paths = list(islice(_walk(root, root, patterns), MAX_FILES + 1))
    try:
        sizes = {
            path: 0 if path.is_symlink() and _leads_out(path, root) else path.stat().st_size for path in paths
        }
    except OSError as error:
        raise _unreadable(error, root) from None
    if sum(sizes.values()) > max_mb * 1e6 or len(paths) > MAX_FILES:
        raise ConfigError(_too_large(root, sizes, max_mb))
    return ScriptFiles(root, tuple(_file(path, root) for path in paths))


def _walk(folder: Path, root: Path, patterns: list[str]) -> Iterator[Path]:
    """Regular files and links that lead out, in name order."""
    try:
        for path in sorted(folder.iterdir(), key=lambda path: path.name):
            is_folder = path.is_dir() and not path.is_symlink()
            if _is_ignored(path.relative_to(root).as_posix(), is_folder, patterns):
                continue
            if is_folder:
                if not _is_store(path):
                    yield from _walk(path, root, patterns)
            elif (path.is_symlink() and (_leads_out(path, root) or path.is_dir())) or (
                path.exists() and stat.S_ISREG(path.stat().st_mode)
            ):
                yield path
    except OSError as error:
        raise _unreadable(error, folder) from None


def _unreadable(error: OSError, folder: Path) -> ConfigError:
    return ConfigError(f"{error.filename or folder}: {(error.strerror or str(error)).lower()}")


def _is_store(folder: Path) -> bool:
    """Whether sweeps keep their results there."""
    return (folder / "segments").is_dir() and any(folder.glob("*/sweep.json"))


def _leads_out(link: Path, root: Path) -> bool:
    return not link.resolve().is_relative_to(root.resolve())


def _file(path: Path, root: Path) -> File:
    name = path.relative_to(root).as_posix()
    if path.is_symlink() and (path.is_dir() or _leads_out(path, root)):
        inside = not _leads_out(path, root)
        target = str(path.readlink()) if inside else str(path.resolve())
        return File(name, 0, "", link=target)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(error, path) from None
    return File(name, len(data), hashlib.sha256(data).hexdigest(), os.access(path, os.X_OK))


def _is_ignored(name: str, is_folder: bool, patterns: Iterable[str]) -> bool:
    """By the patterns in order, as .gitignore has them: the last that fits decides, `!` takes it back."""
    ignored = False
    for pattern in patterns:
        takes_back, rule = pattern.startswith("!"), pattern.removeprefix("!")
        if rule.endswith("/") and not is_folder:
            continue
        rule = rule.rstrip("/")
        anchored = "/" in rule
        subject = name if anchored else name.rpartition("/")[2]
        if fnmatch.fnmatchcase(subject, rule.lstrip("/").removeprefix("**/")):
            ignored = not takes_back
    return ignored


def _gitignore(root: Path) -> list[str]:
    path = root / ".gitignore"
    if not path.is_file():
        return []
    lines = (line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _too_large(root: Path, sizes: Mapping[Path, int], max_mb: float) -> str:
    by_top: dict[str, int] = {}
    for path, size in sizes.items():
        top = path.relative_to(root).parts[0]
        by_top[top] = by_top.get(top, 0) + size
    largest = sorted(by_top, key=lambda name: -by_top[name])[:3]
    shown = ", ".join(f"{name} ({by_top[name] / 1e6:,.1f} MB)" for name in largest)
    return (
        f"{root} holds {len(sizes):,} files of {sum(sizes.values()) / 1e6:,.1f} MB, and every attempt copies "
        f"them (at most {max_mb:g} MB and {MAX_FILES:,} files): {shown}; leave out what the script does not "
        "need by script.ignore, name data under script.links, or raise script.max_workdir_mb"
    )


def data_fingerprint(root: Path, patterns: Iterable[str]) -> str:
    """Of data files by name, size, and their first and last 64 KiB: quick also for many GB.

    Raises ConfigError where a pattern fits no file.
    """
    found = []
    for pattern in patterns:
        where = Path(pattern)
        base, below = (
            (Path(where.anchor), str(where.relative_to(where.anchor))) if where.anchor else (root, pattern)
        )
        files = sorted(path for path in base.glob(below) if path.is_file())
        if not files:
            raise ConfigError(f"{pattern}: no such file (looked in {base})")
        for path in files:
            with path.open("rb") as stream:
                head = stream.read(65_536)
                stream.seek(-min(65_536, path.stat().st_size), os.SEEK_END)
                ends = hashlib.sha256(head + stream.read()).hexdigest()
            found.append([path.name, path.stat().st_size, ends])
    return "ends:" + digest(found)
