"""Sixteen numbers at once: the few vector operations that kernels.py and quantize.py are made of, for Numba.

A core adds or multiplies 4 to 16 float32 in one instruction. A compiler finds such instructions for simple loops by
itself (kernels.gelu), but not for a matrix product, whose speed comes from keeping 16 sums in registers while each
number that was loaded is used several times. So here a value may be 16 sums, Lanes, and an @intrinsic is an operation
on them, in LLVM's language for all processors: where a register holds fewer, LLVM takes several.
"""

import functools
import os

# A thread that waits for work must not take the core from NumPy's own threads. Both are read when Numba's pool starts;
# GNU's looks around for some microseconds before it sleeps, as waking a thread takes longer than a small product.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

from llvmlite import ir
import numba
from numba import prange
from numba.core import cgutils, types
from numba.core.imputils import impl_ret_borrowed
from numba.extending import intrinsic, models, register_model
from numba.np import arrayobj

FEW = 2**14  # numbers: waking another thread takes longer (3 us, and 100 if its core is busy) than working on so few


def compiled(function=None, **options):
    """numba.njit that keeps its machine code for the next start, wherever Numba finds a folder to write to."""
    if function is None:
        return functools.partial(compiled, **options)
    try:
        return numba.njit(function, cache=True, **options)
    except RuntimeError:  # no such folder: compiled anew at each start
        return numba.njit(function, **options)


I16, I32, F32 = ir.IntType(16), ir.IntType(32), ir.FloatType()
WORDS, WIDE, INTS, FLOATS = (ir.VectorType(of, n) for of, n in ((I16, 32), (I32, 32), (I32, 16), (F32, 16)))


class Lanes(types.Type):
    """Numba's type of 16 numbers; of is LLVM's."""

    def __init__(self, name, of):
        self.of = of
        super().__init__(name)


@register_model(Lanes)
class LanesModel(models.PrimitiveModel):
    def __init__(self, manager, lanes):
        super().__init__(manager, lanes, lanes.of)


INT_LANES, FLOAT_LANES = Lanes("16 x int32", INTS), Lanes("16 x float32", FLOATS)


def address(context, builder, array, value, i, of):
    """Where the flat array's item i is, as a pointer to an LLVM type."""
    data = arrayobj.make_array(array)(context, builder, value).data
    return builder.bitcast(builder.gep(data, [i]), of.as_pointer())


def spread(builder, value, of):
    """The same value in all lanes."""
    one = builder.insert_element(ir.Constant(of, ir.Undefined), value, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, one, ir.Constant(INTS, None))


def add_product(builder, total, a, b):
    return builder.fadd(total, builder.fmul(a, b, flags=["contract"]), flags=["contract"])  # rounded once, if it can be


@intrinsic
def packed(typing, array):  # the same array, whose items lie side by side without Numba having seen it
    def generate(context, builder, signature, args):
        return impl_ret_borrowed(context, builder, signature.return_type, args[0])

    return types.Array(array.dtype, array.ndim, "C")(array), generate


@intrinsic
def no_ints(typing):
    return INT_LANES(), lambda context, builder, signature, args: ir.Constant(INTS, None)


@intrinsic
def no_floats(typing):
    return FLOAT_LANES(), lambda context, builder, signature, args: ir.Constant(FLOATS, None)


@intrinsic
def load16(typing, array, i):  # array[i:i + 16]
    def generate(context, builder, signature, args):
        return builder.load(address(context, builder, array, *args, FLOATS), align=4)

    return FLOAT_LANES(array, types.intp), generate


@intrinsic
def store16(typing, lanes, array, i):  # array[i:i + 16] = lanes
    def generate(context, builder, signature, args):
        builder.store(args[0], address(context, builder, array, *args[1:], FLOATS), align=4)
        return context.get_dummy_value()

    return types.void(FLOAT_LANES, array, types.intp), generate


@intrinsic
def fma(typing, total, x, lanes):  # total + x * lanes, x one number or as many
    def generate(context, builder, signature, args):
        x_lanes = args[1] if x == FLOAT_LANES else spread(builder, args[1], FLOATS)
        return add_product(builder, args[0], x_lanes, args[2])

    return FLOAT_LANES(FLOAT_LANES, x if x == FLOAT_LANES else types.float32, FLOAT_LANES), generate


@intrinsic
def summed(typing, lanes):  # -> float32
    def generate(context, builder, signature, args):
        kind = ir.FunctionType(F32, [F32, FLOATS])
        add = cgutils.get_or_insert_function(builder.module, kind, "llvm.vector.reduce.fadd.v16f32")
        return builder.call(add, [ir.Constant(F32, 0.0), args[0]], fastmath=["reassoc"])

    return types.float32(FLOAT_LANES), generate


@intrinsic
def as_floats(typing, lanes):
    return FLOAT_LANES(INT_LANES), lambda context, builder, signature, args: builder.sitofp(args[0], FLOATS)


@intrinsic
def power_of_two(typing, n):  # 2 ** n of a whole number from -126 to 127, by writing n into a float's exponent
    def generate(context, builder, signature, args):
        exponent = builder.add(builder.fptosi(args[0], I32), ir.Constant(I32, 127))
        return builder.bitcast(builder.shl(exponent, ir.Constant(I32, 23)), F32)

    return types.float32(types.float32), generate


@intrinsic
def add_products(typing, total, w, i, x, j):  # 16 sums + the products of 64 bytes of w with x[j], x[j + 1], ...
    """The 64 bytes are two 16-bit words for each lane; a word holds two weights of 8 bits (w is int8) or four of 4
    bits (w is uint8), the first in its low bits. Shifting left and back right keeps one of them, with its sign."""
    bits = 8 if w.dtype == types.int8 else 4

    def generate(context, builder, signature, args):
        total, words = args[0], builder.load(address(context, builder, w, *args[1:3], WORDS), align=1)
        pairs = address(context, builder, x, *args[3:], I32)
        for part in range(16 // bits):
            left = builder.shl(words, ir.Constant(WORDS, [16 - bits * (part + 1)] * 32))
            weights = builder.ashr(left, ir.Constant(WORDS, [16 - bits] * 32))
            pair = builder.load(builder.gep(pairs, [ir.Constant(I32, part)]), align=2)  # two of x, for all lanes
            inputs = builder.bitcast(spread(builder, pair, INTS), WORDS)
            products = builder.mul(builder.sext(weights, WIDE), builder.sext(inputs, WIDE))
            # the sum of each two neighbours: with it, this is one instruction, vpmaddwd or vpdpwssd on x86
            even, odd = (
                builder.shuffle_vector(products, products, ir.Constant(INTS, [*range(first, 32, 2)]))
                for first in (0, 1)
            )
            total = builder.add(total, builder.add(even, odd))
        return total

    return INT_LANES(INT_LANES, w, types.intp, x, types.intp), generate
