"""The challenge's folder. A trained run comes in; an artifact, and a script that stands alone, go out.

`compress` makes the artifact, `shake` and `bundle` cut the script out of this package, `folder` writes both.
"""
