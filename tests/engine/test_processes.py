"""Batches shared by processes or given in turn make the same steps; one process that dies ends the others."""

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import lightning as L
import pytest
import torch
from shared_training import JUDGED_BY, shared_training

from dicenet.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:Found .* module.* in eval mode")  # the norms, see shared_training
HERE = Path(__file__).parent
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")


class Gradients(L.Callback):
    """Keeps the gradients of the first step."""

    def __init__(self):
        self.kept = None

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if self.kept is None:
            self.kept = {name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None}


def epochs(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def weights(folder):
    return torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]


def first_gradients(folder, batch_size, accumulate, frozen):
    gradients = Gradients()
    shared_training(
        folder, batch_size, accumulate=accumulate, epochs=1, frozen=frozen, callbacks=[gradients], pictures=128
    )
    return gradients.kept


@pytest.mark.parametrize("frozen", [True, False])
def test_four_batches_of_32_make_the_step_of_128(tmp_path, frozen):
    """With norms that use the statistics of each batch they do not, and should not."""
    parts, whole = (first_gradients(tmp_path / str(n), n, 128 // n, frozen) for n in (32, 128))
    assert parts.keys() == whole.keys()
    assert max(float(g.abs().max()) for g in whole.values()) > 0.01
    difference = max(float((parts[name] - whole[name]).abs().max()) for name in whole)
    assert difference < 1e-5 if frozen else difference > 1e-3


def free_port():
    with socket.socket() as unused:
        unused.bind(("localhost", 0))
        return unused.getsockname()[1]


def run_shared(folder, batch_size, processes, machines):
    """As on several machines, each with its own torchrun, which find each other by an address."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-id=test"]
    torchrun += [f"--rdzv-endpoint=localhost:{free_port()}", f"--nnodes={machines}", "--local-addr=localhost"]
    command = [*torchrun, f"--nproc-per-node={processes}", HERE / "shared_training.py", folder, batch_size]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(machines)
    ]
    for process in started:
        words = process.communicate(timeout=600)[1]
        assert process.returncode == 0, words


@pytest.mark.parametrize(
    ("processes", "machines"),
    [(2, 1), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((3, 1), (4, 1), (2, 2)))],
)
def test_processes_make_the_steps_of_one(tmp_path, processes, machines):
    """The same batches together; every picture is judged once, though they are no multiple of the processes."""
    shared_training(tmp_path / "one", 24)
    run_shared(tmp_path / "several", 24 // (processes * machines), processes, machines)
    one, several = weights(tmp_path / "one"), weights(tmp_path / "several")
    assert one.keys() == several.keys()
    for name, value in one.items():
        torch.testing.assert_close(several[name], value, rtol=1e-4, atol=1e-5, msg=name)
    for left, right in zip(epochs(tmp_path / "one"), epochs(tmp_path / "several"), strict=True):
        assert float(right["val_top1"]) == pytest.approx(float(left["val_top1"]), abs=1e-6)
        assert round(float(right["val_top1"]) * JUDGED_BY, 2).is_integer()
        for column in ("train_loss", "val_loss"):
            assert float(right[column]) == pytest.approx(float(left[column]), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("dies", [0, 1, 2])
def test_one_that_is_killed_ends_the_others(tmp_path, dies):
    """At once, with a line that says how to go on; and the run goes on."""
    out = tmp_path / "run"
    options = f"--model dicenet_010 --batch-size 16 --device cpu --workers 0 --out {out}"
    command = [*TORCHRUN, "--nproc-per-node=3", "-m", "dicenet_cli", "train", "classify", "--data", "digits"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "words").open("w") as words:
        first = [*command, *options.split(), "--epochs", "300", "--save-every", "2"]
        process = subprocess.Popen(first, env=environment, stdout=words, stderr=words)
        deadline = time.monotonic() + 300
        while not (out / "last.ckpt").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(rank_of(process.pid, dies), signal.SIGKILL)
        assert process.wait(120)
    said = (tmp_path / "words").read_text()
    assert "dicenet: another of the 3 processes ended or cannot be reached" in said
    assert f"go on with --resume {out}" in said
    resumed = subprocess.run(
        [*command[:-2], "--resume", out, "--epochs", "1"], env=environment, capture_output=True, text=True, timeout=600
    )
    assert resumed.returncode == 0, resumed.stderr
    assert len(epochs(out)) == 1


def test_torchrun_and_devices_that_contradict(monkeypatch, tmp_path):
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("LOCAL_WORLD_SIZE", "4"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"started 4 processes .* asks for 2: give --devices auto"):
        shared_training(tmp_path / "run", 24, devices=2)


def rank_of(parent, rank):
    """The process of a rank among the children of torchrun."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1]) != parent:
                continue
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # it ended meanwhile
            continue
        if f"RANK={rank}".encode() in environment:
            return int(folder.name)
    raise AssertionError(f"torchrun has no process of rank {rank}")
