"""What is to be beaten: the published loop's choices, written plainly, on the same model.

Training: a pass per span, flash attention forced on CUDA, a Newton-Schulz call per matrix, an update per
tensor, an average over a fresh state dict each step; on CUDA loss and Newton-Schulz are compiled. Test-time
training: both passes uncompiled, windows copied one by one in Python, every position through the last block
and the head, an update and an all-reduce per tensor. It is the same mathematics, and reproduces the parity
figures (tests/project/test_benchmarks.py).

Source of the choices: openai/parameter-golf, pull request 644. Written anew, nothing copied.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gepa_core.config import RunConfig
from gepa_core.data.tokenizer import ByteTable
from gepa_core.device import rank_and_world
from gepa_core.evaluation.ttt import chunk_lr
from gepa_core.model.gepa import GEPA
from gepa_core.model.kernels import plain_expressions
from gepa_core.quantization.quantized import INT_MAX, INT_MIN, SCALE_FLOOR
from gepa_core.quantization.reference import CLIP_QUANTILES
from gepa_core.schedule import lr_multiplier
from gepa_core.sections import EvalConfig, TTTConfig
from gepa_core.training.optim import is_muon_matrix, is_untrained, lr_factor, orthogonalize


@contextlib.contextmanager
def published_kernels(model: GEPA) -> Iterator[None]:
    """The published code forbids every attention kernel but flash, which knows no fp32; a CPU has its own."""
    with plain_expressions(), contextlib.ExitStack() as stack:
        if model.tok_emb.weight.device.type == "cuda" and model.dtype == torch.bfloat16:
            stack.enter_context(sdpa_kernel(SDPBackend.FLASH_ATTENTION))
        yield


def _loss(model: GEPA, ids: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())


class PlainTrainer:
    """Trains a model in place; `average` is the moving average of its state."""

    def __init__(self, model: GEPA, config: RunConfig, *, compiled: bool) -> None:
        self.model, self.config = model, config
        self.device = model.tok_emb.weight.device
        self.loss: Callable[[GEPA, Tensor, Tensor], Tensor] = (
            torch.compile(_loss, dynamic=False) if compiled else _loss
        )
        self.orthogonalize = torch.compile(orthogonalize, dynamic=False) if compiled else orthogonalize
        self.step_count = 0
        self.average = {name: t.detach().float().clone() for name, t in model.state_dict().items()}
        self._momentum: dict[str, Tensor] = {}
        cfg, self._adam_groups = config.optim, []
        self._matrices: list[tuple[str, Tensor, float]] = []
        for name, parameter in model.named_parameters():
            factor = lr_factor(name, model, cfg.decoder_lr_multiplier)
            if is_muon_matrix(name, parameter):
                self._matrices.append((name, parameter, cfg.matrix_lr * factor))
            elif not is_untrained(name):
                lr = (cfg.embed_lr if name == "tok_emb.weight" else cfg.scalar_lr) * factor
                self._adam_groups.append({"params": [parameter], "lr": lr, "base_lr": lr})
        self._adam = torch.optim.AdamW(
            self._adam_groups,
            betas=(cfg.adam_beta1, cfg.adam_beta2),
            eps=cfg.adam_eps,
            weight_decay=cfg.adam_weight_decay,
            fused=True,
        )

    def step(self, spans: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """One update on (ids, targets), each int64 [sequences, T], a pair per span. Returns the mean loss."""
        config, cfg, num_spans = self.config, self.config.optim, self.config.batch.spans
        total = torch.zeros((), device=self.device)
        for ids, targets in spans:
            with published_kernels(self.model):
                loss = self.loss(self.model, ids, targets)
                (loss / num_spans).backward()
            total += loss.detach() / num_spans
        scale = lr_multiplier(
            self.step_count,
            steps=config.steps,
            warmdown_steps=config.warmdown_steps,
            schedule=config.schedule,
            final_lr_fraction=config.final_lr_fraction,
        )
        warmed = min(self.step_count / max(cfg.muon_momentum_warmup_steps, 1), 1.0)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), cfg.grad_clip)
        self._muon((1 - warmed) * cfg.muon_momentum_start + warmed * cfg.muon_momentum, scale)
        for group in self._adam.param_groups:
            group["lr"] = group["base_lr"] * scale
        self._adam.step()
        self.model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, tensor in self.model.state_dict().items():
                self.average[name].mul_(config.ema_decay).add_(tensor.float(), alpha=1 - config.ema_decay)
        self.step_count += 1
        return total

    @torch.no_grad()
    def _muon(self, momentum: float, scale: float) -> None:
        cfg = self.config.optim
        for name, parameter, lr in self._matrices:
            gradient = parameter.grad
            assert gradient is not None
            if name not in self._momentum:
                self._momentum[name] = torch.zeros_like(gradient)
            buffer = self._momentum[name]
            buffer.mul_(momentum).add_(gradient)
            update = self.orthogonalize(gradient.add(buffer, alpha=momentum), cfg.muon_ns_steps)
            update = update * max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5
            parameter.mul_(1 - lr * scale * cfg.muon_weight_decay)
            parameter.add_(update.to(parameter.dtype), alpha=-lr * scale)


class PlainTTT:
    """Score-first test-time training with the published counting; adapts the model in place."""

    score_batch = 32  # windows, as published

    def __init__(self, model: GEPA, tokens: NDArray[np.uint16], table: ByteTable, cfg: EvalConfig) -> None:
        """cfg.counting "once" leaves out the windows that score the end of the text again."""
        self.model, self.cfg = model, cfg
        self.device = model.tok_emb.weight.device
        self.tokens = torch.from_numpy(tokens.astype(np.int64))
        self.base_bytes = torch.from_numpy(table.base_bytes).to(self.device)
        self.leading_space = torch.from_numpy(table.leading_space).to(self.device)
        self.boundary = torch.from_numpy(table.boundary).to(self.device)
        self.nll = torch.zeros((), dtype=torch.float64, device=self.device)
        self.scored = torch.zeros((), dtype=torch.float64, device=self.device)
        self.bytes = torch.zeros((), dtype=torch.float64, device=self.device)

    @property
    def bpb(self) -> float:
        return float(self.nll / self.bytes) / math.log(2)

    def windows(self) -> list[tuple[int, int, int]]:
        """(start, end, first scored target) of every window, cut short by the end of the text or not."""
        total, size, stride = len(self.tokens) - 1, self.cfg.seq_len, self.cfg.stride
        found = []
        for start in range(0, total, stride):
            end = min(start + size, total)
            if end - start >= stride or start == 0:
                found.append((start, end, 0 if start == 0 else end - stride))
            if end == total and self.cfg.counting == "once":
                break
        return found

    @torch.inference_mode()
    def score(self, windows: Sequence[tuple[int, int, int]]) -> None:
        """Adds the scores of these windows to the totals."""
        for i in range(0, len(windows), self.score_batch):
            batch = windows[i : i + self.score_batch]
            ids = torch.zeros(len(batch), self.cfg.seq_len, dtype=torch.int64, device=self.device)
            targets = torch.zeros_like(ids)
            for row, (start, end, _) in enumerate(batch):
                window = self.tokens[start : end + 1].to(self.device)
                ids[row, : end - start] = window[:-1]
                targets[row, : end - start] = window[1:]
            with published_kernels(self.model):
                logits = self.model(ids)
            losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
            losses = losses.view_as(targets)
            for row, (start, end, first) in enumerate(batch):
                part = slice(first - start, end - start)
                self.nll += losses[row, part].double().sum()
                self.scored += float(end - first)
                previous, current = ids[row, part], targets[row, part]
                size = self.base_bytes[current].double()
                size += (self.leading_space[current] & ~self.boundary[previous]).double()
                self.bytes += size.sum()

    def adapt(self, chunk: int, num_chunks: int, cfg: TTTConfig, optimizer: torch.optim.SGD) -> None:
        """Trains on the whole sequences of a chunk."""
        size, first = self.cfg.seq_len, chunk * cfg.chunk_tokens
        sequences = (min(first + cfg.chunk_tokens, len(self.tokens) - 1) - first) // size
        for group in optimizer.param_groups:
            group["lr"] = chunk_lr(chunk, num_chunks, cfg.lr, cfg.warmup_fraction)
        for _ in range(cfg.epochs):
            for i in range(0, sequences, cfg.batch_seqs):
                rows = min(cfg.batch_seqs, sequences - i)
                start = first + i * size
                text = self.tokens[start : start + rows * size + 1].to(self.device)
                optimizer.zero_grad(set_to_none=True)
                with published_kernels(self.model):
                    _loss(self.model, text[:-1].view(rows, size), text[1:].view(rows, size)).backward()
                parameters = [p for p in self.model.parameters() if p.grad is not None]
                if rank_and_world()[1] > 1:
                    for parameter in parameters:
                        dist.all_reduce(parameter.grad, op=dist.ReduceOp.AVG)
                torch.nn.utils.clip_grad_norm_(parameters, cfg.grad_clip)
                optimizer.step()

    def run(self, cfg: TTTConfig) -> float:
        """Scores the whole text, chunk after chunk, adapting in between; bits per byte."""
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(
                not name.startswith(tuple(f"blocks.{i}." for i in range(cfg.freeze_blocks)))
            )
        trained = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=cfg.lr, momentum=cfg.momentum)
        total = len(self.tokens) - 1
        num_chunks = math.ceil(total / cfg.chunk_tokens)
        chunks: list[list[tuple[int, int, int]]] = [[] for _ in range(num_chunks)]
        for window in self.windows():
            chunks[window[2] // cfg.chunk_tokens].append(window)
        for chunk, windows in enumerate(chunks):
            self.score(windows)
            if chunk < num_chunks - 1:
                self.adapt(chunk, num_chunks, cfg, optimizer)
        return self.bpb


def plain_int6(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The published search on one matrix: integers int8 [R, C] and row steps fp16 [R].

    Every candidate quantizes the whole matrix; the one of least mean squared error is kept.
    """
    w, best = weight.detach().float(), math.inf
    for quantile in CLIP_QUANTILES:
        clip = w.abs().amax(dim=1) if quantile == 1.0 else torch.quantile(w.abs(), quantile, dim=1)
        scale = (clip / INT_MAX).clamp_min(SCALE_FLOOR)
        integers = (w / scale[:, None]).round().clamp(INT_MIN, INT_MAX)
        error = float((w - integers * scale[:, None]).square().mean())
        if error < best:
            best, found = error, (integers.to(torch.int8), scale.half())
    return found
