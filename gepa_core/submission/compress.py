"""From a trained model to its artifact on disk."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gepa_core.config import RunConfig
from gepa_core.data.shards import TokenStream, open_shards
from gepa_core.model.gepa import GEPA
from gepa_core.quantization.artifact import write_artifact
from gepa_core.quantization.calibrate import calibrate
from gepa_core.quantization.methods import quantize
from gepa_core.quantization.quantized import Quantized, check_finite
from gepa_core.submission.bundle import code_bytes


@dataclass(frozen=True)
class Compressed:
    """An artifact on disk and what it is worth."""

    quantized: Quantized
    artifact_bytes: int
    code_bytes: int

    @property
    def bits_per_weight(self) -> float:
        """Of the file, over all parameters."""
        return 8 * self.artifact_bytes / self.quantized.report.parameters

    def figures(self) -> dict[str, Any]:
        report = self.quantized.report
        return {
            "artifact_bytes": self.artifact_bytes,
            "code_bytes": self.code_bytes,
            "bits_per_weight": self.bits_per_weight,
            "quant_rows_at_floor": report.rows_at_floor,
            "quant_rows": report.rows,
            "quantized_fraction": report.quantized_fraction,
            "quant_payload_bytes": report.payload_bytes,
            "quant_entropy_bits": report.entropy_bits,
        }


def compress(model: GEPA, run: RunConfig, train: str | None, path: Path) -> Compressed:
    """Quantizes the model as run.quant says and writes the artifact to `path`.

    train: glob pattern of training shards, whose first run.quant.calibration_tokens tokens `gptq` and `rd`
    calibrate on (the other methods read none). Raises ArtifactError and DataError.
    """
    check_finite(model.state_dict())  # before calibration meets it
    code = code_bytes(run)
    sensitivities = None
    if run.quant.calibrates and train is not None:
        tokens = TokenStream(open_shards(train)).span(0, run.quant.calibration_tokens)
        sensitivities = calibrate(model, tokens, run.batch.seq_len)
    quantized = quantize(model.state_dict(), run.quant, sensitivities, code_bytes=code)
    return Compressed(quantized, write_artifact(quantized, path), code)
