"""Checkpoints: files that any safetensors reader opens, with a checksum on every byte.

Layout, version 1.  Eight bytes: the length of the header, little-endian.  The header: JSON, padded with spaces to a
multiple of eight, that gives for each tensor its dtype, shape and place; its "__metadata__" holds strings:

    format, format_version     "optimc", "1"
    optimizer                  JSON: class, configuration, counts, names and shapes of the weights
    checksums                  JSON: the CRC-32 of each tensor
    header_checksum            the CRC-32 of the header itself, with eight zeros in the place of this

Then the tensors, C order, little-endian, without gaps: `slot/number of the weight`, `ema_average/...`,
`gradient_accumulator/...`; those of an optimizer within a wrapper behind a number of its own.  Nothing in the file is
code or the name of any; nothing is unpickled.

The state of a job of several processes (optimc/mpi.py) is a file per rank, a shard, and one without tensors, the
index, that is written last and joins them: its metadata entry "shards" says which elements of the weights are in
which.  A shard is called like the index, with the token of this save and the rank behind it; its tensors are blocks
of vectors, `slot/number of the weight@first element`, or whole where weights were not cut.

Files are written beside the old one, synced, and renamed over it, so that there is always a whole one.  Reading
verifies everything before it is used; whatever is wrong is a `CheckpointError`.
"""

import contextlib
import errno
import json
import math
import os
import re
import secrets
import stat
import struct
import sys
import zlib

import numpy as np

try:
    import fcntl
except ImportError:                         # Windows: leftovers are not swept there
    fcntl = None                            # type: ignore[assignment]

VERSION = 1
MOST_HEADER = 100 << 20                     # bytes; the limit of the safetensors format
BLOCK = 8 << 20                             # bytes written or read at a time
WORTH_WATCHING = 256 << 20                  # bytes from which progress is shown on a terminal
DTYPES = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8")}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
NO_CHECKSUM = "0" * 8
#: what averages and accumulators are called beside the slots
AVERAGE, ACCUMULATOR = "ema_average", "gradient_accumulator"
FACTORS = ("row", "column")                 # slots that are not of their weight's shape
SHARD_BLOCK = 1 << 20                       # elements of a tensor of a shard, at most


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: not one, damaged, of a newer version, or of something else."""


# ------------------------------------------------------------------------------------------- writing


def write(path, tensors, metadata):
    """Writes a file of tensors, whole or not at all.

    Args:
        path: where; an existing file keeps its permissions, a symbolic link its name.
        tensors: dict of names to arrays of float32 or float64, in the order they are to have.
        metadata: dict of str to str.

    Raises:
        OSError: of the system, unchanged; the old file is still there, and nothing else.
    """
    path = os.path.realpath(os.fsdecode(path))
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} is a directory")
    if os.path.lexists(path) and not os.path.isfile(path):
        raise ValueError(f"{path} is not a regular file")
    flat = {name: np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C").reshape(-1).view(np.uint8)
            for name, array in tensors.items()}
    header = _header(tensors, flat, metadata)
    directory, name = os.path.split(path)
    _sweep(directory, name)
    for _ in range(100):
        if _write_beside(path, directory, name, header, flat):
            break
    else:
        raise OSError(errno.EAGAIN, "another program removes temporary files at every try", path)
    _sync_directory(directory)


def _write_beside(path, directory, name, header, flat):
    """Writes the new file and renames it to `path`; False if another saver swept it before it was locked."""
    temporary = os.path.join(directory, f".{name}.{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX)        # a saver holds its file: what can be locked is stale
                if not os.path.exists(temporary):
                    return False
            if os.path.exists(path):
                os.chmod(temporary, stat.S_IMODE(os.stat(path).st_mode))
            with _progress(f"saving {name}", len(header) + sum(map(len, flat.values()))) as advance:
                for part in (header, *flat.values()):
                    _write_all(file, part, advance)
            os.fsync(file.fileno())
            if fcntl:
                os.replace(temporary, path)             # while it is locked, so that no sweep takes it for stale
        if not fcntl:
            os.replace(temporary, path)                 # Windows moves no file that is open
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    return True


def _checksums(parts):
    """The CRC of each array of bytes; of large ones by two threads, since zlib works without the GIL."""
    if sum(map(len, parts)) < 4 << 20:
        return [zlib.crc32(part) for part in parts]
    from concurrent.futures import ThreadPoolExecutor  # only for what is large: it takes a while to import
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(zlib.crc32, parts))


def _header(tensors, flat, metadata):
    entries, start = {}, 0
    for name, array in tensors.items():
        end = start + len(flat[name])
        entries[name] = {"dtype": NAMES[array.dtype.newbyteorder("<")], "shape": list(array.shape),
                         "data_offsets": [start, end]}
        start = end
    checksums = {name: f"{crc:08x}" for name, crc in zip(flat, _checksums([*flat.values()]), strict=True)}
    metadata = {"format": "optimc", "format_version": str(VERSION), **metadata,
                "checksums": json.dumps(checksums, separators=(",", ":")), "header_checksum": NO_CHECKSUM}
    text = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MOST_HEADER:
        raise ValueError(f"the header would take {len(text)} bytes, more than {MOST_HEADER}")
    own = f'"header_checksum":"{zlib.crc32(text):08x}"'.encode()
    return struct.pack("<Q", len(text)) + text.replace(f'"header_checksum":"{NO_CHECKSUM}"'.encode(), own)


def _write_all(file, data, advance):
    view = memoryview(data)
    while view:
        written = file.write(view[:BLOCK])
        view = view[written:]
        advance(written)


def _sync_directory(directory):
    """Makes the rename last; systems that cannot sync a directory do not need it."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _sweep(directory, name):
    """Removes what killed savers of this file left: their temporary files, which nobody has locked."""
    if not fcntl:
        return
    pattern = re.compile(rf"\.{re.escape(name)}\.[0-9a-f]{{16}}\.tmp")
    for entry in os.listdir(directory):
        if not pattern.fullmatch(entry):
            continue
        stale = os.path.join(directory, entry)
        with contextlib.suppress(OSError, CheckpointError), _open_regular(stale) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(stale)


@contextlib.contextmanager
def _progress(what, total):
    """Gives a function to report bytes to; shows a bar if it is worth one, somebody watches, and rich is there."""
    if total < WORTH_WATCHING or not sys.stderr.isatty():
        yield lambda n: None
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield lambda n: None
        return
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda n: progress.advance(task, n)


# ------------------------------------------------------------------------------------------- reading


def read(path, wanted=None):
    """The tensors and the metadata of a file that `write` wrote, every checksum verified.

    Args:
        path: where.
        wanted: which tensors: a function of name and shape; default: all.

    Raises:
        CheckpointError: anything in the file is not as `write` writes it.
        OSError: of the system, unchanged.
    """
    path = os.fsdecode(path)
    with _open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        entries, metadata, checksums, start = _read_header(path, file, size)
        tensors = {}
        with _progress(f"loading {os.path.basename(path)}", size) as advance:
            for name, (dtype, shape, begin, end) in entries.items():
                if wanted is not None and not wanted(name, shape):
                    continue
                file.seek(start + begin)
                array = np.empty(end - begin, np.uint8)
                _read_all(path, file, array, advance)
                if f"{zlib.crc32(array):08x}" != checksums[name]:
                    raise CheckpointError(f"{path}: tensor {name!r} is damaged: its checksum does not match")
                try:
                    array = array.view(dtype).reshape(shape)
                except ValueError as error:
                    raise CheckpointError(f"{path}: tensor {name!r} is damaged: {error}") from None
                tensors[name] = array.astype(dtype.newbyteorder("="), copy=False)
    return tensors, metadata


@contextlib.contextmanager
def _open_regular(path):
    """A file to read; refused at once if it is a pipe, even one that nobody writes to."""
    with open(path, "rb", opener=lambda path, flags: os.open(path, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise CheckpointError(f"{path}: not a regular file")
        yield file


def _read_all(path, file, array, advance):
    view = memoryview(array)
    while view:
        n = file.readinto(view[:BLOCK])
        if not n:
            raise CheckpointError(f"{path}: the file ends early")
        view = view[n:]
        advance(n)


def _read_header(path, file, size):
    """The entries (dtype, shape, begin, end), metadata and checksums of a file, and where its data start."""
    header, text = read_json(path, file, size)
    length = len(text)
    metadata = header.pop("__metadata__", None) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or metadata.get("format") != "optimc" \
            or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: not a checkpoint of optimc")
    version = metadata.get("format_version", "")
    if not version.isdecimal() or len(version) > 9:
        raise CheckpointError(f"{path}: its header is damaged: format_version {version!r}")
    if int(version) > VERSION:
        raise CheckpointError(f"{path}: format version {version} is newer than this optimc reads ({VERSION})")
    own = metadata.get("header_checksum", "")
    blank = text.replace(f'"header_checksum":"{own}"'.encode(), f'"header_checksum":"{NO_CHECKSUM}"'.encode())
    if f"{zlib.crc32(blank):08x}" != own:
        raise CheckpointError(f"{path}: its header is damaged: its checksum does not match")
    checksums = decode(path, metadata, "checksums")
    entries = _check_entries(path, header, size - 8 - length)
    if not isinstance(checksums, dict) or set(checksums) != set(entries):
        raise CheckpointError(f"{path}: its header is damaged: checksums and tensors do not match")
    return entries, metadata, checksums, 8 + length


def read_json(path, file, size):
    """The header of any safetensors file of so many bytes, as JSON and as text."""
    if size < 8:
        raise CheckpointError(f"{path}: not a checkpoint: {size} bytes")
    length, = struct.unpack("<Q", file.read(8))
    if length > min(MOST_HEADER, size - 8):
        raise CheckpointError(f"{path}: not a checkpoint, or cut short: a header of {length} bytes in {size}")
    text = file.read(length)
    if len(text) != length or not text.startswith(b"{"):
        raise CheckpointError(f"{path}: not a checkpoint: its header is no JSON object")
    try:
        return json.loads(text, object_pairs_hook=_no_duplicates), text
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its header is damaged: {error}") from None


def _no_duplicates(pairs):
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a name comes twice")
    return names


def _check_entries(path, header, size):
    entries, end = {}, 0
    for name, entry in header.items():
        try:
            dtype, shape, (begin, stop) = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
            good = len(entry) == 3 and all(type(n) is int and 0 <= n < 2 ** 63 for n in (*shape, begin, stop)) \
                and len(shape) <= 64
        except (KeyError, TypeError, ValueError):
            good = False
        if not good or begin != end or stop - begin != math.prod(shape) * dtype.itemsize:
            raise CheckpointError(f"{path}: tensor {name!r} is damaged: its entry is {entry!r:.200}")
        entries[name] = dtype, tuple(shape), begin, stop
        end = stop
    if end != size:
        raise CheckpointError(f"{path}: its tensors take {end} bytes, but {size} are there")
    return entries


def decode(path, metadata, key):
    """The JSON in a metadata entry."""
    try:
        return json.loads(metadata[key], object_pairs_hook=_no_duplicates)
    except (KeyError, ValueError, RecursionError):
        raise CheckpointError(f"{path}: its metadata entry {key!r} is damaged or missing") from None


# -------------------------------------------------------------------------------------- optimizers


def save(path, optimizer):
    """Writes an optimizer or wrapper; what its `save` calls, which keeps steps away meanwhile."""
    description, tensors = optimizer._export()
    write(path, tensors, {"optimizer": _encode(description)})


def _encode(description):
    try:
        return json.dumps(description, allow_nan=False, separators=(",", ":"))
    except TypeError as error:
        raise ValueError(f"the configuration cannot be stored in a checkpoint: {error}") from None


def load(path, custom_objects=None):
    """An optimizer or wrapper from a file that its `save` wrote: it goes on as if it had never stopped.

    It holds its slots and binds to the weights of its next step, whose shapes and dtypes must match.

    Args:
        path: the file.
        custom_objects: dict of names to the classes of your own schedules and optimizers.

    Raises:
        CheckpointError: the file is not a checkpoint of optimc, damaged, or of a newer version; the message names
            the file and, if it is one, the tensor.
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


def restore(path, metadata, custom_objects, tensors_for):
    """An optimizer from the metadata of a file, and the tensors that a function of it and its description gives."""
    from optimc import registry
    with taking_over(os.fsdecode(path)):
        description = decode(path, metadata, "optimizer")
        optimizer = registry.deserialize(
            {"class_name": description["class_name"], "config": description["config"]}, custom_objects)
        tensors = tensors_for(optimizer, description)
        import_all(optimizer, description, tensors)
    return optimizer


@contextlib.contextmanager
def taking_over(what):
    """Whatever damage in a state leads to becomes a `CheckpointError` that names the file or argument it is in."""
    try:
        yield
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{what}: {'no ' * isinstance(error, KeyError)}{error}") from None


def import_all(optimizer, description, tensors):
    """An optimizer takes over a state, all of it."""
    optimizer._import(description, tensors)
    if tensors:
        raise ValueError(f"tensor {next(iter(tensors))!r} belongs to nothing")


# ------------------------------------------------------------------------------------------ shards


def shard_path(path, token, rank):
    """Where the shard of a rank is, of the save with this token (16 hexadecimal digits) to `path`."""
    return f"{os.path.realpath(os.fsdecode(path))}.{token}.{rank}"


def write_shard(path, token, rank, tensors):
    """Writes a rank's file of a save to `path`.

    Args:
        tensors: dict of names to pairs: a vector, and which element of its weight it begins with; or a whole
            tensor, and None.
    """
    blocks = {}
    for name, (array, low) in tensors.items():
        if low is None:
            blocks[name] = array
        else:
            for start in range(0, len(array), SHARD_BLOCK):
                blocks[f"{name}@{low + start}"] = array[start:start + SHARD_BLOCK]
    write(shard_path(path, token, rank), blocks, {"shard": token})


def write_index(path, description, shards):
    """Ends a save of shards: writes the file that joins them, then removes those of earlier saves.

    Args:
        description: of the optimizer in one piece, as its `_export` gives it.
        shards: dict: "token"; "orders", a "C" or "F" per weight, the order of elements in its vectors; "files", for
            each rank a list of [weight, first element, last + 1].
    """
    write(path, {}, {"optimizer": _encode(description), "shards": json.dumps(shards, separators=(",", ":"))})
    directory, name = os.path.split(os.path.realpath(os.fsdecode(path)))
    pattern = re.compile(rf"\.?{re.escape(name)}\.([0-9a-f]{{16}})\.[0-9]+(\.[0-9a-f]{{16}}\.tmp)?")
    for entry in os.listdir(directory):
        match = pattern.fullmatch(entry)
        if match and match[1] != shards["token"]:
            with contextlib.suppress(FileNotFoundError, PermissionError):
                os.unlink(os.path.join(directory, entry))


def weights_part(description):
    """What a description says of the weights: of an optimizer itself, or of the one within a wrapper."""
    return description["inner"][0] if "inner" in description else description


def shape_of(shape, dtype):
    """A weight's shape and dtype as a description has them; its text never reaches NumPy's parser of dtypes."""
    if dtype not in ("float32", "float64") or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"shapes: expected sizes and float32 or float64, got {shape!r:.80} and {dtype!r:.80}")
    return tuple(shape), np.dtype(dtype)


def read_shards(path, shards, description, pieces=None):
    """What the shards of a save hold of some elements; only blocks with some of these are read.

    Args:
        shards: the metadata entry of the index.
        description: of the optimizer.
        pieces: the (first element, last + 1) wanted of each weight; default: all.

    Returns:
        Two dicts by name: vectors of the pieces, and the tensors that are stored whole.
    """
    path = os.fsdecode(path)
    likes = [shape_of(*entry) for entry in weights_part(description)["shapes"]]
    sizes = [math.prod(shape) for shape, _ in likes]
    _check_cover(path, shards["files"], sizes)
    if not re.fullmatch("[0-9a-f]{16}", shards["token"]):
        raise CheckpointError(f"{path}: its shards have a token that is none: {shards['token']!r}")
    pieces = [(0, size) for size in sizes] if pieces is None else pieces
    files, filled = [], {}
    for rank, segments in enumerate(shards["files"]):       # headers alone: no memory before all is known to fit
        if not any(_common(pieces[i], low, high) for i, low, high in segments):
            continue
        file, found, wanted = shard_path(path, shards["token"], rank), [], {}
        _, metadata = read(file, lambda *entry, found=found: found.append(entry))
        if metadata.get("shard") != shards["token"]:
            raise CheckpointError(f"{file}: not a shard of {path}")
        for base, i, start, entry in _blocks(file, found, {i: (low, high) for i, low, high in segments}, sizes):
            low, high = (0, sizes[i]) if start is None else (start, start + entry[1][0])
            n = _common(pieces[i], low, high)
            if n:
                wanted[entry] = base, i, start
                filled[base] = filled.get(base, 0) + (pieces[i][1] - pieces[i][0] if start is None else n)
        files.append((file, wanted))
    for base, n in filled.items():
        low, high = pieces[_place_of(base)[1]]
        if n != high - low:
            raise CheckpointError(f"{path}: tensor {base!r} is not complete in its shards")
    vectors, whole = {}, {}
    for file, wanted in files:
        tensors, _ = read(file, lambda *entry, wanted=wanted: entry in wanted)
        for (name, _), (base, i, start) in wanted.items():
            array = tensors[name]
            if array.dtype != likes[i][1]:
                raise CheckpointError(f"{file}: tensor {name!r}: expected {likes[i][1]}, got {array.dtype}")
            if start is None:
                whole[base] = array
                continue
            low, high = pieces[i]
            if base not in vectors:
                vectors[base] = np.empty(high - low, array.dtype)
            vectors[base][max(start - low, 0):start + len(array) - low] = array[max(low - start, 0):high - start]
    return vectors, whole


def _common(piece, low, high):
    """How many elements a piece has of those from low to high."""
    return max(min(piece[1], high) - max(piece[0], low), 0)


def _place_of(name):
    """A tensor's name without the element it begins with, its weight, and this element, or None."""
    match = re.fullmatch("(.+/(0|[1-9][0-9]{0,18}))(?:@(0|[1-9][0-9]{0,18}))?", name)
    if not match:
        raise ValueError(f"tensor {name!r:.80} is not named as a shard names its own")
    return match[1], int(match[2]), match[3] and int(match[3])


def _blocks(file, found, segments, sizes):
    """Name, weight, first element and entry (name and shape) of each tensor of a shard, which follow one another."""
    reached, blocks = {}, []
    for name, shape in found:
        base, i, start = _place_of(name)
        low, high = segments.get(i, (0, 0))
        before = reached.get(base, low)
        if start is None:
            good, end = [low, high] == [0, *sizes[i:i + 1]], high
        else:
            good, end = len(shape) == 1 and start == before, start + math.prod(shape)
        if not good or not before < end <= high:
            raise CheckpointError(f"{file}: tensor {name!r} is not where the index has one")
        reached[base] = end
        blocks.append((base, i, start, (name, shape)))
    for base, end in reached.items():
        if end != segments[_place_of(base)[1]][1]:
            raise CheckpointError(f"{file}: tensor {base!r} is not complete")
    return blocks


def _check_cover(path, files, sizes):
    """Whether the segments of all files are every element of every weight once."""
    reached = [0] * len(sizes)
    for i, low, high in sorted(segment for segments in files for segment in segments):
        if not all(type(n) is int for n in (i, low, high)) or not 0 <= i < len(sizes) or low != reached[i] \
                or high <= low:
            raise CheckpointError(f"{path}: its shards overlap or leave something out")
        reached[i] = high
    if reached != sizes:
        raise CheckpointError(f"{path}: its shards leave something out")


def with_empty(tensors, description):
    """Adds to tensors those that no shard holds: of the weights without elements, for all that is kept."""
    part = weights_part(description)
    prefix = "0/" if part is not description else ""
    kept = [AVERAGE] * bool(part["config"]["use_ema"]) + \
        [ACCUMULATOR] * bool(part["config"]["gradient_accumulation_steps"])
    for what in (*part["slots"], *kept):
        for i, (shape, dtype) in enumerate(part["shapes"]):
            if math.prod(shape) == 0 and what not in FACTORS:
                tensors[f"{prefix}{what}/{i}"] = np.empty(shape, dtype)
    return tensors


def join(path, shards, description):
    """The tensors of all shards, in the shape of their weights."""
    vectors, whole = read_shards(path, shards, description)
    shapes = weights_part(description)["shapes"]
    for base, vector in vectors.items():
        i = _place_of(base)[1]
        whole[base] = vector.reshape(shapes[i][0], order=shards["orders"][i])
    return with_empty(whole, description)
