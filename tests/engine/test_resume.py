"""A training that is cut off anywhere goes on to the same weights, bit by bit; and what ends one leaves it usable."""

import csv
import errno
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import dicenet
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


@pytest.mark.parametrize("saves", [1, 4, 6, 11])
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


def test_the_last_good_checkpoint_is_named(tmp_path, monkeypatch):
    """Weights that are ruined by a step are not saved, though its loss was finite."""
    step = classify.ClassifyTask.on_train_batch_end

    def ruin(self, outputs, batch, batch_index):
        if self.trainer.global_step == 6:
            with torch.no_grad():
                next(self.net.parameters())[0] = float("nan")
        return step(self, outputs, batch, batch_index)

    # Lightning calls the hook of the module behind those of callbacks: the save of the next step sees it
    monkeypatch.setattr(classify.ClassifyTask, "on_train_batch_end", ruin)
    with pytest.raises(dicenet.TrainingError, match=r"became .* the last good checkpoint is .*last\.ckpt"):
        train(tmp_path / "run", save_every=2, ema=0.0)
    kept = torch.load(tmp_path / "run/last.ckpt", weights_only=True)
    assert all(value.isfinite().all() for value in kept["state_dict"].values())
    monkeypatch.undo()
    classify.train(resume=str(tmp_path / "run"))


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    synced, calls = os.fsync, []

    def full(file):
        calls.append(file)
        if len(calls) > 6:
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


def test_sigterm(whole, tmp_path):
    """As of a scheduler that wants the machine: exit code 143, and the run goes on from that very step."""
    out = tmp_path / "run"
    process = start("--data", "digits", "--out", out, *options(workers=0, save_every=1, epochs=300))
    deadline = time.monotonic() + 300
    while not (out / "last.ckpt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, words = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, words
    assert words.count("\n") == 1
    assert f"go on with --resume {out}" in words
    config = (out / "config.yaml").read_text()
    (out / "config.yaml").write_text(config.replace("epochs: 300", "epochs: 3"))
    # the schedule of three epochs is another than that of 300: only that it goes on is compared
    classify.train(resume=str(out), epochs=3)
    assert len((out / "metrics.csv").read_text().splitlines()) == 4


@pytest.mark.slow
def test_two_processes_cut_off(tmp_path):
    """Killed behind a checkpoint within an epoch, both go on to the weights of an undisturbed run of two."""
    two = {"workers": 0, "devices": 2, "strategy": "ddp", "batch_size": 32}
    done = start("--data", "digits", "--out", tmp_path / "whole", *options(**two))
    assert done.wait(600) == 0, done.stderr.read()
    out = tmp_path / "run"
    process = start("--data", "digits", "--out", out, *options(**two, save_every=2))
    while not (out / "last.ckpt").exists() and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.wait()
    time.sleep(5)  # the second process notices that the first is gone
    resumed = start("--resume", out)
    _, words = resumed.communicate(timeout=600)
    assert resumed.returncode == 0, words
    assert_same(state(out), state(tmp_path / "whole"))
