"""Mixed pictures, teachers and weight decay, against timm's and torchvision's own and by hand."""

import copy
import math

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy
from timm.models import save_for_hf
from timm.task.distillation import LogitDistillationTask
from torch import nn
from torchvision.transforms import v2

import dicenet
from dicenet.data.transforms import Augmentation, Preprocessing, training_transform
from dicenet.models.restoring import set_task
from dicenet.tasks import classify
from dicenet.tasks.classify.task import ClassifyOptimisation, ClassifyTask
from dicenet.tasks.classify.teacher import Teacher, distillation_loss, load_teacher
from dicenet.tasks.segment import SegmentOptimisation, SegmentTask

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


class Linear(nn.Module):
    """A classifier that keeps what it was shown."""

    def __init__(self, classes=3, size=8, **cfg):
        super().__init__()
        self.layer = nn.Linear(3 * size * size, classes)
        self.num_classes, self.in_chans = classes, 3
        self.pretrained_cfg = {"input_size": (3, size, size), **PLAIN, **cfg}

    def forward(self, images):
        self.seen = images
        return self.layer(images.flatten(1))


def task(teacher=None, net=None, **arguments):
    return ClassifyTask(net or Linear(), "abc", ClassifyOptimisation(**arguments), teacher)


def two_pictures():
    """One of zeros, of class 0, and one of ones, of class 2: what is mixed tells in what shares."""
    images = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    return {"image": images, "target": torch.tensor([0, 2])}


# -- mixup and CutMix


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_of_mixed_pictures(kind, smoothing):
    """The share is read off the pictures; timm's targets of that share, and its loss of them, must be ours."""
    learner = task(**{kind: 1.0}, label_smoothing=smoothing)
    shares = set()
    for seed in range(5):
        torch.manual_seed(seed)
        batch = two_pictures()
        loss = learner.batch_loss(batch)
        seen = learner.net.seen
        own = 1 - float(seen[0].mean())  # what is left of the first picture
        if kind == "cutmix":
            assert set(seen.unique().tolist()) <= {0.0, 1.0}, "pasted, not blended"
        assert float(seen[1].mean()) == pytest.approx(own, abs=1e-6)
        targets = mixup_target(batch["target"], 3, own, smoothing)
        expected = SoftTargetCrossEntropy()(learner.net.layer(seen.flatten(1)), targets)
        torch.testing.assert_close(loss, expected)
        shares.add(round(own, 4))
    assert len(shares) > 1


def test_with_both_each_batch_has_one_of_them():
    learner = task(mixup=1.0, cutmix=1.0)
    pasted = []
    for seed in range(20):
        torch.manual_seed(seed)
        learner.batch_loss(two_pictures())
        pasted.append(set(learner.net.seen.unique().tolist()) <= {0.0, 1.0})
    assert 0 < sum(pasted) < 20


def test_mixing_depends_on_torchs_chance_alone():
    learner = task(mixup=0.2, cutmix=1.0)
    losses = []
    for seed, other in ((1, 2), (1, 3), (4, 2)):
        torch.manual_seed(seed)
        np.random.seed(other)  # noqa: NPY002 (the global stream is what must not matter)
        losses.append(float(learner.batch_loss(two_pictures()).detach()))
    assert losses[0] == losses[1] != losses[2]


def test_judging_mixes_nothing():
    learner = task(mixup=1.0).eval()
    learner.validation_step({**two_pictures(), "errors": {}}, 0)
    torch.testing.assert_close(learner.net.seen, two_pictures()["image"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixup": -1.0}, "mixup and cutmix must be 0 or above"),
        ({"cutmix": -0.5}, "mixup and cutmix must be 0 or above"),
        ({"teacher_weight": 0.0}, "teacher_weight must be above 0"),
        ({"teacher_weight": 1.5}, "teacher_weight must be above 0"),
        ({"teacher_temperature": 0.0}, "teacher_temperature above 0"),
    ],
)
def test_wrong_options(arguments, message):
    with pytest.raises(dicenet.ConfigError, match=message):
        ClassifyOptimisation(**arguments)


# -- teachers


def test_distillation_by_hand():
    """Two classes, logits 2 apart one way and the other, temperature 2: 4 tanh(1/2)."""
    loss = distillation_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]]), 2.0)
    assert float(loss) == pytest.approx(4 * math.tanh(0.5))
    assert float(distillation_loss(torch.ones(2, 3), torch.zeros(2, 3), 1.0)) == pytest.approx(0, abs=1e-7)


def preprocessing(net):
    cfg = net.pretrained_cfg
    return Preprocessing(cfg["input_size"][1:], 3, cfg["mean"], cfg["std"])


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distillation_is_timms(temperature):
    """The whole loss, with a teacher that normalises otherwise."""
    torch.manual_seed(0)
    student, teacher = Linear(), Linear(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    reference = LogitDistillationTask(
        copy.deepcopy(student),
        copy.deepcopy(teacher),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        task_loss_weight=0.3,
        temperature=temperature,
        device=torch.device("cpu"),
        verbose=False,
    )
    taught = Teacher(teacher, preprocessing(teacher), preprocessing(student), range(3))
    learner = task(taught, student, label_smoothing=0.1, teacher_weight=0.7, teacher_temperature=temperature)
    batch = {"image": torch.rand(4, 3, 8, 8), "target": torch.tensor([0, 1, 2, 1])}
    torch.testing.assert_close(learner.batch_loss(batch), reference(batch["image"], batch["target"])["loss"])


def test_the_teacher_sees_the_mixed_picture_in_its_own_size_and_values():
    student, teacher = Linear(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)), Linear(size=16, mean=(0.1, 0.2, 0.3))
    taught = Teacher(teacher, preprocessing(teacher), preprocessing(student), range(3))
    learner = task(taught, student, mixup=1.0)
    learner.batch_loss(two_pictures())
    seen = student.seen
    raw = seen * 0.25 + 0.5
    expected = F.interpolate(raw, (16, 16), mode="bilinear", antialias=True)
    expected = expected - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    torch.testing.assert_close(teacher.seen, expected)


def test_the_teacher_is_no_part_of_the_student():
    teacher = Linear()
    taught = Teacher(teacher.train(), preprocessing(teacher), preprocessing(teacher), range(3))
    learner = task(taught)
    assert copy.deepcopy(learner).teacher is taught, "an average of the weights must not copy it"
    assert not any("teacher" in key for key in learner.state_dict())
    learner.train()
    assert not teacher.training
    learner.batch_loss(two_pictures()).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in learner.net.parameters())


def test_classes_in_another_order():
    teacher = Linear()
    taught = Teacher(teacher, preprocessing(teacher), preprocessing(teacher), [2, 0, 1])
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(taught.logits(images), teacher(images)[:, [2, 0, 1]])


def test_grey_students_and_teachers():
    teacher, grey = Linear(), Preprocessing((8, 8), 1, (0.5,), (0.5,))
    taught = Teacher(teacher, preprocessing(teacher), grey, range(3))
    taught.logits(torch.zeros(2, 1, 8, 8))
    torch.testing.assert_close(teacher.seen, torch.full((2, 3, 8, 8), 0.5))
    with pytest.raises(dicenet.ConfigError, match="train with --in-chans 1"):
        Teacher(teacher, grey, preprocessing(teacher), range(3))


def test_a_teacher_of_timm(tmp_path):
    net = timm.create_model("resnet10t", num_classes=3).eval()
    save_for_hf(net, tmp_path / "timm")
    seen = Preprocessing((64, 64))
    taught = load_teacher(f"local-dir:{tmp_path / 'timm'}", ["c", "b", "a"], seen)  # it has no names: in order
    assert taught.size == net.pretrained_cfg["input_size"][1:]
    images = torch.rand(2, 3, *taught.size)
    with torch.no_grad():
        torch.testing.assert_close(taught.logits(images), net(images))


def test_a_teacher_of_ours_by_names(tmp_path):
    net = timm.create_model("dicenet_010", num_classes=3, img_size=32, stem="small").eval()
    dicenet.save(net, tmp_path / "net.safetensors", ["a", "b", "c"])
    taught = load_teacher(str(tmp_path / "net.safetensors"), ["c", "a"], Preprocessing((32, 32)))
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(taught.logits(images), net(images)[:, [2, 0]], rtol=1e-4, atol=1e-5)
    with pytest.raises(dicenet.ConfigError, match=r"among them unknown ones: d\. Choose another teacher"):
        load_teacher(str(tmp_path / "net.safetensors"), ["a", "d"], Preprocessing((32, 32)))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("resnet_18", dicenet.ConfigError, "neither a file nor a timm model: the nearest are resnet18 and"),
        ("nosuchmodel", dicenet.ConfigError, r"neither a file nor a timm model$"),
        ("runs/none.safetensors", dicenet.ConfigError, "neither a file nor a timm model"),
        ("mnasnet_050", dicenet.WeightsError, "its weights cannot be had"),
        ("local-dir:/nowhere", dicenet.WeightsError, "its weights cannot be had"),
    ],
)
def test_no_teacher(name, error, message):
    with pytest.raises(error, match=message):
        load_teacher(name, ["a", "b"], Preprocessing((32, 32)))


def test_a_segmentation_network_cannot_teach(tmp_path):
    net = dicenet.create_segmentation_model("dicenet_010", num_classes=3, img_size=64)
    dicenet.save(net, tmp_path / "net.safetensors", ["a", "b", "c"])
    with pytest.raises(dicenet.WeightsError, match="holds no classifier"):
        load_teacher(str(tmp_path / "net.safetensors"), ["a", "b", "c"], Preprocessing((32, 32)))


def test_a_multilabel_network_cannot_teach(tmp_path):
    net = timm.create_model("dicenet_010", num_classes=3, img_size=32, stem="small")
    set_task(net.pretrained_cfg, "multilabel")
    dicenet.save(net, tmp_path / "net.safetensors", ["a", "b", "c"])
    with pytest.raises(dicenet.WeightsError, match=r"--teacher .* is a multi-label classifier, .* train classify"):
        load_teacher(str(tmp_path / "net.safetensors"), ["a", "b", "c"], Preprocessing((32, 32)))


def test_a_teacher_is_looked_for_before_the_data_are_read(tmp_path):
    with pytest.raises(dicenet.ConfigError, match=r"--teacher nosuchmodel is neither a file nor a timm model$"):
        classify.train(str(tmp_path / "nowhere"), teacher="nosuchmodel")


@pytest.mark.parametrize(
    ("given", "said"),
    [({"teacher_weight": 0.5}, True), ({"teacher_temperature": 3.0}, True), ({}, False)],
)
def test_options_of_a_teacher_that_is_not_there(tmp_path, monkeypatch, capsys, given, said):
    monkeypatch.setattr("dicenet.tasks.training.Run.go", lambda run, task, *rest: task)
    classify.train("digits", out=str(tmp_path / "run"), **SMALL, **given)
    assert ("change nothing: there is no --teacher" in capsys.readouterr().out) == said


# -- weight decay


def decays(optimizer):
    """Weight decay of each parameter, by identity."""
    return {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw", "lamb"])
def test_decay_of_a_classifier(optimizer):
    net = timm.create_model("dicenet_010", num_classes=3)
    for every in (True, False):
        found = decays(task(net=net, optimizer=optimizer, weight_decay=0.1, decay_all=every).make_optimizer())
        assert len(found) == len(list(net.parameters()))
        for module in net.modules():
            for parameter in module.parameters(recurse=False):
                spared = isinstance(module, nn.BatchNorm2d | nn.PReLU) or parameter.ndim <= 1
                assert found[id(parameter)] == (0.1 if every or not spared else 0.0)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_decay_of_a_segmentation_network(optimizer):
    net = dicenet.create_segmentation_model("dicenet_010", num_classes=3, img_size=64)
    options = {"optimizer": optimizer, "lr": 0.01, "lr_mult": 10.0, "weight_decay": 0.1}
    plain = SegmentTask(net, "abc", SegmentOptimisation(**options)).make_optimizer()
    assert set(decays(plain).values()) == {0.1}, "the official choice stays the default"
    sparing = SegmentTask(net, "abc", SegmentOptimisation(**options, decay_all=False)).make_optimizer()
    found = decays(sparing)
    for parameter in net.parameters():
        assert found[id(parameter)] == (0.1 if parameter.ndim > 1 else 0.0)
    rates = {id(p): group["lr"] for group in sparing.param_groups for p in group["params"]}
    assert all(rates[id(p)] == pytest.approx(0.01) for p in net.backbone.parameters())
    assert all(rates[id(p)] == pytest.approx(0.1) for p in net.head_part().parameters())


def test_momentum_is_the_official_sgd():
    """Without Nesterov, two steps as torch's own."""
    start, gradient = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 0.25]])
    net = nn.Linear(2, 1, bias=False)
    other = nn.Parameter(start.clone())
    net.weight.data.copy_(start)
    ours = ClassifyTask.make_optimizer(_Holder(net, ClassifyOptimisation(optimizer="momentum", lr=0.1)))
    torchs = torch.optim.SGD([other], 0.1, momentum=0.9, weight_decay=5e-4)
    for _ in range(2):
        net.weight.grad, other.grad = gradient.clone(), gradient.clone()
        ours.step()
        torchs.step()
    torch.testing.assert_close(net.weight.data, other.data)


class _Holder:
    def __init__(self, net, optimisation):
        self.net, self.optimisation = net, optimisation


# -- policies


@pytest.mark.parametrize(
    ("policy", "own"), [("randaugment", v2.RandAugment), ("trivialaugment", v2.TrivialAugmentWide)]
)
def test_policies(policy, own):
    """Behind crop and mirroring, as in torchvision's recipes."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    form = Preprocessing((32, 32))
    transform = training_transform(form, Augmentation("resized-crop", 0.2, 0.5, policy))
    bilinear = v2.InterpolationMode.BILINEAR
    expected = v2.Compose(
        [
            v2.RandomResizedCrop(32, (0.2, 1.0), interpolation=bilinear),
            v2.RandomHorizontalFlip(0.5),
            own(interpolation=bilinear),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(form.mean, form.std),
        ]
    )
    plain = training_transform(form, Augmentation("resized-crop", 0.2, 0.5))
    differs = False
    for seed in range(5):
        outputs = []
        for made in (transform, expected, plain):
            torch.manual_seed(seed)
            outputs.append(made(picture))
        torch.testing.assert_close(outputs[0], outputs[1])
        differs |= not torch.equal(outputs[0], outputs[2])
    assert differs


def test_an_unknown_policy():
    with pytest.raises(dicenet.ConfigError, match="auto_augment 'rand' is unknown: choose one of randaugment, trivial"):
        Augmentation(policy="rand")


# -- all of it in a run

SMALL = {"model": "dicenet_010", "epochs": 1, "batch_size": 256, "workers": 0, "device": "cpu"}


def test_a_run_with_everything(tmp_path):
    """A student with all that lies beyond the paper learns something, and its checkpoint holds no teacher."""
    teacher = classify.train("digits", out=str(tmp_path / "teacher"), **SMALL)
    folder = classify.train(
        "digits",
        out=str(tmp_path / "student"),
        teacher=str(teacher / "best.safetensors"),
        mixup=0.2,
        cutmix=1.0,
        auto_augment="trivialaugment",
        label_smoothing=0.1,
        ema=0.9,
        decay_all=True,
        schedule="cyclic",
        milestones=(2, 4),
        **SMALL,
    )
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    assert all(key.startswith("net.") for key in checkpoint["state_dict"])
    assert all(key.startswith("net.") for key in checkpoint["current_model_state"])
    dicenet.load(folder / "best.safetensors")


@pytest.mark.slow
def test_a_compiled_run_is_like_a_plain_one(tmp_path):
    states = []
    for name, compiled in (("plain", False), ("compiled", True)):
        folder = classify.train("digits", out=str(tmp_path / name), compile=compiled, drop_rate=0.0, ema=0.9, **SMALL)
        states.append(dicenet.load(folder / "best.safetensors").state_dict())
    assert list(states[0]) == list(states[1])
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-2, atol=1e-3)
