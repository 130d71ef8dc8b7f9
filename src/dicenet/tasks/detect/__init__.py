"""Object detection: boxes around the objects of a picture."""

from dicenet.tasks.detect.evaluate import evaluate
from dicenet.tasks.detect.predict import predict
from dicenet.tasks.detect.task import DetectOptimisation, DetectTask
from dicenet.tasks.detect.train import train

__all__ = ["DetectOptimisation", "DetectTask", "evaluate", "predict", "train"]
