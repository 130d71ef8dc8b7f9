"""From pictures to maps of classes: whole, or window by window."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dicenet.errors import ConfigError

MODES = ("whole", "sliding")
#: Part of a window's side that the next one is further: a third is seen twice.
STRIDE = 2 / 3


def check_mode(mode: str) -> str:
    """The mode, unchanged. Raises ConfigError for others than :data:`MODES`."""
    if mode not in MODES:
        raise ConfigError(f"mode {mode!r} is unknown: choose one of {', '.join(MODES)}")
    return mode


def _starts(side: int, window: int) -> list[int]:
    """Where windows begin along a side: evenly, the last one ends with it."""
    if side <= window:
        return [0]
    step = max(1, int(window * STRIDE))
    return [*range(0, side - window, step), side - window]


def _windows(side: int, window: int) -> Iterator[tuple[int, int]]:
    for start in _starts(side, window):
        yield start, min(side, start + window)


def sliding_labels(net: nn.Module, picture: Tensor, window: tuple[int, int]) -> Tensor:
    """Classes of a picture at its own size; where windows overlap, their mean probability decides.

    Memory does not grow with the picture's height: the sums of one band of windows are kept at a time.

    Args:
        net: pictures to logits.
        picture: (C, H, W), normalised.
        window: (height, width).

    Returns:
        (H, W), 8 bits.
    """
    height, width = picture.shape[1:]
    labels = torch.empty(height, width, dtype=torch.uint8, device=picture.device)
    bands = list(_windows(height, window[0]))
    sums: Tensor | None = None
    for index, (top, bottom) in enumerate(bands):
        for left, right in _windows(width, window[1]):
            part = picture[None, :, top:bottom, left:right].contiguous(memory_format=torch.channels_last)
            chances = net(part)[0].float().softmax(0)
            if sums is None:
                sums = chances.new_zeros(len(chances), bottom - top, width)
            sums[:, :, left:right] += chances
        assert sums is not None
        done = (bands[index + 1][0] if index + 1 < len(bands) else height) - top
        labels[top : top + done] = sums[:, :done].argmax(0)
        if index + 1 < len(bands):
            sums = torch.cat([sums[:, done:], torch.zeros_like(sums[:, :done])], dim=1)
    return labels
