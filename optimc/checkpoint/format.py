"""The file format of checkpoints: a file is written completely or not at all, and read with every byte verified.

This module knows named tensors and metadata of strings, and no optimizer.  `optimc.checkpoint` describes the layout.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import re
import stat
import struct
import sys
import threading
import zlib
from typing import TYPE_CHECKING

import numpy as np

try:
    import fcntl
except ImportError:                         # Windows: leftovers are not swept there
    fcntl = None                            # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

    from numpy.typing import NDArray

    from optimc._types import Array, Path, Shape, Tensors

    Bytes = NDArray[np.uint8]
    Entries = dict[str, tuple[np.dtype[Any], Shape, int, int]]

VERSION = 3
MOST_HEADER = 100 << 20                     # bytes; the limit of the safetensors format
BLOCK = 8 << 20                             # bytes written or read at a time
WORTH_WATCHING = 256 << 20                  # bytes from which progress is shown on a terminal
#: those of slots, averages and accumulators; the upper half of a float32 is a uint16 in memory
PLAIN_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8")}
DTYPES: dict[str, np.dtype[Any]] = {
    **PLAIN_DTYPES, "BF16": np.dtype("<u2"), "U8": np.dtype("u1"), "I16": np.dtype("<i2")}
NAMES: dict[np.dtype[Any], str] = {dtype: name for name, dtype in DTYPES.items()}
NO_CHECKSUM = "0" * 8
MOST_NAME = 255                             # bytes of a file name that every system allows
TEMPORARY = len("..0123456789abcdef.tmp")   # bytes that the name of a temporary file adds


class CheckpointError(ValueError):
    """A file cannot be used: it is no checkpoint, damaged, of a newer version, or of another optimizer."""


# ------------------------------------------------------------------------------------------- writing


def write(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Writes a file of tensors, whole or not at all.

    Args:
        path: of the file.  An existing file keeps its permissions.  A symbolic link stays; its target is written.
        tensors: dict of names to arrays of the types in DTYPES, in the order of the file.
        metadata: dict of str to str.

    Raises:
        OSError: of the system, unchanged; the old file is still there, and nothing else.
    """
    path = target_of(path)
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


def target_of(path: Path) -> str:
    """The file that `write` would write.  Refuses what cannot be one."""
    path = os.path.realpath(os.fsdecode(path))
    with contextlib.suppress(FileNotFoundError):
        mode = os.lstat(path).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(f"{path} is a directory")
        if not stat.S_ISREG(mode):
            raise ValueError(f"{path} is not a regular file")
    return path


def stem_of(name: str, added: int) -> str:
    """The begin of a name that adds bytes to a file name: the file name, or its digest if it is too long."""
    data = os.fsencode(name)
    if len(data) + added <= MOST_NAME:
        return name
    import hashlib  # brings OpenSSL along, a tenth of the time of the whole import
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _write_beside(path: str, directory: str, name: str, header: bytes, flat: dict[str, Bytes]) -> bool:
    """Writes the new file and renames it to `path`; False if another saver swept it before it was locked."""
    temporary = os.path.join(directory, f".{stem_of(name, TEMPORARY)}.{os.urandom(8).hex()}.tmp")
    try:
        with io.FileIO(temporary, "x") as file:         # `os.fdopen` imports, which is too late at exit
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX)        # a file that another saver can lock is stale
                if not os.path.exists(temporary):
                    return False
            if os.path.exists(path):
                os.chmod(temporary, stat.S_IMODE(os.stat(path).st_mode))
            with _progress(f"saving {name}", len(header) + sum(map(len, flat.values()))) as advance:
                _write_all(file, header, advance)
                for array in flat.values():
                    _write_all(file, array.data, advance)
            os.fsync(file.fileno())
            if fcntl:
                os.replace(temporary, path)             # while it is locked, so that no sweep takes it for stale
        if not fcntl:
            os.replace(temporary, path)                 # Windows moves no file that is open
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    return True


def _checksums(parts: Sequence[Bytes]) -> list[int]:
    """The CRC of each array of bytes.  Two threads compute those of large arrays: zlib runs without the GIL."""
    sums, numbers = [0] * len(parts), iter(range(len(parts)))

    def work() -> None:
        for k in numbers:                               # both threads take from it, one number at a time
            sums[k] = zlib.crc32(parts[k].data)

    helper = None
    if sum(map(len, parts)) >= 4 << 20 and not sys.is_finalizing():     # a thread could not begin then
        helper = threading.Thread(target=work, daemon=True)
        try:
            helper.start()
        except RuntimeError:                            # the interpreter ends, or the system gives no thread
            helper = None
    work()
    if helper:
        helper.join()
    return sums


def _header(tensors: Mapping[str, Array], flat: dict[str, Bytes], metadata: Mapping[str, str]) -> bytes:
    entries, start = {}, 0
    for name, array in tensors.items():
        end = start + len(flat[name])
        entries[name] = {"dtype": NAMES[array.dtype.newbyteorder("<")], "shape": list(array.shape),
                         "data_offsets": [start, end]}
        start = end
    checksums = {name: f"{crc:08x}" for name, crc in zip(flat, _checksums([*flat.values()]), strict=True)}
    version = VERSION - all(entry["dtype"] in PLAIN_DTYPES for entry in entries.values())
    metadata = {"format": "optimc", "format_version": str(version), **metadata,
                "checksums": json.dumps(checksums, separators=(",", ":")), "header_checksum": NO_CHECKSUM}
    text = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MOST_HEADER:
        raise ValueError(f"the header would take {len(text)} bytes, more than {MOST_HEADER}")
    own = f'"header_checksum":"{zlib.crc32(text):08x}"'.encode()
    return struct.pack("<Q", len(text)) + text.replace(f'"header_checksum":"{NO_CHECKSUM}"'.encode(), own)


def _write_all(file: io.FileIO, data: bytes | memoryview, advance: Callable[[int], object]) -> None:
    view = memoryview(data)
    while view:
        written = file.write(view[:BLOCK])
        view = view[written:]
        advance(written)


def _sync_directory(directory: str) -> None:
    """Makes a rename permanent.  Systems that cannot sync a directory do not need this."""
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


def _sweep(directory: str, name: str) -> None:
    """Removes the temporary files of this file that killed savers left, which no process has locked."""
    if not fcntl:
        return
    pattern = re.compile(rf"\.{re.escape(stem_of(name, TEMPORARY))}\.[0-9a-f]{{16}}\.tmp")
    for entry in os.listdir(directory):
        if not pattern.fullmatch(entry):
            continue
        stale = os.path.join(directory, entry)
        with contextlib.suppress(OSError, CheckpointError), _open_regular(stale) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(stale)


@contextlib.contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], object]]:
    """Yields a function that reports bytes.  Shows a bar for a large file on a terminal, if rich is installed."""
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


def read(path: Path, wanted: Callable[[str, Shape], object] | None = None) -> tuple[Tensors, dict[str, str]]:
    """The tensors and the metadata of a file that `write` wrote, with every checksum verified.

    Args:
        path: of the file.
        wanted: a function of name and shape that is true for the tensors to read; default: all.

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
                if f"{zlib.crc32(array.data):08x}" != checksums[name]:
                    raise CheckpointError(f"{path}: tensor {name!r} is damaged: its checksum does not match")
                try:
                    array = array.view(dtype).reshape(shape)
                except ValueError as error:
                    raise CheckpointError(f"{path}: tensor {name!r} is damaged: {error}") from None
                tensors[name] = array.astype(dtype.newbyteorder("="), copy=False)
    return tensors, metadata


@contextlib.contextmanager
def _open_regular(path: str) -> Iterator[io.BufferedReader[io.FileIO]]:
    """Opens a regular file to read.  Refuses a pipe at once, even one that no process writes to."""
    with io.BufferedReader(io.FileIO(path, opener=lambda path, flags: os.open(
            path, flags | getattr(os, "O_NONBLOCK", 0)))) as file:      # `open` is gone late at exit
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise CheckpointError(f"{path}: not a regular file")
        yield file


def _read_all(path: str, file: io.BufferedReader[Any], array: Bytes, advance: Callable[[int], object]) -> None:
    view = array.data
    while view:
        n = file.readinto(view[:BLOCK])
        if not n:
            raise CheckpointError(f"{path}: the file ends early")
        view = view[n:]
        advance(n)


def _read_header(path: str, file: io.BufferedReader[Any],
                 size: int) -> tuple[Entries, dict[str, str], dict[str, str], int]:
    """The entries (dtype, shape, begin, end), metadata and checksums of a file, and the offset of its data."""
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
    if not re.fullmatch("[0-9a-f]{8}", own):
        raise CheckpointError(f"{path}: its header is damaged: header_checksum {own!r:.80}")
    blank = text.replace(f'"header_checksum":"{own}"'.encode(), f'"header_checksum":"{NO_CHECKSUM}"'.encode())
    if f"{zlib.crc32(blank):08x}" != own:
        raise CheckpointError(f"{path}: its header is damaged: its checksum does not match")
    checksums = decode(path, metadata, "checksums")
    entries = _check_entries(path, header, size - 8 - length)
    if not isinstance(checksums, dict) or set(checksums) != set(entries):
        raise CheckpointError(f"{path}: its header is damaged: checksums and tensors do not match")
    return entries, metadata, checksums, 8 + length


def read_json(path: str, file: io.BufferedReader[Any], size: int) -> tuple[Any, bytes]:
    """The header of a safetensors file of `size` bytes, as JSON and as text."""
    if size < 8:
        raise CheckpointError(f"{path}: not a checkpoint: {size} bytes")
    length, = struct.unpack("<Q", file.read(8))
    if length > min(MOST_HEADER, size - 8):
        raise CheckpointError(f"{path}: not a checkpoint, or cut short: a header of {length} bytes in {size}")
    text = file.read(length)
    if len(text) != length or not text.startswith(b"{"):
        raise CheckpointError(f"{path}: not a checkpoint: its header is not a JSON object")
    try:
        return json.loads(text, object_pairs_hook=_no_duplicates), text
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its header is damaged: {error}") from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a name occurs twice")
    return names


def _check_entries(path: str, header: dict[str, Any], size: int) -> Entries:
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
        raise CheckpointError(f"{path}: its tensors need {end} bytes, but the file has {size}")
    return entries


def decode(path: Path, metadata: Mapping[str, str], key: str) -> Any:
    """The JSON in a metadata entry."""
    try:
        return json.loads(metadata[key], object_pairs_hook=_no_duplicates)
    except (KeyError, ValueError, RecursionError):
        raise CheckpointError(f"{os.fsdecode(path)}: its metadata entry {key!r} is damaged or missing") from None
