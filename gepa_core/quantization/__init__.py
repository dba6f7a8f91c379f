"""Int6 quantization and its file. A state dict comes in; integers, steps and an artifact go out, and back.

`methods.quantize` chooses the quantizer, `artifact` writes and reads the file, `codec` and `rans` code it.
"""
