"""Which networks are compared, where they come from, and what accuracy was published for them."""

import contextlib
import importlib
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import timm
import torch
import torchvision
from torch import Tensor, nn

from dicenet.analysis.count import Cost, count
from dicenet.errors import ConfigError, nearest
from dicenet.models.loading import load_pytorchcv
from dicenet.models.registry import ROWS

OURS = "dicenet"
CLASSES = 1000
_PAPER = "DiCENet paper, 300 epochs"
_README = "EdgeNets, released weights"
_TORCHVISION = "torchvision, IMAGENET1K_V"
_TIMM = "timm, results-imagenet.csv, "


class Published(NamedTuple):
    """A network whose accuracy was published: top-1 on ImageNet's validation part in per cent, and by whom."""

    name: str
    library: str
    top1: float
    source: str


#: Highest figure of each source for pictures of 224x224. The first of a name is the one that the name means.
PUBLISHED = (
    Published("dicenet_010", OURS, 43.1, _PAPER),
    Published("dicenet_020", OURS, 48.2, _PAPER),
    Published("dicenet_050", OURS, 54.04, _README),
    Published("dicenet_075", OURS, 65.1, _PAPER),
    Published("dicenet_100", OURS, 68.5, _PAPER),
    Published("dicenet_125", OURS, 69.3, _PAPER),
    Published("dicenet_150", OURS, 72.0, _PAPER),
    Published("dicenet_175", OURS, 70.26, _README),
    Published("dicenet_200", OURS, 70.99, _README),
    Published("dicenet_240", OURS, 75.7, _PAPER),
    Published("dicenet_w2", "pytorchcv", 70.99, f"{_README} of the same network"),
    Published("shufflenet_v2_x1_5", "torchvision", 72.996, f"{_TORCHVISION}1"),
    Published("mobilenet_v2", "torchvision", 72.154, f"{_TORCHVISION}2"),
    Published("mobilenet_v3_large", "torchvision", 75.274, f"{_TORCHVISION}2"),
    Published("mnasnet1_0", "torchvision", 73.456, f"{_TORCHVISION}1"),
    Published("mobilenetv4_conv_small", "timm", 73.8, "MobileNetV4 paper"),
    Published("mixnet_s", "timm", 75.994, f"{_TIMM}mixnet_s.ft_in1k"),
    Published("fbnetc_100", "timm", 75.13, f"{_TIMM}fbnetc_100.rmsp_in1k"),
)
_WITH_ACCURACY = {row.name: row for row in PUBLISHED}


def _pytorchcv(name: str) -> Callable[..., nn.Module] | None:
    """A network of pytorchcv by its name; pytorchcv need not be installed."""
    if find_spec("pytorchcv") is None:
        return None
    return getattr(importlib.import_module("pytorchcv.model_provider"), name, None)


class _Library(NamedTuple):
    knows: Callable[[str], bool]
    build: Callable[[str, tuple[int, int]], nn.Module]


def _build_pytorchcv(name: str, size: tuple[int, int]) -> nn.Module:
    build = _pytorchcv(name)
    if build is None:
        raise ConfigError("pytorchcv is not installed: pip install pytorchcv")
    return build(in_size=size, num_classes=CLASSES)


#: In the order in which a name is looked for.
LIBRARIES = {
    OURS: _Library(
        lambda name: name in ROWS,
        lambda name, size: timm.create_model(name, img_size=size),
    ),
    "torchvision": _Library(
        lambda name: name in torchvision.models.list_models(module=torchvision.models),
        lambda name, size: torchvision.models.get_model(name, weights=None),
    ),
    "timm": _Library(timm.is_model, lambda name, size: timm.create_model(name)),
    "pytorchcv": _Library(lambda name: _pytorchcv(name) is not None, _build_pytorchcv),
}


class Network(NamedTuple):
    """One of the networks that are compared.

    Attributes:
        name: in its library.
        library: one of :data:`LIBRARIES`.
        module: the network, in evaluation mode; None if it could not be built.
        cost: for one picture; None if it could not be built.
        why_not: why it could not be built; empty if it could.
        same_weights_as: name of pytorchcv's network that this one of ours has the weights of; else empty.
    """

    name: str
    library: str
    module: nn.Module | None = None
    cost: Cost | None = None
    why_not: str = ""
    same_weights_as: str = ""

    @property
    def ours(self) -> bool:
        """Whether it is one of dicenet's."""
        return self.library == OURS

    @property
    def published(self) -> Published | None:
        """The accuracy that was published for it."""
        row = _WITH_ACCURACY.get(self.name)
        return row if row and row.library == self.library else None


def find_network(name: str) -> Network:
    """Where a network comes from, not built yet: ``name``, or ``library/name``.

    Raises:
        ConfigError: no library has it.
    """
    library, slash, own_name = name.partition("/")
    if slash:
        if library not in LIBRARIES:
            raise ConfigError(f"model {name!r} is of no known library: choose one of {', '.join(LIBRARIES)}")
        known = _WITH_ACCURACY.get(own_name)
        if not LIBRARIES[library].knows(own_name) and not (known and known.library == library):
            raise ConfigError(f"model {name!r} is unknown: {library} has no network of that name here")
        return Network(own_name, library)
    if name in _WITH_ACCURACY:
        return Network(name, _WITH_ACCURACY[name].library)
    for library, known_library in LIBRARIES.items():
        if known_library.knows(name):
            return Network(name, library)
    near = nearest(name, [*_WITH_ACCURACY, *timm.list_models()])
    raise ConfigError(f"model {name!r} is unknown, none of {', '.join(LIBRARIES)} has it{near}")


def find_networks(names: Sequence[str]) -> list[Network]:
    """Where networks come from; ConfigError if one is unknown or given twice."""
    found = [find_network(name) for name in names]
    for network in found:
        if sum(other.name == network.name for other in found) > 1:
            raise ConfigError(f"model {network.name!r} is given twice")
    return found


@torch.no_grad()
def randomise(net: nn.Module, size: tuple[int, int], seed: int) -> None:
    """Give norms and PReLU slopes random values, in place, as training would: initial ones hide errors of folding.

    The statistics of a norm are those of what reaches it from random pictures, then moved at random. So signals neither
    vanish nor explode on their way, and rounding is not magnified.
    """
    generator = torch.Generator().manual_seed(seed)

    def between(low: float, high: float, like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    def calibrate(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        planes = inputs[0].transpose(0, 1).flatten(1)
        variance, mean = torch.var_mean(planes, dim=1, correction=0)
        variance.clamp_(min=0.05 * float(variance.mean()))  # silent channels must not come out as noise
        norm.running_mean.copy_(mean + variance.sqrt() * between(-0.3, 0.3, mean))
        norm.running_var.copy_(variance * between(0.5, 1.5, variance))

    hooks = []
    for module in net.modules():
        if isinstance(module, nn.PReLU):
            module.weight.copy_(between(-0.3, 1.2, module.weight))
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            hooks.append(module.register_forward_pre_hook(calibrate))
            if module.affine:
                module.weight.copy_(between(0.5, 1.5, module.weight))
                module.bias.copy_(between(-0.3, 0.3, module.bias))
    net.eval()(torch.randn(8, 3, *size, generator=generator))
    for hook in hooks:
        hook.remove()


def _built(network: Network, size: tuple[int, int], seed: int) -> Network:
    """The network with random weights; what goes wrong is kept as the reason why it could not be built."""
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # libraries announce changes that are not the user's business here
            torch.manual_seed(seed)
            module = LIBRARIES[network.library].build(network.name, size)
            randomise(module, size, seed)
            return network._replace(module=module, cost=count(module, (3, *size)))
    except Exception as error:
        return network._replace(why_not=reason(error))


def reason(error: BaseException) -> str:
    """An error as one short line."""
    text = " ".join(str(error).split())
    name = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
    return f"{name}{text}"[:300]


def build_networks(names: Sequence[str], size: tuple[int, int], seed: int) -> list[Network]:
    """Build all networks with random weights, seeded.

    Where pytorchcv's form of one of ours is among them, ours gets its weights, so that their outputs can be compared.

    Raises:
        ConfigError: a name is unknown or given twice.
    """
    networks = {network.name: _built(network, size, seed) for network in find_networks(names)}
    for foreign in list(networks.values()):
        if foreign.library == "pytorchcv" and foreign.module is not None:
            _share_weights(foreign.module, foreign.name, networks)
    return list(networks.values())


def _share_weights(foreign: nn.Module, name: str, networks: dict[str, Network]) -> None:
    with contextlib.suppress(Exception):  # not one of ours
        twin: Any = load_pytorchcv(foreign)
        own = networks.get(twin.architecture)
        if own is not None and own.module is not None and own.ours:
            networks[own.name] = own._replace(module=twin.eval(), same_weights_as=name)
