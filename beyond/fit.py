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
from optax.contrib import MuonDimensionNumbers, muon

from beyond.parallel import all_devices, check_same, fetch, keep_split, put_all, put_rows, read_ahead, split
from beyond.state import read_state, saved_steps, write_state
import utils

# --- optimizers ---


def schedule(steps, learning_rate):
    """Warm-up, as the first gradients point anywhere; then down along a cosine, to settle.

    Update i of the first n has (i + 1) / (n + 1) of the learning rate: at 0 the first one would change nothing."""
    n = min(math.ceil(0.03 * steps), steps - 1)
    return optax.warmup_cosine_decay_schedule(learning_rate / (n + 1), learning_rate, n, steps, 0.02 * learning_rate)


def adamw(steps, learning_rate):
    """AdamW (https://arxiv.org/abs/1711.05101): what was learned before should not be forgotten at once, so there is
    little decay, and of matrices only."""
    return optax.chain(
        optax.clip_by_global_norm(1),
        optax.adamw(
            schedule(steps, learning_rate),
            b2=0.99,
            weight_decay=0.01,
            mask=lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree),
        ),
    )


def muon_and_adamw(steps, learning_rate, weight_decay):
    """Muon (https://kellerjordan.github.io/posts/muon) for the blocks' matrices, AdamW for all else.

    Muon moves a matrix in all directions alike, which takes fewer steps; its updates are made as large as AdamW's
    (https://arxiv.org/abs/2502.16982), so that one learning rate serves both. Only those matrices decay, as a norm's g
    has its right size. Clipping: for the odd batch.
    """

    def for_muon(path, x):  # all axes of a w but the first one are its outputs
        is_matrix = path[0].key == "blocks" and path[-1].key == "w"
        return MuonDimensionNumbers(0, tuple(range(1, x.ndim))) if is_matrix else None

    return optax.chain(
        optax.clip_by_global_norm(1),
        muon(
            schedule(steps, learning_rate),
            weight_decay=weight_decay,
            adam_b2=0.99,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=functools.partial(jax.tree_util.tree_map_with_path, for_muon),
        ),
    )


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


@functools.partial(jax.jit, static_argnums=0)
def _row_loss(loss, params, row, fixed):
    return loss(params, row, None, *fixed)


def mean_loss(loss, params, rows, *fixed):
    """The mean of loss(params, row, None, *fixed) over rows, one after the other."""
    from tqdm import tqdm

    n, fixed = len(jax.tree.leaves(rows)[0]), tuple(fixed)
    bar = tqdm(range(n), "evaluating", leave=False, disable=None)
    return float(np.mean([float(_row_loss(loss, params, jax.tree.map(lambda x: x[i], rows), fixed)) for i in bar]))


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
            utils.check(name, settings[name], *limits)


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
