"""``dicenet benchmark WHAT``."""

from dicenet.analysis.speed import measure_latency, measure_training
from dicenet.cli.run import Command

COMMANDS = {
    "latency": Command(measure_latency, resumable=True),
    "training": Command(measure_training, resumable=True),
}
