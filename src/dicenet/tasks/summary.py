"""What a training came to, in a few lines."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from dicenet.engine.callbacks import figures_line
from dicenet.engine.console import duration
from dicenet.models.loading import AnyNetwork


def summary(
    net: AnyNetwork,
    pictures: tuple[int, int],
    rows: Sequence[Mapping[str, float]],
    score: str,
    columns: Sequence[str],
    folder: Path,
) -> list[tuple[str, str]]:
    """Names and what they are.

    Args:
        net: the network.
        pictures: to train on, and to judge by.
        rows: of the run's ``metrics.csv``, at least one.
        score: column by which the best epoch is told.
        columns: those that are shown of the best and of the last epoch.
        folder: of the run.
    """
    parameters = sum(parameter.numel() for parameter in net.parameters())
    pairs = [
        ("network", f"{net.architecture}, {parameters:,} parameters"),
        ("pictures", f"{pictures[0]:,} to train on, {pictures[1]:,} to judge by"),
        ("epochs", f"{len(rows)} in {duration(sum(row['seconds'] for row in rows))}"),
    ]
    for title, row in (("best", max(rows, key=lambda row: row[score])), ("last", rows[-1])):
        pairs.append((title, f"epoch {row['epoch']:.0f}  {figures_line(row, columns)}"))
    paces = [(row["pictures_per_second"], row["waiting"]) for row in rows if "waiting" in row]
    if paces:  # the median is hardly moved by other load in some epochs
        speed, waiting = (statistics.median(values) for values in zip(*paces, strict=True))
        pairs.append(("speed", f"{speed:,.0f} pictures/s in training, {waiting:.0%} of its time waiting for them"))
    files = sorted(f"{file.name}/" if file.is_dir() else file.name for file in folder.iterdir())
    return [*pairs, ("files", f"{folder}: {', '.join(files)}")]
