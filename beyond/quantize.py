"""Fewer bytes a weight: a token cannot come sooner than all weights are read, so weights of one byte come sooner.

    python -m beyond.quantize "ROMEO:" --model_size shakespeare --bits 8

With 8 bits a weight is a whole number from -127 to 127 times a scale, one for each output; with 4 bits from -7 to 7,
and a scale for each 64 inputs of an output. Rounding is off by half a scale at most. The input of a product is made
whole numbers, too, as it comes, with a scale for each 64 numbers of a row, so that a large one spoils no others. They
have 15 bits, in two bytes, and bytes are multiplied by bytes and added as whole numbers, exactly. One byte would take
half as many products and cost no more loss; but then a last bit of float32, in which chapters may differ, would soon
change a byte, and another text would come. A weight matrix here is an object that knows how to multiply: x @ w in
gpt2.linear calls its __rmatmul__, so gpt2.py and all chapters that call it run with quantized params as they are.

The first start writes the quantized model, once, beside the checkpoint (model.int8 or model.int4) or where --weights
says; from then on it is mapped, and of the checkpoint only samples are read. It knows the checkpoint it came from:
another one under the same name is noticed.

What it costs the shakespeare model: its held-out loss is 3.1399 nats a token in float32, 3.1392 with 8 bits and 3.1718
with 4. Of the tokens that follow 1,000 pieces of held_out.txt, 40 tokens each, 988 and 839 are those of float32.

In the shape of 1558M, random weights, on two cores: files of 6.23, 1.57 and 0.89 GB; at its peak the command takes 6.1
GB (gpt2.py), 1.7 and 1.05 GB, 8.7 GB when it writes the file; and a token takes 159 ms, 40 and 25 with --kernels.
"""

import hashlib
import json
import math
import os

import numpy as np

from beyond import preset
from beyond.fast.lanes import (
    FAST,
    FEW,
    add_products,
    all_lanes,
    as_floats,
    compiled,
    fma,
    larger,
    load64,
    prange,
    prefetch,
    store,
    times,
)
from beyond.files import writing
import cli
import utils

FORMAT = "PicoGPT quantized 2"
HEADER = 2**18  # bytes, more than any model's
GROUP = 64  # inputs that share a scale, of x and of weights of 4 bits
WORDS = {8: np.int8, 4: np.uint8}  # what a weight's bits are kept in
ROWS = 32  # at a time: their sums, and the weights that they are multiplied with, stay in the nearest cache
AHEAD = 2**13  # bytes: weights are asked for so long before they are needed


# --- the product ---


@compiled(fastmath=FAST)
def whole_row(x, r, offset, whole, scales, starts):  # [n_in] -> row r of each group
    for g in range(len(scales)):
        highest = np.float32(1e-32)  # less would make a factor infinite
        for k in range(g * GROUP, (g + 1) * GROUP):
            highest = larger(highest, abs(x[k]))
        scales[g, r] = highest / np.float32(127 * 128)
    for g in range(len(scales)):
        factor, total, high, low = np.float32(1) / scales[g, r], np.float32(0), whole[g, r, 0], whole[g, r, 1]
        for k in range(GROUP):
            n = np.floor(x[g * GROUP + k] * factor + np.float32(0.5))
            high[k] = np.int8(np.floor(n * np.float32(1 / 128) + np.float32(0.5)))
        for k in range(GROUP):  # a loop that writes to two places would be slower
            n = np.floor(x[g * GROUP + k] * factor + np.float32(0.5))
            low[k], total = np.int8(n - np.float32(128) * np.float32(high[k])), total + n
        starts[g, r] = np.int32(-offset * total)


@compiled(parallel=True)
def _whole_numbers(x, offset, whole, scales, starts):  # [n, n_in] -> [n_groups, n, 2, 64], twice [n_groups, n]
    """x is nearly (128 * whole[:, :, 0] + whole[:, :, 1]) * scales. starts takes off what the weights' offset adds."""
    if x.size <= FEW:
        for r in range(len(x)):
            whole_row(x[r], r, offset, whole, scales, starts)
    else:
        for r in prange(len(x)):
            whole_row(x[r], r, offset, whole, scales, starts)


@compiled(inline="always")
def add(sums, r, high, low, scale, w_scales):
    o = r % ROWS * 64
    store(fma(load64(sums, o), as_floats(high, low), times(scale, w_scales)), sums, o)


@compiled(inline="always")
def tile(count, x, j, scales, starts, r, w, i, n_bytes, w_scales, sums):
    """Adds the products of 64 inputs with the weights of 64 outputs to the sums of count rows, 1 or 2.

    None leaves int32: of high bytes it is at most 64 * 255 * 127, and 128 times as much of both."""
    a, b, c, d = all_lanes(0), all_lanes(starts[r]), all_lanes(0), all_lanes(starts[r + count - 1])
    for k in range(i, i + n_bytes, 256):
        prefetch(w, k + AHEAD)
        a, b = add_products(a, w, k, x, j), add_products(b, w, k, x, j + GROUP)
        if count == 2:  # the weights are read once for both
            c, d = add_products(c, w, k, x, j + 2 * GROUP), add_products(d, w, k, x, j + 3 * GROUP)
        j += GROUP * 256 // n_bytes
    add(sums, r, a, b, scales[r], w_scales)
    if count == 2:
        add(sums, r + 1, c, d, scales[r + 1], w_scales)


@compiled(parallel=True)
def _product(x, scales, starts, w, w_scales, out):  # [n_groups, n, 2, 64] ... -> [n, n_out]
    (n_groups, n), n_bytes, n_scales = scales.shape, w.shape[2], w_scales.shape[1]
    flat_x, flat_w, flat_scales = x.reshape(-1), w.reshape(-1), w_scales.reshape(-1)
    for block in prange(len(w)):
        sums = np.empty(min(n, ROWS) * 64, np.float32)
        for first in range(0, n, ROWS):
            last, sums[:] = min(first + ROWS, n), 0
            for g in range(n_groups):
                s, i = load64(flat_scales, (block * n_scales + g % n_scales) * 64), (block * n_groups + g) * n_bytes
                for r in range(first, last - 1, 2):
                    tile(2, flat_x, (g * n + r) * 2 * GROUP, scales[g], starts[g], r, flat_w, i, n_bytes, s, sums)
                if (last - first) % 2:
                    r = last - 1
                    tile(1, flat_x, (g * n + r) * 2 * GROUP, scales[g], starts[g], r, flat_w, i, n_bytes, s, sums)
            for r in range(first, last):
                out[r, block * 64 : block * 64 + 64] = sums[(r - first) * 64 : (r - first) * 64 + 64]


class Quantized:
    """A matrix [n_in, n_out] of weights of 8 or 4 bits.

    words [n_blocks, n_groups, n_bytes]: for each 64 outputs and 64 inputs the bytes that lanes.add_products reads.
    scales [n_blocks, n_groups or 1, 64] float32: a weight is its whole number times its scale.
    """

    __array_ufunc__ = None  # so that NumPy leaves x @ w to __rmatmul__

    def __init__(self, words, scales, shape):
        self.words, self.scales, self.shape = words, scales, tuple(shape)
        self.bits = 8 if words.dtype == np.int8 else 4

    def __rmatmul__(self, x):  # [..., n_in] -> [..., n_out] float32
        rows = np.ascontiguousarray(x, np.float32).reshape(-1, x.shape[-1])
        rows = np.pad(rows, ((0, 0), (0, -x.shape[-1] % GROUP))) if x.shape[-1] % GROUP else rows
        n_blocks, n_groups, _ = self.words.shape
        whole = np.empty((n_groups, len(rows), 2, GROUP), np.int8)
        scales, starts = (np.empty((n_groups, len(rows)), kind) for kind in (np.float32, np.int32))
        _whole_numbers(rows, 2 ** (self.bits - 1), whole, scales, starts)
        out = np.empty((len(rows), 64 * n_blocks), np.float32)
        _product(whole, scales, starts, self.words, self.scales, out)
        return out[:, : self.shape[1]].reshape(*x.shape[:-1], -1)

    @property
    def T(self):
        return Transposed(self)

    def columns(self, ids):  # whole numbers below n_out -> [..., n_in] float32
        ids, (n_blocks, n_groups, _) = np.asarray(ids), self.words.shape
        words = self.words.reshape(n_blocks, n_groups, -1, 64, 4)[ids // 64, :, :, ids % 64]
        if self.bits == 4:
            words = np.stack([words & 15, words >> 4], axis=-2).astype(np.int8) - np.int8(8)
        whole = words.reshape(*ids.shape, n_groups, GROUP) * self.scales[ids // 64, :, ids % 64][..., None]
        return whole.reshape(*ids.shape, -1)[..., : self.shape[0]]


class Transposed:
    """wte: a Quantized with a column for each token, seen as a row for each."""

    def __init__(self, T):
        self.T, self.shape = T, T.shape[::-1]

    def take(self, ids, axis=0, **_):  # np.take(wte, ids, axis=0) comes here
        return self.T.columns(ids)


def quantize(w, bits):  # [n_in, n_out] float32 -> Quantized
    n_in, n_out = w.shape
    w = np.pad(w, ((0, -n_in % GROUP), (0, -n_out % 64)))
    group = GROUP if bits == 4 else len(w)
    w = w.reshape(len(w) // group, group, -1)
    scales = np.abs(w).max(axis=1) / np.float32(2 ** (bits - 1) - 1)  # [n_groups or 1, n_out]
    whole = np.rint(w / np.where(scales, scales, 1)[:, None]).astype(np.int8)
    # [n_groups, n_steps, low and high bits, 4, n_blocks, 64] -> a block, a group, a step, an output, 4 bytes
    parts = whole.reshape(-1, GROUP * bits // 32, 8 // bits, 4, w.shape[-1] // 64, 64).transpose(2, 4, 0, 1, 5, 3)
    words = parts[0] if bits == 8 else (parts[0] + 8 | parts[1] + 8 << 4).view(np.uint8)
    words = np.ascontiguousarray(words).reshape(*words.shape[:2], -1)
    scales = np.ascontiguousarray(scales.reshape(len(scales), -1, 64).swapaxes(0, 1))
    return Quantized(words, scales, (n_in, n_out))


def convert(params, bits):
    """The same params, in which each matrix of weights but wpe is quantized."""

    def turn(value, name=""):
        if isinstance(value, dict):
            return {key: turn(value[key], key) for key in value}
        if isinstance(value, (list, tuple)):
            return [turn(one) for one in value]
        cli.check_numbers(value)  # rounded, what is not a number would become one
        return quantize(value.T, bits).T if name == "wte" else quantize(value, bits) if name == "w" else value

    return turn(params)


# --- the file ---


def flat(params, path=""):
    """Yields (name, array) of quantized params; blocks/3/attn/c_attn/w has two arrays, /words and /scales."""
    if isinstance(params, (dict, list)):
        for key, value in params.items() if isinstance(params, dict) else enumerate(params):
            yield from flat(value, f"{path}/{key}" if path else str(key))
    elif isinstance(params, np.ndarray):
        yield path, params
    else:
        matrix = params.T if isinstance(params, Transposed) else params
        yield from ((f"{path}/words", matrix.words), (f"{path}/scales", matrix.scales))


def pieces(path, begin=0):
    """A digest of the file's size and of 64 pieces of 4 kB all over it, the first at begin: cheap for any size."""
    size = os.path.getsize(path)
    found = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for i in range(64):
            file.seek(begin + (size - begin) * i // 64)
            found.update(file.read(4096))
        file.seek(max(begin, size - 4096))
        found.update(file.read())
    return found.hexdigest()


def identity(model_dir):
    """What tells a checkpoint from another. The index, which has a checksum of each tensor, is taken as a whole."""
    found = hashlib.sha256(pieces(os.path.join(model_dir, utils.DATA)).encode())
    for name in "hparams.json", "model.ckpt.index":
        with open(os.path.join(model_dir, name), "rb") as file:
            found.update(file.read())
    return found.hexdigest()


def write(params, bits, checkpoint, path):
    """Writes quantized params: a header of HEADER bytes, JSON, then the arrays, each from a multiple of 64 bytes on."""
    arrays, end = [], HEADER
    for name, array in flat(params):
        arrays.append([name, str(array.dtype), array.shape, end])
        end += -(-array.nbytes // 64) * 64

    def fill(part):
        with open(part, "wb") as file:
            for (_, array), (*_, begin) in zip(flat(params), arrays):
                file.seek(begin)
                file.write(np.ascontiguousarray(array))
            file.truncate(end)
            file.flush()
            header = {"format": FORMAT, "bits": bits, "checkpoint": checkpoint, "pieces": pieces(part, HEADER)}
            file.seek(0)
            file.write(json.dumps({**header, "arrays": arrays}).encode().ljust(HEADER))

    writing.write_whole(path, fill)


def read(path, bits, checkpoint, hparams):
    """The params in a file of write's, mapped, or None if they are another checkpoint's. ValueError: no such file."""
    way_out = "remove it, or name another file with weights"
    with open(path, "rb") as file:
        try:
            header = json.loads(file.read(HEADER))
            arrays = {name: (np.dtype(kind), tuple(shape), begin) for name, kind, shape, begin in header["arrays"]}
            known = header["format"] == FORMAT and header["bits"] in WORDS and header["pieces"] and header["checkpoint"]
        except (ValueError, TypeError, KeyError):
            known = False
    if not known:
        raise ValueError(f"{path} is no quantized model of this version: {way_out}")
    if header["checkpoint"] != checkpoint or header["bits"] != bits:
        return None
    if header["pieces"] != pieces(path, HEADER):
        raise ValueError(f"{path} is damaged, its numbers are not those that were written: {way_out}")
    data = np.memmap(path, np.uint8, "r")

    def take(name):
        kind, shape, begin = arrays[name]
        return np.asarray(data[begin : begin + kind.itemsize * math.prod(shape)]).view(kind).reshape(shape)

    def matrix(name, n_in, n_out):
        return Quantized(take(f"{name}/words"), take(f"{name}/scales"), (n_in, n_out))

    def layer(name, n_in, n_out):
        return {"w": matrix(f"{name}/w", n_in, n_out), "b": take(f"{name}/b")}

    def norm(name):
        return {"g": take(f"{name}/g"), "b": take(f"{name}/b")}

    n = hparams["n_embd"]
    return {
        "wte": matrix("wte", n, hparams["n_vocab"]).T,
        "wpe": take("wpe"),
        "ln_f": norm("ln_f"),
        "blocks": [
            {
                "ln_1": norm(f"blocks/{i}/ln_1"),
                "ln_2": norm(f"blocks/{i}/ln_2"),
                "attn": {
                    "c_attn": layer(f"blocks/{i}/attn/c_attn", n, 3 * n),
                    "c_proj": layer(f"blocks/{i}/attn/c_proj", n, n),
                },
                "mlp": {
                    "c_fc": layer(f"blocks/{i}/mlp/c_fc", n, 4 * n),
                    "c_proj": layer(f"blocks/{i}/mlp/c_proj", 4 * n, n),
                },
            }
            for i in range(hparams["n_layer"])
        ],
    }


def load(model_size, models_dir, bits=8, weights=None):
    """(encoder, hparams, params) as utils gives them, the params quantized; what is not there yet is written.

    weights: a file; by default model.int8 or model.int4 in the model's folder. Raises ValueError or OSError.
    """
    if not isinstance(bits, int) or bits not in WORDS:
        raise ValueError(f"bits={bits!r} must be 8 or 4")
    encoder, hparams, params = utils.load_encoder_hparams_and_params(model_size, models_dir)
    model_dir = utils.folder_of(model_size, models_dir)
    path = os.path.join(model_dir, f"model.int{bits}") if weights is None else str(weights)
    checkpoint = identity(model_dir)
    found = read(path, bits, checkpoint, hparams) if os.path.exists(path) else None
    if found is None:
        try:
            with utils.locked(os.path.dirname(os.path.abspath(path))):  # another start may be writing it
                if not os.path.exists(path) or read(path, bits, checkpoint, hparams) is None:
                    write(convert(params, bits), bits, checkpoint, path)
        except OSError as error:
            raise OSError(f"cannot write {path}: {error.strerror or error}; name another file with weights") from None
        found = read(path, bits, checkpoint, hparams)
    return encoder, hparams, found


if __name__ == "__main__":
    cli.run(preset("complete", bits=8))
