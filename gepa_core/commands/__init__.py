"""The commands of this package: `python -m gepa_core.train`, `evaluate`, `ttt` and `quantize`."""
