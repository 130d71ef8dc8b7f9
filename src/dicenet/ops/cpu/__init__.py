"""The C++ operators: loading them, and what torch must know of each beside its kernel.

The library holds no Python interface: importing this module loads it into torch, or says once why it cannot.
"""

import logging
from pathlib import Path

import torch

_logger = logging.getLogger("dicenet")
LIBRARY = Path(__file__).with_name("_operators.so")


def _load() -> bool:
    """Load the library; False, with one warning, where it is missing or does not fit this torch."""
    if not LIBRARY.exists():
        _logger.warning(
            "the C++ operators are not built (that needs GCC 12 or newer, or Clang, and torch before dicenet: "
            "pip install --no-build-isolation): torch's own operators are used, which are several times slower"
        )
        return False
    try:
        torch.ops.load_library(LIBRARY)
    except OSError as error:
        _logger.warning("the C++ operators cannot be loaded, torch's own are used: %s", error)
        return False
    return True


available = _load()
if available:
    from dicenet.ops.cpu import registration

    registration.register()
