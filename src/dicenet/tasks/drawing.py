"""Results drawn into pictures, and plots of runs."""

import csv
import io
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

_SHOWN_SIDE = 480
_PANEL = (24, 24, 27)
BAR = (37, 99, 235)
_TEXT = (244, 244, 245)


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along and which knows most alphabets."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)


def fitted(picture: Image.Image, side: int) -> Image.Image:
    """The picture with its longer side at ``side`` pixels; small ones are enlarged without smoothing."""
    scale = side / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.BICUBIC)


def shortened(text: str, width: float, size: int) -> str:
    """The text, cut off with an ellipsis where it is wider than ``width`` pixels at a font size."""
    if font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def with_classes(
    picture: Image.Image, classes: Sequence[tuple[str, float]], colours: Sequence[tuple[int, int, int]] = ()
) -> Image.Image:
    """A picture above a panel of class names, each with its score as a bar and in per cent.

    Args:
        picture: as it was.
        classes: names and scores from 0 to 1.
        colours: of the bars; blue if not given.
    """
    picture = fitted(picture.convert("RGB"), _SHOWN_SIDE)
    size, row, margin = 15, 24, 8
    width = max(picture.width, 280)
    sheet = Image.new("RGB", (width, picture.height + row * len(classes) + 2 * margin), _PANEL)
    sheet.paste(picture, ((width - picture.width) // 2, 0))
    draw = ImageDraw.Draw(sheet)
    for index, (name, score) in enumerate(classes):
        top = picture.height + margin + index * row
        colour = colours[index] if colours else BAR
        draw.rectangle((0, top + 1, round(width * score), top + row - 2), fill=colour)
        percent = f"{100 * score:.1f} %"
        right = width - margin - font(size).getlength(percent)
        draw.text((margin, top + 3), shortened(name, right - 3 * margin, size), _TEXT, font(size))
        draw.text((right, top + 3), percent, _TEXT, font(size))
    return sheet


def contact_sheet(pictures: Sequence[tuple[Image.Image, str, bool]], columns: int = 8, side: int = 96) -> Image.Image:
    """Pictures in a grid, each with a caption, green if it is right and red if not."""
    caption = 20
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * side, rows * (side + caption)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (picture, text, right) in enumerate(pictures):
        left, top = index % columns * side, index // columns * (side + caption)
        small = fitted(picture.convert("RGB"), side - 6)
        sheet.paste(small, (left + 3 + (side - 6 - small.width) // 2, top + 3))
        colour = (21, 128, 61) if right else (185, 28, 28)
        draw.rectangle((left + 1, top + 1, left + side - 2, top + side + caption - 3), outline=colour, width=2)
        draw.text((left + 6, top + side), shortened(text, side - 12, 12), colour, font(12))
    return sheet


def picture_bytes(picture: Image.Image, kind: str) -> bytes:
    """A picture as a file's content; ``kind`` is PNG or JPEG."""
    content = io.BytesIO()
    picture.save(content, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return content.getvalue()


def png(figure: Figure) -> bytes:
    """A figure as a PNG file's content."""
    content = io.BytesIO()
    with warnings.catch_warnings():  # names in alphabets that the font lacks are drawn as boxes
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        FigureCanvasAgg(figure).print_png(content)
    return content.getvalue()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of a run's ``metrics.csv``; what an epoch lacks is left out."""
    with path.open(newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def training_curves(rows: Sequence[dict[str, float]], score: str, score_label: str) -> Figure:
    """Losses and a score over the epochs, in two panels."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    for name, label in (("train_loss", "training"), ("val_loss", "validation")):
        losses.plot(epochs, [row.get(name, float("nan")) for row in rows], marker="o", markersize=3, label=label)
    losses.set(xlabel="epoch", ylabel="loss")
    known = [row[name] for row in rows for name in ("train_loss", "val_loss") if row.get(name, 0) > 0]
    if known and max(known) > 50 * min(known):  # early validation can be far off: running statistics trail the weights
        losses.set_yscale("log")
    losses.legend(frameon=False)
    scores.plot(
        epochs,
        [100 * row.get(score, float("nan")) for row in rows],
        marker="o",
        markersize=3,
        color="#15803d",
    )
    scores.set(xlabel="epoch", ylabel=f"{score_label} (%)")
    for axes in (losses, scores):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def confusion_plot(matrix: Any, class_names: Sequence[str], counted: str = "") -> Figure:
    """A confusion matrix, rows are the true classes; counts are written in when there are few classes.

    ``counted`` says above the plot what they count.
    """
    matrix = np.asarray(matrix)
    count = len(class_names)
    side = min(14.0, 2.2 + 0.42 * count)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, fraction=0.045, label="share of the true class")
    axes.set(xlabel="predicted", ylabel="true")
    if count <= 40:
        turned = 90 if max(map(len, class_names)) > 2 else 0
        axes.set_xticks(range(count), class_names, rotation=turned, parse_math=False)
        axes.set_yticks(range(count), class_names, parse_math=False)
    if count <= 20:
        for (row, column), value in np.ndenumerate(matrix):
            if value:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(value), ha="center", va="center", fontsize=8, color=colour)
        axes.set_title(counted, fontsize=10)
    return figure
