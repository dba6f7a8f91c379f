"""One attempt at a segment or a stage. A `Job` comes in; files of an attempt and an outcome go out.

The only room whose modules import torch, and only when they run. `policy` says what follows a failure.
"""
