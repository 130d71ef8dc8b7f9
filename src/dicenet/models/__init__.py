"""The networks, one file per family. Importing this registers them with timm."""

from dicenet.models import registry

__all__ = ["registry"]
