"""Table 7: multi-label classification on MS COCO, the networks counted beside the paper's F1."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from dicenet.analysis.paper.entries import Source
from dicenet.analysis.paper.tables import counted

TITLE = "Table 7. Multi-label classification on MS COCO"
NOTE = (
    "Networks of 80 classes, counted for one picture of 224x224. F1 is the paper's, in per cent: overall from the sums "
    "of all counts, class-wise the mean of the classes' F1. None was measured here: of COCO's pictures only a few were "
    "at hand. Where a cell is empty, the paper's figure was not at hand. Its 298 M are those of the network of 1000 "
    "classes. Nor was it at hand which widths of ESPNetv2 and ShuffleNetV2 the paper takes: those here have about as "
    "many multiply-adds."
)
#: Categories of MS COCO.
CLASSES = 80


class MultilabelRow(NamedTuple):
    """A network of the table: what the paper calls it, which one here, and the paper's figures (M, %)."""

    network: str
    source: Source
    f1_overall: float
    f1_class: float | None = None
    macs: float | None = None


ROWS = (
    MultilabelRow(
        "ShuffleNetV2", Source("torchvision", "shufflenet_v2_x1_5", {"num_classes": CLASSES}), f1_overall=67.58
    ),
    MultilabelRow("ESPNetv2", Source("dicenet", "espnetv2_200", {"num_classes": CLASSES}), f1_overall=69.23),
    MultilabelRow("DiCENet", Source("dicenet", "dicenet_240", {"num_classes": CLASSES}), 73.41, 66.92, 298),
)


def table_7_rows(
    track: Callable[[Iterable[MultilabelRow]], Iterable[MultilabelRow]] = lambda rows: rows,
) -> list[dict[str, Any]]:
    """One row for each network, counted now.

    Args:
        track: goes through the rows, to show progress.
    """
    return [_row(row) for row in track(ROWS)]


def _row(row: MultilabelRow) -> dict[str, Any]:
    cost = counted(row.source)
    return {
        "paper_network": row.network,
        "network": str(row.source),
        "macs": cost.macs,
        "paper_macs": row.macs,
        "deviation": None if row.macs is None else cost.macs / row.macs - 1,
        "parameters": cost.parameters,
        "published_f1_class": row.f1_class,
        "published_f1_overall": row.f1_overall,
    }
