"""``train``, ``evaluate`` and ``predict detect`` end to end on tiny data, and what they say of bad input."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from command_cases import RUN_FILES, rows, run
from PIL import Image, ImageDraw

import dicenet
from dicenet.engine.pace import TIMINGS
from dicenet.weights.files import read_checkpoint

SIZE = (96, 64)
NAMES = ["box", "disc"]
QUICK = ["--model", "dicenet_010", "--img-size", "64", "--epochs", "1", "--batch-size", "4", "--workers", "0"]
QUICK += ["--device", "cpu"]
#: Enough for a network that finds most of them.
LEARN = ["--model", "dicenet_020", "--img-size", "[64, 96]", "--epochs", "60", "--batch-size", "4", "--workers", "0"]
LEARN += ["--device", "cpu", "--optimizer", "adamw", "--lr", "0.005", "--schedule", "cosine", "--priors", "auto"]
LEARN += ["--zoom-out", "1", "--no-iou-crop", "--photometric", "0"]


def scene(seed):
    """A grey picture with a red disc and a blue box at places of their own; their names and corners."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", SIZE, (120, 120, 120))
    draw = ImageDraw.Draw(picture)
    objects = []
    for name, left in (("disc", int(rng.integers(0, 20))), ("box", int(rng.integers(50, 70)))):
        top, width, height = int(rng.integers(0, 36)), 24, 26
        corners = (left, top, left + width, top + height)
        inside = (left, top, left + width - 1, top + height - 1)
        if name == "disc":
            draw.ellipse(inside, fill="red")
        else:
            draw.rectangle(inside, fill="blue")
        objects.append((name, corners))
    return picture, objects


def xml(objects, size=SIZE):
    """As PASCAL VOC has it, whose pixels are counted from 1."""
    parts = [
        f"<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{a + 1}</xmin><ymin>{b + 1}</ymin>"
        f"<xmax>{c + 1}</xmax><ymax>{d + 1}</ymax></bndbox></object>"
        for name, (a, b, c, d) in objects
    ]
    return (
        f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
        f"{''.join(parts)}</annotation>"
    )


def write(root, part, count, first=0):
    for kind in ("images", "annotations"):
        (root / part / kind).mkdir(parents=True, exist_ok=True)
    for index in range(first, first + count):
        picture, objects = scene(index)
        picture.save(root / part / f"images/{index}.png")
        (root / part / f"annotations/{index}.xml").write_text(xml(objects))


@pytest.fixture(scope="session")
def boxes(tmp_path_factory):
    root = tmp_path_factory.mktemp("boxes")
    write(root, "train", 12)
    write(root, "val", 5, first=100)
    return root


@pytest.fixture(scope="session")
def trained(boxes, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    run("train", "detect", "--data", boxes, "--out", out, *QUICK)
    return out


@pytest.fixture(scope="session")
def learned(boxes, tmp_path_factory):
    out = tmp_path_factory.mktemp("learned") / "out"
    run("train", "detect", "--data", boxes, "--out", out, *LEARN)
    return out


# -- training


def test_a_run_leaves_what_it_should(trained):
    files = {p.name for p in trained.iterdir()}
    assert files == RUN_FILES
    (row,) = rows(trained)
    assert set(row) == {"epoch", "step", "train_loss", "val_loss", "val_map50", "val_map", "lr", *TIMINGS}
    metadata = read_checkpoint(trained / "best.safetensors").metadata
    assert metadata["class_names"] == NAMES
    assert metadata["head"]["head"] == "espnet"


def test_learns(learned):
    assert max(float(row["val_map50"]) for row in rows(learned)) > 0.6, "boxes at chance score near 0"


def test_resumed(boxes, tmp_path, capsys):
    out = tmp_path / "out"
    run("train", "detect", "--data", boxes, "--out", out, *QUICK, "--priors", "auto")
    scales = read_checkpoint(out / "best.safetensors").metadata["head"]["scales"]
    run("train", "detect", "--resume", out, "--epochs", "2")
    assert [row["epoch"] for row in rows(out)] == ["1", "2"]
    assert "resuming behind epoch 1 of 2" in capsys.readouterr().out
    assert read_checkpoint(out / "last.ckpt").metadata["head"]["scales"] == scales
    checkpoint = torch.load(out / "last.ckpt", weights_only=True)
    assert (checkpoint["epoch"], checkpoint["global_step"]) == (1, 6), "three steps an epoch, the first was done"
    before = dicenet.load(out / "best.safetensors").state_dict()
    run("train", "detect", "--resume", out)
    assert "all 2 epochs are finished" in capsys.readouterr().out
    assert all(torch.equal(v, before[k]) for k, v in dicenet.load(out / "best.safetensors").state_dict().items())


@pytest.mark.slow
def test_several_processes(boxes, tmp_path):
    """Two processes judge each of five pictures once, together."""
    several = ["--devices", "2", "--strategy", "ddp", "--freeze-norms"]
    start = ["train", "detect", "--data", boxes, "--out", tmp_path / "out", *QUICK, *several, "--priors", "auto"]
    done = subprocess.run([sys.executable, "-m", "dicenet_cli", *start], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    evaluate = ["evaluate", "detect", "--weights", tmp_path / "out/best.safetensors", "--data", boxes]
    run(*evaluate, "--out", tmp_path / "evaluation", "--workers", "0", "--no-optimize")
    results = json.loads((tmp_path / "evaluation/results.json").read_text())
    (row,) = rows(tmp_path / "out")
    assert sum(entry["objects"] for entry in results["classes"]) == 10
    assert float(row["val_map50"]) == pytest.approx(results["map50"], abs=1e-6)
    # the loss is the mean of batches, which two processes make otherwise
    assert float(row["val_loss"]) == pytest.approx(results["loss"], rel=0.01)


def test_precision(boxes, learned, tmp_path, fails):
    """Mixed numbers leave the boxes as they are; all in half would round them, and is refused."""
    weights = ["--weights", learned / "best.safetensors", "--data", boxes, "--workers", "0"]
    maps = {}
    for precision in ("32-true", "bf16-mixed", "64-true"):
        run("evaluate", "detect", *weights, "--precision", precision, "--out", tmp_path / precision)
        maps[precision] = json.loads((tmp_path / precision / "results.json").read_text())["map"]
    assert maps["64-true"] == pytest.approx(maps["32-true"], abs=0.01)
    assert maps["bf16-mixed"] == pytest.approx(maps["32-true"], abs=0.1)
    message = "precision bf16-true would round the boxes themselves: give bf16-mixed"
    fails("evaluate", "detect", *weights, "--precision", "bf16-true", message=message)
    fails("train", "detect", "--data", boxes, *QUICK, "--precision", "bf16-true", message=message)
    run("train", "detect", "--data", boxes, *QUICK, "--precision", "bf16-mixed", "--out", tmp_path / "trained")


def test_priors_of_a_detector_are_kept_unless_others_are_asked_for(learned, boxes, tmp_path):
    known = read_checkpoint(learned / "best.safetensors").metadata["head"]["scales"]
    assert known is not None
    start = ["train", "detect", "--data", boxes, "--weights", learned / "best.safetensors", *QUICK[4:]]
    run(*start, "--out", tmp_path / "kept")
    run(*start, "--out", tmp_path / "official", "--priors", "official")
    scales = [
        read_checkpoint(tmp_path / n / "best.safetensors").metadata["head"]["scales"] for n in ("kept", "official")
    ]
    assert scales == [known, None]


def test_priors_are_told_and_taken(boxes, tmp_path, capsys):
    run(
        "train", "detect", "--data", boxes, "--out", tmp_path / "a", *QUICK, "--priors", "[.01,.02,.03,.04,.05,.06,.07]"
    )
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "boxes with a prior at IoU 0.5: box 0 %, disc 0 %" in said
    assert re.search(r"--priors auto would take \[[\d.,]+\]: (box|disc) 100 %", said)
    assert read_checkpoint(tmp_path / "a/best.safetensors").metadata["head"]["scales"][0] == 0.01
    run("train", "detect", "--data", boxes, "--out", tmp_path / "b", *QUICK, "--priors", "auto")
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    sizes = json.loads(re.search(r"--priors auto takes (\[[\d.,]+\])", said)[1])
    assert read_checkpoint(tmp_path / "b/best.safetensors").metadata["head"]["scales"] == sizes


def test_other_classes_and_sizes_start_from_a_detector(learned, boxes, tmp_path, capsys, fails):
    data = tmp_path / "data"
    shutil.copytree(boxes, data)
    for file in data.glob("*/annotations/*.xml"):
        file.write_text(file.read_text().replace("disc", "plate"))
    weights = learned / "best.safetensors"
    start = ["train", "detect", "--data", data, "--weights", weights, *QUICK[4:], "--img-size", "96"]
    run(*start, "--out", tmp_path / "out", "--freeze-backbone")
    assert "what gives scores is fresh, for 2 classes" in re.sub(r"\s+", " ", capsys.readouterr().out)
    before, after = dicenet.load(weights), dicenet.load(tmp_path / "out/best.safetensors")
    assert after.input_size == (96, 96)
    assert after.prior_settings == before.prior_settings
    for key, value in before.backbone.state_dict().items():
        torch.testing.assert_close(after.backbone.state_dict()[key], value, rtol=0, atol=0)
    fails(*start, "--head", "lite", message="holds the head espnet, not lite: leave out head")
    fails(*start, "--model", "dicenet_010", message="is a checkpoint of dicenet_020, not of dicenet_010")
    evaluate = ["evaluate", "detect", "--weights", weights, "--data", data]
    fails(*evaluate, message="among them unknown ones: plate")


def test_pictures_without_objects(boxes, tmp_path, capsys):
    """Batches without any box have a finite loss."""
    data = tmp_path / "data"
    shutil.copytree(boxes, data)
    for index in range(4, 12):
        (data / f"train/annotations/{index}.xml").write_text(xml([]))
    start = ["train", "detect", "--data", data, *QUICK, "--batch-size", "2", "--img-size", "128"]
    run(*start, "--out", tmp_path / "kept")
    run(*start, "--out", tmp_path / "left", "--no-keep-empty")
    run(*start, "--out", tmp_path / "official", "--no-negatives-of-empty")
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert said.count("training: 8 pictures without boxes left out") == 1
    steps = [int(rows(tmp_path / name)[0]["step"]) for name in ("kept", "left", "official")]
    assert steps == [6, 2, 6]
    assert all(np.isfinite(float(rows(tmp_path / name)[0]["train_loss"])) for name in ("kept", "left", "official"))


def test_wrong_training_arguments(boxes, tmp_path, fails, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = ["train", "detect", "--data", boxes]
    fails("train", "detect", message="no data: give --data FOLDER")
    fails(*start, "--head", "yolo", message="head 'yolo' is unknown: choose one of espnet, lite, fpnlite, ssdlite")
    fails(*start, "--priors", "best", message="priors 'best' is unknown: give official, auto, or sizes")
    fails(*start, "--priors", "[0.1,0.2]", message=r"scales of priors \(--priors\) must be 7 ascending parts")
    fails(*start, "--priors", "[0.1,x]", message=r"priors '\[0\.1,x\]' is unknown")
    fails(*start, "--zoom-out", "0", message="zoom_out must be at least 1")
    fails(*start, "--lr-mult", "0", message="lr_mult must be above 0")
    fails(*start, "--schedule", "step", message="choose one of linear, cosine, poly, multistep, constant")
    fails(*start, "--val-split", "holdout", message="has no part holdout: it has train, val")
    fails(*start, "--weights", tmp_path / "none.pth", message="none.pth")
    fails("train", "detect", "--data", tmp_path, message="in no known layout")
    assert not list(tmp_path.iterdir()), "nothing was begun"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing picture", r"picture .*/3\.jpg is missing: .*/3\.xml is about it"),
        ("damaged", r"3\.xml"),
        ("no boxes", "has no box to learn from"),
        ("nothing to judge by", "part val of .* has no box to judge by: only empty pictures or crowds"),
        ("unreadable", "nothing to judge by in the pictures: .*; 5 could not be read, the first: .*the file is empty"),
    ],
)
def test_faulty_data(boxes, tmp_path, fails, fault, message):
    shutil.copytree(boxes, tmp_path / "data")
    match fault:
        case "missing picture":
            (tmp_path / "data/train/images/3.png").unlink()
        case "damaged":
            (tmp_path / "data/train/annotations/3.xml").write_text("<annotation>")
        case "no boxes" | "nothing to judge by":
            part = "train" if fault == "no boxes" else "val"
            for file in (tmp_path / f"data/{part}/annotations").iterdir():
                file.write_text(xml([]))
        case "unreadable":
            for file in (tmp_path / "data/val/images").iterdir():
                file.write_bytes(b"")
    fails("train", "detect", "--data", tmp_path / "data", *QUICK, "--out", tmp_path / "out", message=message)


# -- evaluation


def test_the_best_epoch_scores_what_training_said(boxes, learned, tmp_path, capsys):
    out = tmp_path / "out"
    run(
        "evaluate", "detect", "--weights", learned / "best.safetensors", "--data", boxes, "--out", out, "--workers", "0"
    )
    assert {p.name for p in out.iterdir()} == {"results.json", "precision_recall.png", "pictures.png"}
    results = json.loads((out / "results.json").read_text())
    best = max(rows(learned), key=lambda row: float(row["val_map50"]))
    assert results["map50"] == pytest.approx(float(best["val_map50"]), abs=2e-3)
    assert results["map"] == pytest.approx(float(best["val_map"]), abs=5e-3)
    assert [row["objects"] for row in results["classes"]] == [5, 5]
    assert results["map50"] == pytest.approx(np.mean([row["map50"] for row in results["classes"]]))
    assert "pictures a second" in capsys.readouterr().out


def test_wrong_evaluation_arguments(boxes, learned, tmp_path, fails):
    start = ["evaluate", "detect", "--data", boxes]
    weights = learned / "best.safetensors"
    fails(*start, "--weights", weights, "--score", "1", message="score must lie from 0 to below 1")
    fails(*start, "--weights", weights, "--nms", "0", message="nms from above 0 to 1")
    network = dicenet.create_segmentation_model("dicenet_010", 2, img_size=64)
    dicenet.save(network, tmp_path / "segment.safetensors")
    fails(*start, "--weights", tmp_path / "segment.safetensors", message="is a segmentation network, not a detector")


# -- prediction


def test_prediction(boxes, learned, tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes(b"")
    out = tmp_path / "out"
    weights = learned / "best.safetensors"
    run(
        "predict",
        "detect",
        "--weights",
        weights,
        "--out",
        out,
        "--score",
        "0.2",
        boxes / "val/images",
        tmp_path / "bad.png",
    )
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "5 answered, 1 left out" in said
    assert "pictures a second" in said
    answers = json.loads((out / "predictions.json").read_text())
    assert [error["reason"] for error in answers["errors"]] == [f"{tmp_path / 'bad.png'}: the file is empty"]
    hits = 0
    for item in answers["items"]:
        _, objects = scene(int(re.search(r"(\d+)\.png", item["file"])[1]))
        for name, corners in objects:
            near = [row for row in item["result"] if row["class"] == name]
            hits += any(np.abs(np.subtract(row["box"], corners)).max() < 8 for row in near)
    assert hits >= 6, "of ten objects"
    listed = json.loads((out / "coco_results.json").read_text())
    assert len(listed) == sum(len(item["result"]) for item in answers["items"])
    first = answers["items"][0]["result"][0]
    left, top, right, bottom = first["box"]
    assert listed[0] == {
        "image_id": 1,
        "category_id": first["index"] + 1,
        "bbox": [left, top, pytest.approx(right - left, abs=0.01), pytest.approx(bottom - top, abs=0.01)],
        "score": first["score"],
    }
    assert len(list((out / "pictures").iterdir())) == 5


def test_pictures_of_extreme_sizes(learned, tmp_path):
    for size in ((1, 1), (3, 500), (500, 3)):
        Image.new("RGB", size, "red").save(tmp_path / f"{size[0]}x{size[1]}.png")
    pictures = sorted(tmp_path.glob("*.png"))
    arguments = ["--weights", learned / "best.safetensors", "--out", tmp_path / "out", "--score", "0.01"]
    run("predict", "detect", *arguments, *pictures)
    answers = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [item["size"] for item in answers["items"]] == [[1, 1], [500, 3], [3, 500]]
    for item in answers["items"]:
        for row in item["result"]:
            left, top, right, bottom = row["box"]
            assert 0 <= left <= right <= item["size"][1]
            assert 0 <= top <= bottom <= item["size"][0]
