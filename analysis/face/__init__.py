"""What Python sees of a study: `from analysis import load_study`."""
