"""Maps of classes as pictures: palettes, overlays, legends, sheets."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torchvision.datasets import Cityscapes

from dicenet.data.masks import IGNORE
from dicenet.tasks.drawing import fitted, font, shortened

Color = tuple[int, int, int]

_BACKGROUND = "background"
_OPACITY = 0.6
_VOID: Color = (224, 224, 192)
#: Colours that data sets have of their own, in which their users know the classes.
_OWN: tuple[dict[str, Color], ...] = (
    # of the others some have the colours of these
    {label.name: label.color for label in Cityscapes.classes if not label.ignore_in_eval} | {_BACKGROUND: (0, 0, 0)},
    {
        "Sky": (128, 128, 128),
        "Building": (128, 0, 0),
        "Pole": (192, 192, 128),
        "Road": (128, 64, 128),
        "Pavement": (60, 40, 222),
        "Tree": (128, 128, 0),
        "SignSymbol": (192, 128, 128),
        "Fence": (64, 64, 128),
        "Car": (64, 0, 128),
        "Pedestrian": (64, 64, 0),
        "Bicyclist": (0, 128, 192),
    },
)
_ROW = 22


def _voc_color(index: int) -> Color:
    """PASCAL VOC's colour of a class: its bits, spread over the three channels from the highest bit on."""
    color = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            color[channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit)
    return color[0], color[1], color[2]


def palette(class_names: Sequence[str]) -> list[Color]:
    """A colour for each class: Cityscapes' and CamVid's own, else VOC's, whose black is kept for a background."""
    for own in _OWN:
        if set(class_names) <= set(own):
            return [own[name] for name in class_names]
    first = 0 if class_names[0].lower().strip("_") == _BACKGROUND else 1
    return [_voc_color(index + first) for index in range(len(class_names))]


def palette_picture(labels: Any, colors: Sequence[Color]) -> Image.Image:
    """A map of classes (H, W) as a palette picture: pixels are class numbers, viewers show colours."""
    picture = Image.fromarray(np.asarray(labels, dtype=np.uint8))
    table = [*colors, *[(0, 0, 0)] * (IGNORE - len(colors)), _VOID]
    picture.putpalette([value for color in table for value in color])
    return picture


def overlay(picture: Image.Image, labels: Any, class_names: Sequence[str]) -> Image.Image:
    """A picture with its classes in colour; the background and void stay as they are."""
    labels, image = np.asarray(labels), picture.convert("RGB")
    plain = labels == IGNORE
    if class_names[0].lower().strip("_") == _BACKGROUND:
        plain |= labels == 0
    colored = palette_picture(labels, palette(class_names)).convert("RGB")
    # by Pillow, in bytes: arrays of floats would take many times the memory of a large picture
    return Image.composite(image, Image.blend(image, colored, _OPACITY), Image.fromarray(plain))


def legend(class_names: Sequence[str], columns: int = 1, width: int = 180) -> Image.Image:
    """The colours with the names of their classes."""
    rows = -(-len(class_names) // columns)
    sheet = Image.new("RGB", (columns * width, rows * _ROW + 8), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (name, color) in enumerate(zip(class_names, palette(class_names), strict=True)):
        left, top = index % columns * width + 6, index // columns * _ROW + 6
        draw.rectangle((left, top, left + 22, top + 14), fill=color, outline="black")
        draw.text((left + 30, top - 1), shortened(name, width - 40, 13), "black", font(13))
    return sheet


def segmentation_sheet(
    rows: Sequence[tuple[str, Image.Image, Any, Any]], class_names: Sequence[str], side: int = 240
) -> Image.Image:
    """Rows of a picture, its true classes (None where they are not known) and the predicted ones, with the legend.

    Args:
        rows: name, picture, true and predicted classes (H, W).
        class_names: of the classes.
        side: of the longer side of each picture, in pixels.
    """
    caption, gap = 18, 6
    tiles = []
    for name, picture, truth, predicted in rows:
        shown = [
            picture,
            *(overlay(picture, labels, class_names) for labels in (truth, predicted) if labels is not None),
        ]
        if truth is None:
            shown.insert(1, Image.new("RGB", picture.size, "white"))
        tiles.append((name, [fitted(image, side) for image in shown]))
    names = legend(class_names, columns=max(1, (3 * (side + gap)) // 180))
    height = sum(max(image.height for image in images) + caption + gap for _, images in tiles)
    sheet = Image.new("RGB", (max(3 * (side + gap), names.width), height + names.height), "white")
    draw = ImageDraw.Draw(sheet)
    top = 0
    for name, images in tiles:
        for column, (image, what) in enumerate(zip(images, (name, "truth", "prediction"), strict=True)):
            left = column * (side + gap)
            draw.text((left + 2, top + 2), shortened(what, side - 4, 12), "black", font(12))
            sheet.paste(image, (left, top + caption))
        top += max(image.height for image in images) + caption + gap
    sheet.paste(names, (0, height))
    return sheet
