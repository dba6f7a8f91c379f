"""What a launch says at its end: counts, the best run, the verdict and the report, or how to go on."""

import argparse
import shlex
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gepa_core.invocation import launch, module
from sweeps.plan.figures import human_bytes
from sweeps.store.redact import redacted

if TYPE_CHECKING:
    from sweeps.drive.launch import SweepResult


def say(line: str) -> None:
    """Progress goes to standard error: standard output is for results."""
    print(line, file=sys.stderr, flush=True)


def describe(result: "SweepResult") -> str:
    counts = ", ".join(f"{number} {status}" for status, number in result.runs.items() if number)
    plural = "s" * (sum(result.runs.values()) != 1)
    nothing = "nothing was left to do; " if not result.executed and result.exit_code == 0 else ""
    return f"{nothing}{result.sweep}: {counts} run{plural}; results in {result.folder}"


def deleted(dropped: Mapping[str, int]) -> str:
    """What `keep: artifacts` took away, and what having it again would cost."""
    plural = "s" * (dropped["states"] != 1)
    return (
        f"deleted the final states of {dropped['states']} run{plural} ({human_bytes(dropped['bytes'])}); "
        f"another quantizer or further stages would train {dropped['steps']:,} steps again: "
        "`keep: final` keeps them"
    )


def answer(args: argparse.Namespace, result: "SweepResult") -> str | None:
    """Best run, verdict and report, or how to go on; the report's path. What fails here fails no sweep."""
    if result.exit_code in (130, 4):  # a report would keep the user waiting for what is not finished
        say(f"go on with: {launch()} {redacted(shlex.join(sys.argv[1:]))}")
        if result.runs["done"]:
            say(f"a report of what is done: {module('analysis')} {shlex.quote(result.folder)}")
        return None
    if result.runs["failed"] or result.runs["diverged"]:
        say("try them again: the same command with --retry-failed")
    from sweeps.commands.look import best_row
    from sweeps.store.store import Store

    rows = Store(args.output).sweep(result.sweep).read_runs() or []
    if best := best_row(rows):
        row, metric = best
        size = f", {row['artifact_bytes']:,} bytes" if row.get("artifact_bytes") is not None else ""
        say(f"best: {row['run_id']}, {metric} {row[metric]:.4f}{size}")
    if args.no_report or not result.runs["done"]:
        return None
    return report(args, result)


def report(args: argparse.Namespace, result: "SweepResult") -> str | None:
    """The report's path or URL; made again where work was done. One that fails does not fail the sweep."""
    store, mark, options = args.output.partition("?") if "://" in args.output else (args.output, "", "")
    where = f"{store.rstrip('/')}/{result.sweep}{mark}{options}"
    page = f"{store.rstrip('/')}/{result.sweep}/report/report.html"
    if result.executed or "://" in where or not Path(page).is_file():
        say("writing the report")
        try:
            page, verdict = args.write_report(where)
            say(f"verdict: {verdict}")
        except Exception as error:
            if not type(error).__module__.startswith("analysis."):  # not one that says what is wrong
                traceback.print_exc()
            say(f"no report: {error or type(error).__name__}")
            say(f"the results are complete; try again with: {module('analysis')} {shlex.quote(where)}")
            return None
    say(f"report: {page}")
    return page
