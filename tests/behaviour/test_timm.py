"""The networks in timm's own hands, and in a plain loop."""

import pytest
import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3

import dicenet


def test_timms_training_loop_can_use_it():
    """What timm's train.py does, in short: its optimiser with layer decay, schedule, loss, EMA, clipping."""
    torch.manual_seed(0)
    net = timm.create_model("dicenet_020", num_classes=2, img_size=32, drop_rate=0.0, drop_path_rate=None)
    net.set_grad_checkpointing(True)
    optimizer = create_optimizer_v2(net, "adamw", lr=3e-3, weight_decay=0.05, layer_decay=0.9)
    scheduler, epochs = create_scheduler_v2(optimizer, "cosine", num_epochs=8, warmup_epochs=1)
    average = ModelEmaV3(net, decay=0.5)
    loss_function = LabelSmoothingCrossEntropy(0.1)
    x = torch.randn(16, 3, 32, 32)
    target = torch.arange(16) % 2
    x[target == 1] += 0.7
    losses = []
    for epoch in range(epochs):
        scheduler.step(epoch)
        optimizer.zero_grad()
        loss = loss_function(net(x), target)
        loss.backward()
        timm.utils.dispatch_clip_grad(net.parameters(), 1.0)
        optimizer.step()
        average.update(net)
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert average.module.eval()(x).isfinite().all()


def test_transform_of_timm_fits_the_network():
    net = timm.create_model("dicenet_010", num_classes=2, img_size=(64, 96))
    config = resolve_model_data_config(net)
    assert config["interpolation"] == "bilinear"
    assert config["crop_pct"] == 0.875
    assert config["input_size"] == (3, 64, 96)
    assert create_transform(**config)


def test_transform_of_loaded_weights_is_theirs(tmp_path):
    net = timm.create_model("dicenet_010", num_classes=2, img_size=32, stem="small")
    net.pretrained_cfg = {**net.pretrained_cfg, "crop_pct": 1.0, "mean": (0.1, 0.2, 0.3)}
    dicenet.save(net, tmp_path / "net.safetensors", ["a", "b"])
    config = resolve_model_data_config(dicenet.load(tmp_path / "net.safetensors"))
    assert (config["crop_pct"], config["mean"], config["input_size"]) == (1.0, (0.1, 0.2, 0.3), (3, 32, 32))


def test_unknown_width():
    with pytest.raises(RuntimeError, match="Unknown model"):
        timm.create_model("dicenet_110")
    with pytest.raises(ValueError, match="nearest are dicenet_100 and dicenet_125"):
        dicenet.models.registry.check_model_name("dicenet_110")


def test_plain_loop_learns():
    torch.manual_seed(0)
    net = timm.create_model("dicenet_010", num_classes=2, img_size=32, stem="small")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    x = torch.randn(16, 3, 32, 32)
    target = torch.arange(16) % 2
    x[target == 1] += 0.7
    first = None
    for _ in range(10):
        loss = torch.nn.functional.cross_entropy(net(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first = first or loss.item()
    assert loss.item() < 0.5 * first
