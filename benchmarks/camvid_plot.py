"""The three trainings on CamVid as one picture: validation mean IoU over the epochs, and IoU of each class on test.

python benchmarks/camvid_plot.py    # reads results/camvid_*.csv, writes docs/pictures/camvid.png
"""

import csv
from pathlib import Path

from matplotlib.figure import Figure

from dicenet.tasks.drawing import png
from dicenet.weights.files import write_bytes

REPOSITORY = Path(__file__).parents[1]
RUNS = {
    "camvid_voc": ("dicenet_100, official VOC weights", "#2563eb"),
    "camvid_random": ("dicenet_100, random weights", "#93c5fd"),
    "camvid_peer": ("ShuffleNetV2 of equal cost, random weights", "#f59e0b"),
}


def rows(name: str) -> list[dict[str, str]]:
    """Rows of a table of results."""
    with (REPOSITORY / f"results/{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    """Draw."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, (name, (label, colour)) in enumerate(RUNS.items()):
        (result,), epochs = rows(name), rows(f"{name}_epochs")
        values = [100 * float(epoch["val_mean_iou"]) for epoch in epochs]
        left.plot([int(epoch["epoch"]) for epoch in epochs], values, marker=".", color=colour, label=label)
        classes = {key.removeprefix("iou_"): 100 * float(value) for key, value in result.items() if "iou_" in key[:4]}
        at = [index + 0.27 * (place - 1) for index in range(len(classes))]
        total = f"{100 * float(result['mean_iou']):.1f} %"
        right.bar(at, list(classes.values()), width=0.27, color=colour, label=f"{total} on average")
        right.set_xticks(range(len(classes)), list(classes), rotation=60, ha="right")
    left.set(xlabel="epoch", ylabel="mean IoU on val (%)")
    right.set(ylabel="IoU on test (%)", ylim=(0, 119))  # room for the legend
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    write_bytes(REPOSITORY / "docs/pictures/camvid.png", png(figure))


if __name__ == "__main__":
    main()
