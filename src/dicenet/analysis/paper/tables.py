"""The paper's tables with our counts beside its own, as plain rows and in several forms."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

import dicenet
from dicenet.analysis.count import count
from dicenet.analysis.paper.entries import TABLES, TOLERANCE, Entry, Source, build, size_of
from dicenet.analysis.paper.memory import map_memory

#: Heading of each column after the labels, and how its value is written where people read it.
_COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "network": ("network here", str),
    "input": ("input", str),
    "macs": ("MACs (M)", "{:.2f}".format),
    "paper_macs": ("paper (M)", "{:g}".format),
    "deviation": ("off", "{:+.1%}".format),
    "parameters": ("parameters (M)", "{:.3f}".format),
    "paper_parameters": ("paper (M)", "{:g}".format),
    "peak_maps": ("maps at once (MB)", "{:.2f}".format),
    "all_maps": ("all maps (MB)", "{:.1f}".format),
    "paper_top1": ("paper's top-1 (%)", "{:.1f}".format),
    "measured": ("measured here", str),
    "note": ("note", str),
}
#: The same of columns that only Tables 6 and 7 and figures have.
_ELSEWHERE: dict[str, tuple[str, Callable[[Any], str]]] = {
    "gmacs": ("MACs (B)", "{:.3f}".format),
    "paper_gmacs": ("paper (B)", "{:.1f}".format),
    "published_map": ("published mAP (%)", str),
    "map_of": ("whose mAP", str),
    "published_f1_class": ("paper's class-wise F1 (%)", "{:.2f}".format),
    "published_f1_overall": ("paper's overall F1 (%)", "{:.2f}".format),
    "published_mean_iou": ("published mean IoU (%, VOC val)", "{:.2f}".format),
    "measured_mean_iou": ("mean IoU measured here (%, few pictures)", "{:.2f}".format),
    "measured_pictures": ("pictures", str),
}
RESULTS = Path(dicenet.__file__).parents[2] / "results"


class Counted(NamedTuple):
    """What a network costs: millions of multiply-adds and parameters; megabytes of maps at once, and made in all."""

    input: int
    macs: float
    parameters: float
    peak_maps: float
    all_maps: float


def _count(source: Source) -> Counted:
    net = build(source)
    size = size_of(source, net)
    cost = count(net, (3, size, size))
    maps = map_memory(net, (3, size, size))
    return Counted(size, cost.macs / 1e6, cost.parameters / 1e6, maps.peak / 1e6, maps.total / 1e6)


_COUNTED: dict[str, Counted] = {}


def counted(source: Source) -> Counted:
    """Cost of a network of a table, counted once in a process: some stand in several tables."""
    key = repr(source)
    if key not in _COUNTED:
        _COUNTED[key] = _count(source)
    return _COUNTED[key]


def committed(name: str) -> list[dict[str, str]]:
    """The rows of a table of results; none where the package is not run from its repository."""
    path = RESULTS / name
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@cache
def _measured() -> dict[tuple[str, ...], str]:
    """Our own accuracies as committed, by name or by labels; none where the package is not run from its repository."""
    sizes = [row for row in committed("sizes.csv") if row["input_size"] == row["trained_size"]]
    units = committed("units_cifar10.csv")
    found: list[tuple[tuple[str, ...], dict[str, str], str]]
    found = [((row["network"],), row, row["input_size"]) for row in sizes]
    found += [((row["architecture"], row["unit"]), row, "32") for row in units]
    return {
        key: f"{100 * float(row['top1']):.1f} % (CIFAR-10, {size} pixels, {row['epochs']} epochs)"
        for key, row, size in found
    }


def _row(columns: Sequence[str], entry: Entry) -> dict[str, Any]:
    labels = dict(zip(columns, (*entry.labels, *[""] * len(columns)), strict=False))
    row: dict[str, Any] = {**labels, **dict.fromkeys(_COLUMNS)}
    row |= {"paper_macs": entry.macs, "paper_parameters": entry.parameters, "paper_top1": entry.top1}
    row["note"] = entry.note or None
    if entry.source is not None:
        cost = counted(entry.source)
        row |= cost._asdict() | {"network": str(entry.source), "deviation": cost.macs / entry.macs - 1}
        row["measured"] = _measured().get((entry.source.name,)) or _measured().get(entry.labels)
    return row


def table_rows(
    number: int, track: Callable[[Iterable[Entry]], Iterable[Entry]] = lambda entries: entries
) -> list[dict[str, Any]]:
    """The rows of a table of the paper, counted now.

    Args:
        number: 1 to 5.
        track: goes through the entries, to show progress.
    """
    table = TABLES[number]
    return [_row([_label(column) for column in table.columns], entry) for entry in track(table.entries)]


def _label(column: str) -> str:
    """Key of a label; "network" is the network here."""
    return "paper_network" if column == "network" else column


def unexplained(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that are off by more than 3 % without a reason."""
    return [
        row for row in rows if row["deviation"] is not None and abs(row["deviation"]) > TOLERANCE and not row["note"]
    ]


# -- forms


class Page(NamedTuple):
    """Rows as people read them: a title, headings, text in cells, and what must be said below."""

    title: str
    headings: list[str]
    cells: list[list[str]]
    note: str = ""


def readable(rows: Sequence[dict[str, Any]], title: str, note: str = "") -> Page:
    """Rows with the columns that have anything in them."""
    used = [key for key in rows[0] if any(row[key] not in (None, "") for row in rows)]
    known = _COLUMNS | _ELSEWHERE
    formats = {key: known.get(key, (key.removeprefix("paper_").replace("_", " "), str)) for key in used}
    cells = [["" if row[key] is None else formats[key][1](row[key]) for key in used] for row in rows]
    return Page(title, [formats[key][0] for key in used], cells, note)


def _terminal(page: Page) -> str:
    table = Table(title=page.title, caption=page.note or None)
    for heading, *cells in zip(page.headings, *page.cells, strict=True):
        numeric = all(cell.lstrip("+-").rstrip("%").replace(".", "").isdigit() for cell in cells if cell)
        table.add_column(heading, justify="right" if numeric else "left")
    for row in page.cells:
        table.add_row(*row)
    text = io.StringIO()
    Console(file=text, width=220).print(table)
    return text.getvalue()


def _markdown(page: Page) -> str:
    lines = [f"| {' | '.join(page.headings)} |", f"|{'---|' * len(page.headings)}"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in page.cells]
    return "\n".join([f"### {page.title}", "", *lines, *(["", page.note] if page.note else []), ""])


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


FORMATS = ("terminal", "markdown", "csv", "json")


def write(rows: Sequence[dict[str, Any]], title: str, note: str, form: str) -> str:
    """Rows as text, in one of :data:`FORMATS`; CSV and JSON hold all columns and exact values."""
    if form == "csv":
        return _csv(rows)
    if form == "json":
        return json.dumps(list(rows), indent=2) + "\n"
    page = readable(rows, title, note)
    return _markdown(page) if form == "markdown" else _terminal(page)
