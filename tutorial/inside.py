"""The tutorial's pictures of the inside of the model; tutorial/figures.py has the others and writes all of them."""

import functools
import itertools
import os

import numpy as np

from beyond.attention import look
from beyond.files.style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED
import gpt2
from tutorial.drawing import HEADS, SIGNED, arrow, bar, box, grid, label, line, note, scale, sheet, table, title, write
import utils

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LINE, LAYER, HEAD = "O, my good lord", 4, 3  # five tokens, and a head that looks at the previous ones


@functools.cache
def load():
    return utils.load_encoder_hparams_and_params("shakespeare", os.path.join(ROOT, "models"))


def names_of(ids):
    """Tokens as text for a picture: · is a space, \\n the end of a line."""
    return [load()[0].decode([int(id)]).replace(" ", "·").replace("\n", "\\n") for id in ids]


@functools.cache
def one_head():
    """(names, q, k, v) for the tokens of LINE in one head; q, k, v: [n_seq, d]."""
    encoder, hparams, params = load()
    ids = encoder.encode(LINE)
    x = params["wte"][ids] + params["wpe"][: len(ids)]
    for block in params["blocks"][:LAYER]:
        x = gpt2.transformer_block(x, **block, n_head=hparams["n_head"])
    block = params["blocks"][LAYER]
    qkv = gpt2.linear(gpt2.layer_norm(x, **block["ln_1"]), **block["attn"]["c_attn"])
    return names_of(ids), *qkv.reshape(len(ids), 3, hparams["n_head"], -1)[:, :, HEAD].swapaxes(0, 1)


# --- the layers and the architecture ---


def panel(axes, x, y, name, text, before, after, others=None):
    """Numbers before and after a layer, as bars; others: the output of another layer, dashed."""
    title(axes, x, y + 8, name)
    note(axes, x, y + 24, text)
    zero, unit = y + 92, 19
    high = after if others is None else others
    for left, values, tops, color in ((x, before, before, GREY), (x + 128, after, high, BLUE)):
        line(axes, (left - 2, zero), (left + 24 * len(values) - 4, zero), width=0.8)
        for i, value in enumerate(values):
            bar(axes, left + 24 * i, zero - unit * max(value, 0), 18, unit * abs(value), color)
            at = zero - unit * value + 8 if value < 0 else zero - unit * max(value, tops[i]) - 8
            write(axes, left + 24 * i + 9, at, f"{round(float(value), 2) + 0:g}", 8.5)
    for i, value in enumerate(() if others is None else others):
        left, height = x + 126 + 24 * i, zero - unit * value
        line(axes, (left, height), (left + 22, height), dashed=True)
    arrow(axes, (x + 102, y + 78), (x + 120, y + 78))


def layers(say):
    """The four small layers, applied to the same four numbers."""
    x = np.array([2.0, 1.0, 0.0, -1.0])
    w = np.array([[0.5, 0.0, -1.0], [0.0, 1.0, 0.5], [1.0, 1.0, 0.0], [-0.5, 0.0, 0.5]])
    b = np.array([0.0, 1.0, 0.5])
    axes = sheet(286)
    panel(axes, 4, 0, "linear", say("each output: a weighted sum of all, plus b"), x, gpt2.linear(x, w, b))
    panel(axes, 254, 0, "gelu", say("elementwise; dashed: relu"), x, gpt2.gelu(x), np.maximum(x, 0))
    panel(axes, 4, 148, "softmax", say("all positive, and the sum is 1"), x, gpt2.softmax(x))
    panel(axes, 254, 148, "layer_norm", say("mean 0, variance 1 (g = 1, b = 0)"), x, gpt2.layer_norm(x, 1, 0))
    return axes


def architecture(say):
    """The model and one of its blocks, from bottom to top."""
    axes = sheet(410)
    x, stream = 92, 266
    for y, text in ((400, "ids  [n_seq]"), (14, "logits  [n_seq, n_vocab]")):
        write(axes, x, y, text)
        write(axes, stream, y, "x  [n_seq, n_embd]")
    for y, color, text in (
        (352, GREEN, say("embeddings") + "\nwte[ids] + wpe[:n_seq]"),
        (128, PURPLE, say("final layer norm") + "\nln_f"),
        (74, GREEN, say("projection onto the vocabulary") + "\n@ wte.T"),
    ):
        box(axes, x, y, 168, 34, text, color, 9.5)
    for shift, color in ((12, "#a3bfe2"), (6, "#6b97cf"), (0, BLUE)):  # a stack of blocks
        box(axes, x + shift, 244 - shift, 144, 96, "", color)
    box(
        axes,
        x,
        244,
        144,
        96,
        say("block × n_layer") + "\n\n" + say("the same layers, each\nwith its own parameters"),
        size=9.5,
    )
    for start, end in ((390, 371), (334, 294), (182, 147), (110, 93), (56, 24)):
        arrow(axes, (x, start), (x, end))
    for y in (314, 166):
        write(axes, x + 6, y, "[n_seq, n_embd]", 9, "left")
    line(axes, (x + 88, 186), (226, 26), width=0.8, dashed=True)
    line(axes, (x + 76, 292), (226, 386), width=0.8, dashed=True)
    arrow(axes, (stream, 390), (stream, 24))
    write(axes, stream - 12, 148, say("residual stream"), 9.5, angle=90)
    for y, norm, layer, text, color in (
        (206, "ln_1", say("multi-head attention"), say("mha: tokens look at each other"), ORANGE),
        (34, "ln_2", say("feed-forward network"), say("ffn: each token by itself"), RED),
    ):
        arrow(axes, (stream, y + 156), (392, y + 156), (392, y + 136))
        box(axes, 392, y + 120, 130, 28, say("layer norm") + f"  {norm}", PURPLE)
        arrow(axes, (392, y + 106), (392, y + 88))
        box(axes, 392, y + 65, 172, 44, f"{layer}\n{text}", color, 9.5)
        arrow(axes, (392, y + 43), (392, y + 16), (stream + 12, y + 16))
        box(axes, stream, y + 16, 22, 22, "+", GREY, 14)
    return axes


# --- embeddings ---


def cosines(rows):
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def embeddings(say):
    """Cosine similarities of position and token embeddings."""
    encoder, hparams, params = load()
    positions = np.arange(0, hparams["n_ctx"], 8)
    words = [" king", " queen", " lord", " father", " mother", " I", " he", " you", " is", " was", ",", "."]
    ids = [encoder.encoder[word.replace(" ", "Ġ")] for word in words]
    axes = sheet(304)
    title(axes, 34, 9, say("positions: every eighth row of wpe"))
    table(axes, 34, 68, cosines(params["wpe"][positions]), 6, 6, colors=SIGNED, low=-1)
    for i, position in list(enumerate(positions))[::8]:
        write(axes, 37 + 6 * i, 59, position, 9)
        write(axes, 29, 71 + 6 * i, position, 9, "right")
    title(axes, 286, 9, say("tokens: rows of wte"))
    table(axes, 286, 68, cosines(params["wte"][ids]), 16, 16, colors=SIGNED, low=-1)
    label(axes, 286, 68, names_of(ids), 16, 16, angle=60)
    scale(axes, 34, 278, -1, 1, SIGNED)
    note(axes, 146, 282, say("cosine of two rows: 1 similar, 0 unrelated, -1 opposite"))
    return axes


# --- attention ---


def query(say):
    """One query: its scores against all keys, their softmax, and the weighted sum of all values."""
    names, q, k, v = one_head()
    scores = k @ q[-1] / q.shape[-1] ** 0.5
    weights = gpt2.softmax(scores)
    best = names[scores.argmax()]
    axes = sheet(262)
    top, step = 62, 29
    for x, text in (
        (40, say("query")),
        (125, say("keys")),
        (186, say("score\nq @ k / √d")),
        (262, say("weight\nsoftmax")),
        (402, say("value\nfirst 4 of {} numbers", v.shape[1])),
    ):
        write(axes, x, 20, text, 9.5)
    box(axes, 40, top + 2 * step, 56, 26, names[-1], ORANGE)
    for i, name in enumerate(names):
        y = top + step * i
        arrow(axes, (70, top + 2 * step), (96, y))
        box(axes, 125, y, 54, 22, name, BLUE)
        write(axes, 200, y, f"{scores[i]:.2f}", 10, "right")
        bar(axes, 222, y - 8, 60 * weights[i], 16, ORANGE)
        write(axes, 226 + 60 * weights[i], y, f"{weights[i]:.2f}", 10, "left")
        write(axes, 316, y, "×")
        table(axes, 330, y - 11, [v[i, :4]], 36, 22, "{:.2f}", SIGNED, -3, 3)
    line(axes, (330, y + 17), (474, y + 17), width=0.8)
    y += 36
    write(axes, 240, y, say("sum = {:.0f}", weights.sum()), 9.5)
    write(axes, 323, y, "=", 10, "right")
    table(axes, 330, y - 11, [(weights @ v)[:4]], 36, 22, "{:.2f}", SIGNED, -3, 3)
    text = say('{} takes {:.2f} times the value of "{}", and less of every other value', names[-1], weights.max(), best)
    note(axes, 12, y + 32, text)
    return axes


def mask(say):
    """The causal mask for five tokens, with the real numbers of one head."""
    names, q, k, _ = one_head()
    seen = np.tri(len(names)).astype(bool)
    scores = q @ k.T / q.shape[-1] ** 0.5
    weights = np.where(seen, gpt2.softmax(np.where(seen, scores, -1e10)), np.nan)
    axes = sheet(384)
    size = (35, 25)
    left, right, top, bottom = 58, 296, 36, 222
    title(axes, left, top - 26, say("scores: q @ k.T / √d"))
    grid(axes, left, top, [[f"{score:.2f}" for score in row] for row in scores], *size)
    title(axes, right, top - 26, say("+ mask"))
    grid(axes, right, top, np.where(seen, "0", "-1e10"), *size)
    title(axes, left, bottom - 26, say("softmax(scores), no mask"))
    table(axes, left, bottom, gpt2.softmax(scores), *size, "{:.2f}")
    title(axes, right, bottom - 26, say("softmax(scores + mask)"))
    table(axes, right, bottom, weights, *size, "{:.2f}")
    grid(axes, right, bottom, np.where(seen, "", "0"), *size)
    for x, y in itertools.product((left, right), (top, bottom)):
        label(axes, x, y, names, *size)
    scale(axes, 58, 359, 0, 1)
    note(axes, 168, 363, say("weights; row: query token, column: key token"))
    return axes


def split(say):
    """How the output of c_attn is split into heads, why the order of axes matters, and how heads are concatenated."""
    _, hparams, _ = load()
    n_head, n_embd = hparams["n_head"], hparams["n_embd"]
    d = n_embd // n_head
    parts = [f"{name}{i}" for name in "qkv" for i in range(n_head)]
    indices = np.arange(3 * n_head)
    width, low = 474 / (3 * n_head), 150 + 24 * n_head
    axes = sheet(low + 118)
    title(axes, 0, 9, say("c_attn gives each token {} numbers: q, k, v of {} heads, {} each", 3 * n_embd, n_head, d))
    for i, part in enumerate(parts):
        box(axes, 3 + width * (i + 0.5), 34, width - 3, 24, part, HEADS[i % n_head])
    for i, name in enumerate("qkv"):
        left, right = 7 + width * n_head * i, width * n_head * (i + 1) - 1
        line(axes, (left, 50), (left, 54), (right, 54), (right, 50), width=0.8)
        write(axes, (left + right) / 2, 64, f"{name}  [n_seq, {n_embd}]", 9)
    right, wrong = say("right: a head gets its own q, k, v"), say("wrong: same shapes, different contents")
    for x, shape, text, order, axis in (
        (0, "(n_seq, 3, n_head, d)", right, indices.reshape(3, n_head).T, "(1, 2, 0, 3)"),
        (250, "(n_seq, n_head, 3, d)", wrong, indices.reshape(n_head, 3), "(2, 1, 0, 3)"),
    ):
        title(axes, x, 94, f"reshape{shape}")
        note(axes, x, 110, text)
        for j, name in enumerate("qkv"):
            write(axes, x + 84 + 46 * j, 130, say("as {}", name), 9)
        for i in range(n_head):
            note(axes, x, 150 + 24 * i, say("head {}", i))
            for j in range(3):
                box(axes, x + 84 + 46 * j, 150 + 24 * i, 40, 20, parts[order[i, j]], HEADS[order[i, j] % n_head])
        write(axes, x, low, f"transpose{axis}: 3 × [n_head, n_seq, d]", 9, "left")
    title(axes, 0, low + 34, say("each head attends separately; the results are concatenated"))
    for i in range(n_head):
        box(axes, 16 + 32 * i, low + 64, 28, 24, i, HEADS[i])
        bar(axes, 262 + 128 / n_head * i, low + 52, 128 / n_head, 24, HEADS[i])
        write(axes, 262 + 128 / n_head * (i + 0.5), low + 64, i, color="white")
    write(axes, 16 * n_head, low + 86, f"{n_head} × [n_seq, {d}]", 9)
    arrow(axes, (32 * n_head + 6, low + 64), (252, low + 64))
    write(axes, 326, low + 86, f"[n_seq, {n_embd}]", 9)
    arrow(axes, (398, low + 64), (416, low + 64))
    box(axes, 448, low + 64, 58, 24, "c_proj", GREY)
    note(axes, 0, low + 108, f"n_embd = {n_embd}, n_head = {n_head}, d = n_embd / n_head = {d}")
    return axes


def heads(say):
    """Four heads that look at different tokens, and how much of their weight those tokens get."""
    encoder, hparams, params = load()
    ids = np.array(encoder.encode("ROMEO:\nGood morrow, my lord.\nI thank you, sir."))
    weights, _ = look(ids, params, hparams["n_head"])  # [n_layer, n_head, n_seq, n_seq]
    n = len(ids)
    previous = np.tri(n, k=-1) - np.tri(n, k=-4)
    ends = np.tile(ids == encoder.encoder["Ċ"], (n, 1))
    name = np.eye(1, n)  # it is the first token
    uniform = np.tri(n) / np.arange(1, n + 1)[:, None]
    axes = sheet(586)
    cell = 10
    for i, (layer, head, text, where) in enumerate(
        (
            (4, 3, say("the previous three tokens"), previous),
            (1, 1, say("the ends of lines"), ends),
            (5, 3, say("the speaker's name"), name),
            (0, 1, say("almost uniform"), None),
        )
    ):
        x, y = 44 + 246 * (i % 2), 78 + 282 * (i // 2)
        w = weights[layer, head]
        title(axes, x, y - 69, say("block {}, head {}: ", layer, head) + text)
        if where is None:
            note(axes, x, y - 55, say("every weight is within {:.2f} of uniform", np.abs(w - uniform)[3:].max()))
        else:  # without the first three tokens, which have few others to look at
            shares = ((part * where)[3:].sum(axis=1).mean() for part in (w, uniform))
            note(axes, x, y - 55, say("{:.0%} of the weight (uniform: {:.0%})", *shares))
        table(axes, x, y, np.where(np.tri(n), w, np.nan), cell, cell)
        label(axes, x, y, names_of(ids), cell, cell, 8, angle=90)
    scale(axes, 44, 562, 0, 1)
    note(axes, 156, 566, say("weights; row: query token, column: key token"))
    return axes
