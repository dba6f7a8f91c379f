"""The errors a user can cause or meet. Everything else is a bug and keeps its traceback."""

import errno


class UserError(Exception):
    """Bad input. The message says what is wrong, where (file, line or key), and what to do."""


class ConfigError(UserError):
    """A configuration value, or a combination of values, is not allowed."""


class DataError(UserError):
    """Shards, tokenizer or text are missing, corrupt, or do not fit each other."""


class ArtifactError(UserError):
    """A compressed model is corrupt, foreign, or does not fit the configuration."""


class CheckpointError(UserError):
    """A checkpoint is missing, truncated or altered."""


class DivergedError(Exception):
    """The loss or the weights are no longer finite: the run's result, not a fault of the machine."""

    def __init__(self, step: int | None, what: str = "training loss") -> None:
        super().__init__(f"{what} is not finite" + (f" at step {step}" if step is not None else ""))
        self.step = step
        self.what = what

    def __reduce__(self) -> tuple[type["DivergedError"], tuple[int | None, str]]:
        return type(self), (self.step, self.what)


def about_name(error: OSError) -> str:
    """A line about a name that no file can have. Raises any other error again."""
    if error.errno != errno.ENAMETOOLONG:
        raise error
    return f"{str(error.filename)[:200]}: {error.strerror}; shorten it"
