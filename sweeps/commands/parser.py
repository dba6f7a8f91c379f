"""The command line of launch.py: its sub-commands and their arguments. Only argparse is imported."""

import argparse
import contextlib
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

COMMANDS = {
    "run": "plan, run, resume and report a sweep: what SWEEP.yaml alone does",
    "plan": "print a sweep's tree and its cost; start nothing",
    "status": "how a sweep (or every sweep of a store) stands",
    "ls": "the runs of a sweep (or of every sweep of a store) and their results",
    "best": "the best run, and what to do with it",
    "logs": "what a run's workers printed",
    "stop": "end some runs of a sweep that is being worked on",
    "export": "write a run as the challenge's submission folder, and prove that it stands alone",
    "import": "adopt a checkpoint as a state that runs can start from",
    "mirror": "write a sweep's runs as TensorBoard event files or W&B runs",
    "gc": "delete states that neither a result nor an extension of a sweep needs",
    "doctor": "what this machine is good for, and what stands in the way",
    "keys": "what a sweep file may set, with defaults and meanings",
    "schema": "print the JSON schema of a sweep file, for editors",
    "completion": "print a completion script for bash, zsh or tcsh",
}
ELSEWHERE = {
    "report": "analysis: figures, tables and report.html of a sweep, or of a CSV of runs",
    "predict": "analysis: the final value of a run that was not made",
    "backtest": "analysis: fit on some runs, predict others, and score it",
    "compare": "analysis: two sweeps, paired by configuration",
    "data": "prepare, inspect or fetch token shards and tokenizers",
}
"""Commands of other packages, which have parsers of their own."""
ALIASES = {"list": "ls", "log": "logs", "help": "--help", "version": "--version"}
STORE = "the store (default: results), a path or s3:// or gs:// URL"
FOLDER = "a store, or one sweep's folder in it (default: results)"
RUN = "a run's id, or as much of its beginning (or of the digest at its end) as is unique"
JSON = "one JSON object on the last line"
OVERRIDE = "a key of the sweep file and its value, over the file's; quote brackets: 'steps=[100, 200]'"
EXPORT_CODES = (
    "exit codes: 0 written, and reproduced or not run for the reason that is printed; 2 nothing was written; "
    "3 written, but its script does not print the run's figure"
)
SUBMISSION_WORDS = {
    "--author": "your name, for submission.json",
    "--github-id": "your account, for submission.json",
    "--name": "the submission's title (default: RUN_ID)",
    "--blurb": "what it is, in a sentence (default: steps, warmdown, quantizer)",
}
EXIT_CODES = """exit codes: 0 all runs done; 2 the sweep file, arguments or data are wrong, nothing was
started; 3 some runs failed or diverged; 4 stopped by a budget, resumable; 130 interrupted, resumable by the
same command."""


def epilog() -> str:
    rows = [f"  launch.py {name:10} {what}" for name, what in (COMMANDS | ELSEWHERE).items()]
    return "\n".join(["commands (launch.py COMMAND --help tells more):", *rows, "", EXIT_CODES])


def mistaken(word: str) -> str | None:
    """What is wrong with the first word, where it is neither a command nor looks like a sweep file."""
    if word.startswith("-") or word in COMMANDS or word.endswith((".yaml", ".yml")) or Path(word).exists():
        return None
    if "/" in word or "=" in word:
        return None
    names = [*COMMANDS, *ELSEWHERE, *ALIASES]
    close = get_close_matches(word, names, n=1, cutoff=0.6)
    files = [str(path) for path in Path("sweeps").glob("*.yaml") if path.stem == word]
    near = files or [ALIASES.get(name, name) for name in close]
    hint = f"; did you mean {near[0]}?" if near else f"; commands: {', '.join(COMMANDS)}"
    return f"{word}: neither a command nor a sweep file{hint}"


class Parser(argparse.ArgumentParser):
    """One that names the option that was meant."""

    def error(self, message: str) -> NoReturn:
        _, unknown, words = message.partition("unrecognized arguments: ")
        known = [text for action in self._actions for text in action.option_strings]
        near = get_close_matches(words.split()[0].partition("=")[0], known, n=1) if unknown and words else []
        super().error(f"{message}; did you mean {near[0]}?" if near else message)


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Descriptions as they are written."""


def sweep_parser(prog: str, description: str, *, with_commands: bool = True) -> argparse.ArgumentParser:
    parser = Parser(
        prog=prog,
        description=description,
        epilog=epilog() if with_commands else EXIT_CODES,
        formatter_class=Formatter,
    )
    _run(parser)
    if with_commands:
        parser.add_argument("--version", action="store_true", help="print version and commit, and end")
    return parser


def _run(parser: argparse.ArgumentParser) -> None:
    add_sweep(parser)
    parser.add_argument("--plan", action="store_true", help="print the tree and its cost; start nothing")
    parser.add_argument(
        "--fresh", action="store_true", help="train this sweep's runs again, whatever the store has"
    )
    parser.add_argument("--retry-failed", action="store_true", help="try failed and diverged runs again")
    parser.add_argument("--fail-fast", action="store_true", help="stop everything at the first failed run")
    parser.add_argument("--no-report", action="store_true", help="leave the report out")
    parser.add_argument(
        "--notify",
        metavar="COMMAND",
        help="a shell command to run when the sweep ends and when a run fails; GEPA_* variables tell it what",
    )
    parser.add_argument(
        "--plain", action="store_true", help="lines rather than a live view, on a terminal too"
    )


def add_sweep(parser: argparse.ArgumentParser) -> None:
    """What both a plan and a run take."""
    parser.add_argument("sweep", metavar="SWEEP.yaml", help="the sweep file: grid, recipe, data, resources")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help=OVERRIDE)
    parser.add_argument(
        "--address", metavar="A", help="a Ray cluster to join (default: RAY_ADDRESS, or a local one)"
    )
    parser.add_argument("--output", metavar="DIR", default="results", help=STORE)
    parser.add_argument("--only", metavar="GLOB", help="only the runs whose id matches")
    parser.add_argument(
        "--max-gpu-hours", metavar="H", type=positive(float), help="stop, resumable, after so many"
    )
    parser.add_argument("--max-parallel", metavar="N", type=positive(int), help="runs at a time, at most")
    parser.add_argument("--json", action="store_true", help=JSON)


def command_parser(name: str) -> argparse.ArgumentParser:
    """Of a sub-command other than `run`."""
    parser = Parser(
        prog=f"launch.py {name}",
        description=COMMANDS[name],
        epilog=EXPORT_CODES if name == "export" else None,
    )
    _ADD[name](parser)
    return parser


def _plan(parser: argparse.ArgumentParser) -> None:
    add_sweep(parser)
    parser.add_argument("--fresh", action="store_true", help="as if the store had nothing of this sweep")


def _status(parser: argparse.ArgumentParser) -> None:
    _folder(parser)
    parser.add_argument("--json", action="store_true", help=JSON)


def _ls(parser: argparse.ArgumentParser) -> None:
    _folder(parser)
    parser.add_argument("--json", action="store_true", help=JSON)


def _best(parser: argparse.ArgumentParser) -> None:
    _folder(parser)
    parser.add_argument("--metric", help="column of runs.parquet to go by (default: the last stage measured)")
    parser.add_argument("--json", action="store_true", help=JSON)


def _logs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", metavar="RUN_ID", help=RUN)
    parser.add_argument("--output", metavar="DIR", default="results", help=STORE)
    parser.add_argument("--tail", metavar="N", type=positive(int), help="only the last lines of each part")


def _stop(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", metavar="DIR", help="the sweep's folder, or a store that holds the run once")
    parser.add_argument("run_ids", metavar="RUN_ID", nargs="+", help=RUN)


def _export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", metavar="RUN_ID", help=RUN)
    parser.add_argument("--output", metavar="DIR", default="results", help=STORE)
    parser.add_argument("--to", metavar="DIR", help="folder to make (default: submissions/RUN_ID)")
    for option, what in SUBMISSION_WORDS.items():
        parser.add_argument(option, metavar="TEXT", default="", help=what)
    parser.add_argument(
        "--data", metavar="DIR", help="prepared folder to verify on (default: where the sweep found it)"
    )
    run = parser.add_mutually_exclusive_group()
    run.add_argument("--no-verify", action="store_true", help="do not run what was written")
    run.add_argument(
        "--remeasure",
        action="store_true",
        help="claim what the script prints here, for a sweep that measured on several ranks or elsewhere",
    )
    parser.add_argument("--json", action="store_true", help=JSON)


def _import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="its folder, or the run's output folder")
    parser.add_argument("sweep", metavar="SWEEP.yaml", help="a sweep whose runs may start from it")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help=OVERRIDE)
    parser.add_argument("--output", metavar="DIR", default="results", help=STORE)


def _mirror(parser: argparse.ArgumentParser) -> None:
    _folder(parser, needed=True)
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--tensorboard", metavar="OUT", help="folder for event files")
    kind.add_argument("--wandb", metavar="PROJECT", help="runs in ./wandb, offline; `wandb sync` sends them")
    parser.add_argument(
        "--fork",
        action="store_true",
        help="with --wandb: a trunk is a run of its own, the others fork from it",
    )
    parser.add_argument("--follow", action="store_true", help="go on until the sweep's driver has ended")
    parser.add_argument(
        "--every", metavar="S", type=positive(float), default=30.0, help="seconds between looks (default 30)"
    )


def _gc(parser: argparse.ArgumentParser) -> None:
    _folder(parser, needed=True)
    parser.add_argument("--dry-run", action="store_true", help="say what would be deleted")
    parser.add_argument("--states", action="store_true", help="also trunk states of finished sweeps")
    parser.add_argument("--json", action="store_true", help=JSON)


def _doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", metavar="DIR", default="results", help=STORE)
    parser.add_argument("--data", metavar="DIR", default="data", help="the data folder (default: data)")
    parser.add_argument("--address", metavar="A", help="a Ray cluster to look for (default: RAY_ADDRESS)")
    parser.add_argument("--json", action="store_true", help="everything as one JSON object")


def _keys(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("word", metavar="WORD", nargs="?", default="", help="only those that have it")
    parser.add_argument(
        "--recipe", metavar="NAME", default="gepa-11l", help="whose defaults (default: gepa-11l)"
    )


def _schema(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="FILE", help="write it there (default: print it)")


def _completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell that will read it")


def _folder(parser: argparse.ArgumentParser, needed: bool = False) -> None:
    if needed:
        parser.add_argument("dir", metavar="DIR", help=FOLDER.partition(" (")[0])
    else:
        parser.add_argument("dir", metavar="DIR", nargs="?", default="results", help=FOLDER)


_ADD: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "run": _run,
    "plan": _plan,
    "status": _status,
    "ls": _ls,
    "best": _best,
    "logs": _logs,
    "stop": _stop,
    "export": _export,
    "import": _import,
    "mirror": _mirror,
    "gc": _gc,
    "doctor": _doctor,
    "keys": _keys,
    "schema": _schema,
    "completion": _completion,
}


def whole_parser() -> argparse.ArgumentParser:
    """All commands as one parser: what completion scripts are made of."""
    parser = argparse.ArgumentParser(prog="gepa-sweeps", description=epilog(), formatter_class=Formatter)
    commands = parser.add_subparsers(dest="command")
    for name, what in COMMANDS.items():
        command = commands.add_parser(name, help=what, description=what)
        _ADD[name](command)
    for name, what in ELSEWHERE.items():
        commands.add_parser(name, help=what, description=what)
    return parser


class positive:  # noqa: N801 - an argparse type, named as it shows in messages
    """An argparse type: a number above 0."""

    def __init__(self, kind: type[int] | type[float]) -> None:
        self.kind = kind
        self.__name__ = f"positive {kind.__name__}"

    def __call__(self, text: str) -> float:
        limit = 1_000_000_000
        with contextlib.suppress(ValueError):
            value = self.kind(text[:40])
            if 0 < value <= limit:
                return value
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number above 0, {limit:,} at most")
