"""The GEPA model. A configuration comes in; logits and losses go out. Imports nothing of the other rooms.

`gepa.GEPA` is the model, `passes` the losses that training and evaluation share, `kernels` and
`head` their fused arithmetic.
"""
