"""The kernels without torch: a C++ program against plain loops, under sanitizers and on another processor."""

import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
SOURCES = REPOSITORY / "src/dicenet/ops/cpu/csrc"
DRIVER = Path(__file__).with_name("driver.cpp")
X86_64 = platform.machine() in ("x86_64", "AMD64")
LACKS_LEVEL = 2


def setup_value(name):
    """A list or dictionary that setup.py names, which runs the build when it is imported."""
    text = (REPOSITORY / "setup.py").read_text()
    found = re.search(rf"^{name} = (.*?)( if X86_64 else {{}})?$", text, re.MULTILINE)
    assert found, name
    return eval(found[1], {})


LEVELS = setup_value("LEVELS")
KERNEL_FLAGS = setup_value("KERNEL_FLAGS")


def compiler(name):
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"needs the compiler {name}")
    return path


def run(*command, **environment):
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env={**os.environ, **environment}
    )


def build(folder, cxx, levels, flags=(), link=()):
    """The driver, built as setup.py builds the operators, for some levels beside the baseline."""
    common = ["-std=c++20", "-Wall", "-Wextra", "-Werror", f"-I{SOURCES}"]
    plain = ["-DDICENET_HAVE_X86_LEVELS"] if levels else []
    jobs = [
        (SOURCES / "level.cpp", f"{level}.o", [*KERNEL_FLAGS, *of_level, f"-DDICENET_LEVEL={level}"])
        for level, of_level in {"baseline": [], **levels}.items()
    ]
    jobs += [
        (SOURCES / f"{name}.cpp", f"{name}.o", [*KERNEL_FLAGS, *plain])
        for name in ("dispatch", "parallel", "plan", "unit")
    ]
    jobs.append((DRIVER, "driver.o", ["-O2"]))

    def compile_one(job):
        source, target, more = job
        return run(cxx, *common, *more, *flags, "-c", source, "-o", folder / target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in pool.map(compile_one, jobs):
            assert done.returncode == 0, done.stderr
    program = folder / "driver"
    objects = [folder / target for _, target, _ in jobs]
    done = run(cxx, *flags, *objects, "-pthread", *link, "-o", program)
    if done.returncode and re.search(r"cannot find .*(asan|ubsan|tsan)", done.stderr):
        pytest.skip(f"the compiler lacks its sanitizer's library: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    return program


def drive(*command, level=None, **environment):
    if level:
        environment["DICENET_CPU"] = level
    done = run(*command, **environment)
    if done.returncode == LACKS_LEVEL:
        return f"this machine {done.stdout.strip()}"
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    assert " 0 failures" in done.stdout
    return None


def drive_all_levels(program, levels, **environment):
    """Every level that the machine has: the baseline at least."""
    lacking = [drive(program, level=level, **environment) for level in (*levels, "baseline")]
    assert lacking[-1] is None
    print(*filter(None, lacking), sep="\n")


def test_plain(tmp_path):
    program = build(tmp_path, compiler("g++"), LEVELS if X86_64 else {})
    drive_all_levels(program, LEVELS if X86_64 else ())
    drive(program, "1")


@pytest.mark.skipif(sys.platform != "linux", reason="the sanitizers' flags are those of GCC on Linux")
def test_addresses_and_undefined_behaviour(tmp_path):
    # -O1: with the build's -O3 the compiler takes minutes over every level
    flags = ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    program = build(tmp_path, compiler("g++"), LEVELS if X86_64 else {}, flags)
    drive_all_levels(program, LEVELS if X86_64 else (), ASAN_OPTIONS="detect_leaks=0")


@pytest.mark.skipif(sys.platform != "linux", reason="the sanitizers' flags are those of GCC on Linux")
def test_races(tmp_path):
    # one level: what threads share is decided outside of the kernels
    program = build(tmp_path, compiler("g++"), {}, ["-g1", "-fsanitize=thread"])
    drive(program, "4")


def test_neon(tmp_path):
    cxx = compiler("aarch64-linux-gnu-g++")
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("needs the emulator qemu-aarch64 (package qemu-user)")
    program = build(tmp_path, cxx, {}, link=["-static"])
    drive(emulator, program)
