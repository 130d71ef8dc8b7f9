"""Classification: one class per picture. Training, evaluation and prediction."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import timm
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timm.data import ImageNetInfo
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from dicenet.data.classification import ClassificationData, open_classification_data, small_input, split_off
from dicenet.data.pictures import find_pictures, read_picture
from dicenet.data.samples import LoaderSettings, Part
from dicenet.data.transforms import Augmentation, Preprocessing, evaluation_transform, training_transform
from dicenet.engine.callbacks import BestWeights
from dicenet.engine.fit import check_device, fit, flush_denormals, make_trainer
from dicenet.engine.run_folder import (
    BEST,
    LAST,
    METRICS,
    default_run_folder,
    new_run_folder,
    process_rank,
    read_config,
    resumed_folder,
    write_config,
)
from dicenet.engine.schedules import check_schedule, scheduler
from dicenet.errors import ConfigError, DataError, TrainingError, WeightsError
from dicenet.models.dicenet import DiCENet
from dicenet.models.loading import check_model_name, describe, load, save
from dicenet.tasks.drawing import confusion_plot, png, read_metrics, training_curves, with_classes
from dicenet.weights.files import METADATA_KEY, atomic_path, read_checkpoint, write_bytes, write_json

TASK = "classify"
COLUMNS = ("train_loss", "val_loss", "val_top1", "val_top5")
_DEFAULT_MODEL = "dicenet_100"
_OPTIMIZERS = ("sgd", "adamw", "lamb")
_IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Optimisation:
    """How the weights are changed. Weight decay spares norms, slopes and biases."""

    optimizer: str = "sgd"
    lr: float = 0.1
    weight_decay: float = 5e-4
    momentum: float = 0.9
    schedule: str = "linear"
    warmup: float = 0.1
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.optimizer not in _OPTIMIZERS:
            raise ConfigError(f"optimizer {self.optimizer!r} is unknown: choose one of {', '.join(_OPTIMIZERS)}")
        check_schedule(self.schedule)
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"warmup is a part of the run from 0 to below 1, got {self.warmup}")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing must lie from 0 to below 1, got {self.label_smoothing}")
        if self.lr <= 0:
            raise ConfigError(f"lr must be above 0, got {self.lr}")


class ClassifyTask(L.LightningModule):
    """Trains and judges a classifier: cross-entropy, top-1 and top-5 accuracy.

    Batches are those of :func:`dicenet.data.samples.collate`; pictures that could not be read are collected
    in ``bad_pictures`` (name to reason).
    """

    def __init__(self, net: DiCENet, class_names: Sequence[str], optimisation: Optimisation | None = None) -> None:
        super().__init__()
        self.net = net.to(memory_format=torch.channels_last)
        self.class_names = list(class_names)
        self.optimisation = optimisation or Optimisation()
        classes = len(self.class_names)
        self.metrics = MetricCollection(
            {
                "top1": MulticlassAccuracy(classes, average="micro"),
                "top5": MulticlassAccuracy(classes, average="micro", top_k=min(5, classes)),
            }
        )
        self.confusion = MulticlassConfusionMatrix(classes)
        self.loss = MeanMetric()
        self.bad_pictures: dict[str, str] = {}

    def _scores(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
        """Logits and classes of a batch, or None if none of its pictures could be read."""
        self.bad_pictures.update(batch["errors"])
        if "image" not in batch:
            return None
        image = batch["image"].contiguous(memory_format=torch.channels_last)
        return self.net(image), batch["target"]

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor | None:
        """Loss of a batch. Raises TrainingError when it is no longer finite."""
        scores = self._scores(batch)
        if scores is None:
            return None
        loss = F.cross_entropy(*scores, label_smoothing=self.optimisation.label_smoothing)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss.item()} in epoch {self.current_epoch + 1}, step {self.global_step + 1}: use a "
                f"smaller --lr than {self.optimisation.lr} or a longer --warmup"
            )
        self.log(
            "train_loss", loss, on_step=True, on_epoch=True, prog_bar=True, batch_size=len(scores[1]), sync_dist=True
        )
        return loss

    def _judge(self, batch: dict[str, Any]) -> Tensor | None:
        """Collect the scores of a batch; its logits."""
        scores = self._scores(batch)
        if scores is None:
            return None
        self.metrics.update(*scores)
        self.loss.update(F.cross_entropy(*scores, reduction="none"))
        return scores[0]

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Collect scores."""
        self._judge(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the scores and start anew."""
        for name, value in self.validation_scores().items():
            self.log(f"val_{name}", value, prog_bar=name == "top1", sync_dist=True)
        self.metrics.reset()
        self.loss.reset()

    def validation_scores(self) -> dict[str, float]:
        """Fractions of one: top1, top5; and the mean loss. Raises DataError if no picture could be read."""
        if not self.loss.update_called:
            reason = next(iter(self.bad_pictures.values()), "there are none")
            raise DataError(f"no picture to judge by could be read: {reason}")
        return {name: float(value) for name, value in {**self.metrics.compute(), "loss": self.loss.compute()}.items()}

    def test_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Collect scores and confusions."""
        logits = self._judge(batch)
        if logits is not None:
            self.confusion.update(logits, batch["target"])

    def configure_optimizers(self) -> Any:
        """timm's optimiser, a schedule per step."""
        o = self.optimisation
        optimizer = create_optimizer_v2(
            self.net,
            o.optimizer,
            lr=o.lr,
            weight_decay=o.weight_decay,
            momentum=o.momentum,
            filter_bias_and_bn=True,
        )
        steps = int(self.trainer.estimated_stepping_batches)
        plan = scheduler(optimizer, o.schedule, steps, int(o.warmup * steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plan, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Describe the network, so that a checkpoint can be used like the weights."""
        checkpoint[METADATA_KEY] = json.dumps(describe(self.net, self.class_names))


# -- training


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
    in_chans: int = 3,
    optimizer: str = "sgd",
    lr: float | None = None,
    weight_decay: float = 5e-4,
    momentum: float = 0.9,
    schedule: str = "linear",
    warmup: float = 0.1,
    label_smoothing: float = 0.0,
    drop_rate: float | None = None,
    ema: float = 0.0,
    augment: str | None = None,
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
) -> Path:
    """Train a classifier on a folder of pictures.

    Args:
        data: folder of a data set, or "digits". Its layout is recognised: train and val (or test) folders of class
            folders or WebDataset shards, one level of class folders, torchvision's CIFAR.
        model: name of the network (see 'dicenet models'); dicenet_100 unless weights say otherwise.
        weights: start from these: a file of any known format, or the name of an official checkpoint.
        out: folder of the run, new or empty; runs/classify/train-<date>-<time> if not given.
        resume: a run folder: go on from its last finished epoch, with its arguments.
        epochs: passes over the training pictures.
        batch_size: pictures per step.
        img_size: side of the input in pixels, or [height, width]; 224, or the pictures' own size if small.
        stem: standard, or small for small pictures; chosen by the pictures' size.
        in_chans: 3 for colour, 1 for grey.
        optimizer: sgd (Nesterov), adamw or lamb.
        lr: peak learning rate; 0.1 from scratch, 0.02 from weights.
        weight_decay: on convolution weights only.
        momentum: of sgd.
        schedule: linear or cosine (both to zero), or constant.
        warmup: part of the run in which the learning rate rises.
        label_smoothing: part of the target given to all classes.
        drop_rate: dropout before the classifier; the official rate of the width if not given.
        ema: decay of an average of the weights that is validated and saved instead, such as 0.999; 0: none.
        augment: resized-crop, shift or none; chosen by the pictures' size.
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

    Returns:
        The run folder, with best.safetensors, last.ckpt, metrics.csv, config.yaml, curves.png, TensorBoard logs.
    """
    config = {key: value for key, value in locals().items() if key not in ("resume", "out")}
    if resume is not None and data is None:
        return train(**{**read_config(resumed_folder(resume)), "resume": resume})
    if data is None:
        raise ConfigError("no data: give --data FOLDER (or --data digits)")
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("accumulate", accumulate)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    peak = lr if lr is not None else (0.1 if weights is None else 0.02)
    optimisation = Optimisation(optimizer, peak, weight_decay, momentum, schedule, warmup, label_smoothing)
    check_device(device)
    flush_denormals()
    L.seed_everything(seed, workers=True, verbose=False)
    console = Console(quiet=process_rank() > 0)

    dataset = open_classification_data(data)
    train_part, val_part, judged_on = _training_parts(dataset, val_fraction, seed)
    size, stem = _input_for(dataset, img_size, stem, weights, console)
    net = _network(model, weights, dataset.class_names, in_chans, size, stem, drop_rate)
    preprocessing = _training_preprocessing(net, size)
    augmentation = _augmentation(net, data, augment, min_scale, hflip)

    folder = resumed_folder(resume) if resume else new_run_folder(out, default_run_folder(TASK, "train"))
    console.print(
        f"{net.width.name}, {len(dataset.class_names)} classes, input {net.input_size[0]}x{net.input_size[1]}, "
        f"{net.stem_type} stem; {len(train_part)} pictures to train on, {len(val_part)} to judge by ({judged_on}); "
        f"run folder {folder}",
        highlight=False,
        soft_wrap=True,
    )
    if resume is None and process_rank() == 0:
        write_config(folder, config)
    elif resume and (folder / LAST).exists():
        finished = _finished_epochs(folder / LAST)
        console.print(f"resuming behind epoch {finished} of {epochs}", highlight=False)
    elif resume:
        console.print("no epoch was finished: starting anew", highlight=False)

    settings = LoaderSettings(batch_size, default_workers() if workers is None else workers, seed)
    task = ClassifyTask(net, dataset.class_names, optimisation)

    def write_best(epoch: int, scores: dict[str, float]) -> None:
        save(net, folder / BEST, dataset.class_names, training={"epoch": epoch, **scores})

    fit(
        task,
        train_part.loader(training_transform(preprocessing, augmentation), True, settings),
        val_part.loader(evaluation_transform(preprocessing), False, settings),
        folder,
        columns=COLUMNS,
        callbacks=[BestWeights("top1", write_best)],
        console=console,
        epochs=epochs,
        ema=ema,
        device=device,
        devices=devices,
        strategy=strategy,
        precision=precision,
        accumulate=accumulate,
        clip=clip,
    )
    if task.global_rank == 0:
        _print_bad_pictures(task.bad_pictures, console)
        rows = read_metrics(folder / METRICS)
        write_bytes(folder / "curves.png", png(training_curves(rows, "val_top1", "validation top-1")))
        best = max(rows, key=lambda row: row["val_top1"])
        console.print(
            f"best epoch {best['epoch']:.0f}: top-1 {100 * best['val_top1']:.2f} %; weights in {folder / BEST}",
            highlight=False,
            soft_wrap=True,
        )
    return folder


def default_workers() -> int:
    """Reading processes: half of the processors, at most 4."""
    return min(4, (os.cpu_count() or 2) // 2)


def _finished_epochs(checkpoint: Path) -> int:
    """Number of finished epochs in a checkpoint. Raises WeightsError if it cannot be read."""
    read_checkpoint(checkpoint)
    return int(torch.load(checkpoint, map_location="cpu", weights_only=True)["epoch"]) + 1


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


def _input_for(
    dataset: ClassificationData,
    img_size: int | tuple[int, int] | None,
    stem: str | None,
    weights: str | None,
    console: Console,
) -> tuple[int | tuple[int, int] | None, str | None]:
    """Input size and stem: as asked, or chosen by the size of the pictures."""
    small = small_input(dataset.median_side())
    if small is None or img_size is not None:
        return img_size, stem
    stem = stem or (None if weights else "small")
    console.print(
        f"small pictures: input size {small}"
        + (f", {stem} stem" if stem else "")
        + " (--img-size and --stem override)",
        highlight=False,
    )
    return small, stem


def _network(
    model: str | None,
    weights: str | None,
    class_names: Sequence[str],
    in_chans: int,
    img_size: int | tuple[int, int] | None,
    stem: str | None,
    drop_rate: float | None,
) -> DiCENet:
    """The network to train, with fresh or given weights; a fresh classifier starts near zero."""
    if model:
        check_model_name(model)
        if "." in model:
            model, weights = model.split(".")[0], weights or model
    if weights is None:
        net = timm.create_model(
            model or _DEFAULT_MODEL,
            num_classes=len(class_names),
            in_chans=in_chans,
            img_size=img_size or 224,
            stem=stem or "standard",
            drop_rate=drop_rate,
        )
        _start_small(net.get_classifier())
        return net
    net = load(weights, num_classes=len(class_names), in_chans=in_chans, drop_rate=drop_rate)
    assert isinstance(net, DiCENet)
    if model and net.width.name != model:
        raise WeightsError(
            f"{weights} is a checkpoint of {net.width.name}, not of {model}: give --model {net.width.name}"
        )
    if stem and stem != net.stem_type:
        raise WeightsError(f"{weights} was made with the {net.stem_type} stem, not the {stem} one: leave out --stem")
    if tuple(net.pretrained_cfg.get("label_names") or ()) != tuple(class_names):
        net.reset_classifier(len(class_names))
        _start_small(net.get_classifier())
    if img_size is not None:
        net.set_input_size(img_size)
    return net


def _start_small(classifier: nn.Module) -> None:
    """Begin with almost equal logits: the official initialisation starts few classes at a loss far above chance."""
    if isinstance(classifier, nn.Conv2d):
        nn.init.normal_(classifier.weight, std=0.01)


def _training_preprocessing(net: DiCENet, img_size: Any) -> Preprocessing:
    """How pictures become inputs; kept in the network's configuration, so that it is saved with the weights."""
    cfg = dict(net.pretrained_cfg)
    if net.stem_type == "small":
        cfg["crop_pct"] = 1.0  # a small picture is shown whole
    preprocessing = Preprocessing.of(cfg)
    net.pretrained_cfg = net.default_cfg = cfg | preprocessing.as_config()
    return preprocessing


def _augmentation(
    net: DiCENet, data: str, kind: str | None, min_scale: float | None, hflip: float | None
) -> Augmentation:
    small = net.stem_type == "small"
    return Augmentation(
        kind or ("shift" if small else "resized-crop"),
        (0.2 if net.width.scale <= 1 else 0.08) if min_scale is None else min_scale,
        (0.0 if data == "digits" else 0.5) if hflip is None else hflip,
    )


def _print_bad_pictures(bad: dict[str, str], console: Console) -> None:
    for reason in list(bad.values())[:10]:
        console.print(f"left out: {reason}", highlight=False, markup=False, soft_wrap=True)
    if bad:
        pictures = "1 picture" if len(bad) == 1 else f"{len(bad)} pictures"
        console.print(f"{pictures} could not be read: left out", highlight=False)


# -- evaluation


def class_names_of(net: DiCENet) -> list[str]:
    """Names of the classes: those saved with the weights, ImageNet's for 1000 classes, or else numbers."""
    if names := net.pretrained_cfg.get("label_names"):
        return list(names)
    if net.num_classes == _IMAGENET_CLASSES:
        return ImageNetInfo("imagenet-1k").label_descriptions()
    return [str(index) for index in range(net.num_classes)]


def _load_classifier(weights: str, img_size: int | tuple[int, int] | None) -> tuple[DiCENet, Preprocessing]:
    net = load(weights)
    assert isinstance(net, DiCENet)
    if net.num_classes == 0:
        raise WeightsError(f"{weights} has no classifier")
    if img_size is not None:
        net.set_input_size(img_size)
    return net.eval().to(memory_format=torch.channels_last), Preprocessing.of(net.pretrained_cfg)


def _class_order(data_names: Sequence[str], net: DiCENet, weights: str) -> list[int]:
    """For each class of the data the class of the network with the same name (or WordNet id)."""
    names = class_names_of(net)
    known = {name: index for index, name in enumerate(names)}
    if net.num_classes == _IMAGENET_CLASSES and "label_names" not in net.pretrained_cfg:
        known |= {wnid: index for index, wnid in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    unknown = [name for name in data_names if name not in known]
    if unknown:
        raise ConfigError(
            f"{weights} was trained for {len(names)} classes ({', '.join(names[:5])}, ...), the data has "
            f"{len(data_names)}, among them unknown ones: {', '.join(unknown[:5])}"
        )
    return [known[name] for name in data_names]


def evaluate(
    weights: str,
    data: str,
    split: str | None = None,
    out: str | None = None,
    img_size: int | tuple[int, int] | None = None,
    batch_size: int = 128,
    workers: int | None = None,
    device: str = "auto",
    precision: str = "32-true",
) -> dict[str, Any]:
    """Judge a classifier on pictures of known classes.

    Args:
        weights: of the classifier: a file of any known format, or the name of an official checkpoint.
        data: folder of a data set, or "digits", as for training; classes are matched by name.
        split: train, val, test or all; the first there is of test, val, all if not given.
        out: folder for the results, new or empty; runs/classify/evaluate-<date>-<time> if not given.
        img_size: another input size in pixels, or [height, width], than the one saved with the weights.
        batch_size: pictures at a time.
        workers: processes that read pictures.
        device: auto, cpu, cuda or mps.
        precision: Lightning's, such as bf16-mixed.

    Returns:
        What results.json holds: top1, top5, loss, the table of classes, the confusion matrix, unreadable pictures.
    """
    check_device(device)
    console = Console()
    net, preprocessing = _load_classifier(weights, img_size)
    dataset = open_classification_data(data)
    split, part = dataset.evaluation_part(split)
    order = _class_order(dataset.class_names, net, weights)
    folder = new_run_folder(out, default_run_folder(TASK, "evaluate"))

    settings = LoaderSettings(batch_size, default_workers() if workers is None else workers)
    task = _ReorderedTask(net, class_names_of(net), order)
    trainer = make_trainer(
        accelerator=device,
        devices=1,
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=console.is_terminal,
    )
    trainer.test(task, part.loader(evaluation_transform(preprocessing), False, settings), verbose=False)
    scores = task.validation_scores()
    results = {
        "task": TASK,
        "weights": str(weights),
        "data": data,
        "split": split,
        "pictures": len(part),
        "input_size": list(preprocessing.input_size),
        **scores,
        "classes": _class_table(task.confusion.compute(), task.class_names, order),
        "confusion": task.confusion.compute().tolist() if net.num_classes <= 100 else None,
        "errors": [{"path": name, "reason": reason} for name, reason in task.bad_pictures.items()],
    }
    write_json(folder / "results.json", results)
    if net.num_classes <= 100:
        plot = confusion_plot(task.confusion.compute().cpu().numpy(), task.class_names)
        write_bytes(folder / "confusion.png", png(plot))
    _print_results(results, folder, console)
    return results


class _ReorderedTask(ClassifyTask):
    """Judges on data whose classes stand in another order than the network's."""

    def __init__(self, net: DiCENet, class_names: Sequence[str], order: Sequence[int]) -> None:
        super().__init__(net, class_names)
        self.register_buffer("order", torch.tensor(order))

    def _scores(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
        if "image" in batch:
            batch["target"] = self.order[batch["target"]]
        return super()._scores(batch)


def _class_table(confusion: Tensor, names: Sequence[str], order: Sequence[int]) -> list[dict[str, Any]]:
    """Per class of the data: pictures, top1 (recall), precision, f1; None where there is nothing to divide by."""
    rows = []
    for index in order:
        right = int(confusion[index, index])
        pictures, predicted = int(confusion[index].sum()), int(confusion[:, index].sum())
        rows.append(
            {
                "class": names[index],
                "pictures": pictures,
                "top1": right / pictures if pictures else None,
                "precision": right / predicted if predicted else None,
                "f1": 2 * right / (pictures + predicted) if pictures + predicted else None,
            }
        )
    return rows


def _print_results(results: dict[str, Any], folder: Path, console: Console) -> None:
    rows = results["classes"]
    shown = rows if len(rows) <= 50 else sorted(rows, key=lambda row: (row["top1"] is None, row["top1"]))[:20]
    table = Table(title=None if len(shown) == len(rows) else "the 20 classes with the lowest top-1")
    table.add_column("class")
    for column in ("pictures", "top-1", "precision", "f1"):
        table.add_column(column, justify="right")
    for row in shown:
        values = ["-" if row[key] is None else f"{100 * row[key]:.1f} %" for key in ("top1", "precision", "f1")]
        table.add_row(row["class"], str(row["pictures"]), *values)
    console.print(table)
    _print_bad_pictures({e["path"]: e["reason"] for e in results["errors"]}, console)
    judged = results["pictures"] - len(results["errors"])
    console.print(
        f"{judged} pictures of {results['data']} ({results['split']}): top-1 {100 * results['top1']:.2f} %, "
        f"top-5 {100 * results['top5']:.2f} %, loss {results['loss']:.4f}; {folder / 'results.json'}",
        highlight=False,
        soft_wrap=True,
    )


# -- prediction


def _torch_device(device: str) -> torch.device:
    check_device(device)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return torch.device(device)


def predict(
    paths: Sequence[str],
    weights: str,
    out: str | None = None,
    top: int = 5,
    draw: bool = True,
    img_size: int | tuple[int, int] | None = None,
    batch_size: int = 32,
    device: str = "auto",
) -> dict[str, Any]:
    """Name the classes of pictures.

    Args:
        paths: pictures, and folders of pictures.
        weights: of the classifier: a file of any known format, or the name of an official checkpoint.
        out: folder for the results, new or empty; runs/classify/predict-<date>-<time> if not given.
        top: how many classes to name.
        draw: also write each picture with its classes drawn in.
        img_size: another input size in pixels, or [height, width], than the one saved with the weights.
        batch_size: pictures at a time.
        device: auto, cpu, cuda or mps.

    Returns:
        What predictions.json holds: items (file, result: class, index, score, best first) and errors (path, reason).
    """
    target = _torch_device(device)
    if top < 1 or batch_size < 1:
        raise ConfigError(f"top and batch_size must be at least 1, got {top} and {batch_size}")
    console = Console()
    net, preprocessing = _load_classifier(weights, img_size)
    net = net.to(target)
    names = class_names_of(net)
    files = find_pictures(paths)
    folder = new_run_folder(out, default_run_folder(TASK, "predict"))
    transform = evaluation_transform(preprocessing)
    items: list[dict[str, Any]] = []
    errors: list[dict[str, str]] = []
    pictures_folder = _PictureNames(folder / "pictures")

    def answer(chosen: list[Path]) -> None:
        readable = []
        for file in chosen:
            try:
                picture = read_picture(file)
            except DataError as error:
                errors.append({"path": str(file), "reason": str(error)})
                continue
            readable.append((file, picture))
        if not readable:
            return
        batch = torch.stack([transform(picture) for _, picture in readable])
        with torch.inference_mode():
            scores = net(batch.to(target, memory_format=torch.channels_last)).float().softmax(dim=1).cpu()
        for (file, picture), row in zip(readable, scores, strict=True):
            values, indices = row.topk(min(top, len(names)))
            result = [
                {"class": names[index], "index": index, "score": round(score, 6)}
                for score, index in zip(values.tolist(), indices.tolist(), strict=True)
            ]
            items.append({"file": str(file), "result": result})
            if draw:
                drawn = with_classes(picture, [(r["class"], r["score"]) for r in result])
                with atomic_path(pictures_folder.new(file)) as temporary:
                    drawn.save(temporary, "JPEG", quality=90)

    batches = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
    for chosen in track(batches, "predicting", console=console, transient=True, disable=not console.is_terminal):
        answer(chosen)
    predictions = {"task": TASK, "weights": str(weights), "items": items, "errors": errors}
    write_json(folder / "predictions.json", predictions)

    for item in items[:20]:
        best = item["result"][0]
        console.print(
            f"{item['file']}: {best['class']} {100 * best['score']:.1f} %",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    if len(items) > 20:
        console.print(f"... and {len(items) - 20} more", highlight=False)
    _print_bad_pictures({error["path"]: error["reason"] for error in errors}, console)
    console.print(
        f"{len(items)} pictures answered, {len(errors)} left out; {folder / 'predictions.json'}",
        highlight=False,
        soft_wrap=True,
    )
    if not items:
        raise DataError(f"none of the {len(files)} pictures could be read, the first: {errors[0]['reason']}")
    return predictions


class _PictureNames:
    """File names for drawn pictures: the picture's own, numbered where two are called alike."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.taken: set[str] = set()

    def new(self, file: Path) -> Path:
        """A name that was not given before."""
        name, number = f"{file.stem}.jpg", 1
        while name.lower() in self.taken:
            number += 1
            name = f"{file.stem}-{number}.jpg"
        self.taken.add(name.lower())
        return self.folder / name
