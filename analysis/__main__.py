"""python -m analysis: report on a sweep, predict, backtest, compare, import training logs.

Exit codes: 0 done, 2 the arguments or the data are wrong.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.reach.invocation import python
from analysis.reach.remote import at_hand
from analysis.runs import strictjson
from analysis.runs.errors import AnalysisError

if TYPE_CHECKING:
    from analysis.runs.table import Table  # numpy and pandas load only where a command needs them

JSON = "one JSON object instead of lines"
COMMANDS = ("predict", "backtest", "compare", "import")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; errors a user can cause are one line on stderr and exit code 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # `python -m analysis DIR` has no word for its command: it is the one that makes the report.
    if arguments and arguments[0] not in (*COMMANDS, "-h", "--help", "report"):
        arguments.insert(0, "report")
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], None] = options.run
    try:
        with ExitStack() as copies:
            # A URL's tables are copied to this machine for as long as the command takes.
            options.at_hand = lambda source: copies.enter_context(at_hand(source))
            command(options)
    except AnalysisError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("analysis", ""):
            raise
        print(
            f"error: {error.name} is not installed for {sys.executable}; use .venv/bin/python",
            file=sys.stderr,
        )
        return 2
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m analysis", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def source(name: str, text: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("source", help="results folder of a sweep, or a CSV of runs")
        command.add_argument("--trajectories", help="CSV with run_id, step and val_bpb or val_loss")
        command.set_defaults(run=run)
        return command

    report = source("report", "figures, tables and report.html (the command where none is named)", _report)
    report.add_argument(
        "--out", type=Path, help="folder to write to (default: DIR/report, or ./report for a CSV)"
    )

    report.add_argument(
        "--serve",
        action="store_true",
        help="show the sweep's curves as they grow, on a page of this machine, until Ctrl-C",
    )
    report.add_argument(
        "--port", type=int, default=0, metavar="N", help="of that page (default: one that is free)"
    )

    predict = source("predict", "final value of a run that was not made", _predict)
    predict.add_argument("--steps", type=int, required=True, metavar="N", help="steps of the run")
    predict.add_argument("--warmdown", type=int, required=True, metavar="M", help="warmdown steps among them")
    predict.add_argument("--metric", help="e.g. ttt_bpb, val_loss (default: the last stage measured)")
    predict.add_argument("--schedule", help="shape of the warmdown (default: the commonest of the runs)")
    predict.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="AXIS=VALUE",
        help="keep these runs, if an axis varies",
    )
    predict.add_argument("--level", type=float, default=0.9, help="of the interval (default 0.9)")
    predict.add_argument("--json", action="store_true", help=JSON)

    backtest = source(
        "backtest", "fit on the rows a column calls train, predict those it calls test", _backtest
    )
    backtest.add_argument("--split", required=True, metavar="COLUMN", help="says train or test")
    backtest.add_argument("--metric", help="e.g. val_loss (default: that of the trajectories)")
    backtest.add_argument("--level", type=float, default=0.9, help="of the intervals (default 0.9)")
    backtest.add_argument("--json", action="store_true", help=JSON)

    compare = commands.add_parser("compare", help="two sweeps, paired by configuration")
    compare.add_argument("before", help="results folder of a sweep, or a CSV of runs")
    compare.add_argument("after", help="the same of the other")
    compare.add_argument("--json", action="store_true", help=JSON)
    compare.set_defaults(run=_compare)

    read = commands.add_parser("import", help="anyone's training logs -> CSV of runs and trajectories")
    read.add_argument("logs", nargs="+", type=Path, help="logs, also gzipped, or folders of them")
    read.add_argument("--glob", metavar="PATTERN", help="which files of a folder (default: *.log, *.txt)")
    read.add_argument(
        "--out",
        type=Path,
        required=True,
        help="trajectories CSV; beside it *_runs.csv, and *_import.json with every reason",
    )
    read.add_argument(
        "--warmdown",
        type=int,
        nargs="+",
        default=[],
        help="warmdown steps, where logs do not state them: one for all, or one a log",
    )
    read.add_argument("--json", action="store_true", help="print the contents of *_import.json")
    read.set_defaults(run=_import)
    return parser


def _report(options: argparse.Namespace) -> None:
    if options.serve:
        from analysis.live.server import serve

        serve(options.source, options.port)
        return
    path, _, notes = make_report(options.source, options.trajectories, options.out, _command(options))
    for note in notes:
        print(f"note: {note}")
    print(path)


def make_report(
    source: str, trajectories: str | None, out: Path | None, command: str
) -> tuple[str, str, tuple[str, ...]]:
    """The report of a folder, a CSV or a URL: (its path or URL, the answer in a sentence, notes).

    A URL's report is made here and written back.

    Raises:
        AnalysisError: the input carries no analysis, or cannot be read.
    """
    from analysis.reach.remote import below, is_url, upload
    from analysis.report.answer import answer as answer_of
    from analysis.report.report import write_report
    from analysis.report.study import study
    from analysis.runs.load import load
    from analysis.runs.sweepfile import read_sweep_file

    with at_hand(source) as found:
        table = load(found, trajectories)
        made = study(table)
        folder = out or (table.folder / "report" if table.folder else Path("report"))
        answer = answer_of(made, read_sweep_file(table.folder))
        path = str(write_report(made, folder, command, trajectories))
        if is_url(source) and out is None:
            upload(folder, below(source, "report"))
            path = below(source, "report/report.html").partition("?")[0]
    cautions = len(made.findings)
    said = f" ({cautions} caution{'s' * (cautions != 1)} in the report)" if cautions else ""
    return path, f"{answer.headline}{said}", table.notes


def report_on(folder: str) -> tuple[str, str]:
    """The report of a sweep, for launch.py: where it is, and the answer in a sentence.

    Raises:
        AnalysisError: as `make_report`.
    """
    command = shlex.join([*shlex.split(python()), "-m", "analysis", folder])
    path, answer, notes = make_report(folder, None, None, command)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return path, answer


def _command(options: argparse.Namespace) -> str:
    words = [*shlex.split(python()), "-m", "analysis", options.source]
    if options.trajectories:
        words += ["--trajectories", options.trajectories]
    if options.out:
        words += ["--out", str(options.out)]
    return shlex.join(words)


def _predict(options: argparse.Namespace) -> None:
    from analysis.forecast.predict import predict
    from analysis.report.study import cautioned, final_metric
    from analysis.runs.load import load
    from analysis.runs.table import default_metric

    table = load(options.at_hand(options.source), options.trajectories)
    result = predict(
        table,
        steps=options.steps,
        warmdown=options.warmdown,
        metric=options.metric or final_metric(table, default_metric(table)),
        level=options.level,
        schedule=options.schedule,
        where=dict(_axis(text, table) for text in options.where),
    )
    result = cautioned(result, table)
    if options.json:
        print(strictjson.dumps(result.to_json()))
        return
    band = (
        f"no interval: {result.reason}"
        if result.low is None or result.high is None
        else f"{100 * result.level:g} % interval {result.low:.4f} to {result.high:.4f}"
    )
    plan = f"{result.steps:,} steps, {result.warmdown:,} of them {result.schedule} warmdown"
    print(f"{result.metric} of {plan}: {result.value:.4f} ({band})")
    print(result.extrapolation["label"])
    for law, value in sorted(result.laws.items(), key=lambda item: -result.weights[item[0]]):
        print(f"  {law}: {value:.4f} (weight {result.weights[law]:.2f})")
    for warning in result.warnings:
        print(f"warning: {warning}")


def _axis(text: str, table: Table) -> tuple[str, object]:
    """AXIS=VALUE as the value that the table's runs hold.

    Raises:
        AnalysisError: no run has that axis, or that value.
    """
    name, _, value = text.partition("=")
    values = {
        str(dict(run.group)[name]): dict(run.group)[name] for run in table.runs if name in dict(run.group)
    }
    if not values:
        axes = sorted({axis for run in table.runs for axis, _ in run.group})
        raise AnalysisError(
            f"--where {text}: the runs have no axis '{name}'; they have {', '.join(axes) or 'none'}"
        )
    if value not in values:
        raise AnalysisError(f"--where {text}: no run has that value; there are {', '.join(sorted(values))}")
    return name, values[value]


def _backtest(options: argparse.Namespace) -> None:
    from analysis.forecast.backtest import backtest
    from analysis.runs.load import load

    result = backtest(
        load(options.at_hand(options.source), options.trajectories),
        split=options.split,
        metric=options.metric,
        level=options.level,
    )
    if options.json:
        print(strictjson.dumps(result))
        return
    from analysis.report.tables import backtest_table

    print(backtest_table(result).markdown())
    summary = {name: value for name, value in result.items() if isinstance(value, float) and name != "level"}
    for name, number in summary.items():
        print(f"{name}: {number:.5g}")
    for reason in result["reasons"]:
        print(f"no interval: {reason}")
    for warning in result["warnings"]:
        print(f"warning: {warning}")


def _compare(options: argparse.Namespace) -> None:
    from analysis.effects.compare import compare
    from analysis.runs.load import load

    before, after = (
        load(options.at_hand(source), schedules=False) for source in (options.before, options.after)
    )
    result = compare(before, after)
    if options.json:
        print(strictjson.dumps(result.as_json()))
        return
    print(result.table().markdown())
    for note in result.notes:
        print(f"note: {note}")
    if result.unpaired:
        print(f"without a counterpart: {', '.join(result.unpaired)}")


def _import(options: argparse.Namespace) -> None:
    from analysis.logs.importing import import_logs
    from analysis.logs.summary import summary_lines

    done = import_logs(options.logs, options.out, options.warmdown, options.glob)
    for log in done.refused:
        print(f"refused {log.refused}", file=sys.stderr)
    if options.json:
        print(done.summary.read_text(encoding="utf-8"), end="")
        return
    print("\n".join([*summary_lines(done), f"{done.runs}\n{done.trajectories}\n{done.summary}"]))


if __name__ == "__main__":
    sys.exit(main())
