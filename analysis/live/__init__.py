"""A page of this machine that shows a sweep while it runs: `python -m analysis DIR --serve`."""
