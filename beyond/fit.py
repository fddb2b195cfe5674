"""The training loop of all learning chapters: a loss goes in, the weights that did best on held-out data come out.

fit draws batches, lets an optimizer of optax follow the gradients of jax.grad, measures every eval_every steps what the
weights are worth on data that they never learn from, and keeps the best. It knows nothing of language models: a chapter
brings its loss, its rows and its way to save. After each evaluation all of its state goes to one file in the model's
folder, so that a run that was killed goes on as if nothing had happened, if it is the same work (see beyond/files.py).
"""

import functools
import json
import math
import os
import sys
import time
import zipfile

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers, muon

from beyond import files
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

    def for_muon(path, x):
        return MuonDimensionNumbers() if path[0].key == "blocks" and x.ndim == 2 else None

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


BY_ROW = PartitionSpec("data")


def spread(rows, spec=BY_ROW):
    """Rows dealt out to all devices that JAX sees; under jit each works on its own, and the sums go to all."""
    return jax.device_put(rows, NamedSharding(Mesh(np.array(jax.devices()), ("data",)), spec))


def updater(loss, optimizer, seed, fixed=()):
    """A function (params, state, rows, step) -> (params, state, loss) that makes one step."""
    fixed = spread(fixed, PartitionSpec())

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params, state, rows, step, fixed):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), step), jax.tree.leaves(rows)[0].shape[:2])

        def add_part(total, part):
            def mean(params):
                return jax.vmap(lambda row, key: loss(params, row, key, *fixed))(*part).mean()

            return jax.tree.map(jnp.add, total, jax.value_and_grad(mean)(params)), None

        total, _ = jax.lax.scan(add_part, jax.tree.map(jnp.zeros_like, (0.0, params)), (rows, keys))
        value, grads = jax.tree.map(lambda x: x / len(keys), total)
        changes, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, changes), state, value

    return lambda *args: update(*args, fixed)


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


def fit(params, loss, rows, held_out, save, optimizer, folder, settings, fixed=()):
    """Trains params on loss; calls save(params, history) whenever held_out(params) is lower than ever. Returns history.

    loss(params, row, key, *fixed) -> float: of one row; rows(rng) -> an array [batch_size, ...], or a tree of such;
    held_out(params) -> float; optimizer(steps) -> an optimizer of optax.
    settings: a dict with steps (None: as many as fit in minutes), minutes, eval_every, seed, maybe patience (how many
    evaluations that bring nothing better end it), and whatever else decides what comes out. The folder keeps the state
    of the last evaluation until the caller, whose work may not be done yet, calls finish(folder).
    history: [step, mean loss since the one before, held-out loss] for each evaluation, one every eval_every steps.
    Raises ValueError if a loss is no number any more, or if the state in folder belongs to other settings.
    """
    from tqdm import tqdm

    eval_every, seed = settings["eval_every"], settings["seed"]

    def batch(step):  # depends on nothing else, so that a training which goes on sees what it would have seen
        drawn = rows(np.random.default_rng([seed, step]))
        # on a CPU a row a device at a time, whose numbers stay in its cache (a third faster); elsewhere all at once
        at_once = jax.device_count() if jax.default_backend() == "cpu" else len(jax.tree.leaves(drawn)[0])
        return spread(jax.tree.map(lambda x: x.reshape(-1, at_once, *x.shape[1:]), drawn), PartitionSpec(None, "data"))

    def check(value):
        if not math.isfinite(value):
            raise ValueError(
                f"the loss is {value} at step {step + 1}: try a lower learning_rate under another name; "
                + (f"{folder} keeps the best weights so far" if history else "nothing was saved so far")
            )

    steps = (
        settings["steps"]
        or _saved_steps(folder)
        or _steps_in(
            settings["minutes"],
            updater(loss, optimizer(1000), seed, fixed),
            params,
            optimizer(1000).init(params),
            batch(0),
        )
    )
    update = updater(loss, optimizer(steps), seed, fixed)
    tree = params, optimizer(steps).init(params), params  # the weights, the optimizer's state, the best weights
    tree, history = read_state(folder, settings, tree) or (tree, [])
    if history:
        save(tree[2], history)  # in case the kill came between the state and the model
    params, state, best = jax.tree.map(jnp.array, tree)  # copies, as update reuses the memory of what it is given
    losses, begin = [], int(history[-1][0]) if history else 0
    with tqdm(desc="training", total=steps, initial=begin, disable=None) as bar:
        for step in range(begin, steps):
            if history and np.argmin([found for *_, found in reversed(history)]) >= settings.get("patience", steps):
                break
            now, made = batch(step), step + 1
            params, state, value = update(params, state, now, step)
            losses.append(float(value))
            check(losses[-1])
            if made % eval_every == 0 or made == steps:
                found = held_out(params)
                check(found)
                better = not history or found < min(row[2] for row in history)
                history.append([made, sum(losses) / len(losses), found])
                best, losses = jax.tree.map(np.array, params) if better else best, []
                write_state(folder, settings, steps, (params, state, best), history)
                if better:
                    save(best, history)
                tqdm.write("step {}: loss {:.4f}, held out {:.4f}".format(*history[-1]), file=sys.stderr)
            bar.update()
            last = f", held out {history[-1][2]:.3f}" if history else ""
            bar.set_postfix_str(
                f"loss {value:.3f}{last}, {jax.tree.leaves(now)[0].size * (bar.format_dict['rate'] or 0):.0f} tokens/s"
            )
    return history


def _steps_in(minutes, update, params, state, rows):
    """How many updates fit into so many minutes; the first compiles and does not count."""
    params, state, value = update(*jax.tree.map(jnp.array, (params, state)), rows, 0)
    start, n = time.perf_counter(), 5
    for step in range(n):
        params, state, value = update(params, state, rows, step)
    value.block_until_ready()
    return max(1, int(n * 60 * minutes / (time.perf_counter() - start)))


# --- its state on disk ---


def load_npz(path, *names):
    """{name: array} of a file that NumPy saved, of all or of these. Raises ValueError for any other file."""
    try:
        with np.load(path) as file:
            return {name: file[name] for name in names or file}
    except (ValueError, EOFError, KeyError, TypeError, AttributeError, NotImplementedError, zipfile.BadZipFile):
        raise ValueError(
            f"{path} is damaged, or another program's: remove it, or what it is in, and begin again"
        ) from None


def state_path(folder):
    return os.path.join(folder, files.STATE)


def write_state(folder, settings, steps, tree, history):
    """Keeps the last evaluation's state, all at once."""
    leaves = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(tree))}
    os.makedirs(folder, exist_ok=True)
    files.write_whole(
        state_path(folder),
        lambda part: np.savez(part, settings=json.dumps(settings), steps=steps, history=history, **leaves),
    )


def check_state(folder, settings):
    """Whether the folder holds the state of a run with these settings. Raises ValueError unless it does, or is new.

    To be called before anything takes long or is written.
    """
    files.check_new(folder)
    if not os.path.exists(state_path(folder)):
        return False
    files.same_work(folder, str(load_npz(state_path(folder), "settings")["settings"]), settings)
    return True


def _saved_steps(folder):
    return int(load_npz(state_path(folder), "steps")["steps"]) if os.path.exists(state_path(folder)) else None


def read_state(folder, settings, tree):
    """(tree, history) as write_state had them, with the structure of tree; None where there is none."""
    if not check_state(folder, settings):
        return None
    leaves, structure = jax.tree.flatten(tree)
    saved = load_npz(state_path(folder))
    found = [saved.get(str(i)) for i in range(len(leaves))]
    if [np.shape(x) for x in found] != [np.shape(x) for x in leaves] or "history" not in saved:
        raise ValueError(f"{folder} holds a run of another version of this program: give another name, or remove it")
    return jax.tree.unflatten(structure, found), saved["history"].tolist()


def finish(folder):
    """Marks the folder as finished."""
    os.remove(state_path(folder))


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
    if settings["batch_size"] % jax.device_count():
        raise ValueError(
            f"batch_size={settings['batch_size']} must be a multiple of {jax.device_count()}, the number of devices"
        )


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
