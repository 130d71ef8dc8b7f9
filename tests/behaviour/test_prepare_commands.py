"""``dicenet prepare classify`` end to end: killed and begun again, and what it wrote trained on from a server."""

import random
import re
import shutil
import subprocess
import sys
import time

import pytest
from command_cases import rows, run

from dicenet.data import streams
from prepared_cases import class_folders, content, serving

QUICK = ["--model", "dicenet_010", "--epochs", "1", "--batch-size", "8", "--workers", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return class_folders(tmp_path_factory.mktemp("source"), {"train": 40, "val": 10}, size=(40, 40))


@pytest.fixture(scope="module")
def prepared(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "out"
    run("prepare", "classify", "--data", source, "--out", out, "--shard-size", 1, "--workers", 0)
    return out


def test_killed_while_it_writes(source, prepared, tmp_path, capsys):
    """SIGKILL behind a shard drawn by chance, twice; the end is byte for byte that of an unbroken command."""
    out = tmp_path / "out"
    arguments = ["prepare", "classify", "--data", source, "--out", out, "--shard-size", 1, "--workers", 1]
    begin = [sys.executable, "-m", "dicenet_cli", *map(str, arguments)]
    for shard in sorted(random.sample(range(100), 2)):
        with subprocess.Popen(begin, stdout=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 120
            while not (out / f"train/train-{shard:06d}.tar").exists():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.001)
            process.kill()
        assert (out / "unfinished.json").exists()
        assert not (out / "manifest.json").exists(), "it was killed midway"
    there = len(list(out.glob("train/*.tar")))
    run(*arguments)
    kept = int(re.search(r"shards that are there: (\d+); to be written", capsys.readouterr().out)[1])
    assert kept in (there, there - 1), "the last one may not have been recorded"
    assert 0 < kept < 120
    assert content(out) == content(prepared)


def test_trained_from_a_server(prepared, tmp_path, capsys):
    """From a URL and by a command: the same epochs as from the folder."""
    with serving(prepared) as (url, _, asked):
        for name, data in (("folder", prepared), ("url", url), ("pipe", f"pipe:cat {prepared}/{{}}")):
            run("train", "classify", "--data", data, "--out", tmp_path / name, *QUICK)
        losses = [[row["train_loss"], row["val_loss"]] for n in ("folder", "url", "pipe") for row in rows(tmp_path / n)]
        assert losses[0] == losses[1] == losses[2]
        assert len(set(asked)) == 1 + 120 + 30, "the manifest and all shards"
        assert "120 pictures to train on, 30 to judge by" in capsys.readouterr().out
        run(
            "evaluate",
            "classify",
            "--weights",
            tmp_path / "url/best.safetensors",
            "--data",
            f"{url}/",
            "--out",
            tmp_path / "e",
        )


def test_faults_of_a_server_are_one_line(prepared, tmp_path, monkeypatch, fails):
    monkeypatch.setattr(streams, "PAUSE", 0.001)
    short = tmp_path / "short"
    shutil.copytree(prepared, short)
    for shard in short.glob("train/*.tar"):
        shard.write_bytes(shard.read_bytes()[:1000])
    with serving(short) as (url, faults, _):
        train = ["train", "classify", "--data", url, *QUICK, "--img-size", "32", "--stem", "small", "--out"]
        fails(*train, tmp_path / "a", message=rf"{url}/train/train-0000\d\d.tar cannot be read: .*tried 5 times")
        faults["/manifest.json"] = [503] * 5
        fails(*train, tmp_path / "b", message=rf"{url}/manifest.json cannot be read: the server answers 503")
    assert not (tmp_path / "b").exists()


def test_wrong_arguments(source, prepared, tmp_path, fails):
    def refused(*arguments, message, data=source, out=tmp_path / "a"):
        fails("prepare", "classify", "--data", data, "--out", out, *arguments, message=message)

    fails("prepare", "classify", message="data")
    fails("prepare", "detect", message="unknown task 'detect' for prepare: choose one of classify")
    refused(data=tmp_path / "missing", message="missing does not exist")
    refused(data="digits", message="digits is scikit-learn's digits: give a folder")
    refused(out=source.parent, message="is not empty: give a new or empty folder")
    refused("--shard-size", 0, message="shard_size must be at least 1")
    refused("--resize", "big", message="--resize must be a whole number")
    refused("--shard-size", 2, out=prepared, message="begun with --shard-size 1, not 2")
    assert not (tmp_path / "a").exists()
