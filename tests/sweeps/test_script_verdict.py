"""What is said of a script's end: its own words, not those of what started it."""

from pathlib import Path

import pytest

from sweeps.work.policy import Observed
from sweeps.work.scripts.process import Ended
from sweeps.work.scripts.verdict import failure, last_line
from tests.script_sweep import launch, log, rows, sweep_text, write_script
from tests.tiny_sweep import InThisProcess

TORCHRUN = """\
W1126 torch/distributed/elastic/multiprocessing/api.py:1028] Sending process 1 closing signal SIGTERM
E1126 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: {code}) local_rank: 1
Traceback (most recent call last):
  File "torchrun", line 8, in <module>
    sys.exit(main())
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
train_gpt.py FAILED
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  rank      : 1 (local_rank: 1)
  exitcode  : {code} (pid: 27049)
  traceback : To enable traceback see: https://pytorch.org/docs/stable/elastic/errors.html
============================================================
"""
OLDER_TORCHRUN = (
    "ERROR:torch.distributed.elastic.multiprocessing.api:failed (exitcode: 1) local_rank: 0 (pid: 7)"
)
ACCELERATE = """\
Traceback (most recent call last):
  File "/bin/accelerate", line 8, in <module>
    sys.exit(main())
subprocess.CalledProcessError: Command '['python', 'train.py']' returned non-zero exit status 1.
"""
KILLED_CHILD = """\
Traceback (most recent call last):
  File "run.py", line 3, in <module>
    subprocess.run(["python", "train.py"], check=True)
subprocess.CalledProcessError: Command '['python', 'train.py']' died with <Signals.SIGKILL: 9>.
"""
SRUN = "-----\nsrun: error: node1: task 0: Exited with exit code 1"
RANKS = """\
[rank1]: Traceback (most recent call last):
[rank1]:   File "train_gpt.py", line 9, in <module>
[rank1]: ValueError: the batch is not divisible
[rank0]: Traceback (most recent call last):
[rank0]: torch.distributed.DistBackendError: NCCL error: remote process exited or there was a network error
"""


@pytest.mark.parametrize(
    ("printed", "launcher", "status", "words"),
    [
        (
            "ValueError: too short",
            TORCHRUN.format(code=1),
            Observed.CRASHED,
            "code 1: its last line: ValueError",
        ),
        (RANKS, TORCHRUN.format(code=1), Observed.CRASHED, "line: ValueError: the batch is not divisible"),
        ("step 5 loss 2.1", TORCHRUN.format(code=-9), Observed.LOST, "SIGKILL; short of memory"),
        ("step 5 loss 2.1", TORCHRUN.format(code=-11), Observed.CRASHED, "SIGSEGV"),
        ("[rank0]: ImportError: No flash", TORCHRUN.format(code=1), Observed.BAD_INPUT, "line: ImportError"),
        ("torch.OutOfMemoryError: CUDA", TORCHRUN.format(code=1), Observed.OUT_OF_MEMORY, "out of memory"),
        ("ValueError: too short", OLDER_TORCHRUN, Observed.CRASHED, "its last line: ValueError: too short"),
        ("KeyError: 'lr'", ACCELERATE, Observed.BAD_INPUT, "its last line: KeyError: 'lr'"),
        ("step 5 loss 2.1", KILLED_CHILD, Observed.LOST, "SIGKILL"),
        ("disk is full", SRUN, Observed.CRASHED, "its last line: disk is full"),
        ("it stopped", "============", Observed.CRASHED, "its last line: it stopped"),
        ("====", "", Observed.CRASHED, "its last line: ===="),
        ("", "", Observed.CRASHED, "it printed nothing"),
    ],
)
def test_a_launchers_words_are_not_the_scripts(
    printed: str, launcher: str, status: Observed, words: str
) -> None:
    lines = [line for line in (*printed.splitlines(), *launcher.splitlines()) if line.strip()]
    ended = Ended(1, None, None, tuple(lines), 0, 1.0)
    said = failure(ended, last_line(ended))
    assert said[0] is status and words in said[1]


def test_a_rank_of_torchrun_that_is_killed_is_a_lost_run_and_made_again(tmp_path: Path) -> None:
    """torchrun itself ends with exit code 1; what counts is how its process ended."""
    source = f"""
    if os.environ["RANK"] == "1":
        try:
            os.close(os.open({str(tmp_path / "mark")!r}, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            sys.exit(0)
        os.kill(os.getpid(), 9)
    curve()
    """
    folder = write_script(tmp_path / "work", source)
    script = {"command": "torchrun --standalone --nproc-per-node={ranks} train.py"}
    cluster = InThisProcess()
    sweep = sweep_text(folder, script, exec={"ranks": 2, "threads": 1})
    assert launch(sweep, tmp_path / "out", cluster).exit_code == 0
    (row,) = rows(tmp_path / "out")
    assert len(cluster.jobs) == 2 and row["float_bpb"] == 0.5
    assert "val_bpb" in log(tmp_path / "out")
