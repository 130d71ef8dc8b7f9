"""Measured times, drawn."""

from collections.abc import Sequence

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from dicenet.analysis.speed.networks import OURS
from dicenet.analysis.speed.results import Row, best_of

_OURS, _OTHERS = "#2563eb", "#71717a"
#: Names at most so many per cent apart would overlap.
_TOO_CLOSE = 0.2


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["network"] for row in rows))


def _batch_sizes(rows: Sequence[Row]) -> list[int]:
    return sorted({row["batch_size"] for row in rows})


def _style(axes: Axes) -> None:
    axes.grid(alpha=0.3, which="both")
    axes.spines[["top", "right"]].set_visible(False)


def _plain_numbers(axis: object) -> None:
    """Powers of ten say little where an axis spans one of them."""
    axis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))  # type: ignore[attr-defined]
    some = FuncFormatter(lambda value, position: f"{value:g}" if f"{value:e}"[0] in "235" else "")
    axis.set_minor_formatter(some)  # type: ignore[attr-defined]


def _accuracy(axes: Axes, rows: Sequence[Row], batch_size: int) -> None:
    """Published top-1 against the best time: to the left and up is better."""
    best = [row for name in _names(rows) if (row := best_of(rows, batch_size, name)) and row.get("top1") is not None]
    above = float("inf")  # of the last name written above its point
    for row in sorted(best, key=lambda row: -row["top1"]):
        colour = _OURS if row["library"] == OURS else _OTHERS
        at = row["min_ms"], row["top1"]
        below = above - row["top1"] < _TOO_CLOSE
        above = above if below else row["top1"]
        axes.plot(*at, "o", color=colour, markersize=5)
        axes.annotate(row["network"], at, (5, -9 if below else 3), textcoords="offset points", fontsize=7, color=colour)
    axes.set(xlabel=f"milliseconds, batch {batch_size}, best mode of PyTorch", ylabel="published top-1 (%)")
    axes.set_xscale("log")
    _plain_numbers(axes.xaxis)
    axes.margins(x=0.2)


def _batches(axes: Axes, rows: Sequence[Row]) -> None:
    """Time of a picture against the batch size, every network in its best mode."""
    axes.set_prop_cycle(color=colormaps["tab20"].colors)  # type: ignore[attr-defined]
    for name in _names(rows):
        best = [row for size in _batch_sizes(rows) if (row := best_of(rows, size, name)) is not None]
        if best:
            ours = best[0]["library"] == OURS
            axes.plot(
                [row["batch_size"] for row in best],
                [row["min_ms"] / row["batch_size"] for row in best],
                marker="o" if ours else "s",
                linestyle="-" if ours else "--",
                linewidth=1.8 if ours else 1,
                markersize=4,
                label=name,
            )
    axes.set(xlabel="batch size", ylabel="milliseconds a picture, best mode of PyTorch")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(_batch_sizes(rows))
    _plain_numbers(axes.xaxis)
    _plain_numbers(axes.yaxis)
    if axes.lines:
        axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


def latency_plot(rows: Sequence[Row]) -> Figure:
    """Accuracy against latency at the smallest batch size, and latency against the batch size."""
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    accuracy, batches = figure.subplots(1, 2)
    _accuracy(accuracy, rows, min(_batch_sizes(rows)))
    _batches(batches, rows)
    _style(accuracy)
    _style(batches)
    return figure


def training_plot(rows: Sequence[Row]) -> Figure:
    """Time of a step and peak memory of every network in every mode, at the smallest batch size."""
    batch_size = min(_batch_sizes(rows))
    timed = [row for row in rows if row["batch_size"] == batch_size and "min_ms" in row][::-1]
    figure = Figure(figsize=(10, 1.4 + 0.3 * len(timed)), layout="constrained")
    times, memory = figure.subplots(1, 2, sharey=True)
    labels = [f"{row['network']}, {row['mode']}" for row in timed]
    colours = [_OURS if row["library"] == OURS else _OTHERS for row in timed]
    for axes, key, label in (
        (times, "min_ms", f"milliseconds of a step, batch {batch_size}"),
        (memory, "peak_memory_mb", "peak memory (MB)"),
    ):
        axes.barh(range(len(timed)), [row.get(key) or 0 for row in timed], color=colours)
        axes.set(xlabel=label)
        _style(axes)
    times.set_yticks(range(len(timed)), labels, fontsize=8)
    return figure
