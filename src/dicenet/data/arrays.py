"""Data sets that are arrays in memory: torchvision's CIFAR-10 and CIFAR-100, scikit-learn's digits."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from dicenet.data.samples import Sample, SampleList
from dicenet.errors import ConfigError, DataError

_CIFAR = {"cifar-10-batches-py": CIFAR10, "cifar-100-python": CIFAR100}
DIGITS = "digits"


def _samples(images: Any, targets: Sequence[int], class_names: Sequence[str], name: str) -> SampleList:
    """Arrays (N, H, W) or (N, H, W, 3) of 8 bits as samples called ``name[index]``."""

    def read(array: Any) -> Image.Image:
        return Image.fromarray(array).convert("RGB")

    samples = [
        Sample(f"{name}[{index}]", partial(read, image), int(target))
        for index, (image, target) in enumerate(zip(images, targets, strict=True))
    ]
    return SampleList(samples, class_names)


def cifar_root(path: Path) -> Path | None:
    """The folder that torchvision wants for CIFAR, if ``path`` is it or is the unpacked folder in it."""
    if path.name in _CIFAR:
        return path.parent
    return path if any((path / name).is_dir() for name in _CIFAR) else None


def read_cifar(root: Path) -> dict[str, SampleList]:
    """Both parts of torchvision's CIFAR-10 or CIFAR-100 below ``root``, as torchvision unpacked it.

    Raises:
        DataError: files are missing or damaged.
    """
    folder, reader = next((name, reader) for name, reader in _CIFAR.items() if (root / name).is_dir())
    parts = {}
    for part in ("train", "test"):
        try:
            data = reader(str(root), train=part == "train", download=False)
        except RuntimeError as error:
            raise DataError(f"{root / folder} is not complete: {error}") from error
        parts[part] = _samples(data.data, data.targets, data.classes, f"{folder}/{part}")
    return parts


def read_digits(seed: int = 0) -> dict[str, SampleList]:
    """scikit-learn's 1,797 handwritten digits (8x8, real), split by class into train, val and test.

    A quarter is for testing and a tenth for judging epochs, so that the test is of digits that nothing was chosen by.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ConfigError("the digits are part of scikit-learn: pip install 'dicenet[demo]'") from error
    digits = load_digits()
    images = (digits.images * (255 / 16)).round().astype(np.uint8)
    numbers = np.arange(len(images))
    split = partial(train_test_split, random_state=seed)
    rest, test = split(numbers, test_size=450, stratify=digits.target)
    train, val = split(rest, test_size=180, stratify=digits.target[rest])
    names = [str(name) for name in digits.target_names]
    return {
        part: _samples(images[chosen], digits.target[chosen], names, f"digits/{part}")
        for part, chosen in (("train", train), ("val", val), ("test", test))
    }
