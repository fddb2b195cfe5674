"""Matrix products compiled by Numba: of float32 with few rows, and with quantized weights.

BLAS copies w before it multiplies, which does not pay off for few rows. Here each weight is read once.

With quantized weights (beyond/quantize.py) bytes are multiplied by bytes and added as integers, exactly. The inputs
become 15-bit integers, in two bytes: n = 128 * high + low. Every 64 numbers of a row have a scale, so that an
outlier costs only those 64 their precision. One byte would halve the work at no higher loss, but the last bit of a
float32, which differs between chapters, would soon change a byte, and with it the text.
"""

import numpy as np

from beyond.fast.lanes import (
    FAST, FEW, add_products, all_lanes, as_floats, compiled, fma, larger, load16, load64, prange, prefetch, store,
    summed, times, zeros16,
)  # fmt: skip

GROUP = 64  # inputs that share a scale, in x and in 4-bit weights
ROWS = 32  # at a time: their sums, and the weights that they are multiplied by, stay in the L1 cache
AHEAD = 2**13  # weights are prefetched this many bytes before they are needed


# --- float32, few rows ---


@compiled(parallel=True, fastmath=FAST)
def _row(x, w, out):  # [n_in], [n_in, n_out] -> [n, n_out], n partial sums
    n = len(out)
    for part in prange(n):  # each reads its rows of w in memory order
        out[part] = 0
        for k in range(len(x) // 4 * part // n * 4, len(x) // 4 * (part + 1) // n * 4, 4):
            for c in range(w.shape[1]):
                four = x[k] * w[k, c] + x[k + 1] * w[k + 1, c] + x[k + 2] * w[k + 2, c] + x[k + 3] * w[k + 3, c]
                out[part, c] += four


@compiled(parallel=True, fastmath=FAST)
def _row_transposed(x, w, out):  # [n_in], [n_out, n_in] -> [n_out]
    for n in prange(len(w)):
        total = np.float32(0)
        for k in range(len(x)):
            total += x[k] * w[n, k]
        out[n] = total


@compiled(inline="always")
def tile(x, j, n_in, w, i, n_out, out, o, width, n):  # all flat: four rows of out[o:o + 64] += x[j:j + n] @ w[i:, :64]
    """n_in, n_out and width are the row strides of x, w and out."""
    a, b, c, d = load64(out, o), load64(out, o + width), load64(out, o + 2 * width), load64(out, o + 3 * width)
    for k in range(j, j + n):
        prefetch(w, i + 64)
        weights = load64(w, i)  # used four times
        a, b = fma(a, x[k], weights), fma(b, x[k + n_in], weights)
        c, d = fma(c, x[k + 2 * n_in], weights), fma(d, x[k + 3 * n_in], weights)
        i += n_out
    store(a, out, o), store(b, out, o + width), store(c, out, o + 2 * width), store(d, out, o + 3 * width)


@compiled(parallel=True)
def _product(x, w, out):  # out = [4 * n, n_in] @ [n_in, 64 * m]
    (n_in, n_out), n_strips = w.shape, w.shape[1] // 64
    flat_x, flat_w, flat = x.reshape(-1), w.reshape(-1), out.reshape(-1)
    for part in prange((n_strips + 5) // 6):
        for first in range(0, len(x), 64):  # 64 rows of x and out stay in the L1 and L2 caches
            out[first : first + 64, part * 384 : part * 384 + 384] = 0
            for k in range(0, n_in, 64):  # 64 rows of w are read at a time, and used for all of these rows
                n = min(64, n_in - k)
                for c in range(part * 384, min(part * 384 + 384, n_out), 64):
                    for r in range(first, min(first + 64, len(x)), 4):
                        tile(flat_x, r * n_in + k, n_in, flat_w, k * n_out + c, n_out, flat, r * n_out + c, n_out, n)


@compiled(inline="always")
def fma4(total, x, w):
    return fma(total[0], x, w[0]), fma(total[1], x, w[1]), fma(total[2], x, w[2]), fma(total[3], x, w[3])


@compiled(inline="always")
def four_rows(flat, i, step):  # 16 numbers from each
    return load16(flat, i), load16(flat, i + step), load16(flat, i + 2 * step), load16(flat, i + 3 * step)


@compiled(parallel=True)
def _product_transposed(x, w, out):  # [4 * n, 16 * m] @ [n_out, 16 * m].T
    n_in, flat_x, flat_w = w.shape[1], x.reshape(-1), w.reshape(-1)
    for part in prange((len(w) + 3) // 4):
        n = min(part * 4, len(w) - 4)
        for r in range(0, len(x), 4):  # out[r:r + 4, n:n + 4] = x[r:r + 4] @ w[n:n + 4].T
            a = zeros16(), zeros16(), zeros16(), zeros16()
            b, c, d = a, a, a
            for k in range(0, n_in, 16):
                i = r * n_in + k
                four = four_rows(flat_w, n * n_in + k, n_in)
                a, b = fma4(a, load16(flat_x, i), four), fma4(b, load16(flat_x, i + n_in), four)
                c, d = fma4(c, load16(flat_x, i + 2 * n_in), four), fma4(d, load16(flat_x, i + 3 * n_in), four)
            for j in range(4):
                out[r, n + j], out[r + 1, n + j] = summed(a[j]), summed(b[j])
                out[r + 2, n + j], out[r + 3, n + j] = summed(c[j]), summed(d[j])


def one_row(x, w, straight):  # [n_in], [n_in, n_out] -> [n_out]
    if straight:
        parts = np.empty((8, w.shape[1]), np.float32)  # always 8: rounding must not depend on the thread count
        _row(x, w, parts)
        return parts.sum(axis=0)
    out = np.empty(w.shape[1], np.float32)
    _row_transposed(x, w.T, out)
    return out


def product(x, w, straight):  # [n, n_in], [n_in, n_out] -> [n, n_out]
    """straight: w is C-contiguous, n_in % 4 == n_out % 64 == 0. Otherwise w.T is, n_in % 16 == 0 and n_out >= 4."""
    if len(x) == 1:
        return one_row(np.ascontiguousarray(x)[0], w, straight)[None]
    rows = np.ascontiguousarray(np.pad(x, ((0, -len(x) % 4), (0, 0))) if len(x) % 4 else x)  # four rows at a time
    out = np.empty((len(rows), w.shape[1]), np.float32)
    _product(rows, w, out) if straight else _product_transposed(rows, w.T, out)
    return out[: len(x)]


# --- quantized weights ---


@compiled(fastmath=FAST)
def quantize_row(x, r, offset, ints, scales, starts):  # [n_in] -> row r of each group
    for g in range(len(scales)):
        highest = np.float32(1e-32)  # anything less would make a factor infinite
        for k in range(g * GROUP, (g + 1) * GROUP):
            highest = larger(highest, abs(x[k]))
        scales[g, r] = highest / np.float32(127 * 128)
    for g in range(len(scales)):
        factor = np.float32(1) / scales[g, r]
        high, low = ints[g, r]
        total = np.float32(0)
        for k in range(GROUP):
            n = np.floor(x[g * GROUP + k] * factor + np.float32(0.5))
            high[k] = np.int8(np.floor(n * np.float32(1 / 128) + np.float32(0.5)))
        for k in range(GROUP):  # one loop that writes to two arrays would be slower
            n = np.floor(x[g * GROUP + k] * factor + np.float32(0.5))
            low[k] = np.int8(n - np.float32(128) * np.float32(high[k]))
            total += n
        starts[g, r] = np.int32(-offset * total)


@compiled(parallel=True)
def _quantize_rows(x, offset, ints, scales, starts):  # [n, n_in] -> [n_groups, n, 2, 64], twice [n_groups, n]
    """x is approximately (128 * ints[:, :, 0] + ints[:, :, 1]) * scales. starts cancels the weights' offset."""
    if x.size <= FEW:
        for r in range(len(x)):
            quantize_row(x[r], r, offset, ints, scales, starts)
    else:
        for r in prange(len(x)):
            quantize_row(x[r], r, offset, ints, scales, starts)


@compiled(inline="always")
def add_ints(sums, r, high, low, scale, w_scales):
    o = r % ROWS * 64
    store(fma(load64(sums, o), as_floats(high, low), times(scale, w_scales)), sums, o)


@compiled(inline="always")
def int_tile(count, x, j, scales, starts, r, w, i, n_bytes, w_scales, sums):
    """Adds the products of 64 inputs and the weights of 64 outputs to the sums of count rows, 1 or 2.

    int32 cannot overflow: a sum of products of bytes is at most 64 * 255 * 127, and 128 times as much still fits."""
    a, b, c, d = all_lanes(0), all_lanes(starts[r]), all_lanes(0), all_lanes(starts[r + count - 1])
    for k in range(i, i + n_bytes, 256):
        prefetch(w, k + AHEAD)
        a, b = add_products(a, w, k, x, j), add_products(b, w, k, x, j + GROUP)
        if count == 2:  # the weights are loaded once for both
            c, d = add_products(c, w, k, x, j + 2 * GROUP), add_products(d, w, k, x, j + 3 * GROUP)
        j += GROUP * 256 // n_bytes
    add_ints(sums, r, a, b, scales[r], w_scales)
    if count == 2:
        add_ints(sums, r + 1, c, d, scales[r + 1], w_scales)


@compiled(parallel=True)
def _int_product(x, scales, starts, w, w_scales, out):  # [n_groups, n, 2, 64] ... -> [n, n_out]
    (n_groups, n), n_bytes, n_scales = scales.shape, w.shape[2], w_scales.shape[1]
    flat_x, flat_w, flat_scales = x.reshape(-1), w.reshape(-1), w_scales.reshape(-1)
    for block in prange(len(w)):
        sums = np.empty(min(n, ROWS) * 64, np.float32)
        for first in range(0, n, ROWS):
            last = min(first + ROWS, n)
            sums[:] = 0
            for g in range(n_groups):
                i = (block * n_groups + g) * n_bytes
                s = load64(flat_scales, (block * n_scales + g % n_scales) * 64)
                for r in range(first, last - 1, 2):
                    int_tile(2, flat_x, (g * n + r) * 2 * GROUP, scales[g], starts[g], r, flat_w, i, n_bytes, s, sums)
                if (last - first) % 2:
                    r = last - 1
                    int_tile(1, flat_x, (g * n + r) * 2 * GROUP, scales[g], starts[g], r, flat_w, i, n_bytes, s, sums)
            for r in range(first, last):
                out[r, block * 64 : block * 64 + 64] = sums[(r - first) * 64 : (r - first) * 64 + 64]


def int_product(x, w, w_scales, bits):  # [n, n_in], packed as in quantize.Quantized -> [n, 64 * n_blocks]
    """x @ w. A row of the result does not depend on the other rows of x, not even in its last bit."""
    x = np.ascontiguousarray(np.pad(x, ((0, 0), (0, -x.shape[1] % GROUP))) if x.shape[1] % GROUP else x, np.float32)
    ints = np.empty((w.shape[1], len(x), 2, GROUP), np.int8)
    scales, starts = (np.empty(ints.shape[:2], kind) for kind in (np.float32, np.int32))
    _quantize_rows(x, 2 ** (bits - 1), ints, scales, starts)
    out = np.empty((len(x), 64 * len(w)), np.float32)
    _int_product(ints, scales, starts, w, w_scales, out)
    return out
