"""Optimized networks under torch's compiler and exporter."""

import copy

import pytest
import torch
from torch import nn
from unsettled import assert_close, assert_equal, by_reference, pictures, small_network, unsettle

from dicenet.layers import ConvNormAct, DiCEUnit
from dicenet.ops import cpu
from dicenet.optimize import network, optimize_for_inference

pytestmark = pytest.mark.skipif(not cpu.available, reason="the C++ operators are not built here")


@pytest.fixture(autouse=True)
def fresh():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.compiler.reset()
    yield
    torch.compiler.reset()
    torch.set_num_threads(before)


def recorder():
    """A backend that runs graphs as they are, and the graphs that it was given."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    return backend, graphs


def names(graph):
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled(backend):
    fast = optimize_for_inference(small_network())
    compiled = torch.compile(fast, backend=backend, fullgraph=True)
    for shape in ((2, 3, 16, 12), (5, 3, 16, 12), (2, 3, 24, 12), (1, 3, 24, 12), (2, 3, 16, 12)):
        x = pictures(*shape)
        assert_equal(compiled(x), fast(x))


def test_whole_networks_are_one_operator():
    backend, graphs = recorder()
    fast = optimize_for_inference(small_network())
    torch.compile(fast, backend=backend, fullgraph=True)(pictures(2, 3, 16, 12))
    assert [name for name in names(graphs[0]) if "built-in" not in name] == ["dicenet.run_plan"]


def test_one_compilation_for_each_size_and_none_for_the_number_of_images():
    backend, graphs = recorder()
    fast = optimize_for_inference(small_network())
    compiled = torch.compile(fast, backend=backend, fullgraph=True, dynamic=True)
    for shape in ((2, 3, 16, 12), (5, 3, 16, 12), (4, 3, 20, 13), (9, 3, 20, 13), (3, 3, 16, 12)):
        assert_equal(compiled(pictures(*shape)), fast(pictures(*shape)))
    assert len(graphs) == 2


def test_free_number_of_images():
    backend, graphs = recorder()
    fast = optimize_for_inference(small_network())
    compiled = torch.compile(fast, backend=backend, fullgraph=True)
    for images in (3, 8, 17):
        x = pictures(images, 3, 16, 12)
        torch._dynamo.mark_dynamic(x, 0)
        assert_equal(compiled(x), fast(x))
    assert len(graphs) == 1


def test_plans_between_other_modules():
    torch.manual_seed(0)
    net = nn.Sequential(
        *(ConvNormAct(3, 20, 3, stride=2), DiCEUnit(20, 20, (8, 6)), ConvNormAct(20, 18, 1)),
        nn.GELU(),
        *(ConvNormAct(18, 18, 1), DiCEUnit(18, 18, (8, 6)), ConvNormAct(18, 5, 1)),
    )
    fast = optimize_for_inference(unsettle(net))
    compiled = torch.compile(fast, backend="aot_eager", fullgraph=True)
    for shape in ((2, 3, 16, 12), (1, 3, 25, 12)):
        assert_close(compiled(pictures(*shape)), fast(pictures(*shape)), 1e-6)


class Branching(nn.Module):
    """Cannot be traced, because it counts; the compiler can."""

    def __init__(self):
        super().__init__()
        self.body = small_network()

    def forward(self, x):
        return self.body(x) if x.shape[0] < 100 else x


def test_children_of_what_cannot_be_traced():
    fast = optimize_for_inference(Branching())
    compiled = torch.compile(fast, backend="aot_eager", fullgraph=True)
    x = pictures(2, 3, 16, 12)
    assert_equal(compiled(x), fast(x))


def scaled(fast, factor):
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.mul_(factor)
    return fast


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda fast: optimize_for_inference(fast.network)])
def test_copies_do_not_share_compiled_plans(copied):
    fast = optimize_for_inference(small_network())
    x = pictures(2, 3, 16, 12)
    other = scaled(copied(copy.deepcopy(fast)), 1.1)
    expected = [fast(x), other(x)]
    assert not torch.equal(*expected)
    for net, its in zip((fast, other, fast), (*expected, expected[0]), strict=True):
        assert_equal(torch.compile(net, backend="aot_eager", fullgraph=True)(x), its)


def test_copies_of_parts_do_not_share_compiled_plans():
    fast = optimize_for_inference(small_network())
    part = getattr(fast.runner, network._PREFIX + "0")
    other = scaled(copy.deepcopy(part), 1.1)
    x = pictures(2, 3, 16, 12)
    with torch.no_grad():
        for net in (part, other, part):
            assert_close(torch.compile(net, backend="eager", fullgraph=True)(x), by_reference(net, x))


def test_a_part_that_runs_its_modules():
    net = unsettle(nn.Sequential(*(ConvNormAct(6, 6, 1) for _ in range(3)), nn.Flatten()))
    fast = optimize_for_inference(net)
    x = pictures(2, 6, 4, 3)
    assert_close(torch.compile(fast, backend="aot_eager", fullgraph=True)(x), by_reference(net, x))


@pytest.mark.parametrize("strict", [False, True])
def test_exported_programs_hold_standard_operators(strict):
    fast = optimize_for_inference(small_network())
    x = pictures(2, 3, 16, 12)
    expected = fast(x)
    program = torch.export.export(fast, (x,), strict=strict)
    namespaces = {node.target.namespace for node in program.graph.nodes if hasattr(node.target, "namespace")}
    assert namespaces == {"aten"}
    assert_close(program.module()(x), expected)


def test_exported_with_a_free_number_of_images():
    fast = optimize_for_inference(small_network())
    images = torch.export.Dim("images", min=1, max=64)
    program = torch.export.export(fast, (pictures(2, 3, 16, 12),), dynamic_shapes=({0: images},))
    x = pictures(5, 3, 16, 12)
    assert_close(program.module()(x), fast(x))
