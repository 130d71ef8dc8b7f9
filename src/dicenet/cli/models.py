"""``dicenet models``."""

import json as json_format
import sys
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from dicenet.analysis.model_list import checkpoint_rows, network_rows
from dicenet.cli.run import Command
from dicenet.errors import ConfigError
from dicenet.models.network import MIN_IMG_SIZE
from dicenet.models.registry import ROWS


def _network_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(caption="1000 classes; top-1 and top-5 on ImageNet as their authors published")
    table.add_column("network")
    table.add_column("input", justify="right")
    table.add_column("parameters (M)", justify="right")
    table.add_column("multiply-adds (M)", justify="right")
    table.add_column("official weights")
    for row in rows:
        published = (row["published_metric"] or "-").removesuffix(" (ImageNet val)")
        millions = f"{row['parameters'] / 1e6:.4f}", f"{row['macs_official'] / 1e6:.2f}"
        table.add_row(row["name"], str(row["img_size"]), *millions, published)
    return table


def _checkpoint_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(caption="metrics and costs as their authors published; not loadable ones are listed only")
    for column in ("checkpoint", "task", "input (WxH)", "published metric", "loadable"):
        table.add_column(column)
    for row in rows:
        table.add_row(row["name"], row["task"], row["input_size"], row["metric"], "yes" if row["loadable"] else "no")
    return table


def models(checkpoints: bool = False, img_size: int | None = None, json: bool = False) -> None:
    """List the networks with their parameters and multiply-adds, or the official checkpoints.

    Args:
        checkpoints: list the official checkpoints instead of the networks.
        img_size: side of the picture that multiply-adds are counted for; each network's own if not given.
        json: print JSON, with exact numbers and addresses.
    """
    if img_size is not None and img_size < MIN_IMG_SIZE:
        raise ConfigError(f"img_size must be at least {MIN_IMG_SIZE}, got {img_size}")
    if checkpoints:
        rows = checkpoint_rows()
    else:
        names = track(ROWS, "counting", console=Console(stderr=True), transient=True)
        rows = network_rows(img_size, names)
    if json:
        print(json_format.dumps(rows, indent=2))
        return
    # in a pipe or a file nothing is cut to the width of a screen
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(_checkpoint_table(rows) if checkpoints else _network_table(rows))


COMMAND = Command(models)
