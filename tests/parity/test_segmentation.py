"""The segmentation networks, their parts and their scores against tensors and tables of the official code.

Tolerances are those of the README beside the tensors: parts 1e-5 of the largest output, logits 5e-4, 0.1 % of the
labels, mean IoU 0.001.
"""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import dicenet
from dicenet.analysis.count import count
from dicenet.data.masks import IGNORE
from dicenet.layers import EESP, DownSampler, EfficientPyramidPooling, GlobalFusion
from dicenet.layers.eesp import halved
from dicenet.tasks.segment.evaluate import evaluate
from dicenet.tasks.segment.metrics import scores
from dicenet.tasks.segment.task import SegmentTask
from dicenet.weights.edgenets import EDGENETS, EDGENETS_ESPNETV2

PARTS = [
    "epp_12to8_24x18",
    "epp_12to8_3x3_ssd",
    "epp_12to8_6x10_last",
    "effpw_12to8_9x11",
    "eesp_16_r7_12x10",
    "eesp_16_r13_12x10",
    "eesp_downsampler_8to40_12x16",
]
NETWORKS = [
    ("dicenet_s0.2_pascal_384x384", "cat", "dicenet_020", 21),
    ("dicenet_s1.0_pascal_384x384", "cat", "dicenet_100", 21),
    ("dicenet_s1.75_pascal_384x384", "cat", "dicenet_175", 21),
    ("espnetv2_s0.5_pascal_384x384", "cat", "espnetv2_050", 21),
    ("dicenet_s0.5_city_512x256", "crossing", "dicenet_050", 20),
]
EACH_NETWORK = pytest.mark.parametrize(("name", "picture", "architecture", "classes"), NETWORKS)


def reference(shared, name):
    with safe_open(shared("reference/official") / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def module_of(name, args):
    match name.split("_")[0]:
        case "epp":
            more = {"scales": args["scales"]} if "scales" in args else {}
            last = not args.get("last_layer_br", True)
            return EfficientPyramidPooling(
                args["in_planes"], args["proj_planes"], args["out_planes"], **more, last=last
            )
        case "effpw":
            return GlobalFusion(args["nin"], args["nout"], direct=True)
    if "downsampler" in name:
        return DownSampler(args["nin"], args["nout"], 2, args["r_lim"], picture_channels=3)
    return EESP(args["nIn"], args["nOut"], args["stride"], args["r_lim"])


def loaded(name, tensors, args):
    """The module, with the reference's state; what is never computed with is in no module of ours."""
    module = module_of(name, args)
    state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    names = EDGENETS_ESPNETV2 if name.startswith("eesp") else EDGENETS
    left = module.load_state_dict(names.rename(state), strict=False)
    assert left.missing_keys == []
    assert set(left.unexpected_keys) <= {"eesp.act.weight"}
    return module.eval()


def test_all_files_are_tested(shared):
    folder = shared("reference/official")
    assert {path.stem for pattern in ("e*_*", "effpw_*") for path in folder.glob(f"{pattern}.safetensors")} == set(
        PARTS
    )
    files = {path.stem for path in folder.glob("seg_*.safetensors")}
    assert files == {f"seg_{name}_{picture}" for name, picture, *_ in NETWORKS}


@pytest.mark.parametrize("name", PARTS)
def test_part(shared, name):
    tensors, metadata = reference(shared, name)
    module = loaded(name, tensors, json.loads(metadata["args"]))
    cases = {"output": (tensors["input"],)}
    if "image" in tensors:
        picture = tensors["image"]
        while picture.shape[2] > tensors["output"].shape[2]:
            picture = halved(picture)
        cases = {"output": (tensors["input"], picture), "output_without_image": (tensors["input"],)}
    for key, inputs in cases.items():
        with torch.no_grad():
            error = (module(*inputs) - tensors[key]).abs().max()
        assert error <= 1e-5 * tensors[key].abs().max(), key


def checkpoint(shared, name):
    return shared("weights") / f"{name.replace('_s', '_s_')}.pth"


def normalised(shared, picture):
    (path,) = shared("reference/official").glob(f"seg_input_{picture}_*.png")
    x = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((x - mean[:, None, None]) / std[:, None, None])[None]


@EACH_NETWORK
def test_network(shared, name, picture, architecture, classes):
    net = dicenet.load_edgenets(checkpoint(shared, name)).eval()
    size = tuple(int(side) for side in name.rsplit("_", 1)[1].split("x"))[::-1]
    assert (net.architecture, net.num_classes, net.input_size) == (architecture, classes, size)
    assert net.pretrained_cfg["label_names"][-1] == ("tvmonitor" if classes == 21 else "background")
    tensors, _ = reference(shared, f"seg_{name}_{picture}")
    expected = tensors["logits_stride8"]
    labels = np.asarray(Image.open(shared("reference/official") / f"seg_{name}_{picture}_labels.png"))
    x = normalised(shared, picture)
    for kind, actual in (("as loaded", net), ("optimized", dicenet.optimize_for_inference(net))):
        with torch.inference_mode():
            logits = actual(x)[0]
        error = (logits[:, ::8, ::8] - expected.reshape(logits[:, ::8, ::8].shape)).abs().max()
        assert error <= 5e-4, kind
        assert (logits.argmax(0).numpy() != labels).mean() <= 1e-3, kind


@EACH_NETWORK
def test_backbone(shared, name, picture, architecture, classes):
    """A checkpoint's backbone starts other tasks; its kernels are made for 28 and 14, whatever the crops were."""
    path = checkpoint(shared, name)
    features = dicenet.load_edgenets(path, features_only=True).eval()
    stored = torch.load(path, weights_only=True, map_location="cpu")
    first = "level1.cbr.0" if architecture.startswith("dicenet") else "level1.conv"
    state = features.model.state_dict()
    torch.testing.assert_close(state["stem.conv.weight"], stored[f"base_net.{first}.weight"])
    assert features.model.trained_size == (224, 224)
    maps = features(torch.zeros(1, 3, 64, 96))
    assert [tuple(m.shape[2:]) for m in maps] == [(32, 48), (16, 24), (8, 12), (4, 6)]
    fine_tuned = dicenet.load_edgenets(path, task="classify", num_classes=5).eval()
    assert fine_tuned(torch.zeros(2, 3, 64, 64)).shape == (2, 5)
    torch.testing.assert_close(fine_tuned.stem.conv.weight, state["stem.conv.weight"])
    with pytest.raises(dicenet.WeightsError, match="features_only=True"):
        dicenet.load_edgenets(path, task="classify")


#: Of segmentation networks, counted with the official code, in millions: parameters for 21 and 20 classes,
#: multiply-adds for VOC at 256x256 and 384x384, and for Cityscapes at 512x256 and 1024x512 (width x height).
PUBLISHED = """
dicenet_010 0.0268 0.0268 52.09 116.41 103.30 410.10
dicenet_020 0.0469 0.0469 60.98 135.65 120.58 476.08
dicenet_050 0.0764 0.0763 82.33 182.91 162.76 641.68
dicenet_075 0.1897 0.1897 127.23 282.05 251.29 988.39
dicenet_100 0.2834 0.2834 141.54 312.76 278.92 1093.01
dicenet_125 0.3894 0.3894 155.39 342.53 305.68 1194.53
dicenet_150 0.5521 0.5521 191.30 421.71 376.41 1471.11
dicenet_175 0.8080 0.8079 289.97 641.99 572.59 2249.06
dicenet_200 1.0209 1.0209 313.76 693.79 619.02 2427.94
dicenet_240 1.3327 1.3327 416.04 922.16 822.38 3234.58
dicenet_300 2.3173 2.3173 576.92 1278.60 1140.40 4485.13
espnetv2_050 0.0804 0.0803 74.88 168.46 149.40 597.56
espnetv2_100 0.2340 0.2340 136.01 306.00 271.66 1086.59
espnetv2_125 0.3431 0.3431 176.47 397.04 352.58 1410.28
espnetv2_150 0.4684 0.4684 214.51 482.63 428.66 1714.57
espnetv2_200 0.7893 0.7892 337.58 759.52 674.78 2699.05
"""
COSTS = [line.split() for line in PUBLISHED.split("\n") if line]


def test_costs_are_of_all_widths():
    families = (dicenet.models.dicenet.WIDTHS, dicenet.models.espnetv2.NETWORKS)
    assert [row[0] for row in COSTS] == [row.name for family in families for row in family]


@pytest.mark.parametrize("row", COSTS, ids=lambda row: row[0])
def test_cost(row):
    name, *numbers = row
    voc_parameters, city_parameters, voc_small, voc_large, city_small, city_large = map(float, numbers)
    for classes, parameters, costs in (
        (21, voc_parameters, {(256, 256): voc_small, (384, 384): voc_large}),
        (20, city_parameters, {(256, 512): city_small, (512, 1024): city_large}),
    ):
        with torch.device("meta"):
            net = dicenet.create_segmentation_model(name, classes)
        for size, expected in costs.items():
            cost = count(net, (3, *size))
            assert cost.macs_official / 1e6 == pytest.approx(expected, abs=0.02)
            # the official ESPNetv2 also holds slopes that compute nothing
            assert cost.parameters / 1e6 == pytest.approx(parameters, abs=0.002)


def official_miou(confusion):
    """The official formula in float64 (facts on the official code): unions, also of empty classes, plus 1e-6."""
    hits = np.diag(confusion).astype(np.float64)
    union = confusion.sum(0) + confusion.sum(1) - hits + 1e-6
    return hits / union


def test_metric(shared):
    tensors, _ = reference(shared, "metric_miou")
    predicted, target = (tensors[key].long() for key in ("predicted", "target"))
    net = dicenet.create_segmentation_model("dicenet_010", 21)
    task = SegmentTask(net, [str(index) for index in range(21)])
    for one, truth in zip(predicted, target, strict=True):  # as judging does it: picture by picture
        task.confusion.update(one.flatten()[None], truth.flatten()[None])
    confusion = task.confusion.compute()
    found = scores(confusion)
    valid = target != IGNORE
    naive = np.zeros((21, 21), np.int64)
    np.add.at(naive, (target[valid].numpy(), predicted[valid].numpy()), 1)
    np.testing.assert_array_equal(confusion.numpy(), naive)
    ious = [0.0 if iou is None else iou for iou in found["iou_per_class"]]
    np.testing.assert_allclose(ious, tensors["iou"].numpy(), atol=1e-6)
    np.testing.assert_allclose(ious, official_miou(naive), atol=1e-6)
    assert found["mean_iou_all"] == pytest.approx(tensors["mean_iou_percent"].item() / 100, abs=1e-6)
    there = [iou for iou in found["iou_per_class"] if iou is not None]
    assert found["mean_iou"] == pytest.approx(sum(there) / len(there))
    assert found["mean_iou"] == pytest.approx(0.380405, abs=1e-6)  # the README's 38.0405 %
    assert found["pixel_accuracy"] == pytest.approx((predicted == target)[valid].double().mean().item())


def published_mean_iou(shared):
    with open(shared("reference/official/voc_mini_miou.csv"), newline="") as file:
        return [row for row in csv.DictReader(file) if row["resolution"] == "original"]


@pytest.mark.parametrize("split", ["val", pytest.param("train", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [name for name, *_ in NETWORKS[:4]])
def test_mean_iou_of_the_small_voc(shared, name, split, tmp_path):
    (expected,) = [
        row
        for row in published_mean_iou(shared)
        if (row["checkpoint"], row["split"]) == (name.replace("_s", "_s_"), split)
    ]
    results = evaluate(
        str(checkpoint(shared, name)),
        str(shared("data/voc2012_mini")),
        split=None if split == "val" else split,
        out=str(tmp_path / "out"),
        draw=0,
    )
    for ours, theirs in (
        ("mean_iou", "mean_iou_present"),
        ("mean_iou_all", "mean_iou_all_21"),
        ("pixel_accuracy", "pixel_accuracy"),
    ):
        assert results[ours] == pytest.approx(float(expected[theirs]) / 100, abs=0.001)
    per_class = [None if value == "-" else float(value) / 100 for value in expected["iou_per_class"].split()]
    for found, wanted in zip(results["iou_per_class"], per_class, strict=True):
        assert found == (None if wanted is None else pytest.approx(wanted, abs=0.01))
    assert (results["pictures"], results["split"]) == (int(expected["pictures"]), split)
