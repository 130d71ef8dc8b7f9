"""``dicenet demo``."""

from dicenet.analysis.demo import demo
from dicenet.cli.run import Command

COMMAND = Command(demo)
