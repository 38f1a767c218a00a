"""`spacy train` with optimc.thinc's Adam, named in a config without code: the model is that of Thinc's Adam."""

import os
import random
import subprocess
import sys
import tomllib

import numpy as np
import pytest
from places import ROOT, search_path

spacy = pytest.importorskip("spacy", exc_type=ImportError)
tokens = pytest.importorskip("spacy.tokens")
start = pytest.importorskip("spacy.cli.init_config")

WORDS = (("fine", "great", "lovely", "bright"), ("awful", "poor", "grim", "cold"))      # good, bad
NAMES, REST = ("Ada", "Grace", "Alan", "Edsger", "Barbara"), ("the", "a", "of", "day", "book")


def write_data(path, count):
    """Sentences that are good or bad, with a name."""
    nlp, rng, docs = spacy.blank("en"), random.Random(count), tokens.DocBin()
    for i in range(count):
        words = [*rng.choices(WORDS[i % 2], k=3), "said", rng.choice(NAMES), *rng.choices(REST, k=4)]
        doc = tokens.Doc(nlp.vocab, words=words)
        doc.cats = {"GOOD": float(i % 2 == 0), "BAD": float(i % 2)}
        doc.ents = [tokens.Span(doc, 4, 5, label="PERSON")]
        docs.add(doc)
    docs.to_disk(path)


def write_entry_points(folder):
    """The lines that pip writes when it installs optimc, from this tree."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    points = project["entry-points"]["thinc_optimizers"]
    (folder / "points-0.dist-info").mkdir()
    (folder / "points-0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: points\nVersion: 0\n")
    (folder / "points-0.dist-info" / "entry_points.txt").write_text(
        "\n".join(["[thinc_optimizers]", *map(" = ".join, points.items())]))


def train(folder, name, **settings):
    """Trains by the command line; returns the weights."""
    config = start.init_config(lang="en", pipeline=["textcat", "ner"], silent=True)
    config["paths"] |= {"train": str(folder / "train.spacy"), "dev": str(folder / "dev.spacy")}
    config["training"] |= {"max_steps": 16, "eval_frequency": 8}
    config["training"]["optimizer"] |= {"@optimizers": name, **settings}
    config.to_disk(folder / f"{name}.cfg")
    done = subprocess.run(
        [sys.executable, "-m", "spacy", "train", folder / f"{name}.cfg", "--output", folder / name],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": search_path(folder, ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr
    nlp = spacy.load(folder / name / "model-last")
    return [node.get_param(param) for _, pipe in nlp.pipeline for node in pipe.model.walk()
            for param in node.param_names if node.has_param(param)]


@pytest.mark.filterwarnings("ignore")           # spaCy's own
def test_models_are_those_of_thincs_adam(tmp_path):
    write_data(tmp_path / "train.spacy", 200)
    write_data(tmp_path / "dev.spacy", 40)
    write_entry_points(tmp_path)
    settings = {"use_averages": True, "learn_rate": 0.002}
    weights, expected = (train(tmp_path, name, **settings) for name in ("optimc.Adam.v1", "Adam.v1"))
    assert len(weights) > 20
    # Adam turns a gradient that is all rounding into a step of its full rate
    off = [np.abs(weight - other) > 1e-3 for weight, other in zip(weights, expected, strict=True)]
    assert sum(map(np.sum, off)) < 0.002 * sum(map(np.size, off))
