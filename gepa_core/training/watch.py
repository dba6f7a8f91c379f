"""What watches the loop: the clock, reports and validation, checkpoints; each with its own period."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gepa_core.config import DataPaths, ExecConfig, RunConfig
from gepa_core.data.shards import TokenStream, open_shards
from gepa_core.data.text import open_text
from gepa_core.evaluation.scoring import Evaluation
from gepa_core.evaluation.stages import measure
from gepa_core.quantization import artifact
from gepa_core.quantization.calibrate import calibrate
from gepa_core.quantization.methods import quantize
from gepa_core.training import checkpoint
from gepa_core.training.trainer import Trainer

_KEEP = 2  # checkpoints: should the newest turn out damaged, the one before it is used


@dataclass(frozen=True)
class StepReport:
    """What was seen after `step` steps. Losses in nats a token, bpb in bits a byte; None: not measured.

    int6_*: of the averaged weights, quantized; raw_int6_*: of the raw ones.
    """

    step: int
    lr_scale: float
    train_loss: float | None
    val_loss: float | None
    val_bpb: float | None
    ema_val_bpb: float | None
    elapsed_seconds: float
    tokens_per_second: float
    ema_val_bpb_by_average: dict[str, float] | None = None
    """In place of ema_val_bpb where the training keeps several averages."""
    int6_val_bpb: float | None = None
    artifact_bytes: int | None = None
    raw_int6_val_bpb: float | None = None
    raw_artifact_bytes: int | None = None

    def __str__(self) -> str:
        names = ("train_loss", "val_loss", "val_bpb", "ema_val_bpb", "int6_val_bpb")
        values = {key: getattr(self, key) for key in names}
        values |= {f"ema_val_bpb ({by})": v for by, v in (self.ema_val_bpb_by_average or {}).items()}
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


def is_warmdown_point(config: RunConfig, step: int) -> bool:
    """Whether `step` is where the warmdown begins, or the first past one of its equal parts."""
    length, points = config.steps - config.peak_steps, config.eval.warmdown_points
    done = step - config.peak_steps
    return done == 0 or (done > 0 and done * points // length > (done - 1) * points // length)


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
        self._train = paths.train
        self._until, self._final_step = until, final_step
        self._first_step = trainer.step
        vocab_size = config.model.vocab_size
        self._text = open_text(paths.val, paths.tokenizer, vocab_size, config.data.val_tokens)

    def observe(self, lr_scale: float) -> StepReport | None:
        step, cfg = self._trainer.step, self._config.eval
        at_end = self._final_step and step == self._config.steps
        validates = step % cfg.every == 0 or at_end or is_warmdown_point(self._config, step)
        averages = step % cfg.ema_every == 0 or at_end
        if cfg.int6_every is not None and (step % cfg.int6_every == 0 or at_end):
            quantizes = validates = averages = True  # a tax is a difference: both of its sides at one step
        else:
            quantizes = False
        if not (validates or averages or step % cfg.log_every == 0 or step == self._until):
            return None
        train_loss = self._trainer.train_loss()
        elapsed, speed = self._clock.seconds(), self.tokens_per_second()
        raw, by_average, int6 = None, {}, {}
        with self._clock.paused():
            if validates:
                raw = self._evaluate()
            if averages:
                by_average = self._evaluate_averages()
            if quantizes:
                int6 = self._quantize("raw_", self._trainer.flat.values)
                if len(by_average) == 1:
                    int6 |= self._quantize("", self._trainer.flat.averages[0])
        alone = len(by_average) == 1
        return StepReport(
            step=step,
            lr_scale=lr_scale,
            train_loss=train_loss,
            val_loss=raw.loss if raw else None,
            val_bpb=raw.bpb if raw else None,
            ema_val_bpb=next(iter(by_average.values())) if alone else None,
            ema_val_bpb_by_average=None if alone or not by_average else by_average,
            elapsed_seconds=elapsed,
            tokens_per_second=speed,
            **int6,
        )

    def tokens_per_second(self) -> float:
        done = (self._trainer.step - self._first_step) * self._config.batch.tokens_per_step
        return done / seconds if (seconds := self._clock.here()) else 0.0

    def _evaluate_averages(self) -> dict[str, float]:
        found = {}
        for average, weights in zip(self._trainer.averages, self._trainer.flat.averages, strict=True):
            with self._trainer.borrowed(weights):
                found[str(average)] = self._evaluate().bpb
        return found

    def _quantize(self, prefix: str, weights: Tensor) -> dict[str, Any]:
        """BPB of these weights once they were quantized, and the size of the file they make."""
        config, quant, model = self._config, self._config.probe_quant, self._trainer.model
        with self._trainer.borrowed(weights):
            sensitivities = None
            if quant.calibrates:
                tokens = TokenStream(open_shards(self._train)).span(0, quant.calibration_tokens)
                sensitivities = calibrate(model, tokens, config.batch.seq_len)
            data = artifact.encode(quantize(model.state_dict(), quant, sensitivities))
            with self._trainer.borrowed(artifact.decode(data)):
                bpb = self._evaluate().bpb
        return {f"{prefix}int6_val_bpb": bpb, f"{prefix}artifact_bytes": len(data)}

    def _evaluate(self) -> Evaluation:
        config = self._config
        return measure("plain", self._trainer.model, self._text, config.eval, config.ttt, self._exec_cfg)


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
