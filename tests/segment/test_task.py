"""The training of a segmentation network: loss, parts that learn and parts that do not, scores."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dicenet
from dicenet.data.masks import IGNORE
from dicenet.tasks.segment.metrics import iou_per_class, scores
from dicenet.tasks.segment.task import SegmentOptimisation, SegmentTask


def network(classes=3):
    torch.manual_seed(0)
    return dicenet.create_segmentation_model("dicenet_010", classes, img_size=(32, 48))


def batch(classes=3, count=2, void=0.2):
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(0, classes, (count, 32, 48), generator=generator)
    target[torch.rand(target.shape, generator=generator) < void] = IGNORE
    image = torch.randn(count, 3, 32, 48, generator=generator)
    return {"image": image, "target": target, "name": ["x"] * count, "errors": {}}


def step(task, data):
    """One step of plain SGD in training mode, as Lightning would do it."""
    task.train()
    task.log = lambda *_, **__: None
    optimizer = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=0.1)
    task.training_step(data, 0).backward()
    optimizer.step()


def state(task):
    return {key: value.clone() for key, value in task.net.state_dict().items()}


def changed(before, task):
    """Names of what a step changed; a gradient may be too small to."""
    return {key for key, value in task.net.state_dict().items() if not torch.equal(before[key], value)}


def learned(task):
    """Names of the parameters that a step had gradients for."""
    return {name for name, p in task.net.named_parameters() if p.grad is not None and p.grad.isfinite().all()}


def norms(net, *kinds):
    """Names of tensors of all norms."""
    layers = {name for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)}
    return {f"{name}.{kind}" for name in layers for kind in kinds}


PARAMETERS, STATISTICS = ("weight", "bias"), ("running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 0.0]])
def test_loss_is_torchs_weighted_mean(weights):
    task, data = SegmentTask(network(), "abc", class_weights=weights), batch()
    logits = torch.randn(2, 3, 32, 48)
    expected = F.cross_entropy(
        logits, data["target"], None if weights is None else torch.tensor(weights), ignore_index=IGNORE
    )
    torch.testing.assert_close(task._loss(logits, data["target"]), expected)


def test_a_batch_of_void_alone_changes_nothing_by_its_loss():
    task = SegmentTask(network(), "abc")
    loss = task._loss(torch.randn(2, 3, 4, 4, requires_grad=True), torch.full((2, 4, 4), IGNORE))
    assert loss.item() == 0, "torch's own mean is not a number here"


def test_all_parts_learn():
    task = SegmentTask(network(), "abc")
    before = state(task)
    step(task, batch())
    assert learned(task) == {name for name, _ in task.net.named_parameters()}
    assert norms(task.net, *STATISTICS) <= changed(before, task)


def test_frozen_norms_keep_statistics_and_parameters():
    """The official code goes on to update the statistics."""
    task = SegmentTask(network(), "abc", SegmentOptimisation(freeze_norms=True))
    before = state(task)
    step(task, batch())
    assert learned(task) == {name for name, _ in task.net.named_parameters()} - norms(task.net, *PARAMETERS)
    assert changed(before, task) & norms(task.net, *PARAMETERS, *STATISTICS) == set()


def test_norms_of_any_kind_are_frozen():
    net = dicenet.create_segmentation_model("convnext_atto", 3)
    task = SegmentTask(net, "abc", SegmentOptimisation(freeze_norms=True))
    left = [name for name, p in task.net.named_parameters() if "norm" in name and p.requires_grad]
    assert [name for name in left if "act" not in name] == []


def test_frozen_backbone():
    task = SegmentTask(network(), "abc", SegmentOptimisation(freeze_backbone=True))
    before = state(task)
    step(task, batch())
    assert learned(task) == {name for name, _ in task.net.named_parameters() if name.startswith("decoder")}
    assert not any(key.startswith("backbone") for key in changed(before, task))
    assert changed(before, task)


class Plan:
    """What the optimiser asks of a trainer."""

    estimated_stepping_batches = 100
    max_epochs = 10


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw"])
def test_the_decoder_learns_faster(optimizer):
    task = SegmentTask(
        network(), "abc", SegmentOptimisation(optimizer=optimizer, lr=0.01, lr_mult=10, schedule="hybrid")
    )
    task._trainer = Plan()
    groups = task.configure_optimizers()["optimizer"].param_groups
    assert [group["initial_lr"] for group in groups] == pytest.approx([0.01, 0.1])
    assert [len(group["params"]) for group in groups] == [
        len(list(part.parameters())) for part in (task.net.backbone, task.net.decoder)
    ]
    frozen = SegmentTask(network(), "abc", SegmentOptimisation(optimizer=optimizer, lr=0.01, freeze_backbone=True))
    frozen._trainer = Plan()
    (group,) = frozen.configure_optimizers()["optimizer"].param_groups
    assert group["initial_lr"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer": "adam"}, "choose one of sgd, momentum, adamw"),
        ({"schedule": "step"}, "choose one of linear, cosine, poly, multistep, constant"),
        ({"warmup": 1}, "warmup is a part of the run"),
        ({"lr": 0}, "lr must be above 0"),
        ({"lr_mult": 0}, "lr_mult must be above 0"),
        ({"cycled": 0}, "cycled must be at least 1 epoch, got 0"),
        ({"momentum": 1}, "momentum must lie between 0 and 1"),
    ],
)
def test_wrong_optimisation(arguments, message):
    with pytest.raises(dicenet.ConfigError, match=message):
        SegmentOptimisation(**arguments)


# -- scores


def test_scores_by_hand():
    """Four classes: 0 and 1 in the truth, 2 predicted only, 3 nowhere."""
    confusion = torch.tensor([[6, 2, 0, 0], [1, 3, 4, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    expected = [6 / 9, 3 / 10]
    found = scores(confusion)
    assert found["iou_per_class"] == pytest.approx([*expected, None, None])
    assert found["mean_iou"] == pytest.approx(sum(expected) / 2)
    assert found["mean_iou_all"] == pytest.approx(sum(expected) / 4)
    assert found["pixel_accuracy"] == pytest.approx(9 / 16)
    assert iou_per_class(confusion)[2:] == [0.0, None]


def test_scores_of_nothing():
    assert scores(torch.zeros(2, 2))["mean_iou"] == 0
    task = SegmentTask(network(), "abc")
    with pytest.raises(dicenet.DataError, match="nothing to judge by in the pictures: all is void"):
        task.all_scores()


def test_pictures_are_judged_at_their_own_size():
    """A map of classes is resized to each mask, not the masks to the map; scores are over all pixels."""
    task = SegmentTask(network(2), "ab")
    logits = torch.zeros(2, 2, 2, 2)
    logits[:, 1, :, 1] = 1  # the right half is class 1
    task.net.forward = lambda x: logits[: len(x)]
    wide = torch.zeros(2, 8, dtype=torch.uint8)
    wide[:, 5:] = 1  # a column less than the half
    tall = torch.zeros(6, 2, dtype=torch.uint8)
    tall[0], tall[1:, 1] = IGNORE, 1
    task.test_step({"image": torch.zeros(2, 3, 2, 2), "target": [wide, tall], "name": ["a", "b"], "errors": {}}, 0)
    assert task.confusion.compute().tolist() == [[8 + 5, 2], [0, 6 + 5]]
    assert task.all_scores()["mean_iou"] == pytest.approx((13 / 15 + 11 / 13) / 2)
