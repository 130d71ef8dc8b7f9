"""Detectors: what they cost, their priors and boxes, files, and what they refuse."""

import re

import pytest
import torch
import torchvision
from safetensors.torch import load_file
from torchvision.ops import box_iou

import dicenet
from dicenet.analysis.count import count
from dicenet.models.detection import DetectionNetwork, detections
from dicenet.models.detection_heads import HEADS
from dicenet.models.priors import PriorSettings, corners, decode, encode, prior_boxes

FORMS = [
    ("dicenet_020", "espnet"),
    ("dicenet_020", "lite"),
    ("mobilenetv2_050", "fpnlite"),
    ("mobilenetv2_050", "ssdlite"),
    ("dicenet_020", "ssdlite"),
]


def detector(backbone="dicenet_020", classes=3, **arguments):
    torch.manual_seed(0)
    return dicenet.create_detection_model(backbone, classes, **arguments).eval()


def random_picture(*size):
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))


# -- cost

#: Multiply-adds (official count, M) at 300 and 512 for 21 and 81 scores: the paper's Table 6, and its counted networks.
COSTS = [
    ("dicenet_200", "espnet", (744, 2028, 976, 2672), 0, 1.5),
    ("espnetv2_200", "espnet", (913.6, 2520.5, 1165.1, 3219.0), 0, 1.5),
    ("dicenet_240", "lite", (700, 2000, 900, 2600), 0.05, 0),
]


@pytest.mark.parametrize(("backbone", "head", "expected", "relative", "absolute"), COSTS)
def test_table_6(backbone, head, expected, relative, absolute):
    cases = zip(((20, 300), (20, 512), (80, 300), (80, 512)), expected, strict=True)
    for (classes, side), macs in cases:
        net = detector(backbone, classes, img_size=side, head=head)
        found = count(net, (3, side, side)).macs_official / 1e6
        assert found == pytest.approx(macs, rel=relative, abs=absolute)


#: SSDLite at 320 with 81 scores: the paper's figures, which are cut off after one digit (multiply-adds, G).
SSDLITE = [
    ("mobilenetv1_100", 1.3),
    ("mobilenetv2_100", 0.8),
    ("mnasnet_100", 0.8),
    ("semnasnet_100", 0.8),
    ("mobilenetv3_large_100", 0.6),
]


@pytest.mark.parametrize(("backbone", "published"), SSDLITE)
def test_ssdlite_rows(backbone, published):
    macs = count(detector(backbone, 80, img_size=320, head="ssdlite"), (3, 320, 320)).macs_official / 1e9
    assert int(10 * macs) / 10 == published


@pytest.mark.parametrize("head", ["espnet", "lite", "fpnlite"])
def test_small_pictures_have_a_last_map_too(head):
    net = detector(head=head, img_size=64)
    assert net.map_sizes[0] == (8, 8)
    assert net.map_sizes[-1] == (1, 1)
    assert net(random_picture(64, 64))[0].shape == (1, len(net.priors), 4)


def test_fpnlite_looks_down():
    """What the first map says depends on the whole picture: the smallest of the backbone's maps is part of it."""
    net = detector(head="fpnlite")
    maps = [x.detach().requires_grad_() for x in net.backbone(random_picture(300, 300))]
    scores, _ = net.head(maps)
    scores[0, : 4 * 38 * 38].sum().backward()
    assert all(x.grad.abs().sum() > 0 for x in maps)
    assert net.map_sizes == [(38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1)]
    assert len(net.priors) == 8732


@pytest.mark.parametrize(("head", "side", "maps"), [("ssd300", 300, 6), ("ssd512", 512, 7)])
def test_the_original_on_vgg(head, side, maps):
    """With torchvision's weights it says what torchvision's network says."""
    net = detector("vgg16", 20, head=head)
    assert (net.input_size, len(net.map_sizes)) == ((side, side), maps)
    assert net.prior_settings.per_position() == [4, *[6] * (maps - 3), 4, 4]
    if head == "ssd300":
        peer = torchvision.models.detection.ssd300_vgg16(weights=None, weights_backbone=None, num_classes=21).eval()
        state = peer.state_dict()
        lower = len(net.backbone.lower)
        for key, value in state.items():
            if found := re.match(r"backbone\.features\.(\d+)\.(\w+)$", key):
                getattr(net.backbone.lower[int(found[1])], found[2]).data = value
            elif found := re.match(r"backbone\.extra\.0\.(\d+)\.(\w+)$", key):
                getattr(net.backbone.upper[int(found[1])], found[2]).data = value
            elif found := re.match(r"backbone\.extra\.0\.\d+\.(\d)\.(\w+)$", key):
                getattr(net.head.top[int(found[1])], found[2]).data = value
            elif found := re.match(r"backbone\.extra\.(\d)\.(\d)\.(\w+)$", key):
                getattr(net.head.extras[int(found[1]) - 1][int(found[2])], found[3]).data = value
        assert lower == 23
        net.head.scale.data = state["backbone.scale_weight"]
        for ours, theirs in (("scores", "classification"), ("boxes", "regression")):
            prefix = f"head.{theirs}_head.module_list."
            own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            getattr(net.head.predictors, ours).load_state_dict(own)
        x = random_picture(300, 300)
        with torch.no_grad():
            expected = peer.head(list(peer.backbone(x).values()))
            scores, codes = net(x)
        torch.testing.assert_close(scores, expected["cls_logits"])
        torch.testing.assert_close(codes, expected["bbox_regression"])


@pytest.mark.slow  # a file of 80 MB
def test_files_of_the_original_on_vgg(tmp_path):
    net = detector("vgg11", head="ssd300")
    dicenet.save(net, tmp_path / "vgg.safetensors", ["a", "b", "c"])
    again = dicenet.load(tmp_path / "vgg.safetensors").eval()
    x = random_picture(300, 300)
    with torch.no_grad():
        for found, expected in zip(again(x), net(x), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
    again.reset_classifier(7)
    assert again(x)[0].shape == (1, 8732, 8)


# -- priors and codes


def test_official_priors(shared):
    expected = load_file(shared("reference/official/ssd_priors_match_loss.safetensors"))
    small, large = (detector(img_size=side).priors for side in (300, 512))
    torch.testing.assert_close(small, expected["priors_300"], rtol=0, atol=1e-6)
    torch.testing.assert_close(large.double().sum(0), expected["priors_512_sum"], rtol=0, atol=1e-3)
    starts = [0, 24576, 30720, 32256, 32640, 32736]
    firsts = torch.stack([large[start : start + 6] for start in starts])
    torch.testing.assert_close(firsts, expected["priors_512_first_of_each_map"], rtol=0, atol=1e-6)


def test_official_codes(shared):
    expected = load_file(shared("reference/official/ssd_priors_match_loss.safetensors"))
    priors = expected["priors_300"][expected["matched_prior_index"]]
    boxes = decode(expected["matched_location"], priors)
    torch.testing.assert_close(boxes, expected["decoded_corner_boxes"], rtol=0, atol=1e-5)
    torch.testing.assert_close(encode(boxes, priors), expected["matched_location"], rtol=0, atol=1e-5)


def test_priors_of_a_wide_picture():
    """By hand: one map of 1x2 positions on 100x200 pixels; sizes are parts of the shorter side."""
    settings = PriorSettings(((4.0,),), (0.25, 1.0))
    found = prior_boxes(settings, (100, 200), [(1, 2)], first_level=4)
    shapes = [(0.125, 0.25), (0.25, 0.5), (0.25, 0.125), (0.0625, 0.5)]
    expected = [(x, 0.5, *shape) for x in (0.25, 0.75) for shape in shapes]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_wrong_priors():
    with pytest.raises(dicenet.ConfigError, match=r"scales of priors \(--priors\) must be 7 ascending parts"):
        detector(scales=(0.1, 0.2))
    with pytest.raises(dicenet.ConfigError, match="ratios of priors must be above 1"):
        PriorSettings(((0.5,),))
    with pytest.raises(dicenet.ConfigError, match="another number of priors"):
        detector().set_priors(PriorSettings(HEADS["lite"].ratios))


# -- networks


@pytest.mark.parametrize(("backbone", "head"), FORMS)
@pytest.mark.parametrize("size", [(300, 300), (288, 417)])
def test_a_score_and_a_box_for_each_prior(backbone, head, size):
    net = detector(backbone, head=head, img_size=size)
    scores, codes = net(random_picture(*size))
    assert scores.shape == (1, len(net.priors), 4)
    assert codes.shape == (1, len(net.priors), 4)


def test_priors_lie_where_the_map_looks():
    """A picture that is changed in one corner changes what is said of the priors of the largest map there most."""
    net = detector(head="lite")
    picture = random_picture(300, 300)
    other = picture.clone()
    other[..., :40, 240:] += 3
    with torch.no_grad():
        change = (net(picture)[0] - net(other)[0]).abs().sum(-1)[0, : 38 * 38 * 4]
    x, y = net.priors[change.argmax(), :2].tolist()
    assert x > 0.75
    assert y < 0.2


@pytest.mark.parametrize(("backbone", "head"), FORMS)
def test_files(tmp_path, backbone, head):
    net = detector(backbone, head=head, scales=(0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0), img_size=(300, 320))
    dicenet.save(net, tmp_path / "net.safetensors", ["a", "b", "c"])
    again = dicenet.load(tmp_path / "net.safetensors").eval()
    assert isinstance(again, DetectionNetwork)
    assert again.pretrained_cfg["label_names"] == ("a", "b", "c")
    assert again.input_size == (300, 320)
    torch.testing.assert_close(again.priors, net.priors, rtol=0, atol=0)
    x = random_picture(300, 320)
    with torch.no_grad():
        for actual, expected in zip(again(x), net(x), strict=True):
            torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_other_classes_keep_all_but_the_scores(tmp_path):
    net = detector()
    dicenet.save(net, tmp_path / "net.safetensors", ["a", "b", "c"])
    other = dicenet.load(tmp_path / "net.safetensors", num_classes=5).eval()
    assert "label_names" not in other.pretrained_cfg
    x = random_picture(300, 300)
    with torch.no_grad():
        torch.testing.assert_close(other(x)[1], net(x)[1], rtol=0, atol=0)
        assert other(x)[0].shape[-1] == 6
        other.reset_classifier(2)
        assert other(x)[0].shape[-1] == 3
        torch.testing.assert_close(other(x)[1], net(x)[1], rtol=0, atol=0)


@pytest.mark.parametrize("task", ["classify", "segment", "detect"])
def test_the_backbone_of_another_task(tmp_path, task):
    """Any of the three starts a detector, and a detector any of them."""
    first = {
        "classify": lambda: dicenet.models.dicenet.dicenet_020(num_classes=4),
        "segment": lambda: dicenet.create_segmentation_model("dicenet_020", 4, img_size=64),
        "detect": detector,
    }[task]()
    dicenet.save(first, tmp_path / "first.safetensors", list("abcd")[: first.num_classes])
    net = dicenet.load(tmp_path / "first.safetensors", task="detect", num_classes=2)
    assert isinstance(net, DetectionNetwork)
    assert net.num_classes == 2
    assert "label_names" not in net.pretrained_cfg
    dicenet.save(detector(), tmp_path / "detector.safetensors", list("abc"))
    second = dicenet.load(tmp_path / "detector.safetensors", task=task, num_classes=7)
    assert type(second) is type(first)
    for one, other in ((first, net), (detector(), second)):
        stem = [value for key, value in one.state_dict().items() if key.endswith("stem.conv.weight")]
        again = [value for key, value in other.state_dict().items() if key.endswith("stem.conv.weight")]
        torch.testing.assert_close(again, stem, rtol=0, atol=0)


def in_pyramid_pooling(rest):
    """The official name of a tensor of pyramid pooling."""
    names = {
        "project.conv": "projection_layer.cbr.0",
        "project.norm": "projection_layer.cbr.1",
        "project.act": "projection_layer.cbr.2",
        "branches": "stages",
        "norm_act.norm": "merge_layer.0.br.0",
        "norm_act.act": "merge_layer.0.br.1",
        "merge.conv": "merge_layer.2.cbr.0",
        "merge.norm": "merge_layer.2.cbr.1",
        "merge.act": "merge_layer.2.cbr.2",
        "expand": "merge_layer.3",
        "out.norm": "br.br.0",
        "out.act": "br.br.1",
    }
    ours = next(name for name in names if rest.startswith(name + "."))
    return names[ours] + rest.removeprefix(ours)


def in_backbone(rest):
    """The official name of a tensor of ESPNetv2's levels."""
    rest = re.sub(r"^stem\.", "level1.", rest)
    rest = re.sub(r"^stages\.(\d)\.0\.", lambda m: f"level{int(m[1]) + 2}_0.", rest)
    rest = re.sub(r"^stages\.(\d)\.(\d)\.", lambda m: f"level{int(m[1]) + 2}.{int(m[2]) - 1}.", rest)
    unit = re.match(r"level\d_0\.eesp\.|level[34]\.\d\.|level5\.[012]\.", rest)
    if unit:
        names = {"project": "proj_1x1", "norm_act": "br_after_cat", "expand": "conv_1x1_exp", "act": "module_act"}
        part, _, end = rest[unit.end() :].partition(".")
        if part == "branches":
            end = end.replace(".weight", ".conv.weight")
        rest = f"{unit[0]}{names.get(part, 'spp_dw')}.{end}"
    return rest.replace("reinforce", "inp_reinf").replace(".norm.", ".bn.")


def official_name(key):
    """The name that the official code gives to a tensor of our ESPNetv2 detector."""
    if key.startswith("backbone.model."):
        return "base_net.basenet." + in_backbone(key.removeprefix("backbone.model."))
    if found := re.match(r"head\.predictors\.(scores|boxes)\.(.*)", key):
        return f"{'cls' if found[1] == 'scores' else 'loc'}_layers.{found[2]}"
    if found := re.match(r"head\.extras\.([01])\.(\d)\.(conv|norm|act)\.(.*)", key):
        part = ("conv", "norm", "act").index(found[3])
        return f"base_net.extra_level{6 + int(found[1])}.layer.{found[2]}.cbr.{part}.{found[4]}"
    if found := re.match(r"head\.extras\.2\.1\.(.*)", key):
        return f"base_net.extra_level8.1.{found[1]}"
    found = re.match(r"head\.fusions\.(\d)\.(.*)", key)
    name = ("3x3_5x5", "5x5_10x10", "10x10_19x19", "19x19_38x38")[int(found[1])]
    return f"base_net.bu_{name}.{in_pyramid_pooling(found[2])}"


@pytest.fixture(scope="module")
def official():
    """A network, and its state dict as the official ESPNetv2 detectors have it."""
    net = detector("espnetv2_200", 20)
    unused = {f"base_net.basenet.level{level}_0.eesp.module_act.weight": torch.ones(8) for level in range(2, 6)}
    return net, {official_name(key): value for key, value in net.state_dict().items()} | unused


def test_official_detector(official, tmp_path, shared):
    net, state = official
    assert len(state) == 659
    known = torch.load(shared("weights/espnetv2_s_0.5_pascal_384x384.pth"), map_location="cpu", weights_only=True)
    theirs = {key.replace("base_net.", "base_net.basenet.") for key in known if key.startswith("base_net.")}
    assert theirs <= state.keys(), "the names of the backbone are those of the official segmentation network"
    torch.save(state, tmp_path / "espnetv2_s_2.0_pascal_300x300.pth")
    again = dicenet.load(tmp_path / "espnetv2_s_2.0_pascal_300x300.pth").eval()
    assert again.input_size == (300, 300)
    assert again.pretrained_cfg["label_names"][:2] == ("aeroplane", "bicycle")
    assert dicenet.load_edgenets(state, img_size=512).input_size == (512, 512)
    with pytest.raises(dicenet.WeightsError, match="does not say for which size of pictures"):
        dicenet.load_edgenets(state)
    x = random_picture(300, 300)
    with torch.no_grad():
        for actual, expected in zip(again(x), net(x), strict=True):
            torch.testing.assert_close(actual, expected)


def test_damaged_detectors(official):
    _, state = official
    without = {key: value for key, value in state.items() if "bu_3x3_5x5" not in key}
    with pytest.raises(dicenet.WeightsError, match=r"another head than this network: fusions\.0"):
        dicenet.load(without, img_size=300)
    without = {key: value for key, value in state.items() if not key.startswith("cls_layers.0")}
    with pytest.raises(dicenet.WeightsError, match="its predictors are missing"):
        dicenet.load(without, img_size=300)


@pytest.mark.parametrize("side", [300, pytest.param(512, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("backbone", "head"), [FORMS[0], *(pytest.param(*form, marks=pytest.mark.slow) for form in FORMS[1:])]
)
def test_export(backbone, head, side):
    net = detector(backbone, head=head, img_size=side)
    x = random_picture(side, side)
    program = torch.export.export(net, (x,)).module()
    with torch.no_grad():
        for actual, expected in zip(program(x), net(x), strict=True):
            torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_wrong_networks():
    with pytest.raises(
        dicenet.ConfigError, match="head 'yolo' is unknown: choose one of espnet, lite, fpnlite, ssdlite, ssd300"
    ):
        detector(head="yolo")
    with pytest.raises(dicenet.ConfigError, match="at least 1 class, got 0"):
        detector(classes=0)
    with pytest.raises(dicenet.ConfigError, match="pictures of 64x64 do not fit the head ssd300: give another"):
        detector("vgg11", head="ssd300", img_size=64)
    with pytest.raises(dicenet.ConfigError, match="the head espnet needs one at 1/8"):
        detector("vit_tiny_patch16_224")
    with pytest.raises(dicenet.ConfigError, match="img_size must be at least 32"):
        detector(img_size=0)
    with pytest.raises(dicenet.ConfigError, match=r"stands on VGG \(vgg16\), not on dicenet_020"):
        detector(head="ssd512")
    with pytest.raises(dicenet.ConfigError, match="out_indices cannot be chosen"):
        detector(out_indices=(1,))


# -- from scores to boxes


def naive(scores, codes, priors, size, score, nms, most):
    """Class by class, box by box, in float64."""
    chances = scores.double().softmax(-1)
    boxes = decode(codes.double(), priors.double())
    boxes = (boxes * torch.tensor([size[1], size[0], size[1], size[0]])).clamp(min=0)
    boxes = torch.minimum(boxes, torch.tensor([size[1], size[0], size[1], size[0]], dtype=torch.float64))
    found = []
    for label in range(1, scores.shape[-1]):
        kept = []
        for index in chances[:, label].argsort(descending=True).tolist():
            if chances[index, label] <= score or len(kept) == most:
                break
            if all(box_iou(boxes[index][None], boxes[other][None]) <= nms for other in kept):
                kept.append(index)
        found += [(chances[index, label].item(), label - 1, boxes[index].tolist()) for index in kept]
    return sorted(found, reverse=True)


@pytest.mark.parametrize(("score", "nms", "most"), [(0.05, 0.45, 200), (0.2, 0.3, 3), (0.999, 0.5, 200)])
def test_detections_are_those_of_a_plain_loop(score, nms, most):
    generator = torch.Generator().manual_seed(1)
    priors = prior_boxes(PriorSettings(((2.0,), (2.0,)), (0.2, 0.4, 0.9)), (64, 64), [(4, 4), (2, 2)], 1)
    scores = 2 * torch.randn(2, len(priors), 3, generator=generator)
    codes = torch.randn(2, len(priors), 4, generator=generator)
    sizes = [(50, 100), (20, 10)]
    found = detections(scores, codes, priors, sizes, score, nms, most)
    for index, result in enumerate(found):
        expected = naive(scores[index], codes[index], priors, sizes[index], score, nms, most)
        assert result["labels"].tolist() == [label for _, label, _ in expected]
        assert result["scores"].tolist() == pytest.approx([sure for sure, _, _ in expected], abs=1e-6)
        torch.testing.assert_close(
            result["boxes"], torch.tensor([box for _, _, box in expected]).reshape(-1, 4), rtol=0, atol=1e-3
        )
    if score > 0.9:
        assert all(len(result["boxes"]) == 0 for result in found)


def test_codes_come_back():
    boxes = torch.tensor([[0.1, 0.2, 0.5, 0.9], [0.0, 0.0, 1.0, 1.0]])
    priors = torch.tensor([[0.3, 0.5, 0.2, 0.4], [0.5, 0.5, 0.5, 1.0]])
    torch.testing.assert_close(decode(encode(boxes, priors), priors), boxes)
    torch.testing.assert_close(encode(corners(priors), priors), torch.zeros(2, 4))
