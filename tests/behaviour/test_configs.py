"""Every shipped recipe is found by its name, says what it is in its header, and takes a step on tiny data."""

import itertools
import math
import re
import shutil
import zlib

import numpy as np
import pytest
import timm
import yaml
from command_cases import rows, run
from PIL import Image
from test_detect_commands import write as write_boxes

import dicenet_cli
from dicenet.classes import CITYSCAPES
from dicenet.cli.recipes import FOLDER, recipes
from dicenet.cli.run import _parser
from dicenet.cli.train import COMMANDS

RECIPES = recipes()
LADDERS = {
    "imagenet": ("e150_b512", "e300_b512", "e300_b512_smooth", "e300_b512_smooth_ema", "e300_b2048"),
    "cifar10": ("baseline", "longer", "label_smoothing", "ema", "large_batch"),
}


def values(name):
    return yaml.safe_load(RECIPES[name].read_text())


def task_of(name):
    """The task in the header's command, which must name the recipe."""
    text = RECIPES[name].read_text()
    return re.search(rf"^#   dicenet train (\w+) --config {re.escape(name)}(\.yaml)? ", text, re.MULTILINE)[1]


@pytest.mark.parametrize("name", RECIPES)
def test_header(name):
    text = RECIPES[name].read_text()
    expected = re.search(r"^# Expected: .*(\n# for this network.*)?", text, re.MULTILINE)[0]
    measured = re.match(r"# Expected: [\d.]+ %.*\(seed 1882\)", expected)
    published = re.match(r"# Expected: [\d.]+ %.*as the authors published", expected)
    # the ladder's figures are of a part of the data, and stand in one table
    recorded = expected.endswith("by benchmarks/ladder.py, in results/ladder_cifar10.csv of the repository.")
    assert measured or published or recorded
    assert bool(published) == ("ot run here" in expected), "what was not run must say so"
    assert re.search("^# Hardware: |on 2 cores", text, re.MULTILINE)
    assert task_of(name) in dicenet_cli.TASKS


def test_there_are_recipes_of_each_data_set():
    names = {name.split("/")[0] for name in RECIPES if "/" in name}
    assert {"imagenet", "cifar10", "voc", "coco", "cityscapes", "camvid", "bccd"} <= names


@pytest.mark.parametrize("folder", LADDERS)
def test_each_rung_adds_one_part(folder):
    """As in the paper's Figure 7; with the batch go the rate and the span of the average, which count in steps."""
    rungs = [values(f"{folder}/{rung}") for rung in LADDERS[folder]]
    changed = [
        {key for key in {*one, *other} if one.get(key) != other.get(key)} for one, other in itertools.pairwise(rungs)
    ]
    cycled = {"cycled"} if folder == "imagenet" else set()
    assert changed == [{"epochs"} | cycled, {"label_smoothing"}, {"ema"}, {"accumulate", "lr", "ema"}]
    assert rungs[1]["epochs"] == 2 * rungs[0]["epochs"]
    batches = [rung["batch_size"] * rung.get("devices", 1) * rung.get("accumulate", 1) for rung in rungs]
    assert batches == ([512, 512, 512, 512, 2048] if folder == "imagenet" else [128, 128, 128, 128, 512])
    spans = [batch / (1 - rung["ema"]) for batch, rung in zip(batches[-2:], rungs[-2:], strict=True)]
    assert math.isclose(*spans)


@pytest.mark.parametrize("name", ["e150_b512", "e300_b2048"])
def test_the_papers_recipe_is_the_official_optimiser(name):
    recipe = values(f"imagenet/{name}")
    assert (recipe["optimizer"], recipe["momentum"], recipe["weight_decay"]) == ("momentum", 0.9, 4e-5)
    assert recipe["decay_all"] is True
    assert recipe["epochs"] == int(name[1:4])


#: The official values of both stages of each data set (of detection: ESPNetv2's).
STAGES = ("lr", "batch_size", "img_size", "freeze_norms", "min_scale", "max_scale")
OFFICIAL_STAGES = {
    "voc/segment_256": (0.009, 40, 256, False, 0.5, 2.0),
    "voc/segment_384": (0.005, 32, 384, True, 0.5, 2.0),
    "cityscapes/segment_512x256": (0.009, 25, [256, 512], False, 0.25, 0.5),
    "cityscapes/segment_1024x512": (0.005, 6, [512, 1024], True, 0.35, 1.0),
    "voc/ssd_300": (0.01, 192, 300, False, None, None),
    "voc/ssd_512": (0.005, 60, 512, True, None, None),
    "coco/ssd_300": (0.01, 192, 300, False, None, None),
    "coco/ssd_512": (0.005, 60, 512, True, None, None),
}
#: Those that the stages of a task share.
OFFICIAL_TASKS = {
    "segment": {"weight_decay": 4e-5, "lr_mult": 10.0},
    "detect": {"weight_decay": 5e-4, "lr_mult": 1.0, "head": "espnet", "priors": "official"},
}
OFFICIAL_ALL = {"epochs": 100, "schedule": "hybrid", "cycled": 61, "momentum": 0.9, "decay_all": True, "hflip": 0.5}


@pytest.mark.parametrize("name", OFFICIAL_STAGES)
def test_the_authors_recipes(name):
    """What they say, without what the command would add, is what the official code does."""
    task = task_of(name)
    stage = dict(zip(STAGES, OFFICIAL_STAGES[name], strict=True))
    if not stage["freeze_norms"]:
        stage["freeze_norms"] = None
    recipe = values(name)
    expected = {**OFFICIAL_ALL, **OFFICIAL_TASKS[task], **stage, "seed": 1882, "warmup": 0.0}
    assert {key: recipe.get(key) for key in expected} == expected
    assert recipe["optimizer"] == "sgd", "which is the one without Nesterov's momentum in these tasks"


def test_multilabel_recipe():
    """Of the official code it has the pictures, the decay and the momentum."""
    recipe = values("coco/multilabel")
    expected = {"img_size": 224, "min_scale": 0.08, "weight_decay": 4e-5, "momentum": 0.9, "hflip": 0.5, "seed": 1882}
    assert {key: recipe.get(key) for key in expected} == expected


# -- one step of each


def picture(path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(zlib.crc32(path.name.encode())).integers(0, 256, (size, size, 3))
    Image.fromarray(noise.astype(np.uint8)).save(path)


def class_folders(root, size):
    for part, count in (("train", 4), ("val", 1)):
        for kind in ("a", "b"):
            for index in range(count):
                picture(root / part / kind / f"{index}.png", size)


def mask(path, classes):
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = np.arange(64 * 64).reshape(64, 64) // 64 % classes
    Image.fromarray(numbers.astype(np.uint8)).save(path)


def cityscapes(root):
    for part, count in (("train", 2), ("val", 1)):
        for index in range(count):
            picture(root / f"leftImg8bit/{part}/ulm/{index}_leftImg8bit.png", 64)
            mask(root / f"gtFine/{part}/ulm/{index}_gtFine_labelTrainIds.png", len(CITYSCAPES) - 1)


def camvid(root):
    for part, count in (("train", 2), ("val", 1)):
        for index in range(count):
            picture(root / f"{part}/{index}.png", 64)
            mask(root / f"{part}annot/{index}.png", 12)
        lines = (f"{part}/{index}.png {part}annot/{index}.png\n" for index in range(count))
        (root / f"{part}.txt").write_text("".join(lines))


def masks(root):
    for part, count in (("train", 2), ("val", 1)):
        for index in range(count):
            picture(root / f"{part}/images/{index}.png", 64)
            mask(root / f"{part}/masks/{index}.png", 3)


def boxes(root):
    write_boxes(root, "train", 2)
    write_boxes(root, "val", 1, first=100)


def data_for(name, root):
    """Tiny data of the shape that a recipe is for."""
    folder, task = name.split("/")[0], task_of(name)
    if task == "classify":
        class_folders(root, 32 if folder == "cifar10" else 72)
    elif task == "segment":
        {"cityscapes": cityscapes, "camvid": camvid}.get(folder, masks)(root)
    else:
        boxes(root)
    return root


def one_step(name):
    """Options that make a recipe small, without a download."""
    recipe, task = values(name), task_of(name)
    pictures = 8 if task == "classify" else 2
    options = ["--model", "dicenet_010", "--epochs", "1", "--batch-size", pictures // recipe.get("accumulate", 1)]
    options += ["--workers", "0", "--device", "cpu"]
    if "devices" in recipe:
        options += ["--devices", "1"]
    if recipe.get("pretrained"):
        options += ["--no-pretrained"]
    if "img_size" in recipe:
        options += ["--img-size", "64"]
    return options + (["--crop-size", "64"] if "crop_size" in recipe else [])


@pytest.mark.parametrize("name", RECIPES)
def test_one_step(name, tmp_path, capsys):
    task = task_of(name)
    parsed = _parser(f"train {task}", COMMANDS[task]).parse_args(["--config", str(RECIPES[name])])
    assert timm.is_model(parsed.model)
    data = data_for(name, tmp_path / "data")
    run("train", task, "--config", name, "--data", data, "--out", tmp_path / "out", *one_step(name))
    cycled = values(name).get("cycled")
    assert (f"--cycled {cycled} is above --epochs 1" in capsys.readouterr().out) == (cycled is not None)
    (epoch,) = rows(tmp_path / "out")
    assert int(epoch["step"]) == 1
    assert math.isfinite(float(epoch["train_loss"]))
    saved = yaml.safe_load((tmp_path / "out/config.yaml").read_text())
    kept = set(values(name)) - {"model", "epochs", "batch_size", "devices", "pretrained", "img_size", "crop_size"}
    assert {key: saved[key] for key in kept} == {key: values(name)[key] for key in kept}


# -- by name


def parsed(*options):
    from dicenet.cli.recipes import with_recipes

    command = COMMANDS["classify"]
    return _parser("train classify", command).parse_args(with_recipes(list(options)))


@pytest.mark.parametrize("name", ["cifar10/ema", "cifar10/ema.yaml"])
def test_a_recipe_by_name(name):
    assert parsed("--config", name).ema == 0.99
    assert parsed(f"--config={name}", "--ema", "0.5").ema == 0.5, "options beside it override it"


def test_a_file_goes_before_a_recipe_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifar10").mkdir()
    shutil.copy(FOLDER / "cifar10/ema.yaml", tmp_path / "cifar10/ema.yaml")
    with (tmp_path / "cifar10/ema.yaml").open("a") as file:
        file.write("clip: 3.0\n")
    assert parsed("--config", "cifar10/ema.yaml").clip == 3.0
    assert parsed("--config", "cifar10/ema").clip is None


def test_an_unknown_recipe(fails):
    """All of its folder are named, or all there are."""
    folder = ", ".join(f"imagenet/{name}" for name in sorted(LADDERS["imagenet"]))
    message = f"--config imagenet/e150_b51 is neither a file nor a recipe: the recipes of imagenet/ are {folder}$"
    for verb, task in (("train", "classify"), ("evaluate", "segment"), ("predict", "detect")):
        fails(verb, task, "--config", "imagenet/e150_b51", message=message)
    fails("train", "classify", "--config=imagenet/e150_b51", message=message)
    fails("train", "classify", "--config", "imagenet", message=f"the recipes of imagenet/ are {folder}$")
    fails("train", "segment", "--config", "list", message=f"the recipes are {', '.join(RECIPES)}$")
