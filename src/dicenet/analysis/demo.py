"""The demonstration: a small DiCENet learns to read handwritten digits, is judged, and is used."""

import io
import time
from pathlib import Path
from typing import Any

from PIL import Image

from dicenet.analysis import report
from dicenet.data.arrays import DIGITS, read_digits
from dicenet.data.samples import SampleList
from dicenet.engine.run_folder import BEST, METRICS, new_run_folder
from dicenet.models.loading import load
from dicenet.tasks import classify
from dicenet.tasks.drawing import confusion_plot, contact_sheet, png, read_metrics, training_curves
from dicenet.weights.files import write_bytes

_MODEL = "dicenet_020"
_EPOCHS = 20
_SHOWN = 40


def demo(out: str | None = None, seed: int = 1882) -> Path:
    """Train a small DiCENet on scikit-learn's handwritten digits, evaluate it, use it, and write a report.

    Args:
        out: folder for everything, new or empty; out/demo (numbered if taken) if not given.
        seed: of weights, order and augmentation.

    Returns:
        The report: an HTML page without outside parts.
    """
    started = time.monotonic()
    digits = read_digits()  # first: it fails at once where scikit-learn is missing
    held_out = digits["test"]
    folder = new_run_folder(out, Path("out/demo"))
    run = folder / "train"
    classify.train(DIGITS, _MODEL, out=str(run), epochs=_EPOCHS, batch_size=64, seed=seed, workers=0, device="cpu")
    weights = str(run / BEST)
    results = classify.evaluate(weights, DIGITS, out=str(folder / "evaluate"), workers=0, device="cpu")
    truth = _write_pictures(held_out, folder / "digits")
    predictions = classify.predict(
        [str(folder / "digits")],
        weights,
        out=str(folder / "predict"),
        draw=False,
        device="cpu",
        batch_size=128,
    )
    sheet = _png(_examples(predictions, truth))
    mistakes = [item for item in predictions["items"] if item["result"][0]["class"] != truth[item["file"]]]
    write_bytes(folder / "contact_sheet.png", sheet)
    classify.predict(_some_files(predictions), weights, out=str(folder / "drawn"), device="cpu")

    seconds = time.monotonic() - started
    wrong = _png(_examples({"items": mistakes}, truth))
    text = _page(run, results, sheet, wrong, len(mistakes), len(digits["train"]), seconds)
    write_bytes(folder / "report.html", text.encode())
    print(f"demo done in {seconds:.0f} s: top-1 {100 * results['top1']:.2f} %; open {folder / 'report.html'}")
    return folder / "report.html"


def _write_pictures(part: SampleList, folder: Path) -> dict[str, str]:
    """The held-out digits as PNG files, one folder per class; the class of each file."""
    truth = {}
    for index, sample in enumerate(part.samples):
        name = part.class_names[sample.target]
        path = folder / name / f"{index:04d}.png"
        write_bytes(path, _png(sample.read()))
        truth[str(path)] = name
    return truth


def _some_files(predictions: dict[str, Any]) -> list[str]:
    files = [item["file"] for item in predictions["items"]]
    return files[:: max(1, len(files) // 8)][:8]


def _examples(predictions: dict[str, Any], truth: dict[str, str]) -> Image.Image:
    """A contact sheet: evenly spread pictures with what the network says of them."""
    items = predictions["items"]
    items = items[:: max(1, len(items) // _SHOWN)][:_SHOWN]
    shown = []
    for item in items:
        best, true = item["result"][0], truth[item["file"]]
        right = best["class"] == true
        text = f"{best['class']}  {100 * best['score']:.0f} %" if right else f"{best['class']}, true {true}"
        with Image.open(item["file"]) as picture:
            shown.append((picture.copy(), text, right))
    return contact_sheet(shown) if shown else Image.new("RGB", (96, 24), "white")


def _png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def _page(
    run: Path, results: dict[str, Any], sheet: bytes, wrong: bytes, mistakes: int, pictures: int, seconds: float
) -> str:
    rows = read_metrics(run / METRICS)
    net = load(run / BEST)
    parameters = sum(p.numel() for p in net.parameters())
    names = [row["class"] for row in results["classes"]]

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f} %"

    classes = [
        (r["class"], str(r["pictures"]), percent(r["top1"]), percent(r["precision"]), percent(r["f1"]))
        for r in results["classes"]
    ]
    summary = (
        f"{_MODEL} ({parameters:,} parameters) learned to read handwritten digits from {pictures:,} pictures in "
        f"{len(rows)} epochs. Of {results['pictures']} digits that it had never seen it names "
        f"{percent(results['top1'])} rightly ({mistakes} mistakes). Everything together took {seconds:.0f} seconds."
    )
    return report.page(
        "A small DiCENet reads handwritten digits",
        [
            report.Section("Result", report.paragraph(summary)),
            report.Section(
                "Learning",
                report.image(png(training_curves(rows, "val_top1", "top-1")), "Loss and accuracy per epoch"),
            ),
            report.Section(
                "Examples", report.image(sheet, "Held-out digits with the network's answer (red: a mistake)")
            ),
            report.Section(
                "Mistakes",
                report.image(wrong, "All digits that it got wrong") if mistakes else report.paragraph("None."),
            ),
            report.Section(
                "Confusions",
                report.image(png(confusion_plot(results["confusion"], names)), "Rows: true digits; columns: answers")
                + report.table(("digit", "pictures", "top-1", "precision", "f1"), classes),
            ),
            report.Section(
                "On your own pictures",
                report.paragraph("Put your pictures into one folder per class, then:")
                + report.code(
                    "dicenet train classify --model dicenet_100 --data FOLDER --out runs/mine\n"
                    "dicenet evaluate classify --weights runs/mine/best.safetensors --data FOLDER\n"
                    "dicenet predict classify --weights runs/mine/best.safetensors --out answers PICTURE..."
                ),
            ),
        ],
    )
