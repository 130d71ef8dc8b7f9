"""Figure 7: what each part of the recipe adds, from E150-B512 to E300-B2048; of ImageNet only the ends are known."""

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from dicenet.analysis.paper.entries import TABLES
from dicenet.analysis.paper.tables import committed
from dicenet.errors import DataError

#: Recipes of CIFAR-10 (``cifar10/...``), one for each rung, and what the rung is.
RUNGS = {
    "baseline": "cross-entropy",
    "longer": "twice the epochs",
    "label_smoothing": "label smoothing",
    "ema": "average of weights",
    "large_batch": "four times the batch",
}
#: Written by benchmarks/ladder.py.
MEASURED = "ladder_cifar10.csv"
NETWORK = "dicenet_100"
TITLE = "Figure 7. What each part of the recipe adds"
NOTE = (
    f"The paper's: {NETWORK} on ImageNet, of which the two ends were at hand (150 epochs with cross-entropy, 300 with "
    "all parts). Ours: the same rungs in small on CIFAR-10, by benchmarks/ladder.py; its figures do not compare with "
    "the paper's, only which way each step goes. The last rung has a quarter of the steps of the one before: in runs "
    "as short as ours, of 190 steps, that costs more than it brings."
)
_PAPER, _OURS = "paper, ImageNet", "ours, CIFAR-10"


def _of_the_paper() -> list[dict[str, Any]]:
    """The ends of the ladder: Table 4's two rows of the network."""
    accuracies = {
        entry.labels[1]: entry.top1
        for entry in TABLES[4].entries
        if entry.source and entry.source.name == NETWORK and entry.labels[0] == "DiCENet" and entry.top1
    }
    ends = (("baseline", "150 epochs"), ("large_batch", "300 epochs"))
    return [_row(_PAPER, rung, [accuracies[epochs]]) for rung, epochs in ends]


def _row(series: str, rung: str, values: Sequence[float]) -> dict[str, Any]:
    return {
        "series": series,
        "rung": rung,
        "what": RUNGS[rung],
        "top1": round(statistics.mean(values), 2),
        "lowest": min(values),
        "highest": max(values),
        "runs": len(values),
    }


def read_ladder(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV with the columns rung, seed and top1 (a fraction of one), among others.

    Raises:
        DataError: it is no such file, or has other rungs.
    """
    try:
        with path.open(newline="") as file:
            rows = [{"rung": row["rung"], "top1": str(float(row["top1"]))} for row in csv.DictReader(file)]
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path} is no table with columns rung and top1: {error}") from error
    if unknown := {row["rung"] for row in rows} - set(RUNGS):
        raise DataError(f"{path} has unknown rungs: {', '.join(sorted(unknown))}; there are {', '.join(RUNGS)}")
    return rows


def figure_7_rows(ladder: Path | None = None) -> list[dict[str, Any]]:
    """One row for each rung that is known: mean, lowest and highest top-1 in per cent over its runs.

    Args:
        ladder: what :func:`read_ladder` reads; the committed results where they are at hand, if not given.
    """
    measured = committed(MEASURED) if ladder is None else read_ladder(ladder)
    by_rung: dict[str, list[float]] = {}
    for row in measured:
        by_rung.setdefault(row["rung"], []).append(round(100 * float(row["top1"]), 2))
    return _of_the_paper() + [_row(_OURS, rung, by_rung[rung]) for rung in RUNGS if rung in by_rung]


def figure_7(rows: Sequence[dict[str, Any]]) -> Figure:
    """One panel for each series, from the first rung to the last; bars from the lowest to the highest run."""
    series = list(dict.fromkeys(row["series"] for row in rows))
    figure = Figure(figsize=(5.2 * len(series), 4.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(series), squeeze=False)[0], series, strict=True):
        own = [row for row in rows if row["series"] == name]
        places = [list(RUNGS).index(row["rung"]) for row in own]
        values = [row["top1"] for row in own]
        spread = [[row["top1"] - row["lowest"] for row in own], [row["highest"] - row["top1"] for row in own]]
        style = "--" if name == _PAPER else "-"
        axes.errorbar(places, values, yerr=spread, fmt=f"o{style}", capsize=4, color="#2563eb")
        for place, value in zip(places, values, strict=True):
            axes.annotate(f"{value:.1f}", (place, value), xytext=(6, 6), textcoords="offset points", fontsize=9)
        axes.set_xticks(range(len(RUNGS)), labels=[f"+ {what}" if i else what for i, what in enumerate(RUNGS.values())])
        axes.tick_params(axis="x", rotation=30)
        axes.set(title=name, ylabel="top-1 (%)", xlim=(-0.4, len(RUNGS) - 0.4))
        axes.margins(y=0.2)
        axes.grid(alpha=0.3)
    return figure
