"""Finding the class of each pixel of pictures."""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from dicenet.data.pictures import find_pictures
from dicenet.engine.console import say, say_what_was_left_out
from dicenet.engine.run_folder import default_run_folder, new_run_folder
from dicenet.errors import DataError
from dicenet.tasks.devices import for_inference, torch_device
from dicenet.tasks.drawing import picture_bytes
from dicenet.tasks.pictures import PictureNames, readable
from dicenet.tasks.segment.drawing import legend, overlay, palette, palette_picture
from dicenet.tasks.segment.inference import check_mode
from dicenet.tasks.segment.task import TASK
from dicenet.tasks.segment.trained import Segmenter, class_names_of, load_segmenter
from dicenet.weights.files import write_bytes, write_json

_SHOWN = 20
_LARGEST_JPEG = 65_500


def predict(
    paths: Sequence[str],
    weights: str,
    out: str | None = None,
    draw: bool = True,
    img_size: int | tuple[int, int] | None = None,
    mode: str = "whole",
    device: str = "auto",
    optimize: bool = True,
) -> dict[str, Any]:
    """Find the class of each pixel of pictures.

    Args:
        paths: pictures, and folders of pictures.
        weights: of the network: a file of any known format, or the name of an official checkpoint.
        out: folder for the results, new or empty; runs/segment/predict-<date>-<time> if not given.
        draw: also write each picture with its classes in colour.
        img_size: another input size in pixels, or [height, width], than the one saved with the weights.
        mode: whole (pictures are resized to the input size) or sliding (windows of that size, at full resolution).
        device: auto, cpu, cuda or mps.
        optimize: run an optimized copy of the network on the CPU; the same results, faster.

    Returns:
        What predictions.json holds: items (file, result: mask, size, classes with their shares, milliseconds) and
        errors (path, reason). Masks are palette PNGs of the pictures' sizes, whose pixels are class numbers.
    """
    target = torch_device(device)
    check_mode(mode)
    console = Console()
    net, preprocessing = load_segmenter(weights, img_size)
    names = class_names_of(net)
    segmenter = Segmenter(for_inference(net, target, "32-true", optimize), preprocessing, target, mode)
    files = find_pictures(paths)
    folder = new_run_folder(out, default_run_folder(TASK, "predict"))
    masks, pictures = PictureNames(folder / "masks"), PictureNames(folder / "pictures")
    items: list[dict[str, Any]] = []
    errors: dict[str, str] = {}

    for file in track(files, "predicting", console=console, transient=True, disable=not console.is_terminal):
        for _, picture in readable([file], errors):
            started = time.perf_counter()
            labels = segmenter(picture)
            if target.type == "cuda":
                torch.cuda.synchronize(target)
            milliseconds = 1000 * (time.perf_counter() - started)
            mask = masks.new(file, ".png")
            _write(palette_picture(labels.numpy(), palette(names)), mask, "PNG")
            if draw:
                suffix, kind = (".jpg", "JPEG") if max(picture.size) <= _LARGEST_JPEG else (".png", "PNG")
                _write(overlay(picture, labels.numpy(), names), pictures.new(file, suffix), kind)
            items.append({"file": str(file), "result": _result(labels, names, mask.relative_to(folder), milliseconds)})
    predictions = {
        "task": TASK,
        "weights": str(weights),
        "class_names": names,
        "items": items,
        "errors": [{"path": path, "reason": reason} for path, reason in errors.items()],
    }
    write_json(folder / "predictions.json", predictions)
    if items:
        _write(legend(names), folder / "legend.png", "PNG")
    _print_predictions(predictions, folder, console)
    if not items:
        raise DataError(f"none of the {len(files)} pictures could be read, the first: {next(iter(errors.values()))}")
    return predictions


def _write(picture: Image.Image, path: Path, kind: str) -> None:
    write_bytes(path, picture_bytes(picture, kind))


def _result(labels: Tensor, names: Sequence[str], mask: Path, milliseconds: float) -> dict[str, Any]:
    """Classes that are in a picture, the largest first, with their shares of its pixels."""
    counts = labels.flatten().long().bincount(minlength=len(names))
    found = counts.argsort(descending=True, stable=True).tolist()
    classes = [
        {"class": names[index], "index": index, "share": round(int(counts[index]) / labels.numel(), 6)}
        for index in found
        if counts[index]
    ]
    return {
        "mask": mask.as_posix(),
        "size": list(labels.shape),
        "classes": classes,
        "milliseconds": round(milliseconds, 2),
    }


def _print_predictions(predictions: dict[str, Any], folder: Path, console: Console) -> None:
    items, errors = predictions["items"], predictions["errors"]
    for item in items[:_SHOWN]:
        classes = [f"{c['class']} {100 * c['share']:.1f} %" for c in item["result"]["classes"][:4]]
        say(console, f"{item['file']}: {', '.join(classes)}")
    if len(items) > _SHOWN:
        say(console, f"... and {len(items) - _SHOWN} more")
    say_what_was_left_out(console, {error["path"]: error["reason"] for error in errors})
    speed = ""
    if items:
        # the first picture of each size waits for the network to be made ready for it
        middle = statistics.median(item["result"]["milliseconds"] for item in items)
        speed = f", {middle:.1f} ms a picture (median, from decoded picture to mask)"
    say(console, f"{len(items)} answered, {len(errors)} left out{speed}; {folder / 'predictions.json'}")
