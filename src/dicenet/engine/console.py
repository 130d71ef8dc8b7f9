"""Words for people."""

from collections.abc import Mapping, Sequence

from rich.console import Console

_SHOWN = 10


def say(console: Console, text: str) -> None:
    """Print text as it is: brackets in names mean nothing, and long lines are not broken."""
    text = text.encode("utf-8", "backslashreplace").decode()  # names of files may hold bytes that are no text
    console.print(text, highlight=False, markup=False, soft_wrap=True)


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
