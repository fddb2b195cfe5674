"""The start of each section of the article: the model, and its loss on a little held-out text."""

import numpy as np

from beyond import variant
import gpt2
from utils import folder_of, load_encoder_hparams_and_params

encoder, hparams, params = load_encoder_hparams_and_params("shakespeare", "models")
n_head = hparams["n_head"]


def held_out_loss(params=params, **functions):
    """The mean loss, in nats per token, on the first 256 held-out tokens.

    held_out_loss(softmax=mine) is the loss of gpt2.py with your function in place of its own.
    """
    with open(folder_of("shakespeare", "models") + "/held_out.txt", encoding="utf-8") as file:
        ids = encoder.encode(file.read(2000))[:256]
    logits = variant(gpt2, **functions).gpt2(ids[:-1], **params, n_head=n_head).astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return -log_probs[np.arange(255), ids[1:]].mean()
