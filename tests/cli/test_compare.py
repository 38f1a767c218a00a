"""`optimc compare`: what it measures, what it writes, and what it says to bad input."""

import io
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
from optimc.base.extras import advice
from optimc.cli import compare
from optimc.cli.compare import command, training, words
from optimc.cli.compare.data import load_data, standardise
from optimc.cli.compare.numbers import is_adaptive
from optimc.cli.errors import InputError

pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("sklearn")

FILES = {"compare.json", "losses.png", "paths.png"}
COMMAND = [sys.executable, "-m", "optimc"]
TINY = ["--epochs", "2", "--seeds", "2", "--hidden", "8"]
TEN = "1,2\n" * 10
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
    assert bad.diverged and bad.training[1] == bad.test[-1] == math.inf
    assert len(bad.training) == len(good.training) == SETTINGS.epochs + 1


# -------------------------------------------------------------------------------- the measurements


def run_of(training, validation=(1.0, 1.0), test=(0.8, 0.5)):
    return compare.Run(np.array(training), np.array(validation), np.array(test), 1000.0, {}, 10)


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


def test_a_run_that_diverges_sets_no_target_and_reaches_none():
    lost, good = run_of((2.0, 3.0), (2.0, 0.1)), run_of((2.0, 1.0), (2.0, 1.0))
    target, rows = compare.summarise({"lost": compare.Result(1.0, {}, [lost] * 2),
                                      "half": compare.Result(0.1, {}, [lost, good]),
                                      "good": compare.Result(0.1, {}, [good] * 2)})
    assert target == pytest.approx(1.05)
    assert [row["epochs_by_seed"] for row in rows] == [[math.inf] * 2, [math.inf, 1], [1, 1]]
    target, (row,) = compare.summarise({"lost": compare.Result(1.0, {}, [lost] * 2)})
    assert math.isnan(target) and row["epochs_to_target"] == math.inf


def test_the_best_test_loss_is_the_lowest_mean():
    runs = [run_of((2.0, 1.0, 0.5), (1.0, 1.0, 1.0), test) for test in ((2.0, 1.0, 2.0), (2.0, 1.5, 1.0))]
    _, (row,) = compare.summarise({"a": compare.Result(0.1, {}, runs)})
    assert (row["test_loss"], row["best_test_loss"], row["best_epoch"]) == (1.5, 1.25, 1)


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
    assert process.returncode == 0 and process.stderr.startswith("training 8 optimizers: 224 runs of 2 epochs\n")
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
    assert max(len(line) for line in body) <= 80
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
                                  "learning_rate": None, "state_dtype": None}
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
    assert read(out)["target_validation_loss"] is None
    printed = capsys.readouterr().out
    assert printed.startswith("Nothing was learnt: all runs diverged; try a smaller --learning-rate.\n")
    assert "never" in printed and "2 diverged" in printed and "Fastest, in epochs" not in printed


def test_a_column_that_is_nearly_there_is_suggested(tmp_path, out, capsys):
    path = tmp_path / "own.csv"
    path.write_text(f"size,price\n{TEN}")
    assert f"{path}: there is no column 'prize': did you mean price?" in refused(
        ["--data", path, "--target", "prize"], out, capsys)


@pytest.mark.parametrize("constant", ["a", "y", "aby"])
def test_own_table_with_constant_columns(constant, tmp_path, out, capsys):
    path = table_csv(tmp_path / "[red]own.csv", **{name: ["0.1"] * 20 for name in constant})
    assert call([*TINY, "--data", path, "--target", "y", "--optimizers", "adam", "--out", out]) == 0
    result = read(out)
    assert result["data"] == {"name": "[red]own.csv", "features": ["a", "b"], "target": "y",
                              "rows": {"training": 12, "validation": 4, "test": 4}}
    printed = capsys.readouterr()
    assert "[red]own.csv: 20 rows" in printed.out
    warning = ("optimc compare: warning: the target 'y' is constant in the training rows, so there is nothing to "
               "learn\n")
    assert printed.err.count("warning") == printed.err.count(warning) == ("y" in constant)


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
    assert b"\x1b[" in shown and str(tmp_path / "compare").encode() in shown.replace(b"\r\n", b"")
    assert re.search(rb"adam: (trying|training at) rate", shown)
    assert {path.name for path in (tmp_path / "compare").iterdir()} == FILES


def _read(descriptor):
    try:
        return os.read(descriptor, 65536)
    except OSError:                                 # Linux's way to say that the other end closed
        return b""


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def test_progress_counts_only_the_runs_that_are_over(monkeypatch):
    from rich import progress
    shown = []
    monkeypatch.setattr(progress.Progress, "update", lambda bar, task, **fields: shown.append(fields))
    monkeypatch.setattr(sys, "stderr", Terminal())
    with command._progress(1, SETTINGS._replace(learning_rate=0.1)) as tick:
        tick("first")
        tick("second")
    assert shown == [{"description": "first", "completed": 0}, {"description": "second", "completed": 1}]


def test_a_pipe_gets_a_line_at_once_and_then_now_and_again(monkeypatch, capsys):
    monkeypatch.setattr("optimc.cli.progress.EVERY", 0.01)
    with command._progress(2, SETTINGS._replace(learning_rate=0.1)) as tick:
        first = capsys.readouterr().err
        for name in ("first", "second", "third"):
            tick(name)
        said = ""
        while "third" not in said:
            time.sleep(0.01)
            said += capsys.readouterr().err
    assert first == "training 2 optimizers: 4 runs of 2 epochs\n"
    assert re.search(r"^training 2 optimizers: 2 of 4 runs in \d+ s, about \d+ s left; third$", said, re.M)
    capsys.readouterr()
    time.sleep(0.05)
    assert capsys.readouterr().err == ""                # nothing is said after the end


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
    assert printed.err.endswith("\ninterrupted: 1 of 2 optimizers are done\n")


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
    assert said.endswith(b"\noptimc compare: interrupted\n") and b"Traceback" not in said
    assert not list((tmp_path / "compare").iterdir())


# ------------------------------------------------------------------------------- storage in fewer bits

def test_state_is_stored_in_fewer_bits_where_it_may_be(out, capsys):
    argv = [*QUICK[:-1], "adam,sgd,schedulefreeadamw,ftrl", "--state-dtype", "int8", "--out", out]
    assert call(argv) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert ("state in int8: adam and schedulefreeadamw; must stay float32: z of schedulefreeadamw and accumulator "
            "and linear of ftrl; without state: sgd.") in printed
    results = read(out)
    assert results["settings"]["state_dtype"] == "int8"
    held = {row["optimizer"]: row["slot_bytes_per_weight"] for row in results["results"]}
    assert 2 < held["adam"] < 3 and 5 < held["schedulefreeadamw"] < 5.5
    assert held["sgd"] == 0 and held["ftrl"] == 8


def test_every_optimizer_can_be_compared_in_fewer_bits(data):
    settings = SETTINGS._replace(learning_rate=1e-3, seeds=1, epochs=1, state_dtype="bfloat16")
    results = compare.measure_all(sorted(map(str.lower, registry.classes)), data, settings, lambda said: None)
    assert len(results) == len(registry.classes)
    assert compare.measure("adam", data, settings, lambda said: None).runs[0].slots["m"][0].dtype == np.uint16


# --------------------------------------------------------------------------------------- bad input


def refused(argv, out, capsys):
    """The one line that a command line is refused with."""
    assert call([*argv, "--out", out]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and printed.err.endswith("\n")
    assert printed.err.startswith("optimc compare: error: ")
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
    (["--optimizers", "adamx"], "there is no optimizer 'adamx': did you mean adamax?"),
    (["--optimizers", "Adamm"], "there is no optimizer 'adamm': did you mean adam?"),
    (["--optimizers", ","], "--optimizers: expected names, got ','"),
    (["--optimizers", ""], "--optimizers: expected names, got ''"),
    (["--optimizers"], "--optimizers: expected at least one argument"),
    (["--state-dtype", "int4"], "--state-dtype: invalid choice: 'int4'"),
    (["--target", "y"], "--data FILE.csv and --target COLUMN must be used together"),
    (["--data", "own.csv"], "--data FILE.csv and --target COLUMN must be used together"),
    (["--colour", "red"], "there is no option --colour (--help shows the options)"),
])
def test_bad_options_are_refused_in_one_line(argv, said, out, capsys):
    assert said in refused(argv, out, capsys)


@pytest.mark.parametrize("content, said", [
    ("", "the file is empty"),
    ("x,y\n", "expected 10 rows of numbers or more, got 0"),
    ("x,y\n1,2\n", "expected 10 rows of numbers or more, got 1"),
    (f"x,z\n{TEN}", "there is no column 'y'; there are x, z"),
    ("y\n" + "1\n" * 10, "the file has no feature columns, only the target 'y'"),
    (f"price,z\n{TEN}", "there is no column 'y'; there are price, z"),
    (f"x;y\n{TEN}".replace(",", ";"), "expected commas between the columns; is the separator ';'? got 'x;y'"),
    ("x;y\n" + "1,5;2,5\n" * 10, "expected commas between the columns; is the separator ';'?"),
    (f"x\ty\n{TEN}".replace(",", "\t"), "expected commas between the columns; is the separator '\\t'?"),
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
    assert f"{extra} is not installed: {advice('compare')}" in said


def test_own_data_needs_no_scikit_learn(tmp_path, out, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    path = table_csv(tmp_path / "own.csv")
    assert call([*TINY, "--data", path, "--target", "y", "--optimizers", "sgd", "--out", out]) == 0


# --------------------------------------------------------------------------------- an earlier run's results


QUICK = ["--epochs", "1", "--seeds", "1", "--hidden", "4", "--learning-rate", "0.01", "--optimizers", "sgd"]


@pytest.mark.parametrize("columns, widest", [
    ("82", (76, 82)), *((columns, (100, 120)) for columns in (None, "", "0", "abc", "-5", "80.5"))])
def test_columns_in_the_environment_set_the_width_of_the_output(columns, widest, out, monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    assert call([*QUICK, "--out", out]) == 0
    printed = capsys.readouterr().out.partition("Written: ")[0]
    assert widest[0] <= max(map(len, printed.splitlines())) <= widest[1]


def test_results_are_not_overwritten_where_nobody_can_answer(tmp_path, capsys):
    (tmp_path / "losses.png").write_text("mine")
    assert call([*QUICK, "--out", tmp_path]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err == (
        f"optimc compare: error: the folder {tmp_path} (--out) holds losses.png of an earlier run; "
        "--force overwrites them, --out DIR takes another folder\n")
    assert (tmp_path / "losses.png").read_text() == "mine"
    assert call([*QUICK, "--out", tmp_path, "--force"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert (tmp_path / "losses.png").read_bytes()[:4] == b"\x89PNG"


def test_other_files_in_the_folder_are_no_results(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert call([*QUICK, "--out", tmp_path]) == 0
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("answer, overwrites", [("y", True), ("Yes", True), ("", False), ("n", False), (None, False)])
def test_a_terminal_is_asked(answer, overwrites, tmp_path, monkeypatch, capsys):
    (tmp_path / "compare.json").write_text("mine")
    monkeypatch.setattr(sys, "stdin", Terminal("" if answer is None else f"{answer}\n"))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with command._writing(tmp_path) if overwrites else pytest.raises(InputError, match="nothing was overwritten"):
        command._may_overwrite(tmp_path, False)
    assert capsys.readouterr().err == (
        f"the folder {tmp_path} (--out) holds compare.json of an earlier run. Overwrite? [y/N] ")
    command._may_overwrite(tmp_path, True)
    assert capsys.readouterr().err == ""
