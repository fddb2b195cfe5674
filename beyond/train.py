r"""Pre-training: a text goes in, a model folder that gpt2.py runs comes out.

    python -m beyond.train models/shakespeare/held_out.txt --model_size mine --steps 200

takes two minutes on two cores and prints

    models/mine: held-out loss 4.1344 nats a token, 1.9073 a character

The forward pass is gpt2.gpt2 as it is, with jax.numpy for its np: jax.vmap makes the batch, jax.grad the gradients,
jax.jit the speed. Redefined are transformer_block, for dropout, and linear, for weights whose heads have an axis. The
rest is what a model needs to learn well; the loop itself is beyond/fit.py's, which other chapters share.

A text of any size is made a corpus first (beyond/corpus.py). What it would take to train OpenAI's smallest shape on ten
billion tokens with eight GPUs is said before anything runs:

    python -m beyond.train data/mine --model_size mine --n_vocab 50304 --n_ctx 1024 --n_embd 768 --n_head 12 \
        --n_layer 12 --steps 19073 --batch_size 512 --micro_batch_size 16 --mesh 8x1 --dtype bfloat16 \
        --dropout_rate 0 --left_out 0 --dry_run=H100

    124,475,904 parameters, 9,999,745,024 tokens in 19,073 steps of 524,288
    on 8 x H100, 7.91e+03 TFLOP/s in bfloat16 together
    memory of each (estimate): 1.7 GB of weights, moments and average, 56.7 GB for a step
    with 16 rows at a time; of 80 GB, it fits
    time (estimate): 6 operations for a parameter, more for attention, 855.4 million for a token,
    8.6e+18 in all; at an MFU of 16.5% 1.8 hours

Such a step with 16 rows on one H100 was measured: 190,000 tokens/s, that MFU, and 22 GB. That eight are eight times as
fast is assumed. Without --dry_run it trains, with --coordinator (beyond/gpu.py) on several machines, which all need the
corpus, and one folder for the model that all of them see.
"""

import functools
import hashlib
import json
import os

import numpy as np

from beyond.devices import processes, sharding
from beyond.devices.sharding import all_devices, split
from beyond.files import reading, style, writing
from beyond.formats import checkpoint
from beyond.learn import corpora, learner, plan
from beyond.learn.adapting import check_divides, check_settings
from beyond.learn.loop import fit, is_process_0
from beyond.learn.optimizers import muon_and_adamw
from beyond.learn.rows import check_length, from_corpus, from_text, row_maker
from beyond.learn.state import check_state, finish
import cli
import utils

SIZES = {
    "n_vocab": (257, 10**7),
    "n_ctx": (1, 10**6),
    "n_embd": (1, 10**5),
    "n_head": (1, 10**4),
    "n_layer": (1, 10**4),
}
PLACE = {  # where it runs and what it is called, which does not decide what comes out
    "text", "model_size", "models_dir", "rematerialize", "micro_batch_size",
    "mesh", "coordinator", "n_processes", "process_id", "dry_run"}  # fmt: skip

# --- the model while it learns ---


# --- from a text to a folder ---


def save_curve(history, path):
    """Draws the losses by step; the file's description is history as JSON, for who wants to draw it otherwise."""
    import matplotlib
    from matplotlib.figure import Figure

    steps, train, held_out, *average = zip(*history)
    with matplotlib.rc_context(style.STYLE):
        figure = Figure(figsize=(6.7, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.plot(steps, train, color=style.BLUE, label="learned from (with dropout)")
        axes.plot(steps, held_out, color=style.ORANGE, label="held out")
        for found in average:
            axes.plot(steps, found, color=style.GREEN, label="held out, averaged weights")
        axes.set(xlabel="step", ylabel="loss (nats per token)")
        axes.legend()
        about = {"Date": None, "Description": json.dumps(np.array(history).tolist())}
        writing.write_whole(path, lambda part: figure.savefig(part, metadata=about))


@sharding.memory_errors()
def main(
    text,
    model_size,
    n_vocab: int = None,
    n_ctx=256,
    n_embd=192,
    n_head=6,
    n_layer=6,
    steps: int = None,
    minutes: float = None,
    batch_size=8,
    learning_rate=2e-3,
    weight_decay=0.6,
    dropout_rate=0.1,
    left_out=0.1,
    ema=0.999,
    eval_every=250,
    seed=0,
    models_dir="models",
    *,
    dtype="float32",
    rematerialize=False,
    micro_batch_size: int = None,
    mesh: str = None,
    coordinator: str = None,
    n_processes=1,
    process_id=0,
    dry_run: bool | str = False,
):
    """Trains a GPT-2 on a text, from nothing, and tells its loss on the text's last tenth, which it never learns from.

    The folder gets a model's seven files, with the weights that did best on that tenth; held_out.txt, that tenth
    itself; and loss.svg. After a kill the same command goes on from the last evaluation, on any number of devices.

    Args:
        text: The path of a UTF-8 text, - for the standard input, or a folder that beyond.corpus made. Of the latter at
            most the last 1,048,576 tokens are held out.
        model_size: The name of the new model.
        n_vocab: Tokens in the vocabulary, 257 or more, by default 1024. A corpus has its own; more are rows without a
            token, which make their number one that divides: 50304 instead of 50257.
        n_ctx: The longest context, in tokens.
        n_embd: How many numbers represent a token, a multiple of n_head.
        n_head: Attention heads in a block.
        n_layer: Blocks.
        steps: How many updates to make.
        minutes: Instead of steps: about how long to learn, as estimated from the first five updates.
        batch_size: Rows of n_ctx tokens in an update.
        learning_rate: The highest, after the warm-up.
        weight_decay: How much of the blocks' matrices goes at each update, times the learning rate.
        dropout_rate: From 0 to 0.99: how much of the embedding and of each branch is left out while learning.
        left_out: From 0 to 0.99: how many of the merges are left out in three quarters of the text, so that it is
            tokenized differently each time.
        ema: From 0 to 0.99999: a moving average of the weights keeps this share of itself at each update, and is saved
            where it does better than the last weights; 0 for none.
        eval_every: Updates between two evaluations.
        seed: 0 or more: the same seed gives the same weights on the same machine.
        models_dir: The folder for the model's folder.
        dtype: float32, or bfloat16 for the products alone, which makes them several times faster on GPUs and TPUs.
        rematerialize: True keeps of a block's activations its input alone and computes them again: less memory, a third
            more work.
        micro_batch_size: Rows that a device works on at a time; the gradients of all are summed, so that a batch need
            not fit into memory. By default 1 on a CPU, elsewhere all.
        mesh: 4x2: four groups of devices have rows of their own, and two in each share the weights of a model that is
            too large for one. By default all devices have rows of their own.
        coordinator: With several processes, HOST:PORT of process 0. All need the same flags and the same models_dir.
        n_processes: How many there are.
        process_id: Which one this is, from 0 to n_processes - 1.
        dry_run: Prints what it would take, on this machine or with --dry_run=H100, A100 or L4 on mesh's devices of that
            kind, and ends.
    """
    settings = {name: value for name, value in locals().items() if name not in PLACE}
    check_flags(settings, dtype, rematerialize, micro_batch_size, dry_run)
    if n_vocab is None:
        settings["n_vocab"] = len(corpora.load(text)[0].encoder) if os.path.isdir(text) else 1024
    hparams = {name: settings[name] for name in utils.HPARAMS}
    if dry_run:
        flags = steps, minutes, batch_size, mesh, micro_batch_size, dtype, rematerialize, ema
        return plan.describe(dry_run, hparams, *flags)
    processes.join(coordinator, n_processes, process_id)
    devices = all_devices() if mesh is None else sharding.make_mesh(mesh)
    sharding.check_heads(n_head, devices)
    check_divides(batch_size, devices.shape["data"], micro_batch_size)
    utils.check_name(model_size)
    folder = os.path.join(models_dir, model_size)
    writing.check_new(folder)
    content = None if os.path.isdir(text) else reading.read_text(text)
    settings["text"] = hashlib.sha256(content.encode()).hexdigest() if content else corpora.load(text)[2]
    check_state(folder, settings)
    encoder, learned, unseen, contents = from_text(content, settings["n_vocab"]) if content else from_corpus(text)
    cli.check("n_vocab", settings["n_vocab"], len(encoder.encoder), hint="the corpus has as many tokens")
    check_length(unseen, n_ctx, f"the last tenth of {text}, which is to measure with,")
    rows = row_maker(encoder, learned, n_ctx, batch_size, left_out, by_blank_lines=content is not None)
    model, best = learner.learner(dtype, dropout_rate > 0, rematerialize), {}

    def loss(params, row, key):
        return learner.lm_loss(
            learner.dropout(params, key, dropout_rate, n_ctx) if dropout_rate else params, row, n_head, model
        )

    def held_out(params, stride=n_ctx):
        return learner.held_out_loss(params, unseen, n_head, stride, batch_size, devices)

    def save(params, history):
        best.update(params)
        if is_process_0():
            checkpoint.save_model(sharding.plain(params), hparams, folder)
            for name, text in contents.items():
                writing.write_text(f"{folder}/{name}", text)
            save_curve(history, f"{folder}/loss.svg")

    history = fit(
        sharding.by_heads(checkpoint.initial_params(**hparams, seed=seed), n_head),
        loss,
        rows,
        held_out,
        save,
        functools.partial(muon_and_adamw, learning_rate=learning_rate, weight_decay=weight_decay),
        folder,
        settings,
        mesh=devices,
        ema=ema,
        micro_batch_size=micro_batch_size,
        speed=plan.speed(hparams, batch_size, devices, dtype),
    )
    found = held_out(split(best, devices), max(1, n_ctx // 4))
    if not is_process_0():
        return None
    save_curve(history, f"{folder}/loss.svg")
    n_chars = len(encoder.decode(unseen[1:][unseen[1:] != encoder.encoder.get("<|endoftext|>")].tolist()))
    finish(folder)
    return f"{folder}: held-out loss {found:.4f} nats a token, {found * (len(unseen) - 1) / n_chars:.4f} a character"


def check_flags(settings, dtype, rematerialize, micro_batch_size, dry_run):
    """Raises ValueError for a flag that is out of range, or for flags that do not go together."""
    optional = "n_vocab", "steps", "minutes"
    shares = {"dropout_rate": (0.0, 0.99), "left_out": (0.0, 0.99), "ema": (0.0, 0.99999)}
    check_settings(settings, optional, **SIZES, **shares, minutes=(0.01, 1e6), weight_decay=(0.0, 100.0))
    if micro_batch_size is not None:
        cli.check("micro_batch_size", micro_batch_size, 1, 10**6)
    sharding.check_dtype(dtype)
    if not isinstance(dry_run, bool) and str(dry_run) not in plan.DEVICES:
        raise ValueError(f"dry_run={dry_run!r} must be one of {', '.join(plan.DEVICES)}: or write --dry_run alone")
    if (settings["steps"] is None) == (settings["minutes"] is None):
        raise ValueError("give either steps, how many updates to make, or minutes, about how long to learn")
    if settings["n_embd"] % settings["n_head"]:
        raise ValueError(f"n_embd={settings['n_embd']} must be a multiple of {settings['n_head']}, n_head")


if __name__ == "__main__":
    cli.run(main)
