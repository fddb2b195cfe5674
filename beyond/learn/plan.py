"""What a training takes, before it begins: operations, hours, memory. And how near to its limit the machine works.

A token costs 6 N operations, N being the weights: 2 N forward, a multiplication and an addition each, and twice that
back (Kaplan et al. 2020, section 2.1, https://arxiv.org/abs/2001.08361; Hoffmann et al. 2022, appendix F,
https://arxiv.org/abs/2203.15556). Attention's own products are 12 n_layer n_embd n_ctx more. Of what the machine can do
at most a training does a share, the MFU, model FLOPs utilization (Chowdhery et al. 2022, appendix B,
https://arxiv.org/abs/2204.02311); what rematerialization does twice counts once.
"""

import math
import os
import time

import jax
import jax.numpy as jnp

from beyond.devices import sharding
import utils

DEVICES = {  # as their makers' data sheets have them: {dtype: operations a second, dense}, bytes of memory
    "H100": ({"bfloat16": 989e12, "float32": 67e12}, 80e9),
    "A100": ({"bfloat16": 312e12, "float32": 19.5e12}, 80e9),
    "L4": ({"bfloat16": 121e12, "float32": 30e12}, 24e9),
}
# MFU: on a CPU of beyond.train's own shape, by the time of the cores; on an H100 of OpenAI's smallest in bfloat16,
# as a share of what a product reaches there (gpu), and of the data sheet's rate
MEASURED = {"cpu": 0.4, "gpu": 0.21, "H100": 0.165}
ASSUMED = 0.2  # where nothing was measured


def n_params(hparams):
    return sum(math.prod(shape) for shape in utils.shapes_of(**hparams).values())


def flops(hparams):
    """Operations for a token that is learned from."""
    n = n_params(hparams) - hparams["n_ctx"] * hparams["n_embd"]  # of wpe, a row is added
    return 6 * n + 12 * hparams["n_layer"] * hparams["n_embd"] * hparams["n_ctx"]


def product_rate(dtype):
    """Operations a second of a large product on a device here, the best of three."""
    n = 2048 if jax.default_backend() == "cpu" else 8192
    a, product, times = jnp.ones((n, n), dtype), jax.jit(jnp.matmul), []
    product(a, a).block_until_ready()
    for _ in range(3):
        start = time.perf_counter()
        product(a, a).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * n**3 / min(times)


def all_rate(dtype, n_devices):
    """Of all devices together; those of a CPU are made of the same cores."""
    return product_rate(dtype) * (1 if jax.default_backend() == "cpu" else n_devices)


def speed(hparams, batch_size, mesh, dtype):
    """A function (steps a second) -> a text with tokens a second and the MFU."""
    limit, n = all_rate(dtype, mesh.size), batch_size * hparams["n_ctx"]
    return lambda rate: (
        f"{n * rate:,.0f} tokens/s, MFU {n * rate * flops(hparams) / limit:.0%} of {limit / 1e12:.3g} TFLOP/s"
    )


def memory(hparams, rows, n_model=1, rematerialize=False, ema=0.0):
    """(bytes of what stays, bytes while a step is made) a device, for so many rows at a time; estimates.

    Weights of four bytes, as many gradients twice, one moment (Muon) or two (AdamW), the average; beside them either
    activations or what the optimizer needs. How many numbers a token leaves in a block and in the logits until the way
    back was read off what XLA says that it takes on a CPU; tests/test_parallel.py compares. For a GPU it joins more: 16
    rows of OpenAI's smallest shape in bfloat16 took 22 GB on an H100, where this says 58.
    """
    n, n_ctx, n_embd, n_head, n_layer = n_params(hparams), *(hparams[name] for name in utils.HPARAMS[1:])
    matrices = 12 * n_layer * n_embd**2
    stays = 4 * (n + 2 * n - matrices + (n if ema else 0)) / n_model
    n_keys = n_ctx if n_ctx <= 256 else (n_ctx + 256) / 2  # gpt2.mha leaves out most keys that a mask would hide
    block = 20 * n_embd + 4.5 * n_head * n_keys
    inside = block + n_layer * n_embd if rematerialize else n_layer * block
    activations = 4 * rows * n_ctx * (inside + 5 * hparams["n_vocab"]) / n_model
    return stays, 8 * n / n_model + max(activations, 16 * n / n_model)


def devices_of(kind, mesh, dtype):
    """(name, n_data, n_model, operations a second of all, bytes of memory of each, the MFU to expect)."""
    if kind in DEVICES:
        n_data, n_model = sharding.mesh_sizes(mesh or "1x1")
        rates, limit = DEVICES[kind]
        return kind, n_data, n_model, rates[dtype] * n_data * n_model, limit, MEASURED.get(kind, ASSUMED)
    n_data, n_model = sharding.mesh_sizes(mesh or f"{jax.device_count()}x1")
    first = jax.devices()[0]
    limit = (first.memory_stats() or {}).get("bytes_limit")  # a CPU's is that of the machine
    limit = limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (n_data * n_model)
    mfu = MEASURED.get(first.platform, ASSUMED)
    return first.device_kind, n_data, n_model, all_rate(dtype, n_data * n_model), limit, mfu


def describe(kind, hparams, steps, minutes, batch_size, mesh, micro_batch_size, dtype, rematerialize, ema):
    """What --dry_run prints. kind: one of DEVICES, or True for this machine; the rest are flags of beyond.train."""
    name, n_data, n_model, rate, limit, mfu = devices_of(kind, mesh, dtype)
    a_token, a_step = flops(hparams), batch_size * hparams["n_ctx"]
    steps = steps or max(1, int(60 * minutes * rate * mfu / (a_token * a_step)))
    rows = micro_batch_size or (1 if name == "cpu" else math.ceil(batch_size / n_data))
    stays, more = memory(hparams, rows, n_model, rematerialize, ema)
    way_out = 'does not fit: a smaller micro_batch_size, --rematerialize or more devices along "model" take less'
    fits = "fits" if stays + more < 0.9 * limit else way_out
    work = a_token * a_step * steps
    return (
        f"{n_params(hparams):,} parameters, {a_step * steps:,} tokens in {steps:,} steps of {a_step:,}\n"
        f"on {n_data * n_model} x {name}, {rate / 1e12:,.3g} TFLOP/s in {dtype} together\n"
        f"memory of each (estimate): {stays / 1e9:.1f} GB of weights, moments and average, {more / 1e9:.1f} GB for a "
        f"step\nwith {rows} rows at a time; of {limit / 1e9:.0f} GB, it {fits}\n"
        f"time (estimate): 6 operations for a parameter, more for attention, {a_token / 1e6:.4g} million for a token,\n"
        f"{work:.2g} in all; at an MFU of {mfu:.1%} {work / (rate * mfu) / 3600:,.1f} hours"
    )
