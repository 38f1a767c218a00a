"""Builds optimc._core.  The only place with compiler flags; CONTRIBUTING.md gives their reasons.

Switches, from the environment:
    OPTIMC_STRICT=1     all warnings, as errors
    OPTIMC_DEBUG=1      -O1 -g and assertions
    OPTIMC_SANITIZE=address,undefined (or thread)   the same, with those sanitizers
"""

import os
from glob import glob

import numpy
from setuptools import Extension, setup

# -O3: gcc before 13 vectorises nothing at -O2.  Without -fno-math-errno no loop with a square root is
# vectorised, without -fno-trapping-math no select is.  Neither changes a result; contraction would.
compile_args = ["-O3", "-std=c11", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off",
                "-fvisibility=hidden", "-pthread"]
link_args = ["-pthread"]

if os.environ.get("OPTIMC_STRICT"):
    compile_args += ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wvla", "-Werror"]
sanitizers = os.environ.get("OPTIMC_SANITIZE")
if sanitizers or os.environ.get("OPTIMC_DEBUG"):
    compile_args += ["-O1", "-g", "-UNDEBUG", "-fno-omit-frame-pointer"]
if sanitizers:
    compile_args += [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=undefined"]
    link_args += [f"-fsanitize={sanitizers}"]

setup(ext_modules=[Extension(
    "optimc._core",
    sources=sorted(glob("csrc/*.c")),
    # what is included is not seen by setuptools: without this an edit would not be rebuilt
    depends=sorted(glob("csrc/*.h") + glob("csrc/*.inc") + glob("csrc/*.def")),
    include_dirs=["csrc"],
    # as system headers: their warnings are not ours
    extra_compile_args=[*compile_args, "-isystem", numpy.get_include()],
    extra_link_args=link_args,
)])
