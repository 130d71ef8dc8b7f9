"""Judging a multi-label classifier."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dicenet.data.labels import SIZES
from dicenet.data.multilabel import open_multilabel_data
from dicenet.data.samples import LoaderSettings, Sample, evenly_spread
from dicenet.data.transforms import Preprocessing, evaluation_transform
from dicenet.engine.console import say, say_what_was_left_out
from dicenet.engine.fit import check_device, make_trainer
from dicenet.engine.run_folder import check_free, default_run_folder, new_run_folder
from dicenet.errors import DataError
from dicenet.models.network import Network
from dicenet.tasks.arguments import default_workers
from dicenet.tasks.classifier import class_names_of, class_order, load_classifier, logits_of
from dicenet.tasks.devices import for_inference
from dicenet.tasks.drawing import picture_bytes, png
from dicenet.tasks.multilabel.data import say_what_lacks, tracked
from dicenet.tasks.multilabel.drawing import class_plot, judged_picture, label_sheet
from dicenet.tasks.multilabel.metrics import DEFAULT_THRESHOLD, logit_threshold
from dicenet.tasks.multilabel.predict import labels_of
from dicenet.tasks.multilabel.task import TASK, MultilabelTask
from dicenet.weights.files import write_bytes, write_json

_RATES = ("f1", "precision", "recall")
_SCORES = (
    *(f"{rate}_overall" for rate in _RATES),
    *(f"{rate}_class" for rate in _RATES),
    "map",
    *(f"recall_{size}" for size in SIZES),
    "loss",
)
_MOST_ROWS = 50


def evaluate(
    weights: str,
    data: str,
    split: str | None = None,
    out: str | None = None,
    img_size: int | tuple[int, int] | None = None,
    threshold: float = DEFAULT_THRESHOLD,
    ignore_id: int | tuple[int, ...] = (),
    draw: int = 8,
    batch_size: int = 128,
    workers: int | None = None,
    device: str = "auto",
    precision: str = "32-true",
    optimize: bool = True,
) -> dict[str, Any]:
    """Judge a multi-label classifier on pictures whose classes are known.

    Args:
        weights: of the multi-label classifier: a file that 'train multilabel' wrote.
        data: folder of a data set, as for training; classes are matched by name, and only the data's are judged.
        split: part to judge on; the first there is of test, val, all if not given.
        out: folder for the results, new or empty; runs/multilabel/evaluate-<date>-<time> if not given.
        img_size: another input size in pixels, or [height, width], than the one saved with the weights.
        threshold: a class counts as found where its probability is above this.
        ignore_id: number in masks that is void, beside 255; several as [0,7].
        draw: how many pictures to show with what was found, rightly or not, and missed.
        batch_size: pictures at a time.
        workers: processes that read pictures.
        device: auto, cpu, cuda or mps.
        precision: Lightning's, such as bf16-mixed.
        optimize: run an optimized copy of the network on the CPU in float32; the same results, faster.

    Returns:
        What results.json holds: f1, precision and recall (_overall, of all labels; _class, the mean of the classes'),
        map, recall_small, recall_medium, recall_large, loss, classes, pictures_per_second, unreadable pictures.
    """
    check_device(device)
    limit = logit_threshold(threshold)
    check_free(out)
    settings = LoaderSettings(batch_size, default_workers() if workers is None else workers)
    console = Console()
    net, preprocessing = load_classifier(weights, TASK, img_size)
    dataset = open_multilabel_data(data, ignore_id, tracked(console))
    order = class_order(dataset.class_names, net, weights)
    names = class_names_of(net)
    split, part = dataset.evaluation_part(split)
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
    task = MultilabelTask(used, names, threshold=threshold, order=order)
    started = time.perf_counter()
    trainer.test(task, part.loader(evaluation_transform(preprocessing), False, settings), verbose=False)
    seconds = time.perf_counter() - started
    scores = task.all_scores()
    results = {
        "task": TASK,
        "weights": str(weights),
        "data": data,
        "layout": dataset.layout,
        "split": split,
        "pictures": len(part),
        "left_out": dict(part.left_out),
        "input_size": list(preprocessing.input_size),
        "threshold": threshold,
        **{key: scores[key] for key in _SCORES},
        "classes": _class_table(scores, dataset.class_names),
        "pictures_per_second": len(part) / seconds,
        "errors": [{"path": name, "reason": reason} for name, reason in task.bad_pictures.items()],
    }
    write_json(folder / "results.json", results)
    write_bytes(folder / "classes.png", png(class_plot(results["classes"], threshold)))
    if draw > 0:
        samples = [part.samples[index] for index in evenly_spread(len(part), draw)]
        judge = _Judge(used.to(root), preprocessing, root, limit, dataset.class_names, order)
        write_bytes(folder / "pictures.png", picture_bytes(label_sheet(judge.pictures(samples)), "PNG"))
    say_what_lacks(console, part, str(split))
    _print_results(results, folder, console)
    return results


def _class_table(scores: dict[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """Per class of the data: pictures that show it and in which it was found, scores; ap is None without pictures."""
    columns = {
        "pictures": "shown_per_class",
        "found": "found_per_class",
        **{rate: f"{rate}_per_class" for rate in _RATES},
        "ap": "ap_per_class",
    }
    return [
        {"class": name, **{column: scores[key][index] for column, key in columns.items()}}
        for index, name in enumerate(names)
    ]


class _Judge:
    """Draws pictures with what was found in them, beside the truth."""

    def __init__(
        self,
        net: Network,
        preprocessing: Preprocessing,
        device: torch.device,
        limit: float,
        names: Sequence[str],
        order: Sequence[int],
    ) -> None:
        self.net, self.preprocessing, self.device = net, preprocessing, device
        self.limit, self.names, self.order = limit, names, list(order)

    def pictures(self, samples: Sequence[Sample]) -> Iterator[Image.Image]:
        """Those that can be read."""
        for sample in samples:
            try:
                picture = sample.read()
            except DataError:
                continue  # named with the results
            (logits,) = logits_of(self.net, self.preprocessing, [(Path(sample.name), picture)], self.device)
            found = labels_of(logits[self.order], self.names, self.limit, len(self.names))
            others = found["top"][len(found["labels"]) :]
            yield judged_picture(picture, found["labels"], others, set(sample.target[0].nonzero()[0].tolist()))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _print_results(results: dict[str, Any], folder: Path, console: Console) -> None:
    rows = [row for row in results["classes"] if row["pictures"] or row["found"]]
    shown = rows if len(rows) <= _MOST_ROWS else sorted(rows, key=lambda row: row["f1"])[:20]
    table = Table(title=None if len(shown) == len(rows) else "the 20 classes with the lowest F1")
    table.add_column("class")
    for column in ("pictures", "found in", "F1", "precision", "recall", "AP"):
        table.add_column(column, justify="right")
    for row in shown:
        values = [_percent(row[key]) for key in (*_RATES, "ap")]
        table.add_row(escape(row["class"]), str(row["pictures"]), str(row["found"]), *values)
    console.print(table)
    say_what_was_left_out(console, {e["path"]: e["reason"] for e in results["errors"]})
    if any(results[f"recall_{size}"] is not None for size in SIZES):
        sizes = ", ".join(f"{size} {_percent(results[f'recall_{size}'])}" for size in SIZES)
        say(console, f"recall by size of objects: {sizes}")
    judged = results["pictures"] - len(results["errors"])
    say(
        console,
        f"{judged} pictures of {results['data']} ({results['layout']}, {results['split']}): F1 overall "
        f"{_percent(results['f1_overall'])}, mean of the classes {_percent(results['f1_class'])}, mAP "
        f"{_percent(results['map'])}, {results['pictures_per_second']:.1f} pictures a second; "
        f"{folder / 'results.json'}",
    )
