"""Recipe presets: partial run configurations by name, laid over RunConfig's defaults (the published recipe).

A preset says nothing of the run's length, but the horizons that must fit it (EMA, Muon's momentum warm-up)
suit the lengths it is meant for. To add one, enter it here.
"""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # 27,030,107 parameters: pull request 644 of openai/parameter-golf.
    "gepa-11l": {},
    # About 0.27 M parameters, every part of the recipe on: a few hundred steps in seconds on a CPU.
    "gepa-nano": {
        "ema_decay": 0.96,
        "batch": {"seq_len": 128, "seqs_per_span": 2, "spans": 8},
        "model": {
            "num_layers": 4,
            "width": 64,
            "num_heads": 4,
            "num_kv_heads": 2,
            "mlp_hidden": 192,
            "bigram_buckets": 512,
            "bigram_dim": 32,
            "rope_dims": 8,
            "rope_train_seq_len": 128,
            "xsa_last_n": 2,
            "ve_dim": 32,
            "ve_layers": (2, 3),
            "compute_dtype": "fp32",
            "embedding_dtype": "fp32",
        },
        "optim": {"muon_momentum_warmup_steps": 100},
        "data": {"val_tokens": 65_536},
        "eval": {
            "every": 25,
            "ema_every": 100,
            "log_every": 10,
            "seq_len": 128,
            "stride": 32,
            "block_tokens": 2048,
        },
        "quant": {"keep_float_max_numel": 1024},
        "ttt": {"chunk_tokens": 4096, "batch_seqs": 8, "epochs": 3, "freeze_blocks": 1},
    },
    # About 1.1 M parameters: runs of a few thousand steps in an hour on a CPU.
    "gepa-mini": {
        "ema_decay": 0.99,
        "batch": {"seq_len": 256, "seqs_per_span": 2, "spans": 8},
        "model": {
            "num_layers": 6,
            "width": 128,
            "num_heads": 4,
            "num_kv_heads": 2,
            "mlp_hidden": 384,
            "bigram_buckets": 1024,
            "bigram_dim": 64,
            "rope_dims": 8,
            "rope_train_seq_len": 256,
            "xsa_last_n": 3,
            "ve_dim": 64,
            "ve_layers": (4, 5),
            "compute_dtype": "fp32",
            "embedding_dtype": "fp32",
        },
        "optim": {"muon_momentum_warmup_steps": 300},
        "data": {"val_tokens": 262_144},
        "eval": {
            "every": 100,
            "ema_every": 500,
            "log_every": 20,
            "seq_len": 256,
            "stride": 64,
            "block_tokens": 4096,
        },
        "quant": {"keep_float_max_numel": 4096},
        "ttt": {"chunk_tokens": 8192, "batch_seqs": 8, "epochs": 3, "freeze_blocks": 1},
    },
}
