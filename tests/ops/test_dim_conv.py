"""``dim_conv`` against plain loops in float64 that follow the paper's definition index by index."""

import itertools
import os
import subprocess
import sys

import pytest
import torch

import dicenet
from dicenet.ops import Backend, available_backends, dim_conv, reference, register_backend, use_backend
from dicenet.ops import dim_conv as public


def loops(x, wd, wh, ww, dilation):
    """Every output value from its definition; zero outside the map on every edge."""
    n, c, h, w = x.shape
    reach = wd.shape[-1] // 2
    out = torch.zeros(n, 3 * c, h, w, dtype=torch.float64)
    offsets = list(itertools.product(range(-reach, reach + 1), repeat=2))

    def at(image, channel, row, column):
        inside = 0 <= channel < c and 0 <= row < h and 0 <= column < w
        return x[image, channel, row, column].item() if inside else 0.0

    depth, height, width = dilation
    for image, channel, row, column in itertools.product(range(n), range(c), range(h), range(w)):
        sums = [0.0, 0.0, 0.0]
        for i, j in offsets:
            k = (i + reach, j + reach)
            sums[0] += wd[(channel, 0, *k)].item() * at(image, channel, row + depth * i, column + depth * j)
            sums[1] += wh[(row, 0, *k)].item() * at(image, channel + height * i, row, column + height * j)
            sums[2] += ww[(column, 0, *k)].item() * at(image, channel + width * j, row + width * i, column)
        for branch in range(3):
            out[image, branch * c + channel, row, column] = sums[branch]
    return out


def case(n, c, h, w, k, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((n, c, h, w), (c, 1, k, k), (h, 1, k, k), (w, 1, k, k))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("size", [(3, 4, 5), (5, 3, 2), (1, 1, 1), (2, 6, 1)])
def test_equals_loops(size, kernel_size):
    arguments = case(2, *size, kernel_size)
    torch.testing.assert_close(dim_conv(*arguments), loops(*arguments, (1, 1, 1)))


@pytest.mark.parametrize("dilation", [(2, 1, 1), (1, 2, 1), (1, 1, 2), (1, 2, 3)])
def test_equals_loops_dilated(dilation):
    arguments = case(1, 5, 4, 6, 3)
    torch.testing.assert_close(dim_conv(*arguments, dilation), loops(*arguments, dilation))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients(memory_format):
    arguments = case(2, 3, 4, 5, 3)
    arguments[0] = arguments[0].contiguous(memory_format=memory_format)
    assert torch.autograd.gradcheck(dim_conv, [a.requires_grad_() for a in arguments])
    assert torch.autograd.gradgradcheck(dim_conv, [a.requires_grad_() for a in case(1, 2, 2, 3, 3)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_types(dtype):
    arguments = case(2, 8, 7, 6, 3, dtype)
    expected = loops(*[a.double() for a in arguments], (1, 1, 1))
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(dim_conv(*arguments).double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: [a[0][0], *a[1:]], "shape"),
        (lambda a: [a[0], a[1], a[3], a[2]], "height kernels for a map"),
        (lambda a: [a[0], a[1][:2], *a[2:]], "depth kernels for a map"),
        (lambda a: [a[0], *[w[..., :2, :2] for w in a[1:]]], "odd kernel size"),
        (lambda a: [a[0], a[1], a[2][..., :1, :1], a[3]], "weight_height of shape"),
    ],
)
def test_wrong_shapes_are_refused(change, message):
    with pytest.raises(dicenet.ConfigError, match=message):
        dim_conv(*change(case(1, 3, 4, 5, 3)))


@pytest.fixture
def doubled():
    """A registered implementation that can be told from the reference, for dilation 1."""
    before = dict(public.__globals__["_BACKENDS"])
    register_backend(
        "doubled",
        Backend(lambda *arguments: 2 * reference.dim_conv(*arguments), lambda x, w, dilation: dilation == (1, 1, 1)),
    )
    yield
    public.__globals__["_BACKENDS"].clear()
    public.__globals__["_BACKENDS"].update(before)


@pytest.mark.usefixtures("doubled")
def test_faster_backend_is_chosen_where_it_can_be():
    arguments = case(1, 3, 4, 5, 3)
    expected = reference.dim_conv(*arguments)
    assert available_backends()[0] == "doubled"
    assert available_backends()[-1] == "reference"
    torch.testing.assert_close(dim_conv(*arguments), 2 * expected)
    dilated = reference.dim_conv(*arguments, (1, 2, 1))
    torch.testing.assert_close(dim_conv(*arguments, (1, 2, 1)), dilated)
    with use_backend("reference"):
        torch.testing.assert_close(dim_conv(*arguments), expected)
    torch.testing.assert_close(dim_conv(*arguments), 2 * expected)


@pytest.mark.usefixtures("doubled")
def test_export_takes_the_reference():
    class Module(torch.nn.Module):
        def forward(self, *arguments):
            return dim_conv(*arguments)

    arguments = tuple(case(1, 3, 4, 5, 3))
    program = torch.export.export(Module(), arguments)
    torch.testing.assert_close(program.module()(*arguments), reference.dim_conv(*arguments))


def test_unknown_backend():
    message = "'cuda' is not available here: choose one of auto, (cpp, )?reference"
    with pytest.raises(dicenet.ConfigError, match=message), use_backend("cuda"):
        pass


@pytest.mark.parametrize(("name", "outcome"), [("reference", "fine"), ("nonsense", "ConfigError")])
def test_environment_variable(name, outcome):
    program = (
        "import torch, dicenet\n"
        "a = [torch.ones(1, 2, 3, 4)] + [torch.ones(n, 1, 3, 3) for n in (2, 3, 4)]\n"
        "try:\n    dicenet.ops.dim_conv(*a); print('fine')\n"
        "except dicenet.ConfigError as error:\n    print('ConfigError', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "DICENET_BACKEND": name}, capture_output=True, text=True
    )
    assert done.stdout.startswith(outcome), done.stderr
