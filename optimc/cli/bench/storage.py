"""Storage in fewer bits for `optimc bench`: what the options ask for, and how many bytes that is.

Next: limit.py, which counts the bytes that a step moves.
"""

from collections.abc import Sequence
from typing import Any

from optimc import registry
from optimc.base.narrow import by_slot
from optimc.cli.bench import limit
from optimc.cli.bench.peers import STORAGE, Ours, Work
from optimc.cli.errors import InputError

TO_NEAREST = ("torch rounds what it stores in bfloat16 to nearest; optimc rounds averages of squares and weights at "
              "random.")


def asked(work: Work, state_dtype: str | None, master_weights: bool) -> Work:
    """Returns the work with arguments for its storage; refuses what the optimizer cannot store so.

    All its slots have the type, in weights of every size.
    """
    if not master_weights and work.dtype != "bfloat16":
        raise InputError("--no-master-weights: only bfloat16 weights can do without a master, got --dtype "
                         f"{work.dtype}")
    arguments: dict[str, Any] = {} if master_weights else {"master_weights": False}
    if state_dtype:
        slots, exact = by_slot(registry.classes[work.optimizer](), state_dtype)
        if exact:
            raise InputError(f"--state-dtype: {work.optimizer} cannot store {', '.join(exact)} as {state_dtype}")
        if not slots:
            raise InputError(f"--state-dtype: {work.optimizer} has no slots to store as {state_dtype}")
        arguments["state_dtype"] = slots
    work = work._replace(arguments={**work.arguments, **arguments})
    try:
        Ours(work._replace(shapes=[(1, 1)]))
    except (ImportError, ValueError) as error:
        raise InputError(f"--dtype {work.dtype}: {error}") from None
    return work


def wide(work: Work) -> Work:
    """The same work in float32, or in float64 if the steps compute in it."""
    arguments = {name: value for name, value in work.arguments.items() if name not in STORAGE}
    return Work(work.shapes, work.real.name, work.optimizer, arguments)


def sizes(work: Work, ours: Ours) -> dict[str, float]:
    """Returns bytes per weight: of weights, masters, slots and gradients, and those that a step reads and writes."""
    optimizer = ours.optimizer
    found: dict[str, Sequence[Any]] = {
        "weights": ours.weights, "masters": optimizer._masters or (), "grads": ours.grads,
        "slots": [array for arrays in optimizer._slots.values() for array in arrays]}
    counted = {name: sum(array.nbytes for array in arrays if array is not None) / work.weights
               for name, arrays in found.items()}
    try:
        return {**counted, "moved": limit.bytes_moved(work, ours) / work.weights}
    except limit.NoLimit:
        return counted


def kept(entry: dict[str, Any]) -> float | None:
    """Bytes per weight that stay from step to step: weights, masters and slots; None if they were not counted."""
    return entry["weights"] + entry["masters"] + entry["slots"] if "slots" in entry else None


def in_words(entry: dict[str, Any]) -> str:
    """Says in a sentence how many bytes everything takes."""
    words = {"weights": "the weight", "masters": "its master", "slots": "slots", "grads": "its gradient"}
    parts = [f"{entry[name]:.3g} for {word}" for name, word in words.items() if entry[name]]
    return f"Bytes per weight: {', '.join(parts)}."
