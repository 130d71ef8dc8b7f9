"""How fast networks are, compared fairly: latency, and the step of training."""

from dicenet.analysis.speed.latency import measure_latency
from dicenet.analysis.speed.training import measure_training

__all__ = ["measure_latency", "measure_training"]
