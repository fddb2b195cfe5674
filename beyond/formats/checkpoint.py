"""Writing a model folder: parameters before the first step of training, and OpenAI's checkpoint format.

    checkpoint.save_model(checkpoint.initial_params(**hparams), hparams, "models/mine")

The checkpoint has the same bytes as if TensorFlow had written it; tf_checkpoint.py reads it and explains the format.
model.ckpt.data-00000-of-00001 holds the numbers: float32, the tensors sorted by name, back to back. model.ckpt.index
maps each name to a type (1, float32), shape, offset, length and checksum. Each name omits what it shares with
the previous one. The second and third entry of OpenAI's 124M, in hexadecimal:

    00 16 11  model/h0/attn/c_attn/b  0801  1205 1203 088012                            288048      3574 3d278c15
    15 01 1f  w                       0801  120e 1202 0801 1203 088006 1203 088012      208048      2880 80b00335...
"""

import json
import math
import os
import shutil
import struct

import google_crc32c
import numpy as np

from beyond.files import reading, writing
import tf_checkpoint
import utils


def initial_params(n_vocab, n_ctx, n_embd, n_head, n_layer, seed=0):
    """Parameters before the first step, as in GPT-2 (section 2.3 of its paper): weights are normal with a standard
    deviation of 0.02, or 0.02 / sqrt(2 n_layer) before a residual sum, of which there are 2 n_layer; g is 1, b 0."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in utils.shapes_of(n_vocab, n_ctx, n_embd, n_head, n_layer).items():
        if name.endswith(("/g", "/b")):
            arrays[name] = np.full(shape, name.endswith("/g"), np.float32)
        else:
            scale = 0.02 / math.sqrt(2 * n_layer) if name.endswith("c_proj/w") else 0.02
            arrays[name] = scale * rng.standard_normal(shape, np.float32)
    return utils.nested(arrays)


# --- a folder ---

CHECKPOINT = 'model_checkpoint_path: "model.ckpt"\nall_model_checkpoint_paths: "model.ckpt"\n'


def save_model(params, hparams, folder):
    """Writes hparams.json and the checkpoint into a folder, which also needs encoder.json and vocab.bpe.

    They are written to model.ckpt.part and moved into place when all are complete. Raises OSError if the disk is full
    or the folder cannot be written to; the files in it are then unchanged.
    """
    part = os.path.join(folder, "model.ckpt.part")
    arrays = {f"model/{name}": array for name, array in utils.named_arrays(params)}
    shutil.rmtree(part, ignore_errors=True)  # from a run that was killed
    try:
        os.makedirs(part)
        for name, text in ("hparams.json", json.dumps(hparams)), ("checkpoint", CHECKPOINT):
            writing.write_text(os.path.join(part, name), text)
        save_checkpoint(
            f"{part}/model.ckpt", arrays, lambda name: arrays[name][None] if name.endswith("/w") else arrays[name]
        )
        for name in os.listdir(part):
            os.replace(os.path.join(part, name), os.path.join(folder, name))
    except OSError as error:
        raise OSError(f"cannot write the model to {folder}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def save_folder(params, hparams, folder, model_size, models_dir):
    """Writes a model's seven files, with the vocabulary of the model it is based on."""
    save_model(params, hparams, folder)
    for name in "encoder.json", "vocab.bpe":
        text = reading.read_text(os.path.join(utils.folder_of(model_size, models_dir), name))
        writing.write_text(os.path.join(folder, name), text)


# --- a checkpoint ---

RESTART = 16  # every 16th name is stored in full, for binary search


def save_checkpoint(prefix, names, tensor):
    """Writes prefix.index, .data-00000-of-00001 and .meta: for each of names, the float32 array tensor(name).

    Holds one tensor in memory at a time. The files are incomplete until it returns. Raises OSError, such as for a full
    disk.
    """
    entries = [(b"", b"\x08\x01\x1a\x02\x08\x01")]  # the header: one data file, version 1
    offset = 0
    with open(f"{prefix}.data-00000-of-00001", "wb") as file:
        for name in sorted(names, key=str.encode):
            array = np.ascontiguousarray(tensor(name), "<f4")
            data = array.tobytes()
            file.write(data)
            entries.append((name.encode(), entry(array.shape, offset, data)))
            offset += len(data)
    with open(f"{prefix}.index", "wb") as file:
        file.write(table(entries))
    with open(f"{prefix}.meta", "wb") as file:  # an empty graph: TensorFlow 1 kept its own here, and nothing reads it
        file.write(b"\x0a\x00")


def entry(shape, offset, data):
    """A tensor's protocol buffer: each field is a tag, 8 * its number + its wire type, and the value."""
    sizes = b"".join(b"\x12" + sized(b"\x08" + varint(n)) for n in shape)
    position = (b"\x20" + varint(offset) if offset else b"") + b"\x28" + varint(len(data))  # an offset of 0 is omitted
    return b"\x08\x01" + b"\x12" + sized(sizes) + position + b"\x35" + checksum(data)


def table(entries):
    """LevelDB's table of sorted [(key, value)]: a data block, an empty block, an index block, and a footer."""
    data = sealed(block(entries))
    empty = sealed(block([]))
    last = entries[-1][0]
    index = sealed(block([(bytes([last[0] + 1]), handle(0, data))]))  # the shortest key after the last one
    footer = handle(len(data), empty) + handle(len(data + empty), index)
    return data + empty + index + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def block(entries):
    """[(key, value)] as bytes, each key without the prefix it shares with the previous one."""
    body, before, restarts = b"", b"", [0]
    for i, (key, value) in enumerate(entries):
        if i and i % RESTART == 0:
            restarts.append(len(body))
            before = b""
        n_shared = len(os.path.commonprefix([before, key]))
        body += varint(n_shared) + varint(len(key) - n_shared) + varint(len(value)) + key[n_shared:] + value
        before = key
    return body + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def sealed(block):
    """A block with its trailer: a 0, because it is not compressed, and the checksum."""
    return block + b"\0" + checksum(block + b"\0")


def handle(offset, sealed_block):
    """The offset and size of a block, without its trailer of five bytes."""
    return varint(offset) + varint(len(sealed_block) - 5)


def checksum(data):
    return struct.pack("<I", tf_checkpoint.masked(google_crc32c.value(data)))


def sized(data):
    """Bytes prefixed with their length."""
    return varint(len(data)) + data


def varint(n):
    """The inverse of tf_checkpoint.varint."""
    return bytes([n]) if n < 128 else bytes([n % 128 + 128]) + varint(n // 128)
