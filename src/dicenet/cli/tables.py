"""``dicenet tables WHAT``."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track

from dicenet.analysis.paper import claims, figure7, figure8, figures, table6, table7
from dicenet.analysis.paper.entries import TABLES
from dicenet.analysis.paper.tables import FORMATS, table_rows, write
from dicenet.cli.run import Command
from dicenet.errors import ConfigError
from dicenet.tasks.drawing import png
from dicenet.weights.files import write_bytes

_SUFFIXES = {".md": "markdown", ".csv": "csv", ".json": "json", ".txt": "terminal"}


def _counting(things: Iterable[Any]) -> Iterable[Any]:
    return track(things, "counting", console=Console(stderr=True), transient=True)


def _chosen_format(form: str | None, out: str | None) -> str:
    """The form as asked, or as a file's name says. Raises ConfigError for unknown ones and taken files."""
    if form is not None and form not in FORMATS:
        raise ConfigError(f"--format {form} is unknown: choose one of {', '.join(FORMATS)}")
    _check_new(out)
    return form or _SUFFIXES.get(Path(out).suffix if out else "", "terminal")


def _check_new(out: str | None) -> None:
    if out is not None and Path(out).exists():
        raise ConfigError(f"--out {out} exists: name a new file")


def _show(rows: list[dict[str, Any]], title: str, note: str, form: str, out: str | None) -> None:
    text = write(rows, title, note, form)
    if out is None:
        print(text, end="")
    else:
        write_bytes(Path(out), text.encode())


def _table(title: str, note: str, rows: Callable[[], list[dict[str, Any]]]) -> Callable[..., None]:
    def table(format: str | None = None, out: str | None = None) -> None:
        """Count the networks of a table of the paper, beside the paper's figures.

        Args:
            format: terminal, markdown, csv or json; by the ending of the file, or terminal.
            out: file to write, which must not exist; the terminal if not given.
        """
        form = _chosen_format(format, out)
        _show(rows(), title, note, form, out)

    return table


def _numbered(number: int) -> Callable[..., None]:
    """Of Tables 1 to 5, which have one form."""
    table = TABLES[number]
    return _table(f"Table {number}. {table.title}", table.note, lambda: table_rows(number, _counting))


def _claims(format: str | None = None, out: str | None = None) -> None:
    """Recompute claims of the paper.

    Args:
        format: terminal, markdown, csv or json; by the ending of the file, or terminal.
        out: file to write, which must not exist; the terminal if not given.
    """
    form = _chosen_format(format, out)
    _show(claims.claim_rows(_counting(claims.CLAIMS)), "Claims of the paper", "", form, out)


def _drawn(out: str, format: str | None) -> bool:
    """Whether a figure is to be drawn, not written as a table. Raises ConfigError for a taken file."""
    _check_new(out)
    return format == "png" or (format is None and Path(out).suffix == ".png")


def _figure(
    described: str, title: str, note: str, rows: Callable[[], list[dict[str, Any]]], draw: Callable[[Any], Figure]
) -> Callable[..., None]:
    def figure(out: str, format: str | None = None) -> None:
        form = "png" if _drawn(out, format) else _chosen_format(format, out)
        found = rows()
        if form == "png":
            write_bytes(Path(out), png(draw(found)))
        else:
            _show(found, title, note, form, out)

    figure.__doc__ = f"""{described}, or write the figures behind the drawing.

        Args:
            out: file to write, which must not exist: .png, or .md, .csv, .json for the figures.
            format: png, terminal, markdown, csv or json; by the ending of the file.
        """
    return figure


def _figure4(out: str) -> None:
    """Draw the blocks of the three networks (Figure 4) from their code.

    Args:
        out: PNG file to write, which must not exist.
    """
    _check_new(out)
    if Path(out).suffix != ".png":
        raise ConfigError(f"--out {out} must end with .png")
    write_bytes(Path(out), png(figures.figure_4()))


def _figure7(out: str, format: str | None = None, ladder: str | None = None) -> None:
    """Draw what each part of the recipe adds (Figure 7), or write the figures behind the drawing.

    Args:
        out: file to write, which must not exist: .png, or .md, .csv, .json for the figures.
        format: png, terminal, markdown, csv or json; by the ending of the file.
        ladder: CSV of runs with columns rung and top1, as benchmarks/ladder.py writes it; the repository's own results
            where they are at hand, if not given.
    """
    drawn = _drawn(out, format)
    form = "" if drawn else _chosen_format(format, out)
    rows = figure7.figure_7_rows(None if ladder is None else Path(ladder))
    if drawn:
        write_bytes(Path(out), png(figure7.figure_7(rows)))
    else:
        _show(rows, figure7.TITLE, figure7.NOTE, form, out)


_FIGURES = {
    "figure1b": _figure(
        "Draw mAP on MS COCO against multiply-adds (Figure 1b)",
        table6.FIGURE_TITLE,
        table6.FIGURE_NOTE,
        lambda: table6.figure_1b_rows(_counting),
        table6.figure_1b,
    ),
    "figure2": _figure(
        "Draw where the multiply-adds of networks are (Figure 2)",
        "Figure 2. Multiply-adds (M) by kind of layer",
        "",
        figures.figure_2_rows,
        figures.figure_2,
    ),
    "figure8": _figure(
        "Draw mean IoU on PASCAL VOC against multiply-adds (Figure 8)",
        figure8.TITLE,
        figure8.NOTE,
        lambda: figure8.figure_8_rows(_counting),
        figure8.figure_8,
    ),
}

COMMANDS = {
    **{str(number): Command(_numbered(number)) for number in TABLES},
    "6": Command(_table(table6.TITLE, table6.NOTE, lambda: table6.table_6_rows(_counting))),
    "7": Command(_table(table7.TITLE, table7.NOTE, lambda: table7.table_7_rows(_counting))),
    "claims": Command(_claims),
    "figure4": Command(_figure4),
    "figure7": Command(_figure7),
    **{name: Command(figure) for name, figure in _FIGURES.items()},
}
