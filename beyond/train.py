"""Pre-training: a text goes in, a model folder that gpt2.py runs comes out.

    python -m beyond.train models/shakespeare/held_out.txt --model_size mine --steps 200

takes three minutes on two cores and prints

    models/mine: held-out loss 4.1423 nats a token, 1.9109 a character

The forward pass is gpt2.gpt2 as it is, with jax.numpy for its np: jax.vmap makes the batch, jax.grad the
gradients, jax.jit the speed. Redefined is transformer_block alone, for dropout; the rest is what a model needs to
learn well. The loop itself is beyond/fit.py's, which other chapters share.
"""

import functools
import hashlib
import json
import os
import re

import jax
import jax.numpy as jnp
import numpy as np

from beyond import checkpoint, files, style, tokenizer, variant
from beyond.fit import check_settings, check_state, finish, fit, muon_and_adamw, spread
from encoder import BYTE_TO_CHAR, Encoder
import gpt2
import utils

model = variant(gpt2, np=jnp)  # gpt2.py with the NumPy of JAX

SIZES = {
    "n_vocab": (257, 10**7),
    "n_ctx": (1, 10**6),
    "n_embd": (1, 10**5),
    "n_head": (1, 10**4),
    "n_layer": (1, 10**4),
}

# --- the model while it learns ---


def transformer_block(x, mlp, attn, ln_1, ln_2, n_head, keep, kv=None, past=0):  # [n_seq, n_embd] -> [n_seq, n_embd]
    attended, worked, *embedded = keep  # masks [n_seq, n_embd]; the first block has one for the embedding, too
    x = x * embedded[0] if embedded else x
    x = x + attended * model.mha(model.layer_norm(x, **ln_1), **attn, n_head=n_head)
    return x + worked * model.ffn(model.layer_norm(x, **ln_2), **mlp)


with_dropout = variant(model, transformer_block=transformer_block)


def dropout(params, key, rate, n_seq):
    """params with random masks in each block's keep: 0 with probability rate, else 1 / (1 - rate). A text that is
    read 25 times is learned by heart unless something is missing each time (https://arxiv.org/abs/1207.0580)."""
    shape = 2 * len(params["blocks"]) + 1, n_seq, params["wte"].shape[1]
    masks = jax.random.bernoulli(key, 1.0 - rate, shape) / (1 - rate)
    blocks = [{**block, "keep": masks[2 * i : 2 * i + 2]} for i, block in enumerate(params["blocks"])]
    blocks[0]["keep"] = masks[0], masks[1], masks[-1]
    return {**params, "blocks": blocks}


def token_losses(params, inputs, n_head, model=model):  # [n_seq + 1] -> [n_seq]
    """-log p of each of inputs[1:], in nats; log_softmax is finite where the log of a softmax may be log(0)."""
    logits = model.gpt2(inputs[:-1], **params, n_head=n_head)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), inputs[1:, None], axis=-1)[:, 0]


def lm_loss(params, inputs, n_head, model=model):  # [n_seq + 1] -> float
    """The cross-entropy of the shifted ids: the mean loss of a next token, in nats."""
    return token_losses(params, inputs, n_head, model).mean()


def held_out_loss(params, ids, n_head, stride, batch_size=8):
    """The mean loss of ids[1:] in nats, each scored once, in windows of n_ctx tokens that begin every stride tokens.

    ids: n_ctx + 1 or more. Beyond the first window each token sees at least n_ctx - stride tokens before it.
    """
    n_ctx, n = len(params["wpe"]), len(ids) - 1
    starts = np.append(np.arange(0, n - n_ctx, stride), n - n_ctx)[:, None]
    windows = np.asarray(ids)[starts + np.arange(n_ctx + 1)]
    new = starts + np.arange(n_ctx) >= np.append(0, starts[:-1] + n_ctx)[:, None]  # not scored by the window before
    fill = (0, -len(windows) % batch_size), (0, 0)  # one shape for all batches, so that jit compiles once
    windows, new = np.pad(windows, fill), np.pad(new, fill)
    return (
        sum(
            float((_batch_losses(params, spread(windows[i : i + batch_size]), n_head) * new[i : i + batch_size]).sum())
            for i in range(0, len(windows), batch_size)
        )
        / n
    )


@functools.partial(jax.jit, static_argnums=2)
def _batch_losses(params, rows, n_head):
    return jax.vmap(lambda row: token_losses(params, row, n_head))(rows)


# --- from a text to a folder ---


def save_curve(history, path):
    """Draws the losses by step; the file's description is history as JSON, for who wants to draw it otherwise."""
    import matplotlib
    from matplotlib.figure import Figure

    steps, train, held_out = zip(*history)
    with matplotlib.rc_context(style.STYLE):
        figure = Figure(figsize=(6.7, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.plot(steps, train, color=style.BLUE, label="learned from (with dropout)")
        axes.plot(steps, held_out, color=style.ORANGE, label="held out")
        axes.set(xlabel="step", ylabel="loss (nats per token)")
        axes.legend()
        about = {"Date": None, "Description": json.dumps(np.array(history).tolist())}
        files.write_whole(path, lambda part: figure.savefig(part, metadata=about))


def row_maker(encoder, text, n_ctx, batch_size, left_out):
    """rows(rng) -> ids [batch_size, n_ctx + 1]: pieces of the text.

    One row in eight begins with a document; documents are what blank lines separate, and in those rows <|endoftext|>
    comes between them, so that a prompt that begins like a document is continued to that one's end and no further.
    Half of the rows come from 16 other tokenizations of the text, each with a share left_out of the merges missing:
    who sees a text cut up differently each time learns less by heart (https://arxiv.org/abs/1910.13267).
    Raises ValueError if the text has no more than n_ctx tokens.
    """
    rng, streams = np.random.default_rng(0), [np.array(encoder.encode(text))]
    check_length(streams[0], n_ctx, "the text without its last tenth")
    for _ in range(16):
        kept = {char: None for char in BYTE_TO_CHAR.values()}  # {token: the merge that makes it}
        for pair in encoder.bpe_ranks:
            if pair[0] in kept and pair[1] in kept and rng.random() >= left_out:
                kept["".join(pair)] = pair
        other = Encoder({token: encoder.encoder[token] for token in kept}, filter(None, kept.values()))
        streams.append(np.array(other.encode(text)))
    end_of_text = encoder.encoder["<|endoftext|>"]
    documents = [
        [*encoder.encode(document), end_of_text] for document in re.split(r"\r?\n\r?\n", text) if document
    ] or [[end_of_text]]
    begins, ended = np.cumsum([0, *map(len, documents)]), np.concatenate(documents)
    begins = begins[begins < len(ended) - n_ctx]

    def row(rng):
        kind = rng.integers(8)
        if kind == 0 and len(begins):
            stream, start = ended, rng.choice(begins)
        else:
            stream = streams[0 if kind < 4 else rng.integers(1, len(streams))]
            start = rng.integers(len(stream) - n_ctx)
        return stream[start : start + n_ctx + 1]

    return lambda rng: np.array([row(rng) for _ in range(batch_size)])


def check_length(ids, n_ctx, what):
    """Raises ValueError unless a row of n_ctx tokens and the one that follows it can be cut from ids."""
    if len(ids) <= n_ctx:
        raise ValueError(
            f"n_ctx={n_ctx} needs {n_ctx + 1} tokens, and {what} has {len(ids)}: give a longer text or a smaller n_ctx"
        )


def main(
    text,
    model_size,
    n_vocab=1024,
    n_ctx=256,
    n_embd=192,
    n_head=4,
    n_layer=6,
    steps: int = None,
    minutes: float = None,
    batch_size=8,
    learning_rate=2e-3,
    weight_decay=0.3,
    dropout_rate=0.2,
    left_out=0.1,
    eval_every=250,
    seed=0,
    models_dir="models",
):
    """Trains a GPT-2 on a text, from nothing, and tells its loss on the text's last tenth, which it never learns from.

    The folder gets a model's seven files, with the weights that did best on that tenth; held_out.txt, that tenth
    itself; and loss.svg. After a kill the same command goes on from the last evaluation.

    Args:
        text: The path of a UTF-8 text; - reads the standard input.
        model_size: The name of the new model.
        n_vocab: Tokens in the vocabulary, 257 or more.
        n_ctx: The longest context, in tokens.
        n_embd: How many numbers represent a token, a multiple of n_head.
        n_head: Attention heads in a block.
        n_layer: Blocks.
        steps: How many updates to make.
        minutes: Instead of steps: about how long to learn, as estimated from the first five updates.
        batch_size: Rows of n_ctx tokens in an update, a multiple of the number of devices.
        learning_rate: The highest, after the warm-up.
        weight_decay: How much of the blocks' matrices goes at each update, times the learning rate.
        dropout_rate: From 0 to 0.99: how much of the embedding and of each branch is left out while learning.
        left_out: From 0 to 0.99: how many of the merges are left out where half of the text is tokenized differently.
        eval_every: Updates between two evaluations.
        seed: 0 or more: the same seed gives the same weights on the same machine.
        models_dir: The folder for the model's folder.
    """
    settings = dict(locals())
    check_settings(
        settings,
        ("steps", "minutes"),
        **SIZES,
        minutes=(0.01, 1e6),
        weight_decay=(0.0, 100.0),
        dropout_rate=(0.0, 0.99),
        left_out=(0.0, 0.99),
    )
    if (steps is None) == (minutes is None):
        raise ValueError("give either steps, how many updates to make, or minutes, about how long to learn")
    if n_embd % n_head:
        raise ValueError(f"n_embd={n_embd} must be a multiple of {n_head}, n_head")
    utils.check_name(model_size)
    folder, hparams = os.path.join(models_dir, model_size), {name: settings[name] for name in utils.HPARAMS}
    files.check_new(folder)
    content = files.read_text(text)
    settings.update(text=hashlib.sha256(content.encode()).hexdigest(), model_size=None, models_dir=None)
    check_state(folder, settings)
    learned, unseen = content[: len(content) * 9 // 10], content[len(content) * 9 // 10 :]
    merges = tokenizer.learn(learned, n_vocab)
    encoder = Encoder(tokenizer.vocabulary(merges), merges)
    ids = encoder.encode(unseen)
    check_length(ids, n_ctx, f"the last tenth of {text}, which is to measure with,")

    def loss(params, row, key):
        return lm_loss(dropout(params, key, dropout_rate, n_ctx), row, n_head, with_dropout)

    def held_out(params):
        return held_out_loss(params, ids, n_head, n_ctx, batch_size)

    def save(params, history):
        checkpoint.save_model(params, hparams, folder)
        tokenizer.save(merges, folder)
        files.write_text(f"{folder}/held_out.txt", unseen)
        save_curve(history, f"{folder}/loss.svg")

    optimizer = functools.partial(muon_and_adamw, learning_rate=learning_rate, weight_decay=weight_decay)
    rows = row_maker(encoder, learned, n_ctx, batch_size, left_out)
    history = fit(
        checkpoint.initial_params(**hparams, seed=seed), loss, rows, held_out, save, optimizer, folder, settings
    )
    save_curve(history, f"{folder}/loss.svg")
    params = utils.load_gpt2_params_from_tf_ckpt(f"{folder}/model.ckpt", hparams)
    found = held_out_loss(params, ids, n_head, max(1, n_ctx // 4), batch_size)
    n_chars = len(encoder.decode(ids[1:]))
    finish(folder)
    return f"{folder}: held-out loss {found:.4f} nats a token, {found * (len(ids) - 1) / n_chars:.4f} a character"


if __name__ == "__main__":
    utils.run(main, "text", "model_size", "models_dir")
