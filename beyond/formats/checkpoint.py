"""A model folder, made: parameters before the first step, and a checkpoint as OpenAI's are, without TensorFlow.

    checkpoint.save_model(checkpoint.initial_params(**hparams), hparams, "models/mine")

The bytes are those that TensorFlow's own writer gives.
model.ckpt.data-00000-of-00001 holds the numbers: float32, the tensors sorted by name, back to back. model.ckpt.index
says where each of them is. It is a table of LevelDB (https://github.com/google/leveldb/blob/main/doc/table_format.md),
from the name to a protocol buffer (BundleEntryProto in TensorFlow's tensor_bundle.proto). A name gives only what
differs from the name before. The second and third entry of OpenAI's 124M:

    00 16 11  model/h0/attn/c_attn/b  0801  1205 1203 088012                            288048      3574 3d278c15
    15 01 1f  w                       0801  120e 1202 0801 1203 088006 1203 088012      208048      2880 80b00335...

Checksums are CRC-32C, mixed as LevelDB does it. TensorFlow compares them when it reads a tensor.
"""

import json
import math
import os
import shutil
import struct

import google_crc32c
import numpy as np

from beyond.files import reading, writing
import utils


def initial_params(n_vocab, n_ctx, n_embd, n_head, n_layer, seed=0):
    """Parameters before the first step, as in GPT-2 (section 2.3 of its paper): weights normal with deviation 0.02,
    in front of a residual sum 0.02 / sqrt(2 n_layer), as that sum has 2 n_layer terms; g 1, b 0."""
    rng = np.random.default_rng(seed)

    def normal(*shape, scale=0.02):
        return scale * rng.standard_normal(shape, np.float32)

    def norm():
        return {"g": np.ones(n_embd, np.float32), "b": np.zeros(n_embd, np.float32)}

    def layer(n_in, n_out, scale=0.02):
        return {"w": normal(n_in * n_embd, n_out * n_embd, scale=scale), "b": np.zeros(n_out * n_embd, np.float32)}

    residual = 0.02 / math.sqrt(2 * n_layer)
    return {
        "wte": normal(n_vocab, n_embd),
        "wpe": normal(n_ctx, n_embd),
        "ln_f": norm(),
        "blocks": [
            {
                "ln_1": norm(),
                "attn": {"c_attn": layer(1, 3), "c_proj": layer(1, 1, residual)},
                "ln_2": norm(),
                "mlp": {"c_fc": layer(1, 4), "c_proj": layer(4, 1, residual)},
            }
            for _ in range(n_layer)
        ],
    }


def tensors(params, prefix="model"):
    """Yields (name, array) in the checkpoint's names: params["blocks"][3]["ln_1"]["g"] is model/h3/ln_1/g."""
    for key, value in params.items():
        if key == "blocks":
            for i, block in enumerate(value):
                yield from tensors(block, f"{prefix}/h{i}")
        elif isinstance(value, dict):
            yield from tensors(value, f"{prefix}/{key}")
        else:
            yield f"{prefix}/{key}", value


# --- a folder ---

CHECKPOINT = 'model_checkpoint_path: "model.ckpt"\nall_model_checkpoint_paths: "model.ckpt"\n'


def save_model(params, hparams, folder):
    """Writes hparams.json and the checkpoint; encoder.json and vocab.bpe come from elsewhere.

    They are made in a folder of their own, model.ckpt.part, and take their places only when all are whole. Raises
    OSError if the disk is full or the folder may not be written to; then all that was there is as it was.
    """
    part, arrays = os.path.join(folder, "model.ckpt.part"), dict(tensors(params))
    shutil.rmtree(part, ignore_errors=True)  # from a run that was killed
    try:
        os.makedirs(part)
        for name, text in ("hparams.json", json.dumps(hparams)), ("checkpoint", CHECKPOINT):
            writing.write_text(os.path.join(part, name), text)
        save_checkpoint(
            os.path.join(part, "model.ckpt"),
            arrays,
            lambda name: np.asarray(arrays[name])[None] if name.endswith("/w") else arrays[name],
        )
        for name in os.listdir(part):
            os.replace(os.path.join(part, name), os.path.join(folder, name))
    except OSError as error:
        raise OSError(f"cannot write the model to {folder}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def save_folder(params, hparams, folder, model_size, models_dir):
    """Writes a model's seven files, with the vocabulary of the model that it comes from."""
    save_model(params, hparams, folder)
    for name in "encoder.json", "vocab.bpe":
        text = reading.read_text(os.path.join(utils.folder_of(model_size, models_dir), name))
        writing.write_text(os.path.join(folder, name), text)


# --- a checkpoint ---

RESTART = 16  # after so many entries a name is given in full, for binary search


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
    with open(f"{prefix}.meta", "wb") as file:  # TensorFlow 1 kept its graph here, which nothing reads: an empty one
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
    """A whole number, seven bits per byte, low ones first; the high bit says that more follow."""
    return bytes([n]) if n < 128 else bytes([n % 128 + 128]) + varint(n // 128)
