"""What the official tensors do not show: resizing rules, rebasing, refusals."""

import pytest
import torch
import torch.nn.functional as F

import dicenet
from dicenet.layers.dim_conv import DimConv, resize


def test_resize_grows_by_bilinear_and_shrinks_by_averages():
    x = torch.arange(4.0).reshape(1, 1, 4, 1)
    # aligned corners: 0 and 3 stay, between them equal steps
    torch.testing.assert_close(resize(x, 7, 1).flatten(), torch.arange(0, 3.5, 0.5))
    torch.testing.assert_close(resize(x, 2, 1).flatten(), torch.tensor([0.5, 2.5]))
    assert resize(x, 4, 1) is x


def test_scaled_map_equals_scaling_by_hand():
    layer = DimConv(5, (6, 4))
    x = torch.randn(2, 5, 9, 3)
    down = F.adaptive_avg_pool2d(x, (6, 3))
    by_height = F.conv2d(down.transpose(1, 2), layer.weight_height, padding=1, groups=6).transpose(1, 2)
    expected = F.interpolate(by_height, (9, 3), mode="bilinear", align_corners=True)
    torch.testing.assert_close(layer(x)[:, 5:10], expected)


def test_rebase_to_the_same_size_changes_nothing():
    layer = DimConv(5, (6, 4))
    before = layer.weight_height.clone()
    layer.rebase((6, 4))
    torch.testing.assert_close(layer.weight_height, before, rtol=0, atol=0)


def test_rebase_interpolates_along_positions():
    layer = DimConv(2, (2, 2))
    with torch.no_grad():
        layer.weight_height.copy_(torch.stack([torch.zeros(1, 3, 3), torch.ones(1, 3, 3)]))
    layer.rebase((3, 2))
    assert layer.feature_size == (3, 2)
    torch.testing.assert_close(layer.weight_height[:, 0, 1, 2], torch.tensor([0.0, 0.5, 1.0]))


def test_rebased_kernels_that_are_equal_at_all_positions_act_alike():
    """Where the kernels do not depend on the position, rebasing is exact, away from any scaling."""
    layer = DimConv(4, (6, 8))
    with torch.no_grad():
        for weight in (layer.weight_height, layer.weight_width):
            weight.copy_(weight[:1].expand_as(weight))
    other = DimConv(4, (3, 5))
    with torch.no_grad():
        other.weight_depth.copy_(layer.weight_depth)
        other.weight_height.copy_(layer.weight_height[:3])
        other.weight_width.copy_(layer.weight_width[:5])
    layer.rebase((3, 5))
    x = torch.randn(1, 4, 3, 5)
    torch.testing.assert_close(layer(x), other(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(in_channels=3, out_channels=8, feature_size=(7, 7)), "at least 4 channels, got 3"),
        (dict(in_channels=8, out_channels=8, feature_size=(7, 7), kernel_size=4), "must be odd, got 4"),
        (dict(in_channels=8, out_channels=8, feature_size=(0, 7)), "must be at least 1"),
    ],
)
def test_impossible_units_are_refused(arguments, message):
    with pytest.raises(dicenet.ConfigError, match=message):
        dicenet.DiCEUnit(**arguments)


def test_state_of_another_trained_size_gives_advice():
    with pytest.raises(RuntimeError, match=r"trained for a map of \(7, 7\).*set_input_size.*rebase"):
        dicenet.DiCEUnit(8, 8, (14, 14)).load_state_dict(dicenet.DiCEUnit(8, 8, (7, 7)).state_dict())


@pytest.mark.parametrize("options", [{}, {"kernel_size": 5}, {"dilation": (1, 2, 3)}, {"interleave": False}])
def test_unit_gradients_in_float64(options):
    torch.manual_seed(0)
    unit = dicenet.DiCEUnit(4, 6, (3, 5), **options).double().eval()
    for size in ((3, 5), (4, 3)):
        x = torch.randn(1, 4, *size, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(unit, [x])
