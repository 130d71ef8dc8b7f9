"""Data sets with boxes in every layout: recognised, read, checked, augmented, batched; and refused with the reason."""

import json
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torchvision.transforms import InterpolationMode

import dicenet
from dicenet.data.box_transforms import (
    BoxAugmentation,
    ShrinkLarge,
    evaluation_box_transform,
    training_box_transform,
)
from dicenet.data.boxes import (
    CLIPPED,
    OTHER_SIZE,
    OUTSIDE,
    WITHOUT_AREA,
    BoxedPictures,
    BoxedSample,
    Boxes,
    hold_out,
    within,
)
from dicenet.data.detection import VOC_OBJECTS, open_detection_data
from dicenet.data.pictures import read_picture, read_size
from dicenet.data.samples import LoaderSettings
from dicenet.data.transforms import Preprocessing

PREPROCESSING = Preprocessing((40, 60))
EVALUATION = evaluation_box_transform(PREPROCESSING)
#: Nothing by chance.
PLAIN = BoxAugmentation(photometric=0.0, zoom_out=1.0, iou_crop=False, hflip=0.0)
TRAINING = training_box_transform(PREPROCESSING, PLAIN)


def picture(path, size=(100, 80)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 120, 150)).save(path)


def xml(path, objects=(("thing", (11, 21, 51, 61)),), size=(100, 80)):
    """VOC's annotation of (class, corners) or (class, corners, difficult)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>" if size else ""
    edges = ("xmin", "ymin", "xmax", "ymax")
    found = "".join(
        f"<object><name>{name}</name>"
        + "".join(f"<difficult>{int(flag)}</difficult>" for flag in rest)
        + f"<bndbox>{''.join(f'<{e}>{v}</{e}>' for e, v in zip(edges, corners, strict=True))}</bndbox></object>"
        for name, corners, *rest in objects
    )
    path.write_text(f"<annotation><filename>x.jpg</filename>{sides}{found}</annotation>")


def voc(root, lists, objects=(("thing", (11, 21, 51, 61)),)):
    """PASCAL VOC's folders with the names of each list."""
    (root / "ImageSets/Main").mkdir(parents=True)
    for part, names in lists.items():
        (root / f"ImageSets/Main/{part}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            picture(root / f"JPEGImages/{name}.jpg")
            xml(root / f"Annotations/{name}.xml", objects)


def coco_list(**changes):
    return {
        "images": [
            {"id": 70, "file_name": "a.jpg", "width": 100, "height": 80},
            {"id": 9, "file_name": "b.jpg", "width": 100, "height": 80},
            {"id": 8, "file_name": "c.jpg", "width": 100, "height": 80},
        ],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 30, "bbox": [10, 20, 30, 40], "area": 777.5, "iscrowd": 0},
            {"id": 2, "image_id": 70, "category_id": 4, "bbox": [0, 0, 10.5, 20], "area": 200, "iscrowd": 1},
            {"id": 3, "image_id": 9, "category_id": 4, "bbox": [1, 2, 3, 4]},
        ],
        "categories": [{"id": 30, "name": "cat"}, {"id": 4, "name": "dog"}],
        **changes,
    }


def coco(root, **changes):
    for name in "abc":
        picture(root / f"train2017/{name}.jpg")
    write_json(root / "annotations/instances_train2017.json", coco_list(**changes))


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def opened(path, **arguments):
    return open_detection_data(str(path), **arguments)


def corners(part):
    return [sample.boxes.boxes.tolist() for sample in part.samples]


def labels(part):
    return [[part.class_names[index] for index in sample.boxes.labels] for sample in part.samples]


def part_of(*boxes, **arguments):
    """Grey pictures of 100x80 with the boxes given."""
    samples = [BoxedSample(str(i), lambda: Image.new("RGB", (100, 80)), found) for i, found in enumerate(boxes)]
    return BoxedPictures(samples, ["a", "b", "c"], **arguments)


def only_batch(part, transform=EVALUATION, train=False, size=8):
    (batch,) = part.loader(transform, train, LoaderSettings(size, 0))
    return batch


# -- real sets


def test_bccd(shared):
    data = opened(shared("data/bccd"))
    assert data.layout == "PASCAL VOC"
    assert data.class_names == ["Platelets", "RBC", "WBC"]
    assert {name: len(part) for name, part in data.parts.items()} == {
        "test": 72,
        "train": 205,
        "trainval": 292,
        "val": 87,
    }
    assert (data.training_part()[0], data.evaluation_part()[0]) == ("train", "test")
    every = [*data.parts["trainval"].samples, *data.parts["test"].samples]
    counts = Counter(data.class_names[label] for sample in every for label in sample.boxes.labels)
    assert counts == {"RBC": 4155 - 2, "WBC": 372, "Platelets": 361}, "4888 boxes, of which two have no area"
    assert data.parts["trainval"].left_out() == {WITHOUT_AREA: 2}
    assert data.parts["test"].left_out() == {}
    (first,) = (sample for sample in every if "00000.jpg" in sample.name)
    assert first.boxes.boxes[0].tolist() == [259, 176, 490, 375], "the file says 260, 177, 491, 376, from 1"
    assert first.boxes.area[0] == (490 - 259) * (375 - 176)


def test_tiny_coco(shared):
    data = opened(shared("data/tiny_coco"))
    assert data.layout == "COCO"
    assert (len(data.class_names), data.class_names[:2], data.class_names[-1]) == (
        80,
        ["person", "bicycle"],
        "toothbrush",
    )
    train, val = (data.parts[name].samples for name in ("train", "val"))
    assert (len(train), len(val)) == (42, 34)
    assert [sum(len(sample.boxes) for sample in samples) for samples in (train, val)] == [390, 256]
    assert [sum(sample.boxes.crowd.sum() for sample in samples) for samples in (train, val)] == [5, 5]
    empty = [sample.name.split("/")[-1] for sample in (*train, *val) if not len(sample.boxes)]
    assert sorted(empty) == ["000000058636.jpg", "000000226111.jpg", "000000262284.jpg"]
    first = train[0]
    assert first.name.endswith("/000000522418.jpg")
    (row,) = np.flatnonzero(np.isclose(first.boxes.area, 63325.4219))
    np.testing.assert_allclose(first.boxes.boxes[row], [382.48, 0, 382.48 + 256.8, 474.31], rtol=1e-6)
    assert len(data.training_part()[1].without_empty()) == 41
    batch = only_batch(data.evaluation_part()[1], size=34)
    assert batch["image"].shape == (34, 3, 40, 60)
    assert batch["errors"] == {}
    assert sum(len(target["boxes"]) for target in batch["target"]) == 256


def test_sets_for_other_tasks_are_refused(shared):
    for name in ("voc2012_mini", "camvid", "cifar10"):
        with pytest.raises(dicenet.DataError, match="in no known layout for detection"):
            opened(shared(f"data/{name}"))


# -- layouts


def test_voc_lists(tmp_path):
    voc(tmp_path, {"train": ["a", "b.v1"], "val": ["c"], "trainval": ["a", "b.v1", "c"], "none": []})
    (tmp_path / "ImageSets/Main/thing_train.txt").write_text("a  1\nb.v1 -1\n")
    (tmp_path / "ImageSets/Main/test.txt").write_text("d.png\n")
    picture(tmp_path / "JPEGImages/d.png")
    xml(tmp_path / "Annotations/d.xml", [("other", (1, 1, 5, 9), True), ("thing", ("2.5", "3", "4", "5"), False)])
    data = opened(tmp_path)
    assert sorted(data.parts) == ["test", "train", "trainval", "val"]
    assert data.class_names == ["other", "thing"]
    assert [sample.name.split("/")[-1] for sample in data.parts["train"].samples] == ["a.jpg", "b.v1.jpg"]
    assert corners(data.parts["test"]) == [[[0, 0, 4, 8], [1.5, 2, 3, 4]]]
    assert labels(data.parts["test"]) == [["other", "thing"]]
    assert data.parts["test"].samples[0].boxes.difficult.tolist() == [True, False]
    assert data.parts["train"].samples[0].boxes.difficult.tolist() == [False], "a file without the mark"


def test_names_of_vocs_classes(tmp_path):
    voc(tmp_path, {"train": ["a"]}, [("dog", (1, 1, 9, 9)), ("aeroplane", (1, 1, 9, 9))])
    data = opened(tmp_path)
    assert data.class_names == list(VOC_OBJECTS)
    assert (len(VOC_OBJECTS), VOC_OBJECTS[0], VOC_OBJECTS[-1]) == (20, "aeroplane", "tvmonitor")
    assert data.parts["train"].samples[0].boxes.labels.tolist() == [11, 0]
    (tmp_path / "classes.txt").write_text("person\naeroplane\ndog\n")
    data = opened(tmp_path)
    assert data.class_names == ["person", "aeroplane", "dog"]
    assert data.parts["train"].samples[0].boxes.labels.tolist() == [2, 1]


@pytest.mark.parametrize("parent", ["", "VOCdevkit/"])
def test_voc_of_two_years(tmp_path, parent):
    dog = [("dog", (1, 1, 9, 9))]
    voc(tmp_path / f"{parent}VOC2007", {"train": ["000001"], "trainval": ["000001", "000002"], "test": ["000003"]}, dog)
    voc(tmp_path / f"{parent}VOC2012", {"train": ["2008_1"], "trainval": ["2008_1"], "test": ["2008_2"]}, dog)
    data = opened(tmp_path)
    assert data.layout == "PASCAL VOC, train: VOC2007 trainval + VOC2012 trainval"
    names = {name: [s.name.split("/")[-1] for s in part.samples] for name, part in data.parts.items()}
    assert names == {"train": ["000001.jpg", "000002.jpg", "2008_1.jpg"], "test": ["000003.jpg"]}
    assert data.class_names == list(VOC_OBJECTS)


def test_voc_of_one_year(tmp_path):
    voc(tmp_path / "VOCdevkit/VOC2012", {"train": ["a"], "val": ["b"]})
    data = opened(tmp_path)
    assert (data.layout, sorted(data.parts)) == ("PASCAL VOC", ["train", "val"])
    assert data.evaluation_part()[0] == "val"


def test_coco(tmp_path):
    coco(tmp_path)
    picture(tmp_path / "val2017/a.jpg")
    write_json(
        tmp_path / "annotations/instances_val2017.json",
        coco_list(images=[{"id": 1, "file_name": "a.jpg"}], annotations=[]),
    )
    data = opened(tmp_path)
    assert data.layout == "COCO"
    assert data.class_names == ["dog", "cat"], "in order of the ids, 4 and 30"
    assert {name: len(part) for name, part in data.parts.items()} == {"train": 3, "val": 1}
    part = data.parts["train"]
    assert [sample.name.split("/")[-1] for sample in part.samples] == ["a.jpg", "b.jpg", "c.jpg"]
    assert corners(part) == [[[0, 0, 10.5, 20]], [[10, 20, 40, 60], [1, 2, 4, 6]], []]
    assert labels(part) == [["dog"], ["cat", "dog"], []]
    assert [sample.boxes.crowd.tolist() for sample in part.samples] == [[True], [False, False], []]
    assert part.samples[1].boxes.area.tolist() == [777.5, 12], "as annotated, or of the box"


def test_coco_of_two_years_and_pictures_in_images(tmp_path):
    for stem in ("train2014", "train2017"):
        picture(tmp_path / f"images/{stem}/a.jpg")
        write_json(
            tmp_path / f"annotations/instances_{stem}.json",
            coco_list(images=[{"id": 9, "file_name": "a.jpg"}], annotations=coco_list()["annotations"][::2]),
        )
    data = opened(tmp_path)
    assert sorted(data.parts) == ["train2014", "train2017"]
    assert data.training_part("train2014")[1].samples[0].name == str(tmp_path / "images/train2014/a.jpg")


def test_coco_in_folders(tmp_path):
    for folder in ("train", "valid", "test"):
        for name in "abc":
            picture(tmp_path / folder / f"{name}.jpg")
        write_json(tmp_path / folder / "_annotations.coco.json", coco_list())
    data = opened(tmp_path)
    assert (data.layout, list(data.parts)) == ("COCO in folders", ["train", "val", "test"])
    assert data.evaluation_part("val")[1].samples[0].name == str(tmp_path / "valid/a.jpg")
    assert data.class_names == ["dog", "cat"]


@pytest.mark.parametrize("folders", ["{part}/images {part}/annotations", "images/{part} Annotations/{part}"])
def test_folders_in_parts(tmp_path, folders):
    for part, names in (("train", "abc"), ("val", "de")):
        pictures, annotations = folders.format(part=part).split()
        for name in names:
            picture(tmp_path / pictures / f"{name}.jpg")
            xml(tmp_path / annotations / f"{name}.xml")
    data = opened(tmp_path)
    assert data.layout == "folders of pictures and annotations"
    assert {name: len(part) for name, part in data.parts.items()} == {"train": 3, "val": 2}
    assert corners(data.parts["val"]) == [[[10, 20, 50, 60]]] * 2


def test_folders_without_parts(tmp_path):
    for name in "abcdefghij":
        picture(tmp_path / f"images/{name}.png")
        xml(tmp_path / f"annotations/{name}.xml", [("dog", (1, 1, 5, 5))] if name != "c" else [])
    data = opened(tmp_path, difficult=True)
    assert list(data.parts) == ["all"]
    assert data.class_names == ["dog"], "VOC's other classes are not asked for in folders"
    train, val = hold_out(data.parts["all"], 0.2, seed=1)
    assert (len(train), len(val), train.difficult, val.difficult) == (8, 2, True, True)
    assert {s.name for s in train.samples}.isdisjoint(s.name for s in val.samples)
    assert [s.name for s in hold_out(data.parts["all"], 0.2, seed=1)[1].samples] == [s.name for s in val.samples]


# -- boxes are checked


def test_boxes_without_area_and_outside(tmp_path):
    objects = [
        ("thing", (11, 21, 51, 61)),
        ("thing", (11, 21, 11, 61)),  # no width
        ("thing", (11, 61, 51, 21)),  # upside down
        ("thing", (101, 1, 120, 50)),  # right of the picture
        ("thing", (-30, 1, 1, 50)),  # left of it
        ("thing", (0, 71, 151, 91)),  # over three edges
    ]
    voc(tmp_path, {"train": ["a"], "val": ["b"]}, objects)
    xml(tmp_path / "Annotations/b.xml")
    data = opened(tmp_path)
    assert corners(data.parts["train"]) == [[[10, 20, 50, 60], [0, 70, 100, 80]]]
    assert data.parts["train"].left_out() == {WITHOUT_AREA: 2, OUTSIDE: 2, CLIPPED: 1}
    assert data.parts["val"].left_out() == {}


def test_boxes_of_coco_without_area_and_outside(tmp_path):
    boxes = [[10, 20, 30, 40], [10, 20, 0, 5], [10, 20, 5, -1], [100, 0, 5, 5], [90, 70, 30, 30], [0, 0, 100, 80]]
    rows = [{"id": i, "image_id": 9, "category_id": 4, "bbox": box, "area": i} for i, box in enumerate(boxes)]
    coco(tmp_path, annotations=rows)
    part = opened(tmp_path).parts["train"]
    assert corners(part) == [[], [[10, 20, 40, 60], [90, 70, 100, 80], [0, 0, 100, 80]], []]
    assert part.samples[1].boxes.area.tolist() == [0, 4, 5]
    assert part.left_out() == {WITHOUT_AREA: 2, OUTSIDE: 1, CLIPPED: 1}


@pytest.mark.parametrize("size", [None, (0, 0), ("", "")])
def test_size_is_taken_from_the_picture_where_the_annotation_has_none(tmp_path, size):
    voc(tmp_path, {"train": ["a"]})
    xml(tmp_path / "Annotations/a.xml", [("thing", (51, 1, 151, 50))], size)
    part = opened(tmp_path).parts["train"]
    assert corners(part) == [[[50, 0, 100, 49]]]
    assert part.left_out() == {CLIPPED: 1}
    (tmp_path / "JPEGImages/a.jpg").unlink()
    assert corners(opened(tmp_path).parts["train"]) == [[[50, 0, 150, 49]]], "no size to be had"


def test_size_is_taken_from_the_picture_where_cocos_list_has_none(tmp_path):
    images = [{"id": 9, "file_name": "a.jpg"}, {"id": 10, "file_name": "b.jpg", "width": None, "height": 3}]
    rows = [{"id": i, "image_id": 9 + i, "category_id": 4, "bbox": [90, 10, 30, 10]} for i in range(2)]
    coco(tmp_path, images=images, annotations=rows)
    assert corners(opened(tmp_path).parts["train"]) == [[[90, 10, 100, 20]]] * 2


def test_annotation_gives_another_size_than_the_picture_has(tmp_path):
    voc(tmp_path, {"train": ["a"]})
    xml(tmp_path / "Annotations/a.xml", [("thing", (51, 1, 151, 50)), ("thing", (120, 1, 151, 50))], (200, 200))
    part = opened(tmp_path).parts["train"]
    assert part.left_out() == {OTHER_SIZE: 1, CLIPPED: 1, OUTSIDE: 1}
    (target,) = only_batch(part)["target"]
    assert target["boxes"].tolist() == [[50, 0, 100, 49]], "the picture is 100 pixels wide"
    assert target["size"].tolist() == [80, 100]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_of_pictures_that_lie_on_their_side(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert read_size(tmp_path / "a.jpg") == read_picture(tmp_path / "a.jpg").size
    assert read_size(tmp_path / "a.jpg") == ((30, 20) if orientation < 5 else (20, 30))


def test_sizes_that_cannot_be_read(tmp_path):
    with pytest.raises(dicenet.DataError, match=r"none\.jpg: cannot be read"):
        read_size(tmp_path / "none.jpg")
    (tmp_path / "a.jpg").write_text("no picture")
    with pytest.raises(dicenet.DataError, match=r"a\.jpg: cannot be read"):
        read_size(tmp_path / "a.jpg")


# -- refused


def test_no_data_set(tmp_path):
    with pytest.raises(dicenet.DataError, match="does not exist: give a folder"):
        opened(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(dicenet.DataError, match="is a file: give a folder"):
        opened(tmp_path / "file")
    with pytest.raises(dicenet.DataError, match="in no known layout for detection"):
        opened(tmp_path)


def test_parts_that_are_not_there(tmp_path):
    voc(tmp_path, {"mine": ["a"]})
    data = opened(tmp_path)
    with pytest.raises(dicenet.ConfigError, match="has no part to train on: it has mine"):
        data.training_part()
    with pytest.raises(dicenet.ConfigError, match="has no part test or val: it has mine"):
        data.evaluation_part()
    with pytest.raises(dicenet.ConfigError, match="has no part val: it has mine"):
        data.evaluation_part("val")
    assert data.training_part("mine")[0] == "mine"


def test_missing_files_are_told_of_the_part_that_is_asked_for(tmp_path):
    voc(tmp_path, {"train": ["a", "b"], "val": ["c"], "test": ["d"]})
    (tmp_path / "JPEGImages/b.jpg").unlink()
    (tmp_path / "Annotations/c.xml").unlink()
    data = opened(tmp_path)
    assert data.evaluation_part("test")[0] == "test"
    with pytest.raises(dicenet.DataError, match=r"picture .*b\.jpg is missing: .*b\.xml is about it"):
        data.training_part()
    with pytest.raises(dicenet.DataError, match=r"annotation .*c\.xml is missing: .*c\.jpg needs it"):
        data.evaluation_part("val")
    (reason,) = only_batch(data.parts["val"])["errors"].values()
    assert "c.xml is missing" in reason, "not taken for a picture without objects"


def test_missing_pictures_of_coco(tmp_path):
    coco(tmp_path)
    (tmp_path / "train2017/c.jpg").unlink()
    with pytest.raises(dicenet.DataError, match=r"c\.jpg is missing: .*instances_train2017\.json is about it"):
        opened(tmp_path).training_part()


def test_classes_that_are_not_listed(tmp_path):
    voc(tmp_path, {"train": ["a"]})
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(
        dicenet.DataError, match=r"a\.xml has an object of class 'thing': classes\.txt does not list it"
    ):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<annotation><object>", r"a\.xml is no XML"),
        ("", r"a\.xml is no XML"),
        ('<?xml version="1.0" encoding="none-such"?><annotation/>', r"a\.xml is no XML"),
        ("<html/>", r"a\.xml is no annotation of PASCAL VOC: it holds <html>"),
        ("<annotation><object/></annotation>", "a.xml has an object without <name>"),
        ("<annotation><object><name>x</name></object></annotation>", "a.xml has a x without <bndbox>"),
        (
            "<annotation><size><width>wide</width><height>9</height></size></annotation>",
            "a.xml has a width 'wide': a number is needed",
        ),
    ],
)
def test_annotations_that_are_none(tmp_path, content, message):
    voc(tmp_path, {"train": ["a"]})
    (tmp_path / "Annotations/a.xml").write_text(content)
    with pytest.raises(dicenet.DataError, match=message):
        opened(tmp_path)


@pytest.mark.parametrize("value", ["ten", "", "nan", "inf", "1,5"])
def test_boxes_that_are_no_numbers(tmp_path, value):
    voc(tmp_path, {"train": ["a"]})
    xml(tmp_path / "Annotations/a.xml", [("thing", (1, 1, value, 9))])
    with pytest.raises(dicenet.DataError, match=rf"a\.xml has a thing with xmax '{value}': a number is needed"):
        opened(tmp_path)


def test_nothing_to_detect(tmp_path):
    voc(tmp_path, {"train": ["a"]}, [])
    with pytest.raises(dicenet.DataError, match="annotations of train hold no object"):
        opened(tmp_path)
    (tmp_path / "classes.txt").write_text("cat\n")
    data = opened(tmp_path)
    assert len(data.parts["train"]) == 1
    with pytest.raises(dicenet.DataError, match="has no box to learn from"):
        data.training_part()
    (tmp_path / "ImageSets/Main/train.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(dicenet.DataError, match=r"train\.txt is no list in UTF-8"):
        opened(tmp_path)


ROW = {"id": 1, "image_id": 9, "category_id": 4, "bbox": [1, 2, 3, 4]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [{"id": 9, "file_name": "a.jpg"}] * 2}, "has the picture id 9 twice"),
        ({"annotations": [ROW, ROW]}, "has the annotation id 1 twice"),
        ({"categories": [{"id": 4, "name": "a"}, {"id": 4, "name": "b"}]}, "has the category id 4 twice"),
        ({"categories": [{"id": 4, "name": "a"}, {"id": 5, "name": "a"}]}, "names a category twice"),
        ({"categories": [], "annotations": []}, "has no category"),
        ({"annotations": [ROW | {"iscrowd": "0"}]}, "annotation 1 of .* has iscrowd '0': 0 or 1 is needed"),
        ({"annotations": [ROW | {"image_id": "9"}]}, "annotation 1 of .* has image_id '9': there is no such picture"),
        ({"annotations": [ROW | {"image_id": 10}]}, "annotation 1 of .* has image_id 10: there is no such picture"),
        (
            {"annotations": [ROW | {"category_id": 5}]},
            "annotation 1 of .* has category_id 5: there is no such category",
        ),
        ({"annotations": [ROW | {"bbox": [1, 2, 3]}]}, r"annotation 1 of .* has the bbox \[1, 2, 3\]"),
        ({"annotations": [ROW | {"bbox": [1, 2, "3", 4]}]}, "four numbers are needed"),
        ({"annotations": [ROW | {"bbox": [1, 2, float("nan"), 4]}]}, "four numbers are needed"),
        ({"annotations": [ROW | {"bbox": [1, 2, 10**400, 4]}]}, "four numbers are needed"),
        ({"annotations": [{key: ROW[key] for key in ROW if key != "bbox"}]}, "has the bbox None"),
        ({"images": [{"id": "9", "file_name": "a.jpg"}]}, "has a picture with id '9': ids must be whole numbers"),
        ({"images": [{"id": 9}], "annotations": [ROW]}, r"is no list of COCO's instances: an entry has no 'file_name'"),
        ({"images": {"9": "a.jpg"}}, "is no list of COCO's instances: it has no table 'images'"),
        ({"annotations": None}, "it has no table 'annotations'"),
    ],
)
def test_wrong_lists_of_coco(tmp_path, changes, message):
    coco(tmp_path, **changes)
    with pytest.raises(dicenet.DataError, match=message) as error:
        opened(tmp_path)
    assert "instances_train2017.json" in str(error.value)


def test_lists_that_are_none(tmp_path):
    coco(tmp_path)
    file = tmp_path / "annotations/instances_train2017.json"
    for content in (b"[1, 2]", b"3", b"{}"):
        file.write_bytes(content)
        with pytest.raises(dicenet.DataError, match=r"train2017\.json is no list of COCO's instances"):
            opened(tmp_path)
    for content in (b"", b'{"images": [', b"\xff\xfe\x00"):
        file.write_bytes(content)
        with pytest.raises(dicenet.DataError, match=r"train2017\.json is no JSON"):
            opened(tmp_path)


def test_parts_of_coco_with_other_categories(tmp_path):
    coco(tmp_path)
    other = coco_list(categories=[{"id": 30, "name": "cow"}, {"id": 4, "name": "dog"}])
    write_json(tmp_path / "annotations/instances_val2017.json", other)
    with pytest.raises(dicenet.DataError, match=r"differ in category 30 \(cat\): all parts need the same"):
        opened(tmp_path)


# -- batches


def test_evaluation_batches(tmp_path):
    voc(tmp_path, {"val": ["a", "b", "c"]}, [("thing", (11, 21, 51, 61)), ("thing", (1, 1, 9, 9), True)])
    picture(tmp_path / "JPEGImages/c.jpg", (50, 30))
    xml(tmp_path / "Annotations/c.xml", [], (50, 30))
    (tmp_path / "JPEGImages/b.jpg").write_bytes(b"")
    batch = only_batch(opened(tmp_path).evaluation_part()[1])
    assert batch["image"].shape == (2, 3, 40, 60)
    assert [name.split("/")[-1] for name in batch["name"]] == ["a.jpg", "c.jpg"]
    assert next(iter(batch["errors"].values())).endswith("the file is empty")
    first, last = batch["target"]
    assert first["boxes"].tolist() == [[10, 20, 50, 60], [0, 0, 8, 8]], "in pixels of the picture as it was"
    assert first["difficult"].tolist() == [False, True]
    assert first["area"].tolist() == [1600, 64]
    assert (first["size"].tolist(), last["size"].tolist()) == ([80, 100], [30, 50])
    assert {name: (tuple(column.shape), column.dtype) for name, column in last.items()} == {
        "boxes": ((0, 4), torch.float32),
        "labels": ((0,), torch.int64),
        "difficult": ((0,), torch.bool),
        "crowd": ((0,), torch.bool),
        "area": ((0,), torch.float32),
        "size": ((2,), torch.int64),
    }


def test_training_leaves_out_crowds_and_difficult_boxes():
    boxes = Boxes.of(
        [[0, 0, 10, 10], [0, 0, 20, 20], [0, 0, 30, 30]], [0, 1, 2], [False, True, False], [False, False, True]
    )
    seen = {
        difficult: only_batch(part_of(boxes, difficult=difficult), TRAINING, train=True)["target"][0]["labels"].tolist()
        for difficult in (False, True)
    }
    assert seen == {False: [0], True: [0, 1]}
    assert only_batch(part_of(boxes))["target"][0]["labels"].tolist() == [0, 1, 2], "evaluation sees all"


def test_pictures_without_boxes_to_train_on(tmp_path):
    crowd = Boxes.of([[0, 0, 10, 10]], [0], crowd=[True])
    difficult = Boxes.of([[0, 0, 10, 10]], [0], difficult=[True])
    box = Boxes.of([[0, 0, 10, 10]], [0])
    part = part_of(crowd, difficult, box, Boxes.of([], []))
    assert [sample.name for sample in part.without_empty().samples] == ["2"]
    assert [sample.name for sample in part_of(difficult, box, difficult=True).without_empty().samples] == ["0", "1"]
    coco(tmp_path)
    name, train = opened(tmp_path).training_part()
    assert (name, len(train), len(train.without_empty())) == ("train", 3, 1)


def test_nothing_to_judge_by_is_told_before_a_run():
    crowd = Boxes.of([[0, 0, 10, 10]], [0], crowd=[True])
    difficult = Boxes.of([[0, 0, 10, 10]], [0], difficult=[True])
    assert not part_of(crowd, Boxes.of([], [])).can_be_judged_by()
    assert part_of(crowd, difficult).can_be_judged_by(), "COCO's scores know no difficult boxes"
    part = part_of(*[Boxes.of([], [])] * 9, difficult, difficult=True)
    told = set()
    for seed in range(30):
        with pytest.raises(dicenet.DataError, match="of 10 pictures are held out, and there is no box to") as error:
            hold_out(part, 0.2, seed)
        told.add(str(error.value).split(" are ")[0] + str(error.value).split("no box")[1][:10])
    assert told == {"2 of 10 pictures to learn ", "2 of 10 pictures to judge "}


def test_a_batch_without_any_box():
    part = part_of(Boxes.of([], []), Boxes.of([[0, 0, 10, 10]], [0], crowd=[True]))
    augmented = training_box_transform(PREPROCESSING, BoxAugmentation())
    for _ in range(5):
        batch = only_batch(part, augmented, train=True)
        assert batch["image"].shape == (2, 3, 40, 60)
        assert [tuple(target["boxes"].shape) for target in batch["target"]] == [(0, 4), (0, 4)]
        assert [tuple(target["labels"].shape) for target in batch["target"]] == [(0,), (0,)]
    with pytest.raises(dicenet.DataError, match="there is no picture with boxes"):
        part_of().loader(TRAINING, True, LoaderSettings(2))


def test_training_batches_are_whole_and_shuffled():
    part = part_of(*(Boxes.of([[i, 0, i + 10, 10]], [0]) for i in range(21)))
    batches = list(part.loader(TRAINING, True, LoaderSettings(4, 0, seed=3)))
    assert [len(batch["name"]) for batch in batches] == [4] * 5
    order = [name for batch in batches for name in batch["name"]]
    again = [name for batch in part.loader(TRAINING, True, LoaderSettings(4, 0, seed=3)) for name in batch["name"]]
    assert order == again
    assert order != sorted(order, key=int)
    assert len(only_batch(part, TRAINING, train=True, size=50)["name"]) == 21, "fewer pictures than a batch"


def test_each_process_judges_its_own_share(monkeypatch):
    part = part_of(*(Boxes.of([], []) for _ in range(7)))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        loader = part.loader(EVALUATION, False, LoaderSettings(2))
        shares.append([int(name) for batch in loader for name in batch["name"]])
    assert shares == [[0, 2, 4, 6], [1, 3, 5]], "none twice, none left out"


def test_tensors_share_no_memory_with_the_annotations():
    boxes = Boxes.of([[0, 0, 10, 10]], [0])
    boxes.tensors()["boxes"] += 5
    assert boxes.boxes.tolist() == [[0, 0, 10, 10]]


# -- transforms


def transformed(augmentation, boxes, size=(100, 80), preprocessing=PREPROCESSING):
    image, target = training_box_transform(preprocessing, augmentation)(
        Image.new("RGB", size), Boxes.of(boxes, [0] * len(boxes))
    )
    return image, target["boxes"]


def test_boxes_are_resized_with_the_picture():
    """100x80 to 60x40: x by 0.6, y by 0.5."""
    _, boxes = transformed(PLAIN, [[10, 20, 50, 60], [0, 0, 100, 80]])
    torch.testing.assert_close(boxes, torch.tensor([[6.0, 10, 30, 30], [0, 0, 60, 40]]))


def test_boxes_are_mirrored_with_the_picture():
    """From the right edge, x by 0.6: 100 - 50 = 50 and 100 - 10 = 90."""
    _, boxes = transformed(BoxAugmentation(0, zoom_out=1, iou_crop=False, hflip=1), [[10, 20, 50, 60]])
    torch.testing.assert_close(boxes, torch.tensor([[30.0, 10, 54, 30]]))


def test_boxes_are_turned_upside_down_with_the_picture():
    """From the lower edge, y by 0.5: 80 - 60 = 20 and 80 - 20 = 60."""
    _, boxes = transformed(BoxAugmentation(0, zoom_out=1, iou_crop=False, hflip=0, vflip=1), [[10, 20, 50, 45]])
    torch.testing.assert_close(boxes, torch.tensor([[6.0, 17.5, 30, 30]]))


def test_transforms_travel_to_processes_that_are_not_forked():
    torch.manual_seed(0)
    transforms = [EVALUATION, training_box_transform(PREPROCESSING, BoxAugmentation(vflip=0.5))]
    picture, boxes, _ = colours()
    for transform in transforms:
        travelled = pickle.loads(pickle.dumps(transform))
        expected, found = (seeded(one, picture, boxes) for one in (transform, travelled))
        torch.testing.assert_close(found, expected)


def seeded(transform, picture, boxes):
    torch.manual_seed(1)
    return transform(picture, boxes)


def test_zoomed_out():
    """Around the picture lies the mean colour; boxes shrink with it, by factors from 1 to 4."""
    torch.manual_seed(0)
    augmentation = BoxAugmentation(0, zoom_out=4, zoom_out_p=1, iou_crop=False, hflip=0)
    factors = []
    for _ in range(40):
        image, boxes = transformed(augmentation, [[0, 0, 600, 400], [0, 0, 300, 200]], (600, 400))
        (left, top, right, bottom), half = boxes
        torch.testing.assert_close(
            half, torch.stack([left, top, (left + right) / 2, (top + bottom) / 2]), atol=0.1, rtol=0
        )
        assert (right - left) / 60 == pytest.approx(float(bottom - top) / 40, abs=0.01)
        factors.append(60 / float(right - left))
        black = image[0] < -1
        rows, columns = torch.where(black)
        edges = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        torch.testing.assert_close(edges.float(), boxes[0], atol=1.0, rtol=0)
        around = torch.ones_like(black)
        around[max(0, int(top) - 2) : int(bottom) + 3, max(0, int(left) - 2) : int(right) + 3] = False
        assert image[:, around].abs().max() < 0.02 if around.any() else True, "the mean is 0 after normalisation"
    assert 1 <= min(factors) < 1.5
    assert 3 < max(factors) < 4.1


def test_zoomed_out_grey_picture():
    grey = Preprocessing((40, 60), in_chans=1)
    torch.manual_seed(0)
    image, _ = transformed(BoxAugmentation(0, zoom_out_p=1, iou_crop=False), [[0, 0, 100, 80]], preprocessing=grey)
    assert image.shape == (1, 40, 60)
    assert ((image.abs() < 0.02).double().mean()) > 0.2


def colours(size=(300, 240)):
    """A picture of rectangles of pure colours on grey, far apart, and their boxes."""
    image = Image.new("RGB", size, (128, 128, 128))
    boxes = [[20, 30, 90, 110], [200, 20, 280, 90], [40, 150, 120, 220], [180, 140, 270, 230]]
    fills = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
    draw = ImageDraw.Draw(image)
    for box, fill in zip(boxes, fills, strict=True):
        draw.rectangle([box[0], box[1], box[2] - 1, box[3] - 1], fill)
    return image, Boxes.of(boxes, range(4), area=[10, 20, 30, 40]), np.array(fills) / 255


def test_boxes_stay_on_their_objects():
    """Whatever is drawn: inside a box there is its object's colour and nothing else, outside there is none."""
    torch.manual_seed(0)
    plain = Preprocessing((90, 130), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    transform = training_box_transform(plain, BoxAugmentation(photometric=0))
    image, boxes, fills = colours()
    counts = Counter()
    for _ in range(150):
        picture, target = transform(image, boxes)
        assert picture.shape == (3, 90, 130)
        counts[len(target["boxes"])] += 1
        kept = target["labels"].tolist()
        assert target["area"].tolist() == [(index + 1) * 10 for index in kept], "columns stay beside their boxes"
        for index, box in zip(kept, target["boxes"].tolist(), strict=True):
            left, top, right, bottom = (
                *np.ceil(np.add(box[:2], 1.5)).astype(int),
                *np.floor(np.subtract(box[2:], 1.5)).astype(int),
            )
            if right <= left or bottom <= top:
                continue
            inside = picture[:, top:bottom, left:right]
            expected = torch.tensor(fills[index], dtype=torch.float32)[:, None, None].expand_as(inside)
            torch.testing.assert_close(inside, expected, atol=0.03, rtol=0)
        if len(kept) == 4:  # no object is cut away: all colour lies in boxes
            saturated = (picture.max(dim=0).values - picture.min(dim=0).values) > 0.6
            for left, top, right, bottom in target["boxes"].tolist():
                saturated[int(top) : int(bottom) + 1, int(left) : int(right) + 1] = False
            assert not saturated.any()
    assert counts[4] > 20
    assert sum(counts[n] for n in (1, 2, 3)) > 20, "crops leave out boxes"


def test_evaluation_leaves_the_boxes_and_squashes_the_picture():
    image, boxes, fills = colours()
    plain = Preprocessing((120, 75), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), crop_pct=0.5)
    tensor, target = evaluation_box_transform(plain)(image, boxes)
    assert target["boxes"].tolist() == boxes.boxes.tolist()
    assert tensor.shape == (3, 120, 75), "x by 1/4, y by 1/2"
    for box, fill in zip(boxes.boxes, fills, strict=True):
        left, top, right, bottom = (box * [0.25, 0.5, 0.25, 0.5]).astype(int)
        inside = tensor[:, top + 2 : bottom - 2, left + 2 : right - 2]
        assert inside.numel() > 0
        torch.testing.assert_close(
            inside, torch.tensor(fill).float()[:, None, None].expand_as(inside), atol=0.03, rtol=0
        )


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (3, 4), (4, 4), (900, 10)])
def test_pictures_of_any_shape(size):
    torch.manual_seed(0)
    for boxes in ([], [[0, 0, *size]], [[0, 0, 0.5, 0.5]]):
        for _ in range(20):
            image, found = transformed(BoxAugmentation(), boxes, size)
            assert image.shape == (3, 40, 60)
            assert found.shape[1] == 4
            assert torch.isfinite(found).all()
            assert (found[:, 2:] > found[:, :2]).all()
            assert (found >= 0).all()
            assert (found <= torch.tensor([60, 40, 60, 40])).all()


def test_boxes_up_to_the_edge_are_kept():
    """Rounding of a resize must not put them outside."""
    for width in range(700, 760):
        _, boxes = transformed(PLAIN, [[width - 30, 0, width, 801]], (width, 801))
        assert len(boxes) == 1


def test_large_pictures_are_made_smaller_before_they_are_zoomed_out():
    """As far as the smallest crop, 0.3 of each side, still fills 40x60: 134x200."""
    shrink = ShrinkLarge((40, 60), InterpolationMode.BILINEAR)
    assert shrink(Image.new("RGB", (2000, 2000))).size == (200, 200)
    assert shrink(Image.new("RGB", (4000, 1340))).size == (400, 134)
    assert shrink(Image.new("RGB", (200, 500))).size == (200, 500)
    assert shrink(Image.new("RGB", (100, 107_200))).size == (10, 10_720), "four times 134x200 pixels"
    assert shrink(Image.new("RGB", (50, 30))).size == (50, 30)
    _, boxes = transformed(PLAIN, [[500, 1000, 1000, 1500]], (2000, 2000))
    torch.testing.assert_close(boxes, torch.tensor([[15.0, 20, 30, 30]]))


def test_colours_change_and_boxes_do_not():
    torch.manual_seed(0)
    image, boxes, _ = colours()
    changed = BoxAugmentation(photometric=1, zoom_out=1, iou_crop=False, hflip=0)
    first, target = training_box_transform(PREPROCESSING, changed)(image, boxes)
    plain, expected = TRAINING(image, boxes)
    assert (first - plain).abs().max() > 0.1
    torch.testing.assert_close(target["boxes"], expected["boxes"])
    none = BoxAugmentation(photometric=0, brightness=1, zoom_out=1, iou_crop=False, hflip=0)
    torch.testing.assert_close(training_box_transform(PREPROCESSING, none)(image, boxes)[0], plain)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"photometric": 1.5}, "photometric must lie from 0 to 1, got 1.5"),
        ({"contrast": -0.1}, "contrast must lie from 0 to 1"),
        ({"hue": 0.6}, r"hue must lie from 0 to 0\.5, got 0\.6"),
        ({"hflip": 2}, "hflip must lie from 0 to 1"),
        ({"zoom_out_p": float("nan")}, "zoom_out_p must lie from 0 to 1"),
        ({"zoom_out": 0.5}, r"zoom_out must be at least 1, got 0\.5"),
        ({"zoom_out": float("inf")}, "zoom_out must be at least 1"),
    ],
)
def test_wrong_augmentation(arguments, message):
    with pytest.raises(dicenet.ConfigError, match=message):
        BoxAugmentation(**arguments)


def test_clipping_by_hand():
    boxes, counts = within(Boxes.of([[-5, 2, 4, 99], [1, 1, 2, 2], [3, 3, 3, 9], [10, 0, 12, 5]], range(4)), 10, 8)
    assert boxes.boxes.tolist() == [[0, 2, 4, 8], [1, 1, 2, 2]]
    assert boxes.labels.tolist() == [0, 1]
    assert counts == {CLIPPED: 1, WITHOUT_AREA: 1, OUTSIDE: 1}
