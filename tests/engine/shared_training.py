"""A training whose result should not depend on how many processes share it: started by tests, and by torchrun.

Norms keep their statistics, as each process has those of its own pictures; nothing else is by chance or by process.
"""

import sys
from pathlib import Path

import lightning as L
import timm
import torch
from rich.console import Console
from torch import nn

from dicenet.data.classification import open_classification_data
from dicenet.data.samples import LoaderSettings, SampleList
from dicenet.data.transforms import evaluation_transform
from dicenet.engine.fit import FitSettings, fit
from dicenet.tasks.classifier_training import training_preprocessing
from dicenet.tasks.classify.task import ClassifyOptimisation, ClassifyTask

#: Neither is a multiple of any batch; with two processes one of them judges a batch more than the other.
TRAINED_ON, JUDGED_BY = 333, 121
COLUMNS = ("train_loss", "val_loss", "val_top1", "val_top5")


def freeze_norms(net):
    """Norms use and keep the statistics that they have, also when the network is set to train."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(False)
            module.train = lambda mode=True, module=module: module


def shared_training(folder, batch_size, devices=1, accumulate=1, epochs=2, frozen=True, callbacks=(), pictures=None):
    """Train in a folder; ``batch_size`` is of a process. Returns the task."""
    L.seed_everything(7, verbose=False)
    data = open_classification_data("digits")
    net = timm.create_model("dicenet_010", num_classes=10, img_size=32, stem="small", drop_rate=0.0)
    if frozen:
        freeze_norms(net)
    transform = evaluation_transform(training_preprocessing(net))
    names = data.class_names
    parts = {True: ("train", pictures or TRAINED_ON), False: ("val", JUDGED_BY)}
    loaders = []
    for train, (part, count) in parts.items():
        samples = SampleList(list(data.parts[part].samples)[:count], names)
        loaders.append(samples.loader(transform, train, LoaderSettings(batch_size, seed=7)))
    task = ClassifyTask(net, names, ClassifyOptimisation(lr=0.05, weight_decay=0.0, warmup=0.0))
    settings = FitSettings(epochs, device="cpu", devices=devices, accumulate=accumulate, seed=7)
    folder.mkdir(parents=True, exist_ok=True)
    fit(
        task,
        *loaders,
        folder,
        columns=COLUMNS,
        score="val_top1",
        callbacks=list(callbacks),
        console=Console(quiet=True),
        settings=settings,
    )
    return task


if __name__ == "__main__":
    torch.set_num_threads(1)
    shared_training(Path(sys.argv[1]), batch_size=int(sys.argv[2]), devices="auto")
