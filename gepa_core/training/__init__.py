"""From a state to a later one. A run, its data and a checkpoint come in; a checkpoint and reports go out.

`segment.train_segment` is the way in, `trainer.Trainer` the loop, `trained` reads what a training left.
"""
