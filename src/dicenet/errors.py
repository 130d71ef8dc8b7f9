"""The errors that a user can do something about.

Each carries one sentence: what went wrong, where, and what to do. The command line prints it and ends with
exit code 2; Python users catch :class:`DicenetError` or one of its kinds.
"""

import difflib
from collections.abc import Iterable, Sequence


class DicenetError(Exception):
    """Base of all errors that dicenet raises on purpose."""


class ConfigError(DicenetError, ValueError):
    """An argument or option has a value that cannot be used."""


class DataError(DicenetError):
    """A picture, a folder or a shard cannot be used."""


class WeightsError(DicenetError):
    """A checkpoint cannot be read, is not what it should be, or does not fit the network."""


class TrainingError(DicenetError):
    """A training run cannot go on (loss no longer finite, nowhere to write)."""


class StoppedError(DicenetError):
    """A training run was asked to stop (SIGTERM) and can go on from its folder."""


def nearest(name: str, known: Iterable[str], most: int = 2) -> str:
    """``: the nearest are a and b`` to put behind "is unknown"; empty if none of those known resembles the name."""
    return in_words(difflib.get_close_matches(name.lower(), list(known), n=most))


def in_words(near: Sequence[str]) -> str:
    """What :func:`nearest` gives of names that were chosen otherwise."""
    if len(near) < 2:
        return f": the nearest is {near[0]}" if near else ""
    return f": the nearest are {', '.join(near[:-1])} and {near[-1]}"
