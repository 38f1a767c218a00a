"""`python -m optimc compare`: what it measures, what it writes, and what it says to bad input."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import optimc
from optimc import registry
from optimc.__main__ import main
from optimc.cli import compare
from optimc.cli.compare import command, training, words
from optimc.cli.compare.data import load_data, standardise
from optimc.cli.compare.numbers import is_adaptive

pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("sklearn")

FILES = {"compare.json", "losses.png", "paths.png"}
COMMAND = [sys.executable, "-m", "optimc"]
TINY = ["--epochs", "2", "--seeds", "2", "--hidden", "8"]
SETTINGS = compare.Settings(epochs=2, batch_size=32, hidden=8, seeds=2)


def call(argv):
    """The exit code of a command line, run in this process."""
    try:
        return main(["compare", *map(str, argv)])
    except SystemExit as stop:
        return stop.code


def table_csv(path, rows=20, **replace):
    """A CSV with the columns a, b, y; `replace` gives other cells for a column."""
    rng = np.random.default_rng(1)
    columns = {name: [f"{value:.4f}" for value in rng.normal(size=rows)] for name in "aby"}
    columns |= replace
    lines = [",".join(columns), *(",".join(cells) for cells in zip(*columns.values(), strict=True))]
    path.write_text("\n".join(lines) + "\n")
    return path


def read(out):
    return json.loads((out / "compare.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def data():
    return load_data(None, None)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "deep" / "out"


# ------------------------------------------------------------------------------------ the network


def test_backward_is_the_derivative_of_the_loss():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 3)), rng.normal(size=(7, 1))
    weights = [rng.normal(size=shape) for shape in ((3, 5), (5,), (5, 1), (1,))]
    for grad, weight in zip(compare.backward(x, y, weights), weights, strict=True):
        assert grad.shape == weight.shape
        for index in np.ndindex(weight.shape):
            held, h = weight[index], 1e-6
            losses = []
            for weight[index] in (held + h, held - h):
                losses.append(compare.mean_squared_error(x, y, weights))
            weight[index] = held
            assert math.isclose(grad[index], (losses[0] - losses[1]) / (2 * h), rel_tol=1e-6,
                                abs_tol=1e-8)


def test_training_stays_in_float32(data):
    x, y = data.parts["training"]
    weights = compare.new_weights(x.shape[1], 8, np.random.default_rng(0))
    arrays = [x, y, *weights, *compare.backward(x, y, weights), *compare.forward(x, weights)]
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}


def test_features_and_target_are_standardised_on_the_training_rows(data):
    sizes = {part: len(y) for part, (_, y) in data.parts.items()}
    assert sizes == {"training": 265, "validation": 88, "test": 89}
    for values in data.parts["training"]:
        np.testing.assert_allclose(values.mean(axis=0), 0, atol=1e-6)
        np.testing.assert_allclose(values.std(axis=0), 1, atol=1e-6)
    assert abs(data.parts["test"][0].mean(axis=0)).max() > 1e-3


def test_standardise_takes_constant_and_huge_columns():
    table = np.array([[0.1, 1e300, 0.0], [0.1, -1e300, 0.0], [0.1, 1e300, 5.0]])
    result = standardise(table, np.array([0, 1]))
    np.testing.assert_array_equal(result, np.array([[0, 1, 0], [0, -1, 0], [0, 1, 0]], np.float32))


def test_a_seed_starts_all_optimizers_alike(data):
    runs = [compare.train(make(1e-3), data, SETTINGS, seed=3)
            for make in compare.CONTESTANTS.values()]
    assert len({run.training[0] for run in runs}) == 1
    assert len({run.training[1] for run in runs}) > 4


def test_training_lowers_the_loss_and_stops_when_it_diverges(data):
    good = compare.train(optimc.Adam(0.01), data, SETTINGS, 0)
    assert good.training[-1] < good.training[0] and not good.diverged
    bad = compare.train(optimc.SGD(1e20), data, SETTINGS, 0)
    assert bad.diverged and bad.training[1] == bad.test == math.inf
    assert len(bad.training) == len(good.training) == SETTINGS.epochs + 1


# -------------------------------------------------------------------------------- the measurements


def run_of(training, validation=(1.0, 1.0), test=0.5):
    return compare.Run(np.array(training), np.array(validation), test, 1000.0, {}, 10)


def test_best_rate_is_the_lowest_score_and_of_equals_the_smallest():
    assert compare.best_rate({0.1: 2.0, 0.01: 1.0, 1.0: math.inf}) == 0.01
    assert compare.best_rate({0.1: 2.0, 0.01: 2.0}) == 0.01
    assert compare.best_rate({0.1: math.inf, 0.01: math.inf}) == 0.01


def test_sweep_scores_a_rate_by_its_mean_validation_loss(data, monkeypatch):
    monkeypatch.setattr(training, "RATES", (1e-5, 1e-2, 1e20))
    result = compare.measure("sgd", data, SETTINGS, lambda text: None)
    assert result.learning_rate == 1e-2 and result.scores[1e20] == math.inf
    assert result.scores[1e-2] == np.mean([run.validation[1:].mean() for run in result.runs])


def test_speed_is_the_first_epoch_within_five_percent_of_the_best():
    curves = {"a": (2.0, 1.06, 1.0), "b": (2.0, 1.04, 1.1), "c": (2.0, 1.9, 1.8)}
    target, rows = compare.summarise({
        name: compare.Result(0.1, {}, [run_of((2.0, 1.0, 0.5), curve)])
        for name, curve in curves.items()})
    assert target == pytest.approx(1.05)
    assert [row["epochs_to_target"] for row in rows] == [2, 1, math.inf]


@pytest.mark.parametrize("epochs, said", [
    ([3, 3], "3"), ([2, 5, 9], "5 (2-9)"), ([2, 5, math.inf], "5 (2+)"),
    ([2, math.inf, math.inf], "never (2+)"), ([math.inf], "never")])
def test_speed_is_shown_with_its_range(epochs, said):
    row = {"epochs_by_seed": epochs, "epochs_to_target": sorted(epochs)[len(epochs) // 2]}
    assert words.COLUMNS["speed\nepochs"](row) == said


def test_losses_and_spread_leave_diverged_runs_out():
    runs = [run_of((2.0, 1.0)), run_of((2.0, 1.5)), run_of((2.0, 3.0)), run_of((2.0, math.inf))]
    _, (row,) = compare.summarise({"a": compare.Result(0.1, {}, runs)})
    assert (row["diverged"], row["training_loss"], row["test_loss"]) == (2, 1.25, 0.5)
    assert row["loss_spread"] == pytest.approx(0.5 / math.sqrt(2))


# ----------------------------------------------------------------------------------- what it makes


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder and the printed text of one run in a process of its own."""
    folder = tmp_path_factory.mktemp("done")
    process = subprocess.run([*COMMAND, "compare", *TINY, "--out", "out"], cwd=folder, check=False,
                             capture_output=True, encoding="utf-8",
                             env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    assert (process.returncode, process.stderr) == (0, "")
    return folder / "out", process.stdout


def test_all_files_are_there_and_the_figures_are_images(done):
    from matplotlib.image import imread
    folder, _ = done
    assert {path.name for path in folder.iterdir()} == FILES
    for name in ("losses.png", "paths.png"):
        image = imread(folder / name)
        assert image.shape[0] > 500 and image.shape[1] > 500 and image.std() > 0.05


def restored(row):
    """A row of the JSON with the infinities that it has to leave out."""
    never = [math.inf if epochs is None else epochs
             for epochs in (row["epochs_to_target"], *row["epochs_by_seed"])]
    return {**row, "epochs_to_target": never[0], "epochs_by_seed": never[1:]}


def test_table_shows_the_numbers_of_the_json(done):
    folder, printed = done
    body = printed.partition("──\n")[2].partition("\n\n")[0].splitlines()
    shown = {line.split()[0]: line.split() for line in body}
    results = read(folder)["results"]
    assert [row["optimizer"] for row in results] == list(compare.CONTESTANTS)
    assert max(len(line) for line in printed.splitlines() if line.startswith(("─", "adam"))) <= 80
    for row in results:
        row = restored(row)
        cells = " ".join(text(row) for text in words.COLUMNS.values())
        assert shown[row["optimizer"]] == cells.split()


def test_json_says_what_was_done_and_where_it_ran_but_no_paths(done):
    folder, _ = done
    result = read(folder)
    assert result["versions"]["optimc"] == optimc.__version__
    assert (result["isa"], result["interrupted"]) == (optimc.isa, False)
    assert result["settings"] == {"epochs": 2, "batch_size": 32, "hidden": 8, "seeds": [0, 1],
                                  "learning_rate": None}
    assert result["data"]["name"] == "diabetes" and len(result["data"]["features"]) == 10
    text = (folder / "compare.json").read_text()
    assert str(folder) not in text and os.path.expanduser("~") + os.sep not in text


def test_sweep_in_the_json_explains_the_rate(done):
    for row in read(done[0])["results"]:
        best = min(row["sweep"], key=lambda entry: entry["validation_loss"] or math.inf)
        assert row["learning_rate"] == best["learning_rate"]


def test_adaptive_and_memory_come_from_the_slots(done):
    measured = {row["optimizer"]: (row["adaptive"], row["slot_bytes_per_weight"])
                for row in read(done[0])["results"]}
    assert measured == {
        "sgd": (False, 0), "momentum": (False, 4), "nesterov": (False, 4), "rmsprop": (True, 4),
        "adam": (True, 8), "adam-textbook": (True, 8), "adamw": (True, 8), "adagrad": (True, 4)}


@pytest.mark.parametrize("name", registry.classes)
def test_every_slot_tells_whether_rates_adapt(name):
    weights = [np.ones((3, 2), np.float32), np.ones(2, np.float32)]
    optimizer = registry.classes[name]()
    optimizer.build(weights)
    for arrays in zip(*optimizer._slots.values(), strict=True):
        is_adaptive(slot for slot, array in zip(optimizer._slots, arrays, strict=True) if array is not None)


def test_a_slot_that_is_not_known_is_an_error_that_names_it():
    with pytest.raises(KeyError, match=r"ADAPTS in .* does not have the slot 'curvature'"):
        is_adaptive(["m", "curvature"])


def test_sentences_compare_with_the_lesson(done):
    said = " ".join(done[1].split())
    assert "Fastest, in epochs: " in said and "Most stable: " in said
    assert said.count("The lesson's order: adam, rmsprop, momentum, sgd; measured: ") == 2
    assert "Adaptive rates and the order of memory are as the lesson says." in said


def test_sentences_say_where_the_lesson_is_wrong():
    rows = [{"optimizer": name, "epochs_to_target": 3, "epochs_by_seed": [3, 3], "diverged": 0,
             "loss_spread": 0.1, "adaptive": True, "slot_bytes_per_weight": 4.0}
            for name in ("sgd", "adam")]
    assert words.sentences(rows)[-1].endswith(", but not for sgd, sgd against adam.")


def test_sentences_say_which_pairs_agree_with_the_lesson():
    def row(name, epochs, spread):
        return {"optimizer": name, "epochs_to_target": epochs, "epochs_by_seed": [epochs], "diverged": 0,
                "loss_spread": spread, "adaptive": True, "slot_bytes_per_weight": 4.0}

    speed, stability, _ = words.sentences([row("adam", 3, 0.1), row("rmsprop", 3, 0.2), row("sgd", 2, 0.3)])
    assert speed.endswith(" They agree on 0 of 3 pairs; the other way round: sgd before adam, sgd before "
                          "rmsprop; equal: adam and rmsprop.")
    assert stability.endswith(" They agree on 3 of 3 pairs.")


def test_spreads_that_are_shown_alike_are_equal():
    row = {"diverged": 0, "loss_spread": 0.00864}
    assert words._instability(row) == words._instability({**row, "loss_spread": 0.00858})
    assert words._instability(row) < words._instability({**row, "loss_spread": math.nan})


def test_pipe_gets_no_control_codes(done):
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", done[1])


def test_results_are_deterministic_but_for_the_time(done, out, capsys):
    assert call([*TINY, "--out", out]) == 0
    first, second = read(done[0]), read(out)
    for row in first["results"] + second["results"]:
        assert row.pop("microseconds_per_step") > 0
    assert first == second


def test_every_optimizer_of_the_package_can_be_compared(out, capsys):
    names = [name.upper() for name in registry.classes]
    assert call(["--epochs", 1, "--seeds", 1, "--hidden", 4, "--learning-rate", 0.001, "--out", out,
                 "--optimizers", *names]) == 0
    results = read(out)["results"]
    assert [row["optimizer"] for row in results] == [name.lower() for name in names]
    assert not any(row["diverged"] for row in results)
    assert {path.name for path in out.iterdir()} == FILES


def test_diverged_everywhere_is_a_result_too(out, capsys):
    assert call([*TINY, "--learning-rate", "1e30", "--optimizers", "sgd", "--out", out]) == 0
    for row in read(out)["results"]:
        assert (row["diverged"], row["training_loss"], row["epochs_to_target"]) == (2, None, None)
    printed = capsys.readouterr().out
    assert "never" in printed and "2 diverged" in printed


@pytest.mark.parametrize("constant", ["a", "y", "aby"])
def test_own_table_with_constant_columns(constant, tmp_path, out, capsys):
    path = table_csv(tmp_path / "[red]own.csv", **{name: ["0.1"] * 20 for name in constant})
    assert call([*TINY, "--data", path, "--target", "y", "--optimizers", "adam", "--out", out]) == 0
    result = read(out)
    assert result["data"] == {"name": "[red]own.csv", "features": ["a", "b"], "target": "y",
                              "rows": {"training": 12, "validation": 4, "test": 4}}
    assert "[red]own.csv: 20 rows" in capsys.readouterr().out


def test_own_table_as_excel_writes_it(tmp_path, out, capsys):
    path = tmp_path / "own.csv"
    rows = "".join(f'"{k}",{k * k}\r\n' for k in range(12))
    path.write_bytes(b"\xef\xbb\xbf" + f"x, y\r\n{rows}\r\n".encode())
    assert call([*TINY, "--data", path, "--target", "y", "--optimizers", "sgd", "--out", out]) == 0
    assert read(out)["data"]["features"] == ["x"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_terminal_gets_a_progress_display(tmp_path):
    import pty
    primary, secondary = pty.openpty()
    process = subprocess.Popen([*COMMAND, "compare", *TINY, "--optimizers", "adam"], cwd=tmp_path,
                               stdout=secondary, stderr=secondary,
                               env={**os.environ, "TERM": "xterm", "COLUMNS": "120"})
    os.close(secondary)
    shown = b""
    while chunk := _read(primary):
        shown += chunk
    os.close(primary)
    assert process.wait() == 0
    assert b"\x1b[" in shown and re.search(rb"adam: (trying|training at) rate", shown)
    assert {path.name for path in (tmp_path / "compare").iterdir()} == FILES


def _read(descriptor):
    try:
        return os.read(descriptor, 65536)
    except OSError:                                 # Linux's way to say that the other end closed
        return b""


def test_progress_counts_only_the_runs_that_are_over(monkeypatch):
    from rich import progress
    from rich.console import Console
    shown = []
    monkeypatch.setattr(progress.Progress, "update", lambda bar, task, **fields: shown.append(fields))
    with command._progress(Console(quiet=True), 1, SETTINGS._replace(learning_rate=0.1)) as tick:
        tick("first")
        tick("second")
    assert shown == [{"description": "first", "completed": 0}, {"description": "second", "completed": 1}]


# ------------------------------------------------------------------------------------------ Ctrl-C


def test_ctrl_c_keeps_the_optimizers_that_are_done(out, monkeypatch, capsys):
    backward = compare.backward

    def interrupted(*args):
        if len(steps) == 36:                        # two seeds, two epochs, nine steps: sgd is done
            raise KeyboardInterrupt
        steps.append(1)
        return backward(*args)

    steps = []
    monkeypatch.setattr(training, "backward", interrupted)
    assert call([*TINY, "--learning-rate", "0.01", "--optimizers", "sgd adam", "--out", out]) == 130
    result = read(out)
    assert result["interrupted"] and [row["optimizer"] for row in result["results"]] == ["sgd"]
    assert {path.name for path in out.iterdir()} == FILES
    printed = capsys.readouterr()
    assert "sgd" in printed.out
    assert printed.err == "interrupted: 1 of 2 optimizers are done\n"


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_ctrl_c_before_the_first_is_done_ends_quietly(tmp_path):
    process = subprocess.Popen([*COMMAND, "compare", "--epochs", "100000"], cwd=tmp_path,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not (tmp_path / "compare").exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    try:
        printed, said = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, printed) == (130, b"")
    assert said == b"python -m optimc compare: interrupted\n"
    assert not list((tmp_path / "compare").iterdir())


# --------------------------------------------------------------------------------------- bad input


def refused(argv, out, capsys):
    """The one line that a command line is refused with."""
    assert call([*argv, "--out", out]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and printed.err.endswith("\n")
    assert printed.err.startswith("python -m optimc")
    assert not out.exists()
    return printed.err


@pytest.mark.parametrize("argv, said", [
    (["--epochs", "0"], "--epochs: expected a whole number from 1 to 1000000, got '0'"),
    (["--epochs", "1e3"], "--epochs: expected a whole number"),
    (["--batch-size", "-1"], "--batch-size: expected"),
    (["--hidden", "9" * 30], "--hidden: expected a whole number"),
    (["--seeds", "two"], "--seeds: expected a whole number"),
    (["--learning-rate", "-0.1"], "--learning-rate: expected"),
    (["--learning-rate", "0"], "expected a finite number above 0, got '0'"),
    (["--learning-rate", "nan"], "expected a finite number above 0, got 'nan'"),
    (["--learning-rate", "inf"], "expected a finite number above 0, got 'inf'"),
    (["--optimizers", "adam,newton"], "there is no optimizer 'newton'; there are adabelief, ada"),
    (["--optimizers", ","], "there is no optimizer ''"),
    (["--optimizers"], "--optimizers: expected at least one argument"),
    (["--target", "y"], "--data FILE.csv and --target COLUMN belong together"),
    (["--data", "own.csv"], "--data FILE.csv and --target COLUMN belong together"),
    (["--colour", "red"], "unrecognized arguments: --colour red"),
])
def test_bad_options_are_refused_in_one_line(argv, said, out, capsys):
    assert said in refused(argv, out, capsys)


TEN = "1,2\n" * 10


@pytest.mark.parametrize("content, said", [
    ("", "the file is empty"),
    ("x,y\n", "expected 10 rows of numbers or more, got 0"),
    ("x,y\n1,2\n", "expected 10 rows of numbers or more, got 1"),
    (f"x,z\n{TEN}", "there is no column 'y'; there are x, z"),
    ("y\n" + "1\n" * 10, "there is no column beside the target 'y'"),
    (f"x,y\n{TEN}tall,2\n", "row 12, column 'x': expected a finite number, got 'tall'"),
    (f"x,y\n1,\n{TEN}", "row 2, column 'y': expected a finite number, got ''"),
    (f"x,y\nnan,2\n{TEN}", "row 2, column 'x': expected a finite number, got 'nan'"),
    (f"x,y\n1,-inf\n{TEN}", "row 2, column 'y': expected a finite number, got '-inf'"),
    (f"x,y\n1e999,1\n{TEN}", "row 2, column 'x': expected a finite number, got '1e999'"),
    (f"x,y\n1_0,1\n{TEN}", "row 2, column 'x': expected a finite number, got '1_0'"),
    (f"x,y\n1,2\n1,2,3\n{TEN}", "row 3: expected 2 cells, got 3"),
    (f"x,y\n1\n{TEN}", "row 2: expected 2 cells, got 1"),
    (f"x,x\n{TEN}", "column 2 of the header has the name 'x' of another column"),
    (f"x,\n{TEN}", "column 2 of the header has no name"),
    (f'x,"a\nb"\n{TEN}', "there is no column 'y'"),
    (f'x,y\n"1,2\n{TEN}', "not a comma-separated text in UTF-8"),
    (b"\xff\xfe\x00x", "not a comma-separated text in UTF-8"),
])
def test_bad_tables_are_refused_in_one_line(content, said, tmp_path, out, capsys):
    path = tmp_path / "own.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert f"{path}: {said}" in refused(["--data", path, "--target", "y"], out, capsys)


def test_a_missing_file_and_a_folder_are_refused(tmp_path, out, capsys):
    for path, said in ((tmp_path / "none.csv", "No such file"), (tmp_path, "")):
        assert f"{path}: {said}" in refused(["--data", path, "--target", "y"], out, capsys)


def test_a_folder_that_cannot_be_made_is_refused_at_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training, "measure", None)
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        assert call(["--out", out]) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.count("\n") == 1
        assert f"--out {out}: " in printed.err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("extra", ["matplotlib", "rich", "sklearn"])
def test_a_missing_extra_is_named_with_the_way_to_get_it(extra, out, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, extra, None)
    said = refused([], out, capsys)
    assert f"{extra} is not installed: pip install 'optimc[compare]'" in said


def test_own_data_needs_no_scikit_learn(tmp_path, out, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    path = table_csv(tmp_path / "own.csv")
    assert call([*TINY, "--data", path, "--target", "y", "--optimizers", "sgd", "--out", out]) == 0


# -------------------------------------------------------------------------- python -m optimc itself


def test_without_a_command_it_prints_help(capsys):
    assert main([]) == 0
    assert "compare" in capsys.readouterr().out


@pytest.mark.parametrize("argv, said", [
    (["--version"], f"optimc {optimc.__version__}"), (["compare", "--help"], "--optimizers NAME"),
    (["--help"], "compare")])
def test_version_and_help(argv, said):
    process = subprocess.run([*COMMAND, *argv], capture_output=True, text=True, check=True)
    assert said in process.stdout and process.stderr == ""


def test_an_unknown_command_is_refused_in_one_line():
    process = subprocess.run([*COMMAND, "contrast"], capture_output=True, text=True, check=False)
    assert process.returncode == 2 and process.stdout == "" and process.stderr.count("\n") == 1


def test_importing_the_command_imports_no_extra():
    code = ("import sys, optimc.__main__; "
            "print({'matplotlib', 'rich', 'sklearn'} & set(sys.modules))")
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                             check=True)
    assert process.stdout == "set()\n"
