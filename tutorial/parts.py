"""What each part of GPT-2 contributes: the held-out loss as a bigram table grows into a transformer, part by part.

    python -m tutorial.parts input.txt

input.txt is tinyshakespeare; models/shakespeare/README.md says where to get it. The command evaluates three tables of
counts, then trains ten small models from scratch with 2000 updates each. On one core this takes one minute for a model
with one block, three for a model with four. The held-out text is used only for measuring. The results are written to
tutorial/parts.json, and python -m tutorial.figures plots them.

A part is removed by leaving out its parameters: without them, layer_norm, mha and ffn do nothing. The rest is gpt2.py,
via beyond.variant.
"""

import functools
import json
import os
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from beyond import variant
from beyond.devices.sharding import all_devices
from beyond.files import reading, writing
from beyond.files.style import BLUE, GREEN, GREY, ORANGE
from beyond.formats import checkpoint
from beyond.learn import learner, loop, optimizers
import cli
from tutorial.drawing import bar, legend, sheet, write
import utils

HERE = os.path.dirname(os.path.abspath(__file__))
SETTINGS = {"n_ctx": 64, "n_embd": 64, "batch_size": 16, "steps": 2000, "learning_rate": 3e-3, "seed": 0}
LABELS = {  # each row adds one part, up to GPT-2; the last three remove one
    "uniform": "a blind guess",
    "counts": "counts of tokens",
    "pairs": "counts of pairs: a bigram table",
    "embeddings": "embeddings instead",
    "positions": "+ positions",
    "one head": "+ attention, one head",
    "heads": "four heads instead",
    "feed-forward": "+ feed-forward network",
    "depth": "four blocks instead of one",
    "GPT-2": "+ weight tying: GPT-2",
    "no positions": "... without positions",
    "no layer norms": "... without layer norms",
    "no residuals": "... without residuals",
}


class Parts(NamedTuple):
    """The parts of a model. learned: its parameters besides wte; out: a separate output matrix."""

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


def count_loss(training, held_out, n_vocab):  # [n], [m], int -> float
    """The mean -log p of held_out[1:], in nats. p: the frequency of a token in training, with 1 added to each count."""
    counts = np.bincount(training, minlength=n_vocab) + 1
    return -np.log(counts / counts.sum())[held_out[1:]].mean()


def pair_loss(training, held_out, n_vocab, k=0.1):  # [n], [m], int -> float
    """The same, but p depends on the previous token. k is added to each count, because most pairs never occur."""
    counts = np.full((n_vocab, n_vocab), k)
    np.add.at(counts, (training[:-1], training[1:]), 1)
    return -np.log(counts / counts.sum(axis=1, keepdims=True))[held_out[:-1], held_out[1:]].mean()


# --- models with missing parts ---


def layer_norm(x, g=None, b=None):
    return x if g is None else learner.model.layer_norm(x, g, b)


def mha(x, c_attn=None, c_proj=None, n_head=1, kv=None, past=0):
    return 0 if c_attn is None else learner.model.mha(x, c_attn, c_proj, n_head)


def ffn(x, c_fc=None, c_proj=None):
    return 0 if c_fc is None else learner.model.ffn(x, c_fc, c_proj)


def without_residuals(x, mlp, attn, ln_1, ln_2, n_head, kv=None, past=0):
    return ffn(layer_norm(mha(layer_norm(x, **ln_1), **attn, n_head=n_head), **ln_2), **mlp)


def model_of(spec):
    """gpt2.py with optional parts, and one more parameter, out, which replaces wte at the output."""
    changed = {"layer_norm": layer_norm, "mha": mha, "ffn": ffn}
    if not spec.residuals:
        changed["transformer_block"] = without_residuals
    model = variant(learner.model, **changed)

    def gpt2(inputs, wte, wpe, blocks, ln_f, out, n_head):  # [n_seq] -> [n_seq, n_vocab]
        return model.hidden_states(inputs, wte, wpe, blocks, ln_f, n_head) @ out.T

    return variant(model, gpt2=gpt2)


def initial_params(spec, n_vocab, n_ctx, n_embd, seed):
    """The initial values of the parameters that spec includes, out of GPT-2's and the output matrix."""
    full = checkpoint.initial_params(n_vocab, n_ctx, n_embd, spec.n_head, max(1, spec.n_layer), seed)
    full["out"] = checkpoint.initial_params(n_vocab, 1, n_embd, 1, 1, seed + 1)["wte"]

    def kept(tree):
        return {name: part for name, part in tree.items() if name in spec.learned.split()}

    return {"wte": full["wte"], "blocks": [kept(block) for block in full["blocks"][: spec.n_layer]], **kept(full)}


def whole(params, n_ctx):
    """The params that gpt2 takes, with empty or zero ones for the missing parts."""
    nothing = {name: {} for name in ("attn", "mlp", "ln_1", "ln_2")}
    wpe = np.zeros((n_ctx, params["wte"].shape[1]), np.float32)
    blocks = [{**nothing, **block} for block in params["blocks"]]
    return {"wpe": wpe, "ln_f": {}, "out": params["wte"], **params, "blocks": blocks}


def train_one(spec, training, held_out, n_vocab, n_ctx, n_embd, batch_size, steps, learning_rate, seed):
    """(held-out loss in nats per token, number of parameters) of a model with these parts, trained from scratch."""
    from tqdm import tqdm

    model = model_of(spec)
    params = initial_params(spec, n_vocab, n_ctx, n_embd, seed)
    measure = variant(learner, token_losses=functools.partial(learner.token_losses, model=model)).held_out_loss

    def loss(params, sequence, key):
        return learner.lm_loss(whole(params, n_ctx), sequence, spec.n_head, model)

    def sequences(rng):
        return training[rng.integers(len(training) - n_ctx, size=(batch_size, 1)) + np.arange(n_ctx + 1)]

    optimizer = optimizers.muon_and_adamw(steps, learning_rate, weight_decay=0.1)
    update = loop.updater(loss, optimizer, seed, all_devices())
    tree = jax.tree.map(jnp.array, params), optimizer.init(params), None  # a copy, as update reuses its memory
    for step in tqdm(range(steps), "training", leave=False, disable=None):
        tree, _ = update(tree, sequences(np.random.default_rng([seed, step]))[None], step)
    params = tree[0]
    return measure(whole(params, n_ctx), held_out, spec.n_head, n_ctx), sum(x.size for x in jax.tree.leaves(params))


# --- the picture ---


def parts(say):
    """The held-out loss of each table and model, with the change; the last three are GPT-2 without one part."""
    with open(os.path.join(HERE, "parts.json"), encoding="utf-8") as file:
        found = json.load(file)["parts"]
    axes = sheet(19 * len(LABELS) + 24)
    before = None
    for i, (name, label) in enumerate(LABELS.items()):
        ablated = name.startswith("no ")
        loss = found[name]["loss"]
        y = 10 + 19 * i + 8 * ablated
        write(axes, 186, y, say(label), 9.5, "right")
        color = GREY if name not in MODELS else ORANGE if ablated else GREEN if name == "GPT-2" else BLUE
        bar(axes, 192, y - 6, 32 * loss, 12, color)
        change = "" if before is None else f"  ({loss - before:+.2f})"
        write(axes, 196 + 32 * loss, y, f"{loss:.2f}{change}", 9, "left")
        before = before if ablated else loss
    entries = (GREY, say("counted")), (BLUE, say("trained")), (ORANGE, say("trained without one part"))
    legend(axes, 192, 19 * len(LABELS) + 16, *entries)
    return axes


# --- the command ---


def main(text, out="tutorial/parts.json"):
    """Measures what each part of GPT-2 contributes to the held-out loss, and writes the results to a file.

    Args:
        text: The path of tinyshakespeare, whose last tenth is models/shakespeare/held_out.txt; - reads standard input.
        out: The JSON file for the results.
    """
    writing.check_file(out, lambda file: file.read(13) == b'{\n "command":', text)
    content = reading.read_text(text)
    encoder, hparams, _ = utils.load_encoder_hparams_and_params("shakespeare", "models")
    n = len(content) * 9 // 10
    if content[n:] != reading.read_text(utils.folder_of("shakespeare", "models") + "/held_out.txt"):
        raise ValueError(f"the last tenth of {text} is not models/shakespeare/held_out.txt: pass tinyshakespeare")
    training, held_out = (np.array(encoder.encode(part)) for part in (content[:n], content[n:]))
    n_vocab = hparams["n_vocab"]
    found = {
        "uniform": (np.log(n_vocab), 0),
        "counts": (count_loss(training, held_out, n_vocab), n_vocab),
        "pairs": (pair_loss(training, held_out, n_vocab), n_vocab**2),
    }
    for name, spec in MODELS.items():
        found[name] = train_one(spec, training, held_out, n_vocab, **SETTINGS)
        print(f"{name}: {found[name][0]:.3f}", file=sys.stderr)
    other_seeds = {
        name: [train_one(MODELS[name], training, held_out, n_vocab, **{**SETTINGS, "seed": seed})[0] for seed in (1, 2)]
        for name in ("one head", "heads")
    }
    result = {
        "command": "python -m tutorial.parts input.txt",
        "environment": {"XLA_FLAGS": os.environ.get("XLA_FLAGS", ""), "jax": jax.__version__},
        "settings": SETTINGS,
        "parts": {name: {"loss": round(float(loss), 3), "n_params": size} for name, (loss, size) in found.items()},
        "other_seeds": {name: [round(loss, 3) for loss in losses] for name, losses in other_seeds.items()},
    }
    writing.write_text(out, json.dumps(result, indent=1) + "\n")
    return f"{out}: " + ", ".join(f"{name} {part['loss']:.2f}" for name, part in result["parts"].items())


if __name__ == "__main__":
    cli.run(main)
