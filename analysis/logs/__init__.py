"""Anyone's training logs. Files come in; a row and a curve for each run go out, and why cells are empty.

One way through: `reading` (bytes to lines), `lines` (what a line states), `placing` (the step of a validation
that names none), `resumes` (steps counted on), `split` (the runs in a file), `ends` (how each ended),
`stages` (what figures are of), `warmdown` (how the learning rate fell), `record` (a row), `importing`
(many files).
"""
