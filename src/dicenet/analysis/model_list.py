"""The networks that there are, with their cost, and the official checkpoints."""

from typing import Any

from dicenet.analysis.count import count_model
from dicenet.models.dicenet import WIDTHS
from dicenet.weights import catalogue


def network_rows(img_size: int = 224) -> list[dict[str, Any]]:
    """One row per network: name, parameters and multiply-adds (counted now), official weights and their top-1."""
    rows = []
    for width in WIDTHS:
        cost = count_model(width.name, img_size=img_size)
        entry = catalogue.find(f"{width.name}.{catalogue.IN1K_TAG}")
        rows.append(
            {
                "name": width.name,
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
