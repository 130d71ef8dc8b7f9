"""The folder of a run: new for every run, and everything that the run leaves is in it."""

import datetime
import json
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dicenet.engine.machine import machine
from dicenet.errors import ConfigError
from dicenet.weights.files import write_bytes, write_json

CONFIG = "config.yaml"
BEST = "best.safetensors"
LAST = "last.ckpt"
METRICS = "metrics.csv"
STARTS = "run.json"
_LIBRARIES = ("torchvision", "lightning", "timm", "torchmetrics", "numpy", "pillow")
_COMMAND = "# dicenet "
_SHARED_FOLDER = "DICENET_RUN_FOLDER"


def default_run_folder(task: str, verb: str) -> Path:
    """``runs/<task>/<verb>-<date>-<time>``."""
    return Path("runs") / task / f"{verb}-{time.strftime('%Y%m%d-%H%M%S')}"


def new_run_folder(out: str | Path | None, default: Path) -> Path:
    """Make the folder of a run: ``out``, which must be new or empty, or ``default``, numbered if it is taken.

    Of several processes that train together the first makes it, the others use the same.

    Raises:
        ConfigError: ``out`` is a file or holds something, or cannot be made.
    """
    if process_rank() > 0:
        # what is asked for first: the environment may be of another run, which started this one
        shared = out if out is not None else os.environ.get(_SHARED_FOLDER)
        if shared is None:
            raise ConfigError("name the run folder with --out when you start several processes yourself")
        return Path(shared)
    folder = _make(out, default)
    os.environ[_SHARED_FOLDER] = str(folder)  # the processes that Lightning starts inherit it
    return folder


def process_rank() -> int:
    """Number of this process among those that train together, from 0; set by torchrun, Lightning or SLURM."""
    return int(next((os.environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if os.environ.get(name)), 0))


def check_free(out: str | Path | None) -> None:
    """Raise ConfigError if ``out`` is a file or holds something; asked before long work, and again when it is made."""
    if out is None or process_rank() > 0:
        return
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {out} is a file: give a new or empty folder")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"--out {out} is not empty: give a new or empty folder")


def _make(out: str | Path | None, default: Path) -> Path:
    if out is None:
        names = [default, *(default.with_name(f"{default.name}-{n}") for n in range(2, 1000))]
    else:
        check_free(out)
        names = [Path(out)]
    for name in names:
        try:
            name.mkdir(parents=True, exist_ok=out is not None)
            return name
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(f"--out {name} cannot be made: {error.strerror}") from error
    raise ConfigError(f"{names[0]} and its numbered successors are taken: name a folder with --out")


def write_config(folder: Path, config: Mapping[str, Any], command: str | None = None) -> None:
    """Write the arguments of a run, so that ``--config`` or ``--resume`` can read them, and of which command it is."""
    head = f"{_COMMAND}{command}\n" if command else ""
    write_bytes(folder / CONFIG, (head + yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)).encode())


def record_start(folder: Path, arguments: Sequence[str]) -> None:
    """Add to ``run.json`` when and with what a run began or went on: command line, versions, commit of the package."""
    file = folder / STARTS
    starts = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    write_json(file, [*starts, {"time": now, "command": shlex.join(arguments), **machine(_LIBRARIES)}])


def check_command(folder: Path, command: str) -> None:
    """Raise ConfigError if a run folder says that another command began it."""
    first = (folder / CONFIG).read_text(encoding="utf-8").partition("\n")[0]
    if first.startswith(_COMMAND) and first != _COMMAND + command:
        began = first.removeprefix(_COMMAND)
        raise ConfigError(f"{folder} is a run of 'dicenet {began}': resume it with 'dicenet {began} --resume {folder}'")


def read_config(folder: Path) -> dict[str, Any]:
    """The arguments of a run."""
    return yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))


def check_unchanged(
    saved: Mapping[str, Any],
    now: Mapping[str, Any],
    changeable: Sequence[str],
    advice: str = "start a new run with --weights instead",
) -> None:
    """Raise ConfigError if a resumed run was given other arguments than it began with, but for some."""
    for key, value in now.items():
        before = saved.get(key)
        if key not in changeable and key in saved and value != before:
            raise ConfigError(
                f"cannot change {key} from {before} to {value} in a resumed run, only {', '.join(changeable)}: {advice}"
            )


def sweep(folder: Path) -> None:
    """Remove what a killed run left of files that it was writing."""
    if process_rank() == 0:
        for file in folder.glob(".*.part"):
            file.unlink(missing_ok=True)


def resumed_folder(path: str | Path) -> Path:
    """The run folder that ``--resume`` means: the folder, or a file in it.

    Raises:
        ConfigError: it is no run folder.
    """
    folder = Path(path)
    folder = folder.parent if folder.is_file() else folder
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"cannot resume {path}: it is not a run folder (there is no {CONFIG} in it)")
    return folder
