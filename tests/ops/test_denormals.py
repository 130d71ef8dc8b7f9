"""Denormal numbers count as zero inside the block, on every thread, and only there."""

import subprocess
import sys

import pytest
import torch

import dicenet
from dicenet.ops import cpu, flush_denormals
from dicenet.ops.denormals import flushes_denormals

SMALL = 1e-39  # denormal in float32


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def share_of_zeros(values):
    """By their bits: where denormals count as zero, they also compare as zero."""
    return (values.view(torch.int32) == 0).float().mean().item()


def forward_and_backward(x):
    """Shares of zeros of a product that is computed on all threads, and of its gradient."""
    weight = torch.full_like(x, 0.5, requires_grad=True)
    product = x * weight
    product.backward(torch.ones_like(product))
    return share_of_zeros(product.detach()), share_of_zeros(weight.grad * 0.5)


def test_on_every_thread(threads):
    if threads > 1 and not cpu.available:
        pytest.skip("running threads can only be reached by the C++ operators")
    x = torch.full((1 << 20,), SMALL)
    assert forward_and_backward(x) == (0, 0)  # threads run from here on
    with flush_denormals():
        assert flushes_denormals()
        assert forward_and_backward(x) == (1, 1)
    assert not flushes_denormals()
    assert forward_and_backward(x) == (0, 0)


def test_without_the_operators(monkeypatch):
    monkeypatch.setattr(cpu, "available", False)
    x = torch.full((64,), SMALL)  # one thread's work
    with flush_denormals():
        assert share_of_zeros(x * 0.5) == 1
    assert share_of_zeros(x * 0.5) == 0


def test_restored_after_an_error_and_behind_the_outer_block():
    @flush_denormals()
    def stops():
        with flush_denormals():
            pass
        assert flushes_denormals()
        raise dicenet.ConfigError("stop")

    with pytest.raises(dicenet.ConfigError, match="stop"):
        stops()
    assert not flushes_denormals()


def test_a_process_that_flushes_already_stays_so():
    torch.set_flush_denormal(True)
    try:
        with flush_denormals():
            assert flushes_denormals()
        assert flushes_denormals()
    finally:
        torch.set_flush_denormal(False)
    assert not flushes_denormals()


def test_as_a_decorator():
    @flush_denormals()
    def inside():
        return flushes_denormals()

    assert [inside(), inside(), flushes_denormals()] == [True, True, False]


STARTS_THREADS = """
import timm, torch, dicenet
from dicenet.ops.denormals import flushes_denormals
torch.set_num_threads(1)  # nothing before the plan's second run starts a thread
with torch.inference_mode():
    net = dicenet.optimize_for_inference(timm.create_model("dicenet_100"))
    x, picture = torch.full((1 << 20,), 1e-39), torch.zeros(1, 3, 224, 224)
    net(picture)
    torch.set_num_threads(2)
    net(picture)
kept = ((x * 0.5).view(torch.int32) != 0).float().mean().item()
assert (kept, flushes_denormals()) == (1, False), kept
"""


@pytest.mark.skipif(not cpu.available, reason="plans need the C++ operators")
def test_threads_that_a_plan_starts_are_left_as_they_were():
    done = subprocess.run([sys.executable, "-c", STARTS_THREADS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
