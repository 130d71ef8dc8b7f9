"""The ways in which a network can be run: one row for each, in a table for inference and one for training."""

import contextlib
import copy
import io
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dicenet.ops import available_backends, use_backend


class Inputs(NamedTuple):
    """What a network is given: the same pictures in both memory formats, and their classes."""

    pictures: Tensor
    channels_last: Tensor
    target: Tensor


class Skipped(Exception):
    """A mode cannot be had here; the message says why."""


Prepare = Callable[[nn.Module, Inputs], Callable[[], Tensor]]


class Mode(NamedTuple):
    """A way to run a network.

    Attributes:
        name: in options and results.
        text: what it is.
        prepare: makes what is timed of a network, which it may change, and its inputs.
        ours: whether it is for our networks only (True), for others only (False) or for all (None).
        pytorch: whether it counts when the best mode of PyTorch is chosen.
    """

    name: str
    text: str
    prepare: Prepare
    ours: bool | None = None
    pytorch: bool = True

    def is_for(self, ours: bool) -> bool:
        """Whether there is such a mode for one of our networks, or of others."""
        return self.ours is None or self.ours == ours


def _in_channels_last(net: nn.Module) -> nn.Module:
    return net.to(memory_format=torch.channels_last)


def _needs_fast_backend() -> None:
    if available_backends() == ("reference",):
        raise Skipped("the reference is the only backend here")


# -- inference


def _eager(net: nn.Module, inputs: Inputs) -> Callable[[], Tensor]:
    return partial(net, inputs.pictures)


def _reference(net: nn.Module, inputs: Inputs) -> Callable[[], Tensor]:
    _needs_fast_backend()

    def call() -> Tensor:
        with use_backend("reference"):
            return net(inputs.pictures)

    return call


def _channels_last(net: nn.Module, inputs: Inputs) -> Callable[[], Tensor]:
    return partial(_in_channels_last(net), inputs.channels_last)


def _compile(net: nn.Module, inputs: Inputs) -> Callable[[], Tensor]:
    import torch._dynamo
    import torch._inductor.config

    call = partial(torch.compile(_in_channels_last(net), dynamic=False), inputs.channels_last)
    # networks of one family share their code, whose recompilations are limited; beyond, it would silently run eager
    limits = {"recompile_limit": 1000, "accumulated_recompile_limit": 10_000, "fail_on_recompile_limit_hit": True}
    with (
        torch._dynamo.config.patch(limits),
        torch._inductor.config.patch(freezing=True),
        torch.inference_mode(),
    ):
        call()
    return call


def _freeze(net: nn.Module, inputs: Inputs) -> Callable[[], Tensor]:
    with torch.no_grad():
        traced = torch.jit.trace(_in_channels_last(net), inputs.channels_last, check_trace=False)
        return partial(torch.jit.freeze(traced), inputs.channels_last)


def _optimized(net: nn.Module, inputs: Inputs) -> Callable[[], Tensor]:
    optimize_for_inference = import_module("dicenet.optimize").optimize_for_inference
    return partial(optimize_for_inference(net), inputs.channels_last)


def _onnxruntime(net: nn.Module, inputs: Inputs) -> Callable[[], Tensor]:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise Skipped(f"not installed: {', '.join(missing)}")
    if inputs.pictures.device.type != "cpu":
        raise Skipped("ONNX Runtime is timed on the CPU only")
    file = io.BytesIO()
    with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        program = torch.onnx.export(net, (inputs.pictures,), dynamo=True, verbose=False)
        assert program is not None
        file.write(program.model_proto.SerializeToString())
    runtime = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    # its threads must not spin while the next network is timed
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = runtime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: inputs.pictures.numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


INFERENCE = (
    Mode("eager", "as it is, NCHW", _eager),
    Mode("reference", "eager, without any fast path of ours", _reference, ours=True),
    Mode("channels_last", "eager, channels-last", _channels_last),
    Mode("compile", "torch.compile, inductor with frozen weights, channels-last", _compile),
    Mode("freeze", "torch.jit.trace and torch.jit.freeze, channels-last", _freeze),
    Mode("optimized", "dicenet.optimize_for_inference, channels-last", _optimized, ours=True),
    Mode("onnxruntime", "ONNX Runtime, exported by torch.onnx", _onnxruntime, pytorch=False),
)


# -- training

#: So small that the weights stay what they are, however often a batch is repeated: the work is the same.
_LR = 1e-6


def _training_step(channels_last: bool, backend: str) -> Prepare:
    def prepare(net: nn.Module, inputs: Inputs) -> Callable[[], Tensor]:
        if backend == "fast":
            _needs_fast_backend()
        pictures = inputs.channels_last if channels_last else inputs.pictures
        net = (_in_channels_last(net) if channels_last else net).train()
        optimiser = torch.optim.SGD(net.parameters(), lr=_LR, momentum=0.9)

        def step() -> Tensor:
            with use_backend("auto" if backend == "fast" else backend):
                loss = F.cross_entropy(net(pictures), inputs.target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            return loss.detach()

        return step

    return prepare


TRAINING = (
    Mode("nchw", "NCHW", _training_step(False, "auto"), ours=False),
    Mode("channels_last", "channels-last", _training_step(True, "auto"), ours=False),
    Mode("reference", "reference backend, NCHW", _training_step(False, "reference"), ours=True),
    Mode("reference_channels_last", "reference backend, channels-last", _training_step(True, "reference"), ours=True),
    Mode("fast", "fastest backend, NCHW", _training_step(False, "fast"), ours=True),
    Mode("fast_channels_last", "fastest backend, channels-last", _training_step(True, "fast"), ours=True),
)


# -- what is right


def inference_reference(net: nn.Module, inputs: Inputs) -> Tensor:
    """The network's own output: eager, in its own memory format, without any fast path of ours."""
    with torch.inference_mode(), use_backend("reference"):
        return net(inputs.pictures)


def training_reference(net: nn.Module, inputs: Inputs) -> Tensor:
    """The loss of the first step in the network's own memory format, without any fast path of ours."""
    return _training_step(False, "reference")(copy.deepcopy(net), inputs)()
