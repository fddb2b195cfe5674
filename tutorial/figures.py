"""The tutorial's pictures, drawn from this repository's own code and model.

    python -m tutorial.figures

writes tutorial/figures/NAME.svg for each function in FIGURES. The background is transparent and the grey of lines and
letters is as far from white as from GitHub's dark #0d1117, so one file serves both themes. What is drawn, texts and
numbers, stands in each file's description, too; tests/test_tutorial.py draws all anew and compares that.
"""

import json
import os

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
import numpy as np

from beyond.attention import look
import gpt2
import utils

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "figures")
GREY, BLUE, GREEN, ORANGE, PURPLE = "#797979", "#2f6db5", "#2e7d4f", "#b0591a", "#7a55b0"
STYLE = {
    "font.size": 11,
    "text.color": GREY,
    "axes.labelcolor": GREY,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.titlesize": 11,
    "axes.titlecolor": GREY,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "PicoGPT",
    "svg.fonttype": "path",
    "legend.frameon": False,
}


def load():
    return utils.load_encoder_hparams_and_params("shakespeare", "models")


def text_of(encoder, id):
    """A token as it is shown in a picture: a visible space, a visible line's end."""
    return encoder.decode([id]).replace(" ", "␣").replace("\n", "\\n")


def plain(figure, width, height):
    """Axes that are a sheet of paper, width x height."""
    axes = figure.subplots()
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    return axes


def box(axes, x, y, width, height, text, color=BLUE, size=11):
    """A box with white letters; x, y: its middle."""
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            facecolor=color,
            edgecolor="none",
            boxstyle="round,pad=0,rounding_size=0.08",
            mutation_aspect=1,
        )
    )
    axes.text(x, y, text, color="white", ha="center", va="center", size=size)


def arrow(axes, start, end, color=GREY):
    axes.annotate(
        "", end, start, arrowprops={"arrowstyle": "-|>", "color": color, "lw": 1.3, "shrinkA": 0, "shrinkB": 0}
    )


def cells(axes, table, form=None, cmap="viridis", low=None, high=None):
    """A table as coloured squares, the first row on top, with its numbers if there is a form for them."""
    table = np.asarray(table, float)
    mesh = axes.pcolormesh(table, cmap=cmap, vmin=low, vmax=high, edgecolors="face", linewidth=0.2)
    axes.invert_yaxis()
    axes.set_aspect("equal")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for (i, j), number in np.ndenumerate(table):
        if form and np.isfinite(number):
            red, green, blue, _ = mesh.to_rgba(number)
            color = "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.45 else "white"
            text = form.format(number if abs(number) >= 0.005 else abs(number))
            axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", color=color, size=9)


def label_cells(axes, columns, rows, rotation=90):
    if columns:
        axes.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=rotation)
        axes.xaxis.tick_top()
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows)


# --- the pictures ---


def loop():
    """Section 3: the loop that writes a text."""
    encoder, hparams, params = load()
    ids = encoder.encode("Good morrow, my")
    figure = Figure(figsize=(6.6, 2.6), layout="constrained")
    axes = plain(figure, 10, 4.2)
    for row in range(4):
        y, x = 3.7 - row * 1.05, 0.0
        for i, id in enumerate(ids):
            text = text_of(encoder, id)
            width = 0.3 + 0.14 * len(text)
            box(axes, x + width / 2, y, width, 0.6, text, BLUE if i < len(ids) - row else GREEN)
            x += width + 0.08
        next_id = gpt2.generate(ids, params, hparams["n_head"], 1)[0]
        arrow(axes, (x + 0.05, y), (7.2, y))
        axes.text((x + 7.2) / 2, y + 0.1, "gpt2", ha="center", va="bottom")
        text = text_of(encoder, next_id)
        width = 0.3 + 0.14 * len(text)
        box(axes, 7.4 + width / 2, y, width, 0.6, text, GREEN)
        if row < 3:
            axes.text(7.6 + width, y, "joins the input", va="center")
        ids = [*ids, next_id]
    return figure


def sampling():
    """Section 3: one distribution, and what temperature, top_k and top_p make of it."""
    encoder, hparams, params = load()
    logits = gpt2.gpt2(encoder.encode("My lord, I"), **params, n_head=hparams["n_head"])[-1]
    order = np.argsort(-logits, kind="stable")[:12]
    probs = gpt2.softmax(logits)
    top_k = np.where(np.isin(np.arange(len(probs)), order[:5]), probs, 0)
    ranked = np.argsort(-probs, kind="stable")
    kept = ranked[np.cumsum(probs[ranked]) - probs[ranked] < 0.5]
    top_p = np.where(np.isin(np.arange(len(probs)), kept), probs, 0)
    panels = [
        ("temperature 1", probs),
        ("temperature 0.5", gpt2.softmax(logits / 0.5)),
        ("temperature 2", gpt2.softmax(logits / 2)),
        ("top_k 5", top_k / top_k.sum()),
        ("top_p 0.5", top_p / top_p.sum()),
    ]
    figure = Figure(figsize=(6.6, 3.6), layout="constrained")
    for axes, (title, values) in zip(figure.subplots(1, 5, sharey=True), panels):
        axes.barh(range(12), probs[order], color=GREY, alpha=0.35)
        axes.barh(range(12), values[order], height=0.5, color=BLUE if title.startswith("temp") else GREEN)
        axes.set_title(title.replace(" ", "\n"))
        axes.set_yticks(range(12), [text_of(encoder, id) for id in order])
        axes.set_xlim(0, 0.55)
        axes.set_xticks([0, 0.5], ["0", "0.5"])
        axes.tick_params(axis="y", length=0)
    figure.axes[0].invert_yaxis()
    figure.supxlabel("probability of the next token (pale: temperature 1)", color=GREY, size=11)
    return figure


def merge_steps(symbols, ranks):
    """[(tokens, the merge that made them)] of a word, a merge a step."""
    steps = [(list(symbols), None)]
    while True:
        tokens = steps[-1][0]
        known = [(ranks[pair], i) for i, pair in enumerate(zip(tokens, tokens[1:])) if pair in ranks]
        if not known:
            return steps
        rank, i = min(known)
        steps.append(([*tokens[:i], tokens[i] + tokens[i + 1], *tokens[i + 2 :]], rank))


def bpe():
    """Section 6: the merges of one word."""
    encoder, _, _ = load()
    steps = merge_steps("Ġunworthy", encoder.bpe_ranks)
    figure = Figure(figsize=(6, 0.46 * len(steps) + 0.2), layout="constrained")
    axes, seen = plain(figure, 9.6, len(steps)), set()
    for row, (tokens, rank) in enumerate(steps):
        x, y = 0.0, len(steps) - row - 0.5
        for token in tokens:
            new = len(token) > 1 and (x, token) not in seen
            seen.add((x, token))
            box(axes, x + 0.31 * len(token), y, 0.62 * len(token) - 0.1, 0.72, token, GREEN if new else BLUE, 12)
            x += 0.62 * len(token)
        axes.text(6.1, y, "one symbol a byte" if rank is None else f"merge number {rank}", va="center")
    return figure


def checkpoint():
    """Section 6: the data file, tensor by tensor, and one block of it enlarged."""
    _, hparams, params = load()
    blocks = sorted(range(hparams["n_layer"]), key=str)
    parts = [(f"h{i}", params["blocks"][i]) for i in blocks] + [(name, params[name]) for name in ("ln_f", "wpe", "wte")]
    figure = Figure(figsize=(6.6, 3), layout="constrained")
    axes = plain(figure, 100, 10)
    total, x = sum(size_of(part) for _, part in parts), 0.0
    for i, (name, part) in enumerate(parts):
        width = 100 * size_of(part) / total
        color = {"wpe": ORANGE, "wte": GREEN, "ln_f": PURPLE}.get(name, (BLUE, "#4a85c8")[i % 2])
        axes.barh(7.4, width, 1.6, x, color=color)
        if width > 4:
            axes.text(x + width / 2, 7.4, name, color="white", ha="center", va="center", size=10)
        else:  # two of them stand side by side
            axes.text(x, 8.7, f" {name} ", ha="right" if width < 1 else "left", va="center", size=10)
        if i == 1:
            zoom = x, x + width
        x += width
    axes.text(0, 9.6, "byte 0", ha="left", va="center")
    axes.text(100, 9.6, f"byte {4 * total:,}", ha="right", va="center")
    for start, end in zip(zoom, (0, 100)):
        axes.plot([start, end], [6.6, 4.3], color=GREY, lw=0.8)
    name, block = parts[1]
    tensors, x = sorted(flat(block)), 0.0
    for path, array in tensors:
        width = 100 * array.size / size_of(block)
        axes.barh(3.5, width, 1.7, x, color=BLUE if path.endswith("w") else ORANGE)
        if width > 4:
            axes.text(x + width / 2, 3.5, path.replace("/", "\n", 1), color="white", ha="center", va="center", size=9)
            shape = " x ".join(map(str, array.shape))
            axes.text(x + width / 2, 2.1, f"[{shape}]", ha="center", va="center", size=10)
        x += width
    axes.text(
        0,
        0.7,
        f"{name}: {len(tensors)} tensors, sorted by name; the thin lines are biases and layer norms",
        va="center",
    )
    return figure


def flat(tree, path=""):
    """[(name, array)] of nested dicts."""
    if isinstance(tree, dict):
        return [pair for name, part in tree.items() for pair in flat(part, f"{path}/{name}".strip("/"))]
    return [(path, tree)]


def size_of(tree):
    return sum(array.size for _, array in flat(tree))


def layers():
    """Section 7: the small layers."""
    figure = Figure(figsize=(6.6, 5.6), layout="constrained")
    (one, two), (three, four) = figure.subplots(2, 2)
    x = np.linspace(-4, 4, 81)
    one.plot(x, np.maximum(x, 0), color=GREY, ls="--", label="relu")
    one.plot(x, gpt2.gelu(x), color=BLUE, lw=2, label="gelu")
    one.set_title("gelu: a relu with a soft bend")
    one.legend()
    logits = np.array([2.0, 1.0, 0.0, -1.0])
    two.bar(np.arange(4) - 0.2, logits, 0.38, color=GREY, label="logits")
    two.bar(np.arange(4) + 0.2, gpt2.softmax(logits), 0.38, color=BLUE, label="softmax")
    for i, p in enumerate(gpt2.softmax(logits)):
        two.text(i + 0.2, p + 0.05, f"{p:.2f}", ha="center", size=9)
    two.set_title("softmax: positive, and 1 together")
    two.set_xticks([])
    two.legend()
    rng = np.random.default_rng(0)
    row = 30 + 8 * rng.standard_normal(2000)
    for values, color, label in ((row, GREY, "before"), (gpt2.layer_norm(row, 1, 0), BLUE, "after, with g = 1, b = 0")):
        counts, edges = np.histogram(values, np.arange(-5, 60, 0.5))
        three.stairs(counts / counts.sum(), edges, fill=True, color=color, label=label, alpha=0.85)
    three.set_title("layer_norm: mean 0, variance 1")
    three.set_ylim(0, 0.27)
    three.legend(loc="upper right")
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, 5), np.linspace(-1, 1, 5)), -1)
    moved = gpt2.linear(grid, np.array([[1.0, 0.5], [-0.4, 1.2]]), np.array([3.2, 0.6]))
    for points, color, label in ((grid, GREY, "x"), (moved, BLUE, "x @ w + b")):
        for lines in points, points.swapaxes(0, 1):
            for i, line in enumerate(lines):
                four.plot(*line.T, color=color, lw=1.4, label=label if i == 0 and lines is points else None)
    four.set_title("linear: turn, stretch, shift")
    four.set_aspect("equal")
    four.set_ylim(-1.4, 4)
    four.legend(loc="upper left", ncols=2)
    return figure


def embeddings():
    """Section 8: what the model has learned of positions and tokens."""
    encoder, hparams, params = load()
    figure = Figure(figsize=(6.6, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    places = np.arange(0, hparams["n_ctx"], hparams["n_ctx"] // 32)
    cells(left, cosines(params["wpe"][places]), low=-1, high=1, cmap="RdBu_r")
    left.set_xticks([0.5, 16.5, 31.5], places[[0, 16, 31]])
    left.set_yticks([0.5, 16.5, 31.5], places[[0, 16, 31]])
    left.xaxis.tick_top()
    left.set_title("positions: rows of wpe", pad=24)
    words = [" king", " queen", " lord", " father", " mother", " I", " he", " you", " is", " was", ",", "."]
    words = [word for word in words if len(encoder.encode(word)) == 1]
    cells(right, cosines(params["wte"][[encoder.encode(word)[0] for word in words]]), low=-1, high=1, cmap="RdBu_r")
    label_cells(right, [word.strip() for word in words], [word.strip() for word in words])
    right.set_title("tokens: rows of wte", pad=12)
    bar = figure.colorbar(right.collections[0], ax=[left, right], shrink=0.8)
    bar.set_label("cosine of two rows")
    bar.outline.set_visible(False)
    return figure


def cosines(rows):
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def architecture():
    """Section 8: the model, and one block of it."""
    figure = Figure(figsize=(6.4, 6.4), layout="constrained")
    axes = plain(figure, 12, 10.6)
    box(axes, 2.6, 1.5, 3.6, 0.7, "wte[ids] + wpe[:n_seq]", GREEN, 10)
    for y, name in ((3.1, "block 0"), (4.2, "block 1"), (6.0, "block n_layer - 1")):
        box(axes, 2.6, y, 3.6, 0.7, name, BLUE)
    box(axes, 2.6, 7.4, 3.6, 0.7, "layer_norm, ln_f", PURPLE)
    box(axes, 2.6, 8.8, 3.6, 0.7, "@ wte.T", GREEN)
    for start, end in (
        (0.6, 1.15),
        (1.85, 2.75),
        (3.45, 3.85),
        (4.55, 4.9),
        (5.25, 5.65),
        (6.35, 7.05),
        (7.75, 8.45),
        (9.15, 9.75),
    ):
        arrow(axes, (2.6, start), (2.6, end))
    axes.text(2.6, 5.08, ". . .", ha="center", va="center")
    axes.text(2.6, 0.35, "ids [n_seq]", ha="center", va="center")
    axes.text(2.6, 10.05, "logits [n_seq, n_vocab]", ha="center", va="center")
    for y in (2.3, 6.7, 8.1):
        axes.text(2.8, y, "[n_seq, n_embd]", va="center", size=10)
    axes.plot([4.45, 6.0], [4.55, 9.9], color=GREY, lw=0.8, ls=":")
    axes.plot([4.45, 6.0], [3.85, 0.7], color=GREY, lw=0.8, ls=":")
    stream = 7.0
    arrow(axes, (stream, 0.6), (stream, 10.0))
    axes.text(stream, 0.35, "x", ha="center", va="center")
    axes.text(stream, 10.2, "x", ha="center", va="center")
    axes.text(stream - 0.3, 6.8, "the residual stream", rotation=90, ha="center", va="center")
    for base, norm, work, color in ((1.0, "ln_1", "mha", ORANGE), (5.6, "ln_2", "ffn", BLUE)):
        axes.plot([stream, 9.8, 9.8], [base + 0.3, base + 0.3, base + 0.75], color=GREY, lw=1.3)
        box(axes, 9.8, base + 1.1, 3.0, 0.7, f"layer_norm, {norm}", PURPLE)
        arrow(axes, (9.8, base + 1.45), (9.8, base + 2.0))
        says = "tokens look at each other" if work == "mha" else "each token by itself"
        box(axes, 9.8, base + 2.45, 4.0, 0.9, f"{work}\n{says}", color, 10)
        axes.plot([9.8, 9.8], [base + 2.9, base + 3.5], color=GREY, lw=1.3)
        arrow(axes, (9.8, base + 3.5), (stream + 0.25, base + 3.5))
        box(axes, stream, base + 3.5, 0.5, 0.5, "+", GREY, 13)
    return figure


def mask():
    """Section 9: the causal mask on five tokens, with real numbers."""
    encoder, hparams, params = load()
    ids = encoder.encode("O, my good lord")  # the five tokens of the section
    x, block = params["wte"][ids] + params["wpe"][: len(ids)], params["blocks"][0]
    qkv = gpt2.linear(gpt2.layer_norm(x, **block["ln_1"]), **block["attn"]["c_attn"])
    q, k, _ = qkv.reshape(len(ids), 3, hparams["n_head"], -1)[:, :, 0].swapaxes(0, 1)  # of the first head, [n_seq, d]
    scores = q @ k.T / q.shape[-1] ** 0.5
    hidden = 1 - np.tri(len(ids))
    tables = [
        ("scores", scores),
        ("softmax, no mask", gpt2.softmax(scores)),
        ("softmax of scores + mask", gpt2.softmax(scores + hidden * -1e10)),
    ]
    names = [text_of(encoder, id) for id in ids]
    figure = Figure(figsize=(6.8, 3), layout="constrained")
    for i, (axes, (title, table)) in enumerate(zip(figure.subplots(1, 3), tables)):
        low, high = (0, 1) if i else (None, None)  # a softmax fills this range, the scores one of their own
        cells(axes, np.where(hidden, np.nan, table) if i == 2 else table, "{:.2f}", low=low, high=high)
        if i == 2:
            for row, column in np.argwhere(hidden):
                axes.text(column + 0.5, row + 0.5, "0", ha="center", va="center", size=9)
        label_cells(axes, names, names if i == 0 else [""] * len(names))
        axes.set_xlabel(title, labelpad=8)
        axes.xaxis.set_label_position("bottom")
    figure.axes[0].set_ylabel("who looks")
    return figure


def heads():
    """Section 9: of all heads, four that do one thing more than any other head does."""
    encoder, hparams, params = load()
    ids = np.array(encoder.encode("ROMEO:\nGood morrow, my lord. Good morrow, my father."))
    weights, _ = look(ids, params, hparams["n_head"])  # [n_layer, n_head, n_seq, n_seq]
    spread = -(weights * np.log(weights + 1e-9)).sum(axis=-1)  # the entropy of each row
    habits = {
        "looks at the token before": (weights * np.eye(len(ids), k=-1)).sum(axis=-1),
        "looks at the first token": weights[..., 0],
        "looks at the token itself": (weights * np.eye(len(ids))).sum(axis=-1),
        "looks at all alike": spread,
    }
    names = [text_of(encoder, id) for id in ids]
    figure = Figure(figsize=(6.8, 8), layout="constrained")
    for axes, (habit, score) in zip(figure.subplots(2, 2).flat, habits.items()):
        score = score[:, :, 1:].mean(axis=-1)  # [n_layer, n_head]; the first token has no choice
        layer, head = np.unravel_index(score.argmax(), score.shape)
        cells(axes, np.where(np.tri(len(ids)), weights[layer, head], np.nan), low=0, high=1)
        label_cells(axes, names, names)
        axes.tick_params(labelsize=9)
        axes.set_xlabel(f"block {layer}, head {head}\n{habit}", labelpad=6)
        axes.xaxis.set_label_position("bottom")
    bar = figure.colorbar(axes.collections[0], ax=figure.axes, shrink=0.5, location="bottom")
    bar.set_label("weight")
    bar.outline.set_visible(False)
    return figure


def cache():
    """Section 11: what is computed for the fifth token, without and with a cache."""
    figure = Figure(figsize=(6.2, 2.2), layout="constrained")
    axes = plain(figure, 14, 4.4)
    for x, title, old in (
        (0, "without a cache: all five, again", ORANGE),
        (8, "with a cache: one, and the rest is read", GREY),
    ):
        axes.text(x, 4.0, title, va="center")
        for row, name in enumerate(("x", "k", "v")):
            axes.text(x, 3.1 - row * 0.9, name, va="center")
            for i in range(5):
                if name == "x" and old == GREY and i < 4:
                    continue
                box(axes, x + 1 + i * 0.9, 3.1 - row * 0.9, 0.78, 0.7, str(i), ORANGE if i == 4 else old)
        axes.text(x, 0.4, "q", va="center")
        for i in range(5):
            if i == 4 or old == ORANGE:
                box(axes, x + 1 + i * 0.9, 0.4, 0.78, 0.7, str(i), ORANGE if i == 4 else old)
    return figure


def quantization():
    """Section 11: what 8 and 4 bits keep of each weight between the least and the greatest that share a scale."""
    _, _, params = load()
    w = np.sort(params["blocks"][0]["mlp"]["c_fc"]["w"][:64, 0])  # 64 inputs of one output
    figure = Figure(figsize=(6.8, 3), layout="constrained")
    for axes, bits in zip(figure.subplots(1, 2, sharey=True), (8, 4)):
        most = 2 ** (bits - 1) - 1
        scale = np.abs(w).max() / most
        line = np.linspace(w[0], w[-1], 2000)
        axes.plot(line, np.rint(line / scale) * scale, color=BLUE, linewidth=1.5)
        axes.plot(w, np.rint(w / scale) * scale, ".", color=ORANGE, markersize=7)
        axes.set_title(f"{bits} bits: off by {np.abs(np.rint(w / scale) * scale - w).max():.4f} at most")
        axes.set_xlabel("weight")
        axes.set_xticks([-0.04, 0, 0.04, 0.08])
        axes.label_outer()
    figure.axes[0].set_ylabel("what is kept")
    return figure


FIGURES = [loop, sampling, bpe, checkpoint, layers, embeddings, architecture, mask, heads, cache, quantization]


# --- files ---


def drawn(figure):
    """The texts and numbers in a figure: {"texts": [...], "numbers": [...]}."""
    texts, numbers = [], []
    for axes in figure.axes:
        texts += [axes.get_title(), axes.get_xlabel(), axes.get_ylabel(), *(text.get_text() for text in axes.texts)]
        for line in axes.lines:
            numbers += [*line.get_xdata(), *line.get_ydata()]
        for patch in axes.patches:
            if hasattr(patch, "get_x"):  # a bar or a box
                numbers += [patch.get_x(), patch.get_y(), patch.get_width(), patch.get_height()]
        for collection in axes.collections:
            if collection.get_array() is not None:  # a table; its empty cells are masked
                numbers += np.ma.filled(collection.get_array(), -1).ravel().tolist()
    return {"texts": [text for text in texts if text], "numbers": [float(f"{number:.3f}") for number in numbers]}


def draw(folder):
    """Writes all pictures into a folder."""
    os.makedirs(folder, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for make in FIGURES:
            figure = make()
            figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
            figure.savefig(
                os.path.join(folder, f"{make.__name__}.svg"),
                metadata={
                    "Date": None,
                    "Creator": None,
                    "Title": make.__doc__,
                    "Description": json.dumps(drawn(figure)),
                },
            )


def main():
    """Draws the tutorial's pictures into tutorial/figures."""
    draw(FOLDER)
    return f"{len(FIGURES)} pictures in {FOLDER}"


if __name__ == "__main__":
    utils.run(main)
