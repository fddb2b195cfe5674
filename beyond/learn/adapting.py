"""What finetune and classify have in common: the steps of a command that adapts a model to new data.

    check_settings(settings)
    with learning(settings, data, out, model_size, models_dir) as (encoder, hparams, params, settings):
        history = adapt(params, trained, loss, learned, held_out, save, learning_rate, out, settings)

The chapters define the trained parameters, their loss and data, and how they are saved.
"""

import contextlib
import functools
import math
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from beyond.devices.sharding import memory_errors
from beyond.files import runs
from beyond.learn.loop import fit
from beyond.learn.optimizers import adamw
from beyond.learn.state import check_new, check_state, finish
import cli
import utils

RANGES = {
    "steps": (1, 10**9), "eval_every": (1, 10**9), "patience": (1, 10**9), "batch_size": (1, 10**6),
    "seed": (0, 2**63 - 1), "learning_rate": (1e-9, 1.0)}  # fmt: skip
SECONDS = (86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds")
BYTES = (1e9, "GB"), (1e6, "MB")


def check_settings(settings, optional=(), **ranges):
    """Raises ValueError for a setting that is out of range, naming the range.

    ranges: {name: (low, high)} of settings that RANGES does not have; optional: names whose value may be None.
    """
    for name, limits in {**RANGES, **ranges}.items():
        if name in settings and not (name in optional and settings[name] is None):
            cli.check(name, settings[name], *limits)


def check_divides(batch_size, n_devices=None, micro_batch_size=None):
    """Raises ValueError unless each device (by default all of them) gets the same number of whole micro-batches."""
    n = (n_devices or jax.device_count()) * (micro_batch_size or 1)
    if batch_size % n:
        more = f", with micro_batch_size={micro_batch_size}" if micro_batch_size else ""
        raise ValueError(f"batch_size={batch_size} must be a multiple of {n}, the number of devices{more}")


@contextlib.contextmanager
def learning(settings, data, out, model_size, models_dir):
    """Loads the base model: yields (encoder, hparams, params, settings). Marks out as finished when the block ends.

    Adds digests of the data and of the base model to the settings, which identify the run.
    Raises ValueError if out is taken, and MemoryError if a device runs out of memory.
    """
    with memory_errors():
        check_divides(settings["batch_size"])
        check_new(out)
        encoder, hparams, params = utils.load_encoder_hparams_and_params(model_size, models_dir)
        digests = {"data": runs.digest(data), "model_size": runs.model_digest(model_size, models_dir)}
        yield encoder, hparams, jax.tree.map(jnp.asarray, params), {**settings, **digests}
        finish(out)


def adapt(params, trained, loss, learned, held_out, save, learning_rate, out, settings):
    """Estimates the time, then minimizes loss(trained, example, key, params) by AdamW. Returns fit's history.

    learned, held_out: tuples of arrays [n_examples, ...]. save(trained, history) is called for each new best.
    """
    check_state(out, settings)

    def draw(rng):
        chosen = rng.integers(len(learned[0]), size=settings["batch_size"])
        return tuple(array[chosen] for array in learned)

    def evaluate(trained):
        return mean_loss(loss, trained, held_out, params)

    def print_estimate(step, n_steps):
        first = tuple(array[0] for array in held_out)
        for _ in range(2):  # the first call compiles
            start = time.perf_counter()
            float(_example_loss(loss, trained, first, params))
        evaluation = len(held_out[0]) * (time.perf_counter() - start)
        numbers = n_numbers(params), n_numbers(trained)
        tqdm.write(estimate(step, evaluation, n_steps, settings["eval_every"], *numbers), file=sys.stderr)

    optimizer = functools.partial(adamw, learning_rate=learning_rate)
    return fit(trained, loss, draw, evaluate, save, optimizer, out, settings, [params], after_two=print_estimate)


def last_blocks(params, k):
    """The parameters that are trained if all but the last k blocks are frozen."""
    return {"blocks": params["blocks"][len(params["blocks"]) - k :], "ln_f": params["ln_f"]}


def joined(params, trained):
    """params with trained in place of its own; the blocks in trained replace the last ones."""
    blocks, learned = params["blocks"], trained.get("blocks", [])
    return {**params, **trained, "blocks": [*blocks[: len(blocks) - len(learned)], *learned]}


def n_numbers(tree):
    return sum(array.size for array in jax.tree.leaves(tree))


def mean_loss(loss, trained, examples, params):
    """The mean of loss(trained, example, None, params) over the examples, one at a time."""
    bar = tqdm(zip(*examples), "evaluating", len(examples[0]), leave=False, disable=None)
    return float(np.mean([float(_example_loss(loss, trained, example, params)) for example in bar]))


@functools.partial(jax.jit, static_argnums=0)
def _example_loss(loss, trained, example, params):
    return loss(trained, example, None, params)


# --- the estimate ---


def estimate(step, evaluation, n_steps, eval_every, n_all, n_trained):
    """A line with the time and memory that a run takes, from the seconds per step and per evaluation.

    Memory: the base model, and eight more numbers per trained weight: its value, two moments, gradient, sum of
    gradients, change, best value, copy to save.
    """
    total = n_steps * step + math.ceil(n_steps / eval_every) * evaluation
    memory = 4 * (n_all + 8 * n_trained)
    return (
        f"at most {n_steps} more steps: about {readable(total, SECONDS)} on this machine, "
        f"and {readable(memory, BYTES)} of memory besides activations and JAX itself"
    )


def readable(value, units):
    """The value in the largest unit that it reaches: 5400 seconds are 1.5 hours. At least 1 of the smallest."""
    value = max(value, units[-1][0])
    size, name = next(unit for unit in units if value >= unit[0])
    return f"{value / size:.{0 if value >= 10 * size else 1}f} {name}"
