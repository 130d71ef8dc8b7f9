"""``train``, ``evaluate`` and ``predict segment`` end to end on tiny data, and what they say of bad input."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from command_cases import RUN_FILES, rows, run
from PIL import Image, ImageDraw

import dicenet
from dicenet.engine.pace import TIMINGS
from dicenet.weights.files import read_checkpoint

SIZE = (48, 32)
NAMES = ["ground", "disc", "box"]
QUICK = ["--model", "dicenet_010", "--img-size", "[32, 48]", "--epochs", "1", "--batch-size", "4", "--workers", "0"]
QUICK += ["--device", "cpu"]


def scene(seed, size=SIZE):
    """A picture with a red disc and a blue box on grey, of sizes of its own, and its mask with a void pixel."""
    rng = np.random.default_rng(seed)
    picture, mask = Image.new("RGB", size, (120, 120, 120)), Image.new("L", size, 0)
    left, top = (int(rng.integers(0, side // 3)) for side in size)
    wide, high = (int(rng.integers(side // 6, side // 3)) for side in size)
    for draw, disc, box in ((ImageDraw.Draw(picture), "red", "blue"), (ImageDraw.Draw(mask), 1, 2)):
        draw.ellipse((left, top, left + wide, top + wide), fill=disc)
        draw.rectangle((left + size[0] // 2, top, left + size[0] // 2 + 8, top + high), fill=box)
    mask.putpixel((0, size[1] - 1), 255)
    return picture, mask


def write(root, part, count, first=0, size=SIZE):
    for kind in ("images", "masks"):
        (root / part / kind).mkdir(parents=True, exist_ok=True)
    for index in range(first, first + count):
        picture, mask = scene(index, size)
        picture.save(root / part / f"images/{index}.png")
        mask.save(root / part / f"masks/{index}.png")


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    write(root, "train", 12)
    write(root, "val", 5, first=100)
    (root / "classes.txt").write_text("\n".join(NAMES) + "\n")
    return root


#: Enough for a network that tells all classes apart, if not well.
LEARN = ["--model", "mobilenetv2_050", "--img-size", "[32, 48]", "--decoder-channels", "4", "--workers", "0"]
LEARN += ["--optimizer", "adamw", "--lr", "0.01", "--lr-mult", "1", "--schedule", "cosine", "--class-weights"]
LEARN += ["inverse-log", "--epochs", "30", "--batch-size", "2", "--min-scale", "1", "--max-scale", "1"]
LEARN += ["--device", "cpu"]


@pytest.fixture(scope="session")
def learned(scenes, tmp_path_factory):
    out = tmp_path_factory.mktemp("learned") / "out"
    run("train", "segment", "--data", scenes, "--out", out, *LEARN)
    return out


@pytest.fixture(scope="session")
def trained(scenes, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    run("train", "segment", "--data", scenes, "--out", out, *QUICK)
    return out


@pytest.fixture(scope="session")
def weights(trained):
    return trained / "best.safetensors"


# -- training


def test_a_run_leaves_what_it_should(trained):
    files = {p.name for p in trained.iterdir()}
    assert files == RUN_FILES
    (row,) = rows(trained)
    columns = {"train_loss", "val_loss", "val_mean_iou", "val_pixel_accuracy"}
    assert set(row) == {"epoch", "step", *columns, "lr", *TIMINGS}
    metadata = read_checkpoint(trained / "best.safetensors").metadata
    assert metadata["class_names"] == NAMES
    assert metadata["input_size"] == [32, 48]
    last, best = dicenet.load(trained / "last.ckpt"), dicenet.load(trained / "best.safetensors")
    for key, value in best.state_dict().items():
        torch.testing.assert_close(last.state_dict()[key], value, rtol=0, atol=0)


def test_learns(learned):
    """Red discs and blue boxes are told apart from grey within a few epochs."""
    assert max(float(row["val_mean_iou"]) for row in rows(learned)) > 0.6, "ground alone has 0.3"


def test_resumed(scenes, tmp_path, capsys):
    out = tmp_path / "out"
    run("train", "segment", "--data", scenes, "--out", out, *QUICK, "--class-weights", "inverse-log")
    run("train", "segment", "--resume", out, "--epochs", "2")
    assert [row["epoch"] for row in rows(out)] == ["1", "2"]
    assert "resuming behind epoch 1 of 2" in capsys.readouterr().out
    run("train", "segment", "--resume", out)
    assert "all 2 epochs are finished" in capsys.readouterr().out


@pytest.mark.slow
def test_several_processes(scenes, tmp_path):
    """Two processes judge each of five pictures once, together."""
    # frozen norms are the same in both processes, so that the saved network is what was judged
    several = ["--devices", "2", "--strategy", "ddp", "--freeze-norms"]
    start = ["train", "segment", "--data", scenes, "--out", tmp_path / "out", *QUICK, *several]
    done = subprocess.run([sys.executable, "-m", "dicenet_cli", *start], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    evaluate = ["evaluate", "segment", "--weights", tmp_path / "out/best.safetensors", "--data", scenes]
    run(*evaluate, "--out", tmp_path / "evaluation", "--workers", "0", "--no-optimize")
    results = json.loads((tmp_path / "evaluation/results.json").read_text())
    (row,) = rows(tmp_path / "out")
    assert float(row["val_mean_iou"]) == pytest.approx(results["mean_iou"], abs=1e-5)
    assert float(row["val_pixel_accuracy"]) == pytest.approx(results["pixel_accuracy"], abs=1e-5)
    # a network that says one thing everywhere scores each subset of the pictures otherwise, as their objects differ
    shares = [(np.array(scene(index)[1]) == 0).mean() for index in range(100, 105)]
    assert len({round(float(share), 4) for share in shares}) == 5


@pytest.mark.slow
def test_processes_name_what_each_of_them_could_not_read(scenes, tmp_path):
    """Also what only the second one was given; and say where there are too few pictures for all."""
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    (data / "val/images/101.png").write_bytes(b"")
    several = ["--devices", "2", "--strategy", "ddp"]
    start = ["train", "segment", "--data", data, *QUICK, *several]
    ddp = [sys.executable, "-m", "dicenet_cli"]
    done = subprocess.run([*ddp, *start, "--out", tmp_path / "a"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "101.png: the file is empty" in done.stdout
    start[start.index("--batch-size") + 1] = "8"
    done = subprocess.run([*ddp, *start, "--out", tmp_path / "b"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "too few pictures to train on (12) for 2 processes with batches of 8" in done.stderr
    assert not any((tmp_path / "b").iterdir())


@pytest.mark.slow
def test_several_processes_one_of_which_can_read_nothing(scenes, tmp_path):
    """A process without a readable picture in a batch takes part in the step, else the others would wait for ever."""
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    for index in range(2, 12):
        (data / f"train/images/{index}.png").write_bytes(b"")
    start = [
        "train",
        "segment",
        "--data",
        data,
        "--out",
        tmp_path / "out",
        *QUICK,
        "--devices",
        "2",
        "--strategy",
        "ddp",
    ]
    start[start.index("--batch-size") + 1] = "1"
    done = subprocess.run([sys.executable, "-m", "dicenet_cli", *start], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "the file is empty" in done.stdout
    assert (tmp_path / "out/best.safetensors").exists()


def test_the_schedule_follows_the_epochs_where_they_have_other_steps(scenes, tmp_path):
    """A run of 12 pictures goes on with 4: the rate falls from where its epochs stand, not its steps."""
    out, fewer = tmp_path / "out", tmp_path / "fewer"
    shutil.copytree(scenes, fewer)
    for index in range(4, 12):
        for kind in ("images", "masks"):
            (fewer / f"train/{kind}/{index}.png").unlink()
    run("train", "segment", "--data", scenes, "--out", out, *QUICK, "--epochs", "2", "--schedule", "linear")
    run("train", "segment", "--resume", out, "--data", fewer, "--epochs", "4")
    rates = [float(row["lr"]) for row in rows(out)]
    assert rates[2:] == pytest.approx([0.009 * 0.25, 0])


def test_pictures_that_are_trained_on_and_judged_by(scenes, tmp_path, capsys):
    run("train", "segment", "--data", scenes, "--out", tmp_path / "out", *QUICK, "--train-split", "val")
    assert "5 of the 5 pictures to judge by are trained on too" in re.sub(r"\s+", " ", capsys.readouterr().out)


@pytest.mark.parametrize("frozen", ["norms", "backbone"])
def test_what_is_frozen_stays_through_a_training(scenes, weights, tmp_path, frozen):
    start = ["train", "segment", "--data", scenes, "--weights", weights, *QUICK[2:]]
    run(*start, "--out", tmp_path / "out", f"--freeze-{frozen}")
    before, after = (dicenet.load(file).state_dict() for file in (weights, tmp_path / "out/best.safetensors"))
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    modules = dicenet.load(weights).named_modules()
    norms = tuple(f"{name}." for name, module in modules if isinstance(module, torch.nn.BatchNorm2d))
    kept = norms if frozen == "norms" else ("backbone.",)
    assert changed
    assert not any(key.startswith(kept) for key in changed)
    assert any(key.startswith(kept) for key in before)


def test_other_classes_start_with_a_fresh_last_convolution(weights, scenes, tmp_path, capsys, fails):
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    (data / "classes.txt").write_text("ground\ndisc\nbox\nsky\n")
    start = ["train", "segment", "--data", data, "--weights", weights, *QUICK[2:]]
    run(*start, "--out", tmp_path / "out")
    assert "the last convolution is fresh, for 4 classes" in re.sub(r"\s+", " ", capsys.readouterr().out)
    assert dicenet.load(tmp_path / "out/best.safetensors").num_classes == 4
    fails(*start, "--model", "dicenet_020", message="is a checkpoint of dicenet_010, not of dicenet_020")
    fails(*start, "--decoder-channels", "7", message="decoder of 1 channels a branch, not of 7: leave out decoder_ch")
    fails(*start, "--pretrained", message="--pretrained names weights, and so does --weights")
    fails(
        "evaluate",
        "segment",
        "--weights",
        weights,
        "--data",
        data,
        message=r"3 classes .*data has 4.*unknown ones: sky",
    )


def test_the_backbone_starts_a_classifier_and_a_classifier_the_backbone(scenes, weights, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    for name in ("red", "blue"):
        (tmp_path / "data" / name).mkdir()
        for index in range(4):
            Image.new("RGB", SIZE, name).save(tmp_path / "data" / name / f"{index}.png")
    quick = ["--epochs", "1", "--batch-size", "2", "--workers", "0", "--device", "cpu", "--lr", "1e-12"]
    classify = ["train", "classify", "--data", tmp_path / "data", "--out", tmp_path / "classifier"]
    run(*classify, "--weights", weights, *quick)
    network, classifier = dicenet.load(weights), dicenet.load(tmp_path / "classifier/best.safetensors")
    ours, theirs = network.backbone.model.stem.conv.weight, classifier.stem.conv.weight
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-6)

    capsys.readouterr()
    start = ["train", "segment", "--data", scenes, "--weights", tmp_path / "classifier/best.safetensors", *QUICK[2:]]
    run(*start, "--out", tmp_path / "back", "--freeze-backbone")
    assert "the last convolution is fresh, for 3 classes" in re.sub(r"\s+", " ", capsys.readouterr().out)
    back = dicenet.load(tmp_path / "back/best.safetensors")
    assert back.pretrained_cfg["label_names"] == tuple(NAMES)
    torch.testing.assert_close(back.backbone.model.stem.conv.weight, theirs, rtol=0, atol=0)


def test_a_run_is_resumed_with_its_own_command(trained, weights, scenes, fails):
    fails("train", "classify", "--resume", trained, message="is a run of 'dicenet train segment': resume it with")
    for verb in (["predict", scenes / "val"], ["evaluate", "--data", scenes]):
        command = [verb[0], "classify", "--weights", weights, *verb[1:]]
        fails(*command, message="is a segmentation network, not a classifier: use the command for segment, or start")


def test_held_out_where_there_is_one_part(scenes, tmp_path, capsys):
    shutil.copytree(scenes / "train", tmp_path / "data")
    run("train", "segment", "--data", tmp_path / "data", "--out", tmp_path / "out", *QUICK)
    out = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "10 pictures to train on, 2 to judge by (20% of all held out)" in out
    assert "3 classes" in out, "the largest number in the masks tells how many"


def test_wrong_training_arguments(scenes, tmp_path, fails, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = ["train", "segment", "--data", scenes]
    fails("train", "segment", message="no data: give --data FOLDER")
    fails(*start, "--model", "dicenet_101", message="no timm model")
    fails(*start, "--model", "vit_tiny_patch16_224", message="two different sizes of 1/16 or larger are needed")
    fails(*start, "--model", "dicenet_010.edgenets_voc_9", message="names weights that timm does not have")
    fails(*start, "--ignore-id", "x", message=r"--ignore-id must be a whole number or several, such as 0 or \[0,7\]")
    fails(*start, "--crop-size", "16", message="crop_size must be at least 32 on both sides, got 16x16")
    fails(*start, "--crop-size", "x", message=r"--crop-size must be a whole number or \[height, width\]")
    fails(*start, "--epochs", "0", message="epochs must be at least 1")
    fails(*start, "--schedule", "step", message="choose one of linear, cosine, poly, multistep, constant")
    fails(*start, "--optimizer", "adam", message="choose one of sgd, momentum, adamw")
    fails(*start, "--class-weights", "official", message="choose one of none, dataset, inverse-log")
    fails(
        *start, "--class-weights", "dataset", message="brings no class weights along: use --class-weights inverse-log"
    )
    small = ["--img-size", "64", "--crop-size", "48", "--model", "coatnet_nano_rw_224"]
    fails(*start, *small, message="coatnet_nano_rw_224 takes no pictures of")
    fails(*start, "--class-weight-power", "-1", message="class_weight_power must lie from 0 to 10, got -1")
    fails(*start, "--val-split", "holdout", message="has no part holdout: it has train, val")
    fails(*start, "--weights", tmp_path / "none.pth", message="none.pth")
    fails(*start, "--min-scale", "3", message="not above max_scale")
    fails(*start, "--coco", tmp_path, "--model", "dicenet_010", message="21 classes")
    fails(*start, "--model", "DiCENet", message="the nearest are .*dicenet_")
    assert not list(tmp_path.iterdir()), "nothing was begun"


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("train", 0, "masks to train on hold one class only, ground"),
        ("val", 255, "nothing to judge by in the pictures: all is void"),
        ("train", 255, "nothing to learn from in the pictures: their masks are void everywhere"),
    ],
)
def test_masks_with_nothing_in_them(scenes, tmp_path, fails, part, value, message):
    shutil.copytree(scenes, tmp_path / "data")
    for mask in (tmp_path / "data" / part / "masks").iterdir():
        image = Image.new("L", SIZE, value)
        image.putpixel((3, 3), 255)
        image.save(mask)
    fails("train", "segment", "--data", tmp_path / "data", *QUICK, "--out", tmp_path / "out", message=message)


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("size", r"3\.png is 48x32, its mask 20x32: they must have the same size"),
        ("ids", r"mask .*3\.png holds 9, the classes are 0 to 2 and 255 is void: give --ignore-id"),
        ("rgb", r"mask .*3\.png has colours \(RGB\)"),
        ("missing", r"mask .*3\.png is missing"),
    ],
)
def test_faulty_masks(scenes, tmp_path, fails, fault, message, workers):
    shutil.copytree(scenes, tmp_path / "data")
    mask = tmp_path / "data/train/masks/3.png"
    match fault:
        case "size":
            Image.new("L", (20, 32)).save(mask)
        case "ids":
            Image.new("L", SIZE, 9).save(mask)
        case "rgb":
            Image.new("RGB", SIZE, "red").save(mask)
        case "missing":
            mask.unlink()
    arguments = ["train", "segment", "--data", tmp_path / "data", *QUICK, "--workers", workers]
    fails(*arguments, "--out", tmp_path / "out", message=message)
    for ids in ("9", "[9,7]") if fault == "ids" else ():
        run(*arguments, "--out", tmp_path / ids, "--ignore-id", ids)


# -- evaluation


def test_evaluation_agrees_with_a_plain_loop(scenes, learned, tmp_path, capsys):
    weights = learned / "best.safetensors"
    run("evaluate", "segment", "--weights", weights, "--data", scenes, "--out", tmp_path / "out", "--workers", "0")
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"results.json", "confusion.png", "pictures.png"}
    net = dicenet.load(weights).eval()
    hits, sums, predicted = np.zeros(3), np.zeros(3), np.zeros(3)
    for index in range(100, 105):
        picture, mask = scene(index)
        x = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
        x = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
            :, None, None
        ]
        with torch.inference_mode():
            labels = net(x[None])[0].argmax(0).numpy()
        truth = np.array(mask)
        for c in range(3):
            hits[c] += ((labels == c) & (truth == c)).sum()
            predicted[c] += ((labels == c) & (truth != 255)).sum()
            sums[c] += ((labels == c) & (truth != 255)).sum() + (truth == c).sum()
    assert (predicted > 0).all(), "else little could be wrong"
    np.testing.assert_allclose(results["iou_per_class"], hits / (sums - hits), atol=2e-3)
    assert results["mean_iou"] == pytest.approx(np.mean(results["iou_per_class"]))
    assert "mean IoU" in capsys.readouterr().out


def test_evaluation_with_fewer_bits(scenes, learned, tmp_path):
    """Also the pictures that are drawn are then given to the network as it takes them."""
    found = {}
    for precision in ("32-true", "bf16-true", "64-true"):
        out = tmp_path / precision
        arguments = ["--workers", "0", "--device", "cpu", "--precision", precision, "--draw", "2"]
        run(
            "evaluate", "segment", "--weights", learned / "best.safetensors", "--data", scenes, "--out", out, *arguments
        )
        assert (out / "pictures.png").exists()
        found[precision] = json.loads((out / "results.json").read_text())["mean_iou"]
    assert found["64-true"] == pytest.approx(found["32-true"], abs=2e-3)
    assert found["bf16-true"] == pytest.approx(found["32-true"], abs=0.1)


def test_classes_in_another_order(scenes, learned, tmp_path):
    """Classes are matched by name: with names and numbers exchanged alike the scores stay."""
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    (data / "classes.txt").write_text("box\nground\ndisc\n")
    for path in data.glob("*/masks/*.png"):
        with Image.open(path) as mask:
            Image.fromarray(np.array([1, 2, 0, *range(3, 256)], np.uint8)[np.asarray(mask)]).save(path)
    found = []
    for index, root in enumerate((scenes, data)):
        arguments = ["--data", root, "--out", tmp_path / str(index), "--workers", "0", "--draw", "0"]
        run("evaluate", "segment", "--weights", learned / "best.safetensors", *arguments)
        found.append(json.loads((tmp_path / str(index) / "results.json").read_text())["iou_per_class"])
    assert found[1] == pytest.approx(found[0])


def test_evaluation_window_by_window(scenes, learned, tmp_path):
    """Windows as large as the pictures give what whole pictures give."""
    weights = learned / "best.safetensors"
    found = {}
    for mode in ("whole", "sliding"):
        out = tmp_path / mode
        arguments = ["--mode", mode, "--workers", "0", "--draw", "0"]
        run("evaluate", "segment", "--weights", weights, "--data", scenes, "--out", out, *arguments)
        found[mode] = json.loads((out / "results.json").read_text())
    assert found["sliding"]["mean_iou"] == pytest.approx(found["whole"]["mean_iou"], abs=1e-3)
    assert not (tmp_path / "sliding/pictures.png").exists()


def test_the_best_epoch_scores_what_training_said(scenes, learned, tmp_path):
    weights = learned / "best.safetensors"
    run("evaluate", "segment", "--weights", weights, "--data", scenes, "--out", tmp_path / "out", "--workers", "0")
    results = json.loads((tmp_path / "out/results.json").read_text())
    best = max(float(row["val_mean_iou"]) for row in rows(learned))
    assert results["mean_iou"] == pytest.approx(best, abs=2e-3)


def test_wrong_evaluation_arguments(scenes, weights, tmp_path, fails, shared):
    start = ["evaluate", "segment", "--data", scenes]
    fails(*start, "--weights", weights, "--mode", "windows", message="choose one of whole, sliding")
    fails(*start, "--weights", tmp_path, message=str(tmp_path))
    dicenet.save(timm.create_model("dicenet_010", num_classes=2), tmp_path / "classifier.safetensors")
    file = tmp_path / "classifier.safetensors"
    fails(
        *start, "--weights", file, message="is a classifier, not a segmentation network: use the command for classify"
    )
    unnamed = tmp_path / "unnamed.pth"
    unnamed.symlink_to(shared("weights/dicenet_s_0.2_pascal_384x384.pth"))
    voc = ["evaluate", "segment", "--data", shared("data/voc2012_mini"), "--weights", unnamed]
    fails(*voc, message="does not say for which size of pictures it was trained: give --img-size")


# -- prediction


def test_prediction(scenes, learned, tmp_path, capsys):
    weights = learned / "best.safetensors"
    (tmp_path / "bad.png").write_bytes(b"")
    out = tmp_path / "out"
    run("predict", "segment", "--weights", weights, "--out", out, scenes / "val/images", tmp_path / "bad.png")
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "5 answered, 1 left out" in said
    assert "ms a picture" in said
    answers = json.loads((out / "predictions.json").read_text())
    assert answers["class_names"] == NAMES
    assert [error["reason"] for error in answers["errors"]] == [f"{tmp_path / 'bad.png'}: the file is empty"]
    for item in answers["items"]:
        result = item["result"]
        with Image.open(out / result["mask"]) as mask:
            assert mask.mode == "P"
            assert mask.size == SIZE
            counts = np.bincount(np.asarray(mask).ravel(), minlength=3) / (SIZE[0] * SIZE[1])
        for found in result["classes"]:
            assert found["share"] == pytest.approx(counts[found["index"]], abs=1e-6)
            assert found["class"] == NAMES[found["index"]]
        assert sum(found["share"] for found in result["classes"]) == pytest.approx(1, abs=1e-5)
    assert len(list((out / "pictures").iterdir())) == len(list((out / "masks").iterdir())) == 5
    assert (out / "legend.png").exists()


@pytest.mark.parametrize("mode", ["whole", "sliding"])
def test_pictures_of_extreme_sizes(weights, tmp_path, mode):
    for size in ((1, 1), (3, 500), (500, 3)):
        Image.new("RGB", size, "red").save(tmp_path / f"{size[0]}x{size[1]}.png")
    pictures = sorted(tmp_path.glob("*.png"))
    run("predict", "segment", "--weights", weights, "--out", tmp_path / "out", "--mode", mode, *pictures)
    answers = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [item["result"]["size"] for item in answers["items"]] == [[1, 1], [500, 3], [3, 500]]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux, which tells the peak of a process")
def test_memory_for_a_large_picture(weights, tmp_path):
    """6000x4000 pixels: 72 MB of bytes. Whole pictures cost no more than a few of these."""
    Image.new("RGB", (6000, 4000), (200, 30, 30)).save(tmp_path / "large.png")
    arguments = ["predict", "segment", "--weights", weights, "--out", tmp_path / "out", tmp_path / "large.png"]
    # not ru_maxrss, which a process inherits from the one that started it
    code = (
        "import re, sys, dicenet_cli\n"
        f"code = dicenet_cli.main({[str(a) for a in arguments]})\n"
        "kilobytes = re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]\n"
        "print('peak', int(kilobytes) // 1024)\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peak = int(re.search(r"peak (\d+)", done.stdout)[1])
    assert peak < 2048, f"{peak} MB"
    with Image.open(tmp_path / "out/masks/large.png") as mask:
        assert mask.size == (6000, 4000)


def test_prediction_of_nothing_readable(weights, tmp_path, fails):
    (tmp_path / "bad.png").write_bytes(b"")
    predict = ["predict", "segment", "--weights", weights]
    fails(*predict, "--out", tmp_path / "out", tmp_path / "bad.png", message="none of the 1 pictures could be read")
    fails(*predict, tmp_path / "nothing", message="does not exist")


def test_official_checkpoint_on_the_cat(shared, tmp_path):
    """Most of the official map is one animal on background: so says the JSON."""
    picture = shared("reference/official/seg_input_cat_384x384.png")
    official = shared("weights/dicenet_s_1.0_pascal_384x384.pth")
    run("predict", "segment", "--weights", official, "--out", tmp_path / "out", picture)
    answers = json.loads((tmp_path / "out/predictions.json").read_text())
    (item,) = answers["items"]
    with Image.open(shared("reference/official/seg_dicenet_s1.0_pascal_384x384_cat_labels.png")) as labels:
        expected = np.bincount(np.asarray(labels).ravel(), minlength=21) / 384**2
    for found in item["result"]["classes"]:
        assert found["share"] == pytest.approx(expected[found["index"]], abs=1e-3)
