"""A training that is cut off anywhere goes on to the same weights, bit by bit; and what ends one leaves it usable."""

import csv
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import dicenet
from dicenet.data.classification import open_classification_data
from dicenet.engine import checkpoints
from dicenet.engine.pace import TIMINGS
from dicenet.tasks import classify

#: Dropout, an average of weights, and steps of two batches: all that a checkpoint must keep. 18 batches an epoch.
ARGUMENTS = {
    "model": "dicenet_010",
    "batch_size": 64,
    "device": "cpu",
    "epochs": 3,
    "ema": 0.9,
    "drop_rate": 0.2,
    "accumulate": 2,
    "augment": "shift",
}


def train(out, **arguments):
    return classify.train("digits", out=str(out), **{**ARGUMENTS, "workers": 0, **arguments})


def state(folder):
    """What the next step depends on, and the table of epochs without times."""
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    with (folder / "metrics.csv").open(newline="") as file:
        table = [{k: v for k, v in row.items() if k not in TIMINGS} for row in csv.DictReader(file)]
    keys = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "global_step")
    return {key: checkpoint.get(key) for key in keys} | {"table": table}


def assert_same(left, right):
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for pair in zip(left, right, strict=True):
            assert_same(*pair)
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    else:
        assert left == right


def cut_off(monkeypatch, saves):
    """Stop the next training behind some checkpoints, as a power failure would: nothing more is written."""
    write, done = checkpoints.write_bytes, []

    def stop(path, content):
        write(path, content)
        done.append(path)
        if len(done) == saves:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "write_bytes", stop)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return state(train(tmp_path_factory.mktemp("whole") / "run"))


@pytest.mark.parametrize("saves", [1, 5, 6, 11])
def test_cut_off_anywhere(whole, tmp_path, monkeypatch, saves):
    """Checkpoints come behind steps 2, 4, 6, 8 of 9 in an epoch, and behind the epoch: five an epoch."""
    with monkeypatch.context() as patch:
        cut_off(patch, saves)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run", save_every=2)
    metadata = dicenet.weights.files.read_checkpoint(tmp_path / "run/last.ckpt").metadata
    epochs, within = divmod(saves, 5)
    assert (metadata["epochs"], metadata["batches"]) == (epochs, 4 * within)
    classify.train(resume=str(tmp_path / "run"))
    assert_same(state(tmp_path / "run"), whole)


def test_cut_off_again_and_again_with_reading_processes(whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        cut_off(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run", save_every=2, workers=2)
    for saves in (2, 4):
        with monkeypatch.context() as patch:
            cut_off(patch, saves)
            with pytest.raises(KeyboardInterrupt):
                classify.train(resume=str(tmp_path / "run"), workers=1)
    classify.train(resume=str(tmp_path / "run"))
    assert_same(state(tmp_path / "run"), whole)


@pytest.mark.parametrize("part", ["parameters", "buffers"])
def test_the_last_good_checkpoint_is_named(tmp_path, monkeypatch, part):
    """What a step ruins just before a save is not saved, though its loss was finite."""
    step = classify.ClassifyTask.optimizer_step

    def ruin(self, *arguments, **options):
        step(self, *arguments, **options)
        if self.trainer.global_step == 3:  # counted behind the step: this is the fourth, and a save follows
            with torch.no_grad():
                values = next(value for value in getattr(self.net, part)() if value.is_floating_point())
                values[0] = float("nan")

    monkeypatch.setattr(classify.ClassifyTask, "optimizer_step", ruin)
    with pytest.raises(dicenet.TrainingError, match=r"^weights became .* the last good checkpoint is .*last\.ckpt"):
        train(tmp_path / "run", save_every=2, ema=0.0)
    kept = torch.load(tmp_path / "run/last.ckpt", weights_only=True)
    assert kept["global_step"] == 2
    assert all(value.isfinite().all() for value in kept["state_dict"].values())
    monkeypatch.undo()
    classify.train(resume=str(tmp_path / "run"), epochs=1)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    synced, calls = os.fsync, []

    def full(file):
        calls.append(file)
        if len(calls) > 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        synced(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(dicenet.DicenetError, match=r"cannot write .*: No space left on device"):
            train(tmp_path / "run", save_every=2)
    assert not list((tmp_path / "run").glob(".*.part"))
    classify.train(resume=str(tmp_path / "run"))
    assert len((tmp_path / "run/metrics.csv").read_text().splitlines()) == 4


def start(*arguments):
    command = [sys.executable, "-m", "dicenet_cli", "train", "classify", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def options(**arguments):
    return [part for key, value in {**ARGUMENTS, **arguments}.items() for part in (f"--{key}", value)]


def send_sigterm(out, words, to_all, **arguments):
    """Start a long run in a session of its own and send SIGTERM once it has a checkpoint; returns its exit code."""
    with words.open("w") as file:
        command = [sys.executable, "-m", "dicenet_cli", "train", "classify", "--data", "digits", "--out", out]
        command += options(**arguments, save_every=1)
        process = subprocess.Popen(list(map(str, command)), stdout=file, stderr=file, start_new_session=True)
        deadline = time.monotonic() + 300
        while not (out / "last.ckpt").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        (os.killpg if to_all else os.kill)(process.pid, signal.SIGTERM)
        return process.wait(300)


@pytest.mark.parametrize(
    ("to_all", "arguments"),
    [
        (False, {"workers": 0}),
        (True, {"workers": 2}),
        pytest.param(True, {"workers": 1, "devices": 2, "strategy": "ddp", "batch_size": 32}, marks=pytest.mark.slow),
    ],
)
def test_sigterm(tmp_path, to_all, arguments):
    """As of a scheduler that wants the machine, from one process or all of the job; the run goes on from that step.

    Reading processes get it too, and several that train together must stop behind the same step.
    """
    arguments = {**arguments, "epochs": 2}
    out = tmp_path / "run"
    code = send_sigterm(out, tmp_path / "words", to_all, **arguments)
    words = (tmp_path / "words").read_text()
    assert code == 128 + signal.SIGTERM, words
    assert "Traceback" not in words
    assert words.count(f"go on with --resume {out}") == 1
    metadata = dicenet.weights.files.read_checkpoint(out / "last.ckpt").metadata
    assert (metadata["epochs"], metadata["batches"] > 0) in [(0, True), (1, True), (1, False)]
    resumed = start("--resume", out)
    said = resumed.communicate(timeout=600)[1]
    assert resumed.returncode == 0, said
    whole = start("--data", "digits", "--out", tmp_path / "whole", *options(**arguments))
    said = whole.communicate(timeout=600)[1]
    assert whole.returncode == 0, said
    assert_same(state(out), state(tmp_path / "whole"))


def test_a_second_sigterm_soon_after_is_the_same(tmp_path):
    """torchrun passes on what the scheduler sent to all; one much later is of somebody who has no patience."""
    callback = checkpoints.LastCheckpoint(tmp_path / "last.ckpt", 0)
    before = signal.getsignal(signal.SIGTERM)
    try:
        callback._stop(signal.SIGTERM, None)
        callback._stop(signal.SIGTERM, None)
        assert callback.stopping
        caught = []
        signal.signal(signal.SIGTERM, lambda *_: caught.append(1))
        callback.asked -= checkpoints._IMPATIENT + 1
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "kill", lambda process, number: caught.append((process, number)))
            callback._stop(signal.SIGTERM, None)
        assert caught == [(os.getpid(), signal.SIGTERM)]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def cut_off_within(tmp_path, monkeypatch, **arguments):
    with monkeypatch.context() as patch:
        cut_off(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run", save_every=2, **arguments)
    return tmp_path / "run"


def pictures_in_folders(folder, **counts):
    """The first digits of each part as PNGs, a folder for each class."""
    digits = open_classification_data("digits")
    for part, count in counts.items():
        for sample in list(digits.parts[part].samples)[:count]:
            place = folder / part / digits.class_names[sample.target]
            place.mkdir(parents=True, exist_ok=True)
            sample.read().save(place / f"{Path(sample.name).name}.png")
    return folder


@pytest.mark.parametrize("saves", [3, 8])
def test_cut_off_with_all_that_chance_can_do(tmp_path, monkeypatch, saves):
    """Shards read by two processes, mixed and augmented pictures, within the first epoch and behind the second.

    13 batches an epoch, of which the last one is no whole step: six steps of two, saved behind 2, 4, 6 and the end.
    """
    folders = pictures_in_folders(tmp_path / "folders", train=850, val=60)
    shards = classify.prepare(str(folders), str(tmp_path / "shards"), shard_size=300, workers=0)
    chance = {"mixup": 0.2, "cutmix": 1.0, "auto_augment": "trivialaugment", "label_smoothing": 0.1, "workers": 2}
    options = {**ARGUMENTS, **chance, "img_size": 32, "stem": "small"}
    whole = classify.train(str(shards), out=str(tmp_path / "whole"), **options)
    with monkeypatch.context() as patch:
        cut_off(patch, saves)
        with pytest.raises(KeyboardInterrupt):
            classify.train(str(shards), out=str(tmp_path / "run"), **options, save_every=2)
    classify.train(resume=str(tmp_path / "run"))
    assert_same(state(tmp_path / "run"), state(whole))


def test_other_pictures_cannot_end_an_epoch(tmp_path, monkeypatch):
    """The order of other pictures is another; at the end of an epoch they may come."""
    run = cut_off_within(tmp_path, monkeypatch)
    small = pictures_in_folders(tmp_path / "small", train=300, val=40)
    other = {**ARGUMENTS, "workers": 0, "data": str(small)}
    with pytest.raises(dicenet.ConfigError, match=r"an epoch of 1167 pictures, .* 300: resume .* the same --data"):
        classify.train(resume=str(run), **other)
    classify.train(resume=str(run), epochs=1)
    classify.train(resume=str(run), **{**other, "epochs": 2})
    assert len((run / "metrics.csv").read_text().splitlines()) == 3


def test_what_a_killed_run_was_writing_goes(tmp_path, monkeypatch):
    run = cut_off_within(tmp_path, monkeypatch)
    (run / ".last.ckpt.0123abcd.part").write_bytes(b"half")
    classify.train(resume=str(run), epochs=1)
    assert not list(run.glob(".*.part"))


@pytest.mark.slow
def test_two_processes_cut_off(tmp_path):
    """Killed behind a checkpoint within an epoch, both go on to the weights of an undisturbed run of two."""
    two = {"workers": 0, "devices": 2, "strategy": "ddp", "batch_size": 32}
    done = start("--data", "digits", "--out", tmp_path / "whole", *options(**two))
    said = done.communicate(timeout=600)[1]
    assert done.returncode == 0, said
    out = tmp_path / "run"
    process = start("--data", "digits", "--out", out, *options(**two, save_every=2))
    deadline = time.monotonic() + 300
    while not (out / "last.ckpt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=60)  # the second process, whose words end here, notices that the first is gone
    resumed = start("--resume", out)
    said = resumed.communicate(timeout=600)[1]
    assert resumed.returncode == 0, said
    assert_same(state(out), state(tmp_path / "whole"))
