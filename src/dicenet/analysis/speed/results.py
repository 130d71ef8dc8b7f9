"""What was measured, as rows, a CSV, a table to read, and words: the best of each network against the best."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dicenet.analysis.speed.networks import Network
from dicenet.analysis.speed.timing import DISTURBED, Trials, summarise
from dicenet.engine.console import say
from dicenet.engine.machine import write_csv
from dicenet.weights.files import write_bytes

Row = dict[str, Any]
RESULTS = "results.csv"
TABLE = "table.md"
#: Columns of the CSV before those that say where it was measured.
COLUMNS = (
    *("benchmark", "network", "library", "mode", "pytorch_mode", "batch_size", "threads", "img_size", "device"),
    *("status", "reason", "min_ms", "median_ms", "mean_ms", "std_ms", "trials", "calls_per_trial", "warmup"),
    *("page_faults_per_call", "peak_memory_mb", "difference", "compared_with"),
    *("best_mode", "baseline", "ratio_of_minima", "ratio_of_medians", "comparator"),
    *("parameters", "macs", "macs_official", "top1", "top1_source", "seed", "core"),
)
#: Of the rows in the files of batch sizes, what the CSV leaves out: every trial.
_TRIALS = ("trials_ms", "trials_page_faults")
_NOT_COUNTED = "ONNX Runtime is shown, but is no mode of PyTorch: it does not count as a network's best mode."


class Baseline(NamedTuple):
    """What the others are compared with: a network in one mode, or in its best one (None)."""

    network: str
    mode: str | None

    def __str__(self) -> str:
        return f"{self.network}, {self.mode or 'best mode'}"


def row_of_network(network: Network) -> Row:
    """What is known of a network before it runs."""
    published = network.published
    return {
        "network": network.name,
        "library": network.library,
        "parameters": network.cost.parameters if network.cost else None,
        "macs": network.cost.macs if network.cost else None,
        "macs_official": network.cost.macs_official if network.cost else None,
        "top1": published.top1 if published else None,
        "top1_source": published.source if published else None,
    }


def row_of_trials(trials: Trials) -> Row:
    """What was measured of a network in a mode, with every trial."""
    summary = summarise(trials.milliseconds)
    return {
        "status": "disturbed" if summary.disturbed else "ok",
        "min_ms": summary.minimum,
        "median_ms": summary.median,
        "mean_ms": summary.mean,
        "std_ms": summary.std,
        "trials": len(trials.milliseconds),
        "calls_per_trial": trials.calls,
        "page_faults_per_call": sum(trials.page_faults) / len(trials.page_faults),
        "trials_ms": trials.milliseconds,
        "trials_page_faults": trials.page_faults,
    }


# -- comparison


def _timed(rows: Sequence[Row], batch_size: int, network: str) -> list[Row]:
    """Rows of a network with times in modes of PyTorch."""
    return [
        row
        for row in rows
        if (row["batch_size"], row["network"]) == (batch_size, network)
        and "min_ms" in row
        and row["pytorch_mode"] == "yes"
    ]


def best_of(rows: Sequence[Row], batch_size: int, network: str) -> Row | None:
    """The row of a network's quickest mode of PyTorch, by its minimum."""
    return min(_timed(rows, batch_size, network), key=lambda row: row["min_ms"], default=None)


def _comparator(rows: Sequence[Row], batch_size: int, baseline: Baseline) -> Row | None:
    if baseline.mode is None:
        return best_of(rows, batch_size, baseline.network)
    wanted = (batch_size, baseline.network, baseline.mode)
    found = (row for row in rows if (row["batch_size"], row["network"], row["mode"]) == wanted and "min_ms" in row)
    return next(found, None)


def compared(rows: Sequence[Row], baseline: Baseline) -> list[Row]:
    """The rows with their ratios to the comparator of their batch size: of the minima, the verdict, and of the medians.

    Where the comparator was disturbed, nothing can be concluded from its batch size: it is then called void.
    """
    result = []
    for row in rows:
        best = best_of(rows, row["batch_size"], row["network"])
        other = _comparator(rows, row["batch_size"], baseline)
        row = row | {"best_mode": "yes" if best is row else "no", "baseline": str(baseline)}
        if other is not None and "min_ms" in row:
            row["ratio_of_minima"] = row["min_ms"] / other["min_ms"]
            row["ratio_of_medians"] = row["median_ms"] / other["median_ms"]
            row["comparator"] = "void" if other["status"] == "disturbed" else "valid"
        result.append(row)
    return result


# -- as text


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _millions(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e6:.2f}"


def _ratios(row: Row) -> tuple[str, str]:
    void = " (void)" if row.get("comparator") == "void" else ""
    return _number(row.get("ratio_of_minima"), 3) + void, _number(row.get("ratio_of_medians"), 3) + void


def _spread(row: Row) -> str:
    return f"{_number(row['mean_ms'], 2)} ± {_number(row['std_ms'], 2)}" if "mean_ms" in row else "-"


_TIMES = ("min", "median", "mean ± std", "ratio", "of medians")
_BEST = ("network", "params (M)", "MACs (M)", "batch", "best mode", *_TIMES)


def best_table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Text of a line for each network and batch size: its best mode of PyTorch, against the comparator."""
    return [
        (
            row["network"],
            _millions(row["parameters"]),
            _millions(row["macs"]),
            str(row["batch_size"]),
            row["mode"] + (" (disturbed)" if row["status"] == "disturbed" else ""),
            _number(row["min_ms"], 2),
            _number(row["median_ms"], 2),
            _spread(row),
            *_ratios(row),
        )
        for row in rows
        if row["best_mode"] == "yes"
    ]


_ALL = ("network", "mode", *_TIMES, "faults", "memory (MB)", "diff.", "note")


def _all_modes(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Text of a line for every row."""
    lines: list[tuple[str, ...]] = []
    for row in rows:
        note = row["status"] if row["status"] != "ok" else ""
        cells = (
            row["network"],
            row["mode"],
            _number(row.get("min_ms"), 2),
            _number(row.get("median_ms"), 2),
            _spread(row),
            *_ratios(row),
            _number(row.get("page_faults_per_call"), 0),
            _number(row.get("peak_memory_mb"), 1),
            f"{row['difference']:.0e}" if "difference" in row else "-",
            f"{note}: {row['reason']}" if row.get("reason") else note,
        )
        lines.append(cells)
    return lines


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table of text; what would end a cell is escaped."""
    rows = [header, ["---"] * len(header), *lines]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in rows)


def _page(rows: Sequence[Row], modes: Mapping[str, str], baseline: Baseline) -> str:
    first = rows[0]
    text = (
        f"# {first['benchmark'].capitalize()}\n\n"
        f"{first['processor']}, {first['instructions']}, device {first['device']}, {first['threads']} thread(s); "
        f"pictures {first['img_size']}; torch {first['torch']}, dicenet {first['dicenet']}, commit {first['commit']}.\n"
        "\n"
        f"Milliseconds of a batch{'' if first['device'] == 'cpu' else ', in float32 (TF32 is off)'}. "
        "All were timed in turn in one process, in an order drawn anew for every round. "
        f"Ratios are to {baseline}; the ratio of minima is the verdict, that of medians stands beside it. "
        f"`disturbed`: the median is above {DISTURBED} times the minimum; a ratio is `void` where that is so of what "
        f"it is a ratio to, whichever way it went. {_NOT_COUNTED}\n\n"
        "## Best mode of each network\n\n"
    )
    text += _markdown(_BEST, best_table(rows))
    for batch_size in sorted({row["batch_size"] for row in rows}):
        of_batch = [row for row in rows if row["batch_size"] == batch_size]
        text += f"\n## All modes, batch {batch_size}\n\n" + _markdown(_ALL, _all_modes(of_batch))
    text += (
        "\n`faults`: page faults a call. `memory`: the highest resident memory (on CUDA: allocated) during one call, "
        "above what it was before the network was made ready in that mode; its weights, its compiled code and the "
        "buffers that it keeps count. `diff.`: largest difference of its output from the network's own "
        "(of ours with pytorchcv's weights: from pytorchcv's), relative to the largest value.\n\n"
    )
    text += _markdown(("mode", "is"), list(modes.items()))
    known = {row["network"]: f"{row['top1']} ({row['top1_source']})" for row in rows if row.get("top1")}
    return text + "\nPublished top-1: " + "; ".join(f"{name} {top1}" for name, top1 in known.items()) + ".\n"


def write_table(rows: Sequence[Row], modes: Mapping[str, str], baseline: Baseline, folder: Path) -> None:
    """Write the CSV and the table to read of rows that were compared."""
    columns = [*COLUMNS, *(key for key in rows[0] if key not in (*COLUMNS, *_TRIALS))]
    write_csv(folder / RESULTS, [_rounded(row) for row in rows], columns)
    write_bytes(folder / TABLE, _page(rows, modes, baseline).encode())


def _rounded(row: Row) -> Row:
    """Without digits that mean nothing."""
    return {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in row.items()}


#: Columns of the table of best modes that fit on a screen.
_SHOWN = ("network", "batch", "best mode", "min", "median", "ratio", "of medians")


def print_best(rows: Sequence[Row], baseline: Baseline, console: Console) -> None:
    """Show the best mode of each network, then what was not timed, or was disturbed."""
    table = Table(caption=f"milliseconds of a batch; ratios are to {baseline}: of minima (the verdict), of medians")
    for column in _SHOWN:
        table.add_column(column, justify="left" if column in ("network", "best mode") else "right")
    places = [_BEST.index(column) for column in _SHOWN]
    for line in best_table(rows):
        table.add_row(*(escape(line[place]) for place in places))
    console.print(table)
    if any(row.get("pytorch_mode") == "no" for row in rows):
        say(console, _NOT_COUNTED)
    for batch_size in sorted({row["batch_size"] for row in rows}):
        if _comparator(rows, batch_size, baseline) is None:
            say(console, f"no ratios for batch {batch_size}: {baseline} was not timed")
    for row in rows:
        if row["status"] != "ok":
            what = f"{row['network']} {row['mode']}, batch {row['batch_size']}: {row['status']}"
            say(console, f"{what}: {row['reason']}" if row.get("reason") else what)
