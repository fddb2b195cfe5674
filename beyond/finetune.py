"""Fine-tuning: a model that knows a language learns your text or your task. One command, five ways.

    cat *.py beyond/*.py > code.txt
    python -m beyond.finetune code.txt --model_size shakespeare --out models/coder --method lora --steps 100

teaches Shakespeare Python. Of 2,915,328 parameters, and from a held-out loss of 9.54 nats a token, the ways printed

    full      2,915,328 parameters trained (100.00%), held-out loss 3.06 after 100 steps
    last_k      890,112 parameters trained  (30.53%), held-out loss 3.46
    adapter      39,264 parameters trained   (1.35%), held-out loss 4.46, adapter.npz of 158,038 bytes
    lora         36,864 parameters trained   (1.26%), held-out loss 4.69, lora.npz of 147,946 bytes
    head            384 parameters trained   (0.01%), held-out loss 6.37

What learns is full, all parameters; last_k, the last k blocks and ln_f; head, ln_f alone, as wte is the projection,
too; adapter, a small network after attention and one after the mlp of each block (https://arxiv.org/abs/1902.00751);
lora, two thin matrices a, b for each c_attn, which works with w + a @ b (https://arxiv.org/abs/2106.09685). All else
stays as it is. --out becomes a model for gpt2.py; what the last two learned is in one small file too, so that a
hundred tasks are a hundred small files beside one model: here 15 MB, where a hundred models would be 1.2 GB. An adapter
is not a part of GPT-2's block, so there is nothing but the small file, and transformer_block, redefined here, runs it:

    import gpt2, utils
    from beyond import finetune, variant
    encoder, hparams, params = utils.load_encoder_hparams_and_params("shakespeare", "models")
    model = variant(gpt2, transformer_block=finetune.transformer_block)
    params = finetune.combine(params, finetune.load("models/coder/adapter.npz"), "adapter")
    print(encoder.decode(model.generate(encoder.encode("def "), params, hparams["n_head"], 40)))

A file that ends in .jsonl holds tasks, one in each line, {"instruction": ..., "input": ..., "output": ...}; input may
be missing. The model sees them as prompt.txt in --out shows; the loss counts only the output's tokens and the
<|endoftext|> after them. Before it begins, it says about how long it will take and how much memory.
"""

import functools
import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from beyond import variant
from beyond.devices.sharding import memory_errors
from beyond.files import reading, runs, writing
from beyond.formats import checkpoint
from beyond.learn import learner
from beyond.learn.adapting import check_divides, check_settings, joined, last_blocks, mean_loss, tell
from beyond.learn.loop import fit
from beyond.learn.optimizers import adamw
from beyond.learn.rows import check_length
from beyond.learn.state import check_state, finish, load_npz
import cli
import gpt2
import utils

RATES = {"full": 3e-4, "last_k": 1e-3, "head": 1e-2, "adapter": 3e-3, "lora": 3e-3}  # learning rates
TASK = {"instruction": "a text", "input": None, "output": "a text"}  # what a line of tasks has; input may be missing
PROMPT = "Instruction: {instruction}\nInput: {input}\nAnswer:"


def transformer_block(x, mlp, attn, ln_1, ln_2, adapter, n_head, kv=None, past=0):  # [n_seq, n_embd] -> same
    def adapt(x, i):  # down to a few numbers per token, and up again
        return x + gpt2.gelu(x @ adapter["down"][i] + adapter["down_b"][i]) @ adapter["up"][i] + adapter["up_b"][i]

    x = x + adapt(gpt2.mha(gpt2.layer_norm(x, **ln_1), **attn, n_head=n_head, kv=kv, past=past), 0)
    return x + adapt(gpt2.ffn(gpt2.layer_norm(x, **ln_2), **mlp), 1)


def begin(params, method, k, rank, seed):
    """What the method trains, as it is before the first step: part of params, or new arrays that change nothing yet."""
    rng, n_layer, n_embd = np.random.default_rng(seed), len(params["blocks"]), params["wte"].shape[1]

    def normal(*shape):
        return 0.02 * rng.standard_normal(shape, np.float32)

    def zeros(*shape):
        return np.zeros(shape, np.float32)

    return {
        "full": lambda: params,
        "last_k": lambda: last_blocks(params, k),
        "head": lambda: {"ln_f": params["ln_f"]},
        "adapter": lambda: {
            "down": normal(n_layer, 2, n_embd, rank),
            "down_b": zeros(n_layer, 2, rank),
            "up": zeros(n_layer, 2, rank, n_embd),
            "up_b": zeros(n_layer, 2, n_embd),
        },
        "lora": lambda: {"a": normal(n_layer, n_embd, rank), "b": zeros(n_layer, rank, 3 * n_embd)},
    }[method]()


def combine(params, trained, method):
    """The params of a model from those of the base and what a method trained."""
    blocks = params["blocks"]
    if method == "adapter":
        return {
            **params,
            "blocks": [
                {**block, "adapter": {name: array[i] for name, array in trained.items()}}
                for i, block in enumerate(blocks)
            ],
        }
    if method == "lora":
        w = [block["attn"]["c_attn"]["w"] + a @ b for block, a, b in zip(blocks, trained["a"], trained["b"])]
        return {
            **params,
            "blocks": [
                {**block, "attn": {**block["attn"], "c_attn": {**block["attn"]["c_attn"], "w": w[i]}}}
                for i, block in enumerate(blocks)
            ],
        }
    return joined(params, trained)


def load(path):
    """What adapter or lora trained, from its small file."""
    return load_npz(path)


def loss_of(method, n_head):
    """loss(trained, row, key, params) for fit; row: ids [n_seq + 1], and [n_seq], 1 where the loss counts."""
    model = learner.model
    if method == "adapter":  # the block, too, with JAX's NumPy in its layers
        model = variant(model, transformer_block=variant(sys.modules[__name__], gpt2=model).transformer_block)

    def loss(trained, row, key, params):
        losses = learner.token_losses(combine(params, trained, method), row[0], n_head, model)
        return (losses * row[1]).sum() / row[1].sum()

    return loss


# --- data ---


def read(path, encoder, n_ctx):
    """Two pairs (ids [n, n_seq + 1], counts [n, n_seq]), to learn from and to hold out: the last tenth of the file."""
    if str(path).endswith(".jsonl"):
        return read_tasks(path, encoder, n_ctx)
    if str(path).endswith(".json"):
        raise ValueError(f"{path} is neither a text nor tasks: write each task on a line of its own, in a .jsonl file")
    content = reading.read_text(path)
    parts = [encoder.encode(part) for part in (content[: len(content) * 9 // 10], content[len(content) * 9 // 10 :])]
    if len(parts[1]) < 9:
        raise ValueError(
            f"the last tenth of {path} has {len(parts[1])} tokens, and 9 or more are needed to measure with: "
            f"give a longer text"
        )
    n_seq = min(n_ctx, len(parts[1]) - 1)
    check_length(parts[0], n_seq, f"{path} without its last tenth")
    rows = [np.lib.stride_tricks.sliding_window_view(np.array(part), n_seq + 1) for part in parts]
    return [(found, np.broadcast_to(np.float32(1), (len(found), n_seq))) for found in (rows[0], rows[1][::n_seq])]


def read_tasks(path, encoder, n_ctx):
    """As read, for a file of tasks; a row is a prompt, its answer and <|endoftext|> up to the longest one's length."""
    if (end := encoder.encoder.get("<|endoftext|>")) is None:
        raise ValueError(
            f"{path} holds tasks, whose answers end in <|endoftext|>, which this model's vocabulary lacks: "
            f"give a text, or another model_size"
        )
    tasks = []
    for place, task in reading.read_records(path, TASK):
        prompt, output = encoder.encode(prompt_of(task["instruction"], task.get("input", ""))), task["output"].strip()
        tasks.append((prompt, [*encoder.encode(" " + output), end]))
        if (n := sum(map(len, tasks[-1]))) > n_ctx:
            raise ValueError(
                f"{place}: it has {n} tokens with its answer, and the model's context is {n_ctx}: shorten "
                f"it or leave it out"
            )
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


@memory_errors()
def main(
    data,
    out,
    model_size="124M",
    models_dir="models",
    method="lora",
    k=2,
    rank=8,
    steps=300,
    learning_rate: float = None,
    batch_size=8,
    eval_every=50,
    patience=3,
    seed=0,
):
    """Teaches a model a text or tasks, and tells the held-out loss before and after. A killed run goes on.

    Args:
        data: The path of a UTF-8 text (- is the standard input), or of a .jsonl file with a task in each line.
        out: The folder of the new model.
        model_size: The model to begin with: 124M, 355M, 774M, 1558M, shakespeare or another folder in models_dir.
        models_dir: Where that is; by default models/ beside gpt2.py.
        method: full, last_k, head, adapter or lora.
        k: For last_k: how many blocks learn.
        rank: For adapter and lora: how many numbers a token has in between.
        steps: How many updates to make at most.
        learning_rate: The highest, after the warm-up; by default one that suits the method.
        batch_size: Rows in an update, a multiple of the number of devices.
        eval_every: Updates between two evaluations on the last tenth of data.
        patience: How many evaluations without a better loss end it.
        seed: 0 or more: the same seed gives the same weights on the same machine.
    """
    settings = dict(locals())
    check_settings(settings, ("learning_rate",), rank=(1, 10**5), k=(1, 10**4))
    check_divides(batch_size)
    if method not in RATES:
        raise ValueError(f"method={method!r} must be one of {', '.join(RATES)}")
    writing.check_new(out)
    encoder, hparams, params = utils.load_encoder_hparams_and_params(model_size, models_dir)
    if method == "last_k":
        cli.check("k", k, 1, hparams["n_layer"], f"n_layer is {hparams['n_layer']}")
    learned, unseen = read(data, encoder, hparams["n_ctx"])
    settings.update(
        data=runs.digest(data), model_size=runs.model_digest(model_size, models_dir), out=None, models_dir=None
    )
    check_state(out, settings)
    params, loss = jax.tree.map(jnp.asarray, params), loss_of(method, hparams["n_head"])

    def rows(rng):
        chosen = rng.integers(len(learned[0]), size=batch_size)
        return tuple(array[chosen] for array in learned)

    def held_out(trained):
        return mean_loss(loss, trained, unseen, params)

    def save(trained, history):
        os.makedirs(out, exist_ok=True)
        if method in ("adapter", "lora"):
            writing.write_whole(f"{out}/{method}.npz", lambda part: np.savez(part, **trained))
        if method != "adapter":
            checkpoint.save_folder(combine(params, trained, method), hparams, out, model_size, models_dir)

    trained = begin(params, method, k, rank, seed)
    n, n_all = (sum(array.size for array in jax.tree.leaves(tree)) for tree in (trained, params))
    start = time.perf_counter()
    before = held_out(trained)
    tell(time.perf_counter() - start, len(unseen[0]), n_all, n, settings)
    optimizer = functools.partial(adamw, learning_rate=learning_rate or RATES[method])
    history = fit(trained, loss, rows, held_out, save, optimizer, out, settings, [params])
    if str(data).endswith(".jsonl"):
        with_input = any(task.get("input") for _, task in reading.read_records(data, TASK))
        writing.write_text(f"{out}/prompt.txt", prompt_of("{instruction}", "{input}" if with_input else "") + "\n")
    after = min(found for *_, found in history)
    names = [name for name in (f"{method}.npz", utils.DATA) if os.path.exists(os.path.join(out, name))]
    sizes = ", ".join(f"{name} {os.path.getsize(os.path.join(out, name)):,} bytes" for name in names)
    finish(out)
    return (
        f"{out}: {n:,} of {n_all:,} parameters trained ({100 * n / n_all:.2f}%); held-out loss {before:.4f} "
        f"before, {after:.4f} after {int(history[-1][0])} steps; {sizes}"
    )


if __name__ == "__main__":
    cli.run(main)
