"""How results are reached: in an object store, and by the command that started this program."""
