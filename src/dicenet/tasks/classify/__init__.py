"""Classification: one class per picture."""

from dicenet.tasks.classify.evaluate import evaluate
from dicenet.tasks.classify.predict import predict
from dicenet.tasks.classify.prepare import prepare
from dicenet.tasks.classify.task import ClassifyOptimisation, ClassifyTask
from dicenet.tasks.classify.train import train

__all__ = ["ClassifyOptimisation", "ClassifyTask", "evaluate", "predict", "prepare", "train"]
