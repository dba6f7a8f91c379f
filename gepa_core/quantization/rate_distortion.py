"""The `rd` quantizer: steps that spend a byte budget where an error costs most.

With the second-order cost of calibrate.py, an error e at (row r, column c), after the columns behind it have
made up for what they can (GPTQ, Frantar et al., arXiv:2210.17323), costs rows[r] * (e / U[c, c])^2, where
U is the upper Cholesky factor of the inverse of `columns`. At the rate where an entropy coder works, a
uniform step s leaves e^2 = s^2 / 12 and each halving costs one bit: bits are best spent where every
weight costs the same, so

    step[r, c] = 2^level * U[c, c] / sqrt(rows[r])

with one `level` for the whole model, found by bisection on the bytes of the real file.
Integers keep to their range, int6's [-32, 31] unless asked otherwise: where it would clip, a
row's or a column's step is widened.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gepa_core.errors import ArtifactError
from gepa_core.quantization import codec, rans
from gepa_core.quantization.calibrate import Sensitivity
from gepa_core.quantization.quantized import Quantized, QuantizedTensor, is_quantized, make_report

_DAMPING = 0.01  # of the mean diagonal of `columns`; 0.001 to 0.05 differ by less than the noise
_MIN_ROW_WEIGHT = 0.03  # of the mean: a token that calibration never met may yet occur
_BLOCK = 32  # columns whose errors move one by one; beyond, they move as a product
_MAX_CLIP_OCTAVES = 2.0
_ALTERNATIONS = 2
_FILL = 0.997  # of the budget: near enough
_AIM = 0.9985
_MAX_PASSES = 8
_MAX_OCTAVES = 40  # between the coarsest level tried and the finest
_SAMPLE = 1 << 18  # weights from which the size of a file is foretold


Attempt = tuple[dict[str, QuantizedTensor], int]
"""Quantized tensors, and the size of the file they make."""


@dataclass(frozen=True)
class Matrix:
    """A weight [R, C] with what its errors cost. log_row [R], log_column [C]: log2
    of the ideal step's factors.
    """

    weight: Tensor
    factor: Tensor
    log_row: Tensor
    log_column: Tensor


def prepare(weight: Tensor, sensitivity: Sensitivity) -> Matrix:
    """weight fp32 [R, C] with what calibration says of it."""
    factor = inverse_factor(sensitivity.columns)
    rows = sensitivity.rows.clamp_min(_MIN_ROW_WEIGHT * float(sensitivity.rows.mean()) + 1e-30)
    return Matrix(weight, factor, -0.5 * rows.log2(), factor.diagonal().log2())


def inverse_factor(columns: Tensor) -> Tensor:
    """Upper Cholesky factor of the inverse of columns [C, C], which are damped a little: fp32 [C, C]."""
    columns = columns.double()
    damping = (_DAMPING * columns.diagonal().mean()).clamp_min(1e-30)
    columns = columns + damping * torch.eye(len(columns), dtype=torch.float64)
    # With J to reverse the order and J H J = M M', the factor U of the inverse, U' U, is J M^-1 J.
    lower = torch.linalg.cholesky(columns.flip(0, 1))
    identity = torch.eye(len(lower), dtype=torch.float64)
    return torch.linalg.solve_triangular(lower, identity, upper=False).flip(0, 1).float()


def choose_steps(matrix: Matrix, level: float, limit: int) -> tuple[Tensor, Tensor]:
    """Step codes of the rows [R] and columns [C] at this level, widened where
    [-limit - 1, limit] would clip.
    """
    log_row, log_column = matrix.log_row + level, matrix.log_column
    ratio = (matrix.weight / (log_row[:, None] + log_column).exp2()).abs()
    rows, columns = torch.zeros_like(log_row), torch.zeros_like(log_column)
    if float(ratio.max()) > limit + 0.5:
        for _ in range(_ALTERNATIONS):  # each depends on the other
            rows = _widening(ratio.T, columns, limit)
            columns = _widening(ratio, rows, limit)
        rows = _widening(ratio.T, columns, limit)
    return codec.step_codes(log_row + rows), codec.step_codes(log_column + columns)


def _widening(ratio: Tensor, others: Tensor, limit: int) -> Tensor:
    """Octaves by which to widen the step of each column of |w| / ideal step [R, C], for least cost and rate.

    Rows are widened by `others` [R] octaves already; where that was more than a column needs, its
    own number is negative. In units of the squared ideal step: rounding costs a twelfth of the
    squared step, what lies beyond the range its squared distance, and an octave saves a bit,
    worth ln 2 / 6 at the ideal step.
    """
    edge = limit + 0.5
    widened = others.exp2()[:, None]
    needed = (ratio / widened).amax(dim=0).div(edge).log2()  # for nothing to clip
    free = -0.5 * others.mul(2).exp2().mean().log2()  # best where nothing clips
    best, octaves = torch.full_like(needed, math.inf), torch.zeros_like(needed)
    for less in torch.arange(0.0, _MAX_CLIP_OCTAVES + 0.01, 0.5):
        k = (needed - less).clamp_min(free)
        step = widened * k.exp2()
        beyond = (ratio - edge * step).clamp_min(0)
        cost = (beyond.square() + step.square() / 12).mean(dim=0) - math.log(2) / 6 * k
        better = cost < best
        best = torch.where(better, cost, best)
        octaves = torch.where(better, k, octaves)
    return octaves


def round_compensated(weight: Tensor, U: Tensor, rows: Tensor, columns: Tensor, limit: int) -> Tensor:
    """GPTQ: rounds a column, moves its error onto the columns still to come. int8 [R, C]; steps [R], [C].

    U [C, C]: of `inverse_factor`.
    """
    remaining = weight.T.clone()  # [C, R]: a column is contiguous
    C, R = remaining.shape
    integers = torch.empty(C, R)
    for lo in range(0, C, _BLOCK):
        hi = min(lo + _BLOCK, C)
        errors = torch.empty(hi - lo, R)
        for c in range(lo, hi):
            step = rows * columns[c]
            integers[c] = torch.clamp(torch.round(remaining[c] / step), -limit - 1, limit)
            errors[c - lo] = (remaining[c] - integers[c] * step) / U[c, c]
            remaining[c + 1 : hi].addr_(U[c, c + 1 : hi], errors[c - lo], alpha=-1)
        remaining[hi:].addmm_(U[lo:hi, hi:].T, errors, alpha=-1)
    return integers.T.to(torch.int8).contiguous()


def quantize_matrix(matrix: Matrix, level: float, limit: int) -> QuantizedTensor:
    rows, columns = (codec.step_sizes(codes) for codes in choose_steps(matrix, level, limit))
    integers = round_compensated(matrix.weight, matrix.factor, rows, columns, limit)
    return QuantizedTensor(integers, rows, columns)


def foretold_bytes(matrices: list[Matrix], level: float, limit: int) -> float:
    """Size of the coded integers at this level, without compensation and from a sample of the rows."""
    total = sum(m.weight.numel() for m in matrices)
    every = max(1, total // _SAMPLE)
    symbols, classes = [], []
    for whole in matrices:
        matrix = replace(whole, weight=whole.weight[::every], log_row=whole.log_row[::every])
        rows, columns = (codec.step_sizes(codes) for codes in choose_steps(matrix, level, limit))
        integers = torch.round(matrix.weight / (rows[:, None] * columns)).clamp(-limit - 1, limit)
        array = integers.to(torch.int8).numpy()
        symbols.append(array.ravel().view(np.uint8))
        classes.append(codec.classes_of(*codec.scale_codes(array)))
    sample = np.concatenate(symbols)
    return total / len(sample) * rans.code_length(sample, np.concatenate(classes)) / 8


def level_of(size: Callable[[float], float], target: float, low: float, high: float) -> float:
    """Where in [low, high] a size that falls meets the target: bisection, then a straight line."""
    if size(low) <= target:
        return low
    while high - low > 0.05:
        middle = (low + high) / 2
        low, high = (middle, high) if size(middle) > target else (low, middle)
    above, below = size(low) - target, target - size(high)
    return high if below <= 0 else low + (high - low) * above / (above + below)


def quantize_rate_distortion(
    state: Mapping[str, Tensor],
    sensitivities: Mapping[str, Sensitivity],
    *,
    budget_bytes: int,
    keep_float_max_numel: int,
    integer_bits: int,
) -> Quantized:
    """Quantizes a state dict so that its file fills `budget_bytes` and does not exceed it.

    The file stays smaller where the integers' range leaves nothing finer to spend bytes on. Raises
    ArtifactError if the budget is less than the model needs at its coarsest.
    """
    limit = 2 ** (integer_bits - 1) - 1
    names = [name for name, tensor in state.items() if is_quantized(tensor, keep_float_max_numel)]
    matrices = [prepare(state[n].detach().float().cpu(), sensitivities[n]) for n in names]
    passthrough = {n: _half(n, t) for n, t in state.items() if n not in names}
    dtypes = {name: tensor.dtype for name, tensor in state.items()}

    def attempt(level: float) -> Attempt:
        tensors = {n: quantize_matrix(m, level, limit) for n, m in zip(names, matrices, strict=True)}
        return tensors, len(codec.encode(tensors, passthrough, dtypes))

    tensors, size = _fill(attempt, matrices, limit, budget_bytes)
    if size > budget_bytes:
        raise ArtifactError(
            f"quant.budget_bytes {budget_bytes}: this model takes {size} bytes at its coarsest; raise the "
            "budget or lower quant.keep_float_max_numel, so that more of it is quantized"
        )
    return Quantized("rd", tensors, passthrough, dtypes, make_report(state, tensors, passthrough))


def _fill(attempt: Callable[[float], Attempt], matrices: list[Matrix], limit: int, budget: int) -> Attempt:
    """The largest model found within the budget, or the smallest of all, with its size.

    A few real passes, each aimed by how far the foretold size of the last one was off.
    """
    if not matrices:
        return attempt(0.0)
    coarsest = 1 + max(
        float(m.weight.abs().amax().log2() - m.log_row.min() - m.log_column.min()) for m in matrices
    )
    finest = coarsest - _MAX_OCTAVES
    foretold = functools.cache(lambda level: foretold_bytes(matrices, level, limit))
    if foretold(finest) < budget:  # the range binds before the budget does
        whole = attempt(finest)
        if whole[1] <= budget:
            return whole
    correction = 0.0
    tried: list[Attempt] = []
    for _ in range(_MAX_PASSES):
        level = level_of(foretold, _AIM * budget - correction, finest, coarsest)
        tried.append(attempt(level))
        size = tried[-1][1]
        if _FILL * budget <= size <= budget:
            break
        correction = size - foretold(level)
    return max(tried, key=lambda found: (found[1] <= budget, found[1] if found[1] <= budget else -found[1]))


def _half(name: str, tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    if not tensor.is_floating_point():
        return tensor
    if float(tensor.abs().amax() if tensor.numel() else 0) > torch.finfo(torch.float16).max:
        raise ArtifactError(f"{name}: holds weights over 65504, which fp16 cannot store; training diverged")
    return tensor.half()
