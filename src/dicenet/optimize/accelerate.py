"""``accelerate``: a DiCENet of another package in, the same weights and outputs, faster."""

import torch
from torch import nn

from dicenet.errors import WeightsError
from dicenet.models.dicenet import DiCENet
from dicenet.models.loading import load, load_pytorchcv
from dicenet.optimize.network import OptimizedNetwork, optimize_for_inference
from dicenet.weights.formats import recognise
from dicenet.weights.pytorchcv import PYTORCHCV

TOLERANCE = 1e-4


def _ours(model: nn.Module) -> DiCENet:
    """Our network with a foreign one's weights; its names and shapes say which width and sizes."""
    state = model.state_dict()
    if recognise(state).format == PYTORCHCV.name:
        return load_pytorchcv(state)  # type: ignore[return-value]
    return load(state)  # type: ignore[return-value]


@torch.no_grad()
def accelerate(model: nn.Module) -> OptimizedNetwork:
    """A pytorchcv or EdgeNets DiCENet, made fast: the same weights, and outputs within 1e-4.

    Both are run once on a random picture of the network's size and compared, so that nothing else is returned
    silently than what was given.

    Args:
        model: the classifier, as its package made it. It is not changed.

    Returns:
        See :func:`dicenet.optimize_for_inference`.

    Raises:
        WeightsError: the model is no DiCENet that we know, or its outputs differ from ours.
    """
    if isinstance(model, (DiCENet, OptimizedNetwork)):
        return optimize_for_inference(model)
    fast = optimize_for_inference(_ours(model))
    like = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    size = (1, fast.in_chans, *fast.trained_size)
    picture = torch.randn(size, generator=generator, dtype=torch.float32, device="cpu")
    modes = {module: module.training for module in model.modules()}
    try:
        expected = model.eval()(picture.to(like)).float().cpu()
    finally:
        for module, training in modes.items():
            module.training = training
    off = (fast(picture) - expected).abs().max() / expected.abs().max().clamp_min(1e-12)
    if not off <= TOLERANCE:
        raise WeightsError(
            f"the model's outputs differ from dicenet's with the same weights by {off:.1e} of the largest"
        )
    return fast
