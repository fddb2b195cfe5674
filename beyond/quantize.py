"""Quantization: 8-bit or 4-bit weights. Decoding is limited by memory bandwidth, so smaller weights make it faster.

    python -m beyond.quantize "ROMEO:" --model_size shakespeare --bits 8

With 8 bits, a weight is an integer from -127 to 127 times a scale, one per output. With 4 bits, the integer is from -7
to 7, and each output has a scale for every 64 inputs. Rounding changes a weight by at most half a scale. The weight
matrix becomes an object that knows how to multiply: x @ w in gpt2.linear calls its __rmatmul__, so gpt2.py, and every
chapter built on it, runs unchanged with quantized params. The integer product itself is in fast/products.py.

The first run writes the quantized model beside the checkpoint (model.int8 or model.int4) or to --weights; later runs
map that file into memory and read only samples of the checkpoint, to notice if it has been replaced.

The shakespeare model's held-out loss is 3.1399 nats per token in float32, 3.1392 with 8 bits and 3.1718 with 4. After
988 and 839 of 1,000 pieces of held_out.txt, of 40 tokens each, the most probable token is the same as in float32.

With random weights in the shape of 1558M, on two cores: the file is 6.23 (float32), 1.57 and 0.89 GB; the command takes
up to 6.1, 1.7 and 1.05 GB of memory, and 8.7 GB when it writes the file; a token takes 159, 40 and 25 ms with
--kernels.
"""

import os

import numpy as np

from beyond import preset
from beyond.fast import quantized_file
from beyond.fast.products import GROUP, int_product
import cli
import utils


def quantize(w, bits):  # [n_in, n_out] float32 -> Quantized
    n_in, n_out = w.shape
    w = np.pad(w, ((0, -n_in % GROUP), (0, -n_out % 64)))
    group = GROUP if bits == 4 else len(w)
    w = w.reshape(len(w) // group, group, -1)
    scales = np.abs(w).max(axis=1) / np.float32(2 ** (bits - 1) - 1)  # [n_groups or 1, n_out]
    ints = np.rint(w / np.where(scales, scales, 1)[:, None]).astype(np.int8)
    # [n_groups, n_steps, low and high bits, 4, n_blocks, 64] -> low and high bits, [n_blocks, n_groups, n_steps, 64, 4]
    parts = ints.reshape(-1, GROUP * bits // 32, 8 // bits, 4, w.shape[-1] // 64, 64).transpose(2, 4, 0, 1, 5, 3)
    packed = parts[0] if bits == 8 else (parts[0] + 8 | parts[1] + 8 << 4).view(np.uint8)
    packed = np.ascontiguousarray(packed).reshape(*packed.shape[:2], -1)
    scales = np.ascontiguousarray(scales.reshape(len(scales), -1, 64).swapaxes(0, 1))
    return Quantized(packed, scales, (n_in, n_out))


def dequantize(matrix):  # Quantized -> [n_in, n_out] float32
    """The weights that the integers stand for: x @ matrix is x @ dequantize(matrix), except for the rounding of x."""
    return matrix.columns(np.arange(matrix.shape[1])).T


class Quantized:
    """A matrix [n_in, n_out] of 8-bit or 4-bit weights.

    packed [n_blocks, n_groups, n_bytes]: for each 64 outputs and 64 inputs, the bytes in lanes.add_products' order.
    scales [n_blocks, n_groups or 1, 64] float32: a weight is its integer times its scale.
    """

    __array_ufunc__ = None  # so that NumPy leaves x @ w to __rmatmul__

    def __init__(self, packed, scales, shape):
        self.packed, self.scales, self.shape = packed, scales, tuple(shape)
        self.bits = 8 if packed.dtype == np.int8 else 4

    def __rmatmul__(self, x):  # [..., n_in] -> [..., n_out] float32
        if x.shape[-1] != self.shape[0]:
            raise ValueError(f"an input of {x.shape[-1]} numbers does not fit a matrix of the shape {self.shape}")
        out = int_product(x.reshape(-1, x.shape[-1]), self.packed, self.scales, self.bits)
        return out[:, : self.shape[1]].reshape(*x.shape[:-1], -1)

    @property
    def T(self):
        return Transposed(self)

    def columns(self, ids):  # [...] int, outputs -> [..., n_in] float32
        n_blocks, n_groups, _ = self.packed.shape
        blocks, outputs = np.divmod(ids, 64)
        ints = self.packed.reshape(n_blocks, n_groups, -1, 64, 4)[blocks, :, :, outputs]  # [..., n_groups, n_steps, 4]
        if self.bits == 4:  # two integers per byte: 4 inputs in the low bits, the next 4 in the high bits
            ints = np.stack([ints & 15, ints >> 4], axis=-2).astype(np.int8) - np.int8(8)
        ints = ints.reshape(*blocks.shape, n_groups, GROUP)
        weights = ints * self.scales[blocks, :, outputs][..., None]
        return weights.reshape(*blocks.shape, -1)[..., : self.shape[0]]


class Transposed:
    """wte, which has a row per token: a view of a Quantized that has a column per token."""

    def __init__(self, T):
        self.T, self.shape = T, T.shape[::-1]

    def take(self, ids, axis=0, **_):  # np.take(wte, ids, axis=0) calls this
        return self.T.columns(ids)


def convert(params, bits):
    """The same params, but each weight matrix except wpe is quantized. Raises ValueError if one contains NaN."""
    found = {}
    for name, array in utils.named_arrays(params):
        cli.check_numbers(array)  # rounding would turn NaN into a number
        if name == "wte":
            array = quantize(array.T, bits).T
        elif name.endswith("/w"):
            array = quantize(array, bits)
        found[name] = array
    return utils.nested(found)


# --- the file ---


def layout_of(shapes, bits):
    """{name: (type, shape)} of the arrays in a file of quantized params; shapes: those of the float32 params."""
    layout = {}
    for name, shape in shapes.items():
        if name == "wte" or name.endswith("/w"):
            n_in, n_out = shape[::-1] if name == "wte" else shape
            n_blocks, n_groups = -(-n_out // 64), -(-n_in // GROUP)
            layout[f"{name}/packed"] = "I8" if bits == 8 else "U8", (n_blocks, n_groups, GROUP * 64 * bits // 8)
            layout[f"{name}/scales"] = "F32", (n_blocks, n_groups if bits == 4 else 1, 64)
        else:
            layout[name] = "F32", shape
    return layout


def arrays_of(params):
    """The arrays of quantized params, named as in layout_of."""
    arrays = {}
    for name, value in utils.named_arrays(params):
        matrix = value.T if name == "wte" else value
        if isinstance(matrix, Quantized):
            arrays |= {f"{name}/packed": matrix.packed, f"{name}/scales": matrix.scales}
        else:
            arrays[name] = value
    return arrays


def params_of(arrays, shapes):
    """The quantized params made of arrays like those from arrays_of."""
    found = {}
    for name, shape in shapes.items():
        if f"{name}/packed" in arrays:
            matrix = arrays[f"{name}/packed"], arrays[f"{name}/scales"]
            found[name] = Quantized(*matrix, shape[::-1]).T if name == "wte" else Quantized(*matrix, shape)
        else:
            found[name] = arrays[name]
    return utils.nested(found)


def load(model_size, models_dir, bits=8, weights=None):
    """(encoder, hparams, params) as utils returns them, with quantized params; writes their file if it is missing.

    weights: the file; by default model.int8 or model.int4 in the model's folder. Raises ValueError or OSError.
    """
    if not isinstance(bits, int) or bits not in (8, 4):
        raise ValueError(f"bits={bits!r} must be 8 or 4")
    encoder, hparams, params = utils.load_encoder_hparams_and_params(model_size, models_dir)
    model_dir = utils.folder_of(model_size, models_dir)
    path = os.path.join(model_dir, f"model.int{bits}") if weights is None else str(weights)
    shapes = utils.shapes_of(**{name: hparams[name] for name in utils.HPARAMS})
    layout, source = layout_of(shapes, bits), quantized_file.source_of(model_dir, hparams, bits)
    arrays = quantized_file.read(path, layout, source)
    if arrays is None:
        try:
            os.stat(os.path.dirname(os.path.abspath(path)))  # a missing folder is an error; the lock would create it
            with utils.locked(path):
                if quantized_file.read(path, layout, source) is None:  # another process may have written it meanwhile
                    quantized_file.write(path, arrays_of(convert(params, bits)), layout, source)
        except OSError as error:
            reason = error.strerror or error
            raise OSError(f"cannot write {path}: {reason}; name another file with --weights") from None
        arrays = quantized_file.read(path, layout, source)
    return encoder, hparams, params_of(arrays, shapes)


if __name__ == "__main__":
    cli.run(preset("complete", bits=8))
