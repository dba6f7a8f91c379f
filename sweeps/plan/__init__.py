"""What has to be done. A `Sweep` comes in; a tree of nodes, its cost and advice go out.

`tree` has the `Node`, a stretch of training or a stage alike, and the `Plan`; `planner` builds it on what a
store has; `speeds`, `history` and `estimate` give its time and price, `show` prints it. What a kind of node
implies is not decided here but in `sweeps.kinds`. Needs neither data nor a cluster.
"""
