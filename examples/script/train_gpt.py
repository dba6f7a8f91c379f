"""A training script of the challenge's shape, small enough for one CPU core: a job that a sweep can take.

It knows nothing of gepa-sweeps. Settings come from environment variables, progress goes to standard output in
the challenge's lines, and it leaves an int8 model compressed by zlib. The model, which tells a byte from the
two before it, is a stand-in that needs NumPy only: put your own in its place.

    ITERATIONS=200 WARMDOWN_ITERS=80 SEED=1 python train_gpt.py
"""

import io
import math
import os
import random
import time
import zlib
from pathlib import Path

import numpy as np

ITERATIONS = int(os.environ.get("ITERATIONS", 200))
WARMDOWN_ITERS = int(os.environ.get("WARMDOWN_ITERS", 80))
SEED = int(os.environ.get("SEED", 1337))
VAL_LOSS_EVERY = int(os.environ.get("VAL_LOSS_EVERY", 20))
TRAIN_LOG_EVERY = int(os.environ.get("TRAIN_LOG_EVERY", 10))
MAX_WALLCLOCK_SECONDS = float(os.environ.get("MAX_WALLCLOCK_SECONDS", 600))
TRAIN_BATCH_TOKENS = int(os.environ.get("TRAIN_BATCH_TOKENS", 256))
LEARNING_RATE = float(os.environ.get("LEARNING_RATE", 0.5))
MOMENTUM = float(os.environ.get("MOMENTUM", 0.9))
WIDTH = int(os.environ.get("WIDTH", 32))
SAVE_AT = int(os.environ.get("SAVE_AT", 0))  # 0 = never
SAVE_TO = os.environ.get("SAVE_TO", "state.npz")
LOAD_FROM = os.environ.get("LOAD_FROM", "")

VOCAB = 128
VAL_BYTES = 4096
State = dict[str, np.ndarray]


def text() -> np.ndarray:
    """Bytes of made-up sentences, the same everywhere."""
    rng = random.Random(0)
    who = ["a man", "the queen", "one child", "every sailor", "my neighbour", "nobody here"]
    does = ["sees", "counts", "forgets", "paints", "carries", "remembers"]
    what = ["the sea", "three stones", "an old letter", "no more than that", "the evening train"]
    lines = [f"{rng.choice(who)} {rng.choice(does)} {rng.choice(what)}.\n" for _ in range(4000)]
    return np.frombuffer("".join(lines).encode(), np.uint8).astype(np.int64)


def initial(rng: np.random.Generator) -> State:
    return {
        "embed": rng.normal(0, 0.5, (VOCAB, WIDTH)),
        "embed_before": rng.normal(0, 0.5, (VOCAB, WIDTH)),
        "head": rng.normal(0, 0.1, (WIDTH, VOCAB)),
    }


def forward(weights: State, tokens: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Mean loss in nats of every byte from the third on; hidden (n, WIDTH) and probabilities (n, VOCAB)."""
    hidden = np.tanh(weights["embed"][tokens[1:-1]] + weights["embed_before"][tokens[:-2]])
    logits = hidden @ weights["head"]
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return float(-np.log(p[np.arange(len(p)), tokens[2:]]).mean()), hidden, p


def loss_and_gradients(weights: State, tokens: np.ndarray) -> tuple[float, State]:
    one_hot = np.eye(VOCAB)[tokens]  # (n + 2, VOCAB)
    loss, hidden, p = forward(weights, tokens)
    error = (p - one_hot[2:]) / len(p)
    inner = (error @ weights["head"].T) * (1 - hidden**2)
    return loss, {
        "embed": one_hot[1:-1].T @ inner,
        "embed_before": one_hot[:-2].T @ inner,
        "head": hidden.T @ error,
    }


def lr_scale(step: int) -> float:
    return 1.0 if step < ITERATIONS - WARMDOWN_ITERS else (ITERATIONS - step) / max(1, WARMDOWN_ITERS)


def batch(data: np.ndarray, step: int) -> np.ndarray:
    """A function of the step and the seed alone, so that a run can go on from any step."""
    at = (SEED * 7919 + step * TRAIN_BATCH_TOKENS) % (len(data) - TRAIN_BATCH_TOKENS - 2)
    return data[at : at + TRAIN_BATCH_TOKENS + 2]


def validate(weights: State, val: np.ndarray) -> tuple[float, float]:
    """(nats a byte, bits a byte)."""
    loss, _, _ = forward(weights, val)
    return loss, loss / math.log(2)


def compressed(weights: State) -> bytes:
    """Every matrix in int8 with a scale."""
    stored = {}
    for name, weight in weights.items():
        scale = max(np.abs(weight).max(), 1e-8) / 127
        stored |= {name: np.round(weight / scale).astype(np.int8), f"{name}.scale": np.float32(scale)}
    stream = io.BytesIO()
    np.savez(stream, **stored)
    return zlib.compress(stream.getvalue(), 9)


def decoded(artifact: bytes) -> State:
    stored = np.load(io.BytesIO(zlib.decompress(artifact)))
    names = [name for name in stored if not name.endswith(".scale")]
    return {name: stored[name].astype(np.float64) * float(stored[f"{name}.scale"]) for name in names}


def main() -> None:
    data = text()
    val, train = data[:VAL_BYTES], data[VAL_BYTES:]
    weights = initial(np.random.default_rng(SEED))
    momentum = {name: np.zeros_like(weight) for name, weight in weights.items()}
    first, before = 0, 0.0
    if LOAD_FROM:
        saved = np.load(LOAD_FROM)
        first, before = int(saved["step"]), float(saved["seconds"])
        weights = {name: saved[f"weights.{name}"] for name in weights}
        momentum = {name: saved[f"momentum.{name}"] for name in momentum}
    print(f"model_params:{sum(weight.size for weight in weights.values())}")
    print(f"train_batch_tokens:{TRAIN_BATCH_TOKENS} iterations:{ITERATIONS} seed:{SEED}")
    print(f"warmdown_iters:{WARMDOWN_ITERS} max_wallclock_seconds:{MAX_WALLCLOCK_SECONDS:.3f}")
    begun = time.perf_counter()
    last = ITERATIONS
    for step in range(first, ITERATIONS + 1):
        seconds = before + time.perf_counter() - begun
        last = step if 0 < MAX_WALLCLOCK_SECONDS <= seconds else ITERATIONS
        if step == last or (step and step % VAL_LOSS_EVERY == 0):
            loss, bpb = validate(weights, val)
            print(
                f"step:{step}/{ITERATIONS} val_loss:{loss:.6f} val_bpb:{bpb:.6f} "
                f"train_time:{1000 * seconds:.0f}ms step_avg:{1000 * seconds / max(1, step):.2f}ms"
            )
        if SAVE_AT and step == SAVE_AT:
            saved = {f"weights.{name}": weight for name, weight in weights.items()}
            saved |= {f"momentum.{name}": moment for name, moment in momentum.items()}
            np.savez(SAVE_TO, step=step, seconds=seconds, **saved)
            print(f"saved the state after step {step}")
            return
        if step == last:
            break
        train_loss, gradients = loss_and_gradients(weights, batch(train, step))
        for name, gradient in gradients.items():
            momentum[name] = MOMENTUM * momentum[name] + gradient
            weights[name] = weights[name] - LEARNING_RATE * lr_scale(step) * momentum[name]
        if (step + 1) % TRAIN_LOG_EVERY == 0:
            print(f"step:{step + 1}/{ITERATIONS} train_loss:{train_loss:.6f}")
    if last < ITERATIONS:
        print(f"stopping_early: wallclock_cap train_time:{1000 * seconds:.0f}ms step:{last}/{ITERATIONS}")
    artifact = compressed(weights)
    Path("final_model.int8.ptz").write_bytes(artifact)
    print(f"Code size: {Path(__file__).stat().st_size} bytes")
    print(f"Serialized model int8+zlib: {len(artifact)} bytes")
    loss, bpb = validate(decoded(artifact), val)
    print(f"final_int8_zlib_roundtrip val_loss:{loss:.4f} val_bpb:{bpb:.4f}")
    print(f"final_int8_zlib_roundtrip_exact val_loss:{loss:.8f} val_bpb:{bpb:.8f}")


if __name__ == "__main__":
    main()
