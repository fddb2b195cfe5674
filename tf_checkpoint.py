"""TensorFlow's checkpoints, read without TensorFlow: PREFIX.index and one or more files PREFIX.data-00000-of-00001.

The data files hold the values of all tensors, back to back. The index is a LevelDB table
(https://github.com/google/leveldb/blob/main/doc/table_format.md) that maps a tensor's name to a protocol buffer with
its type, shape, data file and offset (BundleEntryProto in TensorFlow's tensor_bundle.proto).
"""

import contextlib
import io
import math
import os
import sys
import tempfile
from typing import NamedTuple

import numpy as np

BFLOAT16 = 14  # the upper half of a float32; NumPy does not have it
# the types that can be read, by their numbers in TensorFlow's types.proto
DTYPES = {1: np.float32, 2: np.float64, BFLOAT16: np.uint16, 19: np.float16}


class Entry(NamedTuple):
    """The index entry of a tensor. If the tensor is sliced, its values are stored elsewhere, in several pieces."""

    dtype: int
    shape: list
    path: str
    offset: int
    n_bytes: int
    is_sliced: bool


def read_index(prefix):
    """{name: Entry} of all tensors. Raises ValueError if PREFIX.index is damaged."""
    with open(f"{prefix}.index", "rb") as file:
        table = file.read()

    def block(handle):
        """The (key, value) pairs of the block at a handle, which is an offset and a size."""
        offset, size = varint(handle), varint(handle)
        end = offset + size + 1  # its last byte is 0 if it is not compressed; a checksum follows
        if table[end - 1] or masked(crc32c(table[offset:end])) != int.from_bytes(table[end : end + 4], "little"):
            raise ValueError
        return pairs(table[offset : end - 1])

    try:
        footer = io.BytesIO(table[-48:])  # the handles of the metaindex block, not needed here, and of the index block
        varint(footer), varint(footer)
        found = {name: fields(value) for _, handle in block(footer) for name, value in block(io.BytesIO(handle))}
        n_files = found.pop(b"")[1][0]
        entries = {}
        for name, entry in found.items():
            dtype, file, offset, n_bytes = (entry.get(number, [0])[0] for number in (1, 3, 4, 5))
            shape = [fields(size).get(1, [0])[0] for size in fields(entry.get(2, [b""])[0]).get(2, [])]
            path = f"{prefix}.data-{file:05d}-of-{n_files:05d}"
            # a slice of a tensor has an entry of its own, whose name is binary
            entries[name.decode("utf-8", "surrogateescape")] = Entry(dtype, shape, path, offset, n_bytes, 7 in entry)
        return entries
    except (IndexError, KeyError, ValueError, TypeError, AttributeError):
        raise ValueError(f"{prefix}.index is damaged: it is not the index of a checkpoint") from None


def varint(stream):
    """Reads an integer: seven bits per byte, little-endian; the high bit is set if another byte follows."""
    byte = stream.read(1)[0]
    return byte if byte < 128 else byte - 128 + 128 * varint(stream)


def pairs(block):
    """Yields each (key, value). A key is stored as the number of bytes shared with the previous key, and the rest."""
    n_restarts = int.from_bytes(block[-4:], "little")  # the positions of keys stored in full, listed at the end
    stream, key = io.BytesIO(block), b""
    while stream.tell() < len(block) - 4 * (n_restarts + 1):
        n_shared, n_own, n_value = varint(stream), varint(stream), varint(stream)
        key = key[:n_shared] + stream.read(n_own)
        yield key, stream.read(n_value)


def fields(message):
    """{field number: [values]} of a protocol buffer; a value is an integer or bytes."""
    stream, found = io.BytesIO(message), {}
    while stream.tell() < len(message):
        number, kind = divmod(varint(stream), 8)  # kinds: 0 an integer, 5 four bytes, 2 a length and that many bytes
        value = varint(stream) if kind == 0 else stream.read(4 if kind == 5 else varint(stream))
        found.setdefault(number, []).append(value)
    return found


CRC = list(range(256))  # a lookup table: the checksum of each byte
for _ in range(8):
    CRC = [value >> 1 ^ (value & 1) * 0x82F63B78 for value in CRC]


def crc32c(data):
    """The CRC-32C of data; slow for more than a few thousand bytes."""
    crc = 2**32 - 1
    for byte in data:
        crc = crc >> 8 ^ CRC[(crc ^ byte) & 255]
    return crc ^ 2**32 - 1


def masked(crc):
    """A checksum as LevelDB stores it: rotated and offset, because the data may itself contain checksums."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


def read_tensors(prefix, entries, names):
    """{name: float32 array} of some of a checkpoint's tensors, whose types must be in DTYPES.

    Float32 arrays are views of a mapped file: writing to one changes memory, not the file. Raises ValueError if a data
    file is damaged, or if a tensor is stored in slices and TensorFlow is not installed.
    """
    if any(entries[name].is_sliced for name in names):
        return read_with_tensorflow(prefix, names)
    files = {}
    for path in {entries[name].path for name in names}:
        needed = max(entry.offset + entry.n_bytes for entry in entries.values() if entry.path == path)
        if (size := os.path.getsize(path)) != needed:
            raise ValueError(f"{path} is damaged: it has {size:,} bytes, but its tensors need {needed:,}")
        files[path] = np.asarray(np.memmap(path, np.uint8, "c"))

    arrays = {}
    for name in names:
        dtype, shape, path, offset, n_bytes, _ = entries[name]
        if n_bytes != math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize:
            raise ValueError(f"{prefix}.index is damaged: {name} {shape} cannot have {n_bytes:,} bytes")
        numbers = files[path][offset : offset + n_bytes].view(DTYPES[dtype])
        if dtype == BFLOAT16:
            numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
        arrays[name] = np.require(numbers, np.float32, "A").reshape(shape)  # A: a copy if it is not aligned
    return arrays


def read_with_tensorflow(prefix, names):
    """{name: float32 array}, read by TensorFlow, which joins the slices of partitioned variables."""
    with silent_stderr():  # TensorFlow prints details of the machine when it is imported
        try:
            import tensorflow as tf
        except ImportError:
            reason = "stores tensors in slices, which only TensorFlow reads: pip install tensorflow"
            raise ValueError(f"{prefix} {reason}") from None
    folder, name_of_prefix = os.path.split(os.path.abspath(prefix))
    try:
        with tempfile.TemporaryDirectory() as work:  # TensorFlow treats [ and * in a folder's name as a pattern
            os.symlink(folder, os.path.join(work, "link"))
            reader = tf.train.load_checkpoint(os.path.join(work, "link", name_of_prefix))
            return {name: np.asarray(reader.get_tensor(name), np.float32) for name in names}
    except Exception as error:  # its reader raises many types, even IndexError for a truncated file
        raise ValueError(f"TensorFlow cannot read {prefix}: {str(error).splitlines()[0]}") from None


@contextlib.contextmanager
def silent_stderr():
    """Discards what the block writes to standard error, C++ code included."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "wb") as null:
        os.dup2(null.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
