"""Data sets in every layout: recognised, read, batched; and refused with the reason."""

import io
import pickle
import shutil
import tarfile
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

import dicenet
from dicenet.data.classification import open_classification_data, small_input, split_off
from dicenet.data.samples import LoaderSettings
from dicenet.data.transforms import Augmentation, Preprocessing, evaluation_transform, training_transform

TRANSFORM = evaluation_transform(Preprocessing((32, 32)))


def picture_bytes(value, size=(32, 32), kind="PNG"):
    content = io.BytesIO()
    Image.new("RGB", size, (value, 0, 255 - value)).save(content, kind)
    return content.getvalue()


def image_folder(root, counts, size=(32, 32)):
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            (root / name / f"{index}.png").write_bytes(picture_bytes(index, size))


def shard(path, samples, compressed=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if compressed else "w") as archive:
        for key, files in samples.items():
            for suffix, content in files.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def shards(root, files=3, per_file=5, compressed=False):
    suffix = ".tar.gz" if compressed else ".tar"
    for number in range(files):
        samples = {
            f"s{number}_{index}": {"png": picture_bytes(10 * number + index), "cls": str(index % 2).encode()}
            for index in range(per_file)
        }
        shard(root / f"part-{number}{suffix}", samples, compressed)


def names(loader):
    return [name for batch in loader for name in batch.get("name", [])]


# -- layouts


def test_image_folder_with_parts(tmp_path):
    image_folder(tmp_path / "train", {"cat": 3, "dog": 2})
    image_folder(tmp_path / "val", {"cat": 1, "dog": 1})
    data = open_classification_data(str(tmp_path))
    assert data.layout == "one folder per class"
    assert data.class_names == ["cat", "dog"]
    assert {part: len(p) for part, p in data.parts.items()} == {"train": 3 + 2, "val": 2}
    assert data.evaluation_part()[0] == "val"
    (batch,) = data.parts["train"].loader(TRANSFORM, False, LoaderSettings(8))
    assert batch["image"].shape == (5, 3, 32, 32)
    assert batch["target"].tolist() == [0, 0, 0, 1, 1]


def test_image_folder_without_parts(tmp_path):
    image_folder(tmp_path, {"cat": 10, "dog": 5})
    data = open_classification_data(str(tmp_path))
    assert list(data.parts) == ["all"]
    train, val = split_off(data.parts["all"], 0.2, seed=1)
    assert Counter(s.target for s in val.samples) == {0: 2, 1: 1}
    assert Counter(s.target for s in train.samples) == {0: 8, 1: 4}
    assert {s.name for s in train.samples}.isdisjoint(s.name for s in val.samples)
    again = split_off(data.parts["all"], 0.2, seed=1)[1]
    assert [s.name for s in again.samples] == [s.name for s in val.samples]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_shards(tmp_path, compressed, workers):
    shards(tmp_path / "train", compressed=compressed)
    shards(tmp_path / "test", files=2, compressed=compressed)
    (tmp_path / "classes.txt").write_text("even\nodd\n")
    data = open_classification_data(str(tmp_path))
    assert data.layout == "WebDataset shards"
    assert data.class_names == ["even", "odd"]
    assert {part: len(p) for part, p in data.parts.items()} == {"train": 15, "test": 10}

    loader = data.parts["test"].loader(TRANSFORM, False, LoaderSettings(4, workers))
    seen = names(loader)
    assert len(seen) == len(set(seen)) == 10, "each picture once"
    assert len(loader) == len(list(loader)), "the announced number of batches comes"

    train = data.parts["train"].loader(TRANSFORM, True, LoaderSettings(4, workers, seed=3))
    first, second = names(train), names(train)
    assert len(first) == len(second) == 4 * len(train) == 12, "whole batches only"
    assert first != second, "another order in the next epoch"


def test_more_readers_than_shards(tmp_path):
    shards(tmp_path / "train", files=1, per_file=10)
    (tmp_path / "train/classes.txt").write_text("even\nodd\n")
    part = open_classification_data(str(tmp_path)).parts["train"]
    loader = part.loader(TRANSFORM, True, LoaderSettings(5, workers=2))
    assert sorted(names(loader)) == sorted(names(part.loader(TRANSFORM, False, LoaderSettings(5))))


@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("workers", [1, 2])
def test_every_sample_is_read_once_by_all_readers_together(tmp_path, monkeypatch, files, world, workers):
    """Training processes and their workers, simulated one by one; fewer shards than readers too."""
    from types import SimpleNamespace

    from dicenet.data import shards as module

    shards(tmp_path, files=files, per_file=7)
    (tmp_path / "classes.txt").write_text("even\nodd\n")
    part = open_classification_data(str(tmp_path)).parts["all"]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: world > 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: world)
    seen, trained = [], []
    for rank in range(world):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        evaluation = module.ShardBatches(part, TRANSFORM, False, LoaderSettings(2, workers))
        training = module.ShardBatches(part, TRANSFORM, True, LoaderSettings(2, workers))
        batches = trained_batches = 0
        for worker in range(workers):
            monkeypatch.setattr(module, "get_worker_info", lambda worker=worker: SimpleNamespace(id=worker))
            own = list(evaluation)
            batches += len(own)
            seen += names(own)
            again = list(training)
            trained_batches += len(again)
            trained += names(again)
        assert batches == len(evaluation)
        assert trained_batches == len(training)
    assert len(seen) == len(set(seen)) == 7 * files
    assert len(trained) == len(set(trained)) == 2 * world * (7 * files // (2 * world)), "none twice in training either"


def test_shards_of_cifar10(shared):
    data = open_classification_data(str(shared("data/cifar10")))
    assert {part: len(p) for part, p in data.parts.items()} == {"train": 50_000, "test": 10_000}
    assert data.class_names[0] == "airplane"
    assert data.median_side() == 32
    loader = data.parts["test"].loader(TRANSFORM, False, LoaderSettings(100, 0))
    batch = next(iter(loader))
    for name, target in zip(batch["name"], batch["target"], strict=True):
        assert name.split(":")[1].startswith(data.class_names[target])


def test_torchvision_cifar(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    values = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
    for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]:
        (folder / name).write_bytes(pickle.dumps({"data": values, "labels": [3, 1, 4, 1]}, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"c{n}" for n in range(10)]}, protocol=2))
    # torchvision knows the hashes of the real files and refuses others
    with pytest.raises(dicenet.DataError, match="is not complete"):
        open_classification_data(str(tmp_path))

    from torchvision.datasets import CIFAR10

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CIFAR10, "_check_integrity", lambda self: True)
        patch.setattr("torchvision.datasets.cifar.check_integrity", lambda *arguments: True)
        for path in (tmp_path, folder):
            data = open_classification_data(str(path))
            assert {part: len(p) for part, p in data.parts.items()} == {"train": 20, "test": 4}
    sample = data.parts["test"].samples[0]
    assert sample.target == 3
    assert np.array_equal(np.asarray(sample.read()), values[0].reshape(3, 32, 32).transpose(1, 2, 0))


def test_digits():
    data = open_classification_data("digits")
    assert {part: len(p) for part, p in data.parts.items()} == {"train": 1167, "val": 180, "test": 450}
    assert data.median_side() == 8
    from sklearn.datasets import load_digits

    total = Counter(s.target for part in data.parts.values() for s in part.samples)
    assert total == Counter(load_digits().target.tolist())


@pytest.mark.parametrize(("side", "expected"), [(0, None), (8, 32), (28, 32), (48, 48), (63, 63), (64, None)])
def test_size_for_small_pictures(side, expected):
    assert small_input(side) == expected


# -- refusals


def test_refusals(tmp_path):
    def refused(path, message, error=dicenet.DataError):
        with pytest.raises(error, match=message) as caught:
            open_classification_data(str(path))
        assert "\n" not in str(caught.value)

    refused(tmp_path / "missing", "does not exist")
    refused(tmp_path, "is empty")
    (tmp_path / "file.txt").touch()
    refused(tmp_path / "file.txt", "is a file")
    refused(tmp_path, "is in no known layout")

    image_folder(tmp_path / "a", {"cat": 2, "dog": 0})
    refused(tmp_path / "a", "class folder .*dog has no pictures")
    image_folder(tmp_path / "b/train", {"cat": 2, "dog": 1})
    image_folder(tmp_path / "b/val", {"cat": 2, "cow": 1})
    refused(tmp_path / "b", "class folder .*cow is none of the classes of the other parts: cat, dog")
    image_folder(tmp_path / "e", {"only": 3})
    refused(tmp_path / "e", r"has one class only \(only\)")
    (tmp_path / "c/train").mkdir(parents=True)
    refused(tmp_path / "c", "neither class folders with pictures nor .tar shards")
    shards(tmp_path / "d/train")
    refused(tmp_path / "d", r"no classes.txt")
    (tmp_path / "d/classes.txt").write_text("only one\n")
    (tmp_path / "d/train/part-9.tar").write_bytes(b"no archive at all")
    refused(tmp_path / "d", r"shard .*part-9.tar cannot be read")
    (tmp_path / "d/classes.txt").write_text("a\na\n")
    refused(tmp_path / "d", r"names a class twice")
    (tmp_path / "d/classes.txt").write_bytes(b"caf\xe9\nb\n")
    refused(tmp_path / "d", r"is not UTF-8")
    (tmp_path / "d/classes.txt").write_text("a\nb\n")
    for text, message in (("{", "is not JSON"), ('{"part-9.tar": "5"}', "must hold numbers")):
        (tmp_path / "d/train/sizes.json").write_text(text)
        refused(tmp_path / "d", message)


def test_a_class_may_be_missing_in_a_part_or_be_called_like_one(tmp_path):
    image_folder(tmp_path / "a/train", {"car": 2, "cat": 2, "dog": 2})
    image_folder(tmp_path / "a/val", {"dog": 1})
    val = open_classification_data(str(tmp_path / "a")).parts["val"]
    assert [sample.target for sample in val.samples] == [2]
    (tmp_path / "a/train/stray.png").write_bytes(picture_bytes(0))
    assert list(open_classification_data(str(tmp_path / "a")).parts) == ["train", "val"]
    image_folder(tmp_path / "vehicles", {"car": 2, "plane": 2, "train": 2})
    data = open_classification_data(str(tmp_path / "vehicles"))
    assert (list(data.parts), data.class_names) == (["all"], ["car", "plane", "train"])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"png": b"", "cls": b"7"}, "is of class 7, but only 2 are named"),
        ({"png": b"", "cls": b"cat"}, "holds 'cat', expected the number"),
        ({"png": b"", "cls": b"\xff"}, "expected the number"),
        ({"txt": b"", "cls": b"0"}, "needs a picture and a .cls file"),
    ],
)
def test_wrong_samples_in_shards(tmp_path, files, message):
    shard(tmp_path / "train/a.tar", {"key": files})
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(dicenet.DataError, match=message):
        open_classification_data(str(tmp_path)).median_side()


def test_bad_pictures_are_named_and_the_rest_goes_on(tmp_path, shared):
    image_folder(tmp_path / "train", {"cat": 3, "dog": 2})
    for name in ("truncated.jpg", "empty.jpg"):
        shutil.copy(shared("data/bad_images") / name, tmp_path / "train/dog" / name)
    part = open_classification_data(str(tmp_path)).parts["train"]
    batches = list(part.loader(TRANSFORM, False, LoaderSettings(4)))
    assert sum(len(batch["name"]) for batch in batches) == 5
    errors = {name: reason for batch in batches for name, reason in batch["errors"].items()}
    assert sorted(name.split("/")[-1] for name in errors) == ["empty.jpg", "truncated.jpg"]
    alone = list(part.loader(TRANSFORM, False, LoaderSettings(1)))
    assert sum("image" not in batch for batch in alone) == 2


# -- transforms


def test_training_transforms():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    for kind in ("resized-crop", "shift", "none"):
        transform = training_transform(Preprocessing((32, 48), crop_pct=1.0), Augmentation(kind, hflip=0.5))
        torch.manual_seed(0)
        travelled = pickle.loads(pickle.dumps(transform))  # as processes that are not forked need it
        results = [transform(picture) for _ in range(8)]
        assert all(r.shape == (3, 32, 48) for r in results)
        different = len({r.numpy().tobytes() for r in results})
        assert different == 2 if kind == "none" else different > 4
        torch.manual_seed(0)
        assert torch.equal(travelled(picture), results[0])
    grey = training_transform(Preprocessing((32, 32), in_chans=1), Augmentation("none", hflip=0.0))
    assert grey(picture).shape == (1, 32, 32)
    with pytest.raises(dicenet.ConfigError, match="choose one of resized-crop, shift, none"):
        Augmentation("mixup")
    with pytest.raises(dicenet.ConfigError, match="in_chans must be 1"):
        Preprocessing(in_chans=4)
