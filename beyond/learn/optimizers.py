"""The optimizers, from optax: AdamW to adapt a model, Muon with AdamW to train one from scratch."""

import functools
import math

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon


def schedule(steps, learning_rate):
    """The learning rate of each step: a short linear warm-up, then a cosine decay to 2%.

    Update i of the first n has (i + 1) / (n + 1) of the learning rate: starting at 0 would waste the first one.
    """
    n = min(math.ceil(0.03 * steps), steps - 1)
    return optax.warmup_cosine_decay_schedule(learning_rate / (n + 1), learning_rate, n, steps, 0.02 * learning_rate)


def adamw(steps, learning_rate):
    """AdamW (https://arxiv.org/abs/1711.05101), with a small weight decay, for matrices only, so that the base model is
    not forgotten."""
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
    """Muon (https://kellerjordan.github.io/posts/muon) for the blocks' matrices, AdamW for everything else.

    Muon orthogonalizes its updates, so it takes fewer steps. The updates are scaled to the size of AdamW's
    (https://arxiv.org/abs/2502.16982), so that both use one learning rate. Weight decay is for those matrices only: the
    g of a layer norm already has the right size. Gradients are clipped because of rare bad batches.
    """

    def for_muon(path, x):  # all axes of a w but the first are its outputs
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
