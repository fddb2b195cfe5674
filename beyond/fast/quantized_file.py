"""The file that caches quantized weights. It is memory-mapped, so that only weights that are used are read.

It has the format of safetensors (https://github.com/huggingface/safetensors): the length of the header in 8 bytes, the
header in JSON, the arrays. Except for digests, the header follows from the model's sizes, so a file is accepted only if
its header is, byte for byte, the expected one, and nothing in the file decides where compiled code reads.
"""

import glob
import hashlib
import json
import math
import os

import numpy as np

from beyond.files import writing

FORMAT = "PicoGPT quantized 3"
LONGEST = 2**24  # bytes, more than any model's header
DTYPES = {"F32": np.dtype(np.float32), "I8": np.dtype(np.int8), "U8": np.dtype(np.uint8)}


def header_of(layout, source, digest):
    """The bytes before the arrays, for a layout {name: (type, shape)}. The first array begins at a multiple of 64."""
    header, end = {"__metadata__": {"format": FORMAT, "source": source, "digest": digest}}, 0
    for name, (kind, shape) in layout.items():
        begin = end
        end += DTYPES[kind].itemsize * math.prod(shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return len(text).to_bytes(8, "little") + text


def digest_of(path, begin=0):
    """A digest of the size of a file from begin on and of 65 samples of 4 kB, the first and the last included."""
    size = os.path.getsize(path) - begin
    found = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for i in range(65):
            file.seek(begin + max(0, size - 4096) * i // 64)
            found.update(file.read(4096))
    return found.hexdigest()


def source_of(model_dir, hparams, bits):
    """A digest of the checkpoint and bits, from the whole index, which has checksums, but only samples of the data."""
    found = hashlib.sha256(json.dumps([hparams, bits]).encode())
    for path in sorted(glob.glob(os.path.join(glob.escape(model_dir), "model.ckpt.data-?????-of-?????"))):
        found.update(digest_of(path).encode())
    with open(os.path.join(model_dir, "model.ckpt.index"), "rb") as file:
        found.update(file.read())
    return found.hexdigest()


def write(path, arrays, layout, source):
    """Writes {name: array} in the layout. Only one process may call this at a time. Raises OSError."""

    def fill(part):
        with open(part, "wb") as file:
            begin = file.write(header_of(layout, source, "0" * 64))
            for name, (kind, shape) in layout.items():
                file.write(np.ascontiguousarray(arrays[name], DTYPES[kind]).reshape(shape))
            file.flush()
            digest = digest_of(part, begin)
            file.seek(0)
            file.write(header_of(layout, source, digest))

    folder, name = os.path.split(os.path.realpath(path))
    root, ending = os.path.splitext(name)
    for left in filter(writing.is_part, os.listdir(folder)):  # left by a kill
        if left.startswith(f"{root}.") and left.endswith(f".part{ending}"):
            os.remove(os.path.join(folder, left))
    writing.write_whole(path, fill)


def read(path, layout, source):
    """{name: array}, memory-mapped, from a file made by write; None if the file is missing or has another source.

    Raises ValueError for a file of another kind, and for one whose header or numbers have changed.
    """
    if not os.path.exists(path):
        return None
    way_out = "remove it, or name another file with --weights"
    with open(path, "rb") as file:
        header = file.read(8)
        header += file.read(min(int.from_bytes(header, "little"), LONGEST))
    try:
        entries = json.loads(header[8:])
        about = entries.pop("__metadata__")
        is_current = about["format"] == FORMAT
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        is_current = False
    if not is_current:
        raise ValueError(f"{path} is not a quantized model in the current format: {way_out}")
    if about.get("source") != source:
        return None
    if (
        header != header_of(layout, source, about.get("digest"))
        or os.path.getsize(path) != len(header) + entries[[*layout][-1]]["data_offsets"][1]
        or about["digest"] != digest_of(path, len(header))
    ):
        raise ValueError(f"{path} is damaged: its header or its weights are not those that were written: {way_out}")
    data = np.asarray(np.memmap(path, np.uint8, "r", len(header)))
    return {
        name: data[slice(*entry["data_offsets"])].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in entries.items()
    }
