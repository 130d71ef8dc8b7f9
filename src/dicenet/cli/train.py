"""``dicenet train TASK``."""

from dicenet.cli.run import Command
from dicenet.tasks import classify, segment

COMMANDS = {
    "classify": Command(classify.train, resumable=True),
    "segment": Command(segment.train, resumable=True),
}
