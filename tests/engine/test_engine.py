"""Schedules by hand and against the official code's, run folders, and what a stopped and resumed training keeps."""

import csv
import random

import numpy as np
import pytest
import torch

import dicenet
from dicenet.data.samples import LoaderSettings, batches, collate
from dicenet.engine.fit import moving_average
from dicenet.engine.run_folder import default_run_folder, new_run_folder, resumed_folder, write_config
from dicenet.engine.schedules import Schedule, learning_rate, scheduler
from dicenet.ops.denormals import flushes_denormals
from dicenet.tasks import classify
from dicenet.tasks.classifier import ClassifierOptimisation
from dicenet.tasks.classify.task import ClassifyOptimisation
from dicenet.tasks.detect.task import DetectOptimisation
from dicenet.tasks.segment.task import SegmentOptimisation


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("linear", [1 / 3, 2 / 3, 1, 3 / 4, 1 / 2, 1 / 4, 0, 0]),
        ("cosine", [1 / 3, 2 / 3, 1, (1 + 2**-0.5) / 2, 1 / 2, (1 - 2**-0.5) / 2, 0, 0]),
        ("multistep", [1 / 3, 2 / 3, 1, 1, 0.1, 0.1, 0.01, 0.01]),
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1]),
        ("linear-epochs", [1 / 3, 2 / 3, 2 / 3, 2 / 3, 1 / 3, 1 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_schedules(name, expected):
    """Six steps in three epochs, two of them warm-up, by hand."""
    schedule = Schedule(name=name, warmup=1 / 3)
    actual = [learning_rate(step, schedule, steps=6, epochs=3) for step in range(8)]
    assert actual == pytest.approx(expected, abs=1e-9)


def test_scheduler_multiplies_the_peak():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    plan = scheduler(optimizer, Schedule(name="linear", warmup=1 / 3), steps=6)
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        plan.step()
    assert rates == pytest.approx([0.4 / 3, 0.8 / 3, 0.4, 0.3, 0.2, 0.1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "step"}, "choose one of linear, cosine, poly, multistep, constant, hybrid, cyclic, fixed, linear-ep"),
        ({"warmup": 1.0}, "warmup is a part of the run"),
        ({"cycled": 0}, "cycled must be at least 1 epoch"),
        ({"milestones": (20, 10)}, r"milestones must be ascending epochs from 1 on, got \[20, 10\]"),
        ({"milestones": (0, 10)}, "milestones must be ascending"),
        ({"decay": 0.0}, "decay must be above 0"),
    ],
)
def test_wrong_schedules(arguments, message):
    with pytest.raises(dicenet.ConfigError, match=message):
        Schedule(**arguments)


#: Columns of the official rates, the schedules they are of, base rate, and the decimals that the official code keeps.
OFFICIAL = [
    ("hybrid_0.009_100_clr61", Schedule(name="hybrid", cycled=61), 0.009, 6),
    ("hybrid_0.1_120_clr61", Schedule(name="hybrid", cycled=61), 0.1, 6),
    ("clr_0.1_300", Schedule(name="cyclic"), 0.1, 5),
    ("fixed_0.1_300", Schedule(name="fixed"), 0.1, 5),
    ("poly_0.1_300_p0.9", Schedule(name="poly-epochs"), 0.1, 6),
    ("linear_0.1_300", Schedule(name="linear-epochs"), 0.1, 6),
    ("cosine_0.1_300", Schedule(name="cosine-epochs"), 0.1, 6),
]


def official_rates(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_all_official_schedules_are_here(shared):
    (first, *_) = official_rates(shared("reference/official/lr_schedules.tsv"))
    assert set(first) - {"epoch"} == {column for column, *_ in OFFICIAL}


@pytest.mark.parametrize(("column", "schedule", "base", "decimals"), OFFICIAL)
def test_official_schedules(shared, column, schedule, base, decimals):
    """In every step of every epoch, to the digits that the official code rounds to, as the optimiser gets them."""
    table = official_rates(shared("reference/official/lr_schedules.tsv"))
    expected = [float(row[column]) for row in table if row[column]]
    epochs, per_epoch = len(expected), 3
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base)
    plan = scheduler(optimizer, schedule, steps=epochs * per_epoch, epochs=epochs)
    rates = []
    for _ in range(epochs * per_epoch):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        plan.step()
    half = 0.5 * 10.0**-decimals * (1 + 1e-6)
    for step in range(per_epoch):
        assert rates[step::per_epoch] == pytest.approx(expected, abs=half, rel=0)


@pytest.mark.parametrize(
    "kind", [ClassifyOptimisation, ClassifierOptimisation, SegmentOptimisation, DetectOptimisation]
)
@pytest.mark.parametrize(("column", "schedule", "base", "decimals"), OFFICIAL)
def test_schedules_of_tasks_are_official_unless_a_warmup_is_asked_for(shared, kind, column, schedule, base, decimals):
    """With nothing but the schedule's name, as the command gives it on."""
    table = official_rates(shared("reference/official/lr_schedules.tsv"))
    expected = [float(row[column]) for row in table if row[column]]
    optimisation = kind(lr=base, schedule=schedule.name, cycled=schedule.cycled)
    epochs, plan = len(expected), optimisation.plan()
    rates = [base * learning_rate(epoch, plan, epochs, epochs) for epoch in range(epochs)]
    assert rates == pytest.approx(expected, abs=0.5 * 10.0**-decimals * (1 + 1e-6), rel=0)
    assert kind(schedule=schedule.name, warmup=0.25).plan().warmup == 0.25


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"schedule": "hybrid"}, [1, 5, 4, 3]),
        ({"schedule": "hybrid", "warmup": 0.1}, [1 / 3, 2 / 3, 4, 3]),
        ({"schedule": "constant"}, [1 / 3, 2 / 3, 1, 1]),
        ({"schedule": "constant", "warmup": 0.0}, [1, 1, 1, 1]),
    ],
)
@pytest.mark.parametrize("resumed", [False, True])
def test_warmup_of_the_command(tmp_path, monkeypatch, given, expected, resumed):
    """Of 20 epochs with a step each, by hand; a run that was begun when 0.1 was the default keeps it."""
    monkeypatch.setattr("dicenet.tasks.training.Run.go", lambda run, task, *rest: (run, task))
    arguments = {**SMALL, "epochs": 20, **given}
    run, task = classify.train("digits", out=str(tmp_path / "run"), **arguments)
    if resumed:
        (tmp_path / "run").mkdir()
        write_config(tmp_path / "run", {**run.config, "warmup": given.get("warmup", 0.1)}, "train classify")
        _, task = classify.train(resume=str(tmp_path / "run"))
        expected = [1 / 3, 2 / 3, *expected[2:]] if given.get("warmup", 0.1) else expected
    rates = [learning_rate(step, task.optimisation.plan(), steps=20, epochs=20) for step in range(4)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"name": "hybrid", "cycled": 11}, ["--cycled 11 is above --epochs 10: the rate cycles"]),
        ({"name": "hybrid", "cycled": 10}, []),
        ({"name": "hybrid"}, []),
        ({"name": "linear", "cycled": 11}, []),
        ({"name": "cyclic"}, ["no milestone of cyclic lies within 10 epochs, the first at 51: give --milestones"]),
        ({"name": "fixed", "milestones": (10, 20)}, ["no milestone of fixed lies within 10 epochs, the first at 10"]),
        ({"name": "fixed", "milestones": (9, 20)}, []),
        ({"name": "linear"}, []),
    ],
)
def test_what_a_schedule_has_no_time_for(arguments, expected):
    """It is said exactly where it changes no rate of a run of 10 epochs."""
    lines = Schedule(**arguments).without_effect(10)
    assert [line[: len(start)] for line, start in zip(lines, expected, strict=True)] == expected


@pytest.mark.parametrize("name", ["linear", "cosine", "poly"])
def test_both_kinds_have_the_same_rate_where_an_epoch_begins(name):
    rates = [
        [learning_rate(7 * epoch, Schedule(name=kind), 70, 10) for epoch in range(10)]
        for kind in (name, f"{name}-epochs")
    ]
    assert rates[0] == pytest.approx(rates[1])


def test_run_folders(tmp_path, monkeypatch):
    assert default_run_folder("classify", "train").as_posix().startswith("runs/classify/train-")
    default = tmp_path / "a" / "run"
    names = [new_run_folder(None, default).name for _ in range(3)]
    assert names == ["run", "run-2", "run-3"]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert new_run_folder(empty, default) == empty
    (empty / "file").touch()
    with pytest.raises(dicenet.ConfigError, match="is not empty"):
        new_run_folder(empty, default)
    with pytest.raises(dicenet.ConfigError, match="cannot be made"):
        new_run_folder(empty / "file" / "below", default)
    with pytest.raises(dicenet.ConfigError, match="not a run folder"):
        resumed_folder(empty)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("DICENET_RUN_FOLDER", str(empty))
    assert new_run_folder(None, default) == empty, "the second process uses the folder of the first"


SMALL = {"model": "dicenet_010", "batch_size": 256, "workers": 0, "device": "cpu", "hflip": 0.0}


def train(out, **arguments):
    return classify.train("digits", out=str(out), **{**SMALL, **arguments})


def test_average_of_weights_is_validated_and_saved(tmp_path):
    folder = train(tmp_path / "run", epochs=1, ema=0.9)
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    best = dicenet.load(folder / "best.safetensors").state_dict()
    averaged, current = checkpoint["state_dict"], checkpoint["current_model_state"]
    key = "stages.0.0.right.1.dim_conv.weight_height"
    torch.testing.assert_close(best[key], averaged[f"net.{key}"], rtol=0, atol=0)
    assert not torch.equal(averaged[f"net.{key}"], current[f"net.{key}"])


def test_moving_average_by_hand():
    """At first the mean of few steps: by 1 - 2/11, 1 - 3/12, ..., until the decay is reached."""
    averages = [torch.tensor([0.0]), torch.tensor([3])]
    seen = []
    for n in (1, 2, 3):
        for group in zip(averages, ([torch.tensor([11.0])], [torch.tensor([3 + n])]), strict=True):
            moving_average(0.3, [group[0]], group[1], torch.tensor(n))
        seen.append(float(averages[0]))
    first = 9.0
    second = first + 0.75 * (11 - first)
    assert seen == pytest.approx([first, second, second + 0.7 * (11 - second)]), "4/13 is above 0.3"
    assert averages[1].tolist() == [6], "whole numbers are those of the last step"


def test_resumed_run_ends_like_an_unbroken_one_would_be_scheduled(tmp_path, monkeypatch):
    """Optimiser, schedule, counters and best score are taken up again."""
    folder = train(tmp_path / "run", epochs=3)
    whole = torch.load(folder / "last.ckpt", weights_only=True)

    stopped = tmp_path / "stopped"
    calls = []
    write = dicenet.engine.callbacks.write_bytes

    def stop_after_two(path, content):
        write(path, content)
        calls.append(path.name)
        if calls.count("last.ckpt") == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dicenet.engine.checkpoints.write_bytes", stop_after_two)
        with pytest.raises(KeyboardInterrupt):
            train(stopped, epochs=3)
    assert torch.load(stopped / "last.ckpt", weights_only=True)["epoch"] == 1
    classify.train(resume=str(stopped))
    resumed = torch.load(stopped / "last.ckpt", weights_only=True)
    assert resumed["global_step"] == whole["global_step"]
    assert resumed["epoch"] == whole["epoch"] == 2
    assert resumed["lr_schedulers"][0]["last_epoch"] == whole["lr_schedulers"][0]["last_epoch"]
    states = resumed["optimizer_states"][0]["state"]
    assert all("momentum_buffer" in state for state in states.values())
    assert len((stopped / "metrics.csv").read_text().splitlines()) == 4


def test_denormals_are_flushed_in_training_only(tmp_path, monkeypatch):
    seen = []
    step = classify.ClassifyTask.training_step

    def watched(self, *arguments):
        seen.append(flushes_denormals())
        return step(self, *arguments)

    monkeypatch.setattr(classify.ClassifyTask, "training_step", watched)
    train(tmp_path / "run", epochs=1)
    assert seen
    assert all(seen)
    assert not flushes_denormals()


def test_best_is_not_replaced_by_worse(tmp_path):
    """A second part of a run at a rate that ruins the network leaves the best weights of the first."""
    folder = train(tmp_path / "run", epochs=4, lr=0.05, model="dicenet_020", batch_size=32)
    before = (folder / "best.safetensors").read_bytes()
    scores = [float(line.split(",")[4]) for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
    assert max(scores) > 0.2  # a ruined network has 0.1
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    for value in checkpoint["state_dict"].values():
        if value.is_floating_point():
            value.zero_()
    torch.save(checkpoint, folder / "last.ckpt")
    text = (folder / "config.yaml").read_text().replace("epochs: 4", "epochs: 5")
    (folder / "config.yaml").write_text(text)
    classify.train(resume=str(folder))
    assert (folder / "best.safetensors").read_bytes() == before


def test_a_network_that_gives_no_numbers_is_not_saved(tmp_path, monkeypatch):
    """The last step of an epoch can ruin the weights without a loss that shows it."""

    def ruined(self):
        with torch.no_grad():
            next(self.net.parameters()).fill_(float("nan"))

    monkeypatch.setattr(classify.ClassifyTask, "on_validation_epoch_start", ruined)
    with pytest.raises(dicenet.TrainingError, match=r"the validation loss became nan in epoch 1, .*smaller --lr"):
        train(tmp_path / "run", epochs=1)
    assert not (tmp_path / "run/best.safetensors").exists()


class Pictures(torch.utils.data.Dataset):
    """Pictures that show nothing but chance."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        values = torch.rand(()), torch.tensor(random.random()), torch.tensor(np.random.rand())  # noqa: NPY002
        return {"name": str(index), "image": torch.stack([v.double() for v in values]), "target": index}


def drawn(loader):
    """Names and values of all pictures of a pass."""
    return [(n, v) for batch in loader for n, v in zip(batch["name"], batch["image"].tolist(), strict=True)]


@pytest.mark.parametrize("workers", [0, 2])
def test_order_and_augmentation_depend_on_the_seed_the_epoch_and_the_picture(workers):
    loader = batches(Pictures(11), True, LoaderSettings(3, workers, seed=5), collate)
    first, second = drawn(loader), drawn(loader)
    assert len({n for n, _ in first}) == 9, "whole batches"
    assert [n for n, _ in first] != [n for n, _ in second]
    assert all(v != dict(second).get(n) for n, v in first), "each epoch augments otherwise"
    assert len({tuple(v) for _, v in first}) == 9
    torch.manual_seed(99)
    again = batches(Pictures(11), True, LoaderSettings(3, 0, seed=5), collate)
    assert drawn(again) == first, "whatever reads it"
    again.order.set_epoch(1)
    assert drawn(again) == second
    assert drawn(batches(Pictures(11), True, LoaderSettings(3, 0, seed=6), collate)) != first


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_where_it_stopped(workers):
    loader = batches(Pictures(20), True, LoaderSettings(3, workers, seed=5), collate)
    drawn(loader)
    whole = drawn(loader)
    other = batches(Pictures(20), True, LoaderSettings(3, workers, seed=5), collate)
    other.order.set_epoch(1)
    iterator = iter(other)
    start = [next(iterator) for _ in range(2)]
    state = other.state_dict()
    assert state == {"epoch": 1, "batches": 2, "of": 6, "pictures": 20, "devices": 1}
    resumed = batches(Pictures(20), True, LoaderSettings(3, workers, seed=5), collate)
    resumed.load_state_dict(state)
    resumed.order.set_epoch(1)
    assert drawn(start) + drawn(resumed) == whole
    assert resumed.state_dict()["epoch"] == 2, "the next pass is the next epoch"
    with pytest.raises(dicenet.ConfigError, match=r"an epoch of 4 devices, .* with 1: resume it with --devices 4"):
        resumed.load_state_dict({**state, "devices": 4})
    resumed.load_state_dict({**state, "batches": 6, "devices": 4})


def test_processes_see_together_what_one_process_sees(monkeypatch):
    """A step of two processes with batches of 2 has the pictures of a step of one with 4."""
    alone = [set(b["name"]) for b in batches(Pictures(17), True, LoaderSettings(4, seed=5), collate)]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        shares.append([set(b["name"]) for b in batches(Pictures(17), True, LoaderSettings(2, seed=5), collate)])
    assert [first | second for first, second in zip(*shares, strict=True)] == alone
    assert all(first.isdisjoint(second) for first, second in zip(*shares, strict=True))
