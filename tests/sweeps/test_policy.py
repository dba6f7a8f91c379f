import pytest

from sweeps.work.policy import Action, Decision, Failure, Limits, Observed, decide

LIMITS = Limits(lost=3, preempted=5, crashed=1, storage=2, first_pause_seconds=1.0, longest_pause_seconds=2.0)


def failures(observed: Observed, count: int, step: int | None = None) -> list[Failure]:
    return [Failure(observed, step)] * count


@pytest.mark.parametrize(
    ("observed", "action"),
    [
        (Observed.STOPPED, Action.LEAVE),
        (Observed.PREEMPTED, Action.RETRY),
        (Observed.LOST, Action.RETRY),
        (Observed.DIVERGED, Action.DIVERGE),
        (Observed.BAD_INPUT, Action.FAIL),
        (Observed.STORAGE, Action.RETRY),
        (Observed.CRASHED, Action.RETRY),
    ],
)
def test_first_failure(observed: Observed, action: Action) -> None:
    assert decide([Failure(observed)], LIMITS) == Decision(action)


def test_a_worker_lost_again_and_again_without_a_step_gained_is_given_up_after_growing_pauses() -> None:
    decisions = [decide(failures(Observed.LOST, n), LIMITS) for n in (1, 2, 3, 4)]
    assert [d.pause_seconds for d in decisions] == [0.0, 1.0, 2.0, 0.0]
    assert [d.action for d in decisions] == [Action.RETRY] * 3 + [Action.FAIL]


def test_progress_between_losses_starts_the_count_again() -> None:
    history = [Failure(Observed.LOST, step) for step in range(100)]
    assert decide(history, LIMITS) == Decision(Action.RETRY)
    assert decide([*history, *failures(Observed.LOST, 3, 99)], LIMITS).action is Action.FAIL


def test_kinds_are_counted_apart() -> None:
    history = failures(Observed.LOST, 3) + failures(Observed.CRASHED, 1)
    assert decide(history, LIMITS).action is Action.RETRY
    assert decide([*history, Failure(Observed.CRASHED)], LIMITS).action is Action.FAIL


def test_out_of_memory_halves_the_micro_batch_down_to_one_sequence() -> None:
    seqs, tried = 12, []
    history: list[Failure] = []
    while True:
        history.append(Failure(Observed.OUT_OF_MEMORY, None, seqs))
        decision = decide(history, LIMITS)
        if decision.action is not Action.RESTART_SMALLER:
            break
        assert decision.micro_batch_seqs is not None
        seqs = decision.micro_batch_seqs
        tried.append(seqs)
    assert tried == [6, 3, 1]
    assert decision.action is Action.FAIL


def test_out_of_memory_where_there_is_no_micro_batch_to_halve_fails() -> None:
    assert decide([Failure(Observed.OUT_OF_MEMORY)], LIMITS).action is Action.FAIL


def test_a_store_that_stays_away_leaves_the_run_for_the_next_launch() -> None:
    assert decide(failures(Observed.STORAGE, 3), LIMITS).action is Action.LEAVE
