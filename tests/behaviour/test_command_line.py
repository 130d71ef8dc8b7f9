"""Commands end to end on tiny data, and what they say when something is wrong."""

import itertools
import json
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from command_cases import RUN_FILES, rows, run
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

import dicenet
import dicenet_cli
from dicenet.engine.pace import TIMINGS
from dicenet.weights.files import read_checkpoint

COMMAND = [sys.executable, "-m", "dicenet_cli"]
QUICK = ["--epochs", "1", "--batch-size", "16", "--workers", "0", "--device", "cpu"]


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """Three classes of real digits as PNG files, in train and val folders."""
    root = tmp_path_factory.mktemp("digits")
    data = load_digits(n_class=3)
    for index, (image, target) in enumerate(zip(data.images[:90], data.target[:90], strict=True)):
        folder = root / ("val" if index % 5 == 0 else "train") / ("zero", "one", "two")[target]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255 / 16).astype("uint8")).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def trained(digits, tmp_path_factory):
    """The run folder of a short training."""
    out = tmp_path_factory.mktemp("run") / "out"
    run("train", "classify", "--data", digits, "--model", "dicenet_010", "--out", out, *QUICK)
    return out


@pytest.fixture(scope="session")
def weights(trained):
    return trained / "best.safetensors"


@pytest.mark.parametrize("model", ["mobilenet_dice_029", "resnet_sep_059", "shufflenetv2_sep_041"])
def test_every_family_is_trained_and_used(model, digits, tmp_path):
    run("train", "classify", "--data", digits, "--model", model, "--out", tmp_path / "train", *QUICK)
    weights = tmp_path / "train/best.safetensors"
    assert dicenet.load(weights).architecture == model
    run("evaluate", "classify", "--weights", weights, "--data", digits, "--out", tmp_path / "evaluation")
    results = json.loads((tmp_path / "evaluation/results.json").read_text())
    assert results["pictures"] == 18
    # the file gives what training measured: nothing of the network is lost on the way
    assert results["top1"] == pytest.approx(max(float(row["val_top1"]) for row in rows(tmp_path / "train")), abs=1e-6)
    run("predict", "classify", "--weights", weights, "--out", tmp_path / "answers", digits / "val/zero")
    answers = json.loads((tmp_path / "answers/predictions.json").read_text())
    assert {item["result"][0]["class"] for item in answers["items"]} <= {"zero", "one", "two"}


# -- help and version


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"], ["benchmark", "--help"]])
def test_answers_without_importing_torch(arguments):
    program = f"import sys, dicenet_cli; dicenet_cli.main({arguments!r}); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0
    assert "dicenet" in done.stdout


@pytest.mark.parametrize(
    "verb", [f"{verb} {word}".strip() for verb, words, _ in dicenet_cli.VERBS for word in words or ("",)]
)
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        dicenet_cli.main([*verb.split(), "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: dicenet {verb}" in text
    assert not re.search(r"--[a-z]+_", text), "options are shown with dashes"


def test_wrong_words(fails):
    fails("trian", message="unknown verb 'trian': did you mean 'train'")
    fails("train", "clasify", message="unknown task 'clasify' for train: choose one of classify")
    fails("train", "classify", "--epoks", "3", message="epoks")
    fails("train", "classify", "--epochs", "many", message="--epochs")
    fails("train", "classify", message="no data: give --data")
    fails("predict", "classify", "--weights", "x.safetensors", message="paths")


# -- models, convert


def test_models_prints_the_official_table(shared, capsys):
    run("models", "--json")
    listed = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    table = re.findall(
        r"^\| (\d\.\d+) \| (\d+,[\d,]+) \| [\d.]+ \| [\d.]+ \| ([\d.]+) \| ([\d.]+) \|",
        shared("facts/official.md").read_text(),
        re.MULTILINE,
    )
    assert len(table) == sum(name.startswith("dicenet_") for name in listed) == 11
    for scale, parameters, official, torch_half in table:
        row = listed[f"dicenet_{round(float(scale) * 100):03d}"]
        assert row["parameters"] == int(parameters.replace(",", ""))
        assert f"{row['macs_official'] / 1e6:.2f}" == official
        assert f"{row['macs'] / 1e6:.2f}" == torch_half
    assert (listed["mobilenet_sep_162"]["img_size"], listed["mobilenet_sep_317"]["img_size"]) == (160, 224)
    run("models")
    text = capsys.readouterr().out
    assert re.search(r"dicenet_175 .* 3\.2649 .* 182\.24 .* top-1 70\.26", text)
    run("models", "--checkpoints")
    assert "espnetv2_050.edgenets_in1k_onnx" in capsys.readouterr().out


def test_convert(shared, tmp_path, capsys, fails):
    state = {
        key.removeprefix("state."): value
        for key, value in load_file(shared("reference/official/dicenet_s0.2_random_weights.safetensors")).items()
    }
    torch.save(state, tmp_path / "old.pth")
    run("convert", tmp_path / "old.pth", "--out", tmp_path / "new.safetensors")
    assert "dicenet_020, 10 classes, input size 224x224" in capsys.readouterr().out
    old, new = dicenet.load_edgenets(state).eval(), dicenet.load(tmp_path / "new.safetensors").eval()
    x = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(new(x), old(x), rtol=0, atol=0)
    fails("convert", tmp_path / "old.pth", "--out", tmp_path / "new.safetensors", message="exists")
    fails("convert", tmp_path / "old.pth", "--out", tmp_path / "new.onnx", message="must end with .safetensors")


def test_convert_a_segmentation_network(shared, tmp_path, capsys, fails):
    official = shared("weights/dicenet_s_0.2_pascal_384x384.pth")
    run("convert", official, "--out", tmp_path / "new.safetensors")
    assert "dicenet_020, 21 classes, input size 384x384" in capsys.readouterr().out
    old, new = dicenet.load_edgenets(official).eval(), dicenet.load(tmp_path / "new.safetensors").eval()
    x = torch.randn(1, 3, 65, 97)
    torch.testing.assert_close(new(x), old(x), rtol=0, atol=0)
    assert new.pretrained_cfg["label_names"][15] == "person"
    (tmp_path / "unnamed.pth").symlink_to(official)
    fails("convert", tmp_path / "unnamed.pth", "--out", tmp_path / "b.safetensors", message="which size of pictures")


# -- training


def test_a_run_leaves_what_it_should(trained, digits):
    files = {p.name for p in trained.iterdir()}
    assert files == RUN_FILES
    assert any((trained / "tensorboard").iterdir())
    (row,) = rows(trained)
    assert set(row) == {"epoch", "step", "train_loss", "val_loss", "val_top1", "val_top5", "lr", *TIMINGS}
    assert float(row["train_loss"]) > 0
    with Image.open(trained / "curves.png") as plot:
        assert min(plot.size) > 200
    metadata = read_checkpoint(trained / "best.safetensors").metadata
    assert metadata["class_names"] == ["one", "two", "zero"]
    assert metadata["architecture"] == "dicenet_010"
    assert metadata["model_args"]["stem"] == "small"
    assert metadata["input_size"] == [32, 32]
    assert metadata["training"]["epoch"] == 1


def test_the_last_checkpoint_can_be_used_like_the_weights(trained):
    last, best = dicenet.load(trained / "last.ckpt"), dicenet.load(trained / "best.safetensors")
    for key, value in best.state_dict().items():
        torch.testing.assert_close(last.state_dict()[key], value, rtol=0, atol=0)
    assert last.pretrained_cfg["label_names"] == ("one", "two", "zero")


def test_every_value_can_stand_in_a_config(digits, tmp_path):
    config = tmp_path / "recipe.yaml"
    config.write_text(
        f"data: {digits}\nmodel: dicenet_010\nepochs: 1\nbatch_size: 16\nworkers: 0\nema: 0.9\nlabel_smoothing: 0.1\n"
        "schedule: cosine\noptimizer: adamw\nlr: 0.001\naugment: none\nin_chans: 1\naccumulate: 2\nclip: 1.0\n"
        "device: cpu\nseed: 5\n"
    )
    run("train", "classify", "--config", config, "--out", tmp_path / "out", "--seed", "6")
    import yaml

    saved = yaml.safe_load((tmp_path / "out/config.yaml").read_text())
    assert (saved["ema"], saved["seed"]) == (0.9, 6), "a flag overrides the file"
    net = dicenet.load(tmp_path / "out/best.safetensors")
    assert (net.in_chans, len(net.pretrained_cfg["mean"])) == (1, 1)
    run("train", "classify", "--config", tmp_path / "out/config.yaml", "--out", tmp_path / "again")
    first, second = (read_checkpoint(tmp_path / o / "best.safetensors").state for o in ("out", "again"))
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=1e-4, atol=1e-5)


def test_training_twice_makes_two_folders(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda *arguments: "20260102-030405")
    for _ in range(2):
        run("train", "classify", "--data", digits, "--model", "dicenet_010", *QUICK)
    folders = sorted(p.name for p in Path("runs/classify").iterdir())
    assert folders == ["train-20260102-030405", "train-20260102-030405-2"]


def test_fine_tuning(digits, weights, tmp_path, capsys):
    """From our own weights to other classes, at another size, from one folder without parts."""
    run("train", "classify", "--data", digits / "train", "--weights", weights, "--out", tmp_path / "a", *QUICK)
    kept = dicenet.load(tmp_path / "a/best.safetensors")
    assert (kept.stem_type, kept.trained_size, kept.num_classes) == ("small", (32, 32), 3)
    assert "20% held out" in capsys.readouterr().out
    shutil.copytree(digits / "train", tmp_path / "two", ignore=shutil.ignore_patterns("one"))
    arguments = ["--img-size", "40", "--val-fraction", "0.5", "--out", tmp_path / "b", *QUICK]
    run("train", "classify", "--data", tmp_path / "two", "--weights", weights, *arguments)
    other = dicenet.load(tmp_path / "b/best.safetensors")
    assert (other.input_size, other.trained_size, other.num_classes) == ((40, 40), (32, 32), 2)


def test_learns(tmp_path):
    """A few epochs on the digits are far above chance: the loop trains, whatever else works."""
    arguments = ["--model", "dicenet_020", "--epochs", "5", "--batch-size", "64", "--workers", "0", "--device", "cpu"]
    run("train", "classify", "--data", "digits", "--out", tmp_path / "out", *arguments)
    assert max(float(row["val_top1"]) for row in rows(tmp_path / "out")) > 0.8


def start(*arguments, **kwargs):
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs
    )


def wait_for(path, process, seconds=120):
    for _ in range(seconds * 20):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise TimeoutError(path)


LONG = ["--model", "dicenet_010", "--batch-size", "8", "--workers", "1", "--device", "cpu", "--epochs", "4"]


@pytest.mark.slow
def test_several_processes(digits, tmp_path):
    """Two processes, started by Lightning, fill one run folder together."""
    arguments = ["--model", "dicenet_010", "--batch-size", "8", "--workers", "0", "--epochs", "2", "--device", "cpu"]
    several = ["--devices", "2", "--strategy", "ddp"]
    done = subprocess.run(
        [*COMMAND, "train", "classify", "--data", digits, "--out", tmp_path / "out", *arguments, *several],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder") == 1
    assert [row["epoch"] for row in rows(tmp_path / "out")] == ["1", "2"]
    steps_of_one = len(list((digits / "train").rglob("*.png"))) // 8
    assert int(rows(tmp_path / "out")[-1]["step"]) == pytest.approx(2 * steps_of_one / 2, abs=2)


def test_killed_and_resumed(digits, tmp_path):
    out = tmp_path / "out"
    process = start("train", "classify", "--data", digits, "--out", out, *LONG)
    wait_for(out / "last.ckpt", process)
    process.kill()
    process.communicate()
    finished = torch.load(out / "last.ckpt", weights_only=True)["epoch"] + 1  # it is whole
    assert 1 <= finished < 4
    done = subprocess.run([*COMMAND, "train", "classify", "--resume", out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"resuming behind epoch {finished} of 4" in done.stdout
    assert f"epoch {finished + 1}/4" in done.stdout
    assert f"epoch {finished}/4" not in done.stdout
    assert [row["epoch"] for row in rows(out)] == ["1", "2", "3", "4"]
    steps = [int(row["step"]) for row in rows(out)]
    assert steps == [steps[0] * n for n in (1, 2, 3, 4)]
    assert float(rows(out)[-1]["lr"]) == 0, "the schedule goes on where it was"


def test_ctrl_c(digits, tmp_path):
    out = tmp_path / "out"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        process = start("train", "classify", "--data", digits, "--out", out, *LONG, "--epochs", "400")
    finally:
        signal.signal(signal.SIGINT, before)
    wait_for(out / "last.ckpt", process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in error
    assert re.search(r"stopped; go on with: dicenet train classify --resume .*out", error)
    torch.load(out / "last.ckpt", weights_only=True)


def test_resumed_before_the_first_epoch_was_finished(digits, trained, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    config = (trained / "config.yaml").read_text()
    (out / "config.yaml").write_text(config)
    run("train", "classify", "--resume", out)
    assert "no checkpoint was written: anew" in capsys.readouterr().out
    assert len(rows(out)) == 1


def test_resumed_for_more_epochs_with_an_average(digits, tmp_path, capsys):
    out = tmp_path / "out"
    run("train", "classify", "--data", digits, "--model", "dicenet_010", "--out", out, "--ema", "0.9", *QUICK)
    first = torch.load(out / "last.ckpt", weights_only=True)
    run("train", "classify", "--resume", out, "--epochs", "2")
    assert len(rows(out)) == 2
    second = torch.load(out / "last.ckpt", weights_only=True)
    assert second["averaging_state"]["n_averaged"] == 2 * first["averaging_state"]["n_averaged"]
    capsys.readouterr()
    run("train", "classify", "--resume", out)  # the run remembers that it has two epochs now
    assert "all 2 epochs are finished" in capsys.readouterr().out


def test_what_cannot_change_in_a_resumed_run(digits, trained, tmp_path, fails, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(trained, out)
    resume = ["train", "classify", "--resume", out, "--epochs", "2"]
    fails(*resume, "--optimizer", "adamw", message="cannot change optimizer from sgd to adamw in a resumed run")
    fails(*resume, "--model", "dicenet_020", message="cannot change model")
    fails(*resume, "--out", tmp_path / "other", message="leave out --out")
    shutil.copytree(digits, tmp_path / "two", ignore=shutil.ignore_patterns("one"))
    fails(*resume, "--data", tmp_path / "two", message="the run was of 3 classes, the data has 2")
    whole = (out / "last.ckpt").read_bytes()
    for length in (100, 5000, 20_000, 100_000, len(whole) - 10):
        (out / "last.ckpt").write_bytes(whole[:length])
        fails(*resume, message="last.ckpt")
    torch.save({"state_dict": dicenet.load(trained / "best.safetensors").state_dict()}, out / "last.ckpt")
    fails(*resume, message="not of a dicenet run")
    (out / "last.ckpt").write_bytes(whole)
    monkeypatch.chdir(tmp_path)
    run(*resume)
    assert len(rows(out)) == 2


def test_no_space_left(digits, tmp_path):
    """A limit on file sizes stands for a full disk: writing the checkpoint fails in the middle."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    out = tmp_path / "out"
    process = start("train", "classify", "--data", digits, "--out", out, *LONG, preexec_fn=limit)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2, error
    assert "Traceback" not in error
    assert re.search(r"dicenet: cannot write .*last\.ckpt: File too large", error)
    assert not (out / "last.ckpt").exists()
    assert not list(out.glob(".*part"))


def test_loss_that_is_no_number(digits, tmp_path, fails):
    arguments = ["--model", "dicenet_010", "--lr", "1e30", *QUICK, "--epochs", "3", "--warmup", "0"]
    fails(
        "train", "classify", "--data", digits, "--out", tmp_path / "out", *arguments, message="the loss became .* --lr"
    )


def test_wrong_training_arguments(digits, weights, tmp_path, fails):
    def refused(*arguments, message):
        fails("train", "classify", "--data", digits, *arguments, message=message)

    refused("--model", "dicenet_110", message="'dicenet_110' is unknown: the nearest are dicenet_100 and dicenet_125")
    refused("--model", "dicnet_50", message="unknown")
    refused("--model", "resnet18", message="unknown")
    refused("--img-size", "31", "--model", "dicenet_010", message="at least 32")
    refused("--device", "cuda" if not torch.cuda.is_available() else "tpu", message="device")
    refused("--optimizer", "sdg", message="choose one of sgd, momentum, adamw")
    refused("--schedule", "step", message="choose one of linear")
    refused("--stem", "tiny", "--model", "dicenet_010", message="choose one of standard, small")
    refused("--augment", "mixup", message="choose one of resized-crop")
    refused("--auto-augment", "rand", "--model", "dicenet_010", message="choose one of randaugment")
    refused("--mixup", "-1", message="mixup and cutmix must be 0 or above")
    refused("--milestones", "[9,3]", message="milestones must be ascending")
    refused("--teacher", "resnet_18", "--model", "dicenet_010", message="the nearest are resnet18")
    refused("--epochs", "0", message="epochs must be at least 1")
    refused("--lr", "-1", message="lr must be above 0")
    refused("--momentum", "0", message="momentum must lie between")
    refused("--workers", "-1", "--model", "dicenet_010", message="workers at least 0")
    refused("--batch-size", "0", "--model", "dicenet_010", message="batch_size must be at least 1")
    refused("--drop-rate", "2", message="drop_rate must lie")
    refused("--ema", "1.5", *QUICK, "--model", "dicenet_010", message="ema must lie")
    refused("--min-scale", "3", "--model", "dicenet_010", message="min_scale must be above 0")
    refused("--seed", "-1", message="seed must lie")
    refused("--img-size", "48,64", message=r"whole number or \[height, width\]")
    refused("--model", "dicenet_020.edgenets_in1k", "--weights", weights, message="names weights, and so does")
    refused("--precision", "8-bit", *QUICK, "--model", "dicenet_010", message="precision|Precision")
    refused(
        "--weights", weights, "--model", "dicenet_050", message="is a checkpoint of dicenet_010, not of dicenet_050"
    )
    refused("--weights", weights, "--stem", "standard", message="small stem")
    refused("--weights", tmp_path / "none.pth", message="is not a file")
    refused("--resume", tmp_path, message="is not a run folder")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    refused("--out", tmp_path / "full", message="--out .*full is not empty")
    refused("--out", tmp_path / "full/file", message="is a file")
    fails("train", "classify", "--data", tmp_path / "missing", message="does not exist")


def test_debug_shows_the_traceback(capfd):
    run("train", "classify", "--data", "/no/such", "--debug", code=2)
    error = capfd.readouterr().err
    assert "Traceback" in error
    assert error.strip().splitlines()[-1].startswith("dicenet: data path /no/such does not exist")


def test_bad_pictures_in_a_data_set(digits, shared, tmp_path, capsys):
    shutil.copytree(digits, tmp_path / "data")
    shutil.copy(shared("data/bad_images/truncated.jpg"), tmp_path / "data/train/one/cut.jpg")
    shutil.copy(shared("data/bad_images/text.jpg"), tmp_path / "data/val/one/text.jpg")
    data = tmp_path / "data"
    arguments = ["--model", "dicenet_010", "--out", tmp_path / "run", *QUICK, "--batch-size", "128"]
    run("train", "classify", "--data", data, *arguments)
    output = capsys.readouterr().out
    assert "2 pictures could not be read: left out" in output
    assert "cut.jpg: is damaged or cut off" in output
    weights = tmp_path / "run/best.safetensors"
    run("evaluate", "classify", "--weights", weights, "--data", data, "--out", tmp_path / "eval", "--workers", "0")
    assert "text.jpg: is not a picture" in capsys.readouterr().out
    results = json.loads((tmp_path / "eval/results.json").read_text())
    assert [Path(error["path"]).name for error in results["errors"]] == ["text.jpg"]


def test_bad_shard_in_a_reading_process_is_one_line(tmp_path, shared):
    """Errors of a reading process arrive with its traceback; one line of it is shown."""
    import io
    import tarfile

    picture = shared("data/bad_images/grey.jpg").read_bytes()
    for name, target, keys in (("a", "0", "jk"), ("b", "9", "k")):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as archive:
            for key, (suffix, content) in itertools.product(keys, (("jpg", picture), ("cls", target.encode()))):
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    (tmp_path / "train").mkdir()
    shutil.move(tmp_path / "a.tar", tmp_path / "train/a.tar")
    (tmp_path / "val").mkdir()
    shutil.move(tmp_path / "b.tar", tmp_path / "val/b.tar")
    (tmp_path / "classes.txt").write_text("x\ny\n")
    arguments = ["--model", "dicenet_010", "--img-size", "32", "--epochs", "1", "--workers", "1", "--device", "cpu"]
    done = subprocess.run(
        [*COMMAND, "train", "classify", "--data", tmp_path, "--out", tmp_path / "out", *arguments],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("dicenet: ")]
    assert lines == ["dicenet: b.tar:k is of class 9, but only 2 are named"]
    assert "Traceback" not in done.stderr


def test_a_refused_start_leaves_the_folder_usable(digits, tmp_path, fails):
    arguments = ["train", "classify", "--data", digits, "--model", "dicenet_010", "--out", tmp_path / "out", *QUICK]
    fails(*arguments, "--precision", "8-bit", message="recision")
    run(*arguments)


def test_odd_names_of_classes_and_files(digits, tmp_path, capsys):
    """Names that mean something to the plots, the tables or nobody come through unharmed."""
    data = tmp_path / "data"
    for name, folder in (("$a_b$^", "zero"), ("[red]x", "one"), ("字", "two")):
        shutil.copytree(digits / "train" / folder, data / name)
    os.rename(data / "字", os.fsencode(data) + b"/caf\xe9")
    run("train", "classify", "--data", data, "--model", "dicenet_010", "--out", tmp_path / "run", *QUICK)
    weights = tmp_path / "run/best.safetensors"
    run("evaluate", "classify", "--weights", weights, "--data", data, "--out", tmp_path / "e", "--workers", "0")
    assert "[red]x" in capsys.readouterr().out
    names = [row["class"] for row in json.loads((tmp_path / "e/results.json").read_text())["classes"]]
    assert names == ["$a_b$^", "[red]x", "caf\\udce9"]
    long = tmp_path / f"{'n' * 240}.png"
    shutil.copy(next((digits / "val/one").iterdir()), long)
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    shutil.copy(long, odd)
    run("predict", "classify", "--weights", weights, "--out", tmp_path / "p", long, odd, odd)
    assert len(json.loads((tmp_path / "p/predictions.json").read_text())["items"]) == 2


# -- evaluation


def test_evaluation(digits, weights, tmp_path, capsys):
    run("evaluate", "classify", "--weights", weights, "--data", digits, "--out", tmp_path / "out", "--workers", "0")
    results = json.loads((tmp_path / "out/results.json").read_text())
    confusion = torch.tensor(results["confusion"])
    assert results["pictures"] == confusion.sum() == sum(row["pictures"] for row in results["classes"]) == 18
    assert results["top1"] == pytest.approx(confusion.diag().sum().item() / 18)
    assert results["top5"] == 1.0  # of three classes
    assert results["split"] == "val"
    output = capsys.readouterr().out
    assert f"top-1 {100 * results['top1']:.2f} %" in output
    assert "zero" in output
    assert (tmp_path / "out/confusion.png").exists()


def test_evaluation_agrees_with_a_plain_loop(digits, weights, tmp_path):
    """Top-1 and loss of a loop over the files, prepared by hand."""
    run("evaluate", "classify", "--weights", weights, "--data", digits, "--out", tmp_path / "out", "--workers", "0")
    results = json.loads((tmp_path / "out/results.json").read_text())
    net = dicenet.load(weights).eval()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    right, losses = 0, []
    for file in sorted((digits / "val").rglob("*.png")):
        picture = Image.open(file).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
        values = torch.from_numpy(np.array(picture)) / 255
        logits = net(((values - mean) / std).permute(2, 0, 1)[None])
        target = torch.tensor([["one", "two", "zero"].index(file.parent.name)])
        right += int(logits.argmax() == target)
        losses.append(torch.nn.functional.cross_entropy(logits, target).item())
    assert results["top1"] == pytest.approx(right / 18)
    assert results["loss"] == pytest.approx(sum(losses) / 18, rel=1e-3)


def test_classes_are_matched_by_name(digits, weights, tmp_path, fails):
    """Renamed so that their order changes, the classes keep their meaning; unknown ones are refused."""
    arguments = ["evaluate", "classify", "--weights", weights, "--workers", "0"]
    shutil.copytree(digits / "val", tmp_path / "part", ignore=shutil.ignore_patterns("one"))
    run(*arguments, "--data", tmp_path / "part", "--out", tmp_path / "a")
    run(*arguments, "--data", digits, "--out", tmp_path / "b")
    part, whole = (json.loads((tmp_path / o / "results.json").read_text()) for o in "ab")
    assert [row["class"] for row in part["classes"]] == ["two", "zero"]
    assert part["confusion"][1:] == whole["confusion"][1:]
    (tmp_path / "part/two").rename(tmp_path / "part/deux")
    fails(*arguments, "--data", tmp_path / "part", message="unknown ones: deux")
    fails(*arguments, "--data", digits, "--split", "test", message="has no part test: it has train, val")


# -- prediction


def test_prediction(digits, weights, tmp_path, shared, recwarn):
    files = sorted((digits / "val").rglob("*.png"))[:3]
    bad = shared("data/bad_images")
    run("predict", "classify", "--weights", weights, "--out", tmp_path / "out", "--top", "2", *files, bad)
    assert [str(w.message) for w in recwarn] == []
    predictions = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [item["file"] for item in predictions["items"]][:3] == [str(file) for file in files]
    assert len(predictions["items"]) == 3 + 12
    assert sorted(Path(error["path"]).name for error in predictions["errors"]) == [
        "bad_crc.png",
        "empty.jpg",
        "huge_header.png",
        "text.jpg",
        "truncated.jpg",
        "truncated_header.jpg",
    ]
    for item in predictions["items"]:
        first, second = item["result"]
        assert first["score"] >= second["score"]
        assert first["class"] in ("one", "two", "zero")
        assert first["class"] == ("one", "two", "zero")[first["index"]]
    assert len(list((tmp_path / "out/pictures").iterdir())) == 15


def test_prediction_of_nothing_readable(shared, weights, tmp_path, fails):
    bad = shared("data/bad_images/text.jpg")
    arguments = ["predict", "classify", "--weights", weights]
    fails(*arguments, "--out", tmp_path / "a", bad, message="none of the 1 pictures could be read")
    assert json.loads((tmp_path / "a/predictions.json").read_text())["errors"]
    fails(*arguments, tmp_path / "missing.jpg", message="does not exist")
    (tmp_path / "void").mkdir()
    fails(*arguments, tmp_path / "void", message="no pictures in")
    fails(*arguments, "--top", "0", bad, message="top and batch_size must be at least 1")


def test_no_drawing(digits, weights, tmp_path):
    run("predict", "classify", "--weights", weights, "--out", tmp_path / "out", "--no-draw", digits / "val/one")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["predictions.json"]


@pytest.fixture
def optimized(monkeypatch):
    """Names of the networks that were optimized."""
    names = []

    def counted(net):
        names.append(net.width.name)
        return dicenet.optimize_for_inference(net)

    monkeypatch.setattr("dicenet.tasks.devices.optimize_for_inference", counted)
    return names


def test_prediction_with_and_without_optimizing(digits, weights, tmp_path, optimized):
    arguments = ["predict", "classify", "--weights", weights, "--device", "cpu", "--no-draw", digits / "val"]
    run(*arguments, "--out", tmp_path / "fast")
    assert optimized == ["dicenet_010"]
    run(*arguments, "--out", tmp_path / "plain", "--no-optimize")
    assert optimized == ["dicenet_010"]
    fast, plain = (json.loads((tmp_path / o / "predictions.json").read_text())["items"] for o in ("fast", "plain"))
    assert len(fast) == len(plain) == 18
    for one, other in zip(fast, plain, strict=True):
        scores, expected = ({a["class"]: a["score"] for a in item["result"]} for item in (one, other))
        assert scores == pytest.approx(expected, abs=1e-4)


def test_evaluation_with_and_without_optimizing(digits, weights, tmp_path, optimized):
    arguments = ["evaluate", "classify", "--weights", weights, "--data", digits, "--workers", "0", "--device", "cpu"]
    run(*arguments, "--out", tmp_path / "fast", "--optimize")
    assert optimized == ["dicenet_010"]
    run(*arguments, "--out", tmp_path / "plain", "--no-optimize")
    run(*arguments, "--out", tmp_path / "half", "--precision", "bf16-true")
    assert optimized == ["dicenet_010"], "neither where it is not wanted nor in another precision"
    fast, plain = (json.loads((tmp_path / o / "results.json").read_text()) for o in ("fast", "plain"))
    assert fast["confusion"] == plain["confusion"]
    assert fast["loss"] == pytest.approx(plain["loss"], abs=1e-4)


def test_wrong_use_of_the_optimize_switch(digits, weights, tmp_path, fails):
    data = ["evaluate", "classify", "--weights", weights, "--data", digits]
    fails(*data, "--no-optimize=false", message="--no-optimize")
    fails(*data, "--optimize", "false", message="false")
    (tmp_path / "wrong.yaml").write_text("optimize: fast\n")
    fails(*data, "--config", tmp_path / "wrong.yaml", message="not boolean: fast")
    fails("predict", "classify", "--weights", weights, "--no-optimise", digits, message="no-optimise")


def test_imagenet_names(tmp_path, shared):
    """A network of 1000 classes answers with ImageNet's names, on pictures some of which are grey."""
    dicenet.save(timm.create_model("dicenet_010"), tmp_path / "net.safetensors")
    arguments = ["--weights", tmp_path / "net.safetensors", "--out", tmp_path / "out"]
    done = subprocess.run(
        [*COMMAND, "predict", "classify", *arguments, shared("data/imagenet_sample_100")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "default"},
    )
    assert done.returncode == 0
    assert done.stderr == ""
    items = json.loads((tmp_path / "out/predictions.json").read_text())["items"]
    assert len(items) == 104
    from timm.data import ImageNetInfo

    names = ImageNetInfo().label_descriptions()
    assert all(answer["class"] == names[answer["index"]] for item in items for answer in item["result"])


class Malicious:
    def __reduce__(self):
        return print, ("code ran",)


def test_unusable_weights(digits, tmp_path, fails, capsys):
    picture = next((digits / "val/one").iterdir())

    def refused(weights, message):
        fails("predict", "classify", "--weights", weights, picture, message=message)

    refused(tmp_path / "none.safetensors", "is not a file")
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Malicious()))
    refused(tmp_path / "evil.pth", "is refused")
    assert "code ran" not in capsys.readouterr().out
    torch.save(timm.create_model("mobilenetv3_small_050").state_dict(), tmp_path / "other.pth")
    refused(tmp_path / "other.pth", "of another network")
    refused("dicenet_100.edgenet_in1k", "no official checkpoint is called .* the nearest are dicenet_100.edgenets_in1k")
    refused(picture, "is not a checkpoint")
    dicenet.save(timm.create_model("dicenet_010", num_classes=0), tmp_path / "headless.safetensors")
    refused(tmp_path / "headless.safetensors", "has no classifier")


@pytest.mark.parametrize("task", ["classify", "multilabel", "segment", "detect"])
def test_cheap_errors_come_before_the_data_is_read(tmp_path, fails, task):
    """The folder of data does not exist: what is said of other arguments was said before it was looked for."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    arguments = ["train", task, "--data", tmp_path / "absent"]
    fails(*arguments, "--batch-size", "0", message="batch_size must be at least 1")
    fails(*arguments, "--out", tmp_path / "taken", message="is not empty")


def test_one_small_picture_a_batch_is_one_line(tmp_path, fails):
    for part in ("train", "test"):
        for name in "ab":
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (64, 64)).save(tmp_path / part / name / "0.png")
    arguments = ["train", "classify", "--data", tmp_path, "--model", "dicenet_010", "--img-size", "32", "--stem"]
    arguments += ["standard", "--batch-size", "1", "--out", tmp_path / "out"]
    fails(*arguments, message="larger --batch-size or give a larger --img-size")
    assert not (tmp_path / "out").exists()
