"""Detections drawn: curves of precision and recall, boxes in pictures."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from dicenet.tasks.detect.metrics import Curve
from dicenet.tasks.drawing import fitted, font, shortened

_NAMED = 20
#: Of the classes in turn, dark enough for white words.
_COLORS = (
    (220, 38, 38),
    (37, 99, 235),
    (21, 128, 61),
    (147, 51, 234),
    (194, 65, 12),
    (14, 116, 144),
    (190, 24, 93),
    (77, 124, 15),
    (67, 56, 202),
    (120, 53, 15),
)


def precision_recall_plot(curves: Sequence[Curve | None], class_names: Sequence[str]) -> Figure:
    """Interpolated precision over recall: a line per class that has truth, and their mean.

    Up to 20 classes are named, best first, with the areas under their lines; more are drawn in grey.

    Args:
        curves: of each class, see :func:`dicenet.tasks.detect.metrics.precision_recall_curves`.
        class_names: as many.
    """
    known = [(curve, name) for curve, name in zip(curves, class_names, strict=True) if curve is not None]
    known.sort(key=lambda pair: -pair[0].ap_voc10())
    few = len(known) <= _NAMED
    figure = Figure(figsize=(7.4 if few else 5.2, 4.6), layout="constrained")
    axes = figure.subplots()
    recalls = np.linspace(0, 1, 501)
    colours = [f"C{index % 10}" for index in range(len(known))] if few else ["#d4d4d8"] * len(known)
    for index, ((curve, name), colour) in enumerate(zip(known, colours, strict=True)):
        line, label = "--" if few and index >= 10 else "-", f"{name}  {100 * curve.ap_voc10():.1f}" if few else None
        axes.plot(recalls, curve.at(recalls), line, color=colour, linewidth=1, label=label)
    if len(known) > 1:
        mean = np.mean([curve.at(recalls) for curve, _ in known], axis=0)
        area = 100 * np.mean([curve.ap_voc10() for curve, _ in known])
        axes.plot(recalls, mean, color="black", linewidth=2.5, label=f"mean  {area:.1f}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if known:
        legend = axes.legend(frameon=False, title="AP (%)", fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


def with_boxes(
    picture: Image.Image, boxes: Any, labels: Sequence[int], captions: Sequence[str], side: int = 640
) -> Image.Image:
    """A picture, its longer side at least ``side`` pixels, with boxes in the colours of their classes.

    Args:
        picture: as it was.
        boxes: (n, 4) corners in its pixels.
        labels: (n,) classes.
        captions: of each box.
        side: in pixels.
    """
    scale = max(1.0, side / max(picture.size))
    size = round(picture.width * scale), round(picture.height * scale)
    drawn = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(drawn)
    height = 14 + round(max(drawn.size) / 320)
    for box, label, caption in reversed(list(zip(boxes, labels, captions, strict=True))):  # the surest on top
        left, top, right, bottom = (float(edge) * scale for edge in box)
        color = _COLORS[label % len(_COLORS)]
        draw.rectangle((left, top, right, bottom), outline=color, width=max(2, round(max(drawn.size) / 320)))
        width = font(height - 4).getlength(caption) + 6
        x = max(0.0, min(left, drawn.width - width))
        y = top - height if top >= height else top
        draw.rectangle((x, y, x + width, y + height), fill=color)
        draw.text((x + 3, y), caption, "white", font(height - 4))
    return drawn


def detection_sheet(rows: Iterable[tuple[str, Image.Image, Image.Image]], side: int = 360) -> Image.Image:
    """Rows of two pictures: one with the true boxes, one with those that were found.

    Args:
        rows: name, and the two pictures; one row is held at a time.
        side: of the longer side of each picture, in pixels.
    """
    caption, gap = 18, 6
    tiles = [(name, [fitted(picture, side) for picture in pair]) for name, *pair in rows]
    height = sum(max(image.height for image in images) + caption + gap for _, images in tiles)
    sheet = Image.new("RGB", (2 * (side + gap), max(1, height)), "white")
    draw = ImageDraw.Draw(sheet)
    top = 0
    for name, images in tiles:
        for column, (image, what) in enumerate(zip(images, (f"{name}: truth", "prediction"), strict=True)):
            left = column * (side + gap)
            draw.text((left + 2, top + 2), shortened(what, side - 4, 12), "black", font(12))
            sheet.paste(image, (left, top + caption))
        top += max(image.height for image in images) + caption + gap
    return sheet
