"""Semantic segmentation: the class of each pixel."""

from dicenet.tasks.segment.evaluate import evaluate
from dicenet.tasks.segment.predict import predict
from dicenet.tasks.segment.task import SegmentOptimisation, SegmentTask
from dicenet.tasks.segment.train import train

__all__ = ["SegmentOptimisation", "SegmentTask", "evaluate", "predict", "train"]
