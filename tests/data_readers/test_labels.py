"""Data sets of pictures with several labels in every layout: recognised, read, checked; and refused with the reason."""

import csv
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dicenet
from dicenet.classes import VOC_OBJECTS
from dicenet.data.labels import LabelledPictures, hold_out
from dicenet.data.multilabel import open_multilabel_data
from dicenet.data.samples import LoaderSettings
from dicenet.data.transforms import Preprocessing, evaluation_transform

TRANSFORM = evaluation_transform(Preprocessing((32, 48), crop_mode="squash"))


def picture(path, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 120, 150)).save(path)


def write(root, name, text, pictures=("a.png", "b.png", "c.png")):
    root.mkdir(parents=True, exist_ok=True)
    for file in pictures:
        picture(root / file)
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def shown(part):
    """Names of the classes that each picture shows, by the picture's name."""
    names = np.array(part.class_names)
    return {sample.name.rsplit("/", 1)[-1]: set(names[sample.target[0] > 0]) for sample in part.samples}


# -- CSV


@pytest.mark.parametrize(
    "text",
    [
        "a.png,cat dog\nb.png,\nc.png,dog\n",
        "path,labels\na.png,cat dog\nb.png,\nc.png,dog\n",
        "\ufeffimage,tags\r\n\r\na.png , dog  cat\r\n./b.png,\r\nc.png,dog dog\r\n",
        '"a.png","cat dog"\n"b.png",""\n"c.png","dog"',
        "a.png,cat;dog\nb.png,\nc.png,dog\n",
    ],
)
@pytest.mark.parametrize("name", ["all.csv", "labels.csv"])
def test_lists(text, name, tmp_path):
    write(tmp_path, name, text)
    data = open_multilabel_data(str(tmp_path))
    assert (data.layout, data.class_names, list(data.parts)) == ("CSV", ["cat", "dog"], ["all"])
    part = data.training_part()[1]
    assert shown(part) == {"a.png": {"cat", "dog"}, "b.png": set(), "c.png": {"dog"}}
    assert part.pictures_per_class().tolist() == [1, 2]
    assert not any(sample.target[1:].any() for sample in part.samples), "sizes of objects are not known"


def test_lists_in_parts_and_names_with_spaces(tmp_path):
    write(tmp_path, "train.csv", "a.png,traffic light;person\nb.png,person\n")
    write(tmp_path, "valid.csv", "c.png,traffic light\n")
    write(tmp_path, "test.csv", f"{tmp_path / 'a.png'},person\n")
    write(tmp_path, "all.csv", "no list of a part,\n")
    data = open_multilabel_data(str(tmp_path))
    assert (data.class_names, list(data.parts)) == (["person", "traffic light"], ["train", "val", "test"])
    assert shown(data.evaluation_part()[1]) == {"a.png": {"person"}}
    assert shown(data.evaluation_part("val")[1]) == {"c.png": {"traffic light"}}
    (tmp_path / "classes.txt").write_text("zebra\ntraffic light\nperson\n")
    data = open_multilabel_data(str(tmp_path))
    assert data.class_names == ["zebra", "traffic light", "person"]
    assert data.training_part()[1].pictures_per_class().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png,cat\nb.png\n", r"all\.csv needs two fields in line 2, got 1: a path.*'a\.jpg,' without labels"),
        ("a.png,cat,dog\n", "needs two fields in line 1, got 3: a path, and labels with spaces between"),
        ("a.png,cat\n,dog\n", "has no path in line 2"),
        ("a.png,cat\nb.png,dog\n./a.png,dog\n", r"has the picture .*/a\.png in lines 1 and 3: give all its labels"),
        ("", r"all\.csv lists no picture"),
        ("path,labels\n", "lists no picture"),
        ("a.png,\nb.png,\n", "has no label in any line: there is nothing to learn"),
        (b"a.png,caf\xe9\n", "is no list in UTF-8"),
        ('a.png,"cat\n', r"is no CSV file, see line 1"),
    ],
)
def test_wrong_lists(text, message, tmp_path):
    write(tmp_path, "all.csv", text)
    with pytest.raises(dicenet.errors.DataError, match=message):
        open_multilabel_data(str(tmp_path))


def test_unknown_labels(tmp_path):
    write(tmp_path, "train.csv", "a.png,cat dog\n")
    write(tmp_path, "val.csv", "b.png,cat\nc.png,cta\n")
    message = r"val\.csv has the label 'cta' in line 2: it is not in .*train\.csv \(write all classes into .*classes"
    with pytest.raises(dicenet.errors.DataError, match=message):
        open_multilabel_data(str(tmp_path))
    (tmp_path / "classes.txt").write_text("cat\ncta\n")
    message = r"train\.csv has the label 'dog' in line 1: it is not in .*classes\.txt"
    with pytest.raises(dicenet.errors.DataError, match=message):
        open_multilabel_data(str(tmp_path))


def test_missing_pictures_are_told_of_the_part_that_is_asked_for(tmp_path):
    write(tmp_path, "train.csv", "path,labels\na.png,cat\ngone.png,cat\n")
    write(tmp_path, "val.csv", "b.png,cat\n")
    data = open_multilabel_data(str(tmp_path))
    assert len(data.evaluation_part()[1]) == 1
    with pytest.raises(dicenet.errors.DataError, match=r"gone\.png is missing: .*train\.csv names it in line 3"):
        data.training_part()


def test_a_missing_picture_in_the_first_line_is_no_header(tmp_path):
    write(tmp_path, "all.csv", "gone.png,cat\na.png,dog\n")
    with pytest.raises(dicenet.errors.DataError, match=r"gone\.png is missing: .*all\.csv names it in line 1"):
        open_multilabel_data(str(tmp_path)).training_part()


# -- COCO


def test_coco_agrees_with_a_plain_reading_of_its_list(shared):
    """Crowds count; sizes are those of the areas in the list, which are not those of the boxes."""
    root = shared("data/tiny_coco")
    data = open_multilabel_data(str(root))
    assert (data.layout, len(data.class_names), list(data.parts)) == ("COCO", 80, ["train", "val"])
    crowds = 0
    for part, pictures in (("train", data.training_part()[1]), ("val", data.evaluation_part()[1])):
        listed = json.loads((root / f"annotations/instances_{part}2017.json").read_text())
        order = sorted(row["id"] for row in listed["categories"])
        files = {row["id"]: row["file_name"] for row in listed["images"]}
        wanted = {name: np.zeros((4, 80), np.uint8) for name in files.values()}
        for row in listed["annotations"]:
            size = 1 if row["area"] < 1024 else 2 if row["area"] < 9216 else 3
            wanted[files[row["image_id"]]][[0, size], order.index(row["category_id"])] = 1
            crowds += row["iscrowd"]
        assert len(pictures) == len(wanted)
        for sample in pictures.samples:
            np.testing.assert_array_equal(sample.target, wanted[sample.name.rsplit("/", 1)[-1]])
    assert crowds == 10


def coco(root, part, annotations=()):
    picture(root / part / "1.jpg", (300, 200))
    rows = [
        {"id": index, "image_id": 1, "category_id": 3, "bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 0, **row}
        for index, row in enumerate(annotations)
    ]
    images = [{"id": 1, "file_name": "1.jpg", "width": 300, "height": 200}]
    categories = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
    (root / "annotations").mkdir(exist_ok=True)
    (root / f"annotations/instances_{part}.json").write_text(
        json.dumps({"images": images, "annotations": rows, "categories": categories})
    )


def test_coco_2014_with_crowds_alone(tmp_path):
    crowd = {"iscrowd": 1, "category_id": 7, "area": 10000}
    coco(tmp_path, "train2014", [crowd])
    coco(tmp_path, "val2014", [{}, {"bbox": [5, 5, 0, 3]}])
    data = open_multilabel_data(str(tmp_path))
    assert (data.class_names, list(data.parts)) == (["cat", "dog"], ["train", "val"])
    assert data.training_part()[1].samples[0].target.tolist() == [[0, 1], [0, 0], [0, 0], [0, 1]]
    _, val = data.evaluation_part()
    assert shown(val) == {"1.jpg": {"cat"}}
    assert val.left_out == {"boxes without area": 1}


def test_parts_without_any_label(tmp_path):
    coco(tmp_path, "train2017")
    coco(tmp_path, "val2017")
    data = open_multilabel_data(str(tmp_path))
    with pytest.raises(dicenet.errors.DataError, match=r"part train of .* has no label to learn from"):
        data.training_part()
    assert not data.evaluation_part()[1].has_labels(), "it can be judged by: all that is found is wrong"
    with pytest.raises(dicenet.errors.ConfigError, match="has no part test: it has train, val"):
        data.evaluation_part("test")


# -- PASCAL VOC


def xml(path, *objects):
    found = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>1</xmin><ymin>1</ymin>"
        f"<xmax>{side + 1}</xmax><ymax>{side + 1}</ymax></bndbox></object>"
        for name, side, difficult in objects
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotation><size><width>400</width><height>300</height></size>{found}</annotation>")


def voc(root, lists):
    for name, pictures in lists.items():
        (root / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
        (root / f"ImageSets/Main/{name}.txt").write_text("\n".join(pictures))
        for file, objects in pictures.items():
            picture(root / f"JPEGImages/{file}.jpg", (400, 300))
            xml(root / f"Annotations/{file}.xml", *objects)


def test_voc_xml(tmp_path):
    """Difficult objects count; sizes are those of the boxes."""
    voc(tmp_path, {"train": {"1": [("cat", 20, 0), ("dog", 200, 1)]}, "val": {"2": [("cat", 50, 0)]}})
    data = open_multilabel_data(str(tmp_path))
    assert (data.layout, data.class_names) == ("PASCAL VOC", list(VOC_OBJECTS))
    _, part = data.training_part()
    assert shown(part) == {"1.jpg": {"cat", "dog"}}
    cat, dog = (VOC_OBJECTS.index(name) for name in ("cat", "dog"))
    assert part.samples[0].target[1:, cat].tolist() == [1, 0, 0]
    assert part.samples[0].target[1:, dog].tolist() == [0, 0, 1]


def test_voc_years(tmp_path):
    for year in ("VOC2007", "VOC2012"):
        voc(tmp_path / year, {"trainval": {f"{year}_1": [("cat", 20, 0)]}, "test": {f"{year}_2": [("dog", 50, 0)]}})
    data = open_multilabel_data(str(tmp_path))
    assert list(data.parts) == ["train", "test"]
    assert set(shown(data.training_part()[1])) == {"VOC2007_1.jpg", "VOC2012_1.jpg"}
    assert shown(data.evaluation_part()[1]) == {"VOC2007_2.jpg": {"dog"}}


def test_voc_masks(shared):
    """Classes as the table beside the pictures names them."""
    root = shared("data/voc2012_mini")
    data = open_multilabel_data(str(root))
    assert data.class_names == list(VOC_OBJECTS)
    assert list(data.parts) == ["train", "trainaug", "trainval", "val"]
    with (root / "SOURCES.tsv").open(newline="") as file:
        wanted = {row["id"]: set(row["classes"].split(",")) for row in csv.DictReader(file, delimiter="\t")}
    name, part = data.training_part()
    assert (name, len(part)) == ("trainaug", 23)
    passed = []
    open_multilabel_data(str(root), track=lambda samples: passed.append(len(samples)) or samples).evaluation_part()
    assert passed == [18], "only the masks of the part that is asked for are read"
    assert shown(part) == {f"{name}.jpg": wanted[name] for name in (Path(s.name).stem for s in part.samples)}


def test_folders_of_masks(tmp_path):
    """A class called background is none; others are, the first too; a damaged mask costs its picture."""
    for index, numbers in enumerate(([0, 1, 255], [2, 7], [2, 2])):
        picture(tmp_path / f"images/{index}.png", (3, 1))
        (tmp_path / "masks").mkdir(exist_ok=True)
        pixels = np.resize(np.array(numbers, np.uint8), (1, 3))
        Image.fromarray(pixels).save(tmp_path / f"masks/{index}.png")
    (tmp_path / "masks/2.png").write_bytes(b"damaged")
    (tmp_path / "classes.txt").write_text("sky\nbackground\nsea\n")
    with pytest.raises(dicenet.errors.ConfigError, match="holds 7, the classes are 0 to 2"):
        open_multilabel_data(str(tmp_path)).training_part()
    data = open_multilabel_data(str(tmp_path), 7)
    assert data.class_names == ["sky", "sea"]
    _, part = data.training_part()
    assert shown(part) == {"0.png": {"sky"}, "1.png": {"sea"}, "2.png": set()}
    with pytest.raises(dicenet.errors.DataError, match=r"masks/2\.png is not a picture"):
        part.samples[2].read()


# -- all layouts


def test_lists_come_first_and_boxes_before_masks(tmp_path):
    picture(tmp_path / "JPEGImages/1.jpg")
    for folder in ("SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    Image.fromarray(np.full((30, 40), VOC_OBJECTS.index("cow") + 1, np.uint8)).save(
        tmp_path / "SegmentationClass/1.png"
    )
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("1")
    assert shown(open_multilabel_data(str(tmp_path)).evaluation_part()[1]) == {"1.jpg": {"cow"}}
    voc(tmp_path, {"val": {"1": [("sheep", 20, 0)]}})
    assert shown(open_multilabel_data(str(tmp_path)).evaluation_part()[1]) == {"1.jpg": {"sheep"}}
    write(tmp_path, "all.csv", "JPEGImages/1.jpg,lamb\n")
    assert shown(open_multilabel_data(str(tmp_path)).evaluation_part()[1]) == {"1.jpg": {"lamb"}}


@pytest.mark.parametrize(("path", "message"), [("", "in no known layout for multi-label"), ("x", "does not exist")])
def test_no_data(path, message, tmp_path):
    with pytest.raises(dicenet.errors.DataError, match=message):
        open_multilabel_data(str(tmp_path / path))


def test_batches(tmp_path):
    write(tmp_path, "all.csv", "a.png,cat\nb.png,cat dog\nc.png,\n")
    (tmp_path / "c.png").write_bytes(b"")
    part = open_multilabel_data(str(tmp_path)).evaluation_part()[1]
    (batch,) = part.loader(TRANSFORM, False, LoaderSettings(4))
    assert batch["image"].shape == (2, 3, 32, 48)
    assert batch["target"].shape == (2, 4, 2)
    assert batch["target"][:, 0].tolist() == [[1, 0], [1, 1]]
    assert list(batch["errors"].values()) == [f"{tmp_path / 'c.png'}: the file is empty"]
    # reading processes that are not forked get a copy
    (again,) = pickle.loads(pickle.dumps(part)).loader(TRANSFORM, False, LoaderSettings(4))
    assert torch.equal(again["target"], batch["target"])
    with pytest.raises(dicenet.errors.DataError, match="there is no picture with labels"):
        LabelledPictures([], ["cat"]).loader(TRANSFORM, False, LoaderSettings(4))


def test_hold_out(tmp_path):
    names = [f"{index}.png" for index in range(10)]
    write(tmp_path, "all.csv", "".join(f"{name},cat\n" for name in names), names)
    part = open_multilabel_data(str(tmp_path)).training_part()[1]
    train, val = hold_out(part, 0.3, 1)
    assert (len(train), len(val)) == (7, 3)
    assert {s.name for s in train.samples} | {s.name for s in val.samples} == {s.name for s in part.samples}
    assert [s.name for s in hold_out(part, 0.3, 1)[1].samples] == [s.name for s in val.samples]
    write(tmp_path, "all.csv", "0.png,cat\n" + "".join(f"{name},\n" for name in names[1:]))
    part = open_multilabel_data(str(tmp_path)).training_part()[1]
    with pytest.raises(dicenet.errors.DataError, match="of 10 pictures are held out, and there is no label to"):
        hold_out(part, 0.3, 1)
