"""A run's training state and the loop that advances it."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gepa_core.config import Average, ExecConfig, RunConfig, digest
from gepa_core.data.shards import TokenStream
from gepa_core.device import attention, rank_and_world, wants_compile
from gepa_core.errors import CheckpointError, DivergedError
from gepa_core.model.gepa import GEPA
from gepa_core.model.passes import sequence_loss
from gepa_core.schedule import lr_horizon, lr_multiplier
from gepa_core.training import checkpoint
from gepa_core.training.averages import average_prefixes, averages_of, prefix_of
from gepa_core.training.batches import Prefetcher, StepBatches, micro_batch_seqs
from gepa_core.training.optim import FlatParameters, Optimizer


class Trainer:
    """Model, optimizers, average and step of a run, and how to advance them.

    In an initialised torch.distributed group each rank holds all of the state and trains on its spans.
    """

    def __init__(
        self,
        config: RunConfig,
        exec_cfg: ExecConfig,
        stream: TokenStream,
        device: torch.device,
        averages: Sequence[Average] = (),
    ) -> None:
        """averages: of the weights, to be kept along the way; the run's own alone unless told otherwise."""
        self.config, self.exec_cfg, self.device = config, exec_cfg, device
        self.averages = tuple(averages) or (config.average,)
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
        multiplier = config.optim.decoder_lr_multiplier
        self.flat = FlatParameters(self.model, multiplier, len(self.averages))
        self.optimizer = Optimizer(self.model, self.flat, config.optim)
        self.step = 0
        self._first_step = 0
        self._finite_steps = torch.zeros((), dtype=torch.int64, device=device)
        self.compiles = wants_compile(exec_cfg, device)

    def lr_scale(self, step: int, *, adam: bool = False) -> float:
        """Multiplier of the learning rates at 0-based `step`: of Muon's matrices, or of what AdamW trains."""
        config = self.config
        own = config.adam_warmdown_steps if adam else None
        return lr_multiplier(
            step,
            steps=config.steps,
            warmdown_steps=config.warmdown_steps if own is None else own,
            schedule=config.schedule,
            final_lr_fraction=config.final_lr_fraction,
            schedule_power=config.schedule_power,
            lr_floor=config.lr_floor,
        )

    def _decay(self, average: Average, step: int) -> float:
        """Of an average at 0-based `step`; its own decay to the bit where its own horizon is the nearer."""
        if average.horizon == "fixed":
            return average.decay
        horizon = max(1.0, lr_horizon(self.lr_scale(step), self.lr_scale(step + 1)))
        return average.decay if horizon * (1.0 - average.decay) >= 1.0 else 1.0 - 1.0 / horizon

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
                self.optimizer.step(self.step, lr_scale, self.lr_scale(self.step, adam=True))
                decays = [self._decay(average, self.step) for average in self.averages]
                self.flat.update_averages(decays)
                self._finite_steps += torch.isfinite(norm + self.flat.loss)
                self.step += 1
                yield lr_scale
        finally:
            if isinstance(source, Prefetcher):
                source.close()

    def _source(self) -> StepBatches | Prefetcher:
        return Prefetcher(self.batches) if self.device.type == "cuda" else self.batches

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
    def borrowed(self, weights: Tensor | Mapping[str, Tensor]) -> Iterator[None]:
        """The model has other weights meanwhile, in its own precision: a flat buffer, or a state dict."""
        own = self.flat.values.clone()
        if isinstance(weights, Tensor):
            self.flat.set_weights(weights)
        else:
            self.model.load_state_dict(weights)
        try:
            yield
        finally:
            self.flat.set_weights(own)

    # State

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the state, by name: views, so that loading copies into them."""
        weights = {f"model/{name}": tensor.detach() for name, tensor in self.model.named_parameters()}
        averages = {
            prefix + name: tensor
            for prefix, flat in zip(average_prefixes(self.averages), self.flat.averages, strict=True)
            for name, tensor in self.flat.named(flat).items()
        }
        return weights | averages | self.optimizer.state()

    def _identity(self, step: int, averages: Sequence[Average]) -> str:
        """Digest of what the state at `step`, with these averages, depends on."""
        parts = self.config.trunk([average.decay for average in averages])
        if step > self.config.peak_steps:
            parts |= self.config.tail()
        return digest({**parts, "step": step})

    def save(self, path: Path, **meta: Any) -> None:
        """Writes a checkpoint (rank 0). Raises DivergedError rather than keep a state that is not finite."""
        if not all(bool(flat.sum().isfinite()) for flat in (self.flat.values, *self.flat.averages)):
            raise DivergedError(self.step, "the sum of the weights")
        if self.rank == 0:
            record = {
                "step": self.step,
                "identity": self._identity(self.step, self.averages),
                "averages": self.averages,
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
        mine, held, told = self.tensors(), averages_of(state, path), state.told(path)
        step = told.step
        constant = step <= self.config.peak_steps
        where = [prefix_of(average, held, path, constant=constant) for average in self.averages]
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("average")}
        for prefix, theirs in zip(average_prefixes(self.averages), where, strict=True):
            parts = {name.removeprefix(theirs): t for name, t in tensors.items() if name.startswith(theirs)}
            kept |= {prefix + name: tensor for name, tensor in parts.items()}
        checkpoint.require(kept, mine, str(path))
        if told.identity != self._identity(step, held):
            raise CheckpointError(
                f"{path}: the state after {step} steps of another configuration (state.json holds it); "
                "give a checkpoint of the same trunk, or start afresh in another directory"
            )
        with torch.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(kept[name])
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
