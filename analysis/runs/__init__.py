"""Runs and their curves. Parquet or CSV comes in; a `Table` goes out, or what is wrong with it.

`load.load` reads a store or CSV; `table` holds the types that the other rooms use.
"""
