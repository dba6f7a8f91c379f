"""A training script of the challenge's shape, small enough for one CPU core: a job that a sweep can take.

It knows nothing of gepa-sweeps. Settings come from environment variables, progress goes to standard output in
the challenge's lines, and it leaves an int8 model compressed by zlib. The model, a bigram with a hidden layer
over bytes, is a stand-in: put your own in its place.

    ITERATIONS=200 WARMDOWN_ITERS=80 SEED=1 python train_gpt.py
"""

import io
import math
import os
import random
import time
import zlib
from pathlib import Path

import torch
import torch.nn.functional as F

ITERATIONS = int(os.environ.get("ITERATIONS", 200))
WARMDOWN_ITERS = int(os.environ.get("WARMDOWN_ITERS", 80))
SEED = int(os.environ.get("SEED", 1337))
VAL_LOSS_EVERY = int(os.environ.get("VAL_LOSS_EVERY", 20))
TRAIN_LOG_EVERY = int(os.environ.get("TRAIN_LOG_EVERY", 10))
MAX_WALLCLOCK_SECONDS = float(os.environ.get("MAX_WALLCLOCK_SECONDS", 600))
TRAIN_BATCH_TOKENS = int(os.environ.get("TRAIN_BATCH_TOKENS", 512))
LEARNING_RATE = float(os.environ.get("LEARNING_RATE", 0.02))
WIDTH = int(os.environ.get("WIDTH", 32))
SAVE_AT = int(os.environ.get("SAVE_AT", 0))  # 0 = never
SAVE_TO = os.environ.get("SAVE_TO", "state.pt")
LOAD_FROM = os.environ.get("LOAD_FROM", "")

VOCAB = 256
VAL_BYTES = 4096


def text() -> torch.Tensor:
    """Bytes of made-up sentences, the same everywhere."""
    rng = random.Random(0)
    who = ["a man", "the queen", "one child", "every sailor", "my neighbour"]
    does = ["sees", "counts", "forgets", "paints", "carries", "remembers"]
    what = ["the sea", "three stones", "an old letter", "no more than that", "the evening train"]
    lines = [f"{rng.choice(who)} {rng.choice(does)} {rng.choice(what)}.\n" for _ in range(4000)]
    return torch.tensor(list("".join(lines).encode()))


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(VOCAB * 2, WIDTH)
        self.hidden = torch.nn.Linear(WIDTH, 2 * WIDTH)
        self.head = torch.nn.Linear(2 * WIDTH, VOCAB)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Mean loss in nats of the bytes y, each from the two before it: x and the one before x."""
        before = F.pad(x[:-1], (1, 0))
        hidden = self.hidden(self.embed(x) + self.embed(before + VOCAB)).relu().square()
        return F.cross_entropy(self.head(hidden), y)


def lr_scale(step: int) -> float:
    return 1.0 if step < ITERATIONS - WARMDOWN_ITERS else (ITERATIONS - step) / max(1, WARMDOWN_ITERS)


def batch(data: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A function of the step alone, so that a run can go on from any."""
    at = (step * TRAIN_BATCH_TOKENS) % (len(data) - TRAIN_BATCH_TOKENS - 1)
    part = data[at : at + TRAIN_BATCH_TOKENS + 1]
    return part[:-1], part[1:]


@torch.no_grad()
def validate(model: Model, val: torch.Tensor) -> tuple[float, float]:
    """(nats a byte, bits a byte)."""
    loss = model(val[:-1], val[1:]).item()
    return loss, loss / math.log(2)


def quantized(model: Model) -> bytes:
    """Every tensor in int8 with a scale, compressed."""
    state = {}
    for name, tensor in model.state_dict().items():
        scale = tensor.abs().max().clamp_min(1e-8) / 127
        state[name] = ((tensor / scale).round().to(torch.int8), scale)
    stream = io.BytesIO()
    torch.save(state, stream)
    return zlib.compress(stream.getvalue(), 9)


def main() -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    data = text()
    val, train = data[:VAL_BYTES], data[VAL_BYTES:]
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95))
    first, before = 0, 0.0
    if LOAD_FROM:
        saved = torch.load(LOAD_FROM)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first, before = saved["step"], saved["seconds"]
    print(f"model_params:{sum(p.numel() for p in model.parameters())}")
    print(f"train_batch_tokens:{TRAIN_BATCH_TOKENS} iterations:{ITERATIONS} seed:{SEED}")
    print(f"warmdown_iters:{WARMDOWN_ITERS} max_wallclock_seconds:{MAX_WALLCLOCK_SECONDS:.3f}")
    begun = time.perf_counter()
    last = ITERATIONS
    for step in range(first, ITERATIONS + 1):
        seconds = before + time.perf_counter() - begun
        capped = 0 < MAX_WALLCLOCK_SECONDS <= seconds
        last = step if capped else ITERATIONS
        if step == last or (step and step % VAL_LOSS_EVERY == 0):
            loss, bpb = validate(model, val)
            print(
                f"step:{step}/{ITERATIONS} val_loss:{loss:.6f} val_bpb:{bpb:.6f} "
                f"train_time:{1000 * seconds:.0f}ms step_avg:{1000 * seconds / max(1, step):.2f}ms"
            )
        if SAVE_AT and step == SAVE_AT:
            saved = {"step": step, "seconds": seconds, "model": model.state_dict()}
            torch.save(saved | {"optimizer": optimizer.state_dict()}, SAVE_TO)
            print(f"saved the state after step {step}")
            return
        if step == last:
            break
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * lr_scale(step)
        loss_of_batch = model(*batch(train, step))
        optimizer.zero_grad()
        loss_of_batch.backward()
        optimizer.step()
        if (step + 1) % TRAIN_LOG_EVERY == 0:
            print(f"step:{step + 1}/{ITERATIONS} train_loss:{loss_of_batch.item():.6f}")
    if last < ITERATIONS:
        print(f"stopping_early: wallclock_cap train_time:{1000 * seconds:.0f}ms step:{last}/{ITERATIONS}")
    artifact = quantized(model)
    Path("final_model.int8.ptz").write_bytes(artifact)
    print(f"Code size: {Path(__file__).stat().st_size} bytes")
    print(f"Serialized model int8+zlib: {len(artifact)} bytes")
    decoded = torch.load(io.BytesIO(zlib.decompress(artifact)))
    model.load_state_dict({name: q.float() * scale for name, (q, scale) in decoded.items()})
    loss, bpb = validate(model, val)
    print(f"final_int8_zlib_roundtrip val_loss:{loss:.4f} val_bpb:{bpb:.4f}")
    print(f"final_int8_zlib_roundtrip_exact val_loss:{loss:.8f} val_bpb:{bpb:.8f}")


if __name__ == "__main__":
    main()
