"""Naming the classes of pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.progress import track

from dicenet.data.pictures import find_pictures
from dicenet.data.transforms import Preprocessing, evaluation_transform
from dicenet.engine.console import say, say_what_was_left_out
from dicenet.engine.run_folder import default_run_folder, new_run_folder
from dicenet.errors import ConfigError, DataError
from dicenet.models.network import Network
from dicenet.tasks.classify.trained import TASK, class_names_of, load_classifier
from dicenet.tasks.devices import for_inference, torch_device
from dicenet.tasks.drawing import with_classes
from dicenet.tasks.pictures import PictureNames, readable
from dicenet.weights.files import atomic_path, write_json

_SHOWN = 20


def predict(
    paths: Sequence[str],
    weights: str,
    out: str | None = None,
    top: int = 5,
    draw: bool = True,
    img_size: int | tuple[int, int] | None = None,
    batch_size: int = 32,
    device: str = "auto",
    optimize: bool = True,
) -> dict[str, Any]:
    """Name the classes of pictures.

    Args:
        paths: pictures, and folders of pictures.
        weights: of the classifier: a file of any known format, or the name of an official checkpoint.
        out: folder for the results, new or empty; runs/classify/predict-<date>-<time> if not given.
        top: how many classes to name.
        draw: also write each picture with its classes drawn in.
        img_size: another input size in pixels, or [height, width], than the one saved with the weights.
        batch_size: pictures at a time.
        device: auto, cpu, cuda or mps.
        optimize: run an optimized copy of the network on the CPU; the same results, faster.

    Returns:
        What predictions.json holds: items (file, result: class, index, score, best first) and errors (path, reason).
    """
    target = torch_device(device)
    if top < 1 or batch_size < 1:
        raise ConfigError(f"top and batch_size must be at least 1, got {top} and {batch_size}")
    console = Console()
    net, preprocessing = load_classifier(weights, img_size)
    net = for_inference(net, target, "32-true", optimize)
    files = find_pictures(paths)
    folder = new_run_folder(out, default_run_folder(TASK, "predict"))
    names = PictureNames(folder / "pictures")
    items: list[dict[str, Any]] = []
    errors: dict[str, str] = {}

    batches = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
    for chosen in track(batches, "predicting", console=console, transient=True, disable=not console.is_terminal):
        pictures = readable(chosen, errors)
        for (file, picture), result in zip(pictures, _answers(net, preprocessing, pictures, top, target), strict=True):
            items.append({"file": str(file), "result": result})
            if draw:
                _draw(picture, result, names.new(file))
    predictions = {
        "task": TASK,
        "weights": str(weights),
        "items": items,
        "errors": [{"path": path, "reason": reason} for path, reason in errors.items()],
    }
    write_json(folder / "predictions.json", predictions)
    _print_predictions(predictions, folder, console)
    if not items:
        raise DataError(f"none of the {len(files)} pictures could be read, the first: {next(iter(errors.values()))}")
    return predictions


def _answers(
    net: Network,
    preprocessing: Preprocessing,
    pictures: Sequence[tuple[Path, Image.Image]],
    top: int,
    device: torch.device,
) -> list[list[dict[str, Any]]]:
    """For each picture its best classes: name, index, score."""
    if not pictures:
        return []
    names = class_names_of(net)
    transform = evaluation_transform(preprocessing)
    batch = torch.stack([transform(picture) for _, picture in pictures])
    with torch.inference_mode():
        scores = net(batch.to(device, memory_format=torch.channels_last)).float().softmax(dim=1).cpu()
    best = scores.topk(min(top, len(names)))
    return [
        [
            {"class": names[index], "index": index, "score": round(score, 6)}
            for score, index in zip(values, indices, strict=True)
        ]
        for values, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def _draw(picture: Image.Image, result: Sequence[dict[str, Any]], path: Path) -> None:
    drawn = with_classes(picture, [(answer["class"], answer["score"]) for answer in result])
    with atomic_path(path) as temporary:
        drawn.save(temporary, "JPEG", quality=90)


def _print_predictions(predictions: dict[str, Any], folder: Path, console: Console) -> None:
    items, errors = predictions["items"], predictions["errors"]
    for item in items[:_SHOWN]:
        best = item["result"][0]
        say(console, f"{item['file']}: {best['class']} {100 * best['score']:.1f} %")
    if len(items) > _SHOWN:
        say(console, f"... and {len(items) - _SHOWN} more")
    say_what_was_left_out(console, {error["path"]: error["reason"] for error in errors})
    say(console, f"{len(items)} answered, {len(errors)} left out; {folder / 'predictions.json'}")
