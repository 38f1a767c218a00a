"""The strategy of docs/howto/federated.md in Flower: what it aggregates is what Flower's own strategies do."""

import logging
import re

import numpy as np
import pytest
from places import ROOT

pytest.importorskip("flwr.serverapp", exc_type=ImportError)
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower

import optimc

PAGE = (ROOT / "docs" / "howto" / "federated.md").read_text("utf-8")
#: Flower's strategies -> the arguments with which the page's table reads
ARGUMENTS = {"eta": 0.1, "tau": 1e-3, "m": 0.9}


class Grid:
    """The nodes that a strategy samples, without a network."""

    def get_node_ids(self):
        return [1, 2, 3]


def weights_after(strategy, rounds=6):
    """The weights after each round with three nodes, whose weights depend on those they got."""
    arrays, after = ArrayRecord({"w": Array(np.sin(np.arange(6, dtype=np.float32)))}), []
    for number in range(1, rounds + 1):
        replies = []
        for message in strategy.configure_train(number, arrays, ConfigRecord(), Grid()):
            node = message.metadata.dst_node_id
            weight = message.content["arrays"]["w"].numpy().astype(np.float32)
            moved = weight + np.float32(0.2) * np.cos(node * (number + 2 * weight))
            replies.append(Message(RecordDict({
                "arrays": ArrayRecord({"w": Array(moved)}), "metrics": MetricRecord({"num-examples": 10 * node}),
            }), reply_to=message))
        arrays, _ = strategy.aggregate_train(number, replies)
        after.append(arrays["w"].numpy())
    return np.array(after)


@pytest.fixture
def task(monkeypatch):
    """The identity that Flower gives to a server's process."""
    identity = pytest.importorskip("flwr.supercore.task_identity").TaskIdentity
    for number in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(identity, number, 1)


@pytest.mark.usefixtures("task")
@pytest.mark.filterwarnings("ignore")           # Flower's own
@pytest.mark.parametrize("name", ["FedAvgM", "FedAdagrad", "FedAdam", "FedYogi"])
def test_weights_are_flowers(name):
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    page = {}
    exec(re.search(r"^```python\n(.*?)^```", PAGE, re.M | re.S)[1], page)
    theirs, ours = re.search(rf"^\| `({name}\(.*?\))` \| `(.*?\))`", PAGE, re.M).groups()
    reference = weights_after(eval(theirs, {**vars(flower)}, ARGUMENTS))
    strategy = page["Optimc"](eval(ours, {**vars(optimc)}, ARGUMENTS), rounds_before=int(name == "FedAdam"))
    np.testing.assert_allclose(weights_after(strategy), reference, atol=1e-6)
