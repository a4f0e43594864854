"""The exceptions that a user of this project can meet.

Mmm4RecError
 |- ConfigError      a setting is unknown, malformed or contradicts another
 |- DataError        raw or prepared data is missing, malformed or does not match
 |- CheckpointError  weights do not fit the model or the item set
 `- DivergenceError  a loss or gradient is not finite
"""


class Mmm4RecError(Exception):
    """Base of every error that the command line turns into one line."""


class ConfigError(Mmm4RecError, ValueError):
    """A setting is unknown, malformed or contradicts another."""


class DataError(Mmm4RecError, ValueError):
    """Raw or prepared data is missing, malformed or does not match."""


class CheckpointError(Mmm4RecError, ValueError):
    """Weights do not fit the model or the item set."""


class DivergenceError(Mmm4RecError, ArithmeticError):
    """A loss or gradient is not finite."""
