"""The width table against the published one: parameters and both ways of counting."""

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from dicenet.analysis.count import count, count_model
from dicenet.models.dicenet import WIDTHS

#: Parameters, official multiply-adds and half of torch's count (M): measured with the official code.
PUBLISHED = {
    0.1: (548_984, "6.49", "6.49"),
    0.2: (1_130_704, "14.90", "14.90"),
    0.5: (1_214_120, "24.71", "24.71"),
    0.75: (1_495_676, "46.83", "46.83"),
    1.0: (1_805_604, "70.71", "70.71"),
    1.25: (2_162_888, "98.11", "98.11"),
    1.5: (2_652_200, "135.48", "135.48"),
    1.75: (3_264_932, "182.24", "182.24"),
    2.0: (3_979_044, "236.29", "236.29"),
    2.4: (5_113_628, "297.94", "297.94"),
    3.0: (9_363_600, "553.83", "553.82"),
}


def test_all_widths_are_there():
    assert [width.scale for width in WIDTHS] == list(PUBLISHED)


@pytest.mark.parametrize("width", WIDTHS, ids=lambda width: width.name)
def test_cost(width):
    cost = count_model(width.name)
    parameters, official, torch_half = PUBLISHED[width.scale]
    assert cost.parameters == parameters == width.parameters
    assert f"{cost.macs_official / 1e6:.2f}" == official == f"{width.macs:.2f}"
    assert f"{cost.macs / 1e6:.2f}" == torch_half


def test_counting_by_hand_and_without_side_effects():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Conv2d(4, 2, 1, bias=False))
    cost = count(net, (3, 5, 7))
    assert cost.parameters == 3 * 4 * 9 + 4 + 8
    assert cost.macs == 35 * (3 * 4 * 9 + 4 * 2)
    assert cost.macs_official == cost.macs + 35 * 4 / 2
    assert not net[0]._forward_hooks
    assert net(torch.zeros(1, 3, 5, 7)).device.type == "cpu"


def test_counting_a_scaled_map_equals_torch():
    net = timm.create_model("dicenet_020").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 3, 160, 256))
    assert count(net, (3, 160, 256)).macs == counter.get_total_flops() // 2
