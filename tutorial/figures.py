"""The tutorial's pictures, drawn from this repository's own code and model.

    python -m tutorial.figures

writes tutorial/figures/NAME.svg, and NAME.zh.svg with Chinese labels, for each function in FIGURES. Each function takes
`say`, which translates and formats a label, and returns the sheet. The description in each file lists all its texts and
numbers; tests/test_tutorial.py redraws the pictures and compares these lists.
"""

import itertools
import json
import os
import warnings
from xml.etree import ElementTree

import matplotlib
import numpy as np

from beyond.files.style import BLUE, GREEN, GREY, ORANGE, PALE, PURPLE, RED, STYLE
import cli
import gpt2
from tutorial.drawing import arrow, bar, box, graph, legend, line, note, row_of, sheet, title, write
from tutorial.inside import architecture, embeddings, heads, layers, load, mask, names_of, query, split
from tutorial.labels import CHINESE
from tutorial.parts import parts
import utils

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FOLDER = os.path.join(ROOT, "tutorial", "figures")


# --- input, output, training ---


def loop(say):
    """The generation loop: tokens go in, probabilities come out, the most probable token is appended to the text."""
    encoder, hparams, params = load()
    ids = encoder.encode("Good morrow, my")
    n = len(ids)
    axes = sheet(232)
    title(axes, 0, 9, say("the text so far"))
    write(axes, 474, 9, say("probability of the next token"), 10, "right", bold=True)
    for row in range(4):
        y = 44 + 54 * row
        end = row_of(axes, 0, y, names_of(ids), [BLUE] * n + [GREEN] * row)
        probs = gpt2.softmax(gpt2.gpt2(ids, **params, n_head=hparams["n_head"])[-1])
        best = np.argsort(-probs, kind="stable")[:3]
        arrow(axes, (end + 4, y), (312, y))
        write(axes, (end + 312) / 2, y - 8, "gpt2", 9)
        for i, (id, name) in enumerate(zip(best, names_of(best))):
            at, color = y + 15 * (i - 1), GREY if i else GREEN
            write(axes, 352, at, name, 9, "right")
            bar(axes, 356, at - 5, 84 * probs[id], 10, color)
            write(axes, 360 + 84 * probs[id], at, f"{probs[id]:.2f}", 9, "left")
        if row < 3:
            back = (474, y - 15), (474, y + 27), (end + 22, y + 27), (end + 22, y + 42)
            arrow(axes, (462, y - 15), *back, color=GREEN)
        ids = [*ids, int(best[0])]
    return axes


def sampling(say):
    """How temperature, top_k and top_p change a distribution."""
    encoder, hparams, params = load()
    logits = gpt2.gpt2(encoder.encode("My lord, I"), **params, n_head=hparams["n_head"])[-1]
    probs = gpt2.softmax(logits)
    n = 8
    ranked = np.argsort(-probs, kind="stable")
    before = np.cumsum(probs[ranked]) - probs[ranked]
    panels = [
        (say("temperature {}", 1), BLUE, probs[ranked]),
        (say("temperature {}", 0.5), BLUE, gpt2.softmax(logits / 0.5)[ranked]),
        (say("temperature {}", 2), BLUE, gpt2.softmax(logits / 2)[ranked]),
        ("top_k 5", GREEN, np.where(np.arange(len(probs)) < 5, probs[ranked], 0)),
        ("top_p 0.4", GREEN, np.where(before < 0.4, probs[ranked], 0)),
    ]
    axes = sheet(236)
    for i, name in enumerate([*names_of(ranked[:n]), say("{} others", len(probs) - n)]):
        write(axes, 62, 40 + 19 * i + 8 * (i == n), name, 9.5, "right")
    for left, (name, color, values) in zip(range(70, 480, 83), panels):
        write(axes, left, 14, name.replace(" ", "\n"), 9.5, "left", bold=True)
        line(axes, (left, 30), (left, 210), width=0.8)
        old, new = ([*part[:n], part[n:].sum()] for part in (probs[ranked], values / values.sum()))
        for i, (was, p) in enumerate(zip(old, new)):
            y = 40 + 19 * i + 8 * (i == n)
            bar(axes, left, y - 7, 62 * was, 14, PALE)
            bar(axes, left, y - 4, 62 * p, 8, ORANGE if i == n else color)
            write(axes, left + 3 + 62 * max(was, p), y, f"{p:.2f}" if p else "0", 8.5, "left")
    entries = (PALE, say("temperature {}", 1)), (BLUE, say("not truncated")), (GREEN, say("truncated, renormalized"))
    legend(axes, 70, 225, *entries, (ORANGE, say("all others")))
    return axes


def shift(say):
    """The targets are the inputs shifted by one, and each position has its own loss."""
    encoder, hparams, params = load()
    ids = encoder.encode("To be, or not to be, that is the question.")
    probs = gpt2.softmax(gpt2.gpt2(ids[:-1], **params, n_head=hparams["n_head"]))[np.arange(len(ids) - 1), ids[1:]]
    losses, names = -np.log(probs), names_of(ids)
    n = 6
    axes = sheet(268)
    for y, text in (
        (16, say("inputs\nids[:-1]")),
        (62, "gpt2"),
        (108, say("targets\nids[1:]")),
        (142, say("probability")),
        (200, say("loss")),
    ):
        write(axes, 62, y, text, 9.5, "right")
    text = say("each position sees only itself and earlier tokens")
    box(axes, 68 + 62 * n / 2, 62, 62 * n + 4, 26, text, GREY)
    for i in range(n):
        x = 97 + 62 * i
        box(axes, x, 16, 46, 22, names[i], BLUE)
        box(axes, x, 108, 46, 22, names[i + 1], GREEN)
        arrow(axes, (x, 28), (x, 47))
        arrow(axes, (x, 76), (x, 95))
        if i + 1 < n:
            line(axes, (x + 52, 25), (x + 31, 50), (x + 31, 74), (x + 14, 96), color=GREEN, width=0.9, dashed=True)
        write(axes, x, 142, f"{probs[i]:.3f}", 9.5)
        bar(axes, x - 14, 240 - 14 * losses[i], 28, 14 * losses[i], ORANGE)
        write(axes, x, 232 - 14 * losses[i], f"{losses[i]:.2f}", 9.5)
    write(axes, 97 + 62 * n - 22, 16, "...", 10, "left")
    write(axes, 97 + 62 * n - 22, 108, "...", 10, "left")
    line(axes, (70, 240), (70 + 62 * n, 240), width=0.8)
    note(axes, 70, 256, say("loss = -ln(probability); mean over the whole sentence: {:.2f}", losses.mean()))
    return axes


def loss(say):
    """The loss by step of the model in this repository, on its training text and on the held-out text."""
    n_vocab = load()[1]["n_vocab"]
    steps, train, held_out, averaged = history_of(os.path.join(ROOT, "models", "shakespeare", "loss.svg")).T
    blind = np.log(n_vocab)
    best = averaged.argmin()
    axes = sheet(258)
    inner = graph(axes, 40, 10, 430, 200, xlim=(0, steps[-1] * 1.02), ylim=(2.4, 7.3))
    inner.plot(steps, train, color=BLUE, lw=1.8)
    inner.plot(steps, held_out, color=ORANGE, lw=1.8)
    inner.plot(steps, averaged, color=GREEN, lw=1.8)
    inner.plot(steps[best], averaged[best], "o", color=GREEN, ms=6)
    inner.axhline(blind, color=GREY, lw=1, ls=(0, (4, 3)))
    note(axes, 50, 38, say("a blind guess: ln({}) = {:.2f}", n_vocab, blind))
    write(axes, 462, 158, say("kept: step {:g}, {:.2f}", steps[best], averaged[best]), 9.5, "right")
    write(axes, 255, 234, say("step"))
    write(axes, 12, 110, say("loss (nats per token)"), 10, angle=90)
    average = GREEN, say("held-out text, averaged weights")
    legend(axes, 40, 250, (BLUE, say("training text (with dropout)")), (ORANGE, say("held-out text")), average)
    return axes


def history_of(path):
    """The losses in a picture by beyond.train: [n, 4], step, training, held-out, held-out with averaged weights."""
    description = ElementTree.parse(path).find(".//{http://purl.org/dc/elements/1.1/}description")
    return np.array(json.loads(description.text))


# --- vocabulary, checkpoint, cache, quantization ---


def merge_steps(symbols, ranks):
    """[(tokens, rank of the last merge)] for a word, after each merge."""
    steps = [(list(symbols), None)]
    while True:
        tokens = steps[-1][0]
        known = [(ranks[pair], i) for i, pair in enumerate(zip(tokens, tokens[1:])) if pair in ranks]
        if not known:
            return steps
        rank, i = min(known)
        steps.append(([*tokens[:i], tokens[i] + tokens[i + 1], *tokens[i + 2 :]], rank))


def bpe(say):
    """The merges of one word."""
    steps = merge_steps("Ġunworthy", load()[0].bpe_ranks)
    seen = set()
    axes = sheet(30 * len(steps) + 24)
    for row, (tokens, rank) in enumerate(steps):
        x, y = 0, 15 + 30 * row
        for token in tokens:
            new = len(token) > 1 and (x, token) not in seen
            seen.add((x, token))
            width = 33 * len(token)
            box(axes, x + width / 2, y, width - 4, 23, token.replace("Ġ", "·"), GREEN if new else BLUE, 11)
            x += width
        text = say("one symbol per byte") if rank is None else say("merge number {}", rank)
        write(axes, 312, y, text, 10, "left")
    note(axes, 0, y + 28, say("· is the space before the word, written Ġ in vocab.bpe"))
    return axes


def checkpoint(say):
    """The data file: all arrays end to end, and the arrays of one block."""
    wide = 478
    _, hparams, params = load()
    blocks = [(f"h{i}", params["blocks"][i], BLUE) for i in range(hparams["n_layer"])]
    pieces = [*blocks, ("ln_f", params["ln_f"], PURPLE), ("wpe", params["wpe"], GREEN), ("wte", params["wte"], GREEN)]
    total = sum(size_of(part) for _, part, _ in pieces)
    axes = sheet(226)
    x = 0
    title(axes, 0, 9, say("model.ckpt.data: {:,} numbers of 4 bytes each, end to end", total))
    for name, part, color in pieces:
        width = wide * size_of(part) / total
        bar(axes, x, 24, max(width - 1, 0.8), 32, color)
        if name != "ln_f":
            below = 26 * (name == "wpe")  # too narrow for its name
            write(axes, x + width / 2, 40 + below, name, 9.5, color=GREY if below else "white")
        if name == "h1":
            line(axes, (x, 58), (0, 100), width=0.8, dashed=True)
            line(axes, (x + width - 1, 58), (wide, 100), width=0.8, dashed=True)
        x += width
    block = params["blocks"][1]
    thin = size_of(block) - sum(array.size for _, array in utils.named_arrays(block) if array.ndim == 2)
    write(axes, wide / 2, 86, say("one block: {:,} numbers", size_of(block)), 10, bold=True)
    x = 0
    for branch, color in (("attn", ORANGE), ("mlp", RED)):
        start = x
        for name in block[branch]:
            w = block[branch][name]["w"]
            width = wide * w.size / size_of(block)
            bar(axes, x, 102, width - 1, 40, color)
            write(axes, x + width / 2, 122, f"{name}\n{w.shape[0]}×{w.shape[1]}", 8, color="white")
            x += width
        share = sum(array.size for _, array in utils.named_arrays(block[branch])) / size_of(block)
        line(axes, (start, 147), (start, 151), (x - 1, 151), (x - 1, 147), width=0.8)
        text = say("attention") if branch == "attn" else say("feed-forward network")
        write(axes, (start + x) / 2, 162, f"{text} {share:.0%}", 9.5)
    bar(axes, x, 102, wide - x, 40, PURPLE)
    note(
        axes,
        0,
        190,
        say(
            "thin strip: all biases and layer norms, {:.1%}; in the file, they lie between the matrices",
            thin / size_of(block),
        ),
    )
    n_vocab, n_ctx = len(params["wte"]), len(params["wpe"])
    note(axes, 0, 208, say("wte: one row for each of {:,} tokens; wpe: one for each of {} positions", n_vocab, n_ctx))
    return axes


def size_of(tree):
    return sum(array.size for _, array in utils.named_arrays({"": tree}))


def cache(say):
    """The tokens computed in each step, without a cache and with one."""
    encoder, hparams, params = load()
    ids, steps = encoder.encode("O, my good"), 4
    n = len(ids)
    out = names_of(gpt2.generate(ids, params, hparams["n_head"], steps))
    axes = sheet(224)
    for left, with_cache in ((66, False), (282, True)):
        title(axes, left, 9, say("with a cache") if with_cache else say("without a cache"))
        for step in range(steps):
            y = 42 + 30 * step
            for i in range(n + step):
                old = with_cache and step and i < n + step - 1
                box(axes, left + 9 + 20 * i, y, 18, 20, str(i), GREY if old else ORANGE, 9)
            end = left + 20 * (n + step)
            arrow(axes, (end + 1, y), (end + 13, y))
            row_of(axes, end + 15, y, [out[step]], [GREEN], 9)
        computed = [n, *[1] * (steps - 1)] if with_cache else range(n, n + steps)
        text = " + ".join(map(str, computed)) + f" = {sum(computed)}"
        note(axes, left, 166, say("tokens computed: {}", text))
    for step in range(steps):
        note(axes, 0, 42 + 30 * step, say("decode {}", step) if step else say("prefill"))
    legend(axes, 0, 194, (ORANGE, say("goes through the model")), (GREY, say("k and v come from the cache")))
    prompt = "  ".join(names_of(ids))
    note(axes, 0, 214, say("0 to {}: the prompt, {}; green: the output, which is the next input", n - 1, prompt))
    return axes


def quantization(say):
    """64 weights that share a scale, rounded to 8 and to 4 bits."""
    _, _, params = load()
    w = np.sort(params["blocks"][0]["mlp"]["c_fc"]["w"][:64, 0])  # 64 inputs of one output
    axes = sheet(236)
    for left, bits in ((44, 8), (276, 4)):
        most = 2 ** (bits - 1) - 1
        scale = np.abs(w).max() / most
        inner = graph(axes, left, 26, 196, 156, xlim=(w[0] - 0.006, w[-1] + 0.006), ylim=(w[0] - 0.006, w[-1] + 0.006))
        edges = np.arange(np.rint(w[0] / scale), np.rint(w[-1] / scale) + 1)
        inner.step(np.array([edges - 0.5, edges + 0.5]).T.ravel() * scale, edges.repeat(2) * scale, color=BLUE, lw=1.2)
        inner.plot(w, np.rint(w / scale) * scale, "o", color=ORANGE, ms=3.5, mew=0)
        ticks = [tick for tick in (-0.08, -0.04, 0, 0.04, 0.08) if w[0] < tick < w[-1]]
        inner.set(xticks=ticks, yticks=ticks)
        off = np.abs(np.rint(w / scale) * scale - w).max()
        title(axes, left, 10, say("{} bits: error up to {:.4f}", bits, off))
        write(axes, left + 98, 208, say("weight"))
    write(axes, 9, 104, say("stored value"), 10, angle=90)
    legend(axes, 44, 228, (ORANGE, say("64 weights that share a scale")), (BLUE, say("all values that can be stored")))
    return axes


FIGURES = [
    loop,
    sampling,
    shift,
    loss,
    parts,
    bpe,
    checkpoint,
    layers,
    architecture,
    embeddings,
    query,
    mask,
    split,
    heads,
    cache,
    quantization,
]


# --- files ---


def chinese(text, *values):
    return CHINESE[text].format(*values)


LANGUAGES = {"": str.format, ".zh": chinese}


def drawn(axes):
    """The texts and numbers on a sheet: {"texts": [...], "numbers": [...]}."""
    curves = [line for graph in axes.figure.axes[1:] for line in graph.lines]
    numbers = [*axes.numbers, *(number for line in curves for number in [*line.get_xdata(), *line.get_ydata()])]
    return {"texts": [text.get_text() for text in axes.texts], "numbers": [round(float(x), 3) + 0 for x in numbers]}


def draw(folder, figures=FIGURES):
    """Writes pictures into a folder."""
    os.makedirs(folder, exist_ok=True)
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the font used for measuring, not the reader's
        for make, (language, say) in itertools.product(figures, LANGUAGES.items()):
            axes = make(say)
            about = {"Title": make.__doc__, "Description": json.dumps(drawn(axes), ensure_ascii=False)}
            path = os.path.join(folder, f"{make.__name__}{language}.svg")
            axes.figure.savefig(path, metadata={"Date": None, "Creator": None, **about})


def main():
    """Draws the tutorial's pictures into tutorial/figures."""
    draw(FOLDER)
    return f"{len(FIGURES)} pictures in {len(LANGUAGES)} languages in {FOLDER}"


if __name__ == "__main__":
    cli.run(main)
