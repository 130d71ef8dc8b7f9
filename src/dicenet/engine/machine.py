"""Where and with what a figure was measured, and tables of figures as CSV."""

import csv
import importlib.metadata
import io
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import dicenet
from dicenet.weights.files import write_bytes


def processor() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


_PACKAGE = Path(dicenet.__file__)


def _git(*arguments: str) -> str | None:
    """What git says in the package's folder; nothing where there is no git or no repository."""
    try:
        done = subprocess.run(["git", *arguments], cwd=_PACKAGE.parent, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def commit() -> str:
    """Commit that the package was run from, "-dirty" if files differ from it; "unknown" for an installed package."""
    # an installed package may lie inside a repository of something else
    if _git("ls-files", "--error-unmatch", _PACKAGE.name) is None:
        return "unknown"
    return _git("describe", "--always", "--dirty", "--exclude", "*") or "unknown"


def library_version(name: str) -> str:
    """Version of an installed library; empty if it is not there."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def machine(libraries: Sequence[str] = ()) -> dict[str, Any]:
    """Where and with what a figure was measured: processor, versions (of further libraries too), commit."""
    return {
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: library_version(name) for name in libraries},
        "dicenet": dicenet.__version__,
        "commit": commit(),
    }


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write rows as CSV, whole or not at all; the columns are those of the first row if not given."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns or rows[0]), lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())
