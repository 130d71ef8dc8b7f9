"""Judging a segmentation network."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor
from torchvision.transforms import v2

from dicenet.data.masks import IGNORE, Mask, MaskedPictures, PairTransform
from dicenet.data.samples import LoaderSettings, evenly_spread
from dicenet.data.segmentation import open_segmentation_data
from dicenet.data.transforms import Preprocessing, Transform, evaluation_transform, to_tensor
from dicenet.engine.console import say, say_what_was_left_out, some
from dicenet.engine.fit import check_device, make_trainer
from dicenet.engine.run_folder import check_free, default_run_folder, new_run_folder
from dicenet.errors import ConfigError, DataError
from dicenet.models.segmentation import SegmentationNetwork
from dicenet.tasks.arguments import default_workers
from dicenet.tasks.devices import for_inference
from dicenet.tasks.drawing import confusion_plot, picture_bytes, png
from dicenet.tasks.segment.drawing import segmentation_sheet
from dicenet.tasks.segment.inference import check_mode
from dicenet.tasks.segment.task import TASK, SegmentTask
from dicenet.tasks.segment.trained import Segmenter, class_names_of, load_segmenter
from dicenet.weights.files import write_bytes, write_json


def evaluate(
    weights: str,
    data: str,
    split: str | None = None,
    out: str | None = None,
    img_size: int | tuple[int, int] | None = None,
    mode: str = "whole",
    ignore_id: int | tuple[int, ...] = (),
    draw: int = 10,
    batch_size: int = 8,
    workers: int | None = None,
    device: str = "auto",
    precision: str = "32-true",
    optimize: bool = True,
) -> dict[str, Any]:
    """Judge a segmentation network on pictures with masks.

    Args:
        weights: of the network: a file of any known format, or the name of an official checkpoint.
        data: folder of a data set, as for training; classes are matched by name.
        split: part or list to judge on; the first there is of test, val, all if not given.
        out: folder for the results, new or empty; runs/segment/evaluate-<date>-<time> if not given.
        img_size: another input size in pixels, or [height, width], than the one saved with the weights.
        mode: whole (pictures are resized to the input size) or sliding (windows of that size, at full resolution).
        ignore_id: number in masks that is void, beside 255; several as [0,7].
        draw: how many pictures to show beside their masks.
        batch_size: pictures at a time.
        workers: processes that read pictures.
        device: auto, cpu, cuda or mps.
        precision: Lightning's, such as bf16-mixed.
        optimize: run an optimized copy of the network on the CPU in float32; the same results, faster.

    Returns:
        What results.json holds: mean_iou, mean_iou_all, pixel_accuracy, iou_per_class, classes, confusion matrix.
    """
    check_device(device)
    check_mode(mode)
    check_free(out)
    settings = LoaderSettings(1 if mode == "sliding" else batch_size, default_workers() if workers is None else workers)
    console = Console()
    net, preprocessing = load_segmenter(weights, img_size)
    dataset = open_segmentation_data(data, ignore_id)
    split, part = dataset.evaluation_part(split)
    order = _class_order(dataset.class_names, net, weights)
    names = dataset.class_names if order is None else class_names_of(net)
    folder = new_run_folder(out, default_run_folder(TASK, "evaluate"))
    trainer = make_trainer(
        accelerator=device,
        devices=1,
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=console.is_terminal,
    )
    root = trainer.strategy.root_device
    used = for_inference(net, root, trainer.precision, optimize)
    task = SegmentTask(used, names, mode=mode)
    started = time.perf_counter()
    trainer.test(task, part.loader(_transform(preprocessing, mode, order), False, settings), verbose=False)
    seconds = time.perf_counter() - started
    scores = task.all_scores()
    confusion = task.confusion.compute().cpu()
    results = {
        "task": TASK,
        "weights": str(weights),
        "data": data,
        "layout": dataset.layout,
        "split": split,
        "pictures": len(part),
        "input_size": list(preprocessing.input_size),
        "mode": mode,
        **scores,
        "classes": _class_table(confusion, names, scores["iou_per_class"]),
        "confusion": confusion.tolist() if len(names) <= 100 else None,
        "pictures_per_second": len(part) / seconds,
        "errors": [{"path": name, "reason": reason} for name, reason in task.bad_pictures.items()],
    }
    write_json(folder / "results.json", results)
    if len(names) <= 100:
        plot = confusion_plot(_in_thousands(confusion), names, "thousands of pixels")
        write_bytes(folder / "confusion.png", png(plot))
    if draw > 0:
        segmenter = Segmenter(used, preprocessing, root, mode)
        _draw(part, draw, segmenter, order, names, folder / "pictures.png")
    _print_results(results, folder, console)
    return results


def _class_order(data_names: Sequence[str], net: SegmentationNetwork, weights: str) -> list[int] | None:
    """For each class of the data that of the network of the same name; None if they are the same by number.

    Raises ConfigError if the data has classes that the network does not know.
    """
    names = class_names_of(net)
    if list(data_names) == names or ("label_names" not in net.pretrained_cfg and len(data_names) == len(names)):
        return None
    if unknown := [name for name in data_names if name not in names]:
        raise ConfigError(
            f"{weights} was trained for {len(names)} classes ({some(names)}), the data has {len(data_names)}, among "
            f"them unknown ones: {some(unknown)}. Name them in classes.txt as the network does, or train from it with "
            "--weights"
        )
    return [names.index(name) for name in data_names]


def _as_classes_of_network(mask: Mask, order: Sequence[int] | None) -> Tensor:
    table = torch.full((256,), IGNORE, dtype=torch.uint8)
    table[: len(order or ())] = torch.tensor(order or (), dtype=torch.uint8)
    return torch.from_numpy(mask.copy()) if order is None else table[torch.from_numpy(mask).long()]


def _transform(preprocessing: Preprocessing, mode: str, order: Sequence[int] | None) -> PairTransform:
    prepare = v2.Compose(to_tensor(preprocessing)) if mode == "sliding" else evaluation_transform(preprocessing)
    return partial(_prepared, prepare, order)


def _prepared(
    prepare: Transform, order: Sequence[int] | None, picture: Image.Image, mask: Mask
) -> tuple[Tensor, Tensor]:
    return prepare(picture), _as_classes_of_network(mask, order)


def _class_table(confusion: Tensor, names: Sequence[str], ious: Sequence[float | None]) -> list[dict[str, Any]]:
    """Per class: its part of the pixels, IoU, and the shares of true and of predicted pixels that are right."""
    total = max(1, int(confusion.sum()))
    rows = []
    for index, (name, iou) in enumerate(zip(names, ious, strict=True)):
        true, predicted, right = (
            int(x) for x in (confusion[index].sum(), confusion[:, index].sum(), confusion[index, index])
        )
        rows.append(
            {
                "class": name,
                "share": true / total,
                "iou": iou,
                "recall": right / true if true else None,
                "precision": right / predicted if predicted else None,
            }
        )
    return rows


def _in_thousands(confusion: Tensor) -> Any:
    """Counts of pixels as the plot can write them in."""
    return (confusion / 1000).round().long().numpy()


def _draw(
    part: MaskedPictures,
    count: int,
    segmenter: Segmenter,
    order: Sequence[int] | None,
    names: Sequence[str],
    path: Path,
) -> None:
    rows = []
    for index in evenly_spread(len(part), count):
        sample = part.samples[index]
        try:
            picture, mask = sample.read(), sample.read_mask()
        except DataError:
            continue  # named with the results
        truth = _as_classes_of_network(mask, order).numpy()
        rows.append((Path(sample.name).stem, picture, truth, segmenter(picture).numpy()))
    write_bytes(path, picture_bytes(segmentation_sheet(rows, names), "PNG"))


def _print_results(results: dict[str, Any], folder: Path, console: Console) -> None:
    table = Table()
    table.add_column("class")
    for column in ("of all pixels", "IoU", "recall", "precision"):
        table.add_column(column, justify="right")
    for row in results["classes"]:
        values = [
            "-" if row[key] is None else f"{100 * row[key]:.1f} %" for key in ("share", "iou", "recall", "precision")
        ]
        table.add_row(escape(row["class"]), *values)
    console.print(table)
    say_what_was_left_out(console, {e["path"]: e["reason"] for e in results["errors"]})
    judged = results["pictures"] - len(results["errors"])
    present = sum(iou is not None for iou in results["iou_per_class"])
    say(
        console,
        f"{judged} pictures of {results['data']} ({results['layout']}, {results['split']}): mean IoU "
        f"{100 * results['mean_iou']:.2f} % over {present} classes, pixel accuracy "
        f"{100 * results['pixel_accuracy']:.2f} %, {results['pictures_per_second']:.1f} pictures a second; "
        f"{folder / 'results.json'}",
    )
