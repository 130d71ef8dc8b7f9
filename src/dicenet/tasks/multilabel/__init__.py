"""Multi-label classification: all classes that a picture shows."""

from dicenet.tasks.multilabel.evaluate import evaluate
from dicenet.tasks.multilabel.predict import predict
from dicenet.tasks.multilabel.task import MultilabelTask
from dicenet.tasks.multilabel.train import train

__all__ = ["MultilabelTask", "evaluate", "predict", "train"]
