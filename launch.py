"""Plan, run, resume and report a sweep of training runs: `python launch.py sweeps/quickstart.yaml`."""

import argparse
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

from sweeps.commands import parser as cli

NOT_OF_A_LOG = {
    "run_id", "status", "steps", "planned_steps", "stopped_by", "cap_seconds", "peak_steps", "warmdown_steps",
    "schedule", "final_lr_fraction", "warmdown_fraction", "warmdown_of", "seed", "source", "notes",
}  # fmt: skip
"""What the sweep file says of a run before its log does."""


def main(argv: list[str] | None = None) -> int:
    """Exit code of the command; Ctrl-C gives 130 at any time."""
    try:
        return command(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head`
        return 0
    except ModuleNotFoundError as error:
        print(not_installed(error, sys.argv[1:] if argv is None else argv), file=sys.stderr)
        return 2


def not_installed(error: ModuleNotFoundError, argv: list[str]) -> str:
    """What to do where this Python lacks a package. Raises the error where the fault is the project's own."""
    if (error.name or "").partition(".")[0] in ("gepa_core", "sweeps", "analysis", ""):
        raise error
    own = Path(__file__).resolve().with_name(".venv") / "bin" / "python"
    told = f"{error.name} is not installed for {sys.executable}"
    if own.is_file() and Path(sys.prefix) != own.parents[1]:
        return f"{told}; use the project's own Python: {shlex.join([str(own), __file__, *argv])}"
    return f"{told}; `launch.py doctor` says what is missing and how to install it"


def command(argv: list[str]) -> int:
    if "--version" in argv[:1]:
        return manage(argparse.Namespace(command="version"))
    word = argv[0] if argv else ""
    if word in cli.ELSEWHERE:
        return elsewhere(word, argv[1:])
    if wrong := cli.mistaken(word) if argv else None:
        print(wrong, file=sys.stderr)
        return 2
    from gepa_core.errors import UserError

    try:
        if word in cli.COMMANDS and word not in ("run", "plan"):
            args = cli.command_parser(word).parse_intermixed_args(argv[1:])
            args.command = word
            return manage(args)
        return sweep(word, argv)
    except UserError as error:
        print(error, file=sys.stderr)
        return getattr(error, "exit_code", 2)
    except BrokenPipeError:
        raise
    except OSError as error:  # a path that no file can have, say
        print(f"{str(error.filename or '')[:300]}: {error.strerror or error}", file=sys.stderr)
        return 2


def sweep(word: str, argv: list[str]) -> int:
    """`launch.py [run] SWEEP.yaml` and `launch.py plan SWEEP.yaml`."""
    named = word in ("run", "plan")
    parser = cli.sweep_parser(
        f"launch.py {word}" if named else "launch.py", __doc__ or "", with_commands=not named
    )
    args = parser.parse_intermixed_args(argv[named:])
    args.plan = args.plan or word == "plan"
    args.write_report, args.read_log = write_report, read_log
    from sweeps.commands.sweep import plan_or_run

    return plan_or_run(args)


def manage(args: argparse.Namespace) -> int:
    from importlib import import_module

    home = {
        "doctor": "doctor",
        "version": "doctor",
        "schema": "words",
        "completion": "words",
        "keys": "words",
    }
    home |= dict.fromkeys(("status", "ls", "best", "logs", "stop"), "look")
    module: Any = import_module(f"sweeps.commands.{home.get(args.command, 'manage')}")
    return int(getattr(module, f"{args.command}_command")(args))


def elsewhere(word: str, argv: list[str]) -> int:
    """Commands of the other packages."""
    if word == "data":
        from gepa_core.data.__main__ import main as data

        return data(argv)
    from analysis.__main__ import main as analyse

    return analyse([word, *argv])


def write_report(folder: str) -> tuple[str, str]:
    """The report of a sweep's folder (or URL): its path, and the answer in a sentence."""
    from analysis.__main__ import report_on

    return report_on(folder)


def read_log(data: bytes, steps: int) -> dict[str, object]:
    """Columns of a run that a script's log holds, with its `curve` and `notes`.

    Raises ValueError where it has no curve.
    """
    import tempfile

    from analysis.logs.importing import read_log as read
    from analysis.runs.errors import AnalysisError

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "script.log")
        path.write_bytes(data)
        try:
            log = read(path, planned_steps=steps)
        except AnalysisError as error:
            raise ValueError(str(error).replace(f"{path}: ", "")) from None
    row = log.run
    figures = {key: value for key, value in row.items() if value is not None and key not in NOT_OF_A_LOG}
    lengths = {}
    if row["steps"] != steps:  # another plan than the one that was made, as far as the log tells it
        lengths = {key: row[key] for key in ("steps", "peak_steps", "warmdown_steps", "schedule")}
    return {
        **figures,
        **lengths,
        "curve": log.trajectory.to_dict("records"),
        "notes": [row["notes"]] if row.get("notes") else [],
    }


def entry() -> None:
    """The command line's: `python launch.py ...`, and `gepa-sweeps ...` where it is installed."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's Ctrl-C
    sys.exit(main())


if __name__ == "__main__":
    entry()
