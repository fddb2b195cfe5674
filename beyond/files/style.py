"""How figures look: colors that are legible on white and on GitHub's dark background, and text that stays text."""

# the gray contrasts with white as much as with #0d1117; white letters are legible on each of the others
GREY, PALE = "#797979", "#79797980"  # half transparent, and so pale on either background
BLUE, GREEN, ORANGE, PURPLE, RED, TEAL = "#2f6db5", "#2e7d4f", "#b0591a", "#7a55b0", "#a83a62", "#1b7681"
STYLE = {
    "font.size": 10,
    "font.family": "sans-serif",
    # matplotlib measures text in the first, which it includes; a browser uses the first one it has
    "font.sans-serif": ["DejaVu Sans", "Arial", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC"],
    "text.color": GREY,
    "text.parse_math": False,
    "axes.labelcolor": GREY,
    "axes.edgecolor": GREY,
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.hashsalt": "PicoGPT",
    "svg.fonttype": "none",
}
