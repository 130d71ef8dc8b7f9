"""``train``, ``evaluate`` and ``predict multilabel`` end to end on tiny data, and what they say of bad input."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from command_cases import RUN_FILES, rows, run
from PIL import Image, ImageDraw
from sklearn.metrics import f1_score

import dicenet
from dicenet.data.multilabel import open_multilabel_data
from dicenet.engine.pace import TIMINGS
from dicenet.tasks.multilabel import MultilabelTask
from dicenet.weights.files import read_checkpoint

NAMES = ["box", "disc"]
QUICK = ["--model", "dicenet_010", "--img-size", "64", "--epochs", "1", "--batch-size", "8", "--workers", "0"]
QUICK += ["--device", "cpu"]
LEARN = ["--model", "dicenet_010", "--img-size", "64", "--epochs", "25", "--batch-size", "8", "--workers", "0"]
LEARN += ["--device", "cpu", "--optimizer", "adamw", "--lr", "0.005", "--schedule", "cosine", "--min-scale", "0.9"]


def scene(seed):
    """A grey picture with a red disc, a blue box, both or none; and which."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (96, 72), (120, 120, 120))
    draw = ImageDraw.Draw(image)
    labels = [name for name, there in zip(NAMES, (seed % 4 in (1, 3), seed % 4 in (2, 3)), strict=True) if there]
    for name, left in (("disc", int(rng.integers(0, 20))), ("box", int(rng.integers(50, 70)))):
        top = int(rng.integers(0, 40))
        if name in labels:
            shape = draw.ellipse if name == "disc" else draw.rectangle
            shape((left, top, left + 24, top + 24), fill="red" if name == "disc" else "blue")
    return image, labels


def write(root, part, count, first=0):
    (root / part).mkdir(parents=True, exist_ok=True)
    lines = ["path,labels"]
    for index in range(first, first + count):
        image, labels = scene(index)
        image.save(root / part / f"{index}.png")
        lines.append(f"{part}/{index}.png,{' '.join(labels)}")
    (root / f"{part}.csv").write_text("\n".join(lines))


@pytest.fixture(scope="session")
def labelled(tmp_path_factory):
    root = tmp_path_factory.mktemp("labelled")
    write(root, "train", 24)
    write(root, "val", 8, first=100)
    return root


@pytest.fixture(scope="session")
def learned(labelled, tmp_path_factory):
    out = tmp_path_factory.mktemp("learned") / "out"
    run("train", "multilabel", "--data", labelled, "--out", out, *LEARN)
    return out


@pytest.fixture(scope="session")
def weights(learned):
    return learned / "best.safetensors"


# -- training


def test_a_run_leaves_what_it_should(learned):
    files = {p.name for p in learned.iterdir()}
    assert files == RUN_FILES
    scores = {"val_f1_overall", "val_f1_class", "val_map"}
    assert set(rows(learned)[0]) == {"epoch", "step", "train_loss", "val_loss", *scores, "lr", *TIMINGS}
    for file in ("best.safetensors", "last.ckpt"):
        metadata = read_checkpoint(learned / file).metadata
        assert (metadata["task"], metadata["class_names"]) == ("multilabel", NAMES)
        assert metadata["preprocessing"]["crop_mode"] == "squash", "the aspect is not kept"
    best = max(rows(learned), key=lambda row: float(row["val_f1_overall"]))
    assert read_checkpoint(learned / "best.safetensors").metadata["training"]["epoch"] == int(best["epoch"])


def test_learns(learned):
    assert max(float(row["val_f1_overall"]) for row in rows(learned)) > 0.85, "chance is 0.5 to 0.67"


def test_what_a_file_says_of_its_task_stays_with_it(weights, tmp_path, fails):
    """Saved again it is still multi-label; used for another task, or for other classes, it is as good as any."""
    dicenet.save(dicenet.load(weights), tmp_path / "again.safetensors")
    assert read_checkpoint(tmp_path / "again.safetensors").metadata["task"] == "multilabel"
    run("convert", weights, "--out", tmp_path / "converted.safetensors")
    assert read_checkpoint(tmp_path / "converted.safetensors").metadata["task"] == "multilabel"
    other = dicenet.load(weights, task="classify", num_classes=2)
    assert "label_names" not in other.pretrained_cfg
    assert other.pretrained_cfg["crop_mode"] == "center"
    dicenet.save(other, tmp_path / "other.safetensors")
    assert "task" not in read_checkpoint(tmp_path / "other.safetensors").metadata
    with pytest.raises(dicenet.errors.ConfigError, match="choose one of classify, multilabel, segment, detect"):
        dicenet.load(weights, task="pose")


def test_resumed(labelled, tmp_path, capsys, fails):
    out = tmp_path / "out"
    run("train", "multilabel", "--data", labelled, "--out", out, *QUICK)
    run("train", "multilabel", "--resume", out, "--epochs", "2")
    assert [row["epoch"] for row in rows(out)] == ["1", "2"]
    assert "resuming behind epoch 1 of 2" in capsys.readouterr().out
    fails("train", "classify", "--resume", out, message="resume it with 'dicenet train multilabel")


@pytest.mark.parametrize("start", ["classifier", "segmentation network", "detector", "multi-label classifier"])
def test_starts_from_weights_of_every_task(start, labelled, weights, tmp_path, capsys):
    path = tmp_path / "start.safetensors"
    match start:
        case "classifier":  # of the same classes: their logits are of one class a picture
            dicenet.save(timm.create_model("dicenet_010", num_classes=2, img_size=64), path, NAMES)
        case "segmentation network":
            dicenet.save(dicenet.create_segmentation_model("dicenet_010", 3, img_size=64), path)
        case "detector":
            dicenet.save(dicenet.create_detection_model("dicenet_010", 3, img_size=64), path)
        case _:
            path = weights
    run("train", "multilabel", "--data", labelled, "--weights", path, *QUICK[2:], "--out", tmp_path / "out")
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    kept = "with their classifier" if start.startswith("multi") else "fresh classifier for 2 classes"
    assert kept in said
    metadata = read_checkpoint(tmp_path / "out/best.safetensors").metadata
    assert (metadata["task"], metadata["preprocessing"]["crop_pct"]) == ("multilabel", 1.0)


def test_others_start_from_multilabel_weights(weights, tmp_path, capsys):
    """A classifier of one class a picture, which is then no multi-label one any more."""
    for name in NAMES:
        for index in range(4):
            (tmp_path / f"data/{name}").mkdir(parents=True, exist_ok=True)
            scene(index)[0].save(tmp_path / f"data/{name}/{index}.png")
    start = ["--data", tmp_path / "data", "--weights", weights, "--val-fraction", "0.5", *QUICK[2:]]
    run("train", "classify", *start, "--out", tmp_path / "out")
    assert "fresh classifier for 2 classes" in capsys.readouterr().out
    metadata = read_checkpoint(tmp_path / "out/best.safetensors").metadata
    assert "task" not in metadata
    assert metadata["preprocessing"]["crop_mode"] == "center"


def test_gradients_are_of_the_sum_over_classes():
    torch.manual_seed(0)
    net = timm.create_model("dicenet_010", num_classes=5, img_size=32, drop_rate=0.0)
    task = MultilabelTask(net, list("abcde"))
    task.log = lambda *_, **__: None
    target = torch.randint(0, 2, (3, 4, 5), dtype=torch.uint8)
    batch = {"image": torch.randn(3, 3, 32, 32), "target": target, "errors": {}}
    loss = task.training_step(batch, 0).detach()
    logits = net(batch["image"]).detach().double()
    shown = target[:, 0].double()
    by_hand = -(shown * logits.sigmoid().log() + (1 - shown) * (1 - logits.sigmoid()).log())
    assert float(loss) == pytest.approx(float(by_hand.sum(1).mean()), rel=1e-5)
    assert float(task.train_loss.compute()) == pytest.approx(float(by_hand.mean()), rel=1e-5), "as validation shows it"


@pytest.mark.slow
def test_several_processes(labelled, tmp_path):
    """Two processes judge each of eight pictures once, together."""
    several = ["--devices", "2", "--strategy", "ddp"]
    start = ["train", "multilabel", "--data", labelled, "--out", tmp_path / "out", *QUICK, *several]
    done = subprocess.run([sys.executable, "-m", "dicenet_cli", *start], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    evaluate = ["evaluate", "multilabel", "--weights", tmp_path / "out/best.safetensors", "--data", labelled]
    run(*evaluate, "--out", tmp_path / "evaluation", "--workers", "0", "--no-optimize")
    results = json.loads((tmp_path / "evaluation/results.json").read_text())
    (row,) = rows(tmp_path / "out")
    for name in ("f1_overall", "f1_class", "map", "loss"):
        assert float(row[f"val_{name}"]) == pytest.approx(results[name], rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_overfits_the_pictures_of_coco(shared, tmp_path):
    """All labels of 42 real pictures are learned by heart: data, loss, network and scores work together."""
    start = ["--weights", shared("weights/dicenet_s_1.0_pascal_384x384.pth"), "--img-size", "128", "--augment", "none"]
    start += ["--optimizer", "adamw", "--lr", "0.004", "--schedule", "cosine", "--batch-size", "14", "--epochs", "60"]
    start += ["--drop-rate", "0", "--weight-decay", "0"]
    data = ["--data", shared("data/tiny_coco"), "--val-split", "train", "--workers", "0", "--device", "cpu"]
    run("train", "multilabel", *data, *start, "--out", tmp_path / "out")
    assert max(float(row["val_f1_overall"]) for row in rows(tmp_path / "out")) > 0.95


def test_wrong_training_arguments(labelled, tmp_path, fails, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = ["train", "multilabel", "--data", labelled]
    fails("train", "multilabel", message="no data: give --data FOLDER")
    fails(*start, "--threshold", "1", message="threshold is a probability between 0 and 1, got 1.0")
    fails(*start, "--drop-rate", "1", message="drop_rate must lie from 0 to below 1")
    fails(*start, "--val-split", "holdout", message="has no part holdout: it has train, val")
    fails(*start, "--weights", tmp_path / "none.pth", message="none.pth")
    fails("train", "multilabel", "--data", tmp_path, message="in no known layout for multi-label")
    assert not list(tmp_path.iterdir()), "nothing was begun"


@pytest.mark.parametrize(
    ("part", "text", "message"),
    [
        ("train", "train/0.png,\ntrain/1.png,\n", "train.csv has no label in any line"),
        ("train", "train/1.png,disc box\ntrain/gone.png,box\n", "gone.png is missing: .*train.csv names it in line 2"),
        ("train", "train/1.png,disc\ntrain/1.png,box\n", "has the picture .*1.png in lines 1 and 2"),
        ("val", "val/100.png,\n", "val part .* has no label to judge by"),
        ("val", "val/100.png,ball\n", "val.csv has the label 'ball' in line 1: it is not in .*train.csv"),
    ],
)
def test_faulty_data(part, text, message, labelled, tmp_path, fails):
    shutil.copytree(labelled, tmp_path / "data")
    (tmp_path / f"data/{part}.csv").write_text(text)
    fails("train", "multilabel", "--data", tmp_path / "data", *QUICK, "--out", tmp_path / "out", message=message)
    assert not (tmp_path / "out").exists()


# -- evaluation


def test_the_best_epoch_scores_what_training_said(labelled, learned, weights, tmp_path, capsys):
    out = tmp_path / "out"
    run("evaluate", "multilabel", "--weights", weights, "--data", labelled, "--out", out, "--workers", "0")
    assert {p.name for p in out.iterdir()} == {"results.json", "classes.png", "pictures.png"}
    results = json.loads((out / "results.json").read_text())
    best = max(rows(learned), key=lambda row: float(row["val_f1_overall"]))
    assert results["f1_overall"] == pytest.approx(float(best["val_f1_overall"]), abs=1e-5)
    assert results["map"] == pytest.approx(float(best["val_map"]), abs=1e-3)
    assert (results["task"], results["layout"], results["split"]) == ("multilabel", "CSV", "val")
    assert [row["pictures"] for row in results["classes"]] == [4, 4]
    assert results["f1_class"] == pytest.approx(np.mean([row["f1"] for row in results["classes"]]))
    assert [results[f"recall_{size}"] for size in ("small", "medium", "large")] == [None] * 3
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert f"F1 overall {100 * results['f1_overall']:.1f} %" in said
    with Image.open(out / "pictures.png") as sheet:
        assert min(sheet.size) > 300


@pytest.mark.parametrize("threshold", ["0.5", "0.05"])
def test_evaluation_agrees_with_a_plain_loop(threshold, labelled, weights, tmp_path):
    """Whole pictures squeezed to the input size, one by one, by scikit-learn's F1."""
    arguments = ["--weights", weights, "--data", labelled, "--threshold", threshold, "--no-optimize"]
    run("evaluate", "multilabel", *arguments, "--out", tmp_path / "out", "--workers", "0", "--draw", "0")
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"results.json", "classes.png"}
    net = dicenet.load(weights).eval()
    truth, found = [], []
    for index in range(100, 108):
        image, labels = scene(index)
        pixels = np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR), np.float32) / 255
        pixels = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        with torch.no_grad():
            logits = net(torch.tensor(pixels.transpose(2, 0, 1)[None], dtype=torch.float32))[0]
        found.append((logits.sigmoid() > float(threshold)).tolist())
        truth.append([name in labels for name in NAMES])
    assert results["f1_overall"] == pytest.approx(f1_score(truth, found, average="micro", zero_division=0), abs=1e-6)
    assert results["f1_class"] == pytest.approx(f1_score(truth, found, average="macro", zero_division=0), abs=1e-6)


def test_classes_are_matched_by_name(labelled, weights, tmp_path, fails):
    """In another order they keep their meaning; only those of the data are judged; unknown ones are refused."""
    scores = {}
    for name, classes in (("same", "box\ndisc"), ("turned", "disc\nbox")):
        shutil.copytree(labelled, tmp_path / name)
        (tmp_path / name / "classes.txt").write_text(classes)
        arguments = ["--weights", weights, "--data", tmp_path / name, "--workers", "0", "--draw", "2"]
        run("evaluate", "multilabel", *arguments, "--out", tmp_path / f"{name}-out")
        results = json.loads((tmp_path / f"{name}-out/results.json").read_text())
        scores[name] = {row["class"]: row for row in results["classes"]}, results["f1_overall"], results["loss"]
    assert scores["turned"][0] == scores["same"][0]
    assert scores["turned"][1:] == pytest.approx(scores["same"][1:], rel=1e-6)
    (tmp_path / "part").mkdir()
    scene(3)[0].save(tmp_path / "part/a.png")
    (tmp_path / "part/test.csv").write_text("a.png,disc\n")
    arguments = ["evaluate", "multilabel", "--weights", weights, "--data", tmp_path / "part", "--workers", "0"]
    run(*arguments, "--out", tmp_path / "part-out")
    results = json.loads((tmp_path / "part-out/results.json").read_text())
    assert [row["class"] for row in results["classes"]] == ["disc"]
    (tmp_path / "part/test.csv").write_text("a.png,ball\n")
    fails(*arguments, "--out", tmp_path / "none", message="unknown ones: ball")


def test_sizes_and_empty_classes_of_coco(shared, tmp_path):
    """The area of each object decides for which size it is counted; absent classes have no average precision."""
    root = shared("data/tiny_coco")
    data = open_multilabel_data(str(root))
    torch.manual_seed(0)
    net = timm.create_model("dicenet_010", num_classes=80, img_size=32)
    net.pretrained_cfg["task"] = "multilabel"
    dicenet.save(net, tmp_path / "net.safetensors", data.class_names)
    arguments = ["--weights", tmp_path / "net.safetensors", "--data", root, "--workers", "0", "--draw", "1"]
    run("evaluate", "multilabel", *arguments, "--out", tmp_path / "out", "--no-optimize")
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert all(0 <= results[f"recall_{size}"] <= 1 for size in ("small", "medium", "large"))
    _, val = data.evaluation_part()
    shown = np.stack([sample.target for sample in val.samples])
    absent = [row for row in results["classes"] if row["pictures"] == 0]
    assert len(absent) == int((shown[:, 0].sum(0) == 0).sum()) > 0
    assert all((row["ap"], row["f1"], row["recall"]) == (None, 0, 0) for row in absent)


def test_wrong_weights(labelled, weights, tmp_path, fails):
    """Classifiers of one class and of several a picture have the same tensors: the files say which they are."""
    single = tmp_path / "single.safetensors"
    dicenet.save(timm.create_model("dicenet_010", num_classes=2, img_size=64), single, NAMES)
    message = "is a classifier of one class a picture, not a multi-label classifier: use the command for classify, or"
    fails("evaluate", "multilabel", "--weights", single, "--data", labelled, message=message)
    fails("predict", "multilabel", "--weights", single, labelled / "val", message=message)
    message = "is a multi-label classifier, not a classifier: use the command for multilabel, or start"
    fails("evaluate", "classify", "--weights", weights, "--data", labelled, message=message)
    fails("predict", "classify", "--weights", weights, labelled / "val", message=message)
    fails(
        "predict", "segment", "--weights", weights, labelled / "val", message="is a multi-label classifier, not a seg"
    )
    start = ["evaluate", "multilabel", "--data", labelled, "--weights", weights]
    fails(*start, "--threshold", "0", message="threshold is a probability between 0 and 1")
    fails(*start, "--split", "test", message="has no part test: it has train, val")


# -- prediction


def test_prediction(labelled, weights, tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes(b"")
    out = tmp_path / "out"
    run(
        "predict",
        "multilabel",
        "--weights",
        weights,
        "--out",
        out,
        "--top",
        "1",
        labelled / "val",
        tmp_path / "bad.png",
    )
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "8 answered, 1 left out" in said
    answers = json.loads((out / "predictions.json").read_text())
    assert (answers["task"], answers["threshold"], answers["class_names"]) == ("multilabel", 0.5, NAMES)
    assert [error["reason"] for error in answers["errors"]] == [f"{tmp_path / 'bad.png'}: the file is empty"]
    hits = 0
    for item in answers["items"]:
        result = item["result"]
        found = {row["class"] for row in result["labels"]}
        hits += found == set(scene(int(re.search(r"(\d+)\.png", item["file"])[1]))[1])
        assert all(row["score"] > 0.5 for row in result["labels"])
        assert len(result["top"]) == 1
        assert not found or result["top"][0] == result["labels"][0], "the most probable first"
        assert all(NAMES[row["index"]] == row["class"] for row in [*result["labels"], *result["top"]])
    assert hits >= 6, "of eight pictures"
    assert len(list((out / "pictures").iterdir())) == 8
    arguments = ["--threshold", "0.000001", "--no-draw", "--top", "5", labelled / "val/100.png"]
    run("predict", "multilabel", "--weights", weights, "--out", tmp_path / "all", *arguments)
    (item,) = json.loads((tmp_path / "all/predictions.json").read_text())["items"]
    assert len(item["result"]["labels"]) == len(item["result"]["top"]) == 2
    assert not (tmp_path / "all/pictures").exists()


def test_wrong_prediction_arguments(labelled, weights, tmp_path, fails):
    start = ["predict", "multilabel", "--weights", weights]
    fails(*start, "--threshold", "1.5", labelled / "val", message="threshold is a probability")
    fails(*start, "--top", "0", labelled / "val", message="top and batch_size must be at least 1")
    (tmp_path / "bad.png").write_bytes(b"")
    fails(*start, "--out", tmp_path / "out", tmp_path / "bad.png", message="none of the 1 pictures could be read")
