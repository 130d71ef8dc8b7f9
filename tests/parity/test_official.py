"""Our units, blocks and network against tensors computed by the official code.

Tolerances are those of the README beside the tensors: units 1e-5 of the largest output, gradients 5e-5 of each
tensor's largest entry, logits 2e-4, feature maps 1e-5.
"""

import pytest
import torch
from safetensors.torch import load_file

import dicenet

UNITS = [
    "dice_c16_14x14",
    "dice_c16_12x20",
    "dice_c16_14x14_k5",
    "dice_c16to24_14x14",
    "dice_c24to16_10x10",
    "dice_c16_14x14_in7x7",
    "dice_c16_14x14_in28x28",
    "dice_c16_14x14_in13x17",
    "dice_c16_12x20_in20x12",
    "dice_c16_14x14_noshuffle",
    "dice_c16_14x14_dil",
    "strided_dice_c8_14x14",
    "strided_dice_c12_8x12_in15x26",
    "shuffle_dice_16to24_14x14",
    "shuffle_dice_24to24_7x7_in10x5",
]
TRAINING = [
    "dice_train_c16_14x14",
    "dice_train_c16_14x14_in9x18",
    "strided_dice_train_c8_7x7",
    "shuffle_dice_train_16to16_7x7",
]
OPTIONS = {"dice_c16_14x14_noshuffle": {"interleave": False}, "dice_c16_14x14_dil": {"dilation": (1, 2, 3)}}


def part(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def reference(shared, name):
    tensors = load_file(shared("reference/official") / f"{name}.safetensors")
    # official dilations are in the order channel, width, height; ours is depth, height, width
    options = dict(OPTIONS.get(name, {}))
    if "dilation" in options:
        depth, width, height = options["dilation"]
        options["dilation"] = (depth, height, width)
    return tensors, dicenet.load_edgenets(part(tensors, "state."), **options)


def assert_close(actual, expected, relative, what=""):
    """Equal within ``relative`` of the largest expected value."""
    error = (actual - expected).abs().max().item()
    scale = expected.abs().max().item()
    assert error <= relative * scale, f"{what}: error {error:.2e}, largest value {scale:.2e}"


def test_all_unit_files_are_tested(shared):
    files = {path.stem for path in shared("reference/official").glob("*dice_*.safetensors")}
    assert files == {*UNITS, *TRAINING}


@pytest.mark.parametrize("name", UNITS)
def test_unit_output(shared, name):
    tensors, module = reference(shared, name)
    with torch.no_grad():
        output = module.eval()(tensors["input"])
    assert_close(output, tensors["output"], 1e-5)


@pytest.mark.parametrize("name", TRAINING)
def test_unit_training_step(shared, name):
    tensors, module = reference(shared, name)
    x = tensors["input"].requires_grad_()
    output = module.train()(x)
    (output * tensors["loss_weight"]).sum().backward()
    assert_close(output, tensors["output"], 1e-5)
    assert_close(x.grad, tensors["grad_input"], 5e-5, "input")

    names = dicenet.weights.formats.EDGENETS
    expected = names.rename(part(tensors, "grad."))
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    assert gradients.keys() == expected.keys()
    for key, gradient in expected.items():
        assert_close(gradients[key], gradient, 5e-5, key)
    buffers = dict(module.named_buffers())
    after = names.rename(part(tensors, "after."))
    assert after
    for key, value in after.items():
        assert_close(buffers[key], value, 1e-5, key)


@pytest.mark.parametrize("size", ["224x224", "160x160", "192x256"])
def test_network(shared, size):
    weights = load_file(shared("reference/official") / "dicenet_s0.2_random_weights.safetensors")
    tensors = load_file(shared("reference/official") / f"dicenet_s0.2_random_{size}.safetensors")
    net = dicenet.load_edgenets(part(weights, "state.") or weights).eval()
    assert net.width.name == "dicenet_020"
    assert (net.num_classes, net.trained_size) == (10, (224, 224))
    x = tensors["input"].float()
    with torch.no_grad():
        last, maps = net.forward_intermediates(x)
        logits = net(x)
    assert (logits - tensors["output"]).abs().max() <= 2e-4
    assert_close(net.forward_head(last), logits, 1e-6)
    if size == "224x224":
        assert_close(maps[2][:, :, ::2, ::2], tensors["level3"], 1e-5, "level3")
        assert_close(maps[3], tensors["level4"], 1e-5, "level4")
        assert_close(maps[4], tensors["level5"], 1e-5, "level5")


def test_swapped_height_and_width_kernels_are_noticed(shared):
    """The tensors tell the two kernels apart, which have the same shape in square units."""
    tensors, module = reference(shared, "dice_c16_14x14")
    conv = module.dim_conv
    conv.weight_height, conv.weight_width = conv.weight_width, conv.weight_height
    with torch.no_grad():
        output = module.eval()(tensors["input"])
    assert (output - tensors["output"]).abs().max() > 1
