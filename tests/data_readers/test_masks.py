"""Data sets with masks in every layout: recognised, read, augmented, batched; and refused with the reason."""

import csv
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

import dicenet
from dicenet.classes import CAMVID, CITYSCAPES, VOC
from dicenet.data.mask_transforms import (
    MaskAugmentation,
    RandomScale,
    evaluation_pair_transform,
    training_pair_transform,
)
from dicenet.data.masks import IGNORE, MaskCoding, MaskedPictures, decode, hold_out, read_mask
from dicenet.data.samples import EachOnce, LoaderSettings
from dicenet.data.segmentation import open_segmentation_data
from dicenet.data.transforms import Preprocessing

TRANSFORM = evaluation_pair_transform(Preprocessing((16, 24)))


def picture(path, size=(24, 16), value=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 255 - value)).save(path)


def mask(path, numbers=((0, 1), (1, 255)), size=(24, 16)):
    """Numbers as a grey PNG, enlarged to ``size``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(numbers, np.uint8)).resize(size, Image.Resampling.NEAREST).save(path)


def pairs(root, pictures="images", masks="masks", names=("a", "b", "c"), **arguments):
    for name in names:
        picture(root / pictures / f"{name}.jpg")
        mask(root / masks / f"{name}.png", **arguments)


def classes(part):
    return sorted({int(n) for sample in part.samples for n in np.unique(sample.read_mask())})


# -- layouts


def test_voc(shared):
    data = open_segmentation_data(str(shared("data/voc2012_mini")))
    assert data.layout == "PASCAL VOC"
    assert data.class_names == list(VOC)
    assert {name: len(part) for name, part in data.parts.items()} == {
        "train": 8,
        "trainaug": 23,
        "trainval": 26,
        "val": 18,
    }
    assert data.training_part()[0] == "trainaug"
    assert data.evaluation_part()[0] == "val"
    assert data.class_weights is None
    # a picture of both sets has VOC's finer mask, which has a void border
    folder = shared("data/voc2012_mini")
    (name,) = (folder / "ImageSets/Segmentation/val.txt").read_text().split()[:1]
    sample = next(s for s in data.parts["val"].samples if name in s.name)
    np.testing.assert_array_equal(sample.read_mask(), np.asarray(Image.open(folder / f"SegmentationClass/{name}.png")))


def test_sbd_beside_voc(tmp_path):
    for name in ("old", "both", "new"):
        picture(tmp_path / f"JPEGImages/{name}.jpg")
    mask(tmp_path / "SegmentationClass/old.png", [[1]])
    mask(tmp_path / "SegmentationClass/both.png", [[2]])
    mask(tmp_path / "SegmentationClassAug/both.png", [[3]])
    mask(tmp_path / "SegmentationClassAug/new.png", [[4]])
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train_aug.txt").write_text("/JPEGImages/both.jpg /SegmentationClassAug/both.png\nnew\n")
    (lists / "test.txt").write_text("hidden\n")
    (lists / "val.txt").write_text("old\n")
    data = open_segmentation_data(str(tmp_path))
    assert data.training_part()[0] == "train_aug"
    assert classes(data.parts["train_aug"]) == [2, 4]
    assert classes(data.parts["val"]) == [1]
    assert data.evaluation_part("val")[0] == "val", "masks of test are not needed for it"
    with pytest.raises(dicenet.DataError, match=r"hidden\.jpg is missing"):
        data.evaluation_part("test")


def cityscapes(root, suffix, numbers):
    for part in ("train", "val"):
        for city in ("ulm", "bonn"):
            stem = f"{city}_000000_000019"
            picture(root / f"leftImg8bit/{part}/{city}/{stem}_leftImg8bit.png")
            mask(root / f"gtFine/{part}/{city}/{stem}_gtFine_{suffix}.png", numbers)


def test_cityscapes_by_train_ids(tmp_path):
    cityscapes(tmp_path, "labelTrainIds", [[0, 18, 255]])
    data = open_segmentation_data(str(tmp_path))
    assert (data.layout, data.class_names) == ("Cityscapes", list(CITYSCAPES))
    assert {name: len(part) for name, part in data.parts.items()} == {"train": 2, "val": 2}
    assert classes(data.parts["train"]) == [0, 18, 255]


def test_cityscapes_by_label_ids(tmp_path):
    """Road is 7, person 24, bicycle 33; 0 (unlabelled), 4 (static) and 10 (rail track) are void."""
    cityscapes(tmp_path, "labelIds", [[7, 24, 33, 0, 4, 10]])
    data = open_segmentation_data(str(tmp_path))
    (sample, _) = data.parts["val"].samples
    assert sample.read_mask()[0, ::4].tolist() == [0, 11, 18, 255, 255, 255]


def test_weights_of_cityscapes_are_the_official(tmp_path, shared):
    cityscapes(tmp_path, "labelTrainIds", [[0]])
    weights = open_segmentation_data(str(tmp_path)).class_weights
    text = shared("facts/official.md").read_text()
    assert len(weights) == len(CITYSCAPES) == 20
    assert ", ".join(map(str, weights[:-1])) + ", 0.0 (class 19)" in text


def test_camvid(shared):
    data = open_segmentation_data(str(shared("data/camvid")))
    assert (data.layout, data.class_names) == ("CamVid", list(CAMVID))
    assert {name: len(part) for name, part in data.parts.items()} == {"train": 367, "val": 101, "test": 233}
    assert data.evaluation_part()[0] == "test"
    with shared("data/camvid/classes.tsv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["name"] != "Unlabelled"]
    assert data.class_names == [row["name"] for row in rows]
    assert data.class_weights == [float(row["class_weight"]) for row in rows]
    assert classes(MaskedPictures(data.parts["val"].samples[:10], data.class_names))[-1] == IGNORE


def test_camvid_with_the_paths_of_another_machine(tmp_path):
    for part in ("train", "val", "test"):
        picture(tmp_path / part / "a.png")
        mask(tmp_path / f"{part}annot/a.png", [[0, 11]])
        (tmp_path / f"{part}.txt").write_text(f"/SegNet/CamVid/{part}/a.png /SegNet/CamVid/{part}annot/a.png\n\n")
    data = open_segmentation_data(str(tmp_path))
    assert data.class_names == list(CAMVID)
    assert classes(data.parts["test"]) == [0, 255]
    (tmp_path / "test.txt").unlink()
    assert list(open_segmentation_data(str(tmp_path)).parts) == ["train", "val"]
    (tmp_path / "val.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(dicenet.DataError, match=r"val\.txt is no list in UTF-8"):
        open_segmentation_data(str(tmp_path))
    (tmp_path / "val.txt").write_text("val/a.png\n")
    with pytest.raises(dicenet.DataError, match=r"needs a picture and a mask in each line, got 'val/a\.png'"):
        open_segmentation_data(str(tmp_path))


@pytest.mark.parametrize("folders", ["{part}/images {part}/masks", "images/{part} masks/{part}"])
def test_folders_in_parts(tmp_path, folders):
    for part, names in (("train", "abc"), ("val", "de")):
        pairs(tmp_path, *folders.format(part=part).split(), names=names)
    (tmp_path / "classes.txt").write_text("ground\nthing\n")
    data = open_segmentation_data(str(tmp_path))
    assert data.layout == "folders of pictures and masks"
    assert data.class_names == ["ground", "thing"]
    assert {name: len(part) for name, part in data.parts.items()} == {"train": 3, "val": 2}


def test_folders_without_parts_or_names(tmp_path):
    pairs(tmp_path, "imgs", "labels", names="abcdefghij", numbers=[[0, 3], [7, 255]])
    data = open_segmentation_data(str(tmp_path), ignore_ids=(7,))
    assert list(data.parts) == ["all"]
    assert data.class_names == ["0", "1", "2", "3"], "the largest number that is not void"
    train, val = hold_out(data.parts["all"], 0.2, seed=1)
    assert (len(train), len(val)) == (8, 2)
    assert {s.name for s in train.samples}.isdisjoint(s.name for s in val.samples)
    again = hold_out(data.parts["all"], 0.2, seed=1)[1]
    assert [s.name for s in again.samples] == [s.name for s in val.samples]
    for fraction in (0, 1):
        with pytest.raises(dicenet.ConfigError, match="val_fraction must lie between 0 and 1"):
            hold_out(data.parts["all"], fraction, seed=1)


# -- refused


def test_no_data_set(tmp_path):
    with pytest.raises(dicenet.DataError, match="does not exist"):
        open_segmentation_data(str(tmp_path / "nothing"))
    with pytest.raises(dicenet.DataError, match="in no known layout"):
        open_segmentation_data(str(tmp_path))
    pairs(tmp_path)
    (tmp_path / "masks/b.png").unlink()
    with pytest.raises(dicenet.DataError, match=r"mask .*b\.png is missing: .*b\.jpg needs it"):
        open_segmentation_data(str(tmp_path)).training_part()
    mask(tmp_path / "masks/b.png")
    data = open_segmentation_data(str(tmp_path))
    with pytest.raises(dicenet.ConfigError, match="has no part test: it has all"):
        data.evaluation_part("test")
    for path in (tmp_path / "masks").iterdir():
        mask(path, [[255]])
    with pytest.raises(dicenet.DataError, match="the masks hold no classes"):
        open_segmentation_data(str(tmp_path))
    for path in (tmp_path / "masks").iterdir():
        mask(path, [[0, 255]])  # the commonest mistake
    with pytest.raises(dicenet.DataError, match=r"class 0 only \(255 is void\)"):
        open_segmentation_data(str(tmp_path))


def test_a_part_without_masks(tmp_path):
    """Pictures to judge by must have masks, pictures to test on may have none."""
    pairs(tmp_path, "train/images", "train/masks")
    for part in ("test", "val"):
        (tmp_path / part / "images").mkdir(parents=True)
        picture(tmp_path / part / "images/a.jpg")
        if part == "test":
            assert list(open_segmentation_data(str(tmp_path)).parts) == ["train"]
    with pytest.raises(dicenet.DataError, match=r"val/images has no folder of masks beside it: it is called masks or"):
        open_segmentation_data(str(tmp_path))


@pytest.mark.parametrize("text", ["a\n\nb\n", "\n", "a\n  \n"])
def test_empty_names(tmp_path, text):
    pairs(tmp_path)
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(dicenet.DataError, match=r"classes\.txt has an empty line: each line must name a class"):
        open_segmentation_data(str(tmp_path))


def test_masks_of_more_classes_than_there_can_be(tmp_path):
    pairs(tmp_path)
    Image.fromarray(np.array([[0, 300]], np.uint16)).save(tmp_path / "masks/a.png")
    with pytest.raises(dicenet.DataError, match=r"mask .*a\.png holds 300: masks can tell 254 classes apart"):
        open_segmentation_data(str(tmp_path))


def test_masks_that_are_none(tmp_path):
    coding = MaskCoding(2)
    picture(tmp_path / "colours.png")
    with pytest.raises(dicenet.ConfigError, match=r"colours\.png has colours \(RGB\)"):
        read_mask(tmp_path / "colours.png", coding)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(dicenet.DataError, match="not a picture in a known format"):
        read_mask(tmp_path / "text.png", coding)
    Image.fromarray(np.random.default_rng(0).integers(0, 2, (300, 300), np.uint8)).save(tmp_path / "cut.png")
    content = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(dicenet.DataError, match=r"cut\.png"):
        read_mask(tmp_path / "cut.png", coding)
    with pytest.raises(dicenet.DataError, match="cannot be read"):
        read_mask(tmp_path / "none.png", coding)


def test_unknown_numbers_are_named(tmp_path):
    with pytest.raises(dicenet.ConfigError, match="holds 2, 9, the classes are 0 to 1 and 255 is void: give --ignore"):
        decode(np.array([[0, 1, 2], [9, 255, 0]]), MaskCoding(2), tmp_path / "m.png")
    with pytest.raises(dicenet.ConfigError, match=r"holds 2, 3, 4, 5, 6, \.\.\.,"):
        decode(np.arange(20)[None], MaskCoding(2), tmp_path / "m.png")
    with pytest.raises(dicenet.ConfigError, match="holds 256"):  # masks of 16 bits are not cut to 8
        decode(np.array([[256]]), MaskCoding(2), tmp_path / "m.png")
    assert decode(np.array([[65535, 1]]), MaskCoding(2, ignored=(65535,)), tmp_path / "m.png").tolist() == [[255, 1]]
    assert decode(np.array([[0, 9, 255]]), MaskCoding(2, ignored=(9,)), tmp_path / "m.png").tolist() == [[0, 255, 255]]
    with pytest.raises(dicenet.ConfigError, match="1 to 254 classes"):
        MaskCoding(255)


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "1"])
def test_masks_of_any_depth(tmp_path, mode):
    numbers = np.array([[0, 1], [1, 0]])
    if mode == "P":
        image = Image.fromarray(numbers.astype(np.uint8))
        image.putpalette([0, 0, 0, 128, 0, 0])
    else:
        dtype = {"L": np.uint8, "I;16": np.uint16, "1": bool}[mode]
        image = Image.fromarray(numbers.astype(dtype))
    assert image.mode == mode
    image.save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", MaskCoding(2)).tolist() == numbers.tolist()


def test_picture_and_mask_of_different_sizes(tmp_path):
    pairs(tmp_path, size=(16, 24))
    data = open_segmentation_data(str(tmp_path))
    loader = data.parts["all"].loader(TRANSFORM, False, LoaderSettings(2, 0))
    with pytest.raises(dicenet.ConfigError, match=r"a\.jpg is 24x16, its mask 16x24: they must have the same size"):
        next(iter(loader))


def test_a_picture_that_is_turned_upright(tmp_path):
    pairs(tmp_path, size=(16, 24))
    for path in (tmp_path / "images").iterdir():
        exif = Image.Exif()
        exif[0x0112] = 6  # a quarter turn
        Image.new("RGB", (24, 16)).save(path, exif=exif)
    for path in (tmp_path / "masks").iterdir():
        Image.new("L", (24, 16)).save(path)
    (tmp_path / "classes.txt").write_text("a\nb\n")
    loader = open_segmentation_data(str(tmp_path)).parts["all"].loader(TRANSFORM, False, LoaderSettings(2, 0))
    with pytest.raises(dicenet.ConfigError, match=r"is 16x24, its mask 24x16.*turned upright as its EXIF data says"):
        next(iter(loader))


# -- batches


def test_a_picture_that_cannot_be_read_is_left_out_and_named(tmp_path):
    pairs(tmp_path)
    (tmp_path / "images/b.jpg").write_bytes(b"")
    loader = open_segmentation_data(str(tmp_path)).parts["all"].loader(TRANSFORM, False, LoaderSettings(3, 0))
    (batch,) = loader
    assert [name.split("/")[-1] for name in batch["name"]] == ["a.jpg", "c.jpg"]
    assert next(iter(batch["errors"].values())).endswith("the file is empty")


def test_evaluation_keeps_each_masks_size(tmp_path):
    pairs(tmp_path, names="a")
    picture(tmp_path / "images/b.jpg", size=(30, 20))
    mask(tmp_path / "masks/b.png", size=(30, 20))
    loader = open_segmentation_data(str(tmp_path)).parts["all"].loader(TRANSFORM, False, LoaderSettings(2, 0))
    (batch,) = loader
    assert batch["image"].shape == (2, 3, 16, 24)
    assert [tuple(target.shape) for target in batch["target"]] == [(16, 24), (20, 30)]


def test_training_batches(tmp_path):
    pairs(tmp_path, names="abcde")
    part = open_segmentation_data(str(tmp_path)).parts["all"]
    transform = training_pair_transform(Preprocessing((16, 24)), MaskAugmentation((12, 20)))
    batches = list(part.loader(transform, True, LoaderSettings(2, 0, seed=0)))
    assert len(batches) == 2, "whole batches only"
    assert batches[0]["image"].shape == (2, 3, 12, 20)
    assert batches[0]["target"].shape == (2, 12, 20)
    assert batches[0]["target"].dtype == torch.int64


def test_each_process_gets_its_own_share(monkeypatch):
    data = list(range(7))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        sampler = EachOnce(data)
        shares += list(sampler)
        assert len(sampler) == len(list(sampler))
    assert sorted(shares) == data, "none twice, none left out"
    with pytest.raises(dicenet.DataError, match=r"too few pictures to judge by \(2\) for 3 processes"):
        list(EachOnce(data[:2]))


# -- augmentation


def striped(size):
    """A picture whose left half is white, its mask 1 there."""
    left = np.zeros(size[::-1], np.uint8)
    left[:, : size[0] // 2] = 1
    return Image.fromarray(left * 255).convert("RGB"), left


@pytest.mark.parametrize("augmentation", [{}, {"hflip": 1.0}, {"min_scale": 1.9}, {"max_scale": 0.6}])
def test_picture_and_mask_move_together(augmentation):
    torch.manual_seed(0)
    transform = training_pair_transform(Preprocessing((40, 60)), MaskAugmentation((40, 60), **augmentation))
    for _ in range(10):
        image, target = transform(*striped((60, 40)))
        white = image[0] > 0  # after normalisation black lies below zero
        known = target != IGNORE
        agree = (white == (target == 1))[known]
        assert agree.double().mean() > 0.95, "all but a column of pixels where the halves meet"
        assert known.any()
        assert not white[~known].any(), "what surrounds a small picture is black"


def test_transforms_travel_to_processes_that_are_not_forked():
    preprocessing = Preprocessing((40, 60))
    for transform in (
        training_pair_transform(preprocessing, MaskAugmentation((40, 60), color=0.5)),
        evaluation_pair_transform(preprocessing),
    ):
        found = []
        for one in (transform, pickle.loads(pickle.dumps(transform))):
            torch.manual_seed(0)
            found.append(one(*striped((60, 40))))
        torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize("factor", [0.55, 0.75, 1.3, 2.0])
def test_masks_are_scaled_as_pillow_does(factor):
    """Pictures are scaled around pixel centres: so must masks be, or edges move by half a pixel."""
    mask = np.random.default_rng(0).integers(0, 5, (100, 140)).astype(np.uint8)
    scaled = RandomScale(factor, factor)(tv_tensors.Mask(torch.from_numpy(mask)))
    size = (round(140 * factor), round(100 * factor))
    expected = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    rows, columns = ((np.arange(n) + 0.5) / factor for n in expected.shape)
    # where a centre falls on the edge of two pixels, rounding decides
    clear = np.outer(*(np.abs(centres - centres.round()) > 1e-6 for centres in (rows, columns)))
    assert clear.mean() > 0.4
    np.testing.assert_array_equal(scaled.numpy()[clear], expected[clear])


def test_mirrored():
    plain = MaskAugmentation((40, 60), 1.0, 1.0, hflip=0.0)
    mirror = MaskAugmentation((40, 60), 1.0, 1.0, hflip=1.0)
    pair = striped((60, 40))
    image, target = training_pair_transform(Preprocessing((40, 60)), plain)(*pair)
    other, mirrored = training_pair_transform(Preprocessing((40, 60)), mirror)(*pair)
    assert target[:, :30].eq(1).all()
    assert mirrored[:, 30:].eq(1).all()
    torch.testing.assert_close(other, image.flip(2))


def test_scales_are_spread_evenly_over_the_logarithm():
    """Half of the factors from 1/2 to 2 enlarge; the scale shows in the share that is void."""
    torch.manual_seed(0)
    transform = training_pair_transform(Preprocessing((20, 20)), MaskAugmentation((20, 20), 0.5, 2.0))
    sample = (Image.new("RGB", (20, 20)), np.zeros((20, 20), np.uint8))
    known = [float((transform(*sample)[1] != IGNORE).double().mean()) for _ in range(300)]
    assert min(known) >= 0.25 - 1e-9
    assert sum(share == 1 for share in known) / len(known) == pytest.approx(0.5, abs=0.1)
    # a quarter of the factors lies below 1/sqrt 2, where less than half of the crop is filled
    assert sum(share < 0.5 for share in known) / len(known) == pytest.approx(0.25, abs=0.08)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_scale": 0}, "min_scale must be above 0"),
        ({"min_scale": 2, "max_scale": 1}, "not above max_scale"),
        ({"hflip": 2}, "hflip and color must lie from 0 to 1"),
        ({"crop_size": (0, 5)}, "crop_size must be at least 1"),
    ],
)
def test_wrong_augmentation(arguments, message):
    with pytest.raises(dicenet.ConfigError, match=message):
        MaskAugmentation(**{"crop_size": (5, 5), **arguments})


def test_evaluation_transform_does_not_keep_the_aspect_and_leaves_the_mask():
    image, target = TRANSFORM(*striped((60, 40)))
    assert image.shape == (3, 16, 24)
    assert target.shape == (40, 60)
    assert image[0, :, :11].gt(0).all()
    assert image[0, :, 13:].lt(0).all()
