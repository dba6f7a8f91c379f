"""python -m gepa_core.train JOB.yaml [--out DIR]; under torchrun, several ranks."""

from gepa_core.commands.train import train_command as main

if __name__ == "__main__":
    raise SystemExit(main())
