"""Finding the objects of pictures."""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from dicenet.data.pictures import find_pictures
from dicenet.engine.console import say, say_what_was_left_out
from dicenet.engine.run_folder import default_run_folder, new_run_folder
from dicenet.errors import DataError
from dicenet.tasks.detect.drawing import with_boxes
from dicenet.tasks.detect.task import TASK
from dicenet.tasks.detect.trained import Detector, check_thresholds, class_names_of, load_detector
from dicenet.tasks.devices import for_inference, torch_device
from dicenet.tasks.drawing import picture_bytes
from dicenet.tasks.pictures import PictureNames, readable
from dicenet.weights.files import write_bytes, write_json

_SHOWN = 20
_LARGEST_JPEG = 65_500


def predict(
    paths: Sequence[str],
    weights: str,
    out: str | None = None,
    score: float = 0.4,
    nms: float = 0.45,
    draw: bool = True,
    img_size: int | tuple[int, int] | None = None,
    device: str = "auto",
    optimize: bool = True,
) -> dict[str, Any]:
    """Find the objects of pictures.

    Args:
        paths: pictures, and folders of pictures.
        weights: of the detector: a file of any known format, or the name of an official checkpoint.
        out: folder for the results, new or empty; runs/detect/predict-<date>-<time> if not given.
        score: boxes must be surer than this.
        nms: boxes that overlap a surer one of their class by more (IoU) are left out.
        draw: also write each picture with its boxes drawn in.
        img_size: another input size in pixels, or [height, width], than the one saved with the weights.
        device: auto, cpu, cuda or mps.
        optimize: run an optimized copy of the network on the CPU; the same results, faster.

    Returns:
        What predictions.json holds: items (file, image_id, size, milliseconds, result: class, index, score, box as
        left, top, right, bottom in pixels, the surest first) and errors (path, reason). coco_results.json holds the
        boxes in COCO's result format, with these image ids and the class index plus 1 as category.
    """
    target = torch_device(device)
    thresholds = check_thresholds(score, nms)
    console = Console()
    net, preprocessing = load_detector(weights, img_size)
    names = class_names_of(net)
    detector = Detector(for_inference(net, target, "32-true", optimize), net.priors, preprocessing, target, thresholds)
    files = find_pictures(paths)
    folder = new_run_folder(out, default_run_folder(TASK, "predict"))
    pictures = PictureNames(folder / "pictures")
    items: list[dict[str, Any]] = []
    errors: dict[str, str] = {}

    for file in track(files, "predicting", console=console, transient=True, disable=not console.is_terminal):
        for _, picture in readable([file], errors):
            started = time.perf_counter()
            found = detector(picture)
            if target.type == "cuda":
                torch.cuda.synchronize(target)
            milliseconds = 1000 * (time.perf_counter() - started)
            result = _result(found, names)
            if draw:
                captions = [f"{row['class']} {100 * row['score']:.0f}" for row in result]
                drawn = with_boxes(picture, found["boxes"].tolist(), found["labels"].tolist(), captions)
                suffix, kind = (".jpg", "JPEG") if max(picture.size) <= _LARGEST_JPEG else (".png", "PNG")
                write_bytes(pictures.new(file, suffix), picture_bytes(drawn, kind))
            items.append(
                {
                    "file": str(file),
                    "image_id": len(items) + 1,
                    "size": [picture.height, picture.width],
                    "milliseconds": round(milliseconds, 2),
                    "result": result,
                }
            )
    predictions = {
        "task": TASK,
        "weights": str(weights),
        "class_names": names,
        "items": items,
        "errors": [{"path": path, "reason": reason} for path, reason in errors.items()],
    }
    write_json(folder / "predictions.json", predictions)
    write_json(folder / "coco_results.json", [row for item in items for row in _coco_results(item)])
    _print_predictions(predictions, folder, console)
    if not items:
        raise DataError(f"none of the {len(files)} pictures could be read, the first: {next(iter(errors.values()))}")
    return predictions


def _result(found: dict[str, Tensor], names: Sequence[str]) -> list[dict[str, Any]]:
    rows = zip(found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True)
    return [
        {"class": names[label], "index": label, "score": round(score, 6), "box": [round(edge, 2) for edge in box]}
        for box, label, score in rows
    ]


def _coco_results(item: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows as COCO's evaluation takes them: left, top, width, height."""
    rows = []
    for found in item["result"]:
        left, top, right, bottom = found["box"]
        box = [left, top, round(right - left, 2), round(bottom - top, 2)]
        rows.append(
            {"image_id": item["image_id"], "category_id": found["index"] + 1, "bbox": box, "score": found["score"]}
        )
    return rows


def _print_predictions(predictions: dict[str, Any], folder: Path, console: Console) -> None:
    items, errors = predictions["items"], predictions["errors"]
    for item in items[:_SHOWN]:
        found = [f"{row['class']} {100 * row['score']:.0f} %" for row in item["result"]]
        words = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
        say(console, f"{item['file']}: {words or 'nothing'}")
    if len(items) > _SHOWN:
        say(console, f"... and {len(items) - _SHOWN} more")
    say_what_was_left_out(console, {error["path"]: error["reason"] for error in errors})
    speed = ""
    if items:
        # the first picture waits for the network to be made ready
        middle = statistics.median(item["milliseconds"] for item in items)
        speed = f", {1000 / middle:.1f} pictures a second (median, from decoded picture to boxes)"
    say(console, f"{len(items)} answered, {len(errors)} left out{speed}; {folder / 'predictions.json'}")
