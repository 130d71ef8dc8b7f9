"""Training a multi-label classifier."""

import os
from functools import partial
from pathlib import Path

import lightning as L

from dicenet.data.classification import median_side
from dicenet.data.labels import hold_out
from dicenet.data.multilabel import open_multilabel_data
from dicenet.data.samples import LoaderSettings
from dicenet.data.transforms import evaluation_transform, training_transform
from dicenet.engine.fit import FitSettings
from dicenet.engine.schedules import DECAY, MILESTONES
from dicenet.errors import ConfigError, DataError
from dicenet.models.network import Network
from dicenet.ops import flush_denormals
from dicenet.tasks.arguments import default_workers, plain_arguments
from dicenet.tasks.classifier import ClassifierOptimisation
from dicenet.tasks.classifier_training import (
    augmentation_for,
    check_batch,
    check_drop_rate,
    input_for,
    model_and_weights,
    network_to_train,
    training_preprocessing,
)
from dicenet.tasks.multilabel.data import say_what_lacks, tracked
from dicenet.tasks.multilabel.metrics import DEFAULT_THRESHOLD, logit_threshold
from dicenet.tasks.multilabel.task import SCORES, TASK, MultilabelTask
from dicenet.tasks.training import Judging, Run, check_seed, chosen_parts, taken_up

JUDGING = Judging("f1_overall", "overall F1", ("train_loss", "val_loss", *(f"val_{name}" for name in SCORES)))


@flush_denormals()  # fit does so too, but making the network may start threads already
def train(
    data: str | None = None,
    model: str | None = None,
    weights: str | None = None,
    out: str | None = None,
    resume: str | None = None,
    epochs: int = 30,
    batch_size: int = 128,
    img_size: int | tuple[int, int] | None = None,
    stem: str | None = None,
    in_chans: int | None = None,
    threshold: float = DEFAULT_THRESHOLD,
    optimizer: str = "sgd",
    lr: float | None = None,
    weight_decay: float = 5e-4,
    momentum: float = 0.9,
    decay_all: bool = False,
    schedule: str = "linear",
    warmup: float | None = None,
    cycled: int | None = None,
    milestones: tuple[int, ...] = MILESTONES,
    lr_decay: float = DECAY,
    drop_rate: float | None = None,
    ema: float = 0.0,
    augment: str | None = None,
    min_scale: float | None = None,
    hflip: float = 0.5,
    train_split: str | None = None,
    val_split: str | None = None,
    val_fraction: float = 0.2,
    ignore_id: int | tuple[int, ...] = (),
    seed: int = 1882,
    workers: int | None = None,
    device: str = "auto",
    devices: int | str = "auto",
    strategy: str = "auto",
    precision: str = "32-true",
    accumulate: int = 1,
    clip: float | None = None,
    save_every: int = 1000,
) -> Path:
    """Train a network that names all classes which a picture shows.

    Args:
        data: folder of a data set. Its layout is recognised: train.csv and val.csv (path,labels), COCO, PASCAL VOC
            (XML, or else masks), and all others with boxes or masks.
        model: name of the network (see 'dicenet models'); dicenet_100 unless weights say otherwise.
        weights: start from these: a file of any known format, or the name of an official checkpoint.
        out: folder of the run, new or empty; runs/multilabel/train-<date>-<time> if not given.
        resume: a run folder: go on from its last checkpoint, with its arguments; epochs, data and how it is
            computed (workers, device, devices, strategy, precision, save_every) can be changed.
        epochs: passes over the training pictures.
        batch_size: pictures per step of a process.
        img_size: side of the input in pixels, or [height, width]; 224, or the pictures' own size if small.
        stem: standard, or small for small pictures; chosen by the pictures' size.
        in_chans: 3 for colour, 1 for grey; that of the weights, or 3.
        threshold: probability above which a class counts as found, when epochs are judged.
        optimizer: sgd (Nesterov), momentum (sgd without it, as the official code), adamw or lamb.
        lr: learning rate: the highest of the schedule, but for hybrid and cyclic, which start with it and go up to 5
            times as high; 0.02 from scratch, 0.005 from weights.
        weight_decay: strength of the weight decay, on convolution weights, and with decay_all on all parameters.
        decay_all: weight decay on norms, slopes and biases too, as in the official code.
        momentum: of sgd.
        schedule: linear, cosine or poly (to zero), multistep (to a tenth twice), constant; or the official ones:
            hybrid, cyclic, fixed, linear-epochs, cosine-epochs, poly-epochs.
        warmup: part of the run in which the learning rate rises first; 0.1, or 0 for the official schedules.
        cycled: epochs in which hybrid cycles; 61 % of all if not given.
        milestones: epochs from which on cyclic and fixed have their rates multiplied by lr_decay, once more at each.
        lr_decay: factor of the rates of cyclic and fixed at each of the milestones.
        drop_rate: dropout before the classifier; the official rate of the width if not given.
        ema: decay of an average of the weights that is validated and saved instead, such as 0.999, that
            moves fast at first; 0: none.
        augment: resized-crop, shift or none; chosen by the pictures' size.
        min_scale: smallest part of a picture that a resized crop takes; 0.2 up to width 1.0, else 0.08.
        hflip: probability of mirroring.
        train_split: part to train on; the first there is of trainaug, train, trainval, all if not given.
        val_split: part to judge epochs by; val, or test where there is no val.
        val_fraction: part of the pictures held out where the data has no val or test part.
        ignore_id: number in masks that is void, beside 255; several as [0,7].
        seed: of weights, order and augmentation.
        workers: processes that read pictures.
        device: auto, cpu, cuda or mps.
        devices: how many, or "auto".
        strategy: Lightning's, such as ddp.
        precision: Lightning's, such as bf16-mixed.
        accumulate: batches per optimiser step.
        clip: largest norm of the gradient.
        save_every: optimiser steps from one checkpoint to the next within an epoch; 0: only behind each epoch.

    Returns:
        The run folder, with best.safetensors, last.ckpt, metrics.csv, config.yaml, curves.png, TensorBoard logs.
    """
    config = plain_arguments(locals())
    if resume is not None and (complete := taken_up(TASK, train, config, resume, out)):
        return train(**complete)
    if data is None:
        raise ConfigError("no data: give --data FOLDER")
    data, weights = os.fspath(data), None if weights is None else os.fspath(weights)
    check_drop_rate(drop_rate)
    logit_threshold(threshold)
    model, weights = model_and_weights(model, weights)
    optimisation = ClassifierOptimisation(
        optimizer=optimizer,
        lr=lr if lr is not None else (0.02 if weights is None else 0.005),
        weight_decay=weight_decay,
        momentum=momentum,
        decay_all=decay_all,
        schedule=schedule,
        warmup=warmup,
        cycled=cycled,
        milestones=milestones,
        lr_decay=lr_decay,
    )
    settings = FitSettings(epochs, ema, device, devices, strategy, precision, accumulate, clip, seed, save_every)
    loading = LoaderSettings(batch_size, default_workers() if workers is None else workers, seed)
    L.seed_everything(check_seed(seed), verbose=False)
    run = Run(TASK, config, JUDGING, settings, out, resume)

    dataset = open_multilabel_data(data, ignore_id, tracked(run.console))
    names = dataset.class_names
    train_part, val_part, judged_on = chosen_parts(
        dataset, train_split, val_split, val_fraction, lambda part: hold_out(part, val_fraction, seed), run.console
    )
    if not val_part.has_labels():
        raise DataError(f"the {judged_on} of {data} has no label to judge by: none of its pictures has one")
    say_what_lacks(run.console, train_part, "training")
    say_what_lacks(run.console, val_part, "validation")
    net, done = run.stored_network(Network, names)
    if net is None:
        size, stem = input_for(partial(median_side, train_part), img_size, stem, weights, run.console)
        net = network_to_train(TASK, model, weights, names, in_chans, size, stem, drop_rate, run.console)
    check_batch(net, len(train_part), batch_size)
    preprocessing = training_preprocessing(net, crop_mode="squash")
    augmentation = augmentation_for(net, augment, min_scale, hflip)
    described = f"{net.architecture}, {len(names)} classes, input {net.input_size[0]}x{net.input_size[1]}"
    return run.go(
        MultilabelTask(net, names, optimisation, threshold),
        train_part.loader(training_transform(preprocessing, augmentation), True, loading),
        val_part.loader(evaluation_transform(preprocessing), False, loading),
        done,
        f"{described}, {net.stem_type} stem; {dataset.layout}: {len(train_part)} pictures to train on, {len(val_part)} "
        f"to judge by ({judged_on})",
    )
