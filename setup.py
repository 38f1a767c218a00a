"""Builds optimc._core.  The only place with compiler flags; CONTRIBUTING.md gives their reasons.

Switches, from the environment:
    OPTIMC_STRICT=1     all warnings, as errors
    OPTIMC_DEBUG=1      -O1 -g and assertions
    OPTIMC_SANITIZE=address,undefined (or thread)   the same, with those sanitizers
"""

import os
import subprocess
import sys
from glob import glob

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# -O3: gcc before 13 vectorises nothing at -O2.  Without -fno-math-errno no loop with a square root is
# vectorised, without -fno-trapping-math no select is.  Neither changes a result; contraction would.
compile_args = ["-O3", "-std=c11", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off",
                "-fvisibility=hidden", "-pthread"]
link_args = ["-pthread"]
debug = os.environ.get("OPTIMC_SANITIZE") or os.environ.get("OPTIMC_DEBUG")

if os.environ.get("OPTIMC_STRICT"):
    compile_args += ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wvla", "-Werror"]
sanitizers = os.environ.get("OPTIMC_SANITIZE")
if not debug and sys.platform == "linux":
    link_args += ["-Wl,--strip-all"]        # what python was built with may say -g
if debug:
    compile_args += ["-O1", "-g", "-UNDEBUG", "-fno-omit-frame-pointer"]
if sanitizers:
    compile_args += [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=undefined"]
    link_args += [f"-fsanitize={sanitizers}"]


class BuildExt(build_ext):
    """Adds what only gcc takes: tails of loops stay loops, which makes the kernels a fifth smaller."""

    def build_extensions(self):
        command = getattr(self.compiler, "compiler_so", None)
        if command:
            version = subprocess.run([*command[:1], "--version"], capture_output=True, text=True, check=False)
            if "Free Software Foundation" in version.stdout:
                for extension in self.extensions:
                    extension.extra_compile_args.append("--param=max-completely-peeled-insns=0")
        super().build_extensions()


setup(cmdclass={"build_ext": BuildExt}, ext_modules=[Extension(
    "optimc._core",
    sources=sorted(glob("csrc/*.c")),
    # what is included is not seen by setuptools: without this an edit would not be rebuilt
    depends=sorted(glob("csrc/*.h") + glob("csrc/*.inc") + glob("csrc/*.def")),
    include_dirs=["csrc"],
    # as system headers: their warnings are not ours
    extra_compile_args=[*compile_args, "-isystem", numpy.get_include()],
    extra_link_args=link_args,
)])
