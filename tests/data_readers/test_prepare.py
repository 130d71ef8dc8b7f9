"""Folders written as shards: nothing lost, nothing changed, the same every time, also when cut off."""

import hashlib
import importlib
import io
import itertools
import json
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

import dicenet
from dicenet.data.classification import open_classification_data
from dicenet.tasks.classify import prepare
from prepared_cases import CLASSES, class_folders, content

MODULE = importlib.import_module("dicenet.tasks.classify.prepare")  # the package gives the function of that name


def members(shard):
    """Files in a shard in order, by Python's own reader."""
    with tarfile.open(shard) as archive:
        return [(member, archive.extractfile(member).read()) for member in archive]


def written(folder):
    """(part, class, bytes) of all samples, in order."""
    found = []
    for shard in sorted(folder.glob("*/*.tar")):
        files = members(shard)
        for (picture, pixels), (label, number) in zip(files[::2], files[1::2], strict=True):
            assert picture.name.rpartition(".")[0] == label.name.removesuffix(".cls")
            found.append((shard.parent.name, CLASSES[int(number)], pixels))
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return class_folders(tmp_path_factory.mktemp("source"), {"train": 7, "val": 3})


@pytest.fixture(scope="module")
def prepared(source, tmp_path_factory):
    return prepare(str(source), str(tmp_path_factory.mktemp("prepared") / "out"), shard_size=4, workers=0)


def test_bytes_and_labels_are_those_of_the_folder(source, prepared):
    expected = [(f.parts[-3], f.parts[-2], f.read_bytes()) for f in source.rglob("*.JPEG")]
    assert sorted(written(prepared)) == sorted(expected)
    assert len(set(expected)) == 3 * 7 + 3 * 3
    assert [len(members(s)) // 2 for s in sorted(prepared.glob("train/*.tar"))] == [4, 4, 4, 4, 4, 1]
    assert (prepared / "classes.txt").read_text().split() == list(CLASSES)


def test_tar_files_hold_nothing_of_who_wrote_them_and_when(prepared):
    for shard in prepared.glob("*/*.tar"):
        for member, _ in members(shard):
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            assert (member.mode, member.isreg()) == (0o644, True)


def test_classes_are_mixed_and_the_seed_decides_how(source, prepared, tmp_path):
    order = [name for part, name, _ in written(prepared) if part == "train"]
    assert sum(a != b for a, b in itertools.pairwise(order)) > 5, "in class order there would be 2 changes"
    other = prepare(str(source), str(tmp_path / "other"), shard_size=4, seed=1, workers=0)
    assert written(other) != written(prepared)
    assert sorted(written(other)) == sorted(written(prepared))


def test_manifest(source, prepared):
    manifest = json.loads((prepared / "manifest.json").read_text())
    assert manifest["classes"] == list(CLASSES)
    assert manifest["source"]["pictures"] == 30
    assert manifest["arguments"] == {
        "shard_size": 4,
        "resize": None,
        "quality": 95,
        "val_fraction": 0.2,
        "seed": 1882,
    }
    for part, count in (("train", 21), ("val", 9)):
        described = manifest["parts"][part]
        assert (described["samples"], described["left_out"]) == (count, 0)
        assert [entry["name"] for entry in described["shards"]] == sorted(
            p.name for p in prepared.glob(f"{part}/*.tar")
        )
        sizes = json.loads((prepared / part / "sizes.json").read_text())
        for entry in described["shards"]:
            shard = prepared / part / entry["name"]
            assert entry["sha256"] == hashlib.sha256(shard.read_bytes()).hexdigest()
            assert entry["bytes"] == shard.stat().st_size
            assert entry["samples"] == sizes[entry["name"]] == len(members(shard)) // 2


def test_read_as_data(prepared):
    data = open_classification_data(str(prepared))
    assert data.layout == "WebDataset shards"
    assert data.class_names == list(CLASSES)
    assert {part: len(p) for part, p in data.parts.items()} == {"train": 21, "val": 9}
    assert data.median_side() == 16


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_bytes_every_time(source, prepared, tmp_path, workers):
    again = prepare(str(source), str(tmp_path / "again"), shard_size=4, workers=workers)
    assert content(again) == content(prepared)


class Cut(BaseException):
    """What ends a command without a chance to tidy up."""


@pytest.mark.parametrize("writes", range(1, 13))
def test_cut_off_at_any_file(source, prepared, tmp_path, monkeypatch, writes):
    """There are 9 shards, each recorded in a JSON file; before and behind them five other files."""
    out, done = tmp_path / "out", []

    def counted(write):
        def limited(*arguments):
            done.append(arguments)
            if len(done) == writes:
                raise Cut
            return write(*arguments)

        return limited

    with monkeypatch.context() as patch:
        for name in ("write_json", "write_bytes"):
            patch.setattr(MODULE, name, counted(getattr(MODULE, name)))
        with pytest.raises(Cut):
            prepare(str(source), str(out), shard_size=4, workers=0)
    if (out / "unfinished.json").exists():
        with pytest.raises(dicenet.DataError, match="is not finished: run the 'dicenet prepare'"):
            open_classification_data(str(out))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")}
    prepare(str(source), str(out), shard_size=4, workers=0)
    assert content(out) == content(prepared)
    if writes > 3:
        kept = [path for path, time in before.items() if path.stat().st_mtime_ns == time]
        assert len(kept) >= len(before) - 1, "what was recorded is not written again"


def test_a_shard_that_is_gone_is_written_again(source, prepared, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(prepared, out)
    (out / "train/train-000002.tar").unlink()
    (out / "val/val-000000.tar").write_bytes(b"cut off")
    prepare(str(source), str(out), shard_size=4, workers=0)
    assert content(out) == content(prepared)


def test_a_finished_folder_is_left_alone(source, prepared):
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob("*")}
    prepare(str(source), str(prepared), shard_size=4, workers=0)
    assert {path: path.stat().st_mtime_ns for path in prepared.rglob("*")} == before


def test_other_arguments_or_pictures_are_refused(source, prepared, tmp_path):
    def refused(message, data=source, out=prepared, **arguments):
        with pytest.raises(dicenet.ConfigError, match=message) as caught:
            prepare(str(data), str(out), **{"shard_size": 4, "workers": 0, **arguments})
        assert "\n" not in str(caught.value)

    refused("was begun with --shard-size 4, not 5", shard_size=5)
    refused("was begun with --seed 1882, not 3", seed=3)
    refused("was begun with --resize None, not 8", resize=8)
    fewer = tmp_path / "fewer"
    shutil.copytree(source, fewer)
    next(fewer.rglob("*.JPEG")).unlink()
    refused("was begun from other pictures \\(30 then, 29 now\\)", data=fewer)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/letter.txt").touch()
    refused("is not empty", out=tmp_path / "taken")
    refused("shard_size must be at least 1, got 0", shard_size=0)
    refused("resize must be at least 1", resize=0)
    refused("quality must lie from 1 to 100", quality=101)
    refused("workers must be at least 0", workers=-1)
    refused("seed must lie", seed=-1)
    refused("lies in --data", out=source / "out")
    refused("is WebDataset shards: give a folder", data=prepared, out=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_without_parts_some_of_each_class_are_held_out(source, tmp_path):
    out = prepare(str(source / "train"), str(tmp_path / "out"), val_fraction=0.3, workers=0)
    found = written(out)
    assert sorted((part, name) for part, name, _ in found) == sorted(
        [("val", name) for name in CLASSES for _ in range(2)] + [("train", name) for name in CLASSES for _ in range(5)]
    )
    assert len({pixels for *_, pixels in found}) == 21


def test_bad_pictures_are_named_counted_and_left_out(source, tmp_path, shared, capsys):
    data = tmp_path / "data"
    shutil.copytree(source, data)
    for name in ("truncated.jpg", "empty.jpg"):
        shutil.copy(shared("data/bad_images") / name, data / "train/bee" / name)
    out = prepare(str(data), str(tmp_path / "out"), shard_size=4, workers=0)
    text = capsys.readouterr().out
    assert "left out: train/bee/empty.jpg: the file is empty" in text
    assert "2 pictures could not be read: left out" in text
    assert len(written(out)) == 30
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["source"]["pictures"] == 32
    assert manifest["parts"]["train"]["left_out"] == 2
    left_out = [item for entry in manifest["parts"]["train"]["shards"] for item in entry["left_out"]]
    assert {item["path"] for item in left_out} == {"train/bee/empty.jpg", "train/bee/truncated.jpg"}


def test_resized(tmp_path):
    """Large pictures get the shorter side asked for and are upright; small ones stay as they are."""
    root = class_folders(tmp_path / "data", {"train": 2, "val": 1}, size=(30, 24))
    x, y = np.meshgrid(np.arange(200), np.arange(100))
    ramp = Image.fromarray(np.stack([x, 2 * y, 255 - x], 2).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned: 100 wide, 200 high
    ramp.save(root / "train/ant/large.jpg", quality=98, exif=exif)
    out = prepare(str(root), str(tmp_path / "out"), resize=50, quality=97, workers=0)
    (large,) = [c for m, c in members(out / "train/train-000000.tar") if m.name.endswith("large.jpg")]
    with Image.open(io.BytesIO(large)) as picture:
        assert picture.size == (50, 100)
        assert picture.format == "JPEG"
        turned = np.asarray(ramp.transpose(Image.Transpose.ROTATE_270), dtype=float)
        expected = turned.reshape(100, 2, 50, 2, 3).mean((1, 3))  # means of 2 x 2 pixels
        assert np.abs(np.asarray(picture, dtype=float) - expected)[2:-2, 2:-2].mean() < 2
    stored = {path.read_bytes() for path in (root / "train").rglob("*.JPEG")}
    small = [c for m, c in members(out / "train/train-000000.tar") if m.name.endswith(".jpg") and c != large]
    assert (len(small), set(small)) == (6, stored)
