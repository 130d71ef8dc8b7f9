"""Do pictures come as fast as a network learns from them? Pictures a second of the loader alone and of training.

python benchmarks/loading.py [--data FOLDER] [--out results/loading.csv]    # about 6 minutes on 2 cores

Two cases, each with 0, 1 and 2 reading processes, in turn: CIFAR-10 from gzipped shards (32x32, a small network), and
photographs of COCO and VOC from class folders (224x224, the network of width 1). Training is measured as ``dicenet
train`` measures itself, behind some first batches, with the part of the time that it waits for pictures.
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import timm
import torch
from torch.utils.data import DataLoader

from dicenet.data.classification import open_classification_data
from dicenet.data.samples import LoaderSettings
from dicenet.data.transforms import training_transform
from dicenet.engine.fit import make_trainer
from dicenet.engine.machine import machine, write_csv
from dicenet.engine.pace import Pace
from dicenet.ops import flush_denormals
from dicenet.tasks.classifier_training import augmentation_for, training_preprocessing
from dicenet.tasks.classify.task import ClassifyTask

REPOSITORY = Path(__file__).parents[1]
#: Batches before the clock starts: reading processes start, and the first steps are slower.
FIRST = 3
#: Links to each photograph, so that an epoch is long enough.
REPEATED = 20
WORKERS = (0, 1, 2)


@dataclass(frozen=True)
class Case:
    """Data and a network for it."""

    name: str
    data: Path
    model: str
    side: int
    stem: str
    batch_size: int


def photographs(data: Path, folder: Path) -> Path:
    """Class folders of links to COCO's and VOC's photographs."""
    for name, place in (("coco", data / "tiny_coco/train2017"), ("voc", data / "voc2012_mini/JPEGImages")):
        (folder / name).mkdir(parents=True)
        for file in sorted(place.glob("*.jpg")):
            for number in range(REPEATED):
                (folder / name / f"{file.stem}_{number}.jpg").symlink_to(file.resolve())
    return folder


def made(case: Case, workers: int) -> tuple[ClassifyTask, "DataLoader[Any]"]:
    """A fresh network, and batches prepared as a training prepares them."""
    dataset = open_classification_data(str(case.data))
    part = dataset.parts.get("train") or dataset.parts["all"]
    classes = dataset.class_names
    net = timm.create_model(case.model, num_classes=len(classes), img_size=case.side, stem=case.stem)
    transform = training_transform(training_preprocessing(net), augmentation_for(net, None, None, 0.5))
    return ClassifyTask(net, classes), part.loader(transform, True, LoaderSettings(case.batch_size, workers))


def loader_speed(loader: "DataLoader[Any]", seconds: float) -> float:
    """Pictures a second where nobody learns from them."""
    batches: Iterator[dict[str, Any]] = iter(loader)
    for _ in range(FIRST):
        next(batches)
    pictures, began = 0, time.monotonic()
    for batch in batches:
        pictures += len(batch["image"])
        if time.monotonic() - began >= seconds:
            break
    return pictures / (time.monotonic() - began)


class Stop(L.Callback):
    """Measures anew behind the first batches, and stops after some seconds. Stands behind the pace."""

    def __init__(self, pace: Pace, seconds: float) -> None:
        self.pace = pace
        self.seconds = seconds

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *arguments: Any) -> None:
        if trainer.global_step == FIRST:
            self.pace.on_train_start(trainer, pl_module)
        elif self.pace.trained >= self.seconds and trainer.global_step > FIRST:
            trainer.should_stop = True


@flush_denormals()
def training_speed(task: ClassifyTask, loader: "DataLoader[Any]", seconds: float) -> dict[str, float]:
    """What a training says of itself: see :meth:`dicenet.engine.pace.Pace.timings`."""
    pace = Pace()
    trainer = make_trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[pace, Stop(pace, seconds)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
    )
    trainer.fit(task, loader)
    return pace.timings()


def measured(case: Case, workers: int, seconds: float) -> dict[str, Any]:
    """Both speeds of a case."""
    alone = loader_speed(made(case, workers)[1], seconds)
    timings = training_speed(*made(case, workers), seconds)
    return {
        "data": case.name,
        "model": case.model,
        "input_size": f"{case.side}x{case.side}",
        "batch_size": case.batch_size,
        "workers": workers,
        "loader_pictures_per_second": round(alone, 1),
        "training_pictures_per_second": round(timings["pictures_per_second"], 1),
        "waiting": round(timings["waiting"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared/data")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "results/loading.csv")
    parser.add_argument("--seconds", type=float, default=8, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message="You defined a `validation_step` but have no")
    torch.manual_seed(1882)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folders = photographs(options.data, Path(folder))
        cases = [
            Case("cifar10, gzipped shards", options.data / "cifar10", "dicenet_050", 32, "small", 128),
            Case("coco and voc, class folders", folders, "dicenet_100", 224, "standard", 32),
        ]
        for number in range(options.rounds):
            for case in cases:
                for workers in WORKERS:
                    row = {"round": number + 1, **measured(case, workers, options.seconds)}
                    print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
                    rows.append({**row, "threads": torch.get_num_threads(), **machine()})
    write_csv(options.out, rows)


if __name__ == "__main__":
    main()
