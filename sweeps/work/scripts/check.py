"""Whether a script that loads a saved state goes on exactly as if it had never stopped; asked once a script.

One short run alone, and the same run as a trunk that saves its state and a branch that loads it: every figure
that both print after the state has to be the same to the last digit. Only then may runs share their trunks.
"""

from dataclasses import replace
from typing import Any

from sweeps.kinds.script import ScriptRun
from sweeps.store.store import Outcome
from sweeps.work.job import Attempt
from sweeps.work.policy import Observed
from sweeps.work.scripts.log import Curve
from sweeps.work.scripts.place import copied, pack_state, placed_state, saved_state
from sweeps.work.scripts.process import Ended
from sweeps.work.scripts.run import differences, execution, start_script
from sweeps.work.scripts.verdict import failure, last_line

__all__ = ["execution", "run"]


def run(at: Attempt) -> Outcome:
    """`result`: `exact`, how many figures were `compared`, and the `reason` where sharing is refused."""
    config = at.job.config
    assert isinstance(config, ScriptRun) and at.job.script is not None
    point = config.peak_steps
    alone, trunk, branch = Curve(), Curve(), Curve()
    with copied(at, "alone") as place:
        ended = start_script(at, place, config, alone)
    if (failed := _failed("the run alone", ended, at)) is not None:
        return failed
    with copied(at, "trunk") as saving, copied(at, "branch") as loading:
        ended = start_script(at, saving, config, trunk, stop=point)
        if (failed := _failed("the run that saves its state", ended, at)) is not None:
            return failed
        if not saved_state(saving):
            return _said(at, f"the run that was to save its state after step {point} left none", 0)
        if trunk.last_step > point:
            reason = (
                f"the run that was to save its state after step {point} and end went on to {trunk.last_step}"
            )
            return _said(at, reason, 0)
        packed = saving.folder.parent / "packed"
        pack_state(saving.state, packed)
        loaded = placed_state(at.job.script, packed, loading)
        ended = start_script(at, loading, config, branch, loaded=loaded)
    if (failed := _failed("the run that starts from the saved state", ended, at)) is not None:
        return failed
    return _compared(at, point, alone, trunk, branch)


def _compared(at: Attempt, point: int, alone: Curve, trunk: Curve, branch: Curve) -> Outcome:
    if earlier := [step for step in branch.reports if 0 < step < point]:
        return _said(at, f"the run from the state after step {point} began at step {min(earlier)}", 0)
    after = {step: report for step, report in branch.reports.items() if step > point}
    compared = sum(
        key in report and key in alone.reports.get(step, {})
        for step, report in after.items()
        for key in ("train_loss", "val_loss", "val_bpb", "ema_val_bpb")
    )
    if not compared:
        return _said(at, f"the short runs print no loss after step {point} that could be compared", 0)
    wrong = [*differences(alone.reports, trunk.reports), *differences(alone.reports, after)]
    for (label, one), (_, two) in zip(alone.finals, branch.finals, strict=False):
        wrong += [f"{label}: {one} alone, {two} shared"] if one != two else []
    return _said(at, wrong[0] if wrong else None, compared)


def _failed(which: str, ended: Ended, at: Attempt) -> Outcome | None:
    """The outcome where a run was ended from here, or failed by itself."""
    if ended.why is not None and not ended.error:  # asked to stop: no answer yet
        return replace(at.outcome, status=ended.why)
    if ended.why is None and ended.code == 0:
        return None
    if ended.error:
        return _said(at, f"{which} failed ({ended.error})", 0)
    status, error = failure(ended, last_line(ended))
    if status is Observed.LOST:  # killed from outside: no answer either
        return replace(at.outcome, status=status, error=error)
    return _said(at, f"{which} failed ({error})", 0)


def _said(at: Attempt, reason: str | None, compared: int) -> Outcome:
    result: dict[str, Any] = {"exact": reason is None, "compared": compared, "reason": reason}
    print(
        f"sharing is exact: {compared} figures alike" if reason is None else f"not exact: {reason}",
        flush=True,
    )
    return replace(at.outcome, result=result)
