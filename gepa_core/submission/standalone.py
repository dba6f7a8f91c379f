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

from gepa_core.data.text import open_text
from gepa_core.errors import UserError
from gepa_core.evaluation.scoring import Evaluation
from gepa_core.evaluation.stages import WAYS, measure
from gepa_core.model.gepa import GEPA
from gepa_core.training.segment import prepare


def result_line(stage: str, evaluation: Evaluation) -> str:
    """The figures to the last digit that is claimed."""
    return f"{stage} val_loss:{evaluation.loss:.8f} val_bpb:{evaluation.bpb:.8f}"


def main(config: dict[str, Any], decode: Callable[[bytes], dict[str, Tensor]]) -> int:
    """config: the sections model, eval, ttt and exec, and val_tokens, stage, artifact (its file name)."""
    parser = argparse.ArgumentParser(description="decode the model and score the validation text")
    parser.add_argument("--artifact", default=Path(sys.argv[0]).parent / config["artifact"])
    parser.add_argument("--val", required=True, help="glob pattern of the validation shards")
    parser.add_argument("--tokenizer", required=True, help="SentencePiece .model")
    parser.add_argument("--stage", choices=WAYS, default=config["stage"])
    args = parser.parse_args()
    model_cfg, eval_cfg, ttt_cfg, exec_cfg = (
        SimpleNamespace(**config[key]) for key in ("model", "eval", "ttt", "exec")
    )
    try:
        model = GEPA(model_cfg)
        model.load_state_dict(decode(Path(args.artifact).read_bytes()))
        model.to(prepare(exec_cfg))  # type: ignore[arg-type]
        text = open_text(args.val, args.tokenizer, model_cfg.vocab_size, config["val_tokens"])
        print(result_line(args.stage, measure(args.stage, model, text, eval_cfg, ttt_cfg, exec_cfg)))
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0
