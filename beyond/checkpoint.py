"""Writes a checkpoint as OpenAI's are, tensor by tensor and without TensorFlow: the bytes are those of its own writer.

model.ckpt.data-00000-of-00001 holds the numbers: float32, the tensors sorted by name, back to back. model.ckpt.index
says where each of them is. It is a table of LevelDB (https://github.com/google/leveldb/blob/main/doc/table_format.md),
from the name to a protocol buffer (BundleEntryProto in TensorFlow's tensor_bundle.proto). A name gives only what
differs from the name before. The second and third entry of OpenAI's 124M:

    00 16 11  model/h0/attn/c_attn/b  0801  1205 1203 088012                            288048      3574 3d278c15
    15 01 1f  w                       0801  120e 1202 0801 1203 088006 1203 088012      208048      2880 80b00335...

Checksums are CRC-32C, mixed as LevelDB does it. TensorFlow compares them when it reads a tensor.
"""

import os
import struct

import google_crc32c
import numpy as np

RESTART = 16  # every so many entries a name is given in full, for readers that search by halves


def save_checkpoint(prefix, names, tensor):
    """Writes prefix.index, .data-00000-of-00001 and .meta: for each of names the float32 array that tensor(name) gives.

    Holds one tensor in memory at a time. The files are not whole until it returns. Raises OSError, out of space say.
    """
    entries, offset = [(b"", b"\x08\x01\x1a\x02\x08\x01")], 0  # the header: one data file, version 1
    with open(f"{prefix}.data-00000-of-00001", "wb") as file:
        for name in sorted(names, key=str.encode):
            array = np.ascontiguousarray(tensor(name), "<f4")
            data = array.tobytes()
            file.write(data)
            entries.append((name.encode(), entry(array.shape, offset, data)))
            offset += len(data)
    with open(f"{prefix}.index", "wb") as file:
        file.write(table(entries))
    with open(f"{prefix}.meta", "wb") as file:  # here TensorFlow 1 kept its graph, which nothing reads: an empty one
        file.write(b"\x0a\x00")


def entry(shape, offset, data):
    """What the index says about a tensor: each field is a tag, 8 * its number + the kind of value, and the value."""
    sizes = b"".join(b"\x12" + block(b"\x08" + varint(n)) for n in shape)
    place = (b"\x20" + varint(offset) if offset else b"") + b"\x28" + varint(len(data))  # an offset of 0 is left out
    return b"\x08\x01" + b"\x12" + block(sizes) + place + b"\x35" + checksum(data)


def table(entries):
    """LevelDB's table of [(key, value)], sorted: a block of entries, an empty one, one to find the first, a footer."""
    data = sealed(entries_block(entries))
    empty = sealed(entries_block([]))
    last = entries[-1][0]
    index = sealed(entries_block([(bytes([last[0] + 1]), handle(0, data))]))  # a key after the last one, the shortest
    footer = handle(len(data), empty) + handle(len(data + empty), index)
    return data + empty + index + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def entries_block(entries):
    body, before, restarts = b"", b"", [0]
    for i, (key, value) in enumerate(entries):
        if i and i % RESTART == 0:
            restarts.append(len(body))
            before = b""
        same = len(os.path.commonprefix([before, key]))
        body += varint(same) + varint(len(key) - same) + varint(len(value)) + key[same:] + value
        before = key
    return body + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def sealed(block):
    """A block with its trailer: 0, as it is not compressed, and the checksum."""
    return block + b"\0" + checksum(block + b"\0")


def handle(offset, block):
    """Where a block is and how long, without its trailer of five bytes."""
    return varint(offset) + varint(len(block) - 5)


def checksum(data):
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)  # as the data may have checksums inside


def block(data):
    return varint(len(data)) + data


def varint(n):
    """A whole number, seven bits a byte, the low ones first; the high bit says that more follow."""
    return bytes([n]) if n < 128 else bytes([n % 128 + 128]) + varint(n // 128)
