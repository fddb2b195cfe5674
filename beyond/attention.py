"""Look inside: which tokens each head attends to, and how the prediction forms from block to block.

    python -m beyond.attention "Not all heroes wear capes" --model_size shakespeare --out page.html

writes a page for the browser, which needs no network, and prints

    page.html: 11 tokens, 36,320 bytes

attention is redefined to keep its weights, and look keeps the output of each block. The rest is gpt2.py unchanged, so
the page shows exactly the numbers that the logits are computed from. Only the last block's output is meant for the
final layer norm and wte; applied to the output of an earlier block, they show what the model would predict if it ended
there (nostalgebraist's "logit lens", 2020,
https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens).

A weight w is stored in the page as one byte, round(255 * sqrt(w)), which keeps small weights distinct; its error is at
most 0.004. Only the lower triangle is stored, as no token attends to later ones.
"""

import base64
import json
import os
import sys

import numpy as np

from beyond import variant
from beyond.files import writing
import cli
from encoder import to_bytes
import gpt2
from gpt2 import layer_norm, softmax
import utils

TEMPLATE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "attention.html")
VIEWS = os.path.join(os.path.dirname(TEMPLATE), "..", "page", "views.mjs")  # the live page uses it as well
MARK = b"<!-- a page of beyond/attention.py -->"  # marks our own pages, which may be overwritten


def look(inputs, params, n_head):
    """(weights [n_layer, n_head, n_seq, n_seq], outputs of the blocks [n_layer, n_seq, n_embd]) of one pass."""
    n, kept, weights, states = len(inputs), [], [], []

    def attention(q, k, v, mask):  # [..., n_q, d], [..., n_k, d], [..., n_k, d], [n_q, n_k] -> [..., n_q, d]
        kept.append(softmax(q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5 + mask))
        return kept[-1] @ v

    model = variant(gpt2, attention=attention)
    x = params["wte"][inputs] + params["wpe"][:n]
    for block in params["blocks"]:
        x = model.transformer_block(x, **block, n_head=n_head)
        states.append(x)
        # attention is called with chunks of queries and the keys they may attend to; the other weights are 0
        chunks = [np.pad(chunk, ((0, 0), (0, 0), (0, n - chunk.shape[2]))) for chunk in kept]
        weights.append(np.concatenate(chunks, axis=1))
        kept.clear()
    return np.array(weights), np.array(states)


def next_tokens(states, params, n=10):
    """(ids, probabilities), each [n_layer, n_seq, n]: the most probable next tokens if a block were the last."""
    ids, probs, n = [], [], min(n, len(params["wte"]))
    for x in states:  # one by one, as logits take a lot of memory
        found = softmax(layer_norm(x, **params["ln_f"]) @ params["wte"].T)
        best = np.argpartition(-found, n - 1, axis=-1)[:, :n]  # sorting all of them takes ten times as long
        best = np.take_along_axis(best, np.argsort(-np.take_along_axis(found, best, axis=-1), axis=-1), axis=-1)
        ids.append(best)
        probs.append(np.take_along_axis(found, best, axis=-1))
    return np.array(ids), np.array(probs)


def visible(token):
    """A token with visible white space, · for a space; in hexadecimal if its bytes are not whole characters."""
    data = to_bytes(token)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return data.hex(" ")
    shown = {" ": "·", "\n": "⏎", "\t": "⇥"}
    return "".join(shown.get(char, char if char.isprintable() else f"\\{ord(char):x}") for char in text)


def page(inputs, encoder, params, n_head):
    """The HTML of the page for a list of ids."""
    weights, states = look(inputs, params, n_head)
    ids, probs = next_tokens(states, params)
    cli.check_numbers(probs)
    lower = weights[(..., *np.tril_indices(len(inputs)))]  # [n_layer, n_head, n_seq * (n_seq + 1) / 2]
    known = sorted({*inputs, *ids.ravel().tolist()})
    data = {
        "ids": list(map(int, inputs)),
        "nLayer": len(weights),
        "nHead": n_head,
        "names": {int(id): visible(encoder.decoder.get(id, "")) for id in known},
        "next": ids.tolist(),
        "probs": np.round(probs, 4).tolist(),
        "weights": base64.b64encode(np.round(255 * np.sqrt(lower)).astype(np.uint8).tobytes()).decode(),
    }
    with open(TEMPLATE, encoding="utf-8") as template, open(VIEWS, encoding="utf-8") as views:
        # a page opened from disk cannot load modules, so this one becomes part of its script
        text = template.read().replace("{VIEWS}", views.read().replace("\nexport ", "\n"))
    return text.replace("{DATA}", json.dumps(data).replace("<", "\\u003c"))


def main(prompt: str = None, *, out="attention.html", model_size="124M", models_dir="models"):
    """Writes a page that shows what the model computes for a prompt: each head's attention, each block's prediction.

    Args:
        prompt: The text to examine; - reads standard input.
        out: The path of the page.
    """
    prompt = cli.read_prompt(prompt)
    writing.check_file(out, lambda file: MARK in file.read(200))
    encoder, hparams, params = utils.load_encoder_hparams_and_params(model_size, models_dir)
    inputs = cli.encode_prompt(encoder, prompt)
    cli.check_inputs(inputs, params, 0)
    if (size := hparams["n_layer"] * hparams["n_head"] * len(inputs) ** 2 // 2 * 4 // 3) > 20e6:  # in base64
        print(f"{len(inputs)} tokens make a page of {size / 1e6:.0f} MB, which is slow to display", file=sys.stderr)
    writing.write_text(out, page(inputs, encoder, params, hparams["n_head"]))
    return f"{out}: {len(inputs)} tokens, {os.path.getsize(out):,} bytes"


if __name__ == "__main__":
    cli.run(main)
