"""Fine-tuning: a model that knows a language learns your text or your task. One command, five ways.

    cat *.py beyond/*.py > code.txt
    python -m beyond.finetune code.txt --model_size shakespeare --out models/coder --method lora --steps 100

teaches Shakespeare Python. Of 2,915,328 parameters, and from a held-out loss of 9.82 nats a token, the ways printed

    full      2,915,328 parameters trained (100.00%), held-out loss 3.02 after 100 steps
    last_k      890,112 parameters trained  (30.53%), held-out loss 3.51
    adapter      39,264 parameters trained   (1.35%), held-out loss 4.48, adapter.npz of 158,038 bytes
    lora         36,864 parameters trained   (1.26%), held-out loss 4.64, lora.npz of 147,946 bytes
    head            384 parameters trained   (0.01%), held-out loss 6.22

What learns is full, all parameters; last_k, the last k blocks and ln_f; head, ln_f alone, as wte is the projection,
too; adapter, a small network behind attention and one behind the mlp of each block (https://arxiv.org/abs/1902.00751);
lora, two thin matrices a, b for each c_attn, which works with w + a @ b (https://arxiv.org/abs/2106.09685). All else
stays as it is. --out becomes a model for gpt2.py; what the last two learned stands in one small file too, so that a
hundred tasks are a hundred small files beside one model: here 15 MB, where a hundred models would be 1.2 GB. An adapter
is not a part of GPT-2's block, so there is nothing but the small file, and transformer_block, redefined here, runs it:

    import gpt2, utils
    from beyond import finetune
    encoder, hparams, params = utils.load_encoder_hparams_and_params("shakespeare", "models")
    gpt2.transformer_block = finetune.transformer_block
    params = finetune.combine(params, finetune.load("models/coder/adapter.npz"), "adapter")
    print(encoder.decode(gpt2.generate(encoder.encode("def "), params, hparams["n_head"], 40)))

A file that ends in .jsonl holds tasks, {"instruction": ..., "input": ..., "output": ...} a line; input may be missing.
The model sees them as prompt.txt in --out shows; the loss counts the output's tokens only, and <|endoftext|> behind.
"""

import functools
import hashlib
import json
import math
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gpt2
import utils
from beyond import tokenizer, train
from gpt2 import ffn, gelu, layer_norm, mha

RATES = {"full": 3e-4, "last_k": 1e-3, "head": 1e-2, "adapter": 3e-3, "lora": 3e-3}  # learning rates
PROMPT = "Instruction: {instruction}\nInput: {input}\nAnswer:"


def transformer_block(x, mlp, attn, ln_1, ln_2, adapter, n_head, kv=None, past=0):  # [n_seq, n_embd] -> same
    def adapt(x, i):  # down to a few numbers a token, and up again
        return x + gelu(x @ adapter["down"][i] + adapter["down_b"][i]) @ adapter["up"][i] + adapter["up_b"][i]

    x = x + adapt(mha(layer_norm(x, **ln_1), **attn, n_head=n_head, kv=kv, past=past), 0)
    return x + adapt(ffn(layer_norm(x, **ln_2), **mlp), 1)


def begin(params, method, k, rank, seed):
    """What the method trains, as it is before the first step: part of params, or new arrays that change nothing yet."""
    rng, n_layer, n_embd = np.random.default_rng(seed), len(params["blocks"]), params["wte"].shape[1]

    def normal(*shape):
        return 0.02 * rng.standard_normal(shape, np.float32)

    def zeros(*shape):
        return np.zeros(shape, np.float32)

    return {"full": lambda: params,
            "last_k": lambda: {"blocks": params["blocks"][n_layer - k:], "ln_f": params["ln_f"]},
            "head": lambda: {"ln_f": params["ln_f"]},
            "adapter": lambda: {"down": normal(n_layer, 2, n_embd, rank), "down_b": zeros(n_layer, 2, rank),
                                "up": zeros(n_layer, 2, rank, n_embd), "up_b": zeros(n_layer, 2, n_embd)},
            "lora": lambda: {"a": normal(n_layer, n_embd, rank), "b": zeros(n_layer, rank, 3 * n_embd)}}[method]()


def combine(params, trained, method):
    """The params of a model from those of the base and what a method trained."""
    blocks = params["blocks"]
    if method == "adapter":
        return {**params, "blocks": [{**block, "adapter": {name: array[i] for name, array in trained.items()}}
                                     for i, block in enumerate(blocks)]}
    if method == "lora":
        w = [block["attn"]["c_attn"]["w"] + a @ b for block, a, b in zip(blocks, trained["a"], trained["b"])]
        return {**params, "blocks": [
            {**block, "attn": {**block["attn"], "c_attn": {**block["attn"]["c_attn"], "w": w[i]}}}
            for i, block in enumerate(blocks)]}
    learned = trained.get("blocks", [])
    return {**params, **trained, "blocks": [*blocks[:len(blocks) - len(learned)], *learned]}


def load(path):
    """What adapter or lora trained, from its small file."""
    return dict(np.load(path))


def loss_of(method, n_head):
    """loss(trained, row, key, params) for train.fit; row: ids [n_seq + 1], and [n_seq], 1 where the loss counts."""
    block = transformer_block if method == "adapter" else gpt2.transformer_block

    def loss(trained, row, key, params):
        losses = train.token_losses(combine(params, trained, method), row[0], n_head, block)
        return (losses * row[1]).sum() / row[1].sum()
    return loss


def adamw(steps, learning_rate):
    """AdamW (https://arxiv.org/abs/1711.05101): what was learned before should not be forgotten at once, so there is
    little decay, and of matrices only."""
    return optax.chain(optax.clip_by_global_norm(1), optax.adamw(
        train.schedule(steps, learning_rate), b2=0.99, weight_decay=0.01,
        mask=lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)))


# --- data ---


def read(path, encoder, n_ctx):
    """Two pairs (ids [n, n_seq + 1], counts [n, n_seq]), to learn from and to hold out: the last tenth of the file."""
    end = encoder.encoder.get("<|endoftext|>")
    content = tokenizer.read_text(path)
    if not str(path).endswith(".jsonl"):
        parts = [encoder.encode(part) for part in (content[:len(content) * 9 // 10], content[len(content) * 9 // 10:])]
        n_seq = min(n_ctx, len(parts[1]) - 1)
        if n_seq < 8:
            raise ValueError(f"the last tenth of {path} has {len(parts[1])} tokens, and 9 or more are needed to "
                             f"measure with: give a longer text")
        rows = [np.lib.stride_tricks.sliding_window_view(np.array(part), n_seq + 1) for part in parts]
        return [(found, np.broadcast_to(np.float32(1), (len(found), n_seq))) for found in (rows[0], rows[1][::n_seq])]
    tasks = []
    for number, line in enumerate(content.removesuffix("\n").split("\n"), 1):
        try:
            task = json.loads(line)
            prompt, output = prompt_of(task["instruction"], task.get("input", "")), task["output"]
            prompt, output = encoder.encode(prompt), [*encoder.encode(" " + output.strip()), end]
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ValueError(f'{path}, line {number}: this must be JSON like {{"instruction": "a text", "input": '
                             f'"a text or nothing", "output": "a text"}}') from None
        if len(prompt) + len(output) > n_ctx:
            raise ValueError(f"{path}, line {number}: it has {len(prompt) + len(output)} tokens with its answer, and "
                             f"the model's context is {n_ctx}: shorten it or leave it out")
        tasks.append((prompt, output))
    if len(tasks) < 10:
        raise ValueError(f"{path} holds {len(tasks)} tasks, and a tenth of them is held out: give 10 or more")
    n_seq = max(len(prompt) + len(output) for prompt, output in tasks)
    ids = np.array([[*p, *o, *[end] * (n_seq + 1 - len(p) - len(o))] for p, o in tasks])
    counts = np.array([[len(p) - 1 <= i < len(p) + len(o) - 1 for i in range(n_seq)] for p, o in tasks], np.float32)
    n = len(tasks) - len(tasks) // 10
    return [(ids[:n], counts[:n]), (ids[n:], counts[n:])]


def prompt_of(instruction, input=""):
    """The prompt that a model which was trained on tasks expects."""
    return (PROMPT if input else PROMPT.replace("\nInput: {input}", "")).format(instruction=instruction, input=input)


# --- the command ---


def main(data, out, model_size="124M", models_dir="models", method="lora", k=2, rank=8, steps=300,
         learning_rate: float = None, batch_size=8, eval_every=50, patience=3, seed=0):
    """Teaches a model a text or tasks, and tells the held-out loss before and after. A killed run goes on.

    Args:
        data: The path of a UTF-8 text, or of a .jsonl file with instruction, input and output a line.
        out: The folder of the new model.
        model_size: The model to begin with, as for gpt2.py.
        models_dir: As for gpt2.py.
        method: full, last_k, head, adapter or lora.
        k: For last_k: how many blocks learn.
        rank: For adapter and lora: how many numbers a token are in between.
        steps: How many updates to make at most.
        learning_rate: The highest, after the warm-up; by default one that suits the method.
        batch_size: Rows an update, a multiple of the number of devices.
        eval_every: Updates between two evaluations on the last tenth of data.
        patience: How many evaluations without a better loss end it.
        seed: From 0 on: the same seed gives the same weights on the same machine.
    """
    settings = dict(locals())
    check_settings(settings)
    encoder, hparams, params = utils.load_encoder_hparams_and_params(model_size, models_dir)
    if method == "last_k":
        utils.check("k", k, int, 1, hparams["n_layer"], f"a whole number from 1 to n_layer, {hparams['n_layer']}")
    check_new(out)
    learned, unseen = read(data, encoder, hparams["n_ctx"])
    params, loss = jax.tree.map(jnp.asarray, params), loss_of(method, hparams["n_head"])

    def rows(rng):
        chosen = rng.integers(len(learned[0]), size=batch_size)
        return tuple(array[chosen] for array in learned)

    def held_out(trained):
        return train.mean_loss(loss, trained, unseen, params)

    def save(trained, history):
        if method in ("adapter", "lora"):
            train.write_whole(f"{out}/{method}.npz", lambda part: np.savez(part, **trained))
        if method != "adapter":
            save_folder(combine(params, trained, method), hparams, out, model_size, models_dir)

    trained = begin(params, method, k, rank, seed)
    n, n_all = (sum(array.size for array in jax.tree.leaves(tree)) for tree in (trained, params))
    before = held_out(trained)
    settings.update(data=digest(data), out=None, models_dir=None)
    optimizer = functools.partial(adamw, learning_rate=learning_rate or RATES[method])
    history = train.fit(trained, loss, rows, held_out, save, optimizer, out, settings, [params])
    if str(data).endswith(".jsonl"):
        with open(f"{out}/prompt.txt", "w", encoding="utf-8") as file:
            file.write(PROMPT + "\n")
    after = min(found for *_, found in history)
    files = [name for name in (f"{method}.npz", utils.DATA) if os.path.exists(os.path.join(out, name))]
    sizes = ", ".join(f"{name} {os.path.getsize(os.path.join(out, name)):,} bytes" for name in files)
    return (f"{out}: {n:,} of {n_all:,} parameters trained ({100 * n / n_all:.2f}%); held-out loss {before:.4f} "
            f"before, {after:.4f} after {history[-1][0]} steps; {sizes}")


def save_folder(params, hparams, out, model_size, models_dir):
    """Writes a model's seven files, with the vocabulary of the model that it comes from."""
    train.save_model(params, hparams, out)
    for name in "encoder.json", "vocab.bpe":
        shutil.copy(os.path.join(utils.folder_of(model_size, models_dir), name), out)


def digest(path):
    """The SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def check_new(out):
    """Raises ValueError if a model stands in out that is finished."""
    if os.path.exists(f"{out}/hparams.json") and not os.path.exists(f"{out}/train.npz"):
        raise ValueError(f"{out} is a model already: give another out, or remove that folder")


def check_settings(settings):
    """Raises ValueError for an argument of main that is out of range, naming the range."""
    if settings["method"] not in RATES:
        raise ValueError(f"method={settings['method']!r} must be one of {', '.join(RATES)}")
    for name in "rank", "steps", "batch_size", "eval_every", "patience", "seed":
        low = 0 if name == "seed" else 1
        utils.check(name, settings[name], int, low, math.inf, f"a whole number from {low} on")
    if settings["learning_rate"] is not None:
        utils.check("learning_rate", settings["learning_rate"], (int, float), 1e-9, 1, "a number from 1e-9 to 1")
    if settings["batch_size"] % jax.device_count():
        raise ValueError(f"batch_size={settings['batch_size']} must be a multiple of {jax.device_count()}, the number "
                         f"of devices")


if __name__ == "__main__":
    utils.run(main, "data", "out", "model_size", "models_dir")
