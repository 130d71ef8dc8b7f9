"""The trainings on a data set as one picture: the validation score over the epochs, and each class on test.

python benchmarks/pyramid_plot.py camvid    # or bccd; reads results/NAME_*.csv, writes docs/pictures/NAME.png
"""

import csv
import sys
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from dicenet.tasks.drawing import png
from dicenet.weights.files import write_bytes

REPOSITORY = Path(__file__).parents[1]
COLOURS = ("#2563eb", "#93c5fd", "#f59e0b", "#16a34a")


class Plot(NamedTuple):
    """What is drawn.

    Attributes:
        score: column of the test's result, with ``val_`` before it that of an epoch.
        score_name: in words.
        of_class: start of the columns of each class.
        class_name: what those are, in words.
        runs: names of the tables of results, and what they are called.
    """

    score: str
    score_name: str
    of_class: str
    class_name: str
    runs: dict[str, str]


PLOTS = {
    "camvid": Plot(
        "mean_iou",
        "mean IoU",
        "iou_",
        "IoU",
        {
            "camvid_voc": "dicenet_100, official VOC weights",
            "camvid_random": "dicenet_100, random weights",
            "camvid_peer": "ShuffleNetV2 of equal cost, random weights",
        },
    ),
    "bccd": Plot(
        "map50",
        "mAP@.5",
        "map50_",
        "AP@.5",
        {
            "bccd_voc": "dicenet_100, official VOC weights",
            "bccd_random": "dicenet_100, random weights",
            "bccd_peer": "MobileNetV2 with ssdlite, random weights",
            "bccd_peer_fpnlite": "MobileNetV2 with fpnlite, random weights",
        },
    ),
}


def rows(name: str) -> list[dict[str, str]]:
    """Rows of a table of results."""
    with (REPOSITORY / f"results/{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def main(plot: Plot, path: Path) -> None:
    """Draw."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    width = 0.81 / len(plot.runs)
    for place, ((name, label), colour) in enumerate(zip(plot.runs.items(), COLOURS, strict=False)):
        (result,), epochs = rows(name), rows(f"{name}_epochs")
        values = [100 * float(epoch[f"val_{plot.score}"]) for epoch in epochs]
        left.plot([int(epoch["epoch"]) for epoch in epochs], values, marker=".", color=colour, label=label)
        classes = {
            key.removeprefix(plot.of_class): 100 * float(value)
            for key, value in result.items()
            if key.startswith(plot.of_class) and key.removeprefix(plot.of_class) not in ("voc07", "voc10")
        }
        at = [index + width * (place - (len(plot.runs) - 1) / 2) for index in range(len(classes))]
        total = f"{100 * float(result[plot.score]):.1f} %"
        right.bar(at, list(classes.values()), width=width, color=colour, label=f"{total} on average")
        turned = {"rotation": 60, "ha": "right"} if len(classes) > 6 else {}
        right.set_xticks(range(len(classes)), list(classes), **turned)
    left.set(xlabel="epoch", ylabel=f"{plot.score_name} on val (%)")
    right.set(ylabel=f"{plot.class_name} on test (%)", ylim=(0, 130))  # room for the legend
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    write_bytes(path, png(figure))


if __name__ == "__main__":
    name = sys.argv[1]
    main(PLOTS[name], REPOSITORY / f"docs/pictures/{name}.png")
