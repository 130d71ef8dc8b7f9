"""Naming all classes that pictures show."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from dicenet.data.pictures import find_pictures
from dicenet.engine.console import say, say_what_was_left_out
from dicenet.engine.run_folder import default_run_folder, new_run_folder
from dicenet.errors import ConfigError, DataError
from dicenet.tasks.classifier import class_names_of, load_classifier, logits_of
from dicenet.tasks.devices import for_inference, torch_device
from dicenet.tasks.drawing import picture_bytes
from dicenet.tasks.multilabel.drawing import with_labels
from dicenet.tasks.multilabel.metrics import DEFAULT_THRESHOLD, logit_threshold
from dicenet.tasks.multilabel.task import TASK
from dicenet.tasks.pictures import PictureNames, in_batches
from dicenet.weights.files import write_bytes, write_json

_SHOWN = 20


def predict(
    paths: Sequence[str],
    weights: str,
    out: str | None = None,
    threshold: float = DEFAULT_THRESHOLD,
    top: int = 5,
    draw: bool = True,
    img_size: int | tuple[int, int] | None = None,
    batch_size: int = 32,
    device: str = "auto",
    optimize: bool = True,
) -> dict[str, Any]:
    """Name all classes that pictures show.

    Args:
        paths: pictures, and folders of pictures.
        weights: of the multi-label classifier: a file that 'train multilabel' wrote.
        out: folder for the results, new or empty; runs/multilabel/predict-<date>-<time> if not given.
        threshold: classes are named whose probability is above this.
        top: how many of the most probable classes to list beside them, whatever their probability.
        draw: also write each picture with its classes drawn in.
        img_size: another input size in pixels, or [height, width], than the one saved with the weights.
        batch_size: pictures at a time.
        device: auto, cpu, cuda or mps.
        optimize: run an optimized copy of the network on the CPU; the same results, faster.

    Returns:
        What predictions.json holds: items (file, result: labels, above the threshold, and top, each with class, index,
        score, which is the probability, best first) and errors (path, reason).
    """
    target = torch_device(device)
    limit = logit_threshold(threshold)
    if top < 1 or batch_size < 1:
        raise ConfigError(f"top and batch_size must be at least 1, got {top} and {batch_size}")
    console = Console()
    net, preprocessing = load_classifier(weights, TASK, img_size)
    classes = class_names_of(net)
    net = for_inference(net, target, "32-true", optimize)
    files = find_pictures(paths)
    folder = new_run_folder(out, default_run_folder(TASK, "predict"))
    names = PictureNames(folder / "pictures")
    items: list[dict[str, Any]] = []
    errors: dict[str, str] = {}

    for pictures in in_batches(files, batch_size, errors, console):
        logits = logits_of(net, preprocessing, pictures, target)
        for (file, picture), row in zip(pictures, logits, strict=True):
            result = labels_of(row, classes, limit, top)
            items.append({"file": str(file), "result": result})
            if draw:
                write_bytes(names.new(file), picture_bytes(with_labels(picture, **result), "JPEG"))
    predictions = {
        "task": TASK,
        "weights": str(weights),
        "class_names": classes,
        "threshold": threshold,
        "items": items,
        "errors": [{"path": path, "reason": reason} for path, reason in errors.items()],
    }
    write_json(folder / "predictions.json", predictions)
    _print_predictions(predictions, folder, console)
    if not items:
        raise DataError(f"none of the {len(files)} pictures could be read, the first: {next(iter(errors.values()))}")
    return predictions


def labels_of(logits: Tensor, names: Sequence[str], limit: float, top: int) -> dict[str, list[dict[str, Any]]]:
    """What a picture shows: the classes above a limit, and the most probable ones, the best first.

    Args:
        logits: (C,).
        names: of the classes.
        limit: a logit.
        top: how many of the most probable.
    """
    order = logits.argsort(descending=True, stable=True).tolist()
    scores = logits.sigmoid().tolist()
    rows = [{"class": names[index], "index": index, "score": round(scores[index], 6)} for index in order]
    return {"labels": rows[: int((logits > limit).sum())], "top": rows[:top]}


def _print_predictions(predictions: dict[str, Any], folder: Path, console: Console) -> None:
    items, errors = predictions["items"], predictions["errors"]
    for item in items[:_SHOWN]:
        found = [f"{row['class']} {100 * row['score']:.0f} %" for row in item["result"]["labels"]]
        words = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
        say(console, f"{item['file']}: {words or 'nothing'}")
    if len(items) > _SHOWN:
        say(console, f"... and {len(items) - _SHOWN} more")
    say_what_was_left_out(console, {error["path"]: error["reason"] for error in errors})
    say(console, f"{len(items)} answered, {len(errors)} left out; {folder / 'predictions.json'}")
