"""Measuring networks in all their modes, one batch size after the other, into a folder that can be resumed."""

import contextlib
import copy
import inspect
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from dicenet.analysis.speed.modes import Inputs, Mode, Skipped
from dicenet.analysis.speed.networks import CLASSES, Network, build_networks, find_networks, reason
from dicenet.analysis.speed.process import (
    MemoryMeter,
    chosen_core,
    keep_freed_memory,
    staying_on,
    synchronise,
    threads_set,
    whole_float32,
)
from dicenet.analysis.speed.results import (
    RESULTS,
    TABLE,
    Baseline,
    Row,
    compared,
    print_best,
    row_of_network,
    row_of_trials,
    write_table,
)
from dicenet.analysis.speed.timing import Pace, interleave
from dicenet.engine.console import say
from dicenet.engine.fit import check_device
from dicenet.engine.machine import machine
from dicenet.engine.run_folder import (
    check_unchanged,
    default_run_folder,
    new_run_folder,
    read_config,
    resumed_folder,
    write_config,
)
from dicenet.errors import ConfigError
from dicenet.models.network import MIN_IMG_SIZE
from dicenet.tasks.drawing import png
from dicenet.weights.files import write_bytes, write_json

DEFAULT_BASELINE = "shufflenet_v2_x1_5"
#: Largest difference of outputs, relative to the largest output, with which a mode is still timed.
TOLERANCE = 1e-3
#: Libraries whose versions stand beside every figure.
_LIBRARIES = ("torchvision", "timm", "pytorchcv", "onnxruntime")
#: Arguments that may differ in a resumed run: they change what is written, not what is measured.
_CHANGEABLE = ("baseline",)
_UNIT = "_batch_"


class Protocol(NamedTuple):
    """What is measured.

    Attributes:
        name: the word on the command line.
        modes: all there are.
        context: in which everything runs.
        expected: what a network gives when nothing is done to it, with which all its modes are compared.
        plot: draws what was measured.
    """

    name: str
    modes: tuple[Mode, ...]
    context: Callable[[], AbstractContextManager[Any]]
    expected: Callable[[nn.Module, Inputs], Tensor]
    plot: Callable[[Sequence[Row]], Figure]


class Settings(NamedTuple):
    """How it is measured, each batch size at its own pace; see :func:`dicenet.analysis.speed.measure_latency`."""

    models: tuple[str, ...]
    modes: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    img_size: tuple[int, int]
    paces: Mapping[int, Pace]
    threads: int
    core: int | None
    device: str
    baseline: Baseline
    seed: int


# -- arguments


def words(value: str | Sequence[str]) -> tuple[str, ...]:
    """Names given as ``a,b`` or as a sequence."""
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(part.strip() for part in parts if part.strip())


def whole_numbers(name: str, value: int | str | Sequence[int], least: int = 1) -> tuple[int, ...]:
    """Numbers of at least ``least``, given as one, as ``1,32`` or as a sequence."""
    parts = value.split(",") if isinstance(value, str) else [value] if isinstance(value, int) else value
    try:
        numbers = tuple(int(part) for part in parts)
    except ValueError as error:
        raise ConfigError(f"{name} must be whole numbers such as 1,32, got {value!r}") from error
    if not numbers or min(numbers) < least:
        raise ConfigError(f"{name} must be at least {least}, got {value!r}")
    return numbers


def trials_by_size(batch_size: int | str | Sequence[int], trials: int | str | Sequence[int]) -> dict[int, int]:
    """Measured rounds of each batch size: the same for all, or one number for each in the order in which they stand."""
    sizes, counts = whole_numbers("batch_size", batch_size), whole_numbers("trials", trials, least=2)
    if len(counts) == 1:
        counts *= len(sizes)
    elif len(counts) != len(sizes) or len(set(sizes)) != len(sizes):
        raise ConfigError(
            f"trials must be one number, or one for each batch size: got {trials!r} for batch_size {batch_size!r}"
        )
    return dict(sorted(zip(sizes, counts, strict=True)))


def _size(img_size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of pictures."""
    size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    if len(size) != 2 or min(size) < MIN_IMG_SIZE:
        raise ConfigError(f"img_size must be one number or (height, width) of at least {MIN_IMG_SIZE}, got {img_size}")
    return size[0], size[1]


def _device(device: str) -> str:
    check_device(device)
    if device == "mps":
        raise ConfigError("device mps cannot be measured: use --device cpu or cuda")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def _baseline(text: str | None, networks: Sequence[Network], protocol: Protocol) -> Baseline:
    """The comparator: ``network`` in its best mode, or ``network:mode``."""
    names = [network.name for network in networks]
    if text is None:
        return Baseline(DEFAULT_BASELINE if DEFAULT_BASELINE in names else names[0], None)
    name, _, mode = text.partition(":")
    if name not in names:
        raise ConfigError(f"baseline {name!r} is not measured: choose one of {', '.join(names)}")
    if mode and mode not in [known.name for known in protocol.modes]:
        raise ConfigError(f"baseline {text!r} is in no mode of {', '.join(known.name for known in protocol.modes)}")
    return Baseline(name, mode or None)


def checked_settings(protocol: Protocol, config: Mapping[str, Any]) -> Settings:
    """Settings from the arguments of a run.

    Raises:
        ConfigError: one cannot be used.
    """
    for name, least in (("warmup", 1), ("threads", 1), ("round_ms", 0)):
        if config[name] < least:
            raise ConfigError(f"{name} must be at least {least}, got {config[name]}")
    if not 0 <= config["seed"] < 2**32:
        raise ConfigError(f"seed must lie from 0 to below 2^32, got {config['seed']}")
    known = [mode.name for mode in protocol.modes]
    models, modes = words(config["models"]), words(config["modes"])
    for mode in modes:
        if mode not in known:
            raise ConfigError(f"mode {mode!r} is unknown: choose from {', '.join(known)}")
    if not models or not modes:
        raise ConfigError("nothing to measure: give --models and --modes at least one name each")
    networks = find_networks(models)
    device = _device(config["device"])
    trials = trials_by_size(config["batch_size"], config["trials"])
    pace = Pace(0, config["warmup"], config["round_ms"] / 1000, config["seed"])
    return Settings(
        models=models,
        modes=modes,
        batch_sizes=tuple(trials),
        img_size=_size(config["img_size"]),
        paces={size: pace._replace(trials=count) for size, count in trials.items()},
        threads=config["threads"],
        core=chosen_core(config["core"], config["threads"], device),
        device=device,
        baseline=_baseline(config["baseline"], networks, protocol),
        seed=config["seed"],
    )


# -- one batch size


class _Member(NamedTuple):
    row: Row
    call: Callable[[], Tensor]


def difference(output: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected value; infinite if shapes differ."""
    if output.shape != expected.shape:
        return float("inf")
    return float((output.double() - expected.double()).abs().max() / expected.double().abs().max())


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The same dropout for all modes, without a change to the user's own random numbers."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


class _Batch:
    """All networks in all their modes at one batch size: made ready one after the other, then timed in turn."""

    def __init__(
        self, protocol: Protocol, settings: Settings, batch_size: int, show: Callable[[str, int], None]
    ) -> None:
        self.protocol = protocol
        self.settings = settings
        self.batch_size = batch_size
        self.show = show
        self.modes = [mode for mode in protocol.modes if mode.name in settings.modes]
        self.inputs = self._inputs()
        self.rows: list[Row] = []
        self.members: list[_Member] = []

    def _inputs(self) -> Inputs:
        generator = torch.Generator().manual_seed(self.settings.seed)
        pictures = torch.randn(self.batch_size, 3, *self.settings.img_size, generator=generator)
        target = torch.randint(0, CLASSES, (self.batch_size,), generator=generator)
        pictures, target = pictures.to(self.settings.device), target.to(self.settings.device)
        return Inputs(pictures, pictures.contiguous(memory_format=torch.channels_last), target)

    def measure(self, networks: Sequence[Network]) -> list[Row]:
        """A row for every network and mode."""
        modules = {n.name: n.module.to(self.settings.device) for n in networks if n.module is not None}
        total = sum(mode.is_for(network.ours) for network in networks for mode in self.modes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what libraries announce here is not the user's business
            self._load_libraries()
            for network in networks:
                self._add_network(network, modules, total)
        pace = self.settings.paces[self.batch_size]
        with staying_on(self.settings.core), self.protocol.context():
            trials = interleave(
                [member.call for member in self.members],
                pace,
                synchronise(self.settings.device),
                lambda: self.show("rounds", pace.trials),
            )
        for member, measured in zip(self.members, trials, strict=True):
            member.row.update(row_of_trials(measured))
        return self.rows

    def _load_libraries(self) -> None:
        """Run something tiny in every mode: what is loaded on first use belongs to no network's memory."""
        tiny = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))
        for mode in self.modes:
            if mode.ours is not True:
                with contextlib.suppress(Exception), self.protocol.context():
                    mode.prepare(copy.deepcopy(tiny).to(self.settings.device).eval(), self.inputs)()

    def _add_network(self, network: Network, modules: Mapping[str, nn.Module], total: int) -> None:
        """Rows for one network; a single one if it cannot be run at all."""
        own = network.same_weights_as or network.name
        common = {"batch_size": self.batch_size, **row_of_network(network), "compared_with": own}
        if network.name not in modules:
            self.rows.append(common | {"mode": "all", "status": "skipped", "reason": network.why_not})
            return
        try:
            with _seeded(self.settings.seed):
                expected = self.protocol.expected(modules[own], self.inputs)
        except Exception as error:  # another program's: whatever goes wrong there is a result
            self.rows.append(common | {"mode": "all", "status": "failed", "reason": reason(error)})
            return
        for mode in self.modes:
            if mode.is_for(network.ours):
                self.show(f"{network.name} {mode.name}", total)
                row = common | {"mode": mode.name, "pytorch_mode": "yes" if mode.pytorch else "no"}
                self.rows.append(row)
                self._add_member(modules[network.name], mode, expected, row)

    def _add_member(self, module: nn.Module, mode: Mode, expected: Tensor, row: Row) -> None:
        """Make a network ready in a mode and check its output; what goes wrong is written into the row."""
        meter = MemoryMeter(self.settings.device)
        try:
            call = mode.prepare(copy.deepcopy(module), self.inputs)
            with self.protocol.context():
                with _seeded(self.settings.seed):
                    row["difference"] = difference(call(), expected)
                call()  # some modes are ready only after a second call
                memory = meter.peak(call)
        except Skipped as why:
            row |= {"status": "skipped", "reason": str(why)}
            return
        except Exception as error:
            row |= {"status": "failed", "reason": reason(error)}
            return
        row["peak_memory_mb"] = None if memory is None else round(memory / 1e6, 1)
        if row["difference"] <= TOLERANCE:  # not so if it is not a number
            self.members.append(_Member(row, call))
            return
        text = f"output differs from that of {row['compared_with']} by {row['difference']:.2g}, above {TOLERANCE:g}"
        row |= {"status": "refused", "reason": text}


# -- the whole


def start(
    function: Callable[..., Path], protocol: Protocol, models: Sequence[str], arguments: Mapping[str, Any]
) -> Path:
    """Run a benchmark with the arguments of the function that the user called, ``out`` and ``resume`` among them.

    Args:
        function: that the user called: its defaults tell what was given to a resumed run.
        protocol: what is measured.
        models: networks to compare if none are named.
        arguments: of the function.

    Raises:
        ConfigError: an argument cannot be used.
        KeyboardInterrupt: Ctrl-C; finished batch sizes are kept.
    """
    config = {name: _plain(value) for name, value in arguments.items() if name not in ("out", "resume")}
    out, resume = arguments["out"], arguments["resume"]
    if resume is not None:
        if out is not None:
            raise ConfigError("a resumed run goes on in its own folder: leave out --out")
        defaults = {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
        changes = {name: value for name, value in config.items() if value != _plain(defaults[name])}
        saved = _saved(resumed_folder(resume), protocol)
        check_unchanged(saved, changes, _CHANGEABLE, "start a new run instead")
        config = saved | changes
    config["models"] = list(words(models if config["models"] is None else config["models"]))
    config["modes"] = list(
        words([mode.name for mode in protocol.modes] if config["modes"] is None else config["modes"])
    )
    settings = checked_settings(protocol, config)
    # in a pipe or a file nothing is cut to the width of a screen
    console = Console() if sys.stdout.isatty() else Console(width=160)
    folder = resumed_folder(resume) if resume else new_run_folder(out, default_run_folder("benchmark", protocol.name))
    write_config(folder, config)
    return _run(protocol, settings, folder, console)


def _plain(value: Any) -> Any:
    """A value as YAML gives it back."""
    return list(value) if isinstance(value, tuple) else value


def _saved(folder: Path, protocol: Protocol) -> dict[str, Any]:
    """The arguments of a run of the same benchmark."""
    saved = read_config(folder)
    others = [file for file in folder.glob(f"*{_UNIT}*.json") if not file.name.startswith(protocol.name)]
    if others or "round_ms" not in saved:
        raise ConfigError(f"cannot resume {folder}: it is not the folder of 'dicenet benchmark {protocol.name}'")
    return saved


def _run(protocol: Protocol, settings: Settings, folder: Path, console: Console) -> Path:
    """Measure the batch sizes that are missing, then write what all gave."""
    missing = [size for size in settings.batch_sizes if not _unit(folder, protocol, size).exists()]
    sizes = ", ".join(map(str, missing)) or "none (all are measured)"
    say(console, f"{protocol.name} of {len(settings.models)} networks; batch sizes: {sizes}; run folder {folder}")
    try:
        with threads_set(settings.threads), whole_float32():
            _measure(protocol, settings, missing, folder, console)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"go on with: dicenet benchmark {protocol.name} --resume {folder}") from None
    measured = [json.loads(_unit(folder, protocol, size).read_text("utf-8")) for size in settings.batch_sizes]
    rows = compared([row for unit in measured for row in unit], settings.baseline)
    write_table(rows, {mode.name: mode.text for mode in protocol.modes}, settings.baseline, folder)
    write_bytes(folder / f"{protocol.name}.png", png(protocol.plot(rows)))
    print_best(rows, settings.baseline, console)
    say(console, f"{folder / RESULTS}, {folder / TABLE}, {folder / protocol.name}.png")
    return folder


def _unit(folder: Path, protocol: Protocol, batch_size: int) -> Path:
    """The file of one batch size, complete or absent: what a resumed run need not measure again."""
    return folder / f"{protocol.name}{_UNIT}{batch_size}.json"


def _measure(
    protocol: Protocol, settings: Settings, batch_sizes: Sequence[int], folder: Path, console: Console
) -> None:
    """Measure batch sizes, each written as soon as it is finished."""
    if not batch_sizes:
        return
    keep_freed_memory()
    networks = build_networks(settings.models, settings.img_size, settings.seed)
    run = {
        "benchmark": protocol.name,
        "threads": settings.threads,
        "core": settings.core,
        "device": settings.device if settings.device == "cpu" else torch.cuda.get_device_name(),
        "img_size": "x".join(map(str, settings.img_size)),
        "seed": settings.seed,
        **machine(_LIBRARIES),
    }
    for batch_size in batch_sizes:
        started = time.monotonic()
        with _progress(f"batch {batch_size}", console) as show:
            rows = _Batch(protocol, settings, batch_size, show).measure(networks)
        write_json(
            _unit(folder, protocol, batch_size),
            [{**row, **run, "warmup": settings.paces[batch_size].warmup} for row in rows],
        )
        timed = sum("min_ms" in row for row in rows)
        say(console, f"batch {batch_size}: {timed} of {len(rows)} timed, {time.monotonic() - started:.0f} s")


@contextmanager
def _progress(title: str, console: Console) -> Iterator[Callable[[str, int], None]]:
    """A bar that moves only when it is told to: one that moves by itself would run beside what is timed."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(
        *columns, console=console, auto_refresh=False, transient=True, disable=not console.is_terminal
    ) as bar:
        tasks: dict[int, Any] = {}

        def show(text: str, total: int) -> None:
            phase = text == "rounds"
            if phase not in tasks:
                tasks[phase] = bar.add_task(title, total=total)
            bar.update(tasks[phase], advance=1, description=f"{title}: {text}")
            bar.refresh()

        yield show
