"""The report: a table in Markdown and a bar chart of the numbers that beyond/benchmark.py measured."""

import os
import platform

WORK = {"decode 10": 1, "decode 100": 1, "decode 900": 1, "prefill 10": 10, "prefill 100": 100, "prefill 1000": 1000}
GROUPS = {  # the engines that are compared; ratios are relative to the first one
    "float32": ["PicoGPT kernels", "gpt2.py", "gpt2_pico.py", "Hugging Face", "JAX", "CTranslate2", "llama.cpp"],
    "8 bits": ["PicoGPT int8", "gpt2.py", "CTranslate2 int8", "llama.cpp q8_0"],
    "4 bits": ["PicoGPT int4", "gpt2.py", "llama.cpp q4_0"],
    "one core": ["PicoGPT kernels", "gpt2.py", "PicoGPT int8"],
}
BYTES = {"float32": 4, "8 bits": 1, "4 bits": 0.5 + 4 / 64}  # per weight; with 4 bits, 64 weights share a scale
OURS = "gpt2.py", "gpt2_pico.py", "PicoGPT kernels", "PicoGPT int8", "PicoGPT int4"  # the others are peers
LIMIT = "the machine's limit"
MADE_BY = "python -m beyond.benchmark"
MARKS = {  # near the beginning of each file, so that it is recognized as ours
    "md": f"`{MADE_BY}`, ",
    "json": f'{{\n "made by": "{MADE_BY}",',
    "svg": f"<dc:title>{MADE_BY}</dc:title>",
}


def table(result):
    """Markdown: the speed of each engine, ratio first, then the other measurements."""
    lines = [
        f"`{MADE_BY}`, {result['machine']}, {result['date']}",
        "",
        "| speed relative to the group's first engine (tokens per second) | decoding after 10 | 100 | 900 "
        "| prompt of 10 | 100 | 1000 |",
        "|---|---|---|---|---|---|---|",
    ]
    absent = []
    for group, engines in result["groups"].items():
        lines.append(f"| **{group}** |" + " |" * len(WORK))
        first = next(iter(engines))
        for name, found in engines.items():
            if isinstance(found, str):
                absent.append(f"{name}: {found}")
                continue
            ours = found.get("beside", engines[first])
            cells = [
                f"{ours[what] / found[what]:.2f} ({n / found[what]:.0f})" if what in found else ""
                for what, n in WORK.items()
            ]
            title = f"{name} {found.get('version', '')}".strip()
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    lines += ["", "Not measured: " + "; ".join(absent) + "."] if absent else []
    lines += ["", "| what | ratio | figure |", "|---|---|---|"]
    lines += [f"| {what} | {ratio} | {figure} |" for what, ratio, figure in result["more"]]
    return "\n".join(lines) + "\n"


def chart(result, path):
    """Bars that fit a phone's screen: tokens per second by weight size; the dotted line is the machine's limit."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 8.4), layout="constrained")
    white = {"facecolor": "white", "edgecolor": "none", "pad": 0}  # so that numbers on the dotted line are legible
    titles = {"decode 10": "Decoding: tokens per second", "prefill 1000": "Prompt of 1000: tokens per second"}
    for axes, (what, title) in zip(figure.subplots(2, 1), titles.items()):
        labels = []
        for group in BYTES:
            labels.append(group)
            begin = len(labels)
            for name, found in drawn(result["groups"][group], group).items():
                rate, color = WORK[what] / found[what], "#c44e52" if name in OURS else "#8c9bb0"
                axes.barh(len(labels), rate, 0.75, color=color)
                axes.annotate(f" {rate:.0f} ", (rate, len(labels)), va="center", fontsize=12, bbox=white)
                labels.append(name)
            if what in (limit := result["groups"][group][LIMIT]):
                axes.plot([WORK[what] / limit[what]] * 2, [begin - 0.4, len(labels) - 0.6], "k:")
        axes.set_yticks(range(len(labels)), labels, fontsize=12)
        for label in axes.get_yticklabels():
            label.set_weight("bold" if label.get_text() in BYTES else "normal")
        axes.set_title(title, fontsize=14, loc="right", pad=12)
        axes.set_xticks([])
        axes.margins(x=0.18)
        axes.set_ylim(len(labels) - 0.5, -0.5)  # the first one at the top
        axes.tick_params(length=0)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None, "Title": MADE_BY})


def drawn(engines, group):
    """The engines that the chart shows: gpt2.py only once."""
    omitted = (LIMIT, "gpt2_pico.py") if group == "float32" else (LIMIT, "gpt2.py")
    return {name: found for name, found in engines.items() if isinstance(found, dict) and name not in omitted}


def cpu():
    """The number of cores and the processor's name."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            name = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), name)
    return f"{os.cpu_count()} x {name}"
