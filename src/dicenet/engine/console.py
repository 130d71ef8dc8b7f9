"""Words for people."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_SHOWN = 10


def say(console: Console, text: str) -> None:
    """Print text as it is: brackets in names mean nothing, and long lines are not broken."""
    console.print(_printable(text), highlight=False, markup=False, soft_wrap=True)


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()  # names of files may hold bytes that are no text


def say_pairs(console: Console, pairs: Sequence[tuple[str, str]]) -> None:
    """Names and what they are: a table on a terminal, aligned lines elsewhere."""
    if not console.is_terminal:
        width = max(len(name) for name, _ in pairs)
        for name, value in pairs:
            say(console, f"{name:{width}}  {value}")
        return
    table = Table(box=box.HORIZONTALS, show_header=False)
    for name, value in pairs:
        table.add_row(Text(name, "bold"), Text(_printable(value)))
    console.print(table)


def duration(seconds: float) -> str:
    """As 0:07, 12:34 or 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def some(names: Sequence[str]) -> str:
    """The first of many names."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def say_what_was_left_out(console: Console, bad: Mapping[str, str]) -> None:
    """Name pictures that could not be read (name to reason, which starts with the name), and count them."""
    for reason in list(bad.values())[:_SHOWN]:
        say(console, f"left out: {reason}")
    if bad:
        pictures = "1 picture" if len(bad) == 1 else f"{len(bad)} pictures"
        say(console, f"{pictures} could not be read: left out")
