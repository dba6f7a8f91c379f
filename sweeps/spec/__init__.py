"""What is asked. A YAML file and overrides come in; a `Sweep` goes out, or every error with its line.

`load.load_sweep` is the way in. Knows nothing of stores, plans or clusters.
"""
