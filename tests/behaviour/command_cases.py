"""What tests of commands share."""

import csv
import warnings

import dicenet_cli

#: What a training leaves, whatever its task.
RUN_FILES = {
    "best.safetensors",
    "config.yaml",
    "curves.png",
    "last.ckpt",
    "metrics.csv",
    "run.json",
    "tensorboard",
}


def run(*arguments, code=0):
    """Run a command in this process; its exit code must be ``code``."""
    with warnings.catch_warnings():
        # Lightning's advice on numbers of workers depends on the machine
        warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
        assert dicenet_cli.main([str(a) for a in arguments]) == code


def rows(folder):
    """The epochs of a run folder."""
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))
