"""Judging a classifier."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from dicenet.data.classification import open_classification_data
from dicenet.data.samples import LoaderSettings
from dicenet.data.transforms import evaluation_transform
from dicenet.engine.console import say, say_what_was_left_out
from dicenet.engine.fit import check_device, make_trainer
from dicenet.engine.run_folder import check_free, default_run_folder, new_run_folder
from dicenet.models.network import Network
from dicenet.tasks.arguments import default_workers
from dicenet.tasks.classifier import class_names_of, class_order, load_classifier
from dicenet.tasks.classify.task import TASK, ClassifyTask
from dicenet.tasks.devices import for_inference
from dicenet.tasks.drawing import confusion_plot, png
from dicenet.weights.files import write_bytes, write_json


def evaluate(
    weights: str,
    data: str,
    split: str | None = None,
    out: str | None = None,
    img_size: int | tuple[int, int] | None = None,
    batch_size: int = 128,
    workers: int | None = None,
    device: str = "auto",
    precision: str = "32-true",
    optimize: bool = True,
) -> dict[str, Any]:
    """Judge a classifier on pictures of known classes.

    Args:
        weights: of the classifier: a file of any known format, or the name of an official checkpoint.
        data: folder of a data set, or "digits", as for training; classes are matched by name.
        split: train, val, test or all; the first there is of test, val, all if not given.
        out: folder for the results, new or empty; runs/classify/evaluate-<date>-<time> if not given.
        img_size: another input size in pixels, or [height, width], than the one saved with the weights.
        batch_size: pictures at a time.
        workers: processes that read pictures.
        device: auto, cpu, cuda or mps.
        precision: Lightning's, such as bf16-mixed.
        optimize: run an optimized copy of the network on the CPU in float32; the same results, faster.

    Returns:
        What results.json holds: top1, top5, loss, the table of classes, the confusion matrix, unreadable pictures.
    """
    check_device(device)
    check_free(out)
    settings = LoaderSettings(batch_size, default_workers() if workers is None else workers)
    console = Console()
    net, preprocessing = load_classifier(weights, TASK, img_size)
    dataset = open_classification_data(data)
    split, part = dataset.evaluation_part(split)
    order = class_order(dataset.class_names, net, weights)
    folder = new_run_folder(out, default_run_folder(TASK, "evaluate"))
    trainer = make_trainer(
        accelerator=device,
        devices=1,
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=console.is_terminal,
    )
    used = for_inference(net, trainer.strategy.root_device, trainer.precision, optimize)
    task = _ReorderedTask(used, class_names_of(net), order)
    trainer.test(task, part.loader(evaluation_transform(preprocessing), False, settings), verbose=False)
    scores = task.scores()
    results = {
        "task": TASK,
        "weights": str(weights),
        "data": data,
        "split": split,
        "pictures": len(part),
        "input_size": list(preprocessing.input_size),
        **scores,
        "classes": _class_table(task.confusion.compute(), task.class_names, order),
        "confusion": task.confusion.compute().tolist() if net.num_classes <= 100 else None,
        "errors": [{"path": name, "reason": reason} for name, reason in task.bad_pictures.items()],
    }
    write_json(folder / "results.json", results)
    if net.num_classes <= 100:
        plot = confusion_plot(task.confusion.compute().cpu().numpy(), task.class_names)
        write_bytes(folder / "confusion.png", png(plot))
    _print_results(results, folder, console)
    return results


class _ReorderedTask(ClassifyTask):
    """Judges on data whose classes stand in another order than the network's."""

    def __init__(self, net: Network, class_names: Sequence[str], order: Sequence[int]) -> None:
        super().__init__(net, class_names)
        self.register_buffer("order", torch.tensor(order))

    def truth(self, batch: dict[str, Any]) -> Tensor:
        """The class of each picture, as the network numbers them."""
        return self.order[batch["target"]]


def _class_table(confusion: Tensor, names: Sequence[str], order: Sequence[int]) -> list[dict[str, Any]]:
    """Per class of the data: pictures, top1 (recall), precision, f1; None where there is nothing to divide by."""
    rows = []
    for index in order:
        right = int(confusion[index, index])
        pictures, predicted = int(confusion[index].sum()), int(confusion[:, index].sum())
        rows.append(
            {
                "class": names[index],
                "pictures": pictures,
                "top1": right / pictures if pictures else None,
                "precision": right / predicted if predicted else None,
                "f1": 2 * right / (pictures + predicted) if pictures + predicted else None,
            }
        )
    return rows


def _print_results(results: dict[str, Any], folder: Path, console: Console) -> None:
    rows = results["classes"]
    shown = rows if len(rows) <= 50 else sorted(rows, key=lambda row: (row["top1"] is None, row["top1"]))[:20]
    table = Table(title=None if len(shown) == len(rows) else "the 20 classes with the lowest top-1")
    table.add_column("class")
    for column in ("pictures", "top-1", "precision", "f1"):
        table.add_column(column, justify="right")
    for row in shown:
        values = ["-" if row[key] is None else f"{100 * row[key]:.1f} %" for key in ("top1", "precision", "f1")]
        table.add_row(escape(row["class"]), str(row["pictures"]), *values)
    console.print(table)
    say_what_was_left_out(console, {e["path"]: e["reason"] for e in results["errors"]})
    judged = results["pictures"] - len(results["errors"])
    say(
        console,
        f"{judged} pictures of {results['data']} ({results['split']}): top-1 {100 * results['top1']:.2f} %, "
        f"top-5 {100 * results['top5']:.2f} %, loss {results['loss']:.4f}; {folder / 'results.json'}",
    )
