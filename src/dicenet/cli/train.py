"""``dicenet train TASK``."""

from dicenet.cli.run import Command
from dicenet.tasks import classify, detect, multilabel, segment

COMMANDS = {
    "classify": Command(classify.train, resumable=True),
    "multilabel": Command(multilabel.train, resumable=True),
    "segment": Command(segment.train, resumable=True),
    "detect": Command(detect.train, resumable=True),
}
