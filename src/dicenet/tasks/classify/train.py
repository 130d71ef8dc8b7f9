"""Training a classifier."""

import os
from pathlib import Path

import lightning as L

from dicenet.data.arrays import DIGITS
from dicenet.data.classification import ClassificationData, open_classification_data, split_off
from dicenet.data.samples import LoaderSettings, Part
from dicenet.data.transforms import evaluation_transform, training_transform
from dicenet.engine.console import say
from dicenet.engine.fit import FitSettings
from dicenet.engine.schedules import DECAY, MILESTONES
from dicenet.errors import ConfigError
from dicenet.models.network import Network
from dicenet.ops import flush_denormals
from dicenet.tasks.arguments import default_workers, plain_arguments
from dicenet.tasks.classifier_training import (
    augmentation_for,
    check_batch,
    check_drop_rate,
    input_for,
    model_and_weights,
    network_to_train,
    training_preprocessing,
)
from dicenet.tasks.classify.task import (
    TASK,
    TEACHER_TEMPERATURE,
    TEACHER_WEIGHT,
    ClassifyOptimisation,
    ClassifyTask,
)
from dicenet.tasks.classify.teacher import check_teacher_name, load_teacher
from dicenet.tasks.training import Judging, Run, check_seed, taken_up

JUDGING = Judging("top1", "top-1", ("train_loss", "val_loss", "val_top1", "val_top5"))


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
    label_smoothing: float = 0.0,
    drop_rate: float | None = None,
    ema: float = 0.0,
    augment: str | None = None,
    auto_augment: str | None = None,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    teacher: str | None = None,
    teacher_weight: float | None = None,
    teacher_temperature: float | None = None,
    min_scale: float | None = None,
    hflip: float | None = None,
    val_fraction: float = 0.2,
    seed: int = 1882,
    workers: int | None = None,
    device: str = "auto",
    devices: int | str = "auto",
    strategy: str = "auto",
    precision: str = "32-true",
    accumulate: int = 1,
    clip: float | None = None,
    compile: bool = False,
    save_every: int = 1000,
) -> Path:
    """Train a classifier on a folder of pictures.

    Args:
        data: folder of a data set, or "digits". Its layout is recognised: train and val (or test) folders of class
            folders or WebDataset shards, one level of class folders, torchvision's CIFAR. Or where prepared shards
            lie: a URL, "pipe:COMMAND {}", a pattern of shards.
        model: name of the network (see 'dicenet models'); dicenet_100 unless weights say otherwise.
        weights: start from these: a file of any known format, or the name of an official checkpoint.
        out: folder of the run, new or empty; runs/classify/train-<date>-<time> if not given.
        resume: a run folder: go on from its last checkpoint, with its arguments; epochs, data and how it is computed
            (workers, device, devices, strategy, precision, compile, save_every) can be changed.
        epochs: passes over the training pictures.
        batch_size: pictures per step of a process.
        img_size: side of the input in pixels, or [height, width]; 224, or the pictures' own size if small.
        stem: standard, or small for small pictures; chosen by the pictures' size.
        in_chans: 3 for colour, 1 for grey; that of the weights, or 3.
        optimizer: sgd (Nesterov), momentum (sgd without it, as the official code), adamw or lamb.
        lr: learning rate: the highest of the schedule, but for hybrid and cyclic, which start with it and go up to 5
            times as high; 0.1 from scratch, 0.02 from weights.
        weight_decay: strength of the weight decay, on convolution weights, and with decay_all on all parameters.
        decay_all: weight decay on norms, slopes and biases too, as in the official code.
        momentum: of sgd.
        schedule: linear, cosine or poly (to zero), multistep (to a tenth twice), constant; or the official ones:
            hybrid, cyclic, fixed, linear-epochs, cosine-epochs, poly-epochs.
        warmup: part of the run in which the learning rate rises first; 0.1, or 0 for the official schedules.
        cycled: epochs in which hybrid cycles; 61 % of all if not given.
        milestones: epochs from which on cyclic and fixed have their rates multiplied by lr_decay, once more at each.
        lr_decay: factor of the rates of cyclic and fixed at each of the milestones.
        label_smoothing: part of the target given to all classes.
        drop_rate: dropout before the classifier; the official rate of the width if not given.
        ema: decay of an average of the weights that is validated and saved instead, such as 0.999, that
            moves fast at first; 0: none.
        augment: resized-crop, shift or none; chosen by the pictures' size.
        auto_augment: changes of colour and shape by chance: randaugment or trivialaugment.
        mixup: alpha of mixup, such as 0.2, which blends pictures and their classes; 0: none.
        cutmix: alpha of CutMix, such as 1.0, which pastes a part of another picture; 0: none. With both each batch has
            one of them.
        teacher: a trained classifier to learn from too: a file of any known format, or the name of a timm model.
        teacher_weight: part of the loss that the teacher gives; 0.5 if not given.
        teacher_temperature: by which the logits of teacher and student are divided; 2 if not given.
        min_scale: smallest part of a picture that a resized crop takes; 0.2 up to width 1.0, else 0.08.
        hflip: probability of mirroring; 0.5, or 0 for digits.
        val_fraction: part of each class held out where the data has no val or test folder.
        seed: of weights, order and augmentation.
        workers: processes that read pictures.
        device: auto, cpu, cuda or mps.
        devices: how many, or "auto".
        strategy: Lightning's, such as ddp.
        precision: Lightning's, such as bf16-mixed.
        accumulate: batches per optimiser step.
        clip: largest norm of the gradient.
        compile: compile the network with torch.compile: faster steps after a slow first one.
        save_every: optimiser steps from one checkpoint to the next within an epoch; 0: only behind each epoch.

    Returns:
        The run folder, with best.safetensors, last.ckpt, metrics.csv, config.yaml, curves.png, TensorBoard logs.
    """
    config = plain_arguments(locals())
    if resume is not None and (complete := taken_up(TASK, train, config, resume, out)):
        return train(**complete)
    if data is None:
        raise ConfigError("no data: give --data FOLDER (or --data digits)")
    data, weights = os.fspath(data), None if weights is None else os.fspath(weights)
    check_drop_rate(drop_rate)
    model, weights = model_and_weights(model, weights)
    optimisation = ClassifyOptimisation(
        optimizer=optimizer,
        lr=lr if lr is not None else (0.1 if weights is None else 0.02),
        weight_decay=weight_decay,
        momentum=momentum,
        decay_all=decay_all,
        schedule=schedule,
        warmup=warmup,
        cycled=cycled,
        milestones=milestones,
        lr_decay=lr_decay,
        label_smoothing=label_smoothing,
        mixup=mixup,
        cutmix=cutmix,
        teacher_weight=TEACHER_WEIGHT if teacher_weight is None else teacher_weight,
        teacher_temperature=TEACHER_TEMPERATURE if teacher_temperature is None else teacher_temperature,
    )
    if teacher is not None:
        check_teacher_name(os.fspath(teacher))
    settings = FitSettings(epochs, ema, device, devices, strategy, precision, accumulate, clip, seed, save_every)
    loading = LoaderSettings(batch_size, default_workers() if workers is None else workers, seed)
    L.seed_everything(check_seed(seed), verbose=False)
    run = Run(TASK, config, JUDGING, settings, out, resume)
    if teacher is None and resume is None and (teacher_weight, teacher_temperature) != (None, None):
        say(run.console, "--teacher-weight and --teacher-temperature change nothing: there is no --teacher")

    dataset = open_classification_data(data)
    train_part, val_part, judged_on = _training_parts(dataset, val_fraction, seed)
    net, done = run.stored_network(Network, dataset.class_names)
    if net is None:
        size, stem = input_for(dataset.median_side, img_size, stem, weights, run.console)
        names = dataset.class_names
        net = network_to_train(TASK, model, weights, names, in_chans, size, stem, drop_rate, run.console)
    check_batch(net, len(train_part), batch_size)
    preprocessing = training_preprocessing(net)
    mirrored = (0.0 if data == DIGITS else 0.5) if hflip is None else hflip
    augmentation = augmentation_for(net, augment, min_scale, mirrored, auto_augment)
    taught_by = None if teacher is None else load_teacher(os.fspath(teacher), dataset.class_names, preprocessing)
    if compile:
        net.compile(dynamic=False)  # the backward of symbolic sizes cannot be compiled
    return run.go(
        ClassifyTask(net, dataset.class_names, optimisation, taught_by),
        train_part.loader(training_transform(preprocessing, augmentation), True, loading),
        val_part.loader(evaluation_transform(preprocessing), False, loading),
        done,
        f"{net.architecture}, {len(dataset.class_names)} classes, input {net.input_size[0]}x{net.input_size[1]}, "
        f"{net.stem_type} stem; {len(train_part)} pictures to train on, {len(val_part)} to judge by ({judged_on})",
    )


def _training_parts(dataset: ClassificationData, val_fraction: float, seed: int) -> tuple[Part, Part, str]:
    """The parts to train on and to judge by, and in words what the second is."""
    parts = dataset.parts
    train_part = parts.get("train") or parts.get("all")
    if train_part is None:
        raise ConfigError(f"{dataset.path} has no part to train on: it has {', '.join(parts)}")
    for name in ("val", "test"):
        if "train" in parts and name in parts:
            return train_part, parts[name], f"{name} part"
    return *split_off(train_part, val_fraction, seed), f"{val_fraction:.0%} held out"
