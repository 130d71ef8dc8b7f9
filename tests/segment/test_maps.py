"""Segmentation networks on any backbone and input, the shapes of masks, and how label maps are made."""

import csv
import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import dicenet
from dicenet.classes import CAMVID, CITYSCAPES, VOC
from dicenet.data.coco_masks import draw_mask, read_coco_as_voc
from dicenet.data.masks import resized_labels
from dicenet.tasks.segment.drawing import overlay, palette
from dicenet.tasks.segment.inference import sliding_labels

SIZES = [(375, 1242), (350, 525), (33, 65)]  # all crash in the official code


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("backbone", ["dicenet_010", "espnetv2_050"])
def test_any_size(backbone, size):
    net = dicenet.create_segmentation_model(backbone, 3).eval()
    with torch.inference_mode():
        logits = net(torch.randn(1, 3, *size))
    assert logits.shape == (1, 3, *size)
    assert logits.isfinite().all()


@pytest.mark.parametrize("backbone", ["mobilenetv2_050", "mobilenetv3_small_050", "resnet18", "shufflenetv2_sep_041"])
def test_pyramids_of_other_backbones(backbone):
    net = dicenet.create_segmentation_model(backbone, 5, decoder_channels=4).eval()
    reductions = net.backbone.feature_info.reduction()
    assert reductions[-1] == 16
    assert len(set(reductions)) == len(reductions)
    with torch.inference_mode():
        assert net(torch.randn(2, 3, 65, 97)).shape == (2, 5, 65, 97)


def test_maps_whose_numbers_do_not_start_at_nought():
    net = dicenet.create_segmentation_model("dla34", 3, img_size=64)
    assert net.backbone.feature_info.reduction() == [2, 4, 8, 16]


def test_a_tag_brings_its_classes(shared, monkeypatch):
    folder = shared("weights")
    monkeypatch.setattr("dicenet.weights.catalogue.cache_dir", lambda: folder)
    net = dicenet.create_segmentation_model("dicenet_050", pretrained="edgenets_city_512x256")
    assert net.pretrained_cfg["label_names"] == CITYSCAPES
    assert dicenet.create_segmentation_model("dicenet_010").num_classes == 21


def test_backbones_that_do_not_serve():
    with pytest.raises(dicenet.ConfigError, match="takes no pictures of 160x224"):
        dicenet.create_segmentation_model("hiera_tiny_224", 3, img_size=(160, 224))
    with pytest.raises(dicenet.ConfigError, match="channels last"):
        dicenet.create_segmentation_model("mambaout_femto", 3, img_size=64)
    with pytest.raises(dicenet.ConfigError, match="no timm model"):
        dicenet.create_segmentation_model("dicenet_101")
    with pytest.raises(dicenet.ConfigError, match="backbone_img_size means nothing"):
        dicenet.create_segmentation_model("resnet18", backbone_img_size=128)


@pytest.mark.parametrize("backbone", ["dicenet_010", "resnet18", "twins_svt_small"])
def test_save_and_load(backbone, tmp_path):
    torch.manual_seed(0)
    net = dicenet.create_segmentation_model(backbone, 4, img_size=(64, 96), decoder_channels=6).eval()
    dicenet.save(net, tmp_path / "net.safetensors", ["a", "b", "c", "d"])
    other = dicenet.load(tmp_path / "net.safetensors").eval()
    x = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(other(x), net(x), rtol=0, atol=0)
    assert (other.architecture, other.input_size, other.channels) == (backbone, (64, 96), 6)
    assert other.pretrained_cfg["label_names"] == ("a", "b", "c", "d")
    fresh = dicenet.load(tmp_path / "net.safetensors", num_classes=7).eval()
    assert fresh(x).shape[1] == 7
    assert "label_names" not in fresh.pretrained_cfg
    for name, value in net.state_dict().items():  # all but the last convolution is kept
        if f"decoder.pools.{len(net.decoder.pools) - 1}.expand" not in name:
            torch.testing.assert_close(fresh.state_dict()[name], value, rtol=0, atol=0)


def test_arguments_of_foreign_backbones_are_kept(tmp_path):
    torch.manual_seed(0)
    net = dicenet.create_segmentation_model("resnet18", 3, img_size=64, act_layer="silu", in_chans=1).eval()
    dicenet.save(net, tmp_path / "net.safetensors")
    other = dicenet.load(tmp_path / "net.safetensors").eval()
    dicenet.save(other, tmp_path / "again.safetensors")
    again = dicenet.load(tmp_path / "again.safetensors").eval()
    x = torch.randn(1, 1, 64, 64)
    torch.testing.assert_close(other(x), net(x), rtol=0, atol=0)
    torch.testing.assert_close(again(x), net(x), rtol=0, atol=0)
    with pytest.raises(dicenet.ConfigError, match="out_indices cannot be chosen"):
        dicenet.create_segmentation_model("resnet18", 3, out_indices=(1, 2))


def test_the_backbones_channels_and_the_decoders_are_told_apart(tmp_path):
    net = dicenet.create_segmentation_model("shufflenetv2_sep_041", 4, decoder_channels=6, channels=32)
    dicenet.save(net, tmp_path / "net.safetensors")
    other = dicenet.load(tmp_path / "net.safetensors")
    assert other.channels == 6
    assert other.state_dict().keys() == net.state_dict().keys()
    assert other.backbone_network().choices["channels"] == 32


def test_classifier_starts_segmentation(tmp_path):
    classifier = timm.create_model("dicenet_010", num_classes=3, img_size=64)
    dicenet.save(classifier, tmp_path / "net.safetensors", ["a", "b", "c"])
    net = dicenet.load(tmp_path / "net.safetensors", task="segment", num_classes=5)
    torch.testing.assert_close(net.backbone.model.stem.conv.weight, classifier.stem.conv.weight)
    assert (net.trained_size, net.num_classes) == ((64, 64), 5)
    with pytest.raises(dicenet.WeightsError, match="no segmentation network"):
        dicenet.load(tmp_path / "net.safetensors", task="segment")


def test_palettes(shared):
    """VOC's colours are those of its own masks, CamVid's those of its list, Cityscapes' well known."""
    (path, *_) = sorted(shared("data/voc2012_mini/SegmentationClass").iterdir())
    with Image.open(path) as picture:
        expected = np.array(picture.getpalette()).reshape(-1, 3)
    np.testing.assert_array_equal(palette(VOC), expected[:21])
    with shared("data/camvid/classes.tsv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["name"] != "Unlabelled"]
    assert palette(CAMVID) == [(int(row["r"]), int(row["g"]), int(row["b"])) for row in rows]
    assert palette(CITYSCAPES)[:2] == [(128, 64, 128), (244, 35, 232)]
    assert palette(["a", "b"]) == [(128, 0, 0), (0, 128, 0)], "black is for a background"


def test_overlay_leaves_background_and_void():
    labels = np.array([[0, 1, 255]], np.uint8)
    image = overlay(Image.new("RGB", (3, 1), (100, 100, 100)), labels, ["background", "thing"])
    mixed = round(0.4 * 100 + 0.6 * 128), round(0.4 * 100), round(0.4 * 100)
    found = np.asarray(image)[0]
    np.testing.assert_array_equal(found[[0, 2]], [[100] * 3] * 2)
    np.testing.assert_allclose(found[1], mixed, atol=1)


@pytest.mark.parametrize(("small", "large"), [((7, 5), (23, 18)), ((384, 384), (375, 500)), ((10, 10), (3, 7))])
def test_label_maps_are_resized_as_pillow_does(small, large):
    labels = torch.randint(0, 21, small, generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray(labels.numpy().astype(np.uint8))
    expected = np.asarray(picture.resize(large[::-1], Image.Resampling.NEAREST))
    actual = resized_labels(labels, large).numpy()

    def off_edges(old, new):
        """Where a pixel's centre does not fall on the edge of two, which rounding decides."""
        centres = (np.arange(new) + 0.5) * old / new
        return np.abs(centres - centres.round()) > 1e-6

    clear = np.outer(off_edges(small[0], large[0]), off_edges(small[1], large[1]))
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(actual[clear], expected[clear])


@pytest.mark.parametrize("size", [(50, 70), (32, 48), (20, 100), (97, 31)])
def test_sliding_equals_the_sum_over_all_windows(size):
    torch.manual_seed(0)
    net = torch.nn.Conv2d(3, 5, 3, padding=1)
    picture, window = torch.randn(3, *size), (32, 48)

    def starts(side, width):
        step = int(width * 2 / 3)
        return [0] if side <= width else sorted({*range(0, side - width, step), side - width})

    with torch.no_grad():
        sums = torch.zeros(5, *size, dtype=torch.float64)
        for top in starts(size[0], window[0]):
            for left in starts(size[1], window[1]):
                part = picture[:, top : top + window[0], left : left + window[1]]
                sums[:, top : top + window[0], left : left + window[1]] += net(part[None])[0].double().softmax(0)
        labels = sliding_labels(net, picture, window)
    best = sums.topk(2, dim=0).values
    # windows that overlap add up to more: only labels are compared, and only where no tie decides
    clear = best[0] - best[1] > 1e-5
    assert clear.double().mean() > 0.99
    assert (labels.long() == sums.argmax(0))[clear].all()


def test_coco_as_voc(shared):
    part = read_coco_as_voc(str(shared("data/tiny_coco")), VOC)
    assert len(part) == 31
    for sample in part.samples[:5]:
        mask = sample.read_mask()
        assert mask.shape[::-1] == sample.read().size
        assert set(np.unique(mask)) <= set(range(21))
        assert (mask > 0).any()
    with pytest.raises(dicenet.ConfigError, match="21 classes"):
        read_coco_as_voc(str(shared("data/tiny_coco")), VOC[:5])


def test_the_first_of_overlapping_outlines_wins():
    left, right = [[0, 0, 6, 0, 6, 4, 0, 4]], [[4, 0, 10, 0, 10, 4, 4, 4]]
    runs = {"size": [4, 10], "counts": [0, 4, 36]}  # the first column
    mask = draw_mask((4, 10), [(3, left), (7, right), (9, runs)])
    np.testing.assert_array_equal(mask, np.array([[3] * 6 + [7] * 4] * 4))


def test_coco_that_is_none(tmp_path):
    with pytest.raises(dicenet.DataError, match="cannot be read"):
        read_coco_as_voc(str(tmp_path), VOC)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_train2017.json").write_text("[]")
    with pytest.raises(dicenet.DataError, match="no list of COCO"):
        read_coco_as_voc(str(tmp_path), VOC)


def test_coco_outlines_that_are_none(tmp_path):
    """They are told of their picture, which is then left out."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train2017").mkdir()
    Image.new("RGB", (300, 300)).save(tmp_path / "train2017/a.jpg")
    listed = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 300, "width": 300}],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [{"image_id": 1, "category_id": 1, "segmentation": [["x", 1, 2]]}],
    }
    (tmp_path / "annotations/instances_train2017.json").write_text(json.dumps(listed))
    (sample,) = read_coco_as_voc(str(tmp_path), VOC).samples
    with pytest.raises(dicenet.DataError, match=r"a\.jpg: COCO's outlines of it cannot be drawn"):
        sample.read_mask()
