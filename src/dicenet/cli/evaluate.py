"""``dicenet evaluate TASK``."""

from dicenet.cli.run import Command
from dicenet.tasks import classify, segment

COMMANDS = {"classify": Command(classify.evaluate), "segment": Command(segment.evaluate)}
