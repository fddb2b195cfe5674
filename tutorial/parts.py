"""What each part of GPT-2 is for: the held-out loss falls as a table of pairs becomes a model, part by part.

    python -m tutorial.parts input.txt

input.txt is tinyshakespeare; models/shakespeare/README.md says where it is. Three tables are counted, then ten small
models trained, each from nothing with the same 2000 updates: a core takes one minute for those with one block, three
for those with four. The held-out text chooses nothing. tutorial/parts.json keeps what was found, and python -m
tutorial.figures draws it.

A part is left out by leaving out its parameters: where layer_norm, mha and ffn get none, they change nothing. The rest
is gpt2.py, by beyond.variant.
"""

import functools
import json
import os
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from beyond import checkpoint, files, fit, train, variant
from beyond.parallel import all_devices
from beyond.style import BLUE, GREEN, GREY, ORANGE
from tutorial.drawing import bar, legend, sheet, write
import utils

HERE = os.path.dirname(os.path.abspath(__file__))
SETTINGS = {"n_ctx": 64, "n_embd": 64, "batch_size": 16, "steps": 2000, "learning_rate": 3e-3, "seed": 0}
LABELS = {  # from nothing to GPT-2, and what GPT-2 is without one part
    "uniform": "a blind guess",
    "counts": "counts of tokens",
    "pairs": "counts of pairs: a bigram table",
    "embeddings": "embeddings in its place",
    "positions": "+ positions",
    "one head": "+ attention, one head",
    "heads": "four heads in its place",
    "feed-forward": "+ feed-forward network",
    "depth": "four blocks instead of one",
    "GPT-2": "wte at the end, too: GPT-2",
    "no positions": "... without positions",
    "no layer norms": "... without layer norms",
    "no residuals": "... without residuals",
}


class Parts(NamedTuple):
    """What a model has. learned: which parameters besides wte; out: a matrix of its own for the output."""

    learned: str = ""
    n_layer: int = 0
    n_head: int = 1
    residuals: bool = True


ALL = "wpe attn ln_1 mlp ln_2 ln_f"
MODELS = {
    "embeddings": Parts("out"),
    "positions": Parts("out wpe"),
    "one head": Parts("out wpe attn ln_1 ln_f", 1),
    "heads": Parts("out wpe attn ln_1 ln_f", 1, 4),
    "feed-forward": Parts(f"out {ALL}", 1, 4),
    "depth": Parts(f"out {ALL}", 4, 4),
    "GPT-2": Parts(ALL, 4, 4),
    "no positions": Parts("attn ln_1 mlp ln_2 ln_f", 4, 4),
    "no layer norms": Parts("wpe attn mlp", 4, 4),
    "no residuals": Parts(ALL, 4, 4, residuals=False),
}

# --- tables ---


def count_loss(learned, unseen, n_vocab):  # [n], [m], int -> float
    """The mean -log p of unseen[1:], in nats, where p is how often a token is in learned, once more for each."""
    counts = np.bincount(learned, minlength=n_vocab) + 1
    return -np.log(counts / counts.sum())[unseen[1:]].mean()


def pair_loss(learned, unseen, n_vocab, k=0.1):  # [n], [m], int -> float
    """Likewise, where p is how often a token follows the one before it; k for each pair, as most are never seen."""
    counts = np.full((n_vocab, n_vocab), k)
    np.add.at(counts, (learned[:-1], learned[1:]), 1)
    return -np.log(counts / counts.sum(axis=1, keepdims=True))[unseen[:-1], unseen[1:]].mean()


# --- models of which parts are missing ---


def layer_norm(x, g=None, b=None):
    return x if g is None else train.model.layer_norm(x, g, b)


def mha(x, c_attn=None, c_proj=None, n_head=1, kv=None, past=0):
    return 0 if c_attn is None else train.model.mha(x, c_attn, c_proj, n_head)


def ffn(x, c_fc=None, c_proj=None):
    return 0 if c_fc is None else train.model.ffn(x, c_fc, c_proj)


def without_residuals(x, mlp, attn, ln_1, ln_2, n_head, kv=None, past=0):
    return ffn(layer_norm(mha(layer_norm(x, **ln_1), **attn, n_head=n_head), **ln_2), **mlp)


def model_of(has):
    """gpt2.py whose parts may have no parameters, and which takes one more: out, in place of wte at the end."""
    changed = {"layer_norm": layer_norm, "mha": mha, "ffn": ffn}
    if not has.residuals:
        changed["transformer_block"] = without_residuals
    model = variant(train.model, **changed)

    def gpt2(inputs, wte, wpe, blocks, ln_f, out, n_head):  # [n_seq] -> [n_seq, n_vocab]
        return model.hidden_states(inputs, wte, wpe, blocks, ln_f, n_head) @ out.T

    return variant(model, gpt2=gpt2)


def initial_params(has, n_vocab, n_ctx, n_embd, seed):
    """What the model has of GPT-2's parameters, and out, before the first step."""
    full = checkpoint.initial_params(n_vocab, n_ctx, n_embd, has.n_head, max(1, has.n_layer), seed)
    full["out"] = checkpoint.initial_params(n_vocab, 1, n_embd, 1, 1, seed + 1)["wte"]

    def kept(tree):
        return {name: part for name, part in tree.items() if name in has.learned.split()}

    return {"wte": full["wte"], "blocks": [kept(block) for block in full["blocks"][: has.n_layer]], **kept(full)}


def whole(params, n_ctx):
    """params as gpt2 takes them: nothing in place of each part that is missing."""
    nothing = {name: {} for name in ("attn", "mlp", "ln_1", "ln_2")}
    wpe = np.zeros((n_ctx, params["wte"].shape[1]), np.float32)
    blocks = [{**nothing, **block} for block in params["blocks"]]
    return {"wpe": wpe, "ln_f": {}, "out": params["wte"], **params, "blocks": blocks}


def train_one(has, learned, unseen, n_vocab, n_ctx, n_embd, batch_size, steps, learning_rate, seed):
    """(held-out loss in nats a token, number of parameters) of a model that has these parts, trained from nothing."""
    from tqdm import tqdm

    model, params = model_of(has), initial_params(has, n_vocab, n_ctx, n_embd, seed)
    measure = variant(train, token_losses=functools.partial(train.token_losses, model=model)).held_out_loss

    def loss(params, row, key):
        return train.lm_loss(whole(params, n_ctx), row, has.n_head, model)

    def rows(rng):
        return learned[rng.integers(len(learned) - n_ctx, size=(batch_size, 1)) + np.arange(n_ctx + 1)]

    optimizer = fit.muon_and_adamw(steps, learning_rate, weight_decay=0.1)
    update = fit.updater(loss, optimizer, seed, all_devices())
    tree = jax.tree.map(jnp.array, params), optimizer.init(params), None  # a copy, as update reuses its memory
    for step in tqdm(range(steps), "training", leave=False, disable=None):
        tree, _ = update(tree, rows(np.random.default_rng([seed, step]))[None], step)
    params = tree[0]
    return measure(whole(params, n_ctx), unseen, has.n_head, n_ctx), sum(x.size for x in jax.tree.leaves(params))


# --- the picture ---


def parts(say):
    """The held-out loss of each table and model, and what changed it; the last three are GPT-2 without one part."""
    with open(os.path.join(HERE, "parts.json"), encoding="utf-8") as file:
        found = json.load(file)["parts"]
    axes, before = sheet(19 * len(LABELS) + 24), None
    for i, (name, label) in enumerate(LABELS.items()):
        left_out, loss, y = name.startswith("no "), found[name]["loss"], 10 + 19 * i + 8 * name.startswith("no ")
        write(axes, 186, y, say(label), 9.5, "right")
        color = GREY if name not in MODELS else ORANGE if left_out else GREEN if name == "GPT-2" else BLUE
        bar(axes, 192, y - 6, 32 * loss, 12, color)
        change = "" if before is None else f"  ({loss - before:+.2f})"
        write(axes, 196 + 32 * loss, y, f"{loss:.2f}{change}", 9, "left")
        before = before if left_out else loss
    entries = (GREY, say("counted")), (BLUE, say("trained")), (ORANGE, say("trained without one part"))
    legend(axes, 192, 19 * len(LABELS) + 16, *entries)
    return axes


# --- all of it ---


def main(text, out="tutorial/parts.json"):
    """Measures what each part of GPT-2 brings, and writes it to a file: the held-out loss of each model.

    Args:
        text: The path of tinyshakespeare, whose last tenth is models/shakespeare/held_out.txt; - reads standard input.
        out: The file for the results, JSON.
    """
    files.check_file(out, lambda file: file.read(13) == b'{\n "command":', text)
    content = files.read_text(text)
    encoder, hparams, _ = utils.load_encoder_hparams_and_params("shakespeare", "models")
    n = len(content) * 9 // 10
    if content[n:] != files.read_text(utils.folder_of("shakespeare", "models") + "/held_out.txt"):
        raise ValueError(f"the last tenth of {text} is not held_out.txt of models/shakespeare: give tinyshakespeare")
    learned, unseen = (np.array(encoder.encode(part)) for part in (content[:n], content[n:]))
    n_vocab = hparams["n_vocab"]
    found = {
        "uniform": (np.log(n_vocab), 0),
        "counts": (count_loss(learned, unseen, n_vocab), n_vocab),
        "pairs": (pair_loss(learned, unseen, n_vocab), n_vocab**2),
    }
    for name, has in MODELS.items():
        found[name] = train_one(has, learned, unseen, n_vocab, **SETTINGS)
        print(f"{name}: {found[name][0]:.3f}", file=sys.stderr)
    other = {
        name: [train_one(MODELS[name], learned, unseen, n_vocab, **{**SETTINGS, "seed": seed})[0] for seed in (1, 2)]
        for name in ("one head", "heads")
    }
    result = {
        "command": "python -m tutorial.parts input.txt",
        "environment": {"XLA_FLAGS": os.environ.get("XLA_FLAGS", ""), "jax": jax.__version__},
        "settings": SETTINGS,
        "parts": {name: {"loss": round(float(loss), 3), "n_params": size} for name, (loss, size) in found.items()},
        "other_seeds": {name: [round(loss, 3) for loss in losses] for name, losses in other.items()},
    }
    files.write_text(out, json.dumps(result, indent=1) + "\n")
    return f"{out}: " + ", ".join(f"{name} {part['loss']:.2f}" for name, part in result["parts"].items())


if __name__ == "__main__":
    utils.run(main, "text", "out")
