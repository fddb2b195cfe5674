"""The model in training: gpt2.py in JAX with dropout, its loss on a sequence, and its loss on a held-out text."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

from beyond import variant
from beyond.devices.sharding import all_devices, put_rows
from beyond.learn import losses, precision
import gpt2


def linear(x, w, b):  # [..., n_in], [n_in, ...], [...] -> [..., ...]; the w of c_attn may be [n_embd, 3, n_head, d]
    return jnp.tensordot(x, w, 1) + b


model = variant(gpt2, np=jnp, linear=linear)  # gpt2.py with jax.numpy
in_jax = variant(losses, np=jnp, highest=lambda x: jax.lax.stop_gradient(x.max(axis=-1)))  # its gradient cancels out


def transformer_block(x, mlp, attn, ln_1, ln_2, n_head, keep, kv=None, past=0):  # [n_seq, n_embd] -> [n_seq, n_embd]
    attended, processed, *embedded = keep  # masks [n_seq, n_embd]; the first block has another one for the embedding
    x = x * embedded[0] if embedded else x
    x = x + attended * model.mha(model.layer_norm(x, **ln_1), **attn, n_head=n_head)
    return x + processed * model.ffn(model.layer_norm(x, **ln_2), **mlp)


def dropout(params, key, rate, n_seq):
    """params with random masks in each block's keep: 0 with probability rate, otherwise 1 / (1 - rate).

    Without it, a model that reads a text 25 times memorizes it (https://arxiv.org/abs/1207.0580).
    """
    shape = 2 * len(params["blocks"]) + 1, n_seq, params["wte"].shape[1]
    masks = jax.random.bernoulli(key, 1.0 - rate, shape) / (1 - rate)
    blocks = [{**block, "keep": masks[2 * i : 2 * i + 2]} for i, block in enumerate(params["blocks"])]
    blocks[0]["keep"] = masks[0], masks[1], masks[-1]
    return {**params, "blocks": blocks}


def training_model(dtype="float32", dropped=True, rematerialize=False):
    """The model with or without dropout and, by precision.py, in bfloat16 or rematerialized."""
    is_half = dtype == "bfloat16"
    learning = precision.in_bfloat16(model) if is_half else model
    if dropped:
        learning = variant(learning, transformer_block=variant(sys.modules[__name__], model=learning).transformer_block)
    learning = precision.rematerialized(learning) if rematerialize else learning
    return precision.with_projection_in_bfloat16(learning) if is_half else learning


def token_losses(params, inputs, n_head, model=model):  # [n_seq + 1] -> [n_seq]
    """-log p of each of inputs[1:], in nats."""
    return in_jax.cross_entropy(model.gpt2(inputs[:-1], **params, n_head=n_head), inputs[1:])


def lm_loss(params, inputs, n_head, model=model):  # [n_seq + 1] -> float
    """The mean cross-entropy of the next tokens, in nats."""
    return token_losses(params, inputs, n_head, model).mean()


def held_out_loss(params, ids, n_head, stride, batch_size=8, mesh=None):
    """The mean loss of ids[1:] in nats, each scored once, in windows of n_ctx tokens at this stride.

    ids: n_ctx + 1 or more. After the first window each token has at least n_ctx - stride tokens of context.
    """
    mesh = mesh or all_devices()
    n_ctx, n = len(params["wpe"]), len(ids) - 1
    starts = np.append(np.arange(0, n - n_ctx, stride), n - n_ctx)[:, None]
    new = starts + np.arange(n_ctx) >= np.append(0, starts[:-1] + n_ctx)[:, None]  # not scored by the window before
    windows = np.asarray(ids)[starts + np.arange(n_ctx + 1)].astype(np.int32)
    padding = (0, -len(windows) % batch_size), (0, 0)  # so that all batches have one shape, and jit compiles once
    windows, new = np.pad(windows, padding), np.pad(new, padding)
    batches = [slice(i, i + batch_size) for i in range(0, len(new), batch_size)]
    return sum(float(_sum_of_losses(params, *put_rows((windows[i], new[i]), mesh), n_head)) for i in batches) / n


@functools.partial(jax.jit, static_argnums=3)
def _sum_of_losses(params, sequences, counted, n_head):
    return (jax.vmap(lambda sequence: token_losses(params, sequence, n_head))(sequences) * counted).sum()
