"""``dicenet evaluate TASK``."""

from dicenet.cli.run import Command
from dicenet.tasks import classify, detect, segment

COMMANDS = {
    "classify": Command(classify.evaluate),
    "segment": Command(segment.evaluate),
    "detect": Command(detect.evaluate),
}
