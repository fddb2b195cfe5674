"""Fewer bytes a weight: a token cannot come sooner than all weights are read, so weights of one byte come sooner.

    python -m beyond.quantize "ROMEO:" --model_size shakespeare --bits 8

With 8 bits a weight is a whole number from -127 to 127 times a scale, one for each output; with 4 bits from -7 to 7,
and a scale for each 64 inputs of an output. Rounding is off by half a scale at most. The input of a product is made
whole numbers, too, up to 15 bits, a scale for each row, as it comes; then all is multiplied and added as whole numbers,
exactly, and scaled once. A weight matrix here is an object that knows how to multiply: x @ w in gpt2.linear calls its
__rmatmul__, so gpt2.py and all chapters that call it run with quantized params as they are.

The first start writes the quantized model, once, beside the checkpoint (model.int8 or model.int4) or where --weights
says; from then on it is mapped, and of the checkpoint only samples are read. It knows the checkpoint it came from:
another one under the same name is noticed.

What it costs the shakespeare model: its held-out loss is 3.2214 nats a token in float32, 3.2207 with 8 bits and 3.2315
with 4. Of the tokens that follow 1,000 pieces of held_out.txt, 40 tokens each, 989 and 855 are those of float32.
"""

import hashlib
import json
import math
import os

import numpy as np

from beyond import files
from beyond.lanes import FEW, add_products, as_floats, compiled, fma, load16, no_floats, no_ints, prange, store16
import utils

FORMAT = "PicoGPT quantized 1"
HEADER = 2**18  # bytes, more than any model's
GROUP = {8: None, 4: 64}  # inputs that share a scale; None: all of an output
WORDS = {8: np.int8, 4: np.uint8}  # what a weight's bits are kept in
FAST = {"contract", "reassoc", "nsz"}


# --- the product ---


@compiled(fastmath=FAST)
def whole_row(x, limit, out):  # [n_in] -> [at least n_in] int16, and the scale: x is nearly out * scale
    highest = np.float32(0)
    for j in range(len(x)):
        highest = max(highest, abs(x[j]))
    factor = limit / highest if highest > 0 else np.float32(0)
    for j in range(len(x)):
        out[j] = np.int16(np.floor(x[j] * factor + np.float32(0.5)))
    return highest / limit


@compiled(parallel=True, fastmath=FAST)
def _whole_numbers(x, limit, out, scales):  # [n, n_in] -> [n, at least n_in], [n]
    if x.size <= FEW:
        for i in range(len(x)):
            scales[i] = whole_row(x[i], limit, out[i])
    else:
        for i in prange(len(x)):
            scales[i] = whole_row(x[i], limit, out[i])


@compiled(inline="always")
def tile(x, scales, w, w_scales, group, out, r, dr, n, dn):
    """Four products of a row of x and a block of w, 16 outputs each, the rows dr and the blocks dn apart."""
    n_in, n_bytes, n_groups, step = x.shape[1], w.shape[1], w_scales.shape[1], x.shape[1] * 64 // w.shape[1]
    flat_x, flat_w, flat_scales, flat = x.reshape(-1), w.reshape(-1), w_scales.reshape(-1), out.reshape(-1)
    i, j, di, dj, s, ds = n * n_bytes, r * n_in, dn * n_bytes, dr * n_in, n * n_groups * 16, dn * n_groups * 16
    e, f, g, h = no_floats(), no_floats(), no_floats(), no_floats()
    for k in range(0, n_in, group):
        a, b, c, d = no_ints(), no_ints(), no_ints(), no_ints()
        for _ in range(k, min(k + group, n_in), step):
            a, b = add_products(a, flat_w, i, flat_x, j), add_products(b, flat_w, i + di, flat_x, j + dj)
            c = add_products(c, flat_w, i + 2 * di, flat_x, j + 2 * dj)
            d = add_products(d, flat_w, i + 3 * di, flat_x, j + 3 * dj)
            i, j = i + 64, j + step
        e, f = fma(e, as_floats(a), load16(flat_scales, s)), fma(f, as_floats(b), load16(flat_scales, s + ds))
        g = fma(g, as_floats(c), load16(flat_scales, s + 2 * ds))
        h = fma(h, as_floats(d), load16(flat_scales, s + 3 * ds))
        s += 16
    o, do = r * out.shape[1] + 16 * n, dr * out.shape[1] + 16 * dn
    store16(fma(no_floats(), scales[r], e), flat, o), store16(fma(no_floats(), scales[r + dr], f), flat, o + do)
    store16(fma(no_floats(), scales[r + 2 * dr], g), flat, o + 2 * do)
    store16(fma(no_floats(), scales[r + 3 * dr], h), flat, o + 3 * do)


@compiled(parallel=True)
def _product(x, scales, w, w_scales, group, out):  # [n, n_in], [n], [n_blocks, ...], [n_blocks, n_groups, 16]
    for part in prange(len(w) // 4):
        for first in range(0, len(x), 64):
            last = min(first + 64, len(x))
            fours = last - (last - first) % 4
            for n in range(4 * part, 4 * part + 4):
                for r in range(first, fours, 4):  # the weights are taken apart once for four rows
                    tile(x, scales, w, w_scales, group, out, r, 1, n, 0)
            for r in range(fours, last):
                tile(x, scales, w, w_scales, group, out, r, 0, 4 * part, 1)


class Quantized:
    """A matrix [n_in, n_out] of weights of 8 or 4 bits.

    words [n_blocks, n_bytes]: blocks of 16 outputs, n_blocks a multiple of 4. In a block, 64 bytes hold, for each
    output, two 16-bit words with the weights of the next 4 or 8 inputs (see lanes.add_products).
    scales [n_blocks, n_groups, 16] float32: a weight is its whole number times its scale.
    """

    __array_ufunc__ = None  # so that NumPy leaves x @ w to __rmatmul__

    def __init__(self, words, scales, shape):
        self.words, self.scales, self.shape = words, scales, tuple(shape)
        self.bits = 8 if words.dtype == np.int8 else 4
        self.n_in = words.shape[1] // 2 // self.bits  # filled up with zeros to whole words

    def __rmatmul__(self, x):  # [..., n_in] -> [..., n_out] float32
        rows = np.ascontiguousarray(x, np.float32).reshape(-1, x.shape[-1])
        group, most = GROUP[self.bits] or self.n_in, 2 ** (self.bits - 1) - 1
        limit = np.float32(min(32767, (2**31 - 1) // (most * group)))  # so that no sum leaves int32
        whole, scales = np.zeros((len(rows), self.n_in), np.int16), np.empty(len(rows), np.float32)
        out = np.empty((len(rows), 16 * len(self.words)), np.float32)
        _whole_numbers(rows, limit, whole, scales)
        _product(whole, scales, self.words, self.scales, group, out)
        return out[:, : self.shape[1]].reshape(*x.shape[:-1], -1)

    @property
    def T(self):
        return Transposed(self)

    def columns(self, ids):  # whole numbers below n_out -> [..., n_in] float32
        ids, part = np.asarray(ids), 16 // self.bits
        words = np.asarray(self.words).view(np.uint16).reshape(len(self.words), -1, 16, 2)[ids // 16, :, ids % 16]
        left = words[..., None] << (16 - self.bits * np.arange(1, part + 1)).astype(np.uint16)
        found = left.view(np.int16) >> (16 - self.bits)  # [..., n_steps, 2, part]
        found = found.swapaxes(-1, -2).reshape(*ids.shape, -1)
        scales = self.scales[ids // 16, :, ids % 16].repeat(GROUP[self.bits] or self.n_in, axis=-1)
        return (found * scales[..., : self.n_in])[..., : self.shape[0]]


class Transposed:
    """wte: a Quantized with a column for each token, seen as a row for each."""

    def __init__(self, T):
        self.T, self.shape = T, T.shape[::-1]

    def take(self, ids, axis=0, **_):  # np.take(wte, ids, axis=0) comes here
        return self.T.columns(ids)


def quantize(w, bits):  # [n_in, n_out] float32 -> Quantized
    n_in, n_out = w.shape
    w = np.pad(w, ((0, -n_in % (32 // bits)), (0, -n_out % 64)))
    group, most, part = GROUP[bits] or len(w), 2 ** (bits - 1) - 1, 16 // bits
    scales = np.stack([np.abs(w[i : i + group]).max(axis=0) / np.float32(most) for i in range(0, len(w), group)])
    whole = np.rint(w / np.where(scales, scales, 1).repeat(group, axis=0)[: len(w)]).astype(np.int16)
    whole = whole.reshape(-1, part, 2, w.shape[1] // 16, 16).transpose(3, 0, 4, 2, 1)  # block, step, output, word, part
    words = np.zeros(whole.shape[:-1], np.uint16)
    for i in range(part):
        words |= (whole[..., i].astype(np.uint16) & (2**bits - 1)) << (bits * i)
    scales = np.ascontiguousarray(scales.reshape(len(scales), -1, 16).swapaxes(0, 1))
    return Quantized(words.reshape(len(words), -1).view(WORDS[bits]), scales, (n_in, n_out))


def convert(params, bits):
    """The same params, in which each matrix of weights but wpe is quantized."""

    def turn(value, name=""):
        if isinstance(value, dict):
            return {key: turn(value[key], key) for key in value}
        if isinstance(value, (list, tuple)):
            return [turn(one) for one in value]
        utils.check_numbers(value)  # rounded, what is not a number would become one
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

    files.write_whole(path, fill)


def read(path, bits, checkpoint, hparams):
    """The params in a file of write's, mapped, or None if they are another checkpoint's. ValueError: no such file."""
    way_out = "remove it, or name another file with weights"
    with open(path, "rb") as file:
        try:
            header = json.loads(file.read(HEADER))
            arrays = {name: (np.dtype(kind), tuple(shape), begin) for name, kind, shape, begin in header["arrays"]}
            known = header["format"] == FORMAT and header["bits"] in GROUP and header["pieces"] and header["checkpoint"]
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
    if not isinstance(bits, int) or bits not in GROUP:
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
    from beyond import combine

    combine.run(bits=8)
