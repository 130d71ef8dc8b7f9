"""What the commands say of a data set, and while it is read."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.progress import track

from dicenet.data.labels import LabelledPictures
from dicenet.data.multilabel import Track
from dicenet.engine.console import say, some


def tracked(console: Console) -> Track:
    """Shows how far the reading of masks is."""

    def through(samples: Iterable[Any]) -> Iterable[Any]:
        return track(samples, "reading masks", console=console, transient=True, disable=not console.is_terminal)

    return through


def say_what_lacks(console: Console, part: LabelledPictures, use: str) -> None:
    """Count the objects that could not be used, and name the classes that no picture of a part shows."""
    for reason, count in part.left_out.items():
        say(console, f"{use}: {count} {reason}")
    counts = part.pictures_per_class().tolist()
    absent = [name for name, count in zip(part.class_names, counts, strict=True) if not count]
    if absent:
        say(console, f"{use}: {len(absent)} of {len(part.class_names)} classes are in no picture: {some(absent)}")
