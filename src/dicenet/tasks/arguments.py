"""Arguments of commands that train: kept, taken up again, defaults that depend on the machine."""

import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dicenet.engine.run_folder import read_config

#: Arguments that are of a call, not of a run.
_OF_THE_CALL = ("resume", "out")
_PATHS = ("data", "weights", "coco", "teacher")


def default_workers() -> int:
    """Reading processes: half of the processors, at most 4."""
    return min(4, (os.cpu_count() or 2) // 2)


def plain_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A run's arguments as YAML can hold them; paths in full, so that it can be resumed from anywhere."""
    return {key: _plain(key, value) for key, value in arguments.items() if key not in _OF_THE_CALL}


def _plain(name: str, value: Any) -> Any:
    if name in _PATHS and value is not None:
        return os.path.abspath(value) if os.path.exists(value) else os.fspath(value)
    return list(value) if isinstance(value, tuple) else value


def with_changes(function: Callable[..., Any], folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a run of ``function``, with those given now, told by differing from their defaults."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
    return read_config(folder) | {name: value for name, value in given.items() if value != _plain(name, defaults[name])}
