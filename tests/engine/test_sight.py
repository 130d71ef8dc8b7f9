"""What is seen of a training: its pace by hand, on a clock that moves only when something is done; bar and words."""

import csv
import io
import re

import lightning as L
import pytest
import timm
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import dicenet
from dicenet.data.classification import open_classification_data
from dicenet.data.samples import LoaderSettings, batches, collate, pictures_of
from dicenet.engine.bar import RunBar
from dicenet.engine.callbacks import Chance, EpochLines, MetricsTable
from dicenet.engine.console import duration, say_pairs
from dicenet.engine.fit import FitSettings, fit
from dicenet.engine.pace import TIMINGS, Pace, Remaining, advice
from dicenet.engine.run_folder import METRICS
from dicenet.tasks.classify.task import ClassifyOptimisation, ClassifyTask
from dicenet.tasks.summary import summary

COLUMNS = ("train_loss", "val_loss", "val_score")
#: Seconds by hand: of reading a picture to train on, a training step, and judging a batch.
READ, STEP, JUDGE = 0.25, 3.0, 0.5


class Clock:
    """Seconds that pass where something is done."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def work(self, seconds):
        self.now += seconds


class Pictures(torch.utils.data.Dataset):
    """Numbers; reading one takes its time."""

    def __init__(self, count, clock, seconds):
        self.count, self.clock, self.seconds = count, clock, seconds

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.clock.work(self.seconds)
        if index == 7:
            return {"name": "7", "error": "7 cannot be read"}
        return {"name": str(index), "image": torch.tensor([index / 10.0]), "target": index}


class Line(L.LightningModule):
    """A parameter that is pulled to the pictures' mean."""

    SMALLER = "smaller pictures"

    def __init__(self, clock):
        super().__init__()
        self.value = torch.nn.Parameter(torch.zeros(1))
        self.clock = clock
        self.seen = []

    def running(self):
        return {"train_loss": sum(self.seen) / len(self.seen)} if self.seen else {}

    def on_train_epoch_start(self):
        self.seen.clear()

    def training_step(self, batch, batch_index):
        self.clock.work(STEP)
        loss = (batch["image"] - self.value).square().mean()
        self.seen.append(float(loss.detach()))
        self.log("train_loss", loss, on_epoch=True, on_step=False, batch_size=len(batch["image"]))
        return loss

    def validation_step(self, batch, batch_index):
        self.clock.work(JUDGE)

    def on_validation_epoch_end(self):
        self.log("val_loss", 1.0 + self.current_epoch)
        self.log("val_score", 0.25, prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.125)


class Watch(L.Callback):
    """Notes what is remaining behind each batch."""

    def __init__(self, pace, clock):
        self.pace, self.clock, self.notes = pace, clock, []

    def _note(self):
        self.notes.append((self.clock(), self.pace.remaining()))

    def on_train_epoch_start(self, *arguments):
        self._note()

    def on_train_batch_end(self, *arguments):
        self._note()

    def on_validation_batch_end(self, *arguments):
        self._note()


@pytest.fixture
def clock():
    return Clock()


def loaders(clock):
    """Three batches of 4 to train on, of which one has a picture less; two batches to judge by, read in no time."""
    settings = LoaderSettings(4)
    train = batches(Pictures(12, clock, READ), True, settings, collate)
    train.clock = clock
    return train, batches(Pictures(6, clock, 0), False, settings, collate)


def run(folder, clock, console, epochs=2, **more):
    """A training of two epochs with all that watches it."""
    pace = Pace(clock)
    watch = Watch(pace, clock)
    callbacks = [pace, watch, MetricsTable(folder / METRICS, COLUMNS, pace), EpochLines(console, COLUMNS, pace)]
    train, val = loaders(clock)
    callbacks.append(Chance(0, train))
    if console.is_terminal:
        callbacks.append(RunBar(console, pace, "val_score"))
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=console.is_terminal,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **more,
    )
    trainer.fit(Line(clock), train, val)
    return watch.notes


@pytest.fixture(autouse=True)
def quiet():
    dicenet.engine.fit.quiet_lightning()


@pytest.fixture
def log():
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    return Console(file=io.StringIO(), force_terminal=True, width=160, legacy_windows=False, _environ={})


def rows(folder):
    with (folder / METRICS).open(newline="") as file:
        return list(csv.DictReader(file))


pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*")


def test_the_pace_of_each_epoch(tmp_path, clock, log):
    """3 batches of 4 x 0.25 s of reading and 3 s of learning: 11 pictures in 12 s, 3 of waiting; 13 with judging."""
    run(tmp_path, clock, log)
    for row in rows(tmp_path):
        assert {name: float(row[name]) for name in TIMINGS} == {
            "seconds": 13.0,
            "pictures_per_second": pytest.approx(11 / 12, abs=0.05),
            "waiting": 0.25,
        }
    lines = log.file.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/2", "2/2"]
    assert all(line.endswith("  13 s  1 pictures/s, 25% waiting") for line in lines)
    assert " val_loss 2.0000  val_score 0.2500  " in lines[1]


def test_the_remaining_time_is_that_which_passes(tmp_path, clock, log):
    """All goes on as it went: once a validation is known, what is told is exactly what comes."""
    notes = run(tmp_path, clock, log)
    assert notes[0][1] is None
    first = [remaining for _, remaining in notes[1:4]]
    assert first == [Remaining(8.0, 20.0), Remaining(4.0, 16.0), Remaining(0.0, 12.0)], "as without a validation"
    ends = [113.0] * 2 + [126.0] * 6
    assert [remaining for _, remaining in notes[4:]] == [
        Remaining(end - now, 126.0 - now) for (now, _), end in zip(notes[4:], ends, strict=True)
    ]
    assert [remaining.run for _, remaining in notes[4:]] == [13.5, 13, 13, 9, 5, 1, 0.5, 0]


def test_an_epoch_that_goes_on_is_measured_from_there(tmp_path, clock, log):
    """A third of the epoch is done: what was before counts neither as pictures nor as time."""
    pace = Pace(clock)
    train, _ = loaders(clock)

    class Trainer:
        train_dataloader, world_size, num_training_batches = train, 2, 3
        num_val_batches, max_epochs, current_epoch = (2,), 5, 3

    pace.on_train_start(Trainer, None)
    assert pace.remaining() is None
    clock.work(4.0)
    train.waited += 1.0
    pace.on_train_batch_end(Trainer, None, None, {"image": torch.zeros(6, 1)}, 1)
    clock.work(1.0)
    assert pace.timings() == {"seconds": 5.0, "pictures_per_second": 3.0, "waiting": 0.25}, "both processes' pictures"
    assert pace.remaining() == Remaining(4.0, 4.0 + 3 * 4.0)


def test_a_batch_without_pictures_is_waited_for_too(clock):
    pace = Pace(clock)
    train, _ = loaders(clock)

    class Trainer:
        train_dataloader, world_size, num_training_batches = train, 1, 3
        num_val_batches, max_epochs, current_epoch = (), 1, 0

    pace.on_train_epoch_start(Trainer, None)
    assert pace.timings() == {"seconds": 0.0}
    clock.work(2.0)
    train.waited += 2.0
    pace.on_train_batch_end(Trainer, None, None, {"errors": {}}, 0)
    assert pace.timings() == {"seconds": 2.0, "pictures_per_second": 0.0, "waiting": 1.0}


def screen(text, width):
    """What a terminal shows in the end, of text with the few controls that the bar uses."""
    lines, row, column = [[]], 0, 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|.|\n", text):
        control = re.fullmatch(r"\x1b\[([0-9;?]*)([A-Za-z])", part)
        if control and control[2] == "A":
            row -= int(control[1] or 1)
        elif control and control[2] == "K":
            lines[row] = []
        elif control:
            assert control[2] in "mhl", part
        elif part == "\r":
            column = 0
        elif part == "\n":
            row, column = row + 1, 0
            lines += [[] for _ in range(row + 1 - len(lines))]
        else:
            assert column < width, "a line is broken"
            lines[row] += [" "] * (column + 1 - len(lines[row]))
            lines[row][column] = part
            column += 1
    return ["".join(line).rstrip() for line in lines]


def test_the_bar(tmp_path, clock, terminal, monkeypatch):
    """Behind each batch it shows the numbers of that moment, and the lines of epochs stay above it."""
    seen = []

    class Drawn(L.Callback):
        def on_train_batch_end(self, trainer, module, *arguments):
            bar = trainer.progress_bar_callback
            bar.refresh(hard=True)
            seen.append((screen(terminal.file.getvalue(), 160), dict(module.running())))

        on_validation_batch_end = on_train_batch_end

    original = L.Trainer

    def with_drawing(callbacks, **more):
        return original(callbacks=[*callbacks, Drawn()], **more)

    monkeypatch.setattr(L, "Trainer", with_drawing)
    run(tmp_path, clock, terminal)
    bars = [next(line for line in reversed(shown) if line.startswith("epoch") and "left" in line) for shown, _ in seen]
    words = [re.sub(r"[━╸╺ ]+", " ", bar) for bar in bars]
    assert [word.split(" train_loss")[0] for word in words] == [
        "epoch 1/2 1/3 1 pictures/s 0:08 left, run 0:20",
        "epoch 1/2 2/3 1 pictures/s 0:04 left, run 0:16",
        "epoch 1/2 3/3 1 pictures/s 0:00 left, run 0:12",
        "epoch 1/2 3/3 1 pictures/s 0:00 left, run 0:14",
        "epoch 1/2 3/3 1 pictures/s 0:00 left, run 0:13",
        "epoch 2/2 1/3 1 pictures/s 0:09 left, run 0:09",
        "epoch 2/2 2/3 1 pictures/s 0:05 left, run 0:05",
        "epoch 2/2 3/3 1 pictures/s 0:01 left, run 0:01",
        "epoch 2/2 3/3 1 pictures/s 0:00 left, run 0:00",
        "epoch 2/2 3/3 1 pictures/s 0:00 left, run 0:00",
    ]
    for (_, running), word in zip(seen, words, strict=True):
        assert f"train_loss: {running['train_loss']:.3f}" in word
    assert all(("val_score: 0.250" in word) == (number > 4) for number, word in enumerate(words))
    assert any(re.match(r"judging .* 2/2", line) for line in seen[4][0])
    assert seen[5][0][0].startswith("epoch 1/2  train_loss ")
    left = [line for line in screen(terminal.file.getvalue(), 160) if line]
    assert [line.split("  ")[0] for line in left] == ["epoch 1/2", "epoch 2/2"], "the bar is gone in the end"


def test_numbers_are_read_a_few_times_a_second_only(clock, terminal):
    """However many steps there are: each reading waits for the device."""
    bar, reads = RunBar(terminal, Pace(clock), "val_score"), []

    class Module:
        def running(self):
            reads.append(clock())
            return {"train_loss": float(len(reads))}

    class Trainer:
        progress_bar_metrics = {"val_score": torch.tensor(0.5), "val_other": torch.tensor(0.1)}  # noqa: RUF012

    shown = []
    for _ in range(1000):
        clock.work(0.01)
        shown.append(bar.get_metrics(Trainer, Module()))
    assert 35 <= len(reads) <= 41
    assert shown[0] == {"train_loss": "1.000", "val_score": "0.500"}
    assert shown[-1] == {"train_loss": f"{len(reads):.3f}", "val_score": "0.500"}


def test_a_table_of_before_goes_on(tmp_path, clock, log):
    """Rows without the new columns keep what they have, also what is not known here; unfinished epochs go."""
    (tmp_path / METRICS).write_text(
        "epoch,step,train_loss,val_loss,val_score,lr,seconds,note\n0,0,3,4,0.5,0.1,7.5,kept\n9,27,1,1,1,1,1,late\n"
    )
    run(tmp_path, clock, log, epochs=1)
    before, now = rows(tmp_path)
    assert list(now) == ["epoch", "step", *COLUMNS, "lr", *TIMINGS, "note"]
    assert before == {
        **{"epoch": "0", "step": "0", "train_loss": "3", "val_loss": "4", "val_score": "0.5", "lr": "0.1"},
        **{"seconds": "7.5", "pictures_per_second": "", "waiting": "", "note": "kept"},
    }
    assert (now["epoch"], now["seconds"], now["note"]) == ("1", "13.0", "")


def test_tensorboard_has_what_the_table_has(tmp_path, clock, log):
    train, val = loaders(clock)
    settings = FitSettings(3, device="cpu")
    fit(
        Line(clock),
        train,
        val,
        tmp_path,
        columns=COLUMNS,
        score="val_score",
        callbacks=[],
        console=log,
        settings=settings,
    )
    logs = EventAccumulator(str(tmp_path / "tensorboard"))
    logs.Reload()
    table = rows(tmp_path)
    for name in (*COLUMNS, "lr", *TIMINGS):
        points = logs.Scalars(name)
        assert [point.value for point in points] == pytest.approx([float(row[name]) for row in table], rel=1e-5), name
        assert [point.step for point in points] == [int(row["step"]) - 1 for row in table], name


class Waiting:
    """An epoch as the advice asks for it."""

    def __init__(self, share, waited):
        self.share, self.waited = share, waited

    def timings(self):
        return {"waiting": self.share}


class Reader:
    def __init__(self, num_workers, in_shards):
        self.num_workers, self.in_shards = num_workers, in_shards


@pytest.mark.parametrize(
    ("share", "waited", "workers", "shards", "words"),
    [
        (
            0.38,
            60,
            1,
            False,
            r"^38% of the training time .*: try more --workers than 1 \(there are 4 cores\), or smaller pictures$",
        ),
        (0.38, 60, 1, True, r"than 1 \(there are 4 cores\)$"),
        (0.38, 60, 4, False, r"try smaller pictures$"),
        (0.38, 60, 4, True, None),
        (0.19, 60, 1, False, None),
        (0.38, 9, 1, False, None),
    ],
)
def test_advice(share, waited, workers, shards, words):
    said = advice(Waiting(share, waited), Reader(workers, shards), 4, "smaller pictures")
    assert said is None if words is None else re.search(words, said)


def test_advice_is_given_once(tmp_path, clock, log, monkeypatch):
    monkeypatch.setattr(dicenet.engine.pace, "_LONG", 2.0)
    run(tmp_path, clock, log)
    first, said, second = log.file.getvalue().splitlines()
    assert first.startswith("epoch 1/2 ")
    assert said.startswith("25% of the training time")
    assert second.startswith("epoch 2/2 ")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (3599.7, "1:00:00"), (86399, "23:59:59")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_pairs_are_aligned_lines_or_a_table(log, terminal):
    pairs = [("a", "[bold] is text"), ("long", "2")]
    say_pairs(log, pairs)
    assert log.file.getvalue() == "a     [bold] is text\nlong  2\n"
    say_pairs(terminal, pairs)
    text = re.sub(r"\x1b\[[0-9;]*m", "", terminal.file.getvalue())
    first, second = (line.split(maxsplit=1) for line in text.splitlines()[1:-1])
    assert [name for name, _ in (first, second)] == ["a", "long"]
    assert first[1].strip() == "[bold] is text"


def test_pictures_of_loaders(clock, shared):
    assert [pictures_of(loader) for loader in loaders(clock)] == [12, 6]
    parts = open_classification_data(str(shared("data/cifar10"))).parts
    settings = LoaderSettings(64)
    assert pictures_of(parts["train"].loader(None, True, settings)) == 50000
    assert pictures_of(parts["test"].loader(None, False, settings)) == 10000


@pytest.mark.parametrize("mixup", [0.0, 0.2])
def test_running_numbers_of_a_classifier(monkeypatch, mixup):
    """Two batches of 3 and 1 pictures, 3 of 4 right; and the loss of the pictures, each counted once."""
    net = timm.create_model("dicenet_010", num_classes=3, img_size=32, stem="small")
    task = ClassifyTask(net, ["a", "b", "c"], ClassifyOptimisation(mixup=mixup))
    assert task.running() == {}
    logits = torch.tensor([[2.0, 0, 0], [0, 2.0, 0], [0, 0, 2.0], [0, 0, 2.0]])
    target = torch.tensor([0, 1, 1, 2])
    monkeypatch.setattr(task, "log", lambda *arguments, **options: None)
    losses = []
    for part in (slice(0, 3), slice(3, 4)):
        monkeypatch.setattr(task, "logits", lambda images, part=part: logits[part].requires_grad_())
        batch = {"errors": {}, "image": torch.zeros(len(logits[part]), 3, 32, 32), "target": target[part]}
        losses += [float(task.training_step(batch, 0).detach())] * len(batch["image"])
    task.training_step({"errors": {"x": "x cannot be read"}}, 2)
    running = task.running()
    assert running.pop("train_loss") == pytest.approx(sum(losses) / 4)
    assert running == ({} if mixup else {"train_top1": 0.75})
    task.on_train_epoch_start()
    assert "train_top1" not in task.running()


def test_summary(tmp_path):
    """Of three epochs, the first of a table without the new columns."""
    net = timm.create_model("dicenet_010", num_classes=3, img_size=32, stem="small")
    (tmp_path / "best.safetensors").touch()
    (tmp_path / "tensorboard").mkdir()
    names = ("epoch", "train_loss", "val_score", "seconds", "pictures_per_second", "waiting")
    values = [(1.0, 2.0, 0.5, 3600.0), (2.0, 1.0, 0.75, 60.0, 1e3, 0.2), (3.0, 0.5, 0.7, 2.4, 3e3, 0.1)]
    table = [dict(zip(names, row, strict=False)) for row in values]
    found = dict(summary(net, (50000, 100), table, "val_score", COLUMNS, tmp_path))
    assert found == {
        "network": f"dicenet_010, {sum(p.numel() for p in net.parameters()):,} parameters",
        "pictures": "50,000 to train on, 100 to judge by",
        "epochs": "3 in 1:01:02",
        "best": "epoch 2  train_loss 1.0000  val_score 0.7500",
        "last": "epoch 3  train_loss 0.5000  val_score 0.7000",
        "speed": "2,000 pictures/s in training, 15% of its time waiting for them",
        "files": f"{tmp_path}: best.safetensors, tensorboard/",
    }
    assert "speed" not in dict(summary(net, (1, 1), table[:1], "val_score", COLUMNS, tmp_path))
