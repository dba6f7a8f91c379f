"""The ways in and out of a store: checkpoints adopted, submissions exported, runs mirrored to other tools."""
