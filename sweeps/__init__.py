"""From a sweep file to a table of runs: `spec` reads, `plan` shares steps, `drive` and `work` execute.

`kinds` says of what kinds of work a sweep is made.
"""
