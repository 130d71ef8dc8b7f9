"""The demonstration and its page, and the commands of the README."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

import dicenet_cli
from dicenet.analysis import demo as demonstration
from dicenet.analysis import report

REPOSITORY = Path(__file__).parents[2]


class Page(HTMLParser):
    """Collects what a page refers to, and checks that its tags are closed in turn."""

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.text = [], [], ""

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def parsed(html):
    page = Page()
    page.feed(html)
    assert page.open == []
    return page


def test_page_is_self_contained_and_escaped():
    sections = [
        report.Section("A < B", report.paragraph("x & y") + report.code("a > b")),
        report.Section("Table", report.table(("<b>",), [("1 < 2",)]) + report.image(b"png", 'the "plot"')),
    ]
    page = parsed(report.page("Title <script>", sections))
    assert "A < B" in page.text
    assert "1 < 2" in page.text
    assert all(source.startswith("data:") for source in page.sources)
    assert "<script" not in report.page("Title <script>", sections)


def check_demo(out):
    html = (out / "report.html").read_text()
    page = parsed(html)
    assert len(page.sources) >= 3
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not re.search(r"https?://|@import|<script|<link", html)
    assert {"train", "evaluate", "predict", "drawn", "digits", "contact_sheet.png", "report.html"} == {
        p.name for p in out.iterdir()
    }
    assert len(list((out / "drawn/pictures").iterdir())) == 8
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width > 500
    return page.text


def test_demo_in_short(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demonstration, "_EPOCHS", 1)
    assert dicenet_cli.main(["demo", "--out", str(tmp_path / "demo")]) == 0
    check_demo(tmp_path / "demo")
    assert "demo done" in capsys.readouterr().out


@pytest.mark.slow
def test_demo_reads_97_percent(tmp_path, capsys):
    assert dicenet_cli.main(["demo", "--out", str(tmp_path / "demo")]) == 0
    check_demo(tmp_path / "demo")
    accuracy = float(re.search(r"demo done in \d+ s: top-1 ([\d.]+) %", capsys.readouterr().out)[1])
    assert accuracy >= 97


def test_demo_without_scikit_learn(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    assert dicenet_cli.main(["demo", "--out", str(tmp_path / "demo")]) == 2
    assert "pip install 'dicenet[demo]'" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_commands_of_the_documents_exist():
    """Every dicenet command in README and docs names a real verb and task and only real options."""
    from dicenet.cli.recipes import with_recipes
    from dicenet.cli.run import _parser, _with_underscores

    commands = set()
    for file in (REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")):
        text = file.read_text().replace("\\\n", " ")
        commands |= set(re.findall(r"(?:^dicenet|-m dicenet_cli) (\w+ \w+ --[^\n]*)$", text, re.MULTILINE))
    assert len(commands) >= 3
    for command in commands:
        verb, task, *options = command.replace("...", "").split()
        module = __import__(f"dicenet.cli.{verb}", fromlist=["COMMANDS"])
        _parser(f"{verb} {task}", module.COMMANDS[task]).parse_args(
            with_recipes([_with_underscores(o) for o in options])
        )


def test_readme_lists_the_networks():
    from dicenet.models.dicenet import WIDTHS
    from dicenet.weights import catalogue

    text = (REPOSITORY / "README.md").read_text()
    for width in WIDTHS:
        entry = catalogue.find(f"{width.name}.{catalogue.IN1K_TAG}")
        top1 = re.search(r"top-1 ([\d.]+)", entry.metric)[1] if entry else ""
        row = f"| {width.name} | {width.parameters / 1e6:.4f} | {width.macs:.2f} | {top1} |".replace("|  |", "| |")
        assert row in text
