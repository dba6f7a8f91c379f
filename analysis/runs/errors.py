"""The one error of this package: input from which no honest number can be made."""


class AnalysisError(Exception):
    """Bad or insufficient data. The message says what is wrong, where (file, run, column), and what to do."""
