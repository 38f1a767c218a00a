"""Checkpoints: files that any safetensors reader opens, with a checksum on every byte.

Layout, version 3.  The first eight bytes are the length of the header, little-endian.  The header follows: JSON,
padded with spaces to a multiple of eight.  It gives the dtype, shape and place of each tensor.  Its "__metadata__"
holds strings:

    format, format_version     "optimc", "3"; "2" without tensors of fewer than 32 bits
    optimizer                  JSON: class, configuration, counts, names and shapes of the weights
    checksums                  JSON: the CRC-32 of each tensor
    header_checksum            the CRC-32 of the header, computed with eight zeros in place of this entry

Then come the tensors, in C order, little-endian, without gaps.  Their names are `slot/number of the weight`,
`ema_average/...`, `gradient_accumulator/...` and `master_weight/...`.  A wrapper puts the number of the wrapped
optimizer before them.  A slot in bfloat16 has this dtype.  A slot in 8 bits is two tensors: codes, in the shape of
the weight, and `slot.scale/number`, a float32 for each 256 of them in the weight's order of memory.  The master of a
bfloat16 weight is the int16 rest of a float32; that of a float16 weight is the float32.
A file contains no code and no name of code.  Nothing is unpickled.

Versions 1 and 2 are read, too.  Version 2 has no tensors of fewer than 32 bits.  Version 1 differs in one entry of
"optimizer", too: it stores running values as numbers without names (optimc/base/version_1.py).  An optimc that reads
only an older version refuses a newer one and says so.

A job of several processes (optimc/mpi/) writes one file per rank, a shard, and then the index, a file without
tensors.  The metadata entry "shards" of the index lists the elements of the weights in each shard.  The name of a
shard is the name of the index, or its digest if it is too long, followed by the token of this save and the rank.
Its tensors are blocks of vectors, `slot/number of the weight@first element`, or whole tensors if no weight was cut.
Scales are counted by themselves: `slot.scale/number of the weight@first scale`.  No block of 256 codes is divided.

A file is written beside the old one, synced, and renamed over it, so that there is always a complete file.  Reading
verifies everything before it is used.  Any damage is a `CheckpointError`.
"""

from optimc.checkpoint.format import CheckpointError
from optimc.checkpoint.saving import load, save

__all__ = ["CheckpointError", "load", "save"]
