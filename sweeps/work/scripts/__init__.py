"""A training script as a node: `run` executes it, `check` asks whether it can share trunks.

`place` is the copy it works in, `process` starts it under a `guard` and ends it as a whole, `log` reads what
it prints, `verdict` says what its end means. None imports torch: what the script imports is its own affair.
"""
