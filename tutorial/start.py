"""The file to start with: copy it and replace each `...` with code, from top to bottom.

    cp tutorial/start.py mine.py
    python -m tutorial.check mine.py

The comment after each def gives the shapes of its inputs and output, as in gpt2.py. All arrays are float32.
"""

import numpy as np


def gelu(x):  # any shape -> same shape
    """The activation function: near 0 for very negative x, near x for large x. GPT-2 uses the tanh form."""
    ...


def softmax(x):  # [..., n] -> [..., n]
    """Turns logits into probabilities: positive, and each row sums to 1. Logits may be as large as 1000."""
    ...


def layer_norm(x, g, b, eps=1e-5):  # [..., n_embd] -> [..., n_embd]
    """Gives each row mean 0 and variance 1, then multiplies by g and adds b."""
    ...


def linear(x, w, b):  # [..., n_in], [n_in, n_out], [n_out] -> [..., n_out]
    """Multiplies x by the matrix w and adds the bias b."""
    ...


def ffn(x, c_fc, c_proj):  # [n_seq, n_embd] -> [n_seq, n_embd]
    """Processes each token alone: c_fc to 4 * n_embd, gelu, c_proj back. Both layers are {"w": ..., "b": ...}."""
    ...


def attention(q, k, v, mask):  # [..., n_q, d], [..., n_k, d], [..., n_k, d], [n_q, n_k] -> [..., n_q, d]
    """Mixes the values for each query, weighted by how well their keys match it. mask: 0, or -1e10 to hide a key."""
    ...


def mha(x, c_attn, c_proj, n_head):  # [n_seq, n_embd] -> [n_seq, n_embd]
    """Lets each token look at itself and earlier ones, with n_head heads. c_attn gives q, k, v; c_proj comes last."""
    ...


def transformer_block(x, mlp, attn, ln_1, ln_2, n_head):  # [n_seq, n_embd] -> [n_seq, n_embd]
    """Adds the output of mha to x, then the output of ffn to that. Each takes x after a layer norm."""
    ...


def gpt2(inputs, wte, wpe, blocks, ln_f, n_head):  # [n_seq] -> [n_seq, n_vocab]
    """Logits: row i scores every token of the vocabulary as the one that follows inputs[:i + 1]."""
    ...


def generate(inputs, params, n_head, n_tokens_to_generate):  # a list of ids -> a list of the ids that follow
    """Calls gpt2(ids, **params, n_head=n_head) repeatedly and appends the most probable next token each time."""
    ...
