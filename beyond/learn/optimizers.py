"""Optimizers."""

import functools
import math

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon


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
