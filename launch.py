"""Plan, run, resume and report a sweep of training runs: `python launch.py sweeps/quickstart.yaml`."""

import argparse
import contextlib
import signal
import sys

COMMANDS = {
    "status": "how a sweep (or every sweep of a store) stands",
    "gc": "delete states that neither a result nor an extension of a sweep needs",
    "export": "write a run as the challenge's submission folder, and prove that it stands alone",
    "import": "adopt a checkpoint as a state that runs can start from",
    "mirror": "write a sweep's runs as TensorBoard event files or W&B runs",
}
STORE = "the store (default: results), a path or s3:// or gs:// URL"
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
EPILOG = (
    """commands:
"""
    + "".join(f"  launch.py {name:7} {what}\n" for name, what in COMMANDS.items())
    + """
exit codes: 0 all runs done; 2 the sweep file, arguments or data are wrong, nothing was started; 3 some runs
failed or diverged; 4 stopped by a budget, resumable; 130 interrupted, resumable by the same command."""
)


def main(argv: list[str] | None = None) -> int:
    """Exit code of the command; Ctrl-C gives 130 at any time."""
    try:
        return command(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head`
        return 0


def command(argv: list[str]) -> int:
    if argv and argv[0] in COMMANDS:
        args = command_parser(argv[0]).parse_intermixed_args(argv[1:])
    else:
        args = sweep_parser().parse_intermixed_args(argv)
    from gepa_core.errors import UserError

    try:
        return int(args.run(args))
    except UserError as error:
        print(error, file=sys.stderr)
        return getattr(error, "exit_code", 2)
    except BrokenPipeError:
        raise
    except OSError as error:  # a path that no file can have, say
        print(f"{str(error.filename or '')[:300]}: {error.strerror or error}", file=sys.stderr)
        return 2


def sweep(args: argparse.Namespace) -> int:
    from sweeps.commands.sweep import plan_or_run

    return plan_or_run(args)


def manage(args: argparse.Namespace) -> int:
    from sweeps.commands import manage

    return int(getattr(manage, f"{args.command}_command")(args))


def write_report(folder: str) -> int:
    """`python -m analysis FOLDER`; its exit code."""
    from analysis.__main__ import main as analyse

    return analyse(["report", folder])


def sweep_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launch.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sweep", metavar="SWEEP.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="over the sweep file's")
    parser.add_argument("--plan", action="store_true", help="print the tree and its cost; start nothing")
    parser.add_argument(
        "--address", metavar="A", help="a Ray cluster to join (default: RAY_ADDRESS, or a local one)"
    )
    parser.add_argument("--output", metavar="DIR", default="results", help=STORE)
    parser.add_argument(
        "--fresh", action="store_true", help="train this sweep's runs again, whatever the store has"
    )
    parser.add_argument("--only", metavar="GLOB", help="only the runs whose id matches")
    parser.add_argument("--retry-failed", action="store_true", help="try failed and diverged runs again")
    parser.add_argument("--fail-fast", action="store_true", help="stop everything at the first failed run")
    parser.add_argument(
        "--max-gpu-hours", metavar="H", type=positive(float), help="stop, resumable, after so many"
    )
    parser.add_argument("--max-parallel", metavar="N", type=positive(int), help="runs at a time, at most")
    parser.add_argument("--no-report", action="store_true", help="leave the report out")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.set_defaults(run=sweep, write_report=write_report)
    return parser


def command_parser(name: str) -> argparse.ArgumentParser:
    epilog = EXPORT_CODES if name == "export" else None
    parser = argparse.ArgumentParser(prog=f"launch.py {name}", description=COMMANDS[name], epilog=epilog)
    if name == "import":
        parser.add_argument("checkpoint", metavar="CHECKPOINT", help="its folder, or the run's output folder")
        parser.add_argument("sweep", metavar="SWEEP.yaml", help="a sweep whose runs may start from it")
        parser.add_argument("overrides", nargs="*", metavar="key.path=value")
        parser.add_argument("--output", metavar="DIR", default="results", help=STORE)
    elif name == "export":
        parser.add_argument("run_id", metavar="RUN_ID")
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
    else:
        parser.add_argument("dir", metavar="DIR", help="a store, or one sweep's folder in it")
    if name in ("status", "gc", "export"):
        parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    if name == "mirror":
        kind = parser.add_mutually_exclusive_group(required=True)
        kind.add_argument("--tensorboard", metavar="OUT", help="folder for event files")
        kind.add_argument(
            "--wandb", metavar="PROJECT", help="runs in ./wandb, offline; `wandb sync` sends them"
        )
    if name == "gc":
        parser.add_argument("--dry-run", action="store_true", help="say what would be deleted")
        parser.add_argument("--states", action="store_true", help="also trunk states of finished sweeps")
    parser.set_defaults(run=manage, command=name)
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


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's Ctrl-C
    sys.exit(main())
