"""What a model scores on validation text. A model and tokens come in; BPB and scores per block go out.

`scoring` evaluates in plain sequences or sliding windows, `ttt` adapts the model on what it has scored.
"""
