"""Does accuracy fall apart off the trained size (paper, section 3.3)? Multiply-adds and top-1 against the input size.

bash benchmarks/sizes.sh [DATA]    # trains both networks first; about an hour on 2 cores
python benchmarks/sizes.py ../shared/data/cifar10 results/sizes.csv docs/pictures/sizes.png RUN_FOLDER...

A network with DiCE units is judged both ways: its maps scaled as they pass, and its kernels resized. One without has
nothing that belongs to a size: what it loses is the pictures' doing.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

import dicenet
from dicenet.analysis.count import count
from dicenet.data.classification import open_classification_data
from dicenet.data.samples import LoaderSettings
from dicenet.data.transforms import Preprocessing, evaluation_transform
from dicenet.engine.machine import machine, write_csv
from dicenet.engine.run_folder import BEST, read_config
from dicenet.tasks.drawing import png
from dicenet.weights.files import write_bytes

SIZES = (32, 48, 56, 64, 72, 80, 96, 128)
COLOURS = {"as it is": "#71717a", "maps scaled": "#2563eb", "kernels resized": "#0d9488"}


def top1(net: torch.nn.Module, data: str) -> float:
    """Top-1 on the test part at the network's input size."""
    transform = evaluation_transform(Preprocessing.of(net.pretrained_cfg))
    _, part = open_classification_data(data).evaluation_part("test")
    right = total = 0
    fast = dicenet.optimize_for_inference(net)
    for batch in part.loader(transform, False, LoaderSettings(200, 1)):
        right += (fast(batch["image"]).argmax(1) == batch["target"]).sum().item()
        total += len(batch["target"])
    return right / total


def prepared(run: str, way: str, size: int) -> torch.nn.Module:
    net = dicenet.load(Path(run) / BEST).eval()
    net.rebase(size) if way == "kernels resized" else net.set_input_size(size)
    return net


def measure(run: str, data: str) -> list[dict[str, Any]]:
    net = dicenet.load(Path(run) / BEST)
    bound = any(isinstance(module, dicenet.DimConv) for module in net.modules())
    config = read_config(Path(run))
    rows = []
    for way in ("maps scaled", "kernels resized") if bound else ("as it is",):
        for size in SIZES:
            net = prepared(run, way, size)
            rows.append(
                {
                    "network": net.architecture,
                    "way": way,
                    "trained_size": config["img_size"],
                    "epochs": config["epochs"],
                    "seed": config["seed"],
                    "input_size": size,
                    "macs": count(net, (3, size, size)).macs,
                    "top1": round(top1(net, data), 4),
                    **machine(),
                }
            )
            print(rows[-1], flush=True)
    return rows


def plot(rows: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for network, way in dict.fromkeys((row["network"], row["way"]) for row in rows):
        own = [row for row in rows if (row["network"], row["way"]) == (network, way)]
        sizes = [row["input_size"] for row in own]
        style = {"color": COLOURS[way], "marker": "o", "label": f"{network}, {way}", "markersize": 4}
        left.plot(sizes, [row["macs"] / 1e6 for row in own], **style)
        right.plot(sizes, [100 * row["top1"] for row in own], **style)
    left.set(xlabel="input size (pixels)", ylabel="multiply-adds (M)")
    right.set(xlabel="input size (pixels)", ylabel="top-1 (%), CIFAR-10 test pictures, enlarged", ylim=(0, None))
    for axes in (left, right):
        axes.axvline(rows[0]["trained_size"], color="#a1a1aa", linestyle=":", label="trained size")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(fontsize=8, frameon=False)
    return figure


def main(data: str, table: str, picture: str, *runs: str) -> None:
    rows = [row for run in runs for row in measure(run, data)]
    write_csv(Path(table), rows)
    write_bytes(Path(picture), png(plot(rows)))


if __name__ == "__main__":
    main(*sys.argv[1:])
