"""python -m gepa_core.ttt MODEL: what it scores after test-time training."""

from gepa_core.commands.evaluate import ttt_command as main

if __name__ == "__main__":
    raise SystemExit(main())
