"""COCO's pictures with PASCAL VOC's classes, which the official networks saw in training."""

import json
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_mask

from dicenet.classes import VOC
from dicenet.data.masks import Mask, MaskedPictures, MaskedSample
from dicenet.data.pictures import read_picture
from dicenet.errors import ConfigError, DataError

#: What COCO calls VOC's classes, where the names differ.
_COCO_NAMES = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
#: Pictures with a shorter side are left out, as in the official code.
SMALLEST_SIDE = 256
_PART = "train2017"


def read_coco_as_voc(path: str, class_names: Sequence[str]) -> MaskedPictures:
    """COCO 2017's training pictures that show something of VOC's 20 classes; all else in them is background.

    Where objects overlap, the first annotation wins (official code). Masks are drawn when they are asked for.

    Args:
        path: folder with ``annotations/instances_train2017.json`` and ``train2017``.
        class_names: of the data set that they are added to: VOC's.

    Raises:
        ConfigError: the classes are others.
        DataError: the folder or its list is not COCO's, or no picture is left.
    """
    if list(class_names) != list(VOC):
        raise ConfigError("--coco adds pictures with PASCAL VOC's 21 classes: the data has other ones")
    root, file = Path(path), Path(path) / "annotations" / f"instances_{_PART}.json"
    try:
        listed = json.loads(file.read_text(encoding="utf-8"))
        class_of = _classes(listed["categories"])
        objects = defaultdict(list)
        for annotation in listed["annotations"]:
            if annotation["category_id"] in class_of:
                objects[annotation["image_id"]].append(annotation)
        kept = [image for image in listed["images"] if _is_wanted(image, objects)]
        samples = [_sample(root / _PART, image, objects[image["id"]], class_of) for image in kept]
    except OSError as error:
        raise DataError(f"COCO's list {file} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is no list of COCO's instances: {error!r}") from error
    if not samples:
        raise DataError(f"{file} lists no picture with a class of PASCAL VOC")
    missing = next((sample.name for sample in samples if not Path(sample.name).exists()), None)
    if missing:
        raise DataError(f"picture {missing} is missing: {file} lists it")
    return MaskedPictures(samples, list(class_names))


def _classes(categories: Sequence[dict[str, Any]]) -> dict[int, int]:
    """VOC's class of each of COCO's categories that has one."""
    by_name = {_COCO_NAMES.get(name, name): index for index, name in enumerate(VOC)}
    return {row["id"]: by_name[row["name"]] for row in categories if row["name"] in by_name}


def _is_wanted(image: dict[str, Any], objects: dict[int, list[Any]]) -> bool:
    return image["id"] in objects and min(image["width"], image["height"]) >= SMALLEST_SIDE


def _sample(folder: Path, image: dict[str, Any], objects: list[Any], class_of: dict[int, int]) -> MaskedSample:
    picture = folder / image["file_name"]
    outlines = [(class_of[found["category_id"]], found["segmentation"]) for found in objects]
    size = int(image["height"]), int(image["width"])
    return MaskedSample(str(picture), partial(read_picture, picture), partial(_drawn, picture, size, outlines))


def _drawn(picture: Path, size: tuple[int, int], outlines: Sequence[tuple[int, Any]]) -> Mask:
    try:
        return draw_mask(size, outlines)
    except Exception as error:  # the library raises anything at outlines that are none
        raise DataError(f"{picture}: COCO's outlines of it cannot be drawn: {error}") from error


def draw_mask(size: tuple[int, int], outlines: Sequence[tuple[int, Any]]) -> Mask:
    """Classes of a picture.

    Args:
        size: (height, width).
        outlines: class and COCO's segmentation (polygons or run lengths) of each object; earlier ones lie on top.

    Returns:
        (height, width), 0 where there is no object.
    """
    height, width = size
    mask = np.zeros(size, np.uint8)
    for index, outline in outlines:
        inside = coco_mask.decode(coco_mask.segmToRle(outline, w=width, h=height)).astype(bool)
        mask[inside & (mask == 0)] = index
    return mask
