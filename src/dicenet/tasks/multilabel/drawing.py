"""Labels drawn: pictures with what was found, a sheet of them beside the truth, scores of classes as bars."""

from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from dicenet.tasks.drawing import BAR, with_classes

_GREY, _RED, _AMBER, _GREEN = (82, 82, 91), (185, 28, 28), (180, 83, 9), (21, 128, 61)
_MOST_BARS = 40
_GAP = 8


def with_labels(picture: Image.Image, labels: Sequence[dict[str, Any]], top: Sequence[dict[str, Any]]) -> Image.Image:
    """A picture above its classes: those that were found in blue, the most probable others in grey."""
    rows = [*labels, *top[len(labels) :]]
    colours = [BAR if index < len(labels) else _GREY for index in range(len(rows))]
    return with_classes(picture, [(row["class"], row["score"]) for row in rows], colours)


def judged_picture(
    picture: Image.Image, labels: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]], truth: set[int]
) -> Image.Image:
    """A picture above what was found, green where it is right and red where not, and what was missed, in amber.

    Args:
        picture: as it was.
        labels: what was found: class, index, score.
        others: all other classes.
        truth: numbers of the classes that it shows.
    """
    missed = [row for row in others if row["index"] in truth]
    rows = [*labels, *missed]
    colours = [_GREEN if row["index"] in truth else _RED for row in labels] + [_AMBER] * len(missed)
    names = [row["class"] for row in labels] + [f"missed: {row['class']}" for row in missed]
    return with_classes(picture, [(name, row["score"]) for name, row in zip(names, rows, strict=True)], colours)


def label_sheet(pictures: Iterable[Image.Image], columns: int = 4) -> Image.Image:
    """Pictures from left to right in rows as high as their highest."""
    tiles = list(pictures)
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    width = max((sum(tile.width + _GAP for tile in row) for row in rows), default=1)
    height = sum(max(tile.height for tile in row) + _GAP for row in rows) or 1
    sheet = Image.new("RGB", (width, height), "white")
    top = 0
    for row in rows:
        left = 0
        for tile in row:
            sheet.paste(tile, (left, top))
            left += tile.width + _GAP
        top += max(tile.height for tile in row) + _GAP
    return sheet


def class_plot(rows: Sequence[dict[str, Any]], threshold: float) -> Figure:
    """F1 of each class as a bar, its precision, recall and average precision as marks, the best first.

    Of more than 40 classes those with most pictures are drawn.

    Args:
        rows: class, pictures, f1, precision, recall, ap.
        threshold: that they were found with.
    """
    known = [row for row in rows if row["pictures"]]
    drawn = sorted(sorted(known, key=lambda row: -row["pictures"])[:_MOST_BARS], key=lambda row: row["f1"])
    figure = Figure(figsize=(7.5, 1.6 + 0.24 * max(1, len(drawn))), layout="constrained")
    axes = figure.subplots()
    places = range(len(drawn))
    axes.barh(places, [100 * row["f1"] for row in drawn], color="#bfdbfe", label="F1")
    for key, marker, colour in (("precision", "|", "#dc2626"), ("recall", "|", "#15803d"), ("ap", ".", "#18181b")):
        label = "average precision" if key == "ap" else key
        axes.plot([100 * row[key] for row in drawn], places, marker, color=colour, markersize=9, label=label)
    axes.set_yticks(places, [f"{row['class']} ({row['pictures']})" for row in drawn], parse_math=False)
    axes.set(xlabel=f"% at threshold {threshold:g}", xlim=(0, 101))
    left_out = len(rows) - len(drawn)
    if left_out:
        axes.set_title(f"{left_out} of {len(rows)} classes, with no pictures or with the fewest, left out", fontsize=9)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure
