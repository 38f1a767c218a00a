"""The built module: its exports, its wide registers, the effects of importing it.

Each check is also shown a defect.
"""

import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from places import ROOT

from optimc import _core

LINUX = sys.platform == "linux"
X86 = platform.machine() in ("x86_64", "AMD64")
COMPILER = shlex.split(sysconfig.get_config_var("CC") or "cc")[:1]

needs_nm = pytest.mark.skipif(not (LINUX and shutil.which("nm")), reason="needs Linux and nm")
needs_compiler = pytest.mark.skipif(not (LINUX and shutil.which(COMPILER[0])), reason="needs Linux and a C compiler")
needs_objdump = pytest.mark.skipif(not (X86 and shutil.which("objdump")), reason="needs x86-64 and objdump")


def output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout


def run_python(code):
    return output(sys.executable, "-c", code).split()


def compiled(folder, text, *flags):
    source, target = folder / "planted.c", folder / "planted.bin"
    source.write_text(text)
    output(*COMPILER, str(source), "-o", str(target), *flags)
    return target


# ------------------------------------------------------------------------------------------ exports


def exported(library):
    return [line.split()[-1] for line in output("nm", "-D", "--defined-only", str(library)).splitlines()]


@needs_nm
def test_only_the_init_function_is_exported():
    assert exported(_core.__file__) == ["PyInit__core"]


@needs_nm
@needs_compiler
def test_another_export_would_be_noticed(tmp_path):
    text = "void PyInit__core(void) {} void leaked(void) {}"
    library = compiled(tmp_path, text, "-shared", "-fPIC")
    assert set(exported(library)) >= {"PyInit__core", "leaked"}


# ---------------------------------------------------------------------------------------------- walls


def missing_symbols(objects):
    """The symbols of this project that these objects need and do not define."""
    symbols = [line.split()[-2:] for line in output("nm", *map(str, objects)).splitlines() if " " in line]
    defined = {name for kind, name in symbols if kind in "TDBRSC"}
    return {name for kind, name in symbols if kind == "U" and name.startswith("optimc_")} - defined


@needs_nm
@needs_compiler
@pytest.mark.skipif(not (ROOT / "csrc").exists(), reason="needs the source tree")
def test_kernels_need_nothing_that_is_built_on_them(tmp_path):
    objects = []
    for source in sorted((ROOT / "csrc/kernels").glob("*.c")):
        objects.append(tmp_path / f"{source.stem}.o")
        output(*COMPILER, "-c", "-I", str(ROOT / "csrc"), str(source), "-o", str(objects[-1]))
    assert {"exact", "isa", "kernels_baseline"} <= {target.stem for target in objects}
    assert missing_symbols(objects) == set()
    without = [target for target in objects if target.stem != "exact"]
    assert "optimc_power" in missing_symbols(without)


# ----------------------------------------------------------------------------------- wide registers


def uses_wide_registers(objects):
    return bool(re.search(r"%[yz]mm\d", output("objdump", "-d", *map(str, objects))))


def flags_of_setup():
    pytest.importorskip("setuptools")
    if not (ROOT / "setup.py").exists():
        pytest.skip("needs the source tree")
    arguments = ("import setuptools; from distutils.core import run_setup\n"
                 "print(*run_setup('setup.py', stop_after='init').ext_modules[0].extra_compile_args, sep='\\n')")
    return subprocess.run([sys.executable, "-c", arguments], cwd=ROOT, capture_output=True, text=True,
                          check=True).stdout.splitlines()


@needs_compiler
@needs_objdump
def test_wide_registers_stay_in_the_objects_of_their_isa(tmp_path):
    """A function outside them runs before anyone has asked whether this machine has such registers."""
    flags = [*flags_of_setup(), "-I", sysconfig.get_path("include"), "-I", str(ROOT / "csrc")]
    sources = [path for path in sorted((ROOT / "csrc").glob("*/*.c"))
               if path.stem not in {f"kernels_{isa}" for isa in ("avx2", "avx512")}]
    assert {"isa", "kernels_baseline", "module", "plan", "pool"} <= {path.stem for path in sources}
    for source in sources:
        target = tmp_path / f"{source.stem}.o"
        output(*COMPILER, "-c", str(source), "-o", str(target), *flags)
        assert not uses_wide_registers([target]), source.name


@needs_compiler
@needs_objdump
@pytest.mark.parametrize("isa", ["avx2", "avx512f"])
def test_a_wide_register_would_be_noticed(tmp_path, isa):
    target = compiled(tmp_path, f'__attribute__((target("{isa}"))) void f(double *x)\n'
                                "{ for (int i = 0; i < 64; i++) x[i] *= 2; }", "-O3", "-c")
    assert uses_wide_registers([target])


@pytest.mark.skipif(not (LINUX and X86), reason="needs /proc/cpuinfo of an x86-64")
def test_the_isas_are_those_the_system_names():
    text = Path("/proc/cpuinfo").read_text()
    flags = set(re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)[1].split())
    expected = ["baseline"]
    if "avx2" in flags:
        expected.append("avx2")
    if {"avx512f", "avx512vl", "avx512dq", "avx512bw"} <= flags:
        expected.append("avx512")
    assert list(_core.isas) == expected


# ------------------------------------------------------------------------------------------- import


SUBNORMAL = """
import ctypes, numpy as np
x = np.array([1e-40, 1e-39], np.float32)
before = (x * np.float32(1)).tobytes(), (x.astype(np.float64) * 1e-275).tobytes()
{}
after = (x * np.float32(1)).tobytes(), (x.astype(np.float64) * 1e-275).tobytes()
print(before == after and any(before[0]) and any(before[1]))
"""

FLUSHING = """
__attribute__((constructor)) static void flush(void)
{
#if defined(__x86_64__)
    __builtin_ia32_ldmxcsr(__builtin_ia32_stmxcsr() | 0x8040);
#elif defined(__aarch64__)
    unsigned long fpcr;
    __asm__ volatile("mrs %0, fpcr" : "=r"(fpcr));
    __asm__ volatile("msr fpcr, %0" : : "r"(fpcr | 1ul << 24));
#endif
}
"""


def test_import_and_a_step_leave_subnormal_numbers_alone():
    assert run_python(SUBNORMAL.format("import optimc")) == ["True"]
    step = "import optimc; w = np.ones(9, np.float32); optimc.Adam().apply([w * 0], [w])"
    assert run_python(SUBNORMAL.format(step)) == ["True"]


@needs_compiler
@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="needs a known control register")
def test_flushing_them_would_be_noticed(tmp_path):
    library = compiled(tmp_path, FLUSHING, "-shared", "-fPIC")
    assert run_python(SUBNORMAL.format(f"ctypes.CDLL({str(library)!r})")) == ["False"]


def imported_by(code):
    """The packages that are imported with it, beside Python's own and NumPy."""
    return run_python("import sys, numpy\nbefore = set(sys.modules)\n" + code + "\n"
                      "names = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
                      "print(*sorted(names - sys.stdlib_module_names - {'numpy'}))")


def test_import_brings_no_framework():
    assert imported_by("import optimc") == ["optimc"]


def test_modules_that_0_1_imported_along_are_there():
    for name in ("optimizer", "structured", "wrappers"):
        assert run_python(f"import optimc; print(optimc.{name}.__name__)") == [f"optimc.{name}"]


def test_another_package_would_be_noticed():
    assert "pluggy" in imported_by("import optimc, pluggy")
