"""``dicenet predict TASK PATH...``."""

from dicenet.cli.run import Command
from dicenet.tasks import classify, detect, multilabel, segment

_PATHS = {"paths": {"nargs": "+", "type": str, "metavar": "PATH", "help": "pictures, and folders of pictures"}}
COMMANDS = {
    "classify": Command(classify.predict, _PATHS),
    "multilabel": Command(multilabel.predict, _PATHS),
    "segment": Command(segment.predict, _PATHS),
    "detect": Command(detect.predict, _PATHS),
}
