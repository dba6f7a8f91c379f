"""python -m gepa_core.quantize MODEL: the int6 artifact of a trained model."""

from gepa_core.commands.quantize import quantize_command as main

if __name__ == "__main__":
    raise SystemExit(main())
