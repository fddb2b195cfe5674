"""Cross-entropy: for NumPy as it is, and for JAX as a variant of this module (see learner.py)."""

import numpy as np


def highest(logits):  # [..., n_vocab] -> [...]
    return logits.max(axis=-1)


def cross_entropy(logits, targets):  # [..., n_vocab], [...] -> [...]
    """-log p of each target, in nats, where p is the softmax of its logits. Stays finite where p rounds to 0."""
    most = highest(logits)  # subtracted, so that exp does not overflow
    chosen = np.take_along_axis(logits, np.asarray(targets)[..., None], axis=-1)[..., 0]
    return np.log(np.exp(logits - most[..., None]).sum(axis=-1)) - (chosen - most)
