"""Less time or less memory per step, each as a variant of the model in training.

in_bfloat16: matrix products, which take most of the time, are several times faster on GPUs, TPUs and some CPUs. Weights
and sums stay float32, as rounding would swallow small steps (Micikevicius et al. 2018,
https://arxiv.org/abs/1710.03740).

rematerialized (gradient checkpointing): the forward pass keeps only the input of each block, and the backward pass
recomputes the rest: a third more work, but memory for the activations of one block instead of all (Chen et al. 2016,
https://arxiv.org/abs/1604.06174). On a CPU it saves nothing, because XLA merges the two identical computations.
"""

import functools

import jax
import jax.numpy as jnp

from beyond import variant


def half(x):
    return x.astype(jnp.bfloat16)


def linear(x, w, b):  # as learner.linear
    return jnp.tensordot(half(x), half(w), 1).astype(jnp.float32) + b


def attention(q, k, v, mask):  # as gpt2.attention
    scores = (half(q / q.shape[-1] ** 0.5) @ half(k).swapaxes(-1, -2)).astype(jnp.float32) + mask
    return (half(jax.nn.softmax(scores)) @ half(v)).astype(jnp.float32)


def in_bfloat16(model):
    """The model with the products of its blocks in bfloat16."""
    return variant(model, linear=linear, attention=attention)


def with_projection_in_bfloat16(model):
    """The model with the projection to logits, a third of a small model's work, in bfloat16."""
    return variant(model, gpt2=lambda x, wte, **rest: linear(model.hidden_states(x, wte, **rest), wte.T, 0.0))


def rematerialized(model):
    """The model with blocks whose activations are recomputed in the backward pass."""

    def transformer_block(x, n_head, kv, past, **arrays):
        return jax.checkpoint(functools.partial(model.transformer_block, n_head=n_head))(x, **arrays)

    return variant(model, transformer_block=transformer_block)
