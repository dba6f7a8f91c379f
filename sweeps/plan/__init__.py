"""What has to be done. A `Sweep` comes in; a tree of segments and stages, its cost and advice go out.

`tree` builds the tree, `planner` what is left of it, `speeds`, `history` and `estimate` its time and price,
`show` prints it. Needs neither data nor a cluster.
"""
