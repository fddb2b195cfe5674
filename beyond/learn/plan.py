r"""Estimates for a training run before it starts: operations, hours, memory; and how fully it uses the machine (MFU).

Training OpenAI's smallest shape on ten billion tokens with eight GPUs:

    python -m beyond.train data/mine --model_size mine --n_vocab 50304 --n_ctx 1024 --n_embd 768 --n_head 12 \
        --n_layer 12 --steps 19073 --batch_size 512 --micro_batch_size 16 --mesh 8x1 --dtype bfloat16 \
        --dropout_rate 0 --bpe_dropout 0 --dry_run=H100

    124,475,904 parameters, 9,999,745,024 tokens in 19,073 steps of 524,288
    on 8 x H100, 7.91e+03 TFLOP/s in bfloat16 together
    memory per device (estimate): 1.7 GB for weights, moments and average, 46.8 GB for a step
    with 16 sequences at a time; it fits into 80 GB
    time (estimate): 6 operations per parameter, more for attention, 855.4 million per token,
    8.6e+18 in all; at an MFU of 16.5% 1.8 hours

One H100 was measured with steps of 16 sequences: 190,000 tokens/s, which is this MFU, and 22 GB. The estimate assumes
that eight are eight times as fast.

Training takes 6 N operations per token for N weights: 2 N forward, a multiplication and an addition each, and twice
that backward (Kaplan et al. 2020, section 2.1, https://arxiv.org/abs/2001.08361; Hoffmann et al. 2022, appendix
F, https://arxiv.org/abs/2203.15556). Attention's own products add 12 n_layer n_embd n_ctx. The MFU, model FLOPs
utilization, is the share of the machine's peak rate that a run reaches (Chowdhery et al. 2022, appendix B,
https://arxiv.org/abs/2204.02311); recomputed activations are counted once.
"""

import math
import os
import time

import jax
import jax.numpy as jnp

from beyond.devices import sharding
import utils

DEVICES = {  # from the data sheets: {dtype: operations per second, dense}, bytes of memory
    "H100": ({"bfloat16": 989e12, "float32": 67e12}, 80e9),
    "A100": ({"bfloat16": 312e12, "float32": 19.5e12}, 80e9),
    "L4": ({"bfloat16": 121e12, "float32": 30e12}, 24e9),
}
# MFU: on a CPU for the default shape of beyond.train, by processor time; on an H100 for OpenAI's smallest shape in
# bfloat16, as a share of the measured rate of a matrix product (gpu) and of the data sheet's rate (H100)
MEASURED = {"cpu": 0.4, "gpu": 0.21, "H100": 0.165}
ASSUMED = 0.2  # where nothing was measured


def n_params(hparams):
    """The number of weights."""
    return sum(math.prod(shape) for shape in utils.shapes_of(**hparams).values())


def flops(hparams):
    """Operations per training token."""
    n = n_params(hparams) - hparams["n_ctx"] * hparams["n_embd"]  # a row of wpe is only added
    return 6 * n + 12 * hparams["n_layer"] * hparams["n_embd"] * hparams["n_ctx"]


def product_rate(dtype, n_devices):
    """Operations per second of large matrix products on n_devices here, from the best of three on one of them."""
    is_cpu = jax.default_backend() == "cpu"
    n = 2048 if is_cpu else 8192
    a, product = jnp.ones((n, n), dtype), jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        product(a, a).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * n**3 / min(times) * (1 if is_cpu else n_devices)  # JAX's CPU devices share the cores


def speed(hparams, batch_size, mesh, dtype):
    """A function (steps per second) -> a text with tokens per second and the MFU."""
    limit, n = product_rate(dtype, mesh.size), batch_size * hparams["n_ctx"]
    return lambda rate: (
        f"{n * rate:,.0f} tokens/s, MFU {n * rate * flops(hparams) / limit:.0%} of {limit / 1e12:.3g} TFLOP/s"
    )


def memory(hparams, n_sequences, n_model=1, rematerialize=False, ema=0.0):
    """Estimates of (persistent bytes, bytes during a step) per device, for n_sequences at a time.

    Four bytes each for a weight, two gradients, one moment (Muon) or two (AdamW), and the average; plus either the
    activations or the optimizer's temporaries. The number of activations kept per token for the backward pass is from
    XLA's memory analysis on a CPU, to which tests/test_parallel.py compares it. On a GPU XLA fuses more: 16 sequences
    of OpenAI's smallest shape in bfloat16 took 22 GB on an H100, less than half of the estimate.
    """
    n_ctx, n_embd, n_head, n_layer = (hparams[name] for name in utils.HPARAMS[1:])
    n = n_params(hparams)
    matrices = 12 * n_layer * n_embd**2
    stays = 4 * (n + 2 * n - matrices + (n if ema else 0)) / n_model
    n_keys = n_ctx if n_ctx <= 256 else (n_ctx + 256) / 2  # gpt2.mha skips most keys that a mask would hide
    block = 20 * n_embd + 4.5 * n_head * n_keys
    logits = 2 * hparams["n_vocab"]  # rematerialized blocks are needed one at a time, after the logits
    numbers = n_layer * n_embd + max(block, logits) if rematerialize else n_layer * block + logits
    activations = 4 * n_sequences * n_ctx * numbers / n_model
    return stays, 8 * n / n_model + max(activations, 16 * n / n_model)


def devices_of(kind, mesh, dtype):
    """(name, n_data, n_model, operations per second of all, bytes of memory of each, expected MFU)."""
    if kind in DEVICES:
        n_data, n_model = sharding.mesh_sizes(mesh or "1x1")
        rates, limit = DEVICES[kind]
        return kind, n_data, n_model, rates[dtype] * n_data * n_model, limit, MEASURED.get(kind, ASSUMED)
    n_data, n_model = sharding.mesh_sizes(mesh or f"{jax.device_count()}x1")
    first = jax.devices()[0]
    limit = (first.memory_stats() or {}).get("bytes_limit")  # for a CPU, that of the machine
    limit = limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (n_data * n_model)
    mfu = MEASURED.get(first.platform, ASSUMED)
    return first.device_kind, n_data, n_model, product_rate(dtype, n_data * n_model), limit, mfu


def describe(kind, settings, mesh, micro_batch_size, rematerialize):
    """What --dry_run prints. kind: one of DEVICES, or True for this machine; the rest is beyond.train's."""
    dtype, batch_size = settings["dtype"], settings["batch_size"]
    name, n_data, n_model, rate, limit, mfu = devices_of(kind, mesh, dtype)
    hparams = {size: settings[size] for size in utils.HPARAMS}
    per_token, per_step = flops(hparams), batch_size * hparams["n_ctx"]
    steps = settings["steps"] or max(1, int(60 * settings["minutes"] * rate * mfu / (per_token * per_step)))
    n_sequences = micro_batch_size or (1 if name == "cpu" else math.ceil(batch_size / n_data))
    stays, more = memory(hparams, n_sequences, n_model, rematerialize, settings["ema"])
    size = f"{limit / 1e9:.0f} GB"
    less = 'a smaller micro_batch_size, --rematerialize or more devices along "model" take less'
    fits = f"fits into {size}" if stays + more < 0.9 * limit else f"does not fit into {size}: {less}"
    work = per_token * per_step * steps
    return (
        f"{n_params(hparams):,} parameters, {per_step * steps:,} tokens in {steps:,} steps of {per_step:,}\n"
        f"on {n_data * n_model} x {name}, {rate / 1e12:,.3g} TFLOP/s in {dtype} together\n"
        f"memory per device (estimate): {stays / 1e9:.1f} GB for weights, moments and average, {more / 1e9:.1f} GB for "
        f"a step\nwith {n_sequences} sequences at a time; it {fits}\n"
        f"time (estimate): 6 operations per parameter, more for attention, {per_token / 1e6:.4g} million per token,\n"
        f"{work:.2g} in all; at an MFU of {mfu:.1%} {work / (rate * mfu) / 3600:,.1f} hours"
    )
