"""What watches the loop: the clock, reports and validation, checkpoints; each with its own period."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from gepa_core.config import DataPaths, ExecConfig, RunConfig
from gepa_core.data.shards import load_tokens, open_shards
from gepa_core.data.tokenizer import byte_table
from gepa_core.evaluation.scoring import Evaluation, evaluate_plain
from gepa_core.training import checkpoint
from gepa_core.training.trainer import Trainer

_KEEP = 2  # checkpoints: should the newest turn out damaged, the one before it is used


@dataclass(frozen=True)
class StepReport:
    """What was seen after `step` steps. Losses in nats a token, bpb in bits a byte; None: not measured."""

    step: int
    lr_scale: float
    train_loss: float | None
    val_loss: float | None
    val_bpb: float | None
    ema_val_bpb: float | None
    elapsed_seconds: float
    tokens_per_second: float

    def __str__(self) -> str:
        values = {key: getattr(self, key) for key in ("train_loss", "val_loss", "val_bpb", "ema_val_bpb")}
        seen = ", ".join(f"{key} {value:.4f}" for key, value in values.items() if value is not None)
        return f"step {self.step}: {seen}, {self.tokens_per_second:,.0f} tokens/s"


class Stopwatch:
    """Seconds of training, without validation and checkpoints."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0.0
        self._since: float | None = None
        self._earlier = 0.0

    def start(self) -> None:
        self._since = time.perf_counter()

    def add(self, seconds: float) -> None:
        self._earlier += seconds

    def here(self) -> float:
        """Seconds of this process's part of the segment."""
        return self._before + (time.perf_counter() - self._since if self._since is not None else 0.0)

    def seconds(self) -> float:
        """Seconds of the whole segment."""
        return self._earlier + self.here()

    @contextmanager
    def paused(self) -> Iterator[None]:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        running, self._before, self._since = self._since is not None, self.here(), None
        yield
        if running:
            self.start()


class Observer:
    """Decides after each step what is due to be seen, and looks."""

    def __init__(
        self,
        config: RunConfig,
        paths: DataPaths,
        exec_cfg: ExecConfig,
        trainer: Trainer,
        clock: Stopwatch,
        until: int,
        final_step: bool,
    ) -> None:
        self._config, self._exec_cfg, self._trainer, self._clock = config, exec_cfg, trainer, clock
        self._until, self._final_step = until, final_step
        self._first_step = trainer.step
        limit = config.data.val_tokens
        self._tokens = load_tokens(open_shards(paths.val), None if limit is None else limit + 1)
        self._table = byte_table(paths.tokenizer, config.model.vocab_size)

    def observe(self, lr_scale: float) -> StepReport | None:
        step, cfg = self._trainer.step, self._config.eval
        at_end = self._final_step and step == self._config.steps
        validates = step % cfg.every == 0 or at_end or step == self._config.peak_steps
        averages = step % cfg.ema_every == 0 or at_end
        if not (validates or averages or step % cfg.log_every == 0 or step == self._until):
            return None
        train_loss = self._trainer.train_loss()
        elapsed, speed = self._clock.seconds(), self.tokens_per_second()
        raw = average = None
        with self._clock.paused():
            if validates:
                raw = self._evaluate()
            if averages:
                with self._trainer.averaged():
                    average = self._evaluate()
        return StepReport(
            step=step,
            lr_scale=lr_scale,
            train_loss=train_loss,
            val_loss=raw.loss if raw else None,
            val_bpb=raw.bpb if raw else None,
            ema_val_bpb=average.bpb if average else None,
            elapsed_seconds=elapsed,
            tokens_per_second=speed,
        )

    def tokens_per_second(self) -> float:
        done = (self._trainer.step - self._first_step) * self._config.batch.tokens_per_step
        return done / seconds if (seconds := self._clock.here()) else 0.0

    def _evaluate(self) -> Evaluation:
        return evaluate_plain(
            self._trainer.model, self._tokens, self._table, self._config.eval, self._exec_cfg
        )


class Saver:
    """Writes checkpoints every so many steps or seconds, and forgets old ones."""

    def __init__(
        self, trainer: Trainer, folder: Path, exec_cfg: ExecConfig, clock: Stopwatch, is_kept: bool
    ) -> None:
        self._trainer, self._folder, self._clock = trainer, folder, clock
        self._every, self._period = exec_cfg.checkpoint_every, exec_cfg.checkpoint_seconds
        self._last = time.monotonic()
        self._saved_step = trainer.step if is_kept else None

    def is_due(self) -> bool:
        """By steps: known to every rank."""
        return self._every is not None and self._trainer.step % self._every == 0

    def is_time(self) -> bool:
        """By the clock of rank 0, once a period: the wish may be granted some steps later."""
        now = time.monotonic()
        late = self._every is None and self._trainer.rank == 0 and now - self._last > self._period
        if late:
            self._last = now
        return late

    def save(self) -> Path:
        path = self._folder / str(self._trainer.step)
        if self._saved_step != self._trainer.step:
            with self._clock.paused():
                self._trainer.train_loss()  # a state that has diverged is not kept
                self._trainer.save(path, segment_seconds=self._clock.seconds())
                if self._trainer.rank == 0:
                    checkpoint.prune(self._folder, _KEEP, self._trainer.step)
                if self._trainer.world > 1:
                    dist.barrier()  # no rank may act on a state that is not on disk yet
            self._saved_step, self._last = self._trainer.step, time.monotonic()
        return path
