"""Pre-training: a text goes in, a model folder that gpt2.py runs comes out.

    python -m beyond.train models/shakespeare/held_out.txt --model_size mine --steps 200

takes three minutes on two cores and prints

    models/mine: held-out loss 4.1423 nats a token, 1.9109 a character

The forward pass is gpt2.gpt2 as it stands, with jax.numpy for its np: jax.vmap makes the batch, jax.grad the
gradients, jax.jit the speed. Redefined is transformer_block alone, for dropout; the rest is what a model needs to
learn well. fit, the loop, knows nothing of language models: other chapters bring a loss of their own.
"""

import functools
import hashlib
import json
import math
import os
import sys
import time
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from optax.contrib import MuonDimensionNumbers, muon

import gpt2
import utils
from beyond import tokenizer
from encoder import BYTE_TO_CHAR, Encoder, get_encoder
from gpt2 import ffn, layer_norm, mha

# --- the model while it learns ---


def initial_params(n_vocab, n_ctx, n_embd, n_head, n_layer, seed=0):
    """Parameters before the first step, as in GPT-2 (section 2.3 of its paper): weights normal with deviation 0.02,
    in front of a residual sum 0.02 / sqrt(2 n_layer), as that sum has 2 n_layer terms; g 1, b 0."""
    rng = np.random.default_rng(seed)

    def normal(*shape, scale=0.02):
        return scale * rng.standard_normal(shape, np.float32)

    def norm():
        return {"g": np.ones(n_embd, np.float32), "b": np.zeros(n_embd, np.float32)}

    def layer(n_in, n_out, scale=0.02):
        return {"w": normal(n_in * n_embd, n_out * n_embd, scale=scale), "b": np.zeros(n_out * n_embd, np.float32)}

    residual = 0.02 / math.sqrt(2 * n_layer)
    return {"wte": normal(n_vocab, n_embd), "wpe": normal(n_ctx, n_embd), "ln_f": norm(), "blocks": [
        {"ln_1": norm(), "attn": {"c_attn": layer(1, 3), "c_proj": layer(1, 1, residual)},
         "ln_2": norm(), "mlp": {"c_fc": layer(1, 4), "c_proj": layer(4, 1, residual)}} for _ in range(n_layer)]}


def transformer_block(x, mlp, attn, ln_1, ln_2, n_head, keep, kv=None, past=0):  # [n_seq, n_embd] -> [n_seq, n_embd]
    attended, worked, *embedded = keep  # masks [n_seq, n_embd]; the first block has one for the embedding, too
    x = x * embedded[0] if embedded else x
    x = x + attended * mha(layer_norm(x, **ln_1), **attn, n_head=n_head)
    return x + worked * ffn(layer_norm(x, **ln_2), **mlp)


def dropout(params, key, rate, n_seq):
    """params with random masks in each block's keep: 0 with probability rate, else 1 / (1 - rate). A text that is
    read 25 times is learned by heart unless something is missing each time (https://arxiv.org/abs/1207.0580)."""
    shape = 2 * len(params["blocks"]) + 1, n_seq, params["wte"].shape[1]
    masks = jax.random.bernoulli(key, 1.0 - rate, shape) / (1 - rate)
    blocks = [{**block, "keep": masks[2 * i:2 * i + 2]} for i, block in enumerate(params["blocks"])]
    blocks[0]["keep"] = masks[0], masks[1], masks[-1]
    return {**params, "blocks": blocks}


def token_losses(params, inputs, n_head, block=gpt2.transformer_block):  # [n_seq + 1] -> [n_seq]
    """-log p of each of inputs[1:], in nats; log_softmax is finite where the log of a softmax may be log(0)."""
    with patch.multiple(gpt2, np=jnp, transformer_block=block):
        logits = gpt2.gpt2(inputs[:-1], **params, n_head=n_head)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), inputs[1:, None], axis=-1)[:, 0]


def lm_loss(params, inputs, n_head, block=gpt2.transformer_block):  # [n_seq + 1] -> float
    """The cross-entropy of the shifted ids: the mean loss of a next token, in nats."""
    return token_losses(params, inputs, n_head, block).mean()


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
    return sum(float((_batch_losses(params, spread(windows[i:i + batch_size]), n_head) * new[i:i + batch_size]).sum())
               for i in range(0, len(windows), batch_size)) / n


@functools.partial(jax.jit, static_argnums=2)
def _batch_losses(params, rows, n_head):
    return jax.vmap(lambda row: token_losses(params, row, n_head))(rows)


@functools.partial(jax.jit, static_argnums=0)
def _row_losses(loss, params, rows, fixed):
    return jax.lax.map(lambda row: loss(params, row, None, *fixed), rows)


def mean_loss(loss, params, rows, *fixed):
    """The mean of loss(params, row, None, *fixed) over rows, one after the other."""
    return float(_row_losses(loss, params, rows, fixed).mean())


# --- the loop ---


def spread(rows, spec=PartitionSpec("data")):
    """Rows dealt out to all devices that JAX sees; under jit each works on its own, and the sums go to all."""
    return jax.device_put(rows, NamedSharding(Mesh(np.array(jax.devices()), ("data",)), spec))


def schedule(steps, learning_rate):
    """Warm-up, as the first gradients point anywhere; then down along a cosine, to settle."""
    return optax.warmup_cosine_decay_schedule(0, learning_rate, math.ceil(0.03 * steps), steps, 0.02 * learning_rate)


def muon_and_adamw(steps, learning_rate, weight_decay):
    """Muon (https://kellerjordan.github.io/posts/muon) for the blocks' matrices, AdamW for all else.

    Muon moves a matrix in all directions alike, which takes fewer steps; its updates are made as large as AdamW's
    (https://arxiv.org/abs/2502.16982), so that one learning rate serves both. Only those matrices decay, as a norm's g
    has its right size. Clipping: for the odd batch.
    """
    def for_muon(path, x):
        return MuonDimensionNumbers() if path[0].key == "blocks" and x.ndim == 2 else None

    return optax.chain(optax.clip_by_global_norm(1), muon(
        schedule(steps, learning_rate), weight_decay=weight_decay, adam_b2=0.99, consistent_rms=0.2,
        muon_weight_dimension_numbers=functools.partial(jax.tree_util.tree_map_with_path, for_muon)))


def updater(loss, optimizer, seed, fixed=()):
    """A function (params, state, rows, step) -> (params, state, loss) that makes one step."""
    fixed = spread(fixed, PartitionSpec())

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params, state, rows, step, fixed):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), step), jax.tree.leaves(rows)[0].shape[:2])

        def add_part(total, part):
            def mean(params):
                return jax.vmap(lambda row, key: loss(params, row, key, *fixed))(*part).mean()

            return jax.tree.map(jnp.add, total, jax.value_and_grad(mean)(params)), None

        total, _ = jax.lax.scan(add_part, jax.tree.map(jnp.zeros_like, (0.0, params)), (rows, keys))
        value, grads = jax.tree.map(lambda x: x / len(keys), total)
        changes, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, changes), state, value
    return lambda *args: update(*args, fixed)


def fit(params, loss, rows, held_out, save, optimizer, folder, settings, fixed=()):
    """Trains params on loss; calls save(params, history) whenever held_out(params) is lower than ever. Returns history.

    loss(params, row, key, *fixed) -> float: of one row; rows(rng) -> an array [batch_size, ...], or a tree of such;
    held_out(params) -> float; optimizer(steps) -> an optimizer of optax.
    settings: a dict with steps (None: as many as fit in minutes), minutes, eval_every, seed, maybe patience (how many
    evaluations that bring nothing better end it), and whatever else decides what comes out. folder/train.npz keeps the
    last evaluation's state: a call with equal settings goes on from there.
    history: [step, mean loss since the one before, held-out loss] for each evaluation, one every eval_every steps.
    Raises ValueError if a loss is no number any more, or if the state in folder belongs to other settings.
    """
    from tqdm import tqdm

    steps, eval_every, seed = settings["steps"], settings["eval_every"], settings["seed"]

    def batch(step):  # depends on nothing else, so that a training which goes on sees what it would have seen
        drawn = rows(np.random.default_rng([seed, step]))
        # on a CPU a row a device at a time, whose numbers stay in its cache (a third faster); elsewhere all at once
        at_once = jax.device_count() if jax.default_backend() == "cpu" else len(jax.tree.leaves(drawn)[0])
        return spread(jax.tree.map(lambda x: x.reshape(-1, at_once, *x.shape[1:]), drawn), PartitionSpec(None, "data"))

    def check(value):
        if not math.isfinite(value):
            raise ValueError(f"the loss is {value} at step {step + 1}: try a lower learning_rate under another name; "
                             + (f"{folder} keeps the best weights so far" if history else "nothing was saved so far"))

    os.makedirs(folder, exist_ok=True)
    saved = _read_state(folder, settings)
    if saved:
        steps = int(saved["steps"])
    elif steps is None:
        any_number = optimizer(1000)
        update, state = updater(loss, any_number, seed, fixed), any_number.init(params)
        steps = _steps_in(settings["minutes"], update, params, state, batch(0))
    history, losses = saved["history"].tolist() if saved else [], []
    update = updater(loss, optimizer(steps), seed, fixed)
    tree = params, optimizer(steps).init(params), params  # the weights, the optimizer's state, the best weights
    if saved:
        leaves, structure = jax.tree.flatten(tree)
        tree = jax.tree.unflatten(structure, [saved[str(i)] for i in range(len(leaves))])
        save(tree[2], history)  # in case the kill came between the state and the model
    params, state, best = jax.tree.map(jnp.array, tree)  # copies, as update reuses the memory of what it is given
    begin = int(history[-1][0]) if history else 0
    with tqdm(desc="training", total=steps, initial=begin, disable=None) as bar:
        for step in range(begin, steps):
            if history and np.argmin([found for *_, found in reversed(history)]) >= settings.get("patience", steps):
                break
            now, made = batch(step), step + 1
            params, state, value = update(params, state, now, step)
            losses.append(float(value))
            check(losses[-1])
            if made % eval_every == 0 or made == steps:
                found = held_out(params)
                check(found)
                better = not history or found < min(row[2] for row in history)
                history.append([made, sum(losses) / len(losses), found])
                best, losses = jax.tree.map(np.array, params) if better else best, []
                leaves = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves((params, state, best)))}
                write_whole(_state_path(folder), lambda part: np.savez(
                    part, settings=json.dumps(settings), steps=steps, history=history, **leaves))
                if better:
                    save(best, history)
                tqdm.write("step {}: loss {:.4f}, held out {:.4f}".format(*history[-1]), file=sys.stderr)
            bar.update()
            bar.set_postfix_str(f"loss {value:.3f}, held out {history[-1][2] if history else math.nan:.3f}, "
                                f"{jax.tree.leaves(now)[0].size * (bar.format_dict['rate'] or 0):.0f} tokens/s")
    os.remove(_state_path(folder))
    return history


def _state_path(folder):
    return os.path.join(folder, "train.npz")


def _read_state(folder, settings):
    """What fit left in the folder, or None. Raises ValueError if it belongs to other settings."""
    if not os.path.exists(_state_path(folder)):
        return None
    saved, settings = dict(np.load(_state_path(folder))), json.dumps(settings)
    if saved["settings"] != settings:
        raise ValueError(f"{folder} holds a training begun with {saved['settings']}, and this is {settings}: repeat "
                         f"those to go on with it, or give another name, or remove the folder")
    return saved


def _steps_in(minutes, update, params, state, rows):
    """How many updates fit into so many minutes; the first compiles and does not count."""
    params, state, value = update(*jax.tree.map(jnp.array, (params, state)), rows, 0)
    start, n = time.perf_counter(), 5
    for step in range(n):
        params, state, value = update(params, state, rows, step)
    value.block_until_ready()
    return max(1, int(n * 60 * minutes / (time.perf_counter() - start)))


def write_whole(path, write):
    """Lets write(part) make a file, which gets its name only when it is whole."""
    name, ending = os.path.splitext(path)
    write(f"{name}.part{ending}")
    os.replace(f"{name}.part{ending}", path)


# --- from a text to a folder ---


def save_model(params, hparams, folder):
    """Writes hparams.json and the checkpoint as TensorFlow 1 wrote OpenAI's: float32, sorted by name, w [1, in, out].

    Each file takes its place only when it is whole; encoder.json and vocab.bpe are beyond/tokenizer.py's.
    """
    part = os.path.join(folder, "part")
    os.makedirs(part, exist_ok=True)
    with open(os.path.join(part, "hparams.json"), "w") as file:
        json.dump(hparams, file)
    with utils.silent_stderr():  # TensorFlow has much to say about the machine
        import tensorflow as tf

        tf1 = tf.compat.v1
        with tf.Graph().as_default(), tf1.Session() as session:
            for path, array in jax.tree_util.tree_flatten_with_path(params)[0]:
                name = "model/" + jax.tree_util.keystr(path, simple=True, separator="/").replace("blocks/", "h")
                array = np.asarray(array)[None] if name.endswith("/w") else np.asarray(array)
                first = tf1.placeholder(tf.float32, array.shape)
                session.run(tf1.get_variable(name, initializer=first, use_resource=False).initializer, {first: array})
            tf1.train.Saver(save_relative_paths=True).save(session, os.path.join(part, "model.ckpt"))
    for name in os.listdir(part):
        os.replace(os.path.join(part, name), os.path.join(folder, name))
    os.rmdir(part)


def save_curve(history, path):
    """Draws the losses by step."""
    from matplotlib.figure import Figure

    steps, train, held_out = zip(*history)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, train, label="learned from (with dropout)")
    axes.plot(steps, held_out, label="held out")
    axes.set(xlabel="step", ylabel="loss (nats a token)")
    axes.grid(alpha=0.3)
    axes.legend()
    write_whole(path, lambda part: figure.savefig(part, metadata={"Date": None}))


def row_maker(encoder, text, n_ctx, batch_size, left_out):
    """rows(rng) -> ids [batch_size, n_ctx + 1]: pieces of the text.

    One row in eight begins with a document; documents are what blank lines separate, and in those rows <|endoftext|>
    stands between them, so that a prompt that begins like a document is continued to that one's end and no further.
    Half of the rows come from 16 other tokenizations of the text, each with a share left_out of the merges missing:
    who sees a text cut up differently each time learns less by heart (https://arxiv.org/abs/1910.13267).
    """
    rng, streams = np.random.default_rng(0), [np.array(encoder.encode(text))]
    for _ in range(16):
        kept = {char: None for char in BYTE_TO_CHAR.values()}  # {token: the merge that makes it}
        for pair in encoder.bpe_ranks:
            if pair[0] in kept and pair[1] in kept and rng.random() >= left_out:
                kept["".join(pair)] = pair
        other = Encoder({token: encoder.encoder[token] for token in kept}, filter(None, kept.values()))
        streams.append(np.array(other.encode(text)))
    end_of_text = encoder.encoder["<|endoftext|>"]
    documents = [[*encoder.encode(document), end_of_text] for document in text.split("\n\n") if document]
    begins, ended = np.cumsum([0, *map(len, documents)]), np.concatenate(documents)
    begins = begins[begins < len(ended) - n_ctx]

    def row(rng):
        kind = rng.integers(8)
        if kind == 0 and len(begins):
            stream, start = ended, rng.choice(begins)
        else:
            stream = streams[0 if kind < 4 else rng.integers(1, len(streams))]
            start = rng.integers(len(stream) - n_ctx)
        return stream[start:start + n_ctx + 1]

    return lambda rng: np.array([row(rng) for _ in range(batch_size)])


def main(text, model_size, n_vocab=1024, n_ctx=256, n_embd=192, n_head=4, n_layer=6, steps: int = None,
         minutes: float = None, batch_size=8, learning_rate=2e-3, weight_decay=0.3, dropout_rate=0.2, left_out=0.1,
         eval_every=250, seed=0, models_dir="models"):
    """Trains a GPT-2 on a text, from nothing, and tells its loss on the text's last tenth, which it never learns from.

    The folder gets a model's seven files, with the weights that did best on that tenth; held_out.txt, that tenth
    itself; and loss.svg. After a kill the same command goes on from the last evaluation.

    Args:
        text: The path of a UTF-8 text.
        model_size: The name of the new model.
        n_vocab: Tokens in the vocabulary, from 257 on.
        n_ctx: The longest context, in tokens.
        n_embd: How many numbers stand for a token, a multiple of n_head.
        n_head: Attention heads in a block.
        n_layer: Blocks.
        steps: How many updates to make.
        minutes: Instead of steps: about how long to learn, as estimated from the first five updates.
        batch_size: Rows of n_ctx tokens an update, a multiple of the number of devices.
        learning_rate: The highest, after the warm-up.
        weight_decay: How much of the blocks' matrices goes at each update, times the learning rate.
        dropout_rate: From 0 to below 1: how much of the embedding and of each branch is left out while learning.
        left_out: From 0 to 0.99: how many of the merges are left out where half of the text is tokenized differently.
        eval_every: Updates between two evaluations.
        seed: From 0 on: the same seed gives the same weights on the same machine.
        models_dir: The folder for the model's folder.
    """
    settings = dict(locals())
    check_settings(settings)
    folder, hparams = os.path.join(models_dir, model_size), {name: settings[name] for name in utils.HPARAMS}
    if os.path.exists(f"{folder}/model.ckpt.index") and not os.path.exists(f"{folder}/train.npz"):
        raise ValueError(f"{folder} is a model already: give another model_size, or remove that folder")
    content = tokenizer.read_text(text)
    learned, unseen = content[:len(content) * 9 // 10], content[len(content) * 9 // 10:]
    settings.update(text=hashlib.sha256(content.encode()).hexdigest(), models_dir=None)
    tokenizer.save(tokenizer.learn(learned, n_vocab), folder)
    with open(f"{folder}/held_out.txt", "w", encoding="utf-8", newline="") as file:
        file.write(unseen)
    encoder = get_encoder(model_size, models_dir)
    ids = encoder.encode(unseen)
    if len(ids) <= n_ctx:
        raise ValueError(f"n_ctx={n_ctx} needs {n_ctx + 1} tokens to measure with, and the last tenth of {text} has "
                         f"{len(ids)}: give a longer text or a smaller n_ctx")

    def loss(params, row, key):
        return lm_loss(dropout(params, key, dropout_rate, n_ctx), row, n_head, transformer_block)

    def held_out(params):
        return held_out_loss(params, ids, n_head, n_ctx, batch_size)

    def save(params, history):
        save_model(params, hparams, folder)
        save_curve(history, f"{folder}/loss.svg")

    optimizer = functools.partial(muon_and_adamw, learning_rate=learning_rate, weight_decay=weight_decay)
    history = fit(initial_params(**hparams, seed=seed), loss, row_maker(encoder, learned, n_ctx, batch_size, left_out),
                  held_out, save, optimizer, folder, settings)
    save_curve(history, f"{folder}/loss.svg")
    params = utils.load_gpt2_params_from_tf_ckpt(f"{folder}/model.ckpt", hparams)
    found = held_out_loss(params, ids, n_head, max(1, n_ctx // 4), batch_size)
    n_chars = len(encoder.decode(ids[1:]))
    return f"{folder}: held-out loss {found:.4f} nats a token, {found * (len(ids) - 1) / n_chars:.4f} a character"


def check_settings(settings):
    """Raises ValueError for an argument of main that is out of range, naming the range."""
    for name in "n_vocab", "n_ctx", "n_embd", "n_head", "n_layer", "steps", "batch_size", "eval_every", "seed":
        low = 0 if name == "seed" else 1
        if not (name == "steps" and settings[name] is None):
            utils.check(name, settings[name], int, low, math.inf, f"a whole number from {low} on")
    for name, low, high in (("minutes", 0.01, 1e6), ("learning_rate", 1e-9, 1), ("weight_decay", 0, 100),
                            ("dropout_rate", 0, 0.99), ("left_out", 0, 0.99)):
        if not (name == "minutes" and settings[name] is None):
            utils.check(name, settings[name], (int, float), low, high, f"a number from {low} to {high}")
    if (settings["steps"] is None) == (settings["minutes"] is None):
        raise ValueError("give either steps, how many updates to make, or minutes, about how long to learn")
    for name, unit, what in (("n_embd", settings["n_head"], "n_head"),
                             ("batch_size", jax.device_count(), "the number of devices")):
        if settings[name] % unit:
            raise ValueError(f"{name}={settings[name]} must be a multiple of {unit}, {what}")
    utils.check_name(settings["model_size"])
    if settings["model_size"] in utils.SHA256:
        raise ValueError(f"model_size={settings['model_size']!r} is OpenAI's: give the new model a name of its own")


if __name__ == "__main__":
    utils.run(main, "text", "model_size", "models_dir")
