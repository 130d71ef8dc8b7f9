"""Figure 8: mean IoU on PASCAL VOC against multiply-adds, for segmentation networks of DiCENet and ESPNetv2."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import timm
from matplotlib.figure import Figure

from dicenet.analysis.count import count
from dicenet.analysis.paper.tables import committed
from dicenet.models.segmentation import create_segmentation_model
from dicenet.weights.catalogue import find

SIZES = (256, 384)
CLASSES = 21
#: What :func:`figure_8_rows` adds from results: written by benchmarks/voc_mini.py.
MEASURED = "voc_mini.csv"
TITLE = "Figure 8. Mean IoU on PASCAL VOC against multiply-adds"
NOTE = (
    "Published: the authors' mean IoU on the 1,449 pictures of PASCAL VOC 2012's val list. Measured here: the official "
    "checkpoint on the few of these pictures that were at hand, without four of the classes; it does not compare with "
    "the published."
)
_FAMILIES = {"dicenet": ("DiCENet", "#2563eb"), "espnetv2": ("ESPNetv2", "#f59e0b")}
_MARKERS = {256: "o", 384: "s"}


class Point(NamedTuple):
    """A network of the figure, and the size of its pictures."""

    name: str
    img_size: int

    @property
    def checkpoint(self) -> str:
        """Name that an official checkpoint of it has."""
        return f"{self.name}.edgenets_voc_{self.img_size}"


def points() -> list[Point]:
    """All widths of both families at both sizes, the narrowest first."""
    names = [name for family in _FAMILIES for name in timm.list_models(f"{family}_*")]
    return [Point(name, size) for size in SIZES for name in names if re.fullmatch(r"[a-z0-9]+_\d+", name)]


def _published(checkpoint: str) -> dict[str, float | None]:
    """What the authors give for an official checkpoint: its multiply-adds (M), mean IoU (%) on PASCAL VOC's val."""
    entry = find(checkpoint)
    if entry is None:
        return {"paper_macs": None, "published_mean_iou": None}
    macs, mean_iou = re.match(r"[\d.]+", entry.cost), re.match(r"mIoU ([\d.]+)", entry.metric)
    assert macs
    assert mean_iou
    return {"paper_macs": float(macs[0]), "published_mean_iou": float(mean_iou[1])}


def figure_8_rows(track: Callable[[Iterable[Point]], Iterable[Point]] = lambda found: found) -> list[dict[str, Any]]:
    """One row for each network and size, counted now.

    ``published_mean_iou`` is the authors' on the 1,449 pictures of PASCAL VOC's val list; ``measured_mean_iou`` ours
    on a few of them, with the official checkpoint. The two do not compare: the few lack classes.

    Args:
        track: goes through the networks, to show progress.
    """
    measured = {row["checkpoint"]: row for row in committed(MEASURED)}
    rows = []
    for point in track(points()):
        cost = count(create_segmentation_model(point.name, CLASSES), (3, point.img_size, point.img_size))
        ours = measured.get(point.checkpoint)
        rows.append(
            {
                "network": point.name,
                "input": point.img_size,
                "macs": cost.macs / 1e6,
                "parameters": cost.parameters / 1e6,
                **_published(point.checkpoint),
                "measured_mean_iou": round(100 * float(ours["mean_iou"]), 4) if ours else None,
                "measured_pictures": int(ours["pictures"]) if ours else None,
            }
        )
    return rows


def figure_8(rows: Sequence[dict[str, Any]]) -> Figure:
    """Published values as lines, one for each family and size; ours as open stars."""
    figure = Figure(figsize=(8.5, 5.5), layout="constrained")
    axes = figure.subplots()
    for family, (title, colour) in _FAMILIES.items():
        for size in SIZES:
            own = [row for row in rows if row["network"].startswith(family) and row["input"] == size]
            known = sorted((row["macs"], row["published_mean_iou"]) for row in own if row["published_mean_iou"])
            style = "-" if size == SIZES[-1] else "--"
            label = f"{title} at {size}x{size}, published (VOC 2012 val)"
            axes.plot(*zip(*known, strict=True), style, marker=_MARKERS[size], color=colour, label=label)
        ours = [row for row in rows if row["network"].startswith(family) and row["measured_mean_iou"] is not None]
        if ours:
            pictures, size = ours[0]["measured_pictures"], ours[0]["input"]
            label = f"{title} at {size}x{size}, measured here on {pictures} of its pictures"
            values = [row["measured_mean_iou"] for row in ours]
            macs = [row["macs"] for row in ours]
            axes.scatter(macs, values, s=130, marker="*", facecolors="none", edgecolors=colour, label=label)
    axes.set(xlabel="multiply-adds (M)", ylabel="mean IoU (%)", xscale="log")
    axes.set_xticks([50, 100, 200, 400, 800], labels=["50", "100", "200", "400", "800"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    return figure
