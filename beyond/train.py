"""Pre-training: turns a text into a model folder that gpt2.py runs.

    python -m beyond.train models/shakespeare/held_out.txt --model_size mine --steps 200

takes two minutes on two cores and prints

    models/mine: held-out loss 4.1344 nats per token, 1.9073 per character

The forward pass is gpt2.gpt2 itself, with jax.numpy as its np; jax.vmap adds the batch axis, jax.grad computes the
gradients, and jax.jit compiles it all. Only transformer_block, for dropout, and linear, for weights that are split by
heads, are redefined (learn/learner.py). All learning chapters share one training loop (learn/loop.py).

Convert a larger text to a corpus first (beyond/corpus.py). --dry_run estimates time and memory (learn/plan.py), --mesh
splits the work over devices, and --coordinator over machines. All machines need the corpus and a shared models_dir.
"""

import functools
import json
import os

import numpy as np

from beyond.devices import processes, sharding
from beyond.devices.sharding import all_devices, split
from beyond.files import style, writing
from beyond.formats import checkpoint
from beyond.learn import corpora, learner, plan
from beyond.learn.adapting import check_divides, check_settings
from beyond.learn.learner import held_out_loss
from beyond.learn.loop import fit
from beyond.learn.optimizers import muon_and_adamw
from beyond.learn.sequences import check_length, sequence_maker
from beyond.learn.state import check_state, finish
import cli
import utils


def train(data, folder, settings, devices, rematerialize=False, micro_batch_size=None):
    """Trains a model on data, a corpora.Source. Returns what main prints."""
    n_ctx, n_head, batch_size = settings["n_ctx"], settings["n_head"], settings["batch_size"]
    hparams = {name: settings[name] for name in utils.HPARAMS}
    settings = {**settings, "text": data.digest}
    check_state(folder, settings)
    encoder, learned, unseen, files = data.split(settings["n_vocab"])
    cli.check("n_vocab", settings["n_vocab"], len(encoder.encoder), hint="the corpus has as many tokens")
    check_length(unseen, n_ctx, f"the last tenth of {data.path}, which is held out,")
    draw = sequence_maker(encoder, learned, n_ctx, batch_size, settings["bpe_dropout"], not data.is_corpus)
    rate = settings["dropout_rate"]
    model = learner.training_model(settings["dtype"], rate > 0, rematerialize)
    best = {}

    def loss(params, ids, key):  # of one sequence, [n_ctx + 1]
        return learner.lm_loss(learner.dropout(params, key, rate, n_ctx) if rate else params, ids, n_head, model)

    def held_out(params, stride=n_ctx):
        return held_out_loss(params, unseen, n_head, stride, batch_size, devices)

    def save(params, history):
        best.update(params)
        if processes.is_process_0():
            checkpoint.save_model(sharding.plain(params), hparams, folder)
            for name, text in files.items():
                writing.write_text(f"{folder}/{name}", text)
            save_curve(history, f"{folder}/loss.svg")

    params = sharding.by_heads(checkpoint.initial_params(**hparams, seed=settings["seed"]), n_head)
    optimizer = functools.partial(
        muon_and_adamw, learning_rate=settings["learning_rate"], weight_decay=settings["weight_decay"]
    )
    speed = plan.speed(hparams, batch_size, devices, settings["dtype"])
    history = fit(params, loss, draw, held_out, save, optimizer, folder, settings, (), devices, micro_batch_size, speed)
    found = held_out(split(best, devices), max(1, n_ctx // 4))
    if not processes.is_process_0():
        return None
    save_curve(history, f"{folder}/loss.svg")
    finish(folder)
    n_chars = len(encoder.decode(unseen[1:][unseen[1:] != encoder.encoder.get("<|endoftext|>")].tolist()))
    per_char = found * (len(unseen) - 1) / n_chars
    return f"{folder}: held-out loss {found:.4f} nats per token, {per_char:.4f} per character"


def save_curve(history, path):
    """Plots the losses by step. The file's description is the history as JSON, so that you can plot it yourself."""
    import matplotlib
    from matplotlib.figure import Figure

    steps, *curves = zip(*history)
    labels = "training text (with dropout)", "held-out text", "held-out text, averaged weights"
    with matplotlib.rc_context(style.STYLE):
        figure = Figure(figsize=(6.7, 3.6), layout="constrained")
        axes = figure.subplots()
        for losses, label, color in zip(curves, labels, (style.BLUE, style.ORANGE, style.GREEN)):
            axes.plot(steps, losses, color=color, label=label)
        axes.set(xlabel="step", ylabel="loss (nats per token)")
        axes.legend()
        about = {"Date": None, "Description": json.dumps(np.array(history).tolist())}
        writing.write_whole(path, lambda part: figure.savefig(part, metadata=about))


@sharding.memory_errors()
def main(
    text, model_size, n_vocab: int = None, n_ctx=256, n_embd=192, n_head=6, n_layer=6,
    steps: int = None, minutes: float = None, batch_size=8, learning_rate=2e-3, weight_decay=0.6,
    dropout_rate=0.1, bpe_dropout=0.1, ema=0.999, eval_every=250, seed=0, models_dir="models", *,
    dtype="float32", rematerialize=False, micro_batch_size: int = None, mesh: str = None,
    coordinator: str = None, n_processes=1, process_id=0, dry_run: bool | str = False,
):  # fmt: skip
    """Trains a GPT-2 from scratch on the first nine tenths of a text, and prints its loss on the last tenth.

    The new folder holds a model's seven files, with the weights that had the lowest loss on that tenth; held_out.txt,
    which is that tenth; and loss.svg. After a kill the same command resumes, on any number of devices.

    Args:
        text: The path of a UTF-8 text, - for standard input, or a folder made by beyond.corpus. At most 1,048,576
            tokens of a corpus are held out.
        model_size: The name of the new model.
        n_vocab: The size of the vocabulary, 257 or more, by default 1024. A corpus has its own; a larger number pads
            the embedding, so that it can be split evenly: 50304 instead of 50257.
        n_ctx: The longest context, in tokens.
        n_embd: The size of each token's embedding, a multiple of n_head.
        n_head: Attention heads per block.
        n_layer: The number of blocks.
        steps: How many updates to make.
        minutes: Instead of steps: about how long to train, as estimated from the first five updates.
        batch_size: Sequences of n_ctx tokens per update.
        learning_rate: The peak learning rate, reached after the warm-up.
        weight_decay: The weight decay of the blocks' matrices; each update subtracts it times the learning rate.
        dropout_rate: From 0 to 0.99: the share of the embedding and of each branch that is dropped during training.
        bpe_dropout: From 0 to 0.99: the share of merges that is skipped in three out of four sequences, so that a
            text is tokenized differently each time.
        ema: From 0 to 0.99999: the decay of an exponential moving average of the weights, which is saved if it has a
            lower loss than the weights. 0 for none.
        eval_every: Updates between evaluations.
        seed: 0 or more: the same seed gives the same weights on the same machine.
        models_dir: Where the new model's folder is made.
        dtype: float32, or bfloat16 for the matrix products alone, which is several times faster on GPUs and TPUs.
        rematerialize: Gradient checkpointing: keeps only the input of each block and recomputes its activations: less
            memory, a third more work.
        micro_batch_size: Sequences that a device processes at a time; gradients are accumulated, so that a batch need
            not fit into memory. By default 1 on a CPU, elsewhere all.
        dry_run: Prints the time and memory that the run would take, on this machine or, with --dry_run=H100, A100 or
            L4, on a mesh of such devices.
    """
    settings = {  # these determine the result: a run resumes only with the same settings and the same text
        "n_vocab": n_vocab, "n_ctx": n_ctx, "n_embd": n_embd, "n_head": n_head, "n_layer": n_layer,
        "steps": steps, "minutes": minutes, "batch_size": batch_size, "learning_rate": learning_rate,
        "weight_decay": weight_decay, "dropout_rate": dropout_rate, "bpe_dropout": bpe_dropout, "ema": ema,
        "eval_every": eval_every, "seed": seed, "dtype": dtype}  # fmt: skip
    check_flags(settings, micro_batch_size, dry_run)
    data = corpora.Source(text)
    settings["n_vocab"] = n_vocab or data.n_vocab
    if dry_run:
        return plan.describe(dry_run, settings, mesh, micro_batch_size, rematerialize)
    processes.join(coordinator, n_processes, process_id)
    devices = all_devices() if mesh is None else sharding.make_mesh(mesh)
    sharding.check_heads(n_head, devices)
    check_divides(batch_size, devices.shape["data"], micro_batch_size)
    utils.check_name(model_size)
    return train(data, os.path.join(models_dir, model_size), settings, devices, rematerialize, micro_batch_size)


RANGES = {  # of the flags that the other learning commands do not have
    "n_vocab": (257, 10**7), "n_ctx": (1, 10**6), "n_embd": (1, 10**5), "n_head": (1, 10**4), "n_layer": (1, 10**4),
    "minutes": (0.01, 1e6), "weight_decay": (0.0, 100.0), "dropout_rate": (0.0, 0.99), "bpe_dropout": (0.0, 0.99),
    "ema": (0.0, 0.99999)}  # fmt: skip
cli.RENAMED["left_out"] = "bpe_dropout"


def check_flags(settings, micro_batch_size, dry_run):
    """Raises ValueError for a flag that is out of range, or for flags that contradict each other."""
    check_settings(settings, ("n_vocab", "steps", "minutes"), **RANGES)
    if micro_batch_size is not None:
        cli.check("micro_batch_size", micro_batch_size, 1, 10**6)
    sharding.check_dtype(settings["dtype"])
    if not isinstance(dry_run, bool) and str(dry_run) not in plan.DEVICES:
        raise ValueError(f"dry_run={dry_run!r} must be one of {', '.join(plan.DEVICES)}: or write --dry_run alone")
    if (settings["steps"] is None) == (settings["minutes"] is None):
        raise ValueError("give either steps, the number of updates, or minutes, about how long to train")
    if settings["n_embd"] % settings["n_head"]:
        raise ValueError(f"n_embd={settings['n_embd']} must be a multiple of {settings['n_head']}, n_head")


if __name__ == "__main__":
    cli.run(main)
