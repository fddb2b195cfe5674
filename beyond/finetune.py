"""Fine-tuning: a language model learns your text or your task, by one of five methods.

    cat *.py beyond/*.py > code.txt
    python -m beyond.finetune code.txt --model_size shakespeare --out models/coder --method lora --steps 100

teaches Shakespeare Python. Starting from a held-out loss of 9.41 nats per token, the methods reached

    full      2,915,328 parameters trained (100.00%), held-out loss 3.03 after 100 steps
    last_k      890,112 parameters trained  (30.53%), held-out loss 3.45
    adapter      39,264 parameters trained   (1.35%), held-out loss 4.42, adapter.npz of 158,038 bytes
    lora         36,864 parameters trained   (1.26%), held-out loss 4.77, lora.npz of 147,946 bytes
    head            384 parameters trained   (0.01%), held-out loss 6.28

They train different parameters and freeze the rest. full: all; last_k: the last k blocks and ln_f; head: only ln_f, as
wte is also the embedding; adapter: new small networks, one after attention and one after the mlp of each block
(https://arxiv.org/abs/1902.00751); lora: two new low-rank matrices a, b per block, with w + a @ b in place of c_attn's
w (https://arxiv.org/abs/2106.09685). --out becomes a model for gpt2.py. The weights of adapter and lora also go to one
small file: a hundred tasks then take 15 MB and one model, instead of 1.2 GB for a hundred models. An adapter is not
part of GPT-2's block, so it is saved only as that file, and transformer_block, redefined here, runs it:

    import gpt2, numpy, utils
    from beyond import finetune, variant
    encoder, hparams, params = utils.load_encoder_hparams_and_params("shakespeare", "models")
    model = variant(gpt2, transformer_block=finetune.transformer_block)
    params = finetune.combine(params, numpy.load("models/coder/adapter.npz"), "adapter")
    print(encoder.decode(model.generate(encoder.encode("def "), params, hparams["n_head"], 40)))

A .jsonl file holds tasks, one {"instruction": ..., "input": ..., "output": ...} per line; input is optional. The model
reads them in the format of prompt.txt in --out. The loss counts only the tokens of the output and the <|endoftext|>
that follows them. After two steps the command prints an estimate of its time and memory.
"""

import functools
import os
import sys

import numpy as np

from beyond import variant
from beyond.files import reading, writing
from beyond.formats import checkpoint
from beyond.learn import learner
from beyond.learn.adapting import adapt, check_settings, joined, last_blocks, learning, mean_loss, n_numbers
from beyond.learn.sequences import check_length
import cli
import gpt2
import utils

RATES = {"full": 3e-4, "last_k": 1e-3, "head": 1e-2, "adapter": 3e-3, "lora": 3e-3}  # learning rates
TASK = {"instruction": "a text", "input": None, "output": "a text"}  # the fields of a task; input is optional
PROMPT = "Instruction: {instruction}\nInput: {input}\nAnswer:"


def transformer_block(x, mlp, attn, ln_1, ln_2, adapter, n_head, kv=None, past=0):  # [n_seq, n_embd] -> same
    def adapter_layer(x, i):  # down to a few numbers per token, and up again
        return x + gpt2.gelu(x @ adapter["down"][i] + adapter["down_b"][i]) @ adapter["up"][i] + adapter["up_b"][i]

    x = x + adapter_layer(gpt2.mha(gpt2.layer_norm(x, **ln_1), **attn, n_head=n_head, kv=kv, past=past), 0)
    return x + adapter_layer(gpt2.ffn(gpt2.layer_norm(x, **ln_2), **mlp), 1)


def begin(params, method, k, rank, seed):
    """The parameters that the method trains, before the first step: part of params, or new ones without effect yet."""
    n_layer, n_embd = len(params["blocks"]), params["wte"].shape[1]
    rng = np.random.default_rng(seed)
    zeros = functools.partial(np.zeros, dtype=np.float32)

    def normal(*shape):
        return 0.02 * rng.standard_normal(shape, np.float32)

    return {
        "full": lambda: params,
        "last_k": lambda: last_blocks(params, k),
        "head": lambda: {"ln_f": params["ln_f"]},
        "adapter": lambda: {
            "down": normal(n_layer, 2, n_embd, rank),
            "down_b": zeros((n_layer, 2, rank)),
            "up": zeros((n_layer, 2, rank, n_embd)),
            "up_b": zeros((n_layer, 2, n_embd)),
        },
        "lora": lambda: {"a": normal(n_layer, n_embd, rank), "b": zeros((n_layer, rank, 3 * n_embd))},
    }[method]()


def combine(params, trained, method):
    """The base model's params with the parameters that a method trained."""
    blocks = params["blocks"]
    if method == "adapter":
        adapters = [{name: array[i] for name, array in trained.items()} for i in range(len(blocks))]
        return {**params, "blocks": [{**block, "adapter": adapter} for block, adapter in zip(blocks, adapters)]}
    if method == "lora":
        return {**params, "blocks": [with_lora(*each) for each in zip(blocks, trained["a"], trained["b"])]}
    return joined(params, trained)


def with_lora(block, a, b):
    attn, c_attn = block["attn"], block["attn"]["c_attn"]
    return {**block, "attn": {**attn, "c_attn": {**c_attn, "w": c_attn["w"] + a @ b}}}


def loss_of(method, n_head):
    """loss(trained, example, key, params) -> float; example: ids [n_seq + 1], counts [n_seq], 1 or 0 for each loss."""
    model = learner.model
    if method == "adapter":  # whose layers also use jax.numpy
        model = variant(model, transformer_block=variant(sys.modules[__name__], gpt2=model).transformer_block)

    def loss(trained, example, key, params):
        ids, counts = example
        losses = learner.token_losses(combine(params, trained, method), ids, n_head, model)
        return (losses * counts).sum() / counts.sum()

    return loss


# --- data ---


def read(path, encoder, n_ctx):
    """Two pairs (ids [n, n_seq + 1], counts [n, n_seq]): for training, and the file's last tenth, held out."""
    if str(path).endswith(".jsonl"):
        return read_tasks(path, encoder, n_ctx)
    if str(path).endswith(".json"):
        raise ValueError(f"{path} is neither text nor tasks: write one task per line into a .jsonl file")
    text = reading.read_text(path)
    cut = len(text) * 9 // 10
    learned, held_out = (np.array(encoder.encode(part)) for part in (text[:cut], text[cut:]))
    if (n := len(held_out)) < 9:
        raise ValueError(f"the last tenth of {path} has {n} tokens, and 9 or more are needed: use a longer text")
    n_seq = min(n_ctx, n - 1)
    check_length(learned, n_seq, f"{path} without its last tenth")
    learned, held_out = (np.lib.stride_tricks.sliding_window_view(ids, n_seq + 1) for ids in (learned, held_out))
    return [(ids, np.broadcast_to(np.float32(1), (len(ids), n_seq))) for ids in (learned, held_out[::n_seq])]


def read_tasks(path, encoder, n_ctx):
    """Like read, for tasks: a prompt, its answer and <|endoftext|>, also used to pad them to the longest."""
    if (end := encoder.encoder.get("<|endoftext|>")) is None:
        raise ValueError(f"{path} needs <|endoftext|>, which this model's vocabulary lacks: give another model_size")
    tasks = []
    for where, task in reading.read_records(path, TASK):
        prompt = encoder.encode(prompt_of(task["instruction"], task.get("input", "")))
        answer = [*encoder.encode(" " + task["output"].strip()), end]
        if (n := len(prompt) + len(answer)) > n_ctx:
            raise ValueError(f"{where}: task and answer have {n} tokens, and the context is {n_ctx}: shorten them")
        tasks.append((prompt, answer))
    if len(tasks) < 10:
        raise ValueError(f"{path} holds {len(tasks)} tasks, of which a tenth is held out: give 10 or more")
    n_seq = max(len(prompt) + len(answer) for prompt, answer in tasks)
    ids = np.array([[*p, *a, *[end] * (n_seq + 1 - len(p) - len(a))] for p, a in tasks])
    counts = np.array([[len(p) - 1 <= i < len(p) + len(a) - 1 for i in range(n_seq)] for p, a in tasks], np.float32)
    n = len(tasks) - len(tasks) // 10
    return [(ids[:n], counts[:n]), (ids[n:], counts[n:])]


def prompt_of(instruction, input=""):
    """The prompt that a model trained on tasks expects."""
    return (PROMPT if input else PROMPT.replace("\nInput: {input}", "")).format(instruction=instruction, input=input)


# --- the command ---


def main(
    data, out, model_size="124M", models_dir="models", method="lora", k=2, rank=8, steps=300,
    learning_rate: float = None, batch_size=8, eval_every=50, patience=3, seed=0,
):  # fmt: skip
    """Teaches a model a text or tasks; prints the held-out loss before and after. After a kill, run it again to resume.

    Args:
        data: The path of a UTF-8 text (- reads standard input), or of a .jsonl file with one task per line.
        out: The folder of the new model.
        method: full, last_k, head, adapter or lora.
        k: For last_k: the number of blocks to train.
        rank: For adapter and lora: their inner dimension.
        steps: The maximum number of updates.
        learning_rate: The peak learning rate, after the warm-up. The default depends on the method.
        batch_size: Sequences per update, a multiple of the number of devices.
        eval_every: Updates between evaluations on the last tenth of data.
        patience: Stop after this many evaluations without a better loss.
        seed: 0 or more: the same seed gives the same weights on the same machine.
    """
    settings = {"method": method, "k": k, "rank": rank, "learning_rate": learning_rate, "seed": seed}
    settings.update(steps=steps, batch_size=batch_size, eval_every=eval_every, patience=patience)
    check_settings(settings, ("learning_rate",), rank=(1, 10**5), k=(1, 10**4))
    if method not in RATES:
        raise ValueError(f"method={method!r} must be one of {', '.join(RATES)}")
    with learning(settings, data, out, model_size, models_dir) as (encoder, hparams, params, settings):
        if method == "last_k":
            cli.check("k", k, 1, hparams["n_layer"], f"n_layer is {hparams['n_layer']}")
        learned, held_out = read(data, encoder, hparams["n_ctx"])
        loss = loss_of(method, hparams["n_head"])
        trained = begin(params, method, k, rank, seed)

        def save(trained, history):
            if method in ("adapter", "lora"):
                writing.write_whole(f"{out}/{method}.npz", lambda part: np.savez(part, **trained))
            if method != "adapter":
                checkpoint.save_folder(combine(params, trained, method), hparams, out, model_size, models_dir)

        rate = learning_rate or RATES[method]
        history = adapt(params, trained, loss, learned, held_out, save, rate, out, settings)
        if str(data).endswith(".jsonl"):
            with_input = any(task.get("input") for _, task in reading.read_records(data, TASK))
            writing.write_text(f"{out}/prompt.txt", prompt_of("{instruction}", "{input}" if with_input else "") + "\n")
        before = mean_loss(loss, trained, held_out, params)
        return report(out, method, n_numbers(trained), n_numbers(params), before, history)


def report(out, method, n, n_all, before, history):
    """The line that main prints: the share of trained parameters, the held-out losses, the files with the result."""
    after = min(found for *_, found in history)
    names = [name for name in (f"{method}.npz", utils.DATA) if os.path.exists(os.path.join(out, name))]
    sizes = ", ".join(f"{name} {os.path.getsize(os.path.join(out, name)):,} bytes" for name in names)
    return (
        f"{out}: {n:,} of {n_all:,} parameters trained ({100 * n / n_all:.2f}%); held-out loss {before:.4f} "
        f"before, {after:.4f} after {int(history[-1][0])} steps; {sizes}"
    )


if __name__ == "__main__":
    cli.run(main)
