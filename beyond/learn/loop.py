"""The training loop of every learning chapter: from a loss to the weights that did best on held-out data.

fit draws batches, takes optax steps along the gradients of jax.grad, evaluates the weights on held-out data every
eval_every steps, and keeps the best. It knows nothing about language models: a chapter provides the loss, the batches
and the function that saves. After each evaluation the state of the run is saved in the model's folder, from which the
same command resumes after a kill as if nothing had happened (state.py).
"""

import contextlib
import functools
import json
import math
import sys
import time

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np
import optax

from beyond.devices.processes import check_same, is_process_0
from beyond.devices.sharding import all_devices, fetch, keep_split, put_all, put_rows, split
from beyond.learn.sequences import read_ahead
from beyond.learn.state import read_state, saved_steps, write_state

# --- one step ---


def begin(params, optimizer, averaging, mesh):
    """The tree that update changes: weights, the optimizer's state, and the average of the weights, or None."""
    copies = [jax.tree.map(jnp.copy, params) for _ in range(2)]
    return keep_split((copies[0], optimizer.init(params), copies[1] if averaging else None), mesh)


def updater(loss, optimizer, seed, mesh, fixed=(), ema=0):
    """A function (tree, batch, step) -> (tree, loss) that makes one step. batch: arrays [n_parts, n_examples, ...]."""
    fixed = put_all(fixed, mesh)

    @functools.partial(jax.jit, donate_argnums=0)
    def update(tree, batch, step, fixed):
        params, state, average = tree
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), step), jax.tree.leaves(batch)[0].shape[:2])

        def add_part(total, part):
            def mean(params):
                return jax.vmap(lambda example, key: loss(params, example, key, *fixed))(*part).mean()

            return jax.tree.map(jnp.add, total, jax.value_and_grad(mean)(params)), None

        total, _ = jax.lax.scan(add_part, jax.tree.map(jnp.zeros_like, (0.0, params)), (batch, keys))
        value, grads = jax.tree.map(lambda x: x / len(keys), total)
        changes, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, changes)
        return keep_split((params, state, averaged(average, params, step, ema)), mesh), value

    return lambda *args: update(*args, fixed)


def averaged(average, params, step, ema):
    """The exponential moving average of the weights with decay ema; less at first, to forget the start."""
    if average is None:
        return None
    kept = jnp.minimum(ema, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: kept * old + (1 - kept) * new, average, params)


def in_parts(batch, mesh, micro_batch_size):
    """A batch as arrays [n_parts, n_examples, ...]: the parts one after the other, the examples split over devices."""
    # on a CPU one example per device, whose activations stay in the cache (a third faster); elsewhere all at once
    size = micro_batch_size or (1 if jax.default_backend() == "cpu" else None)
    n = size * mesh.shape["data"] if size else len(jax.tree.leaves(batch)[0])
    return put_rows(jax.tree.map(lambda x: x.reshape(-1, n, *x.shape[1:]), batch), mesh, 1)


# --- the loop ---


class Run:
    """The progress of a training run.

    tree: see begin; best: the weights with the lowest held-out loss so far, in NumPy; losses: one per step since the
    last evaluation; history: see fit.
    """

    def __init__(self, params, start, folder, settings, steps, mesh):
        """Resumes the run in the folder, if there is one; otherwise its tree is start(params)."""
        self.folder, self.settings, self.steps, self.mesh = folder, settings, steps, mesh
        self.losses = []
        saved = read_state(folder, settings, (jax.eval_shape(start, params), params))
        (tree, self.best), self.history = saved or ((None, None), [])
        check_same(json.dumps([settings, self.history, steps]))
        self.tree = split(tree, mesh) if saved else start(split(params, mesh))

    @property
    def step(self):
        """The number of steps made."""
        return int(self.history[-1][0] if self.history else 0) + len(self.losses)

    def since_best(self):
        """The number of evaluations since the best one."""
        return int(np.argmin([min(row[2:]) for row in reversed(self.history)])) if self.history else 0

    def check(self, loss):
        """Raises ValueError unless the loss is finite."""
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss is {loss} at step {self.step}: try a lower learning_rate under another name; "
                + (f"{self.folder} keeps the best weights so far" if self.history else "nothing was saved")
            )

    def advance(self, update, batch):
        """Makes one step and returns its loss."""
        self.tree, loss = update(self.tree, batch, self.step)
        self.losses.append(float(loss))
        self.check(self.losses[-1])
        return self.losses[-1]

    def evaluate(self, held_out, save):
        """Adds a row to the history, and saves the state and the weights if those are the best so far."""
        candidates = [weights for weights in (self.tree[0], self.tree[2]) if weights is not None]
        found = [held_out(weights) for weights in candidates]
        self.check(sum(found))
        is_best = min(found) < min((min(row[2:]) for row in self.history), default=math.inf)
        self.history.append([self.step, sum(self.losses) / len(self.losses), *found])
        self.losses = []
        if is_best:
            self.best = fetch(candidates[np.argmin(found)], self.mesh)
        write_state(self.folder, self.settings, self.steps, (fetch(self.tree, self.mesh), self.best), self.history)
        if is_best:
            save(self.best, self.history)


def fit(params, loss, draw, held_out, save, optimizer, folder, settings, fixed=(), mesh=None, micro_batch_size=None,
        speed=lambda rate: f"{rate:.2f} steps/s", after_two=lambda seconds, steps_left: None):  # fmt: skip
    """Minimizes loss; calls save(params, history) whenever held_out(params) has a new minimum. Returns the history.

    loss(params, example, key, *fixed) -> float; draw(rng) -> a batch: an array [batch_size, ...] or a tree of them;
    held_out(params) -> float; optimizer(steps) -> an optax optimizer.
    settings: what affects the result, with eval_every, seed, steps (None: as many as fit in minutes); optionally ema
    (see averaged; the better weights are kept) and patience (stop after this many evaluations without a new best).
    mesh: by default all devices share the batch. micro_batch_size: examples that a device works on at a time.
    speed(steps per second) -> a text for the progress bar; after_two(seconds per step, steps left) is called once.
    history: [step, mean loss since the previous row, held-out loss (also of the average)] for each evaluation.
    The folder keeps the state until the caller calls finish(folder). All processes return the same; process 0 writes.
    Raises ValueError if a loss is not finite, or if the state in folder belongs to other settings.
    """
    from tqdm import tqdm

    mesh = mesh or all_devices()
    seed, ema = settings["seed"], settings.get("ema", 0)
    start = jax.jit(functools.partial(begin, optimizer=optimizer(1000), averaging=ema > 0, mesh=mesh))

    def batch(step):  # depends on nothing else, so that a resumed run draws the same batches
        return in_parts(draw(np.random.default_rng([seed, step])), mesh, micro_batch_size)

    def update_of(steps):
        return updater(loss, optimizer(steps), seed, mesh, fixed, ema)

    steps = settings["steps"] or saved_steps(folder)
    steps = steps or steps_in(settings["minutes"], update_of(1000), start(split(params, mesh)), batch(0))
    update = update_of(steps)
    run = Run(params, start, folder, settings, steps, mesh)
    if run.history:
        save(run.best, run.history)  # the run may have been killed after its state was saved, but before its model was
    times = []
    with (
        tqdm(desc="training", total=steps, initial=run.step, disable=None if is_process_0() else True) as bar,
        contextlib.closing(read_ahead(batch, range(run.step, steps))) as batches,
    ):
        for examples, waited in batches:
            if run.since_best() >= settings.get("patience", steps):
                break
            began = time.perf_counter()
            value = run.advance(update, examples)
            times.append((waited, waited + time.perf_counter() - began))
            if len(times) == 2:  # the first step also compiles
                after_two(times[1][1], steps - run.step)
            if run.step % settings["eval_every"] == 0 or run.step == steps:
                run.evaluate(held_out, save)
                if is_process_0():
                    tqdm.write(describe(*run.history[-1]), file=sys.stderr)
            bar.update()
            last = f", held out {run.history[-1][2]:.3f}" if run.history else ""
            bar.set_postfix_str(f"loss {value:.3f}{last}, {speed(bar.format_dict['rate'] or 0)}")
    if is_process_0() and len(times) > 1:
        waited, took = np.sum(times[1:], axis=0)
        print(f"{speed((len(times) - 1) / took)}; {waited / took:.1%} of the time waiting for batches", file=sys.stderr)
    return run.history


def describe(made, loss, held_out, of_average=None):
    """A row of the history as a line."""
    average = "" if of_average is None else f", averaged {of_average:.4f}"
    return f"step {made}: loss {loss:.4f}, held out {held_out:.4f}{average}"


def steps_in(minutes, update, tree, batch):
    """How many updates fit in the minutes, measured by process 0; the first one, which compiles, does not count."""
    tree, value = update(tree, batch, 0)
    float(value)
    start, n = time.perf_counter(), 5
    for step in range(n):
        tree, value = update(tree, batch, step)
    float(value)
    steps = max(1, int(n * 60 * minutes / (time.perf_counter() - start)))
    return int(multihost_utils.broadcast_one_to_all(np.int32(steps)))
