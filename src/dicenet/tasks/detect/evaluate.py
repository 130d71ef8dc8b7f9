"""Judging a detector."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from dicenet.data.box_transforms import evaluation_box_transform
from dicenet.data.boxes import BoxedPictures, BoxedSample, Boxes, BoxTransform
from dicenet.data.detection import open_detection_data
from dicenet.data.samples import LoaderSettings, evenly_spread
from dicenet.data.transforms import Preprocessing
from dicenet.engine.console import say, say_what_was_left_out, some
from dicenet.engine.fit import check_device, make_trainer
from dicenet.engine.run_folder import check_free, default_run_folder, new_run_folder
from dicenet.errors import ConfigError, DataError
from dicenet.models.detection import DetectionNetwork
from dicenet.tasks.arguments import default_workers
from dicenet.tasks.detect.drawing import detection_sheet, precision_recall_plot, with_boxes
from dicenet.tasks.detect.task import TASK, DetectTask, check_precision
from dicenet.tasks.detect.trained import Detector, check_thresholds, class_names_of, load_detector
from dicenet.tasks.devices import for_inference
from dicenet.tasks.drawing import picture_bytes, png
from dicenet.weights.files import write_bytes, write_json

#: Boxes that are less sure are judged, but not drawn.
_DRAWN_SCORE = 0.4
_SCORES = ("map", "map50", "map75", "map_small", "map_medium", "map_large", "mar_100", "map50_voc07", "map50_voc10")


def evaluate(
    weights: str,
    data: str,
    split: str | None = None,
    out: str | None = None,
    img_size: int | tuple[int, int] | None = None,
    score: float = 0.01,
    nms: float = 0.45,
    draw: int = 10,
    batch_size: int = 16,
    workers: int | None = None,
    device: str = "auto",
    precision: str = "32-true",
    optimize: bool = True,
) -> dict[str, Any]:
    """Judge a detector on pictures with boxes.

    Args:
        weights: of the detector: a file of any known format, or the name of an official checkpoint.
        data: folder of a data set, as for training; classes are matched by name.
        split: part to judge on; the first there is of test, val, all if not given.
        out: folder for the results, new or empty; runs/detect/evaluate-<date>-<time> if not given.
        img_size: another input size in pixels, or [height, width], than the one saved with the weights.
        score: boxes must be surer than this.
        nms: boxes that overlap a surer one of their class by more (IoU) are left out.
        draw: how many pictures to show with true and found boxes.
        batch_size: pictures at a time.
        workers: processes that read pictures.
        device: auto, cpu, cuda or mps.
        precision: Lightning's, such as bf16-mixed.
        optimize: run an optimized copy of the network on the CPU in float32; the same results, faster.

    Returns:
        What results.json holds: map (COCO, IoU 0.5 to 0.95), map50, map75, by size, mar_100, map50_voc07 (11 points),
        map50_voc10, classes, pictures_per_second.
    """
    check_device(device)
    thresholds = check_thresholds(score, nms)
    check_free(out)
    settings = LoaderSettings(batch_size, default_workers() if workers is None else workers)
    console = Console()
    net, preprocessing = load_detector(weights, img_size)
    dataset = open_detection_data(data)
    split, part = dataset.evaluation_part(split)
    order = _class_order(dataset.class_names, net, weights)
    names = class_names_of(net) if "label_names" in net.pretrained_cfg else dataset.class_names
    folder = new_run_folder(out, default_run_folder(TASK, "evaluate"))
    trainer = make_trainer(
        accelerator=device,
        devices=1,
        precision=check_precision(precision),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=console.is_terminal,
    )
    root = trainer.strategy.root_device
    used = for_inference(net, root, trainer.precision, optimize)
    task = DetectTask(used, names, thresholds=thresholds, plus_one=dataset.plus_one)
    started = time.perf_counter()
    trainer.test(task, part.loader(_transform(preprocessing, order), False, settings), verbose=False)
    seconds = time.perf_counter() - started
    scores = task.all_scores()
    results = {
        "task": TASK,
        "weights": str(weights),
        "data": data,
        "layout": dataset.layout,
        "split": split,
        "pictures": len(part),
        "left_out": dict(part.left_out()),
        "input_size": list(preprocessing.input_size),
        "score": score,
        "nms": nms,
        **{key: scores[key] for key in (*_SCORES, "loss")},
        "classes": _class_table(scores, names, order),
        "pictures_per_second": len(part) / seconds,
        "errors": [{"path": name, "reason": reason} for name, reason in task.bad_pictures.items()],
    }
    write_json(folder / "results.json", results)
    write_bytes(folder / "precision_recall.png", png(precision_recall_plot(task.metrics.curves(), names)))
    if draw > 0:
        shown = replace(thresholds, score=max(score, _DRAWN_SCORE))
        detector = Detector(used, net.priors, preprocessing, root, shown)
        _draw(part, draw, detector, order, names, folder / "pictures.png")
    _print_results(results, folder, console)
    return results


def _class_order(data_names: Sequence[str], net: DetectionNetwork, weights: str) -> list[int]:
    """For each class of the data that of the network of the same name, or number where the network knows no names.

    Raises ConfigError if the data has classes that the network does not know.
    """
    names = class_names_of(net)
    if "label_names" not in net.pretrained_cfg and len(data_names) == len(names):
        return list(range(len(names)))
    if unknown := [name for name in data_names if name not in names]:
        raise ConfigError(
            f"{weights} was trained for {len(names)} classes ({some(names)}), the data has {len(data_names)}, among "
            f"them unknown ones: {some(unknown)}. Train from it with --weights"
        )
    return [names.index(name) for name in data_names]


def _in_order(boxes: Boxes, order: Sequence[int]) -> Boxes:
    """Boxes with the classes of the network."""
    return replace(boxes, labels=np.asarray(order, np.int64)[boxes.labels])


def _transform(preprocessing: Preprocessing, order: Sequence[int]) -> BoxTransform:
    return partial(_prepared, evaluation_box_transform(preprocessing), order)


def _prepared(
    prepare: BoxTransform, order: Sequence[int], picture: Image.Image, boxes: Boxes
) -> tuple[Tensor, dict[str, Tensor]]:
    return prepare(picture, _in_order(boxes, order))


def _class_table(scores: dict[str, Any], names: Sequence[str], order: Sequence[int]) -> list[dict[str, Any]]:
    """Per class of the data: number of objects, average precisions."""
    columns = {
        "objects": "objects_per_class",
        "map": "ap_per_class",
        "map50": "ap50_per_class",
        "map50_voc07": "ap50_voc07_per_class",
        "map50_voc10": "ap50_voc10_per_class",
    }
    return [
        {
            "class": names[index],
            **{column: scores[key][index] for column, key in columns.items()},
        }
        for index in order
    ]


def _draw(
    part: BoxedPictures, count: int, detector: Detector, order: Sequence[int], names: Sequence[str], path: Path
) -> None:
    rows = _rows([part.samples[index] for index in evenly_spread(len(part), count)], detector, order, names)
    write_bytes(path, picture_bytes(detection_sheet(rows), "PNG"))


def _rows(
    samples: Sequence[BoxedSample], detector: Detector, order: Sequence[int], names: Sequence[str]
) -> Iterator[tuple[str, Image.Image, Image.Image]]:
    """Names, and pictures with the true boxes and with those that are found."""
    for sample in samples:
        try:
            picture = sample.read()
        except DataError:
            continue  # named with the results
        truth = _in_order(sample.boxes, order)
        captions = [names[label] for label in truth.labels]
        true = with_boxes(picture, truth.boxes, truth.labels.tolist(), captions)
        yield Path(sample.name).stem, true, drawn_detections(picture, detector, names)


def drawn_detections(picture: Any, detector: Callable[[Any], Any], names: Sequence[str]) -> Any:
    """A picture with what a detector finds in it."""
    found = detector(picture)
    labels, scores = found["labels"].tolist(), found["scores"].tolist()
    captions = [f"{names[label]} {100 * score:.0f}" for label, score in zip(labels, scores, strict=True)]
    return with_boxes(picture, found["boxes"].tolist(), labels, captions)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _print_results(results: dict[str, Any], folder: Path, console: Console) -> None:
    table = Table()
    table.add_column("class")
    titles = {"map": "mAP@[.5:.95]", "map50": "mAP@.5", "map50_voc07": "VOC07", "map50_voc10": "VOC10"}
    for column in ("objects", *titles.values()):
        table.add_column(column, justify="right")
    for row in results["classes"]:
        table.add_row(escape(row["class"]), str(row["objects"]), *(_percent(row[column]) for column in titles))
    console.print(table)
    say_what_was_left_out(console, {e["path"]: e["reason"] for e in results["errors"]})
    for reason, count in results["left_out"].items():
        say(console, f"{count} {reason}")
    judged = results["pictures"] - len(results["errors"])
    say(
        console,
        f"{judged} pictures of {results['data']} ({results['layout']}, {results['split']}): mAP@[.5:.95] "
        f"{_percent(results['map'])}, mAP@.5 {_percent(results['map50'])}, VOC07 {_percent(results['map50_voc07'])}, "
        f"{results['pictures_per_second']:.1f} pictures a second; {folder / 'results.json'}",
    )
