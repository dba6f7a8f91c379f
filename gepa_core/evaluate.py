"""python -m gepa_core.evaluate MODEL: what a trained model scores."""

from gepa_core.commands.evaluate import evaluate_command as main

if __name__ == "__main__":
    raise SystemExit(main())
