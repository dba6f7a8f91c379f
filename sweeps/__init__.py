"""From a sweep file to a table of runs: `spec` reads, `plan` shares steps, `drive` and `work` execute."""
