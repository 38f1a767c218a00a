"""Optimizers in checkpoints: `save` and `load`, and the refusal of damaged states."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from optimc import registry
from optimc.checkpoint.descriptions import encode
from optimc.checkpoint.format import CheckpointError, decode, read, write
from optimc.checkpoint.shards import join

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from optimc._types import AnyOptimizer, Classes, Config, Path, Tensors


def save(path: Path, optimizer: AnyOptimizer) -> None:
    """Writes an optimizer or wrapper.  Its method `save` calls this, and no step runs meanwhile."""
    description, tensors = optimizer._export()
    write(path, tensors, {"optimizer": encode(description)})


def load(path: Path, custom_objects: Classes | None = None) -> AnyOptimizer:
    """Loads an optimizer or wrapper from a file that `save` wrote.  It continues bit for bit.

    Its next step binds it to weights, whose shapes and dtypes must match the slots of the file.  To store slots
    otherwise, let another optimizer take over the state:
    `opt.load_state_dict(optimc.load(path).state_dict(), convert=True)`.

    Args:
        path: the file.
        custom_objects: dict of names to the classes of your own schedules and optimizers.

    Raises:
        CheckpointError: the file is not a checkpoint of optimc, is damaged, or is of a newer version.  The message
            names the file, and the tensor if the fault is in one.
        OSError: the file cannot be read.

    Example:
        >>> import numpy as np, optimc, tempfile, os
        >>> w = np.ones(2, np.float32)
        >>> opt = optimc.Adam()
        >>> opt.apply([w * 2], [w])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     opt.save(os.path.join(folder, "adam.safetensors"))
        ...     again = optimc.load(os.path.join(folder, "adam.safetensors"))
        >>> again.iterations
        1
    """
    tensors, metadata = read(path)
    if "shards" not in metadata:
        return restore(path, metadata, custom_objects, lambda optimizer, description: tensors)
    return restore(path, metadata, custom_objects, lambda optimizer, description: join(
        path, decode(path, metadata, "shards"), description))


def restore(path: Path, metadata: dict[str, str], custom_objects: Classes | None,
            tensors_for: Callable[[Any, Config], Tensors]) -> AnyOptimizer:
    """An optimizer from the metadata of a file.

    tensors_for: a function of the optimizer and its description that returns the tensors.
    """
    with taking_over(os.fsdecode(path)):
        description = decode(path, metadata, "optimizer")
        optimizer = registry.deserialize(
            {"class_name": description["class_name"], "config": description["config"]}, custom_objects)
        tensors = tensors_for(optimizer, description)
        import_all(optimizer, description, tensors)
    return optimizer


@contextlib.contextmanager
def taking_over(what: str) -> Iterator[None]:
    """Turns the errors of a damaged state into a `CheckpointError` that names `what`: the file or argument."""
    try:
        yield
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        said = str(error).encode(errors="backslashreplace").decode()        # names in a file may be no text
        raise CheckpointError(f"{what}: {'no ' * isinstance(error, KeyError)}{said}") from None


def import_all(optimizer: AnyOptimizer, description: Config, tensors: Tensors) -> None:
    """Makes an optimizer take over a state.  Refuses tensors that it does not use."""
    optimizer._import(description, tensors)
    refuse_left(tensors)


def refuse_left(tensors: Tensors) -> None:
    """Refuses tensors that no state has taken."""
    if tensors:
        raise ValueError(f"unexpected tensor {next(iter(tensors))!r}")
