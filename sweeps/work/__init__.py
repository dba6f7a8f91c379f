"""One attempt at a node. A `Job` comes in; files of an attempt and an outcome go out.

`execute` hands a job to the module that its kind names (`training`, `measure`, `quantize`, `scripts`). The
only room whose modules import torch, and only when they run. `policy` says what follows a failure.
"""
