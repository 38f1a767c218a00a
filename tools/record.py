"""Writes every tracked file that is generated: stubs, tables, costs of kernels, hashes, golden files, speed.

    python tools/record.py                  writes what is stale and names it; `make record` builds first
    python tools/record.py --check          writes nothing, names what is stale, and fails if anything is
    python tools/record.py stubs tables     only these parts

Each part is a function that returns what its files should hold, drawn from the registry and the built module.  A file
is stale when its content differs.  Tables are filled into documents, whose other text is left alone.  A golden file
that exists is never written again.
"""

import argparse
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def make_stubs():
    """The types of the classes that are made at run time."""
    from tools import stubs
    return {ROOT / "optimc" / path: text.encode() for path, text in stubs.texts().items()}


def make_tables():
    """The tables that follow from the registry, in the documents that hold them."""
    from tools import tables
    return {ROOT / path: tables.filled(path, (ROOT / path).read_text("utf-8")).encode() for path in tables.TABLES}


def make_costs():
    """What each kernel does per weight, for the machine's limit."""
    from tools import costs
    return {costs.FILE: costs.text().encode()}


def make_hashes():
    """The bits of a long run of every case."""
    import hashes
    return {hashes.FILE: hashes.text().encode()}


def compiler_flags():
    """The flags of setup.py that are not Python's or NumPy's."""
    code = ("import setuptools; from distutils.core import run_setup\n"
            "args = run_setup('setup.py', stop_after='init').ext_modules[0].extra_compile_args\n"
            "print('\\n'.join(args[:args.index('-isystem')]))")
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          check=True).stdout.split()


def make_kernels():
    """The bits of every kernel without Python, by the baseline ISA; .ci/platforms compares the others with them."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    sources = [ROOT / "tests" / "kernels" / "main.c", *sorted((ROOT / "csrc").glob("kernels/*.c")),
               *sorted((ROOT / "csrc").glob("plan/*.c"))]
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/kernels"
        subprocess.run([compiler, *compiler_flags(), f"-I{ROOT / 'csrc'}", *sources, "-o", program,
                        "-pthread", "-lm"], check=True)
        printed = subprocess.run([program, "baseline"], capture_output=True, check=True).stdout
    return {ROOT / "tests" / "kernels" / "kernels.txt": printed}


def make_golden():
    """The golden files that are missing."""
    import golden
    return golden.missing()


def make_speed():
    """Makes what shows results of the benchmark: parts of README.md and of docs/performance/results.md, pictures."""
    from benchmarks import report
    return report.files(report.load(report.RESULTS), ROOT)


PARTS = {"stubs": make_stubs, "tables": make_tables, "costs": make_costs, "hashes": make_hashes,
         "kernels": make_kernels, "golden": make_golden, "speed": make_speed}


def stale(part):
    """Path -> content of the files of a part that are missing or hold something else."""
    return {path: content for path, content in PARTS[part]().items()
            if not path.exists() or path.read_bytes() != content}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all if none is named")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is stale")
    arguments = parser.parse_args(argv)
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    found = False
    for part in arguments.parts or PARTS:
        for path, content in stale(part).items():
            found = True
            print(f"{'stale' if arguments.check else 'written'}: {path.relative_to(ROOT)}")
            if not arguments.check:
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)
    return int(arguments.check and found)


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "support")]
    sys.exit(main())
