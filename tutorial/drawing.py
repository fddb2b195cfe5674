"""What the tutorial's pictures share: one sheet of paper, one set of colours, boxes, arrows, tables and words.

A sheet is 480 points wide (640 pixels in a browser), and its y grows downwards from the top. The background is
transparent; the grey of lines and letters is as far from white as from GitHub's dark #0d1117, and all other words are
white on a colour, so that one file serves both themes. Words stay text in the file, in the fonts that the reader has.
"""

from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path
from matplotlib.textpath import text_to_path
import numpy as np

from beyond.style import BLUE, GREEN, GREY, ORANGE, PURPLE

WIDTH = 480
HEADS = [BLUE, ORANGE, GREEN, PURPLE]
WEIGHTS = LinearSegmentedColormap.from_list("weights", ["#e6ebf2", "#7fa8d6", "#2f6db5", "#17406f"])
SIGNED = LinearSegmentedColormap.from_list("signed", ["#1f5fa8", "#8fb4dc", "#eceef1", "#dd9a6a", "#a8480c"])


def sheet(height):
    """Axes that are a sheet of paper, WIDTH x height points."""
    axes = Figure(figsize=(WIDTH / 72, height / 72)).add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    axes.set_axis_off()
    return axes


def graph(axes, x, y, width, height, **limits):
    """Axes for curves on a part of the sheet; x, y: its upper left corner."""
    tall = axes.get_ylim()[0]
    inner = axes.figure.add_axes((x / WIDTH, 1 - (y + height) / tall, width / WIDTH, height / tall), **limits)
    inner.tick_params(labelsize=9, length=3)
    return inner


def width_of(text, size=10):
    """How wide a text is, in points; a Chinese character is as wide as it is high."""
    narrow = "".join(char for char in text if char < "\u2e80")
    return (
        size * (len(text) - len(narrow))
        + text_to_path.get_text_width_height_descent(narrow, FontProperties(size=size), False)[0]
    )


def write(axes, x, y, text, size=10, align="center", color=GREY, bold=False, angle=0):
    """Lines of words whose middle is at the height y. All have the same base line, whatever their letters."""
    lines = str(text).split("\n")
    for i, line in enumerate(lines):
        shift = (i - (len(lines) - 1) / 2) * 1.3 * size + 0.36 * size
        axes.text(
            x + shift * bool(angle),
            y + shift * (not angle),
            line,
            size=size,
            ha=align,
            va="baseline",
            color=color,
            weight="bold" if bold else "normal",
            rotation=angle,
            rotation_mode="anchor",
        )


def title(axes, x, y, text):
    write(axes, x, y, text, 10, "left", bold=True)


def note(axes, x, y, text):
    write(axes, x, y, text, 9.5, "left")


def box(axes, x, y, width, height, text="", color=BLUE, size=10):
    """A box with white words; x, y: its middle."""
    corner = x - width / 2, y - height / 2
    shape = FancyBboxPatch(
        corner, width, height, boxstyle="round,pad=0,rounding_size=3", fc=color, ec="none", zorder=2.5
    )
    axes.add_patch(shape)
    write(axes, x, y, text, size, color="white")


def bar(axes, x, y, width, height, color=BLUE, edge="none"):
    """A plain rectangle; x, y: its upper left corner."""
    path = Path([(x, y), (x + width, y), (x + width, y + height), (x, y + height), (x, y)], closed=True)
    axes.add_patch(PathPatch(path, fc=color, ec=edge, lw=0.8))


def row_of(axes, x, y, texts, color=BLUE, size=10, height=19, gap=3):
    """Tokens as boxes side by side from x on; color may be one for each. Gives (the middles of the boxes, the end)."""
    middles = []
    for text, one in zip(texts, [color] * len(texts) if isinstance(color, str) else color):
        width = width_of(text, size) + 8
        box(axes, x + width / 2, y, width, height, text, one, size)
        middles.append(x + width / 2)
        x += width + gap
    return middles, x - gap


def line(axes, *points, color=GREY, width=1.2, dashed=False):
    axes.plot(*zip(*points), color=color, lw=width, ls=(0, (3, 2)) if dashed else "-", clip_on=False)


def arrow(axes, *points, color=GREY):
    """A line through the points with a head at the last one."""
    line(axes, *points, color=color)
    end, before = np.array(points[-1], float), np.array(points[-2], float)
    along = (end - before) / np.linalg.norm(end - before) * 6
    side = np.array([-along[1], along[0]]) * 0.5
    axes.add_patch(
        PathPatch(Path([end, end - along + side, end - along - side, end], closed=True), fc=color, ec="none")
    )


def table(axes, x, y, values, width, height, form=None, colors=WEIGHTS, low=0, high=1, size=8.5):
    """A table of coloured cells from x, y on; what is nan stays empty. With a form, each cell has its number.

    Cells of one of 33 shades are one path, which keeps the file small.
    """
    values = np.asarray(values, float)
    shades = np.rint(np.clip((values - low) / (high - low), 0, 1) * 32)
    for shade in np.unique(shades[np.isfinite(shades)]):
        cells = [
            Path(
                np.array([(j, i), (j + 1, i), (j + 1, i + 1), (j, i + 1), (j, i)]) * (width, height) + (x, y),
                closed=True,
            )
            for i, j in np.argwhere(shades == shade)
        ]
        color = to_hex(colors(shade / 32))
        axes.add_patch(PathPatch(Path.make_compound_path(*cells), fc=color, ec=GREY if form else color, lw=0.4))
    for (i, j), number in np.ndenumerate(values):
        if form and np.isfinite(number):
            red, green, blue, _ = colors(shades[i, j] / 32)
            dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.55
            text = form.format(number if abs(number) >= 0.005 else 0)
            write(axes, x + (j + 0.5) * width, y + (i + 0.5) * height, text, size, color="white" if dark else "black")


def scale(axes, x, y, low, high, colors=WEIGHTS, width=96, height=9):
    """The colours of a table, with the numbers at the ends and in the middle."""
    n = 24
    table(axes, x, y, [np.linspace(low, high, n)], width / n, height, colors=colors, low=low, high=high)
    for at in (low, (low + high) / 2, high):
        write(axes, x + width * (at - low) / (high - low), y + height + 8, f"{at:g}", 8.5)


def legend(axes, x, y, *entries, gap=14):
    """Pairs (colour, words) in one row from x on."""
    for color, text in entries:
        bar(axes, x, y - 5, 10, 10, color)
        write(axes, x + 14, y, text, 9, "left")
        x += 14 + width_of(text, 9) + gap
