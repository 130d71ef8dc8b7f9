"""The networks that there are, with their cost, and the official checkpoints."""

from collections.abc import Iterable
from typing import Any

import timm

from dicenet.analysis.count import count_model
from dicenet.models.registry import ROWS
from dicenet.weights import catalogue


def network_rows(img_size: int | None = None, names: Iterable[str] = tuple(ROWS)) -> list[dict[str, Any]]:
    """One row per network: name, parameters and multiply-adds (counted now), official weights and their top-1.

    Args:
        img_size: side of the picture; each network's own if not given.
        names: of the networks.
    """
    rows = []
    for name in names:
        cost = count_model(name, **({} if img_size is None else {"img_size": img_size}))
        entry = catalogue.find(f"{name}.{catalogue.IN1K_TAG}")
        rows.append(
            {
                "name": name,
                "img_size": img_size or timm.get_pretrained_cfg(name).input_size[-1],
                "parameters": cost.parameters,
                "macs": cost.macs,
                "macs_official": cost.macs_official,
                "weights": entry.name if entry else None,
                "published_metric": entry.metric if entry else None,
            }
        )
    return rows


def checkpoint_rows() -> list[dict[str, Any]]:
    """One row per official checkpoint: name, task, input size, published metric and cost, loadable, address."""
    keys = ("name", "task", "input_size", "metric", "cost", "loadable", "url", "licence", "git_blob_sha1")
    return [{key: getattr(entry, key) for key in keys} for entry in catalogue.entries()]
