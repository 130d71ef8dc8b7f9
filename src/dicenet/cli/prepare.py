"""``dicenet prepare TASK``."""

from dicenet.cli.run import Command
from dicenet.tasks import classify

COMMANDS = {"classify": Command(classify.prepare)}
