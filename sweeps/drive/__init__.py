"""Who does what, when. A plan and a cluster come in; committed results and the sweep's record go out.

`launch` is the way in, `driver` the loop, `protocols` what the loop needs of others, `ray_cluster` the
one file that imports Ray.
"""
