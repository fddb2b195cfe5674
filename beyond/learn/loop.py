"""The training loop of all learning chapters: a loss goes in, the weights that did best on held-out data come out.

fit draws batches, lets an optimizer of optax follow the gradients of jax.grad, measures every eval_every steps what the
weights are worth on data that they never learn from, and keeps the best. It knows nothing of language models: a chapter
brings its loss, its rows and its way to save. After each evaluation all of its state goes to one file in the model's
folder, so that a run that was killed goes on as if nothing had happened, if it is the same work (see beyond/files.py).
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

from beyond.devices.processes import check_same
from beyond.devices.sharding import all_devices, fetch, keep_split, put_all, put_rows, split
from beyond.learn.rows import read_ahead
from beyond.learn.state import read_state, saved_steps, write_state

# --- optimizers ---


# --- one step ---


def updater(loss, optimizer, seed, mesh, fixed=(), ema=0):
    """A function (tree, rows, step) -> (tree, loss) that makes one step; tree: weights, optimizer's state, average."""
    fixed = put_all(fixed, mesh)

    @functools.partial(jax.jit, donate_argnums=0)
    def update(tree, rows, step, fixed):
        params, state, average = tree
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), step), jax.tree.leaves(rows)[0].shape[:2])

        def add_part(total, part):
            def mean(params):
                return jax.vmap(lambda row, key: loss(params, row, key, *fixed))(*part).mean()

            return jax.tree.map(jnp.add, total, jax.value_and_grad(mean)(params)), None

        total, _ = jax.lax.scan(add_part, jax.tree.map(jnp.zeros_like, (0.0, params)), (rows, keys))
        value, grads = jax.tree.map(lambda x: x / len(keys), total)
        changes, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, changes)
        return keep_split((params, state, averaged(average, params, step, ema)), mesh), value

    return lambda *args: update(*args, fixed)


def averaged(average, params, step, ema):
    """The moving average of the weights, of which each step keeps the share ema; at first less, to forget the start."""
    if average is None:
        return None
    kept = jnp.minimum(ema, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: kept * old + (1 - kept) * new, average, params)


# --- the loop ---


def fit(
    params,
    loss,
    rows,
    held_out,
    save,
    optimizer,
    folder,
    settings,
    fixed=(),
    mesh=None,
    ema=0,
    micro_batch_size=None,
    speed=lambda rate: f"{rate:.2f} steps/s",
):
    """Trains params on loss; calls save(params, history) whenever held_out(params) is lower than ever. Returns history.

    loss(params, row, key, *fixed) -> float: of one row; rows(rng) -> an array [batch_size, ...], or a tree of such;
    held_out(params) -> float; optimizer(steps) -> an optimizer of optax.
    settings: a dict with steps (None: as many as fit in minutes), minutes, eval_every, seed, maybe patience (how many
    evaluations that bring nothing better end it), and whatever else decides what comes out. The folder keeps the state
    of the last evaluation until the caller, whose work may not be done yet, calls finish(folder).
    mesh: by default all devices deal out the rows. ema: from 0 up to 1; above 0 an average of the weights is kept, too,
    and held_out decides between them. micro_batch_size: rows that a device works on at a time.
    speed(steps a second) -> a text that the bar shows.
    history: [step, mean loss since the one before, held-out loss (of the average, too)] for each evaluation, one every
    eval_every steps. All processes take part and get the same; process 0 prints and writes the state.
    Raises ValueError if a loss is no number any more, or if the state in folder belongs to other settings.
    """
    from tqdm import tqdm

    eval_every, seed, mesh, is_first = settings["eval_every"], settings["seed"], mesh or all_devices(), is_process_0()
    # on a CPU a row a device at a time, whose numbers stay in its cache (a third faster); elsewhere all at once
    micro_batch_size = micro_batch_size or (1 if jax.default_backend() == "cpu" else None)

    def batch(step):  # depends on nothing else, so that a training which goes on sees what it would have seen
        drawn = rows(np.random.default_rng([seed, step]))
        n = micro_batch_size * mesh.shape["data"] if micro_batch_size else len(jax.tree.leaves(drawn)[0])
        return put_rows(jax.tree.map(lambda x: x.reshape(-1, n, *x.shape[1:]), drawn), mesh, 1)

    def begin(params):
        copies = [jax.tree.map(jnp.copy, params) for _ in range(2)]
        return keep_split((copies[0], optimizer(1000).init(params), copies[1] if ema else None), mesh)

    def check(value):
        if not math.isfinite(value):
            raise ValueError(
                f"the loss is {value} at step {step + 1}: try a lower learning_rate under another name; "
                + (f"{folder} keeps the best weights so far" if history else "nothing was saved so far")
            )

    def start():
        return jax.jit(begin)(split(params, mesh))

    def make_update(steps):
        return updater(loss, optimizer(steps), seed, mesh, fixed, ema)

    steps = settings["steps"] or saved_steps(folder)
    steps = steps or _steps_in(settings["minutes"], make_update(1000), start(), batch(0))
    update = make_update(steps)
    saved = read_state(folder, settings, (jax.eval_shape(begin, params), params))
    (tree, best), history = saved or ((None, None), [])
    check_same(json.dumps([settings, history, steps]))
    if history:
        save(best, history)  # in case the kill came between the state and the model
    tree, first_step = split(tree, mesh) if saved else start(), int(history[-1][0]) if history else 0
    losses, times = [], []
    with (
        tqdm(desc="training", total=steps, initial=first_step, disable=None if is_first else True) as bar,
        contextlib.closing(read_ahead(batch, range(first_step, steps))) as batches,
    ):
        for step, (now, waited) in enumerate(batches, first_step):
            if history and np.argmin([min(row[2:]) for row in reversed(history)]) >= settings.get("patience", steps):
                break
            began, made = time.perf_counter(), step + 1
            tree, value = update(tree, now, step)
            losses.append(float(value))
            times.append((waited, waited + time.perf_counter() - began))
            check(losses[-1])
            if made % eval_every == 0 or made == steps:
                found = [held_out(weights) for weights in (tree[0], tree[2]) if weights is not None]
                check(sum(found))
                better = not history or min(found) < min(min(row[2:]) for row in history)
                history.append([made, sum(losses) / len(losses), *found])
                best, losses = fetch(tree[0] if found[0] == min(found) else tree[2], mesh) if better else best, []
                write_state(folder, settings, steps, (fetch(tree, mesh), best), history)
                if better:
                    save(best, history)
                if is_first:
                    tqdm.write(describe(*history[-1]), file=sys.stderr)
            bar.update()
            last = f", held out {history[-1][2]:.3f}" if history else ""
            bar.set_postfix_str(f"loss {value:.3f}{last}, {speed(bar.format_dict['rate'] or 0)}")
    if is_first and len(times) > 1:
        waited, took = np.sum(times[1:], axis=0)  # the first step compiles
        print(f"{speed((len(times) - 1) / took)}; {waited / took:.1%} of the time waiting for rows", file=sys.stderr)
    return history


def describe(made, loss, held_out, of_average=None):
    """A row of the history as a line."""
    average = "" if of_average is None else f", averaged {of_average:.4f}"
    return f"step {made}: loss {loss:.4f}, held out {held_out:.4f}{average}"


def is_process_0():
    """Whether this process is the one that prints and writes."""
    return jax.process_index() == 0


def _steps_in(minutes, update, tree, rows):
    """How many updates fit into so many minutes, as process 0 finds; the first compiles and does not count."""
    tree, value = update(tree, rows, 0)
    float(value)
    start, n = time.perf_counter(), 5
    for step in range(n):
        tree, value = update(tree, rows, step)
    float(value)
    steps = max(1, int(n * 60 * minutes / (time.perf_counter() - start)))
    return int(multihost_utils.broadcast_one_to_all(np.int32(steps)))


# --- what the learning chapters have in common ---
