"""Builds the C++ operators; everything else about the package is in pyproject.toml.

Without torch at build time (an isolated build) or without a compiler the package installs all the same, and
computes with torch's own operators.
"""

import os
import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

SOURCES = Path("src/dicenet/ops/cpu/csrc")
#: Oldest torch that the library may be loaded into: 2.11, as torch/csrc/stable encodes it.
TORCH_TARGET = "0x020b000000000000"
X86_64 = platform.machine() in ("x86_64", "AMD64")
#: Instruction sets that the kernels are compiled for, beside what the compiler assumes by itself.
LEVELS = {"avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"], "avx2": ["-march=x86-64-v3"]} if X86_64 else {}
#: Multiply-adds may be fused; nothing else changes results (no -ffast-math: norms need exact arithmetic).
KERNEL_FLAGS = ["-O3", "-ffp-contract=fast", "-fno-trapping-math", "-fno-math-errno"]
WARNINGS = ["-Wall", "-Wextra"]


def torch_folder() -> Path | None:
    """Where torch lies, without importing it: that takes seconds."""
    from importlib.util import find_spec

    spec = find_spec("torch")
    return Path(spec.origin).parent if spec and spec.origin else None


class BuildOperators(build_ext):
    """Compiles the kernels once per level and links them with the registration."""

    def build_extension(self, ext: Extension) -> None:
        """Compile and link one extension."""
        torch = torch_folder()
        if torch is None:
            # of the kind that an optional extension may fail with
            raise CompileError("torch is not installed in the build's environment (use --no-build-isolation)")
        compile_one = lambda source, flags, **where: self.compiler.compile(  # noqa: E731
            [str(SOURCES / source)],
            debug=self.debug,
            extra_postargs=["-std=c++20", "-fPIC", "-fvisibility=hidden", *WARNINGS, *flags],
            **where,
        )
        objects = []
        for level, flags in {"baseline": [], **LEVELS}.items():
            macros = [("DICENET_LEVEL", level)]
            objects += compile_one(
                "level.cpp", KERNEL_FLAGS + flags, output_dir=f"{self.build_temp}/{level}", macros=macros
            )
        plain = [("DICENET_HAVE_X86_LEVELS", None)] if LEVELS else []
        for source in ("dispatch.cpp", "parallel.cpp", "unit.cpp", "plan.cpp"):
            objects += compile_one(source, KERNEL_FLAGS, output_dir=self.build_temp, macros=plain)
        include = torch / "include"
        # messages of torch's checks name its headers: without the folders of the machine that built this
        nowhere = f"-ffile-prefix-map={include}/="
        objects += compile_one(
            "torch_ops.cpp",
            ["-O2", "-isystem", str(include), nowhere],
            output_dir=self.build_temp,
            macros=[("TORCH_TARGET_VERSION", TORCH_TARGET), ("TORCH_STABLE_ONLY", None)],
        )
        # no path to torch is recorded: it is loaded before this library is
        self.compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(ext.name),
            libraries=["torch_cpu", "torch"],
            library_dirs=[str(torch / "lib")],
            target_lang="c++",
            build_temp=self.build_temp,
            extra_postargs=[] if self.debug else ["-Wl,-S"],  # without debugging symbols
        )

    def get_ext_filename(self, fullname: str) -> str:
        """No Python version in the name: the library holds no Python interface at all. The same everywhere."""
        return str(Path(*fullname.split("."))) + ".so"

    def get_libraries(self, ext: Extension) -> list[str]:
        """None of Python's."""
        return []


class Wheel(bdist_wheel):
    """A wheel for one platform and every Python from 3.11 on."""

    def get_tag(self) -> tuple[str, str, str]:
        """Any Python 3, no Python interface, this platform."""
        _, _, platform_tag = super().get_tag()
        return "py3", "none", platform_tag


# 0: not built; required: no installation without them; else built where that is possible
choice = os.environ.get("DICENET_BUILD_OPS", "1")
wanted = choice != "0" and sys.platform != "win32"
optional = choice != "required"
setup(
    # optional: a failed build is reported and the installation goes on
    ext_modules=[Extension("dicenet.ops.cpu._operators", [], optional=optional, language="c++")] if wanted else [],
    cmdclass={"build_ext": BuildOperators, "bdist_wheel": Wheel},
)
