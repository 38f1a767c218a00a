"""The sentences of `optimc compare`: what they say of a comparison, and what they do not rank."""

import io
import json
import math
import re

import numpy as np
import pytest
from places import ROOT

from optimc.cli import compare
from optimc.cli.compare import words
from optimc.cli.compare.data import Data

SWEPT = compare.Settings(epochs=50, batch_size=32, hidden=8, seeds=3)
GIVEN = SWEPT._replace(learning_rate=0.5)


def row(name, epochs, spread=0.1, diverged=0, adaptive=True, kept=4.0, test=1.0, best=1.0):
    """A row of numbers: the epochs by seed, the spread of the loss."""
    return {"optimizer": name, "epochs_to_target": sorted(epochs)[len(epochs) // 2], "epochs_by_seed": epochs,
            "diverged": diverged, "loss_spread": spread, "adaptive": adaptive, "slot_bytes_per_weight": kept,
            "test_loss": test, "best_test_loss": best, "best_epoch": 7}


NEVER = [math.inf] * 3
LOST = row("lost", NEVER, math.nan, 3, test=math.inf, best=math.inf)


@pytest.mark.parametrize("epochs, said", [
    ([3, 3], "3"), ([2, 5, 9], "5 (2-9)"), ([2, 5, math.inf], "5 (2+)"),
    ([2, math.inf, math.inf], "never (2+)"), ([math.inf], "never")])
def test_speed_is_shown_with_its_range(epochs, said):
    assert words.COLUMNS["speed\nepochs"](row("a", epochs)) == said


# ------------------------------------------------------------------------------------ the first sentence


@pytest.mark.parametrize("rows, settings, said", [
    ([row("a", [2, 3, 4]), row("b", [1, 2, 9]), row("c", [4, 4, 5])], SWEPT,
     "Each at its best rate, all 3 optimizers reached the target loss in 2-4 epochs (median of 3 runs); the "
     "differences are small: the ranges of their runs overlap."),
    ([row("a", [2, 3, 4]), row("b", [1, 3, 9])], GIVEN,
     "At the rate 0.5, a and b reached the target loss in 3 epochs (median of 3 runs)."),
    ([row("a", [1, 1, 1]), row("b", [9, 20, 30])], SWEPT,
     "Each at its best rate, a and b reached the target loss in 1-20 epochs (median of 3 runs); first a (1), last b "
     "(20)."),
    ([row("a", [2, 2, 40]), row("b", [9, 20, 30])], SWEPT,
     "Each at its best rate, a and b reached the target loss in 2-20 epochs (median of 3 runs); first a (2), last b "
     "(20), but the ranges of their runs overlap."),
    ([row("a", [1, 1, 1])], GIVEN, "At the rate 0.5, a reached the target loss in 1 epoch (median of 3 runs)."),
    ([row("a", [2, 2, 2]), row("late", [3, math.inf, math.inf]), LOST], GIVEN,
     "At the rate 0.5, a reached the target loss in 2 epochs (median of 3 runs); late did so in half of the runs at "
     "most; lost diverged."),
    ([row("late", NEVER), LOST], GIVEN,
     "No optimizer reached the target loss in more than half of its runs; more --epochs may help; lost diverged."),
    ([LOST, LOST], GIVEN, "Nothing was learnt: all runs diverged; try a smaller --learning-rate."),
    ([LOST, LOST], SWEPT, "Nothing was learnt: all runs diverged."),
    ([row("a", [0, 0, 0]), row("b", [0, 0, 1])], GIVEN,
     "Nothing was learnt: the validation loss never fell by more than 5% below that of the untrained network."),
])
def test_the_first_sentence_says_what_was_learnt(rows, settings, said):
    assert words.learnt(rows, settings) == said


def test_one_run_is_no_median():
    said = words.learnt([row("a", [2]), row("b", [3])], SWEPT._replace(seeds=1))
    assert said == "Each at its best rate, a and b reached the target loss in 2-3 epochs; first a (2), last b (3)."


# ------------------------------------------------------------------------------------------- the ranking


def test_sentences_say_which_pairs_agree_with_textbooks():
    speed, stability, formulas = words.sentences([
        row("adam", [3], 0.1, kept=8.0), row("rmsprop", [3], 0.2), row("sgd", [2], 0.3, adaptive=False, kept=0.0)])
    assert speed == ("Fastest, in epochs: sgd 2. Textbook ranking: adam, rmsprop, sgd. "
                     "Measured: sgd 2, adam 3, rmsprop 3. 0 of 3 pairwise rankings agree; reversed: sgd before adam, "
                     "sgd before rmsprop; tied: adam and rmsprop.")
    assert stability.startswith("Most stable: adam ±0.10. ")
    assert stability.endswith(" 3 of 3 pairwise rankings agree.")
    assert formulas == "Adaptive rates and the order of memory are as in textbooks."


def test_sentences_say_where_textbooks_are_wrong():
    assert words.sentences([row("sgd", [3]), row("adam", [3])])[-1].endswith(", but not for sgd, sgd against adam.")


def test_what_never_arrived_or_diverged_is_named_and_not_ranked():
    rows = [row("adam", [2, 4, math.inf]), row("sgd", [4, math.inf, math.inf], 0.01),
            {**LOST, "optimizer": "rmsprop"}, row("momentum", [1, 1, math.inf], 0.001, diverged=1)]
    speed, stability, left, _ = words.sentences(rows)
    assert speed.startswith("Fastest, in epochs: momentum 1 (1+). Textbook ranking: adam, momentum. Measured: mom")
    assert "sgd" not in speed and "rmsprop" not in speed
    assert stability == "Most stable: adam ±0.10."
    assert left == ("Not ranked: sgd (reached the target loss in 1 of 3 runs), rmsprop (3 of 3 runs diverged), "
                    "momentum (1 of 3 runs diverged).")


@pytest.mark.parametrize("rows", [
    [LOST, {**LOST, "optimizer": "sgd"}], [row("sgd", NEVER), row("adam", [4, *NEVER[1:]])]])
def test_nothing_is_ranked_where_nothing_arrived(rows):
    assert words.sentences(rows) == [
        "Fastest: none, because no optimizer reached the target loss in more than half of its runs.",
        "Stability not measured (needs two runs that converge)."]


def test_spreads_that_are_shown_alike_are_tied():
    said = words.sentences([row("adam", [3], 0.00864), row("sgd", [3], 0.00858)])[1]
    assert said.startswith("Most stable: adam ±0.0086, sgd ±0.0086.") and "tied: adam and sgd." in said


def test_a_test_loss_that_rises_is_called_overfitting():
    rows = [row("a", [3], test=1.01), row("b", [3], test=1.2), row("c", [3], test=1.3, best=1.1)]
    assert words.sentences(rows)[-1] == (
        "Overfitting: the test loss of b and c rose after its best epoch, most for b (from 1 at epoch 7 to 1.2 at "
        "the end). There, fewer epochs are better.")
    assert not any("Overfitting" in said for said in words.sentences([rows[0], LOST]))


# ----------------------------------------------------------------------------------------------- the key


def test_the_key_explains_what_the_table_shows():
    said = "\n".join(words.key(SWEPT, 0.4764, [row("adam-textbook", [3])]))
    for part in ("validation loss of 0.4764 (within 5% of the best", "median (range) of the runs",
                 "+: some runs never did", "± is the standard deviation of the final training loss",
                 "uncertain by 50%", "the best of 13",
                 "adam-textbook: Adam without its bias correction"):
        assert part in said
    assert "nesterov" not in said
    said = "\n".join(words.key(GIVEN._replace(seeds=1), math.nan, [LOST]))
    assert "speed: not measured, because all runs diverged" in said
    assert "best of" not in said and "uncertain" not in said and "textbook" not in said


# ----------------------------------------------------------------------------------- the page that quotes it

PAGE = ROOT / "docs" / "start" / "first-comparison.md"


def test_the_page_quotes_what_the_command_prints():
    """first-comparison.json holds the numbers of the run that the page reads, as compare.json has them."""
    console = pytest.importorskip("rich.console")
    run = json.loads(PAGE.with_suffix(".json").read_text("utf-8"))
    given, data = run["settings"], run["data"]
    settings = compare.Settings(**{**given, "seeds": len(given["seeds"])})
    parts = {part: (None, np.zeros(rows)) for part, rows in data["rows"].items()}
    printed = io.StringIO()
    words.show(console.Console(file=printed, width=80, highlight=False, markup=False, emoji=False),
               Data(data["name"], data["features"], data["target"], parts), settings,
               run["target_validation_loss"], run["results"])
    quoted = "\n".join(re.findall(r"^```text\n(.*?)^```", PAGE.read_text("utf-8"), re.S | re.M))
    assert [line.rstrip() for line in quoted.splitlines() if line] == [
        line.rstrip() for line in printed.getvalue().splitlines() if line]
