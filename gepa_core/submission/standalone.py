"""What a submission's script does: decodes the model beside it and scores the validation text by the rules.

bundle.py packs this with what it calls into one file; it runs without the rest of this project.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from gepa_core.data.shards import load_tokens, open_shards
from gepa_core.data.tokenizer import byte_table
from gepa_core.errors import UserError
from gepa_core.evaluation.scoring import Evaluation, evaluate_plain, evaluate_sliding
from gepa_core.evaluation.ttt import test_time_train
from gepa_core.model.gepa import GEPA
from gepa_core.training.segment import prepare

STAGES = ("plain", "sliding", "ttt")


def result_line(stage: str, evaluation: Evaluation) -> str:
    """The figures to the last digit that is claimed."""
    return f"{stage} val_loss:{evaluation.loss:.8f} val_bpb:{evaluation.bpb:.8f}"


def score(
    stage: str, model: Any, tokens: Any, table: Any, eval_cfg: Any, ttt_cfg: Any, exec_cfg: Any
) -> Evaluation:
    """One stage of evaluation, with the model's weights as they are; `ttt` changes them."""
    if stage == "ttt":
        return test_time_train(model, tokens, table, eval_cfg, ttt_cfg, exec_cfg).evaluation
    evaluate = evaluate_sliding if stage == "sliding" else evaluate_plain
    return evaluate(model, tokens, table, eval_cfg, exec_cfg)


def main(config: dict[str, Any], decode: Callable[[bytes], dict[str, Tensor]]) -> int:
    """config: the sections model, eval, ttt and exec, and val_tokens, stage, artifact (its file name)."""
    parser = argparse.ArgumentParser(description="decode the model and score the validation text")
    parser.add_argument("--artifact", default=Path(sys.argv[0]).parent / config["artifact"])
    parser.add_argument("--val", required=True, help="glob pattern of the validation shards")
    parser.add_argument("--tokenizer", required=True, help="SentencePiece .model")
    parser.add_argument("--stage", choices=STAGES, default=config["stage"])
    args = parser.parse_args()
    model_cfg, eval_cfg, ttt_cfg, exec_cfg = (
        SimpleNamespace(**config[key]) for key in ("model", "eval", "ttt", "exec")
    )
    try:
        model = GEPA(model_cfg)
        model.load_state_dict(decode(Path(args.artifact).read_bytes()))
        model.to(prepare(exec_cfg))  # type: ignore[arg-type]
        limit = config["val_tokens"]
        tokens = load_tokens(open_shards(args.val), None if limit is None else limit + 1)
        table = byte_table(args.tokenizer, model_cfg.vocab_size)
        print(result_line(args.stage, score(args.stage, model, tokens, table, eval_cfg, ttt_cfg, exec_cfg)))
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0
