"""Checkpoints: files that any safetensors reader opens, with a checksum on every byte.

Layout, version 2.  Eight bytes: the length of the header, little-endian.  The header: JSON, padded with spaces to a
multiple of eight, that gives for each tensor its dtype, shape and place; its "__metadata__" holds strings:

    format, format_version     "optimc", "2"
    optimizer                  JSON: class, configuration, counts, names and shapes of the weights
    checksums                  JSON: the CRC-32 of each tensor
    header_checksum            the CRC-32 of the header itself, with eight zeros in the place of this

Then the tensors, C order, little-endian, without gaps: `slot/number of the weight`, `ema_average/...`,
`gradient_accumulator/...`; those of an optimizer within a wrapper behind a number of its own.  Nothing in the file is
code or the name of any; nothing is unpickled.

Version 1 is read, too.  It differs in one entry of "optimizer": what runs along with the updates, which it stores as
numbers without names (optimc/base/version_1.py).  An optimc that reads version 1 only refuses version 2 and says so.

The state of a job of several processes (optimc/mpi/) is a file per rank, a shard, and one without tensors, the
index, that is written last and joins them: its metadata entry "shards" says which elements of the weights are in
which.  A shard is called like the index, with the token of this save and the rank behind it; its tensors are blocks
of vectors, `slot/number of the weight@first element`, or whole where weights were not cut.

Files are written beside the old one, synced, and renamed over it, so that there is always a whole one.  Reading
verifies everything before it is used; whatever is wrong is a `CheckpointError`.
"""

from optimc.checkpoint.format import CheckpointError
from optimc.checkpoint.saving import load, save

__all__ = ["CheckpointError", "load", "save"]
