"""Recipe presets: partial run configurations by name, laid over RunConfig's defaults (the published recipe).

A preset says nothing of the run's length; horizons that must fit the length (EMA, Muon's momentum warm-up)
are chosen for the lengths the preset is meant for. To add one, enter it here.
"""

from typing import Any

_FP32_MODEL = {"compute_dtype": "fp32", "embedding_dtype": "fp32"}

PRESETS: dict[str, dict[str, Any]] = {
    # 27,030,107 parameters: pull request 644 of openai/parameter-golf.
    "gepa-11l": {},
    # Every part of the recipe at a size for minutes on one CPU core, some hundreds of steps.
    "gepa-nano": {
        "model": _FP32_MODEL
        | {
            "num_layers": 4,
            "width": 64,
            "num_heads": 2,
            "num_kv_heads": 1,
            "mlp_hidden": 192,
            "bigram_buckets": 512,
            "bigram_dim": 32,
            "rope_train_seq_len": 128,
            "xsa_last_n": 2,
            "ve_dim": 32,
            "ve_layers": (2, 3),
        },
        "batch": {"seq_len": 128, "seqs_per_span": 8, "spans": 2},
        "optim": {"muon_ns_dtype": "fp32", "muon_momentum_warmup_steps": 100},
        "ema_decay": 0.98,
        "eval": {
            "every": 50,
            "ema_every": 100,
            "log_every": 10,
            "seq_len": 128,
            "stride": 32,
            "block_tokens": 2048,
        },
        "quant": {"keep_float_max_numel": 1024, "calibration_tokens": 16_384},
        "ttt": {"chunk_tokens": 2048, "epochs": 2, "batch_seqs": 8, "freeze_blocks": 1},
    },
    # Wikipedia on a CPU of a few cores, some thousands of steps.
    "gepa-mini": {
        "model": _FP32_MODEL
        | {
            "num_layers": 6,
            "width": 128,
            "num_heads": 4,
            "num_kv_heads": 2,
            "mlp_hidden": 384,
            "bigram_buckets": 1024,
            "bigram_dim": 64,
            "rope_train_seq_len": 256,
            "xsa_last_n": 2,
            "ve_dim": 64,
            "ve_layers": (4, 5),
        },
        "batch": {"seq_len": 256, "seqs_per_span": 8, "spans": 2},
        "optim": {"muon_ns_dtype": "fp32", "muon_momentum_warmup_steps": 300},
        "ema_decay": 0.99,
        "eval": {
            "every": 100,
            "ema_every": 200,
            "log_every": 20,
            "seq_len": 256,
            "stride": 64,
            "block_tokens": 4096,
        },
        "quant": {"keep_float_max_numel": 4096, "calibration_tokens": 65_536},
        "ttt": {"chunk_tokens": 4096, "epochs": 3, "batch_seqs": 8, "freeze_blocks": 1},
    },
    # The least size at which quantizers are compared: over 5 million parameters. bf16 is 1.25 times as fast
    # as fp32 at this width on a CPU with AVX512-BF16 or AMX; on one without, set model.compute_dtype to fp32.
    "gepa-5m": {
        "model": {
            "num_layers": 8,
            "width": 256,
            "num_heads": 4,
            "num_kv_heads": 2,
            "mlp_hidden": 768,
            "bigram_buckets": 2048,
            "bigram_dim": 128,
            "rope_train_seq_len": 256,
            "xsa_last_n": 3,
            "ve_dim": 128,
            "ve_layers": (6, 7),
        },
        "batch": {"seq_len": 256, "seqs_per_span": 8, "spans": 4},
        "optim": {"muon_momentum_warmup_steps": 300},
        "ema_decay": 0.99,
        "eval": {
            "every": 100,
            "ema_every": 500,
            "log_every": 20,
            "seq_len": 256,
            "stride": 64,
            "block_tokens": 4096,
        },
        "quant": {"keep_float_max_numel": 16_384, "calibration_tokens": 65_536},
        "ttt": {"chunk_tokens": 4096, "epochs": 3, "batch_seqs": 8, "freeze_blocks": 1},
    },
}
