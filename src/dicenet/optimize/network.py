"""``optimize_for_inference``: a trained network, traced, and what a plan knows of it run as plans."""

import copy
import inspect
import itertools
import operator
import threading
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.infra.partitioner import CapabilityBasedPartitioner
from torch.fx.passes.operator_support import OperatorSupportBase

from dicenet.errors import ConfigError
from dicenet.layers.conv_norm_act import hooked
from dicenet.ops.dim_conv import uses_cpp
from dicenet.optimize.lowering import LEAVES, NotPlannedError, Sizes, knows, lower
from dicenet.optimize.steps import Plan

#: A part of fewer known nodes is not worth a plan: its maps are copied in and out.
FEWEST_NODES = 3
#: Plans that a part keeps, of the sizes used last: each holds all its weights.
MOST_PLANS = 16

_numbers = itertools.count()
_planning = threading.Lock()
_PREFIX = "_dicenet_plan_"


class _Tracer(fx.Tracer):
    """Enters everything but the modules that plans know, torch's own, and those that somebody listens to."""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return isinstance(module, LEAVES) or hooked(module) or super().is_leaf_module(module, qualified_name)


class _Known(OperatorSupportBase):
    def is_node_supported(self, submodules: Any, node: fx.Node) -> bool:
        modules = dict(submodules)
        # the partitioner takes every getitem into the part that it reads from, also one that no plan knows
        items = [user for user in node.users if user.target is operator.getitem]
        return knows(node, modules) and all(knows(item, modules) for item in items)


class PlannedPart(nn.Module):
    """A part of a network that runs as a plan: one for each input size, made when that size comes first.

    The plans of the last ``MOST_PLANS`` sizes are kept.

    Inputs that plans do not take (not float32, not on the CPU), and the reference backend, run the part's modules.
    """

    def __init__(self, part: fx.GraphModule) -> None:
        super().__init__()
        self.part = part
        self._plans: dict[Sizes, Plan | None] = {}
        self._number = next(_numbers)
        output = next(node for node in part.graph.nodes if node.op == "output").args[0]
        self._single = not isinstance(output, (tuple, list))

    @property
    def plans(self) -> list[Plan]:
        """Those made until now."""
        return [plan for plan in self._plans.values() if plan is not None]

    # compiled code holds the plan itself; that it is this part's is what it checks the number for
    @torch.compiler.assume_constant_result
    def plan_for(self, number: int, sizes: Sizes) -> Plan | None:
        """The plan for inputs of these sizes, None where only the modules take them. ``number``: the part's own."""
        with _planning:
            if sizes in self._plans:
                plan = self._plans.pop(sizes)
            else:
                with torch.inference_mode(False), torch.no_grad():
                    try:
                        plan = lower(self.part, sizes)
                    except NotPlannedError:
                        plan = None
            self._plans[sizes] = plan  # as the one used last
            if len(self._plans) > MOST_PLANS:
                del self._plans[next(iter(self._plans))]
            return plan

    def forward(self, *inputs: Any) -> Any:
        """The part's outputs."""
        if not _are_maps(inputs):
            return self.part(*inputs)
        sizes: Any = tuple(x.shape[1:] for x in inputs)
        if torch.compiler.is_compiling():
            # a plan is for one size: compiled code is too, while the number of images may stay free
            sizes = tuple([tuple([operator.index(side) for side in size]) for size in sizes])
        plan = self.plan_for(self._number, sizes)
        if plan is None:
            return self.part(*inputs)
        results = plan.run(inputs)
        return results[0] if self._single else tuple(results)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # a copy has weights of its own, and makes its own plans
        super().__setstate__({**state, "_plans": {}, "_number": next(_numbers)})


def _are_maps(inputs: tuple[Any, ...]) -> bool:
    """Whether a plan takes these: maps of float32 in the CPU's memory, of equally many images."""
    return (
        all(isinstance(x, Tensor) and x.dim() == 4 for x in inputs)
        and uses_cpp(*inputs)
        and all(x.shape[0] == inputs[0].shape[0] for x in inputs[1:])
    )


class OptimizedNetwork(nn.Module):
    """A network for inference only; made by :func:`optimize_for_inference`.

    ``network`` is the copy of the original that it was made from; all other attributes are looked up there.
    ``state_dict()`` is the original's. Pickling keeps the network and drops the plans, which are made again on
    first use. A plan holds a packed copy of its weights: changes of ``network`` and hooks that are added to its modules
    afterwards do not reach it. Hooks that the original had are called.

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

    def forward(self, x: Any, *more: Any, **named: Any) -> Any:
        """What the network gives, without gradients."""
        if torch.compiler.is_exporting():  # as it was, and without switches of gradients, which it needs none of
            return self.network(x, *more, **named)
        with torch.no_grad():
            return self.runner(x, *more, **named)

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


def _has_options(module: nn.Module) -> bool:
    """Whether calls of a module may differ in what they pass: a trace would fix one of them."""
    parameters = inspect.signature(module.forward).parameters.values()
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(p.default is not p.empty or p.kind in several for p in parameters)


def _has_work(module: nn.Module) -> bool:
    return any(isinstance(child, nn.Conv2d) for child in module.modules())


def _planned(module: nn.Module) -> nn.Module:
    """The module with the known parts of its graph as plans; where it cannot be traced, its children instead."""
    if isinstance(module, (*LEAVES, nn.Conv2d)) or not _has_work(module):
        return module
    module = copy.copy(module)
    try:
        if hooked(module) or _has_options(module):  # a trace would lose who listens to it, or what calls pass
            raise fx.proxy.TraceError
        graph = _Tracer().trace(module)
    except Exception:  # tracing runs the module's own code with stand-ins, which may fail in any way
        module._modules = {
            name: child if child is None else _planned_child(child) for name, child in module._modules.items()
        }
        return module
    return _with_plans(fx.GraphModule(module, graph))


def _planned_child(child: nn.Module) -> nn.Module:
    """A child that runs its plans when it is called, and is otherwise what its owner knows."""
    planned = _planned(child)
    if not isinstance(planned, fx.GraphModule):
        return planned
    child = copy.copy(child)
    child.__dict__["forward"] = planned.forward
    return child


def _with_plans(traced: fx.GraphModule) -> fx.GraphModule:
    partitioner = CapabilityBasedPartitioner(
        traced, _Known(), allows_single_node_partition=True, non_compute_ops=["_operator.getitem"]
    )
    partitions = [part for part in partitioner.propose_partitions() if len(part.nodes) >= FEWEST_NODES]
    fused = partitioner.fuse_partitions(partitions, prefix=_PREFIX)
    fused.delete_all_unused_submodules()
    for name, child in list(fused.named_children()):
        if name.startswith(_PREFIX):
            setattr(fused, name, PlannedPart(child))  # type: ignore[arg-type]
    return fused


def optimize_for_inference(model: nn.Module) -> OptimizedNetwork:
    """The network with everything that can be fused, fused: the same outputs within 1e-4, several times faster.

    Norms are folded into convolutions, and the parts of the network that plans know (DiCE units, 1x1 and
    depth-wise convolutions, pooling, shuffles) each run in one call over one block of memory. The rest stays as
    modules between them. There is one plan for each input size, made on first use, and of the last 16 sizes each is
    kept, with its weights; one network may be used by several threads at a time.

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
