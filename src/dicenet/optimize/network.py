"""``optimize_for_inference``: a trained network, traced, and what a plan knows of it run as plans."""

import copy
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.infra.partitioner import CapabilityBasedPartitioner
from torch.fx.passes.operator_support import OperatorSupportBase

from dicenet.errors import ConfigError
from dicenet.ops.dim_conv import uses_cpp
from dicenet.optimize.lowering import LEAVES, knows, lower
from dicenet.optimize.steps import Plan

#: A part of fewer known nodes is not worth a plan: its maps are copied in and out.
FEWEST_NODES = 3


class _Tracer(fx.Tracer):
    """Enters everything but the modules that plans know, and torch's own."""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return isinstance(module, LEAVES) or super().is_leaf_module(module, qualified_name)


class _Known(OperatorSupportBase):
    def is_node_supported(self, submodules: Any, node: fx.Node) -> bool:
        return knows(node, dict(submodules))


class PlannedPart(nn.Module):
    """A part of a network that runs as a plan: one for each input size, made when that size comes first.

    Inputs that plans do not take (not float32, not on the CPU), and the reference backend, run the part's modules.
    """

    def __init__(self, part: fx.GraphModule) -> None:
        super().__init__()
        self.part = part
        self._plans: dict[tuple[torch.Size, ...], Plan] = {}
        output = next(node for node in part.graph.nodes if node.op == "output").args[0]
        self._single = not isinstance(output, (tuple, list))

    def plan_for(self, shapes: tuple[torch.Size, ...]) -> Plan:
        """The plan for inputs of these shapes; the number of images does not matter."""
        sizes = tuple(shape[1:] for shape in shapes)
        if sizes not in self._plans:
            with torch.no_grad():
                self._plans[sizes] = lower(self.part, list(shapes))
        return self._plans[sizes]

    def forward(self, *inputs: Tensor) -> Any:
        """The part's outputs."""
        if not uses_cpp(*inputs) or any(x.dim() != 4 for x in inputs):
            return self.part(*inputs)
        results = _run_part(self, inputs)
        return results[0] if self._single else tuple(results)

    def __getstate__(self) -> dict[str, Any]:
        # plans are made again where they are needed
        return {**self.__dict__, "_plans": {}}


@torch.compiler.disable
def _run_part(part: PlannedPart, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    return part.plan_for(tuple(x.shape for x in inputs)).run(inputs)


class OptimizedNetwork(nn.Module):
    """A network for inference only; made by :func:`optimize_for_inference`.

    ``network`` is the copy of the original that it was made from; all other attributes are looked up there.
    ``state_dict()`` is the original's. Pickling keeps the network and drops the plans, which are made again on
    first use.

    Raises:
        ConfigError: for training mode, ``load_state_dict`` and changes of the classifier or the sizes: the plans
            hold folded copies of the weights, so change the original and optimize it again.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.runner = _planned(network)
        nn.Module.train(self, False)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Any:
        """What the network gives, without gradients."""
        with torch.no_grad():
            return self.runner(x)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("network", "runner"):
                raise
            return getattr(super().__getattr__("network"), name)

    def train(self, mode: bool = True) -> "OptimizedNetwork":
        """Evaluation mode only."""
        if mode:
            _refuse("trained")
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The original network's."""
        return self.network.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: see the class."""
        _refuse("given other weights")

    def reset_classifier(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: see the class."""
        _refuse("given another classifier")

    def rebase(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: see the class."""
        _refuse("rebased")

    def __reduce__(self) -> tuple[Any, ...]:
        return OptimizedNetwork, (self.network,)


def _refuse(what: str) -> NoReturn:
    raise ConfigError(f"an optimized network cannot be {what}: change the original and optimize it again")


def _has_work(module: nn.Module) -> bool:
    return any(isinstance(child, nn.Conv2d) for child in module.modules())


def _planned(module: nn.Module) -> nn.Module:
    """The module with the known parts of its graph as plans; where it cannot be traced, its children instead."""
    module = copy.copy(module)
    try:
        graph = _Tracer().trace(module)
    except Exception:  # tracing runs the module's own code with stand-ins, which may fail in any way
        module._modules = {
            name: _planned(child) if child is not None and _has_work(child) else child
            for name, child in module._modules.items()
        }
        return module
    traced = fx.GraphModule(module, graph)
    partitioner = CapabilityBasedPartitioner(
        traced, _Known(), allows_single_node_partition=True, non_compute_ops=["_operator.getitem"]
    )
    partitions = [part for part in partitioner.propose_partitions() if len(part.nodes) >= FEWEST_NODES]
    fused = partitioner.fuse_partitions(partitions)
    fused.delete_all_unused_submodules()
    for name, child in list(fused.named_children()):
        if name.startswith("fused_"):
            setattr(fused, name, PlannedPart(child))  # type: ignore[arg-type]
    return fused


def optimize_for_inference(model: nn.Module) -> OptimizedNetwork:
    """The network with everything that can be fused, fused: the same outputs within 1e-4, several times faster.

    Norms are folded into convolutions, and the parts of the network that plans know (DiCE units, 1x1 and
    depth-wise convolutions, pooling, shuffles) each run in one call over one block of memory. The rest stays as
    modules between them. There is one plan for each input size, made on first use; one network may be used by
    several threads at a time.

    Args:
        model: any DiCENet, a network made of DiCE units, or its feature pyramid. It is copied and not changed.

    Returns:
        A module for inference on the CPU in float32; other inputs run the network's own modules.

    Raises:
        ConfigError: the model is no module.
    """
    if isinstance(model, OptimizedNetwork):
        return model
    if not isinstance(model, nn.Module):
        raise ConfigError(f"optimize_for_inference takes a network, not {type(model).__name__}")
    return OptimizedNetwork(copy.deepcopy(model).eval())
