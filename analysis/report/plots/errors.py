"""Why a figure cannot be drawn."""


class UnavailableError(Exception):
    """The study has no numbers for this figure. The message says which are missing, in plain words."""
