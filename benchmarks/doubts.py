"""The boxes that a detector is surest of and that no annotation agrees with: are they wrong, or is the annotation?

python benchmarks/doubts.py WEIGHTS DATA PART OUT    # OUT.csv: how far they are off; docs/pictures/NAME.jpg: the surest

Wrong is a box, surer than 0.5, that belongs to no box of its class at IoU 0.5. If it lies far from all of them
(IoU below 0.1), the network sees an object where nobody drew one; else it drew one badly, or twice.
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_iou

from dicenet.data.boxes import BoxedSample
from dicenet.data.detection import open_detection_data
from dicenet.engine.machine import write_csv
from dicenet.tasks.detect.drawing import with_boxes
from dicenet.tasks.detect.metrics import precision_recall_curves
from dicenet.tasks.detect.task import Thresholds
from dicenet.tasks.detect.trained import Detector, class_names_of, load_detector
from dicenet.tasks.drawing import picture_bytes
from dicenet.weights.files import write_bytes

REPOSITORY = Path(__file__).parents[1]
SURE, NEAR, FAR = 0.5, 0.5, 0.1
COLUMNS, TILE = 8, 150


class Doubt(NamedTuple):
    """A wrong box: its score, its largest IoU with a true one, and what is drawn."""

    score: float
    iou: float
    sample: BoxedSample
    box: list[float]
    true: list[list[float]]


def doubts(sample: BoxedSample, found: dict[str, Tensor], label: int) -> list[Doubt]:
    """The wrong boxes of a class in a picture, the surest first takes a true one."""
    true = torch.from_numpy(sample.boxes.boxes[sample.boxes.labels == label])
    chosen = (found["labels"] == label) & (found["scores"] > SURE)
    wrong, taken = [], set()
    for box, score in zip(found["boxes"][chosen], found["scores"][chosen].tolist(), strict=True):
        ious = box_iou(box[None], true)[0] if len(true) else torch.zeros(1)
        best = int(ious.argmax())
        if ious[best] >= NEAR and best not in taken:
            taken.add(best)
        else:
            wrong.append(Doubt(score, float(ious[best]), sample, box.tolist(), true.tolist()))
    return wrong


def tile(doubt: Doubt) -> Image.Image:
    """The surroundings of a wrong box (red), with the true boxes (blue)."""
    picture = doubt.sample.read()
    boxes = [doubt.box, *doubt.true]
    drawn = with_boxes(
        picture, boxes, [0] + [1] * len(doubt.true), [f"{100 * doubt.score:.0f}"] + [""] * len(doubt.true)
    )
    scale = drawn.width / picture.width
    x, y = (scale * (doubt.box[i] + doubt.box[i + 2]) / 2 for i in (0, 1))
    half = 100 * scale
    left, top = (max(0.0, min(c - half, side - 2 * half)) for c, side in zip((x, y), drawn.size, strict=True))
    box = tuple(round(edge) for edge in (left, top, left + 2 * half, top + 2 * half))
    return drawn.crop(box).resize((TILE, TILE), Image.Resampling.BICUBIC)


def main(weights: str, data: str, name: str, out: str) -> None:
    """Count and draw."""
    net, preprocessing = load_detector(weights, None)
    part = open_detection_data(data).parts[name]
    detector = Detector(net, net.priors, preprocessing, torch.device("cpu"), Thresholds())
    found = [detector(sample.read()) for sample in part.samples]
    truth = [sample.boxes.tensors() for sample in part.samples]
    rows: list[dict[str, Any]] = []
    tiles = []
    for label, class_name in enumerate(class_names_of(net)):
        wrong = [d for s, f in zip(part.samples, found, strict=True) for d in doubts(s, f, label)]
        wrong.sort(key=lambda doubt: -doubt.score)
        tiles += [tile(doubt) for doubt in wrong[: 2 * COLUMNS]]
        tiles += [Image.new("RGB", (TILE, TILE), "white")] * (-len(tiles) % COLUMNS)  # each class begins a row
        sure = sum(int(((f["labels"] == label) & (f["scores"] > SURE)).sum()) for f in found)
        row = {"class": class_name, "sure": sure, "wrong": len(wrong), "far": sum(d.iou < FAR for d in wrong)}
        for iou in (0.1, 0.3, 0.5):
            curve = precision_recall_curves(found, truth, net.num_classes, iou)[label]
            row |= {f"ap_{iou}": None if curve is None else round(curve.ap_voc10(), 4)}
        rows.append(row)
        print(row)
    sheet = Image.new("RGB", (COLUMNS * TILE, len(tiles) // COLUMNS * TILE), "white")
    for place, image in enumerate(tiles):
        sheet.paste(image, (place % COLUMNS * TILE, place // COLUMNS * TILE))
    write_bytes(REPOSITORY / f"docs/pictures/{Path(out).name}.jpg", picture_bytes(sheet, "JPEG"))
    write_csv(Path(f"{out}.csv"), rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
