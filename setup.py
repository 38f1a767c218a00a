"""Builds optimc._core, and makes the description for PyPI of README.md.

This is the only place with compiler flags; docs/project/design/compiler-flags.md gives their reasons.

Switches, from the environment:
    OPTIMC_STRICT=1     all warnings, as errors
    OPTIMC_DEBUG=1      -O1 -g and assertions
    OPTIMC_SANITIZE=address,undefined (or thread)   the same, with those sanitizers
    OPTIMC_PLANT=1      defects on purpose, for .ci/sanitize: see csrc/python/plant.inc
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from glob import glob
from pathlib import Path

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# -O3: gcc before 13 vectorises nothing at -O2.  Without -fno-math-errno no loop with a square root is
# vectorised, without -fno-trapping-math no select is.  Neither changes a result; contraction would.
compile_args = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
# as system headers: their warnings are not ours
system_include = ["-isystem", numpy.get_include()]
link_args = []
if sys.platform == "win32":                 # clang-cl hands on what follows /clang:
    compile_args = ["/std:c11", *(f"/clang:{flag}" for flag in compile_args)]
    system_include = [f"/imsvc{numpy.get_include()}"]
else:
    compile_args += ["-std=c11", "-fvisibility=hidden", "-pthread"]
    link_args += ["-pthread"]
debug = os.environ.get("OPTIMC_SANITIZE") or os.environ.get("OPTIMC_DEBUG")

if os.environ.get("OPTIMC_STRICT"):
    compile_args += ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wvla", "-Werror"]
sanitizers = os.environ.get("OPTIMC_SANITIZE")
if not debug and sys.platform == "linux":
    link_args += ["-Wl,--strip-all"]        # what python was built with may say -g
    compile_args += ["-fno-asynchronous-unwind-tables"]         # nothing is thrown through C, and wheels are small
if debug:
    compile_args += ["-O1", "-g", "-UNDEBUG", "-fno-omit-frame-pointer"]
if sanitizers:
    # python's own flags may say -fwrapv, which would make signed overflow defined
    compile_args += [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=undefined", "-fno-wrapv"]
    link_args += [f"-fsanitize={sanitizers}"]


#: files through which no step of Python's runs, or only a rare one: compiled for size
OFF_THE_STEP_PATH = {f"{name}.c" for name in (
    "averages", "bind", "callee", "changes", "coefs", "forks", "homes", "module", "optimizer", "plan_type",
    "processors", "refuse", "several", "shares", "sources", "tensorflow", "transaction", "turn_type", "warn", "xla")}
#: gcc on x86-64, where processors reorder instructions: their order costs a wheel size, and gains no speed
COMMON = ["-fno-schedule-insns2"]
#: there, files that are smaller and no slower with -O2
SMALLER = {"look.c", "settings.c", "take.c", "trees.c"}
#: there, kernels a tenth smaller and as fast
KERNELS = ["-O2", "-ftree-vectorize", "-fvect-cost-model=dynamic", "-fno-tree-pre", "-fno-gcse", *COMMON]
#: there, the kernels for old processors: a tenth smaller again, and up to 4 % slower in cache
BASELINE = [*KERNELS, "-fira-region=one", "-falign-loops=1", "-falign-jumps=1"]

#: what clang-cl calls the targets of the wheels
WINDOWS_TARGETS = {"win-amd64": "x86_64-pc-windows-msvc", "win-arm64": "aarch64-pc-windows-msvc"}


class BuildExt(build_ext):
    """Adds what only gcc takes: tails of loops stay plain loops, which makes the kernels a third smaller,
    and no loop is cut in two.

    On Windows clang-cl compiles and Microsoft's linker links: Microsoft's compiler has no per-function ISA.
    """

    def build_extensions(self):
        if self.compiler.compiler_type == "msvc":
            if not shutil.which("clang-cl") or self.plat_name not in WINDOWS_TARGETS:
                sys.exit(f"optimc needs clang-cl (part of LLVM) on PATH, for {' or '.join(WINDOWS_TARGETS)}")
            self.compiler.initialize(self.plat_name)
            self.compiler.cc = shutil.which("clang-cl")
            for extension in self.extensions:
                extension.extra_compile_args.append(f"--target={WINDOWS_TARGETS[self.plat_name]}")
        command = getattr(self.compiler, "compiler_so", None)
        if command:
            version = subprocess.run([*command[:1], "--version"], capture_output=True, text=True, check=False)
            is_gcc = "Free Software Foundation" in version.stdout
            self.tuned = is_gcc and platform.machine().lower() in ("x86_64", "amd64")
            if is_gcc:
                for extension in self.extensions:
                    extension.extra_compile_args += ["--param=max-completely-peeled-insns=0",
                                                     "--param=vect-epilogues-nomask=0",
                                                     "-fno-tree-loop-distribution"]
        if self.compiler.compiler_type == "unix" and not debug:
            self.compile_one, self.compiler._compile = self.compiler._compile, self.compile_by_use
        super().build_extensions()

    def compile_by_use(self, obj, src, ext, cc_args, extra_postargs, pp_opts):
        """Compiles one file: for size, if no step runs through it; kernels for size and speed."""
        name = os.path.basename(src)
        flags = []
        if name in OFF_THE_STEP_PATH:
            flags = ["-Os"]
        elif self.tuned and name.startswith("kernels_"):
            flags = BASELINE if name == "kernels_baseline.c" else KERNELS
        elif self.tuned:
            flags = ["-O2", *COMMON] if name in SMALLER else COMMON
        self.compile_one(obj, src, ext, cc_args, [*extra_postargs, *flags], pp_opts)


def description():
    """Returns README.md for pages outside the tree: its links to files lead to the tag of this version."""
    project = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]

    def absolute(link):
        kind = "raw" if link[1].endswith((".png", ".svg", ".gif")) else "blob"
        path = f"README.md{link[1]}" if link[1].startswith("#") else link[1]
        return f"]({project['urls']['Source']}/{kind}/v{project['version']}/{path})"

    return re.sub(r"\]\((?!https?:)([^)\s]+)\)", absolute, Path("README.md").read_text("utf-8"))


core = Extension(
    "optimc._core",
    sources=sorted(glob("csrc/*/*.c")),
    # what is included is not seen by setuptools: without this an edit would not be rebuilt
    depends=sorted(path for ending in ("h", "inc", "def") for path in glob(f"csrc/**/*.{ending}", recursive=True)),
    include_dirs=["csrc"],
    define_macros=[("OPTIMC_PLANT", "1")] if os.environ.get("OPTIMC_PLANT") else [],
    extra_compile_args=[*compile_args, *system_include],
    extra_link_args=link_args,
)
setup(cmdclass={"build_ext": BuildExt}, ext_modules=[core],
      long_description=description(), long_description_content_type="text/markdown")
