"""SIMD for Numba: the vector operations that the compiled products and attention are made of.

One instruction of a core adds or multiplies 4 to 16 float32. Compilers vectorize simple loops (kernels.gelu_row) on
their own, but not a matrix product, whose speed comes from keeping many sums in registers and using each number several
times once it is loaded. So a value here may be a vector of 16 or 64 numbers, of type Lanes, and each @intrinsic is one
operation on such vectors. It emits LLVM's intermediate representation, which is the same for all processors: where
registers are smaller, LLVM uses several of them.
"""

import functools
import os
import pathlib

# A thread that waits for work must not take the core from NumPy's threads. Numba's pool reads both variables when
# it starts; GNU's spins for a few microseconds before it sleeps, as waking a thread takes longer than a small product.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

from llvmlite import ir
import numba
from numba import prange
from numba.core import cgutils, types
from numba.core.imputils import impl_ret_borrowed
from numba.extending import intrinsic, models, register_model
from numba.np import arrayobj

FAST = {"contract", "reassoc", "nsz"}  # sums in any order; multiply-add rounded once (FMA)
FILES = sorted(pathlib.Path(__file__).parent.glob("*.py"))  # their functions are inlined into their callers
FEW = 2**14  # numbers: processing this few takes less time than waking a thread (3 us, and 100 if its core is busy)


def compiled(function=None, **options):
    """numba.njit that caches its machine code for the next run, if Numba finds a folder that it can write to.

    Division by zero gives inf, as in NumPy. Python's exception would need a branch, which keeps LLVM from vectorizing.
    """
    if function is None:
        return functools.partial(compiled, **options)
    options = {"error_model": "numpy", **options}
    try:
        made = numba.njit(function, cache=True, **options)
    except RuntimeError:  # no such folder: compiled again in each run
        return numba.njit(function, **options)
    cache = made._cache._cache_file  # tracks changes to the function's own file; the files here matter as well
    cache._source_stamp = cache._source_stamp, [(one.stat().st_mtime_ns, one.stat().st_size) for one in FILES]
    return made


I16, I32, F32 = ir.IntType(16), ir.IntType(32), ir.FloatType()
SHORTS, WIDE, INTS = (ir.VectorType(of, n) for of, n in ((I16, 32), (I32, 32), (I32, 16)))


class Lanes(types.Type):
    """Numba's type for a vector of n numbers of the LLVM type `of`."""

    def __init__(self, n, of):
        self.of = ir.VectorType(of, n)
        super().__init__(f"{n} x {of}")


@register_model(Lanes)
class LanesModel(models.PrimitiveModel):
    def __init__(self, manager, lanes):
        super().__init__(manager, lanes, lanes.of)


SIXTEEN, MANY, MANY_INTS = Lanes(16, F32), Lanes(64, F32), Lanes(64, I32)


def address(context, builder, array, value, i, of):
    """A pointer to item i of a flat array, cast to point to the LLVM type `of`."""
    data = arrayobj.make_array(array)(context, builder, value).data
    return builder.bitcast(builder.gep(data, [i]), of.as_pointer())


def spread(builder, value, of):
    """The same value in all lanes (a broadcast)."""
    one = builder.insert_element(ir.Constant(of, ir.Undefined), value, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(I32, of.count), None))


def add_product(builder, total, a, b):
    return builder.fadd(total, builder.fmul(a, b, flags=["contract"]), flags=["contract"])  # one FMA if the CPU has it


@intrinsic
def packed(typing, array):  # the same array, declared contiguous where Numba cannot know that it is
    def generate(context, builder, signature, args):
        return impl_ret_borrowed(context, builder, signature.return_type, args[0])

    return types.Array(array.dtype, array.ndim, "C")(array), generate


@intrinsic
def zeros16(typing):
    return SIXTEEN(), lambda context, builder, signature, args: ir.Constant(SIXTEEN.of, None)


def loading(lanes):
    @intrinsic
    def load(typing, array, i):  # array[i:i + n]
        def generate(context, builder, signature, args):
            return builder.load(address(context, builder, array, *args, lanes.of), align=4)

        return lanes(array, types.intp), generate

    return load


load16, load64 = loading(SIXTEEN), loading(MANY)


@intrinsic
def store(typing, lanes, array, i):  # array[i:i + n] = lanes
    def generate(context, builder, signature, args):
        builder.store(args[0], address(context, builder, array, *args[1:], lanes.of), align=4)
        return context.get_dummy_value()

    return types.void(lanes, array, types.intp), generate


@intrinsic
def fma(typing, total, x, lanes):  # total + x * lanes; x is a scalar or a vector
    def generate(context, builder, signature, args):
        x_lanes = args[1] if x == lanes else spread(builder, args[1], lanes.of)
        return add_product(builder, args[0], x_lanes, args[2])

    return lanes(lanes, x if x == lanes else types.float32, lanes), generate


@intrinsic
def times(typing, x, lanes):  # x * lanes; x is a scalar
    def generate(context, builder, signature, args):
        return builder.fmul(spread(builder, args[0], lanes.of), args[1])

    return lanes(types.float32, lanes), generate


@intrinsic
def summed(typing, lanes):  # -> float32
    def generate(context, builder, signature, args):
        kind = ir.FunctionType(F32, [F32, lanes.of])
        add = cgutils.get_or_insert_function(builder.module, kind, "llvm.vector.reduce.fadd.v16f32")
        return builder.call(add, [ir.Constant(F32, 0.0), args[0]], fastmath=["reassoc"])

    return types.float32(lanes), generate


@intrinsic
def as_floats(typing, high, low):  # 128 * high + low
    def generate(context, builder, signature, args):
        high = builder.shl(args[0], ir.Constant(MANY_INTS.of, [7] * 64))
        return builder.sitofp(builder.add(high, args[1]), MANY.of)

    return MANY(MANY_INTS, MANY_INTS), generate


@intrinsic
def all_lanes(typing, x):  # int32 -> 64 copies of it
    def generate(context, builder, signature, args):
        return spread(builder, args[0], MANY_INTS.of)

    return MANY_INTS(types.int32), generate


@intrinsic
def larger(typing, x, y):  # the larger float32; Python's max branches, which would keep LLVM from vectorizing the loop
    def generate(context, builder, signature, args):
        call = cgutils.get_or_insert_function(builder.module, ir.FunctionType(F32, [F32, F32]), "llvm.maxnum.f32")
        return builder.call(call, args, fastmath=["nnan", "nsz"])

    return types.float32(types.float32, types.float32), generate


@intrinsic
def power_of_two(typing, n):  # 2 ** n for an integer n from -126 to 127: n becomes the exponent of a float32
    def generate(context, builder, signature, args):
        exponent = builder.add(builder.fptosi(args[0], I32), ir.Constant(I32, 127))
        return builder.bitcast(builder.shl(exponent, ir.Constant(I32, 23)), F32)

    return types.float32(types.float32), generate


def add_bytes(context, builder, total, w, x):  # [16] int32 each -> total + the products of 4 uint8 of w, 4 int8 of x
    if "+avx512vnni" in context.codegen().magic_tuple()[2]:
        dot = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(INTS, [INTS] * 3), "llvm.x86.avx512.vpdpbusd.512"
        )
        return builder.call(dot, [total, w, x])  # one instruction
    w, x = builder.bitcast(w, SHORTS), builder.bitcast(x, SHORTS)

    def shifted(shift, shorts, n):
        return shift(shorts, ir.Constant(SHORTS, [n] * 32))

    for first in 0, 8:  # the even bytes, then the odd ones, as 16-bit integers
        a = shifted(builder.lshr, shifted(builder.shl, w, 8 - first), 8)
        b = shifted(builder.ashr, shifted(builder.shl, x, 8 - first), 8)
        products = builder.mul(builder.sext(a, WIDE), builder.sext(b, WIDE))
        # with the sum of neighbors, this is one instruction on most processors, vpmaddwd on x86
        even, odd = (builder.shuffle_vector(products, products, ir.Constant(INTS, [*range(i, 32, 2)])) for i in (0, 1))
        total = builder.add(total, builder.add(even, odd))
    return total


@intrinsic
def add_products(typing, totals, w, i, x, j):  # 64 sums + the products of 256 bytes of w with x[j], x[j + 1], ...
    """Each lane has 4 bytes of w: 8-bit weights (int8) for 4 inputs, or 4-bit weights (uint8) for 8 inputs, the first 4
    of them in the low bits. They are multiplied as unsigned integers: 8-bit weights have 128 added here, by flipping
    the sign bit; 4-bit weights had 8 added when they were packed."""
    bits = 8 if w.dtype == types.int8 else 4

    def generate(context, builder, signature, args):
        weights, inputs = (address(context, builder, *rest, INTS.element) for rest in ((w, *args[1:3]), (x, *args[3:])))
        parts = []
        for n in range(0, 64, 16):
            lanes = ir.Constant(INTS, [*range(n, n + 16)])
            total = builder.shuffle_vector(args[0], args[0], lanes)
            at = builder.gep(weights, [ir.Constant(I32, n)])
            loaded = builder.load(builder.bitcast(at, INTS.as_pointer()), align=1)
            for part in range(8 // bits):
                if bits == 8:
                    one = builder.xor(loaded, ir.Constant(INTS, [0x80808080] * 16))
                else:
                    one = builder.lshr(loaded, ir.Constant(INTS, [4 * part] * 16))
                    one = builder.and_(one, ir.Constant(INTS, [0x0F0F0F0F] * 16))
                four = builder.load(builder.gep(inputs, [ir.Constant(I32, part)]), align=1)
                total = add_bytes(context, builder, total, one, spread(builder, four, INTS))
            parts.append(total)
        while len(parts) > 1:
            n = 2 * parts[0].type.count
            lanes = ir.Constant(ir.VectorType(I32, n), [*range(n)])
            parts = [builder.shuffle_vector(a, b, lanes) for a, b in zip(parts[::2], parts[1::2])]
        return parts[0]

    return MANY_INTS(totals, w, types.intp, x, types.intp), generate


@intrinsic
def prefetch(typing, array, i):  # begins to load the 256 bytes from array[i] on, even beyond the array's end
    def generate(context, builder, signature, args):
        at = address(context, builder, array, *args, ir.IntType(8))
        kind = ir.FunctionType(ir.VoidType(), [at.type, I32, I32, I32])
        fetch = builder.module.declare_intrinsic("llvm.prefetch", [at.type], kind)
        for n in range(0, 256, 64):
            builder.call(fetch, [builder.gep(at, [ir.Constant(I32, n)]), *(ir.Constant(I32, m) for m in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate
