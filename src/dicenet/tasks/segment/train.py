"""Training a segmentation network."""

import os
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import nn

from dicenet.data.coco_masks import read_coco_as_voc
from dicenet.data.mask_transforms import MaskAugmentation, evaluation_pair_transform, training_pair_transform
from dicenet.data.masks import IGNORE, MaskedPictures, hold_out
from dicenet.data.samples import LoaderSettings
from dicenet.data.segmentation import SegmentationData, open_segmentation_data
from dicenet.data.transforms import Preprocessing
from dicenet.engine.console import say
from dicenet.engine.fit import FitSettings
from dicenet.engine.schedules import DECAY, MILESTONES
from dicenet.errors import ConfigError, DataError
from dicenet.models.loading import load
from dicenet.models.network import pair
from dicenet.models.pyramid import check_maps
from dicenet.models.segmentation import DEFAULT_IMG_SIZE, SegmentationNetwork, create_segmentation_model
from dicenet.ops import flush_denormals
from dicenet.tasks.arguments import default_workers, plain_arguments
from dicenet.tasks.segment.task import TASK, SegmentOptimisation, SegmentTask
from dicenet.tasks.training import CHANGEABLE, Judging, Run, check_seed, chosen_parts, taken_up

JUDGING = Judging("mean_iou", "mean IoU", ("train_loss", "val_loss", "val_mean_iou", "val_pixel_accuracy"))
CLASS_WEIGHTS = ("none", "dataset", "inverse-log")
_DEFAULT_MODEL = "dicenet_100"
_RATES = {"sgd": 0.009, "momentum": 0.009, "adamw": 0.0005}


@flush_denormals()  # fit does so too, but making the network may start threads already
def train(
    data: str | None = None,
    model: str | None = None,
    weights: str | None = None,
    pretrained: bool = False,
    out: str | None = None,
    resume: str | None = None,
    epochs: int = 50,
    batch_size: int = 16,
    img_size: int | tuple[int, int] | None = None,
    crop_size: int | tuple[int, int] | None = None,
    decoder_channels: int | None = None,
    ignore_id: int | tuple[int, ...] = (),
    train_split: str | None = None,
    val_split: str | None = None,
    coco: str | None = None,
    optimizer: str = "sgd",
    lr: float | None = None,
    lr_mult: float = 10.0,
    weight_decay: float = 4e-5,
    momentum: float = 0.9,
    decay_all: bool = True,
    schedule: str = "hybrid",
    warmup: float = 0.0,
    cycled: int | None = None,
    milestones: tuple[int, ...] = MILESTONES,
    lr_decay: float = DECAY,
    class_weights: str = "none",
    class_weight_power: float = 1.0,
    freeze_backbone: bool = False,
    freeze_norms: bool = False,
    ema: float = 0.0,
    min_scale: float = 0.5,
    max_scale: float = 2.0,
    hflip: float = 0.5,
    color: float = 0.0,
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
    """Train a segmentation network on pictures and masks, or fine-tune one.

    Args:
        data: folder of a data set: folders images and masks, whole or in train and val (or test); PASCAL VOC (with
            SBD), Cityscapes, CamVid.
        model: name of the backbone, any timm model with feature maps; dicenet_100 unless weights say otherwise.
        weights: start from these: a segmentation network or a classifier of any known format, or the name of an
            official checkpoint. For other classes the last convolution is fresh.
        pretrained: start the backbone from its ImageNet weights, downloaded if need be.
        out: folder of the run, new or empty; runs/segment/train-<date>-<time> if not given.
        resume: a run folder: go on from its last checkpoint, with its arguments; epochs, data and how it is
            computed (workers, device, devices, strategy, precision, save_every) can be changed.
        epochs: passes over the training pictures.
        batch_size: pictures per step of a process.
        img_size: size that pictures are judged (and later predicted) at, one number or [height, width]; that of the
            weights, or 384.
        crop_size: size of the random parts that training sees; that of img_size if not given.
        decoder_channels: of each branch of the decoder's pyramid pooling; those of the weights, or half of the classes.
        ignore_id: number in masks that is void, beside 255; several as [0,7].
        train_split: part to train on; the first there is of trainaug, train, all.
        val_split: part to judge epochs by; val, or test where there is none.
        coco: folder of COCO (annotations, train2017), whose pictures are added with VOC's classes.
        optimizer: sgd or momentum (both without Nesterov's, as the official code), or adamw.
        lr: learning rate of the backbone: the highest of the schedule, but for hybrid and cyclic, which start with it
            and go up to 5 times as high; 0.009 for sgd, 0.0005 for adamw.
        lr_mult: how many times higher the decoder's rate is.
        weight_decay: strength of the weight decay, on all parameters unless decay_all is off.
        decay_all: weight decay on norms, slopes and biases too, as in the official code.
        momentum: of sgd.
        schedule: hybrid (the official one: cycles of up to 5 times the rate, then to zero), poly, cosine or linear (to
            zero), multistep (to a tenth twice), constant, cyclic, fixed, or poly-, cosine- or linear-epochs.
        warmup: part of the run in which the learning rate rises first.
        cycled: epochs in which hybrid cycles; 61 % of all if not given.
        milestones: epochs from which on cyclic and fixed have their rates multiplied by lr_decay, once more at each.
        lr_decay: factor of the rates of cyclic and fixed at each of the milestones.
        class_weights: none, dataset (those that the set brings along: Cityscapes, CamVid), or inverse-log (of the
            shares of the classes in the training masks, without COCO's).
        class_weight_power: exponent of the class weights; below 1 they are milder.
        freeze_backbone: train the decoder only.
        freeze_norms: keep all norms as they are.
        ema: decay of an average of the weights that is validated and saved instead, such as 0.999, that
            moves fast at first; 0: none.
        min_scale: smallest factor by which pictures are scaled.
        max_scale: largest factor.
        hflip: probability of mirroring.
        color: strength of changes of brightness, contrast and saturation, from 0 to 1.
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
    if resume is not None and (complete := taken_up(TASK, train, config, resume, out, (*CHANGEABLE, "coco"))):
        return train(**complete)
    if data is None:
        raise ConfigError("no data: give --data FOLDER")
    data, weights = os.fspath(data), None if weights is None else os.fspath(weights)
    if model and "." in model and weights:
        raise ConfigError(f"--model {model} names weights, and so does --weights {weights}: give one of them")
    optimisation = SegmentOptimisation(
        optimizer=optimizer,
        lr=lr if lr is not None else _RATES.get(optimizer, 0.0005),
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
    )
    settings = FitSettings(epochs, ema, device, devices, strategy, precision, accumulate, clip, seed, save_every)
    loading = LoaderSettings(batch_size, default_workers() if workers is None else workers, seed)
    L.seed_everything(check_seed(seed), verbose=False)
    run = Run(TASK, config, JUDGING, settings, out, resume)

    dataset = open_segmentation_data(data, ignore_id)
    train_part, val_part, judged_on = chosen_parts(
        dataset,
        train_split,
        val_split,
        val_fraction,
        lambda part: hold_out(part, val_fraction, seed),
        run.console,
    )
    _check_masks(train_part)
    loss_weights = _class_weights(dataset, train_part, class_weights, class_weight_power, run.console)
    if coco is not None:
        added = read_coco_as_voc(coco, dataset.class_names)
        train_part = MaskedPictures([*train_part.samples, *added.samples], train_part.class_names)
    net, done = run.stored_network(SegmentationNetwork, dataset.class_names)
    if net is None:
        net = _network(model, weights, pretrained, dataset.class_names, img_size, decoder_channels, run.console)
    preprocessing = Preprocessing.of(net.pretrained_cfg)
    crop = preprocessing.input_size if crop_size is None else pair(crop_size, "crop_size")
    if net.backbone_network() is None:  # others may take some sizes only
        for size in {crop, preprocessing.input_size}:
            check_maps(net.backbone, net.architecture, (net.in_chans, *size))
    augmentation = MaskAugmentation(crop, min_scale, max_scale, hflip, color)
    return run.go(
        SegmentTask(net, dataset.class_names, optimisation, loss_weights),
        train_part.loader(training_pair_transform(preprocessing, augmentation), True, loading),
        val_part.loader(evaluation_pair_transform(preprocessing), False, loading),
        done,
        f"{net.architecture}, {len(dataset.class_names)} classes, input {preprocessing.input_size[0]}x"
        f"{preprocessing.input_size[1]}, crops {crop[0]}x{crop[1]}; {len(train_part)} pictures to train on, "
        f"{len(val_part)} to judge by ({judged_on})",
    )


def _check_masks(part: MaskedPictures) -> None:
    """Raise DataError if all masks hold one class only, the commonest fault of masks; ends at the second class."""
    seen: set[int] = set()
    for sample in part.samples:
        try:
            seen |= set(np.unique(sample.read_mask()).tolist()) - {IGNORE}
        except DataError:
            continue  # named when it is used
        if len(seen) > 1 or len(part.class_names) == 1:
            return
    if seen:
        raise DataError(
            f"the masks to train on hold one class only, {part.class_names[seen.pop()]} (255 is void): a mask's pixels "
            "must be the numbers of their classes, from 0 on"
        )


def _network(
    model: str | None,
    weights: str | None,
    pretrained: bool,
    class_names: Sequence[str],
    img_size: int | tuple[int, int] | None,
    decoder_channels: int | None,
    console: Console,
) -> SegmentationNetwork:
    """The network to train, with fresh or given weights."""
    if weights is None:
        net = create_segmentation_model(
            model or _DEFAULT_MODEL,
            len(class_names),
            pretrained=pretrained or "." in (model or ""),  # a tag names weights
            img_size=img_size,
            decoder_channels=decoder_channels,
        )
        _start_small(net)
        return net
    if pretrained:
        raise ConfigError(f"--pretrained names weights, and so does --weights {weights}: give one of them")
    loaded = load(weights, task=TASK, num_classes=len(class_names), decoder_channels=decoder_channels)
    assert isinstance(loaded, SegmentationNetwork)
    net = loaded
    if model and net.architecture != model:
        raise ConfigError(
            f"{weights} is a checkpoint of {net.architecture}, not of {model}: give --model {net.architecture}"
        )
    if list(net.pretrained_cfg.get("label_names", ())) == list(class_names):
        say(console, f"weights {weights}, with their classes")
    else:
        net.reset_classifier(len(class_names))
        _start_small(net)
        say(console, f"weights {weights}; the last convolution is fresh, for {len(class_names)} classes")
    if img_size is not None or net.input_size is None:
        net.set_input_size(DEFAULT_IMG_SIZE if img_size is None else img_size)
    return net


def _start_small(net: SegmentationNetwork) -> None:
    """Begin with almost equal logits: the official initialisation starts few classes at a loss far above chance."""
    nn.init.normal_(net.get_classifier().weight, std=0.01)


def _class_weights(
    dataset: SegmentationData, part: MaskedPictures, kind: str, power: float, console: Console
) -> list[float] | None:
    if kind not in CLASS_WEIGHTS:
        raise ConfigError(f"class_weights {kind!r} is unknown: choose one of {', '.join(CLASS_WEIGHTS)}")
    if not 0 <= power <= 10:
        raise ConfigError(f"class_weight_power must lie from 0 to 10, got {power}")
    if kind == "none":
        return None
    if kind == "dataset":
        if dataset.class_weights is None:
            raise ConfigError(f"{dataset.path} brings no class weights along: use --class-weights inverse-log")
        weights = dataset.class_weights
    else:
        weights = _inverse_log_weights(part, console)
    return [weight**power for weight in weights]


def _inverse_log_weights(part: MaskedPictures, console: Console) -> list[float]:
    """1 / ln(1.02 + share) of each class (ENet, Paszke et al., section 5.1), as the official ones for Cityscapes."""
    pixels = torch.zeros(256, dtype=torch.int64)
    for sample in track(part.samples, "counting classes", console=console, transient=True, disable=console.quiet):
        try:
            pixels += torch.from_numpy(sample.read_mask()).flatten().bincount(minlength=256)
        except DataError:
            continue  # named when it is used
    known = pixels[: len(part.class_names)].double()
    assert len(part.class_names) <= IGNORE
    return (1 / torch.log(1.02 + known / known.sum().clamp(min=1))).tolist()
