"""The file to begin with: copy it, and write a body in place of each `...`, from top to bottom.

    cp tutorial/start.py mine.py
    python -m tutorial.check mine.py

Beside each def, as in gpt2.py, are the shapes of what goes in and of what comes out. All arrays are float32.
"""

import numpy as np


def gelu(x):  # any shape -> same shape
    """Bends: 0 far to the left, x far to the right. GPT-2 has the form with tanh."""
    ...


def softmax(x):  # [..., n] -> [..., n]
    """Makes probabilities of logits: positive, and each row sums to 1. The logits may be as large as 1000."""
    ...


def layer_norm(x, g, b, eps=1e-5):  # [..., n_embd] -> [..., n_embd]
    """Gives each row mean 0 and variance 1, then multiplies by g and adds b."""
    ...


def linear(x, w, b):  # [..., n_in], [n_in, n_out], [n_out] -> [..., n_out]
    """Multiplies by a matrix and adds a bias."""
    ...


def ffn(x, c_fc, c_proj):  # [n_seq, n_embd] -> [n_seq, n_embd]
    """Works on each token alone: up to 4 * n_embd by c_fc, gelu, and back by c_proj, both {"w": ..., "b": ...}."""
    ...


def attention(q, k, v, mask):  # [..., n_q, d], [..., n_k, d], [..., n_k, d], [n_q, n_k] -> [..., n_q, d]
    """Mixes the values for each query, most of all those whose keys fit. mask is 0, or -1e10 where it must not look."""
    ...


def mha(x, c_attn, c_proj, n_head):  # [n_seq, n_embd] -> [n_seq, n_embd]
    """Lets tokens look at themselves and at earlier ones, with n_head heads: c_attn makes q, k, v, c_proj ends it."""
    ...


def transformer_block(x, mlp, attn, ln_1, ln_2, n_head):  # [n_seq, n_embd] -> [n_seq, n_embd]
    """Adds to x what mha makes of it, then what ffn makes of that, each after a layer norm."""
    ...


def gpt2(inputs, wte, wpe, blocks, ln_f, n_head):  # [n_seq] -> [n_seq, n_vocab]
    """Gives logits: row i scores every token as the one that follows inputs[:i + 1]."""
    ...


def generate(inputs, params, n_head, n_tokens_to_generate):  # a list of ids -> a list of the ids that follow
    """Asks gpt2(ids, **params, n_head=n_head) for the most probable token, again and again, each time with one more."""
    ...
