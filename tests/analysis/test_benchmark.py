"""The benchmarks: what they write is recomputed from the trials, and what must not happen is provoked."""

import copy
import csv
import json
import re
import statistics
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
import yaml
from PIL import Image

import dicenet_cli
from dicenet.analysis.speed import measure_latency, modes, networks, timing
from dicenet.analysis.speed.measure import _Batch, difference
from dicenet.analysis.speed.process import MemoryMeter, chosen_core, staying_on
from dicenet.analysis.speed.results import Baseline, best_of, compared
from dicenet.analysis.speed.timing import Pace, interleave
from dicenet.engine.machine import commit, machine
from dicenet.errors import ConfigError
from dicenet.weights import catalogue

QUICK = ["--img-size", "32", "--trials", "3", "--warmup", "1", "--round-ms", "0"]
LATENCY = ["benchmark", "latency", *QUICK, "--models", "dicenet_010,shufflenet_v2_x0_5"]


def run(*arguments, code=0):
    assert dicenet_cli.main([str(a) for a in arguments]) == code


def read(folder):
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def trials(folder, name, batch_size):
    rows = json.loads((folder / f"{name}_batch_{batch_size}.json").read_text())
    return {(row["network"], row["mode"]): row for row in rows}


@pytest.fixture
def optimizer(monkeypatch):
    """Stands for dicenet.optimize, whatever is there."""

    def replace(optimize):
        found = SimpleNamespace(optimize_for_inference=optimize) if optimize else None
        monkeypatch.setitem(sys.modules, "dicenet.optimize", found)

    return replace


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The folder of a short measurement of latency, with an optimiser that does nothing."""
    out = tmp_path_factory.mktemp("latency") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "dicenet.optimize", SimpleNamespace(optimize_for_inference=lambda net: net))
        sizes = ("--batch-size", "2,1", "--trials", "2,3")
        run(*LATENCY, "--modes", "eager,channels_last,freeze,optimized", *sizes, "--out", out)
    return out


# -- what a run leaves


def test_files(measured):
    assert {p.name for p in measured.iterdir()} == {
        *("config.yaml", "results.csv", "table.md", "latency.png"),
        *("latency_batch_1.json", "latency_batch_2.json"),
    }
    with Image.open(measured / "latency.png") as plot:
        assert plot.width > 800
        assert np.asarray(plot.convert("L")).std() > 5


def test_rows(measured):
    rows = read(measured)
    ours, theirs = ["eager", "channels_last", "freeze", "optimized"], ["eager", "channels_last", "freeze"]
    expected = [("dicenet_010", mode) for mode in ours] + [("shufflenet_v2_x0_5", mode) for mode in theirs]
    assert [(row["network"], row["mode"], row["batch_size"]) for row in rows] == [
        (*row, size) for size in ("1", "2") for row in expected
    ]
    for row in rows:
        assert row["status"] in ("ok", "disturbed")
        assert (row["benchmark"], row["threads"], row["img_size"]) == ("latency", "1", "32x32")
        assert row["trials"] == {"1": "3", "2": "2"}[row["batch_size"]]
        assert (row["torch"], row["commit"]) == (torch.__version__, commit())
        assert row["processor"]
        assert 0 <= float(row["difference"]) < 1e-4
        assert float(row["page_faults_per_call"]) >= 0
        assert not row["peak_memory_mb"] or float(row["peak_memory_mb"]) > 1
    assert {row["parameters"] for row in rows[:4]} == {
        str(networks.build_networks(["dicenet_010"], (32, 32), 0)[0][3][0])
    }


def test_figures_are_those_of_the_trials(measured):
    for size in (1, 2):
        kept = trials(measured, "latency", size)
        for row in read(measured):
            if row["batch_size"] == str(size):
                values = np.array(kept[row["network"], row["mode"]]["trials_ms"])
                assert len(values) == {1: 3, 2: 2}[size]
                figures = {"mean_ms": values.mean(), "std_ms": values.std(ddof=1), "min_ms": values.min()}
                figures["median_ms"] = np.median(values)
                for column, value in figures.items():
                    assert float(row[column]) == pytest.approx(value, rel=1e-4)
                assert row["status"] == ("disturbed" if np.median(values) > 1.5 * values.min() else "ok")


def test_ratios_are_best_against_best(measured):
    for size in ("1", "2"):
        rows = [row for row in read(measured) if row["batch_size"] == size]
        quickest = min(rows[4:], key=lambda row: float(row["min_ms"]))  # the default comparator is not measured
        first = min(rows[:4], key=lambda row: float(row["min_ms"]))
        assert [row for row in rows if row["best_mode"] == "yes"] == [first, quickest]
        for row in rows:
            assert row["baseline"] == "dicenet_010, best mode"
            for ratio, column in (("ratio_of_minima", "min_ms"), ("ratio_of_medians", "median_ms")):
                assert float(row[ratio]) == pytest.approx(float(row[column]) / float(first[column]), rel=1e-3)


def test_table(measured):
    text = (measured / "table.md").read_text()
    assert text.startswith("# Latency\n")
    for part in (
        "## Best mode of each network",
        "## All modes, batch 1",
        "## All modes, batch 2",
        "ONNX Runtime is shown",
    ):
        assert part in text
    tables = re.findall(r"^(\|.*)$", text, re.MULTILINE)
    assert all(len(line.split("|")) in (12, 13, 4) for line in tables)
    assert "dicenet_010 43.1 (DiCENet paper, 300 epochs)" in text


# -- resume


def test_resumed_measures_only_what_is_missing(measured, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in ("config.yaml", "latency_batch_2.json"):
        (folder / file).write_bytes((measured / file).read_bytes())
    batches = []
    real = _Batch.measure
    monkeypatch.setattr(_Batch, "measure", lambda batch, nets: batches.append(batch.batch_size) or real(batch, nets))
    run("benchmark", "latency", "--resume", folder)
    assert batches == [1]
    assert (folder / "latency_batch_2.json").read_bytes() == (measured / "latency_batch_2.json").read_bytes()
    assert len(read(folder)) == 14
    run("benchmark", "latency", "--resume", folder, "--baseline", "shufflenet_v2_x0_5:eager")
    assert batches == [1], "another comparator needs no measurement"
    row = next(row for row in read(folder) if (row["network"], row["mode"]) == ("shufflenet_v2_x0_5", "eager"))
    assert (row["baseline"], float(row["ratio_of_minima"])) == ("shufflenet_v2_x0_5, eager", 1)
    assert yaml.safe_load((folder / "config.yaml").read_text())["baseline"] == "shufflenet_v2_x0_5:eager"
    measure_latency(resume=str(folder))
    assert batches == [1]
    capsys.readouterr()
    run("benchmark", "latency", "--resume", folder, "--trials", "7", code=2)
    assert "cannot change trials from 2,3 to 7 in a resumed run, only baseline" in capsys.readouterr().err
    run("benchmark", "training", "--resume", folder, code=2)
    assert "is not the folder of 'dicenet benchmark training'" in capsys.readouterr().err
    run("benchmark", "latency", "--resume", folder, "--out", tmp_path / "other", code=2)
    assert "leave out --out" in capsys.readouterr().err


def test_interrupted(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    real = _Batch.measure

    def measure(batch, nets):
        if batch.batch_size == 2:
            raise KeyboardInterrupt
        return real(batch, nets)

    monkeypatch.setattr(_Batch, "measure", measure)
    arguments = ("--models", "dicenet_010", "--modes", "eager", "--batch-size", "1,2", "--out", out)
    run("benchmark", "latency", *QUICK, *arguments, code=130)
    assert f"stopped; go on with: dicenet benchmark latency --resume {out}" in capsys.readouterr().err
    assert {p.name for p in out.iterdir()} == {"config.yaml", "latency_batch_1.json"}


# -- what is refused, fails or is not there


@pytest.mark.parametrize(
    ("optimize", "status", "reason"),
    [
        (
            lambda net: lambda x: 1.01 * net(x),
            "refused",
            r"output differs from that of dicenet_010 by 0.01, above 0.001",
        ),
        (lambda net: lambda x: net(x) * float("nan"), "refused", "by nan"),
        (None, "failed", "dicenet.optimize"),
    ],
)
def test_a_mode_that_does_not_work(optimizer, tmp_path, capsys, optimize, status, reason):
    optimizer(optimize)
    out = tmp_path / "out"
    models = ("--models", "dicenet_010", "--modes", "eager,optimized", "--batch-size", "1", "--out", out)
    run("benchmark", "latency", *QUICK, *models)
    eager, optimized = read(out)
    assert eager["best_mode"] == "yes"
    assert (optimized["status"], optimized["best_mode"], optimized["min_ms"]) == (status, "no", "")
    assert re.search(reason, optimized["reason"])
    assert re.search(reason, (out / "table.md").read_text())
    assert f"dicenet_010 optimized, batch 1: {status}: " in capsys.readouterr().out


def test_without_optional_libraries(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(networks, "find_spec", lambda name: None)
    monkeypatch.setattr(modes, "find_spec", lambda name: None)
    out = tmp_path / "out"
    models = ("--models", "dicenet_w2,dicenet_010", "--modes", "eager,reference,onnxruntime", "--batch-size", "1")
    run("benchmark", "latency", *QUICK, *models, "--out", out)
    absent, eager, _, runtime = read(out)
    assert (absent["network"], absent["mode"], absent["status"]) == ("dicenet_w2", "all", "skipped")
    assert absent["reason"] == "pytorchcv is not installed: pip install pytorchcv"
    assert (runtime["status"], runtime["reason"]) == ("skipped", "not installed: onnx, onnxscript, onnxruntime")
    assert (runtime["pytorch_mode"], eager["best_mode"], eager["ratio_of_minima"]) == ("no", "yes", "")
    assert "no ratios for batch 1: dicenet_w2, best mode was not timed" in capsys.readouterr().out


def test_difference():
    expected = torch.tensor([[1.0, -4.0]])
    assert difference(torch.tensor([[1.0, -3.0]]), expected) == 0.25
    assert difference(expected[:, :1], expected) == float("inf")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "dicenet_011"], "model 'dicenet_011' is unknown, .* has it: the nearest are dicenet_0"),
        (["--models", "keras/resnet"], "of no known library: choose one of dicenet, torchvision, timm, pytorchcv"),
        (["--models", "torchvision/nothing"], "torchvision has no network of that name"),
        (["--models", "dicenet_010,dicenet_010"], "model 'dicenet_010' is given twice"),
        (["--models", ","], "nothing to measure"),
        (["--modes", "eager,fastest"], "mode 'fastest' is unknown: choose from eager, "),
        (["--baseline", "resnet18"], "baseline 'resnet18' is not measured: choose one of dicenet_010, "),
        (["--baseline", "dicenet_010:quick"], "baseline 'dicenet_010:quick' is in no mode of eager, "),
        (["--batch-size", "many"], "batch_size must be whole numbers such as 1,32, got 'many'"),
        (["--batch-size", "0,1"], "batch_size must be at least 1"),
        (["--img-size", "31"], "img_size must be one number or .* of at least 32, got 31"),
        (["--trials", "1"], "trials must be at least 2, got 1"),
        (["--trials", "few"], "trials must be whole numbers such as 1,32, got 'few'"),
        (
            ["--batch-size", "1,2", "--trials", "3,3,3"],
            "trials must be one number, or one for each batch size: got '3,3,3' for batch_size '1,2'",
        ),
        (["--batch-size", "1,1", "--trials", "3,2"], "trials must be one number, or one for each batch size"),
        (["--warmup", "0"], "warmup must be at least 1"),
        (["--threads", "0"], "threads must be at least 1"),
        (["--round-ms", "-1"], "round_ms must be at least 0"),
        (["--seed", "-1"], "seed must lie from 0"),
        (["--core", "4096"], "--core 4096 is not one that may be used here: choose one of"),
        (["--core", "0", "--threads", "2"], "--core 0 needs --threads 1, got 2"),
        (["--device", "tpu"], "device 'tpu' is unknown"),
        (["--out", "{taken}"], "is not empty: give a new or empty folder"),
        (["--resume", "{taken}"], "it is not a run folder"),
    ],
)
def test_wrong_input(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    run(*LATENCY, *(a.format(taken=tmp_path / "taken") for a in arguments), code=2)
    error = capsys.readouterr().err.strip()
    assert error.startswith("dicenet: ")
    assert "\n" not in error
    assert re.search(message, error), error
    assert [p.name for p in tmp_path.iterdir()] == ["taken"], "nothing is left behind"


def test_wrong_words(capsys):
    run("benchmark", "speed", code=2)
    assert "unknown benchmark 'speed' for benchmark: choose one of latency, training" in capsys.readouterr().err
    run("benchmark", code=2)
    assert "usage: dicenet benchmark WHAT" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_cuda(capsys):
    run(*LATENCY, "--device", "cuda", code=2)
    assert capsys.readouterr().err == "dicenet: device cuda is not available here: use --device cpu\n"


def test_convolutions_are_not_rounded_on_cuda(tmp_path, optimizer):
    seen = []

    class Watched(torch.nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            seen.append(torch.backends.cudnn.allow_tf32)
            return self.net(x)

    optimizer(Watched)
    assert torch.backends.cudnn.allow_tf32, "torch's default"
    run(*LATENCY, "--modes", "optimized", "--out", tmp_path / "out")
    assert set(seen) == {False}
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_with_cuda(tmp_path, optimizer):
    optimizer(lambda net: net)
    models = (
        "--models",
        "dicenet_010,shufflenet_v2_x1_5",
        "--modes",
        "eager,channels_last,freeze",
        "--batch-size",
        "2",
        "--device",
        "cuda",
        "--out",
        tmp_path / "out",
    )
    run(*LATENCY, *models)
    assert {row["status"] for row in read(tmp_path / "out")} <= {"ok", "disturbed"}
    assert all(float(row["peak_memory_mb"]) > 1 for row in read(tmp_path / "out"))
    training = ("--models", "dicenet_010", "--batch-size", "4", "--device", "cuda", "--out", tmp_path / "training")
    run("benchmark", "training", *QUICK, *training)
    assert read(tmp_path / "training")[0]["status"] in ("ok", "disturbed")


# -- timing


class Clock:
    """Time that passes only in calls."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.order = []
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)

    def member(self, name, *seconds):
        """A call that takes so long, the last value from then on."""
        left = list(seconds)

        def call():
            self.order.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


def test_interleaved_rounds(monkeypatch):
    clock = Clock(monkeypatch)
    members = [clock.member("a", 0.25), clock.member("b", 4.0)]
    rounds = []
    a, b = interleave(members, Pace(trials=8, warmup=2, shortest=1.0, seed=0), after_round=lambda: rounds.append(1))
    assert (a.calls, b.calls) == (4, 1)
    assert a.milliseconds == [250.0] * 8
    assert b.milliseconds == [4000.0] * 8
    assert len(rounds) == 8
    assert clock.order[:4] == ["a", "a", "b", "b"], "warm-up"
    measured = "".join(clock.order[4:])
    assert re.fullmatch(r"(aaaaabb|bbaaaaa){8}", measured), "in turn, each after one call that does not count"
    assert len(set(re.findall(r"aaaaabb|bbaaaaa", measured))) == 2, "in both orders"


def test_long_calls_are_not_repeated(monkeypatch):
    clock = Clock(monkeypatch)
    a, b = interleave([clock.member("a", 9.0, 1.0, 3.0), clock.member("b", 2.0)], Pace(2, 1, 1.0, 0))
    assert a.milliseconds == [1000.0, 3000.0]
    assert b.milliseconds == [2000.0, 2000.0]
    assert len(clock.order) == 6
    summary = timing.summarise([1.0, 3.0, 8.0])
    assert summary == (1.0, 3.0, 4.0, statistics.stdev([1.0, 3.0, 8.0]))
    assert summary.disturbed
    assert not timing.summarise([2.0, 3.0, 9.0]).disturbed


def row(network, mode, minimum, median=None, pytorch="yes", **more):
    status = "disturbed" if median and median > 1.5 * minimum else "ok"
    times = {"min_ms": minimum, "median_ms": median or minimum, "status": status}
    return {"network": network, "mode": mode, "batch_size": 1, "pytorch_mode": pytorch, **times, **more}


def test_comparison():
    failed = {"network": "peer", "mode": "compile", "batch_size": 1, "pytorch_mode": "yes", "status": "failed"}
    rows = [row("ours", "eager", 4.0), row("ours", "optimized", 3.0, 4.0), row("peer", "eager", 6.0, 8.0)]
    rows += [row("peer", "onnxruntime", 1.0, pytorch="no"), row("peer", "eager", 1.0, batch_size=2), failed]
    ratios = compared(rows, Baseline("peer", None))
    assert [r.get("ratio_of_minima") for r in ratios[:4]] == [4 / 6, 0.5, 1, 1 / 6]
    assert [r.get("ratio_of_medians") for r in ratios[:3]] == [0.5, 0.5, 1]
    assert [r["best_mode"] for r in ratios] == ["no", "yes", "yes", "no", "yes", "no"]
    assert {r["comparator"] for r in ratios[:4]} == {"valid"}
    assert best_of(rows, 1, "peer")["mode"] == "eager", "ONNX Runtime does not count"
    assert compared(rows, Baseline("peer", "onnxruntime"))[0]["ratio_of_minima"] == 4
    void = compared([row("peer", "eager", 1.0, 1.6), row("ours", "eager", 1.0)], Baseline("peer", None))
    assert [r["comparator"] for r in void] == ["void", "void"]
    alone = compared([row("ours", "eager", 1.0)], Baseline("peer", None))
    assert "ratio_of_minima" not in alone[0]


# -- networks


def test_published_accuracies():
    for published in networks.PUBLISHED:
        if published.library == "torchvision":
            weights = torchvision.models.get_model_weights(published.name)
            metrics = {w.name: w.meta["_metrics"]["ImageNet-1K"]["acc@1"] for w in weights}
            assert published.source == f"torchvision, {max(metrics, key=metrics.get)}"
            assert published.top1 == max(metrics.values())
        if published.source == "EdgeNets, released weights":
            metric = catalogue.find(f"{published.name}.{catalogue.IN1K_TAG}").metric
            assert f"top-1 {published.top1:.2f};" in metric


@pytest.mark.parametrize("name", ["dicenet_020", "shufflenet_v2_x0_5", "timm/mobilenetv3_small_050"])
def test_random_networks_answer_to_their_input(name):
    state = torch.random.get_rng_state()
    (network,) = networks.build_networks([name], (32, 32), seed=3)
    assert torch.equal(torch.random.get_rng_state(), state), "the user's random numbers are left alone"
    net = network.module
    assert not net.training
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        outputs = net(x)
        exact = copy.deepcopy(net).double()(x.double())
    assert difference(outputs, exact) < 1e-4, "rounding is not magnified"
    assert outputs.std(dim=0).mean() > 0.01 * outputs.abs().mean(), "not only biases arrive"
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert not module._forward_pre_hooks
            assert module.num_features == 1 or module.weight.std() > 0.05
        if isinstance(module, torch.nn.PReLU):
            assert module.weight.std() > 0.05
    (again,) = networks.build_networks([name], (32, 32), seed=3)
    for key, value in again.module.state_dict().items():
        assert torch.equal(value, net.state_dict()[key])


def test_ours_gets_the_weights_of_pytorchcv():
    ours, theirs = networks.build_networks(["dicenet_020", "dicenet_wd5"], (64, 64), seed=1)
    assert (ours.library, theirs.library, ours.same_weights_as) == ("dicenet", "pytorchcv", "dicenet_wd5")
    assert ours.module.trained_size == (64, 64)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert difference(ours.module(x), theirs.module(x)) < 1e-5
    assert networks.find_network("pytorchcv/dicenet_w1").library == "pytorchcv"
    assert networks.find_network("resnet18").library == "torchvision"
    assert networks.find_network("timm/resnet18").library == "timm"


def test_compile_freezes(monkeypatch):
    seen = []

    def compile_without_a_compiler(net, **options):
        import torch._dynamo.config as dynamo
        import torch._inductor.config as inductor

        def call(x):
            settings = (inductor.freezing, dynamo.recompile_limit > 100, dynamo.fail_on_recompile_limit_hit)
            seen.append(
                (
                    options,
                    settings,
                    torch.is_inference_mode_enabled(),
                    x.is_contiguous(memory_format=torch.channels_last),
                )
            )
            return net(x)

        return call

    monkeypatch.setattr(torch, "compile", compile_without_a_compiler)
    x = torch.randn(2, 3, 8, 8)
    modes._compile(torch.nn.Conv2d(3, 4, 3), modes.Inputs(x, x.contiguous(memory_format=torch.channels_last), x))
    assert seen == [({"dynamic": False}, (True, True, True), True, True)]


@pytest.mark.slow
def test_compiled(tmp_path):
    out = tmp_path / "out"
    run(
        "benchmark",
        "latency",
        *QUICK,
        "--models",
        "dicenet_010",
        "--modes",
        "eager,compile",
        "--batch-size",
        "1",
        "--out",
        out,
    )
    assert {row["status"] for row in read(out)} <= {"ok", "disturbed"}
    assert len(read(out)) == 2


# -- training


def test_training(tmp_path, monkeypatch):
    monkeypatch.setattr(modes, "available_backends", lambda: ("fast", "reference"))
    out = tmp_path / "out"
    models = ("--models", "dicenet_010,shufflenet_v2_x0_5", "--batch-size", "4", "--out", out)
    run("benchmark", "training", *QUICK, *models)
    rows = read(out)
    assert [row["mode"] for row in rows] == [
        *("reference", "reference_channels_last", "fast", "fast_channels_last"),
        *("nchw", "channels_last"),
    ]
    assert {row["status"] for row in rows} <= {"ok", "disturbed"}
    assert all(float(row["difference"]) < 1e-4 for row in rows)
    assert {p.name for p in out.iterdir()} == {
        *("config.yaml", "results.csv", "table.md", "training.png", "training_batch_4.json")
    }


def test_training_without_a_fast_backend(monkeypatch):
    monkeypatch.setattr(modes, "available_backends", lambda: ("reference",))
    prepare = {mode.name: mode.prepare for mode in modes.TRAINING}["fast"]
    with pytest.raises(modes.Skipped, match="only backend"):
        prepare(torch.nn.Conv2d(3, 4, 3), None)


def test_a_step_trains():
    """Forward, backward and the optimiser's step are all in what is timed."""
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5))
    before = [p.detach().clone() for p in net.parameters()]
    x = torch.randn(2, 3, 2, 2)
    step = modes._training_step(False, "auto")(net, modes.Inputs(x, x, torch.tensor([1, 4])))
    loss = step()
    expected = torch.nn.functional.cross_entropy(x.flatten(1) @ before[0].T + before[1], torch.tensor([1, 4]))
    torch.testing.assert_close(loss, expected)
    assert all(not torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))
    assert all(torch.allclose(p, b, atol=1e-4) for p, b in zip(net.parameters(), before, strict=True))


# -- the process


@pytest.mark.skipif(sys.platform != "linux", reason="read from Linux")
def test_peak_memory():
    meter = MemoryMeter("cpu")
    kept = torch.ones(10_000_000)
    torch.ones(30_000_000)  # what only the preparation needs
    peak = meter.peak(lambda: torch.ones(5_000_000))
    assert peak == pytest.approx(kept.nbytes + 20_000_000, rel=0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_freed_memory_is_kept():
    program = (
        "import torch\nfrom dicenet.analysis.speed.process import keep_freed_memory, page_faults\n"
        "kept, counts = keep_freed_memory(), []\n"
        "for _ in range(30): before = page_faults(); torch.ones(10_000_000); counts.append(page_faults() - before)\n"
        "print(int(kept), *counts)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    kept, *faults = map(int, done.stdout.split())
    assert not kept or statistics.median(faults[15:]) < 100, "40 MB are 10,000 pages; the first calls find no room yet"


@pytest.mark.skipif(sys.platform != "linux", reason="threads stay on cores on Linux")
def test_core():
    import os

    allowed = os.sched_getaffinity(0)
    core = chosen_core(None, 1, "cpu")
    assert core in allowed
    with staying_on(core):
        assert os.sched_getaffinity(0) == {core}
    assert os.sched_getaffinity(0) == allowed
    assert chosen_core(None, 2, "cpu") is None
    with pytest.raises(ConfigError):
        chosen_core(max(allowed) + 1, 1, "cpu")


def test_machine():
    row = machine(["timm", "nothing-of-that-name"])
    assert row["torch"] == torch.__version__
    assert (bool(row["timm"]), row["nothing-of-that-name"]) == (True, "")
    assert re.fullmatch(r"unknown|[0-9a-f]{7,}(-dirty)?", row["commit"])
