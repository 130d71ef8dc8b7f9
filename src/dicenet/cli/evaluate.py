"""``dicenet evaluate TASK``."""

from dicenet.cli.run import Command
from dicenet.tasks import classify, detect, multilabel, segment

COMMANDS = {
    "classify": Command(classify.evaluate),
    "multilabel": Command(multilabel.evaluate),
    "segment": Command(segment.evaluate),
    "detect": Command(detect.evaluate),
}
