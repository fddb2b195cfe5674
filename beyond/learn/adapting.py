"""What the chapters that adapt a model share."""

import functools
import math
import sys

import jax
import numpy as np

import cli

RANGES = {
    "steps": (1, 10**9),
    "batch_size": (1, 10**6),
    "eval_every": (1, 10**9),
    "patience": (1, 10**9),
    "seed": (0, 2**63 - 1),
    "learning_rate": (1e-9, 1.0),
}


def check_settings(settings, optional=(), **ranges):
    """Raises ValueError for an argument that is out of range, naming the range.

    ranges: {name: (low, high)} of what is not in RANGES; optional: the names that may be None.
    """
    for name, limits in {**RANGES, **ranges}.items():
        if name in settings and not (name in optional and settings[name] is None):
            cli.check(name, settings[name], *limits)


def check_divides(batch_size, n_devices=None, micro_batch_size=None):
    """Raises ValueError unless each device, by default all that there are, gets as many whole micro-batches."""
    n = (n_devices or jax.device_count()) * (micro_batch_size or 1)
    if batch_size % n:
        more = f", with micro_batch_size={micro_batch_size}" if micro_batch_size else ""
        raise ValueError(f"batch_size={batch_size} must be a multiple of {n}, the number of devices{more}")


def last_blocks(params, k):
    """What learns where all but the last k blocks stay as they are."""
    return {"blocks": params["blocks"][len(params["blocks"]) - k :], "ln_f": params["ln_f"]}


def joined(params, trained):
    """params with what was trained of them, last_blocks say, in its place."""
    blocks, learned = params["blocks"], trained.get("blocks", [])
    return {**params, **trained, "blocks": [*blocks[: len(blocks) - len(learned)], *learned]}


def tell(seconds, n_rows, n_all, n_trained, settings):
    """Says, before it begins, about how long a run will take and how much memory.

    seconds: what evaluating n_rows took. A step takes about 3 times as long for a row: forward, and twice that back.
    Memory: all weights, and of those that learn five times as much: gradients, two moments, the best, a copy to save.
    """
    steps = settings["steps"]
    total = seconds / n_rows * 3 * settings["batch_size"] * steps + seconds * math.ceil(steps / settings["eval_every"])
    print(
        f"at most {steps} steps: about {total / 60:.1f} minutes here, and {4e-9 * (n_all + 5 * n_trained):.1f} GB of "
        f"memory besides a row's activations",
        file=sys.stderr,
    )


def mean_loss(loss, params, rows, *fixed):
    """The mean of loss(params, row, None, *fixed) over rows, one after the other."""
    from tqdm import tqdm

    n, fixed = len(jax.tree.leaves(rows)[0]), tuple(fixed)
    bar = tqdm(range(n), "evaluating", leave=False, disable=None)
    return float(np.mean([float(_row_loss(loss, params, jax.tree.map(lambda x: x[i], rows), fixed)) for i in bar]))


@functools.partial(jax.jit, static_argnums=0)
def _row_loss(loss, params, row, fixed):
    return loss(params, row, None, *fixed)
