"""Where test data lies: small things in tests/data, reference tensors and real sets in the shared folder."""

import os
from pathlib import Path

# The tests run in several processes: one thread each, also in the commands that they start.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest

REPOSITORY = Path(__file__).parents[1]
SHARED = Path(os.environ.get("DICENET_SHARED", REPOSITORY.parent / "shared"))


def shared_path(relative: str) -> Path:
    """A file or folder of the shared data; the test is skipped where a clone lacks it."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"needs {relative} of the shared data (set DICENET_SHARED to its folder)")
    return path


@pytest.fixture(scope="session")
def shared():
    return shared_path
