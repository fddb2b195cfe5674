"""The drawing primitives of the tutorial's pictures: a sheet, boxes, arrows, tables and text.

A sheet is 480 points wide (640 pixels in a browser), and y grows downwards from the top. One file serves light and dark
themes: the background is transparent, the grey of lines and text contrasts equally with white and with GitHub's dark
#0d1117, and all other text is white on a color. Text stays text in the file, shown in the reader's own fonts.
"""

from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon
from matplotlib.path import Path
import numpy as np

from beyond.files.style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, TEAL

WIDTH = 480
HEADS = [BLUE, ORANGE, GREEN, PURPLE, RED, TEAL]
WEIGHTS = LinearSegmentedColormap.from_list("weights", ["#e6ebf2", "#7fa8d6", "#2f6db5", "#17406f"])
SIGNED = LinearSegmentedColormap.from_list("signed", ["#1f5fa8", "#8fb4dc", "#eceef1", "#dd9a6a", "#a8480c"])


def sheet(height):
    """Axes that cover WIDTH x height points; axes.numbers collects the coordinates and values drawn on them."""
    axes = Figure(figsize=(WIDTH / 72, height / 72)).add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    axes.set_axis_off()
    axes.numbers = []
    return axes


def graph(axes, x, y, width, height, **limits):
    """Axes for curves on part of the sheet; x, y: the upper left corner."""
    tall = axes.get_ylim()[0]
    inner = axes.figure.add_axes((x / WIDTH, 1 - (y + height) / tall, width / WIDTH, height / tall), **limits)
    inner.tick_params(labelsize=9, length=3)
    return inner


def width_of(text, size=10):
    """The approximate width of a text in points. Chinese characters are square; most letters are narrower."""
    widths = {"ijlI.,:;'!|· ()[]": 0.33, "frt-": 0.4, "mwMW%@": 0.9}
    known = {char: width for chars, width in widths.items() for char in chars}
    return size * sum(1 if char > "\u2e80" else known.get(char, 0.61) for char in text)


def write(axes, x, y, text, size=10, align="center", color=GREY, bold=False, angle=0):
    """Writes lines of text centered on y. Their baselines do not depend on which letters they contain."""
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
    """A rounded box with white text; x, y: its center."""
    corner = (x - width / 2, y - height / 2)
    style = "round,pad=0,rounding_size=3"
    axes.add_patch(
        FancyBboxPatch(corner, width, height, boxstyle=style, fc=color, ec="none", zorder=2.5, clip_on=False)
    )
    axes.numbers += [*corner, width, height]
    write(axes, x, y, text, size, color="white")


def polygon(axes, color, *corners, edge="none"):
    axes.add_patch(Polygon(corners, fc=color, ec=edge, lw=0.8, clip_on=False))
    axes.numbers += np.ravel(corners).tolist()


def bar(axes, x, y, width, height, color=BLUE, edge="none"):
    """A rectangle; x, y: its upper left corner."""
    polygon(axes, color, (x, y), (x + width, y), (x + width, y + height), (x, y + height), edge=edge)


def row_of(axes, x, y, texts, colors, size=10):
    """Draws tokens as boxes side by side, starting at x. Returns the x where they end."""
    for text, color in zip(texts, colors):
        width = width_of(text, size) + 8
        box(axes, x + width / 2, y, width, 19, text, color, size)
        x += width + 3
    return x - 3


def line(axes, *points, color=GREY, width=1.2, dashed=False):
    axes.plot(*zip(*points), color=color, lw=width, ls=(0, (3, 2)) if dashed else "-", clip_on=False)
    axes.numbers += np.ravel(points).tolist()


def arrow(axes, *points, color=GREY):
    """A line through the points with an arrowhead at the last one."""
    line(axes, *points, color=color)
    before, end = np.array(points[-2:], float)
    along = (end - before) / np.linalg.norm(end - before) * 6
    side = np.array([-along[1], along[0]]) / 2
    polygon(axes, color, end, end - along + side, end - along - side)


def table(axes, x, y, values, width, height, form=None, colors=WEIGHTS, low=0, high=1):
    """A table of colored cells; x, y: its upper left corner. nan stays empty. With a form, cells show their numbers.

    All cells of the same shade, one of 33, are a single path, which keeps the file small.
    """
    values = np.asarray(values, float)
    axes.numbers += np.nan_to_num(values, nan=-1).ravel().tolist()
    shades = np.rint(np.clip((values - low) / (high - low), 0, 1) * 32)
    for shade in np.unique(shades[np.isfinite(shades)]):
        corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)])
        cells = [Path((corners + (j, i)) * (width, height) + (x, y)) for i, j in np.argwhere(shades == shade)]
        color = to_hex(colors(shade / 32))
        shape = Path.make_compound_path(*cells)
        axes.add_patch(PathPatch(shape, fc=color, ec=GREY if form else color, lw=0.4, clip_on=False))
    for (i, j), number in np.ndenumerate(values):
        if form and np.isfinite(number):
            red, green, blue, _ = colors(shades[i, j] / 32)
            color = "white" if 0.3 * red + 0.6 * green + 0.1 * blue < 0.55 else "black"
            text = form.format(number if abs(number) >= 0.005 else 0)
            write(axes, x + (j + 0.5) * width, y + (i + 0.5) * height, text, 8.5, color=color)


def grid(axes, x, y, texts, width, height):
    """A table without colors; empty cells are not drawn."""
    for (i, j), text in np.ndenumerate(texts):
        if text:
            bar(axes, x + width * j, y + height * i, width, height, "none", GREY)
            write(axes, x + width * (j + 0.5), y + height * (i + 0.5), text, 8.5)


def label(axes, x, y, names, width, height, size=9, angle=0):
    """Names the columns of a table above it and its rows on the left."""
    for i, name in enumerate(names):
        at = x + (i + 0.5) * width
        write(axes, at, y - (4 if angle else 9), name, size, "left" if angle else "center", angle=angle)
        write(axes, x - 5, y + (i + 0.5) * height, name, size, "right")


def scale(axes, x, y, low, high, colors=WEIGHTS):
    """The color scale of a table, labeled at both ends and in the middle."""
    table(axes, x, y, [np.linspace(low, high, 24)], 4, 9, colors=colors, low=low, high=high)
    for i, number in enumerate((low, (low + high) / 2, high)):
        write(axes, x + 48 * i, y + 17, f"{number:g}", 8.5)


def legend(axes, x, y, *entries):
    """Pairs (color, text) in one row, starting at x."""
    for color, text in entries:
        bar(axes, x, y - 5, 10, 10, color)
        write(axes, x + 14, y, text, 9, "left")
        x += 28 + width_of(text, 9)
