"""A run's training state and the loop that advances it."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gepa_core.config import ExecConfig, RunConfig, digest
from gepa_core.data.shards import TokenStream
from gepa_core.device import attention, rank_and_world, wants_compile
from gepa_core.errors import CheckpointError, DivergedError
from gepa_core.model.gepa import GEPA
from gepa_core.model.passes import sequence_loss
from gepa_core.schedule import lr_multiplier
from gepa_core.training import checkpoint
from gepa_core.training.batches import Prefetcher, StepBatches, micro_batch_seqs
from gepa_core.training.optim import FlatParameters, Optimizer


class Trainer:
    """Model, optimizers, average and step of a run, and how to advance them.

    In an initialised torch.distributed group each rank holds all of the state and trains on its spans.
    """

    def __init__(
        self, config: RunConfig, exec_cfg: ExecConfig, stream: TokenStream, device: torch.device
    ) -> None:
        self.config, self.exec_cfg, self.device = config, exec_cfg, device
        self.rank, self.world = rank_and_world()
        self.micro_batch = micro_batch_seqs(
            config.batch, config.model.width, exec_cfg.micro_batch_seqs, device
        )
        self.batches = StepBatches(
            stream, config.batch, config.model.vocab_size, self.micro_batch, device, self.rank, self.world
        )
        torch.manual_seed(config.seed)  # nothing draws from it today; a checkpoint keeps it for what may
        self.model = GEPA(config.model)
        self.model.init_weights(config.seed)
        self.model.to(device)
        self.flat = FlatParameters(self.model, config.optim.decoder_lr_multiplier)
        self.optimizer = Optimizer(
            self.model, self.flat, config.optim, batched=exec_cfg.batched_newton_schulz
        )
        self.step = 0
        self._first_step = 0
        self._finite_steps = torch.zeros((), dtype=torch.int64, device=device)
        self.compiles = wants_compile(exec_cfg, device)

    def lr_scale(self, step: int) -> float:
        """Multiplier of every learning rate at 0-based `step`."""
        config = self.config
        return lr_multiplier(
            step,
            steps=config.steps,
            warmdown_steps=config.warmdown_steps,
            schedule=config.schedule,
            final_lr_fraction=config.final_lr_fraction,
        )

    def steps(self, until: int, vote: Callable[[Tensor], None]) -> Iterator[float]:
        """Trains to step `until`; yields the learning-rate multiplier after each step. Never waits for a GPU.

        `vote` fills a tensor that is averaged over the ranks with the gradients.
        """
        source = self._source()
        try:
            while self.step < until:
                lr_scale = self.lr_scale(self.step)
                self.flat.zero_gradients()
                for ids, targets in source.read(self.step):
                    self._accumulate(ids, targets)
                vote(self.flat.votes)
                self.flat.reduce()
                norm = self.flat.clip(self.config.optim.grad_clip)
                self.optimizer.step(self.step, lr_scale)
                self.flat.update_average(self.config.ema_decay, flat=self.exec_cfg.foreach_ema)
                self._finite_steps += torch.isfinite(norm + self.flat.loss)
                self.step += 1
                yield lr_scale
        finally:
            if isinstance(source, Prefetcher):
                source.close()

    def _source(self) -> StepBatches | Prefetcher:
        if self.exec_cfg.prefetch and self.device.type == "cuda":
            return Prefetcher(self.batches)
        return self.batches

    def _accumulate(self, ids: Tensor, targets: Tensor) -> None:
        """Adds a micro-batch's share of the step's mean loss, and its gradient."""
        with attention(self.exec_cfg, self.device):
            loss = sequence_loss(self.model, ids, targets, self.exec_cfg, self.device)
            loss = loss / self.batches.micro_batches
            loss.backward()
        self.flat.loss.add_(loss.detach())

    def warm_up(self) -> None:
        """Compiles on the next step's data. Nothing but gradients is touched, so nothing need be restored;
        the published code takes 20 real steps and then puts state and data position back."""
        for ids, targets in self.batches.read(self.step)[:1] * 2:
            self._accumulate(ids, targets)
        self.flat.zero_gradients()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def train_loss(self) -> float:
        """Loss of the last step, nats a token. Raises DivergedError, naming the step at which the run did."""
        finite = int(self._finite_steps)
        if finite < self.step - self._first_step:
            raise DivergedError(self._first_step + finite + 1)
        return float(self.flat.loss)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model has the averaged weights meanwhile, in its own precision."""
        weights = self.flat.values.clone()
        self.flat.set_weights(self.flat.average)
        try:
            yield
        finally:
            self.flat.set_weights(weights)

    # State

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the state, by name: views, so that loading copies into them."""
        weights = {f"model/{name}": tensor.detach() for name, tensor in self.model.named_parameters()}
        averages = {f"average/{name}": t for name, t in self.flat.named(self.flat.average).items()}
        return weights | averages | self.optimizer.state()

    def _identity(self, step: int) -> str:
        """Digest of what the state at `step` depends on."""
        parts = self.config.trunk()
        if step > self.config.peak_steps:
            kept = ("steps", "warmdown_steps", "schedule", "final_lr_fraction")
            parts |= {key: getattr(self.config, key) for key in kept}
        return digest({**parts, "step": step})

    def save(self, path: Path, **meta: Any) -> None:
        """Writes a checkpoint (rank 0). Raises DivergedError rather than keep a state that is not finite."""
        if not bool(torch.isfinite(self.flat.values.sum() + self.flat.average.sum())):
            raise DivergedError(self.step, "the sum of the weights")
        if self.rank == 0:
            record = {
                "step": self.step,
                "identity": self._identity(self.step),
                "config": self.config.model_dump(mode="json"),
                "ranks": self.world,
                "torch": torch.__version__,
                **meta,
            }
            checkpoint.save(path, self.tensors() | {"rng/cpu": torch.get_rng_state()}, record)

    def restore(self, state: checkpoint.State | None, path: Path | None) -> None:
        """Takes over a checkpoint, if there is one. Only rank 0 need pass it: the others receive its state.

        Raises CheckpointError if the state does not belong to this configuration.
        """
        if state is not None:
            self._take(state, path)
        if self.world > 1:
            step = torch.tensor(self.step, device=self.device)
            for tensor in (step, *self.tensors().values()):
                dist.broadcast(tensor, 0)
            self.step = int(step)
        self.optimizer.set_steps_done(self.step)
        self._first_step = self.step
        self._finite_steps.zero_()
        self.flat.refresh()

    def _take(self, state: checkpoint.State, path: Path | None) -> None:
        tensors = dict(state.tensors)
        rng = tensors.pop("rng/cpu", None)
        mine = self.tensors()
        checkpoint.require(tensors, mine, str(path))
        told = state.told(path)
        step = told.step
        if told.identity != self._identity(step):
            raise CheckpointError(
                f"{path}: the state after {step} steps of another configuration (state.json holds it); "
                "give a checkpoint of the same trunk, or start afresh in another directory"
            )
        with torch.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(tensors[name])
        if rng is not None:
            torch.set_rng_state(rng)
        self.step = step


class Ballot:
    """Decisions that ranks take together (stop, save) without waiting for one another or for a GPU.

    Votes travel with the gradients. On a GPU they are read two steps later, when they have long arrived.
    """

    _DELAY = 2

    def __init__(self, wishes: Callable[[], tuple[bool, bool]], votes: Tensor) -> None:
        self._wishes, self._votes = wishes, votes
        self._arriving: deque[tuple[Tensor, Any]] = deque()

    def cast(self, votes: Tensor) -> None:
        for i, wish in enumerate(self._wishes()):
            if wish:
                votes[i].fill_(1.0)

    def read(self) -> tuple[bool, bool]:
        """(stop, save), the same on every rank."""
        if self._votes.device.type != "cuda":
            stop, save = (self._votes > 0).tolist()
            return stop, save
        host = torch.empty(2, pin_memory=True).copy_(self._votes, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._arriving.append((host, arrived))
        if len(self._arriving) <= self._DELAY:
            return False, False
        host, arrived = self._arriving.popleft()
        arrived.synchronize()
        stop, save = (host > 0).tolist()
        return stop, save
