"""Look inside: which tokens each head looks at, and how the answer forms from block to block.

    python -m beyond.attention "Not all heroes wear capes" --model_size shakespeare --out page.html

writes one page, for a browser, that needs no network, and prints

    page.html: 11 tokens, 30,678 bytes

Redefined are attention, which here remembers its weights, and transformer_block, which remembers its output. All else
is gpt2.hidden_states as it stands, so the page shows the very numbers that make the logits. What a block gives is not
yet meant for the projection; put through the last layer norm and wte all the same, it shows what the model would say if
it ended there (the "logit lens", nostalgebraist 2020,
https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens).

A weight w goes into the page as one byte, round(255 * sqrt(w)), so that small ones keep their differences; what is read
off there is right to 0.004. Only the lower triangle is kept, as no token looks ahead.
"""

import base64
import json
import os
from unittest.mock import patch

import numpy as np

import gpt2
import utils
from encoder import CHAR_TO_BYTE
from gpt2 import layer_norm, softmax

WEIGHTS, STATES, BLOCK = [], [], gpt2.transformer_block
TEMPLATE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "attention.html")


def attention(q, k, v, mask):  # [..., n_q, d], [..., n_k, d], [..., n_k, d], [n_q, n_k] -> [..., n_q, d]
    WEIGHTS.append(softmax((q / q.shape[-1] ** 0.5) @ k.swapaxes(-1, -2) + mask))
    return WEIGHTS[-1] @ v


def transformer_block(x, **kwargs):  # [n_seq, n_embd] -> [n_seq, n_embd]
    STATES.append(BLOCK(x, **kwargs))
    return STATES[-1]


def look(inputs, params, n_head):
    """(weights [n_layer, n_head, n_seq, n_seq], outputs of the blocks [n_layer, n_seq, n_embd]) of one pass."""
    n, n_layer = len(inputs), len(params["blocks"])
    WEIGHTS.clear()
    STATES.clear()
    with patch.multiple(gpt2, attention=attention, transformer_block=transformer_block):
        gpt2.hidden_states(inputs, **params, n_head=n_head)
    weights, n_blocks = np.zeros((n_layer, n_head, n, n), np.float32), len(WEIGHTS) // n_layer
    for i, found in enumerate(WEIGHTS):  # of each layer one array for each block of queries
        first = sum(array.shape[1] for array in WEIGHTS[i - i % n_blocks:i])
        weights[i // n_blocks, :, first:first + found.shape[1], :found.shape[2]] = found
    return weights, np.array(STATES)


def next_tokens(states, params, n=10):
    """(ids, probabilities), each [n_layer, n_seq, n]: the most probable next tokens if a block were the last."""
    ids, probs = [], []
    for x in states:  # one by one, as logits take much memory
        found = softmax(layer_norm(x, **params["ln_f"]) @ params["wte"].T)
        best = np.argpartition(-found, n - 1, axis=-1)[:, :n]  # to sort the whole vocabulary takes ten times as long
        best = np.take_along_axis(best, np.argsort(-np.take_along_axis(found, best, axis=-1), axis=-1), axis=-1)
        ids.append(best)
        probs.append(np.take_along_axis(found, best, axis=-1))
    return np.array(ids), np.array(probs)


def visible(token):
    """A token as one can see it: · for a space, and bytes that are not a whole character in hexadecimal."""
    data = bytes(CHAR_TO_BYTE[char] for char in token) if token != "<|endoftext|>" else token.encode()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return data.hex(" ")
    return "".join({" ": "·", "\n": "⏎", "\t": "⇥"}.get(char, char if char.isprintable() else f"\\{ord(char):x}")
                   for char in text)


def page(inputs, encoder, params, n_head):
    """The page for a list of ids, as HTML."""
    weights, states = look(inputs, params, n_head)
    ids, probs = next_tokens(states, params)
    lower = weights[(..., *np.tril_indices(len(inputs)))]  # [n_layer, n_head, n_seq * (n_seq + 1) / 2]
    known = sorted({*inputs, *ids.ravel().tolist()})
    data = {"ids": list(map(int, inputs)), "nLayer": len(weights), "nHead": n_head,
            "names": {int(id): visible(encoder.decoder.get(id, "")) for id in known},
            "next": ids.tolist(), "probs": np.round(probs, 4).tolist(),
            "weights": base64.b64encode(np.round(255 * np.sqrt(lower)).astype(np.uint8).tobytes()).decode()}
    with open(TEMPLATE, encoding="utf-8") as file:
        return file.read().replace("{DATA}", json.dumps(data).replace("<", "\\u003c"))


def main(prompt: str = None, out="attention.html", model_size="124M", models_dir="models"):
    """Writes a page that shows what the model does with a prompt: attention of each head, next tokens at each block.

    Args:
        prompt: As for gpt2.py.
        out: The path of the page.
        model_size: As for gpt2.py.
        models_dir: As for gpt2.py.
    """
    prompt = utils.read_prompt(prompt)
    encoder, hparams, params = utils.load_encoder_hparams_and_params(model_size, models_dir)
    inputs = encoder.encode(prompt) or [encoder.encoder.get("<|endoftext|>")]
    utils.check_inputs(inputs, params, 0)
    content = page(inputs, encoder, params, hparams["n_head"])
    with open(f"{out}.part", "w", encoding="utf-8") as file:
        file.write(content)
    os.replace(f"{out}.part", out)
    return f"{out}: {len(inputs)} tokens, {os.path.getsize(out):,} bytes"


if __name__ == "__main__":
    utils.run(main, "prompt", "out", "model_size", "models_dir")
