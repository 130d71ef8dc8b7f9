"""Training a detector."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import lightning as L
from rich.console import Console

from dicenet.data.box_transforms import BoxAugmentation, evaluation_box_transform, training_box_transform
from dicenet.data.boxes import BoxedPictures, hold_out
from dicenet.data.detection import open_detection_data
from dicenet.data.samples import LoaderSettings
from dicenet.data.transforms import Preprocessing
from dicenet.engine.console import say
from dicenet.engine.fit import FitSettings
from dicenet.engine.schedules import DECAY, MILESTONES
from dicenet.errors import ConfigError
from dicenet.models.detection import DEFAULT_HEAD, DetectionNetwork, create_detection_model
from dicenet.models.loading import load, task_of
from dicenet.ops import flush_denormals
from dicenet.tasks.arguments import default_workers, plain_arguments
from dicenet.tasks.detect.priors import ENOUGH, coverage, lowest, proposed_settings, relative_boxes
from dicenet.tasks.detect.task import TASK, DetectOptimisation, DetectTask, check_precision
from dicenet.tasks.training import Judging, Run, check_seed, chosen_parts, taken_up

JUDGING = Judging("map50", "mAP@.5", ("train_loss", "val_loss", "val_map50", "val_map"))
_DEFAULT_MODEL = "dicenet_100"
_RATES = {"sgd": 0.01, "momentum": 0.01, "adamw": 0.001}
_PRIORS = ("official", "auto")


@flush_denormals()  # fit does so too, but making the network may start threads already
def train(
    data: str | None = None,
    model: str | None = None,
    weights: str | None = None,
    pretrained: bool = False,
    out: str | None = None,
    resume: str | None = None,
    epochs: int = 100,
    batch_size: int = 16,
    img_size: int | tuple[int, int] | None = None,
    head: str | None = None,
    priors: str | tuple[float, ...] | None = None,
    train_split: str | None = None,
    val_split: str | None = None,
    keep_empty: bool = True,
    difficult: bool = False,
    negatives_of_empty: bool = True,
    optimizer: str = "sgd",
    lr: float | None = None,
    lr_mult: float = 1.0,
    weight_decay: float = 5e-4,
    momentum: float = 0.9,
    decay_all: bool = True,
    schedule: str = "hybrid",
    warmup: float = 0.0,
    cycled: int | None = None,
    milestones: tuple[int, ...] = MILESTONES,
    lr_decay: float = DECAY,
    freeze_backbone: bool = False,
    freeze_norms: bool = False,
    ema: float = 0.0,
    photometric: float = 0.5,
    zoom_out: float = 4.0,
    iou_crop: bool = True,
    hflip: float = 0.5,
    vflip: float = 0.0,
    val_fraction: float = 0.2,
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
    """Train a detector on pictures and boxes, or fine-tune one.

    Args:
        data: folder of a data set: PASCAL VOC, COCO, or folders images and annotations (XML), whole or in
            train and val.
        model: name of the backbone, any timm model with feature maps; dicenet_100 unless weights say otherwise.
        weights: start from these: a detector, a classifier or a segmentation network of any known format, or the name
            of an official checkpoint. What gives scores is fresh for other classes, the head where there is none.
        pretrained: start the backbone from its ImageNet weights, downloaded if need be.
        out: folder of the run, new or empty; runs/detect/train-<date>-<time> if not given.
        resume: a run folder: go on from its last checkpoint, with its arguments; epochs, data and how it is
            computed (workers, device, devices, strategy, precision, save_every) can be changed.
        epochs: passes over the training pictures.
        batch_size: pictures per step of a process.
        img_size: size that pictures are resized to, one number or [height, width]; that of the weights, or 300, or
            512 for ssd512.
        head: espnet, lite, fpnlite, ssdlite, or on vgg16 ssd300 or ssd512; that of the weights, or espnet.
        priors: sizes of the prior boxes: official, auto (chosen for the boxes of the data), or ascending parts of the
            picture's side, one more than the head has maps, as [0.05,0.1,0.2,0.35,0.5,0.7,1.0]. Without a word those of
            a detector in weights, or else official.
        train_split: part to train on; the first there is of train, trainval, all.
        val_split: part to judge epochs by; val, or test where there is none.
        keep_empty: train on pictures without boxes too.
        difficult: train on boxes that are marked as difficult too.
        negatives_of_empty: let pictures without boxes teach what is background; the official code leaves them out.
        optimizer: sgd or momentum (both without Nesterov's, as the official code), or adamw.
        lr: learning rate of the backbone: the highest of the schedule, but for hybrid and cyclic, which start with it
            and go up to 5 times as high; 0.01 for sgd, 0.001 for adamw.
        lr_mult: how many times higher the head's rate is.
        weight_decay: strength of the weight decay, on all parameters unless decay_all is off.
        decay_all: weight decay on norms, slopes and biases too, as in the official code.
        momentum: of sgd.
        schedule: hybrid (the official one: cycles of up to 5 times the rate, then to zero), poly, cosine or linear (to
            zero), multistep (to a tenth twice), constant, cyclic, fixed, or poly-, cosine- or linear-epochs.
        warmup: part of the run in which the learning rate rises first.
        cycled: epochs in which hybrid cycles; 61 % of all if not given.
        milestones: epochs from which on cyclic and fixed have their rates multiplied by lr_decay, once more at each.
        lr_decay: factor of the rates of cyclic and fixed at each of the milestones.
        freeze_backbone: train the head only.
        freeze_norms: keep all norms as they are.
        ema: decay of an average of the weights that is validated and saved instead, such as 0.999, that
            moves fast at first; 0: none.
        photometric: probability of each change of colours.
        zoom_out: largest factor by which pictures are shrunk into a canvas; 1: none.
        iou_crop: train on parts of pictures too.
        hflip: probability of mirroring.
        vflip: probability of turning upside down, for pictures without an upper side, as from microscopes.
        val_fraction: part held out where the data has no val or test part.
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
    if model and "." in model and weights:
        raise ConfigError(f"--model {model} names weights, and so does --weights {weights}: give one of them")
    if isinstance(priors, str) and priors not in _PRIORS:
        raise ConfigError(f"priors {priors!r} is unknown: give {', '.join(_PRIORS)}, or sizes as [0.05,0.1,...]")
    optimisation = DetectOptimisation(
        optimizer=optimizer,
        lr=lr if lr is not None else _RATES.get(optimizer, 0.001),
        lr_mult=lr_mult,
        weight_decay=weight_decay,
        momentum=momentum,
        decay_all=decay_all,
        schedule=schedule,
        warmup=warmup,
        cycled=cycled,
        milestones=milestones,
        lr_decay=lr_decay,
        freeze_backbone=freeze_backbone,
        freeze_norms=freeze_norms,
        negatives_of_empty=negatives_of_empty,
    )
    augmentation = BoxAugmentation(
        photometric=photometric, zoom_out=zoom_out, iou_crop=iou_crop, hflip=hflip, vflip=vflip
    )
    settings = FitSettings(
        epochs, ema, device, devices, strategy, check_precision(precision), accumulate, clip, seed, save_every
    )
    loading = LoaderSettings(batch_size, default_workers() if workers is None else workers, seed)
    L.seed_everything(check_seed(seed), verbose=False)
    run = Run(TASK, config, JUDGING, settings, out, resume)

    dataset = open_detection_data(data, difficult=difficult)
    train_part, val_part, judged_on = chosen_parts(
        dataset,
        train_split,
        val_split,
        val_fraction,
        lambda part: hold_out(part, val_fraction, seed),
        run.console,
    )
    _say_faults({"training": train_part, judged_on: val_part}, run.console)
    if not keep_empty:
        pictures, train_part = len(train_part), train_part.without_empty()
        say(run.console, f"training: {pictures - len(train_part)} pictures without boxes left out")
    net, done = run.stored_network(DetectionNetwork, dataset.class_names)
    if net is None:
        scales = None if isinstance(priors, str | None) else tuple(priors)
        net = _network(model, weights, pretrained, dataset.class_names, img_size, head, scales, run.console)
        if priors == "official":
            net.set_priors(replace(net.prior_settings, scales=None))
        _fit_priors(net, train_part, dataset.class_names, priors == "auto", run.console)
    preprocessing = Preprocessing.of(net.pretrained_cfg)
    return run.go(
        DetectTask(net, dataset.class_names, optimisation),
        train_part.loader(training_box_transform(preprocessing, augmentation), True, loading),
        val_part.loader(evaluation_box_transform(preprocessing), False, loading),
        done,
        f"{net.architecture} with the head {net.head_type}, {len(dataset.class_names)} classes, input "
        f"{preprocessing.input_size[0]}x{preprocessing.input_size[1]}, {len(net.priors)} priors; {len(train_part)} "
        f"pictures to train on, {len(val_part)} to judge by ({judged_on})",
    )


def _say_faults(parts: dict[str, BoxedPictures], console: Console) -> None:
    for name, part in parts.items():
        for reason, count in part.left_out().items():
            say(console, f"{name}: {count} {reason}")


def _network(
    model: str | None,
    weights: str | None,
    pretrained: bool,
    class_names: Sequence[str],
    img_size: int | tuple[int, int] | None,
    head: str | None,
    scales: tuple[float, ...] | None,
    console: Console,
) -> DetectionNetwork:
    """The network to train, with fresh or given weights."""
    if weights is None:
        return create_detection_model(
            model or _DEFAULT_MODEL,
            len(class_names),
            img_size=img_size,
            head=head or DEFAULT_HEAD,
            scales=scales,
            pretrained=pretrained or "." in (model or ""),  # a tag names weights
        )
    if pretrained:
        raise ConfigError(f"--pretrained names weights, and so does --weights {weights}: give one of them")
    net = load(weights, task=TASK, num_classes=len(class_names), img_size=img_size, head=head, scales=scales)
    assert isinstance(net, DetectionNetwork)
    if model and net.architecture != model:
        raise ConfigError(
            f"{weights} is a checkpoint of {net.architecture}, not of {model}: give --model {net.architecture}"
        )
    if list(net.pretrained_cfg.get("label_names", ())) == list(class_names):
        say(console, f"weights {weights}, with their classes")
    else:
        net.reset_classifier(len(class_names))
        fresh = "what gives scores" if task_of(weights) == TASK else "the head"
        say(console, f"weights {weights}; {fresh} is fresh, for {len(class_names)} classes")
    return net


def _fit_priors(
    net: DetectionNetwork, part: BoxedPictures, class_names: Sequence[str], change: bool, console: Console
) -> None:
    """Say how many boxes of each class a prior fits, and propose better sizes, or take them."""
    boxes, labels = relative_boxes(part)
    shares = coverage(boxes, labels, net.priors, len(class_names))
    _say_coverage("boxes with a prior at IoU 0.5", shares, class_names, console)
    if not change and lowest(shares) >= ENOUGH:
        return
    settings, before = proposed_settings(net, boxes, labels), net.prior_settings
    net.set_priors(settings)
    shares = coverage(boxes, labels, net.priors, len(class_names))
    sizes = ",".join(f"{scale:g}" for scale in settings.scales or ())
    words = "--priors auto takes" if change else "--priors auto would take"
    _say_coverage(f"{words} [{sizes}]", shares, class_names, console)
    if not change:
        net.set_priors(before)


def _say_coverage(what: str, shares: Sequence[float | None], class_names: Sequence[str], console: Console) -> None:
    known = [(name, share) for name, share in zip(class_names, shares, strict=True) if share is not None]
    worst = sorted(known, key=lambda entry: entry[1])
    shown = ", ".join(f"{name} {100 * share:.0f} %" for name, share in worst[:10])
    say(console, f"{what}: {shown}{f', {len(worst) - 10} more above' if len(worst) > 10 else ''}")
