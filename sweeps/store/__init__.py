"""What is known. Files of a store, on a disk or behind a URL, come in and go out; nothing else keeps state.

`files` reads and writes on any file system, `store` knows the layout, `lock` keeps two drivers apart.
"""
