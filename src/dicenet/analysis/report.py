"""A page about one training: self-contained HTML, no script, no outside address."""

import base64
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #18181b; background: #fafafa; margin: 0 }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2rem }
img { max-width: 100%; height: auto; background: white; border: 1px solid #e4e4e7; border-radius: 6px }
table { border-collapse: collapse; background: white } th, td { padding: .25rem .8rem; border: 1px solid #e4e4e7 }
th { text-align: left; background: #f4f4f5 } td { text-align: right } td:first-child { text-align: left }
figure { margin: 0 } figcaption { color: #52525b; font-size: .9rem }
pre { background: #18181b; color: #f4f4f5; padding: .8rem 1rem; border-radius: 6px; overflow-x: auto }
@media (prefers-color-scheme: dark) {
  body { background: #18181b; color: #f4f4f5 } figcaption { color: #a1a1aa }
  table { background: #27272a } th { background: #3f3f46 } th, td { border-color: #52525b }
}
"""


class Section(NamedTuple):
    """A part of the page: a heading, then HTML made by the functions below."""

    heading: str
    content: str


def paragraph(text: str) -> str:
    """Text, escaped."""
    return f"<p>{escape(text)}</p>"


def code(text: str) -> str:
    """Commands, as they are typed."""
    return f"<pre>{escape(text)}</pre>"


def image(png: bytes, caption: str) -> str:
    """A PNG inside the page, with its caption (also the text for those who do not see it)."""
    data = base64.b64encode(png).decode()
    text = escape(caption, quote=True)
    return f'<figure><img src="data:image/png;base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of text."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def page(title: str, sections: Sequence[Section]) -> str:
    """The whole document."""
    body = "".join(f"<h2>{escape(section.heading)}</h2>\n{section.content}\n" for section in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><main><h1>{escape(title)}</h1>\n{body}</main></body></html>\n"
    )
