"""Runs and their curves. Parquet, CSV or others' logs come in; a `Table` goes out, or what is wrong with it.

`load.load` reads a store or CSV, `trainlog` a training log; `table` holds the types that the other rooms use.
"""
