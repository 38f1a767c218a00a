"""Every generated file is up to date, and a stale or missing one would be noticed.

The bits of the kernels without Python are compared by .ci/platforms, with every compiler.
"""

import shutil
import sys

import golden
import pytest
from places import ROOT

sys.path.append(str(ROOT))          # last: optimc may be an installed one

if not (ROOT / "benchmarks").exists():
    pytest.skip("needs the repository: an sdist has no benchmarks", allow_module_level=True)

from tools import record


@pytest.mark.parametrize("part", sorted({*record.PARTS} - {"kernels"}))
def test_generated_files_are_up_to_date(part):
    assert list(record.stale(part)) == [], "run: make record"


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A copy of what the stubs, tables and figures are written to, in place of the tree."""
    for path in [*record.make_stubs(), *record.make_tables(), *record.make_speed()]:
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    monkeypatch.setattr(record, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize(("part", "name", "line"), [
    ("stubs", "optimc/optimizers.pyi", "    def nesterov(self) -> bool: ...\n"),
    ("tables", "README.md", "| `Nadam` |"),
    ("speed", "README.md", "| GPT-2 small"),
    ("speed", "docs/performance/results.md", "| 50 arrays of 100 |"),
])
def test_a_stale_file_is_named_and_written_again(tree, capsys, part, name, line):
    path = tree / name
    right = path.read_text("utf-8")
    assert line in right
    path.write_text(right.replace(line, ""), "utf-8")
    assert record.main(["--check", part]) == 1 and capsys.readouterr().out == f"stale: {name}\n"
    assert line not in path.read_text("utf-8")
    assert record.main([part]) == 0 and capsys.readouterr().out == f"written: {name}\n"
    assert path.read_text("utf-8") == right
    assert record.main(["--check", part]) == 0 and capsys.readouterr().out == ""


def test_golden_files_are_made_once(tmp_path, monkeypatch):
    monkeypatch.setattr(golden, "FOLDER", tmp_path)
    monkeypatch.setattr(record, "ROOT", tmp_path)
    assert record.main(["golden"]) == 0
    made = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(made) == sum(len(golden.kinds(optimizer)) for optimizer in golden.optimizers().values())
    first = next(iter(made))
    first.write_bytes(b"not what it was")
    assert record.main(["golden", "--check"]) == 0 and first.read_bytes() == b"not what it was"


def test_a_part_that_does_not_exist_is_refused(capsys):
    with pytest.raises(SystemExit):
        record.main(["stub"])
    assert "no such part: stub" in capsys.readouterr().err
