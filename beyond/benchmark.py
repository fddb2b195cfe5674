"""Every number of the README's table, from one command.

    python -m beyond.benchmark --out benchmark

measures gpt2.py, its chapters lookahead and batch, gpt2_pico.py and those peers that are installed, and writes
benchmark.md, benchmark.svg and benchmark.json. The shape is the 124M model's, with random weights, as speed does not
depend on their values. Times are medians of runs that take turns, so that a noisy machine disturbs all alike; a peer,
which is one of beyond/peers.py, runs in a process of its own, and is compared with what gpt2.py needed just before and
just after it. Every figure stands beside the machine's own limit: a token cannot come sooner than all weights can be
read, at the speed at which a product with one row reads a large matrix; a prompt takes two operations a weight and
token, at the rate of a large product of matrices. A peer that is not installed is named so.
"""

import functools
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np

from beyond import batch, checkpoint, lookahead
from beyond.peers import IDS, PEERS, load, medians
import gpt2
import gpt2_pico
import utils

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WORK = {"decode 10": 1, "decode 900": 1, "prefill 10": 10, "prefill 1000": 1000}  # tokens that are worked on
PROMPT = "First Citizen:\nBefore we proceed any further, hear me speak."


# --- the measurements ---


def arrays(params):
    return [array for _, array in checkpoint.tensors(params)]


def measure_ours(params, n_head, quick=None, slow=None):
    """Median seconds of a token after 10 and 900 others and of prompts of 10 and 1000: {what: seconds}.

    quick, slow: {name: function}; these take turns with ours, and are in the result, too.
    """
    n_embd, n_ctx = params["wte"].shape[1], len(params["wpe"])
    cache = [np.ones((2, n_head, n_ctx, n_embd // n_head), np.float32) for _ in params["blocks"]]

    def run(n, past):
        x = gpt2.hidden_states(IDS[:n], **params, n_head=n_head, cache=cache, past=past)
        return x[-1] @ params["wte"].T

    quick = {
        **(quick or {}),
        "decode 10": lambda: run(1, 10),
        "decode 900": lambda: run(1, 900),
        "prefill 10": lambda: run(10, 0),
    }
    return medians(quick, 20) | medians({"prefill 1000": lambda: run(1000, 0), **(slow or {})}, 3)


def measure_passes(params, n_head):
    """{engine: {what: seconds}} of ours, pico and the limit."""
    large, row = np.ones((40_000, 2000), np.float32), np.ones(2000, np.float32)  # 320 MB, more than any cache
    a, b = np.ones((1000, 3000), np.float32), np.ones((3000, 3000), np.float32)

    def pico(n):
        return gpt2_pico.gpt2(IDS[:n], **params, n_head=n_head)

    found = measure_ours(
        params,
        n_head,
        {"read": lambda: large @ row, "multiply": lambda: a @ b},
        {f"pico {n}": functools.partial(pico, n) for n in (10, 900, 1000)},
    )
    limit = limits(params, large.nbytes / found["read"], 2 * a.size * len(b) / found["multiply"])
    return {
        "the machine's limit": limit,
        "PicoGPT": {what: found[what] for what in WORK},
        "gpt2_pico.py": {what: found["pico " + what.split()[1]] for what in WORK},
    }  # it reads all for each token


def limits(params, bandwidth, rate):
    """{what: seconds} if nothing but bytes a second, to read the weights, or operations a second held us up."""
    used = sum(array.size for array in arrays(params)) - params["wpe"].size  # of wpe one row a token
    token = 4 * used / bandwidth
    inside = 2 * (used - params["wte"].size) / rate  # for each token; only the last one needs the projection
    return {
        "decode 10": token,
        "decode 900": token,
        "prefill 10": max(token, 10 * inside),
        "prefill 1000": 1000 * inside,
    }


def measure_chapters(params, n_head):
    """Rows (what, ratio, figure) of beyond/lookahead.py and beyond/batch.py, as multiples of gpt2.generate."""
    n, rows = 100, []
    texts = {"text that repeats": (IDS[:10], {}), "text that does not": (IDS[:10], {"temperature": 1.0, "seed": 0})}
    for what, (inputs, options) in texts.items():
        times = medians(
            {
                module: functools.partial(module.generate, inputs, params, n_head, n, **options)
                for module in (gpt2, lookahead)
            },
            3,
        )
        n_passes = len(list(lookahead.passes(inputs, params, n_head, n, **options)))
        rows.append(
            (
                f"lookahead, {what}",
                f"{times[gpt2] / times[lookahead]:.2f} times gpt2.py",
                f"{n / times[lookahead]:.0f} tokens/s, {n / n_passes:.1f} tokens a pass",
            )
        )
    prompts = [(IDS[i : i + 10], 40, 0) for i in range(64)]
    times = medians(
        {0: lambda: gpt2.generate(IDS[:10], params, n_head, 40)}
        | {
            size: lambda size=size: list(batch.generate(prompts[:size], params, n_head, batch_size=size))
            for size in (1, 16, 64)
        },
        3,
    )
    for size in 1, 16, 64:
        rows.append(
            (
                f"batch of {size}",
                f"{size * times[0] / times[size]:.2f} times gpt2.py",
                f"{40 * size / times[size]:.0f} tokens/s",
            )
        )
    return rows


def measure_processes(folder, n_bytes):
    """Rows of whole processes, from the command to its end, and of the memory that they take."""
    memory = []

    def run(program, n):
        # a small process starts it, as a child's peak begins with the size of the process that it was forked from
        code = (
            "import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True);"
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        )
        command = sys.executable, os.path.join(ROOT, program), PROMPT, str(n), "random", folder
        args = [sys.executable, "-c", code, *command]
        peak = int(subprocess.run(args, capture_output=True, check=True).stdout)
        memory.append(peak * 1024 if program == "gpt2.py" else 0)

    names = [(program, n) for n in (0, 40) for program in ("gpt2.py", "gpt2_pico.py")]
    times = medians({name: functools.partial(run, *name) for name in names}, 3)
    return [
        (
            f"the command, {n} tokens",
            f"{times['gpt2_pico.py', n] / times['gpt2.py', n]:.2f} times gpt2_pico.py",
            f"{times['gpt2.py', n]:.2f} s",
        )
        for n in (0, 40)
    ] + [("its memory at most", f"{max(memory) / n_bytes:.2f} times the weights", f"{max(memory) / 1e9:.2f} GB")]


def measure_peer(name, folder):
    """What beyond/peers.py prints of a peer, and its version; a text if it is not installed, or why it failed."""
    try:
        version = importlib.metadata.version(PEERS[name][1])
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    command = [sys.executable, "-m", "beyond.peers", name, folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        return f"{version} failed: {done.stderr.strip().splitlines()[-1]}"
    return json.loads(done.stdout.splitlines()[-1]) | {"version": version}


# --- the report ---


def table(result):
    """Markdown: ratios first, then the figures."""
    engines = {name: found for name, found in result["passes"].items() if isinstance(found, dict)}
    lines = [
        f"{result['machine']}, {result['date']}",
        "",
        "| tokens a second, as a multiple of PicoGPT's | decoding after 10 | after 900 | prompt of 10 | of 1000 |",
        "|---|---|---|---|---|",
    ]
    for name, found in engines.items():
        ours = found.get("PicoGPT beside it", engines["PicoGPT"])
        cells = [f"{ours[what] / found[what]:.2f} ({n / found[what]:.0f})" for what, n in WORK.items()]
        lines.append(f"| {name} {found.get('version', '')} | ".replace("  ", " ") + " | ".join(cells) + " |")
    absent = [f"{name}: {found}" for name, found in result["passes"].items() if isinstance(found, str)]
    lines += ["", "Not measured: " + "; ".join(absent) + "."] if absent else []
    lines += ["", "| what | ratio | figure |", "|---|---|---|"]
    lines += [f"| {what} | {ratio} | {figure} |" for what, ratio, figure in result["more"]]
    return "\n".join(lines) + "\n"


def chart(result, path):
    """Bars: tokens a second of each engine, decoding and reading a prompt, with the machine's limit as a line."""
    from matplotlib.figure import Figure

    engines = {name: found for name, found in result["passes"].items() if isinstance(found, dict)}
    limit = engines.pop("the machine's limit")
    figure = Figure(figsize=(8, 0.6 + 0.35 * len(engines)), layout="constrained")
    for axes, what, n, title in zip(
        figure.subplots(1, 2, sharey=True),
        ("decode 10", "prefill 1000"),
        (1, 1000),
        ("decoding after 10 tokens", "reading a prompt of 1000"),
    ):
        rates = [n / found[what] for found in engines.values()]
        colors = ["#c44e52" if name == "PicoGPT" else "#8c9bb0" for name in engines]
        bars = axes.barh(list(engines), rates, color=colors)
        axes.bar_label(bars, [f"{rate:.0f}" for rate in rates], padding=3)
        axes.axvline(n / limit[what], color="black", linestyle=":", linewidth=1)
        axes.set(title=title, xlabel="tokens a second (dotted: the machine's limit)")
        axes.margins(x=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    axes.invert_yaxis()  # of both, as they share it: the first engine on top
    figure.savefig(path, metadata={"Date": None})


def cpu():
    """What the processor calls itself, and how many of its cores there are."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            name = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), name)
    return f"{os.cpu_count()} x {name}"


def main(out="benchmark", n_vocab=50257, n_ctx=1024, n_embd=768, n_head=12, n_layer=12, peers=True):
    """Measures and writes OUT.md, OUT.svg and OUT.json; takes about ten minutes.

    Args:
        out: Where the three files go, without their endings.
        n_vocab: The shape that is measured, by default that of 124M. From 1024 on.
        n_ctx: From 1024 on.
        n_embd: A multiple of n_head.
        n_head: Attention heads in a block.
        n_layer: Blocks.
        peers: Whether to measure the peers, too.
    """
    from tqdm import tqdm

    hparams = dict(zip(utils.HPARAMS, (n_vocab, n_ctx, n_embd, n_head, n_layer)))
    for name, low in zip(utils.HPARAMS, (1024, 1024, 1, 1, 1)):
        utils.check(name, hparams[name], low, 10**7)
    if n_embd % n_head:
        raise ValueError(f"n_embd={n_embd} must be a multiple of n_head={n_head}")
    os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}"
    result = {"machine": f"{cpu()}, {versions}", "date": time.strftime("%Y-%m-%d"), "hparams": hparams}
    with tempfile.TemporaryDirectory() as work, tqdm(total=4 + len(PEERS) * peers, disable=None) as bar:
        folder = os.path.join(work, "random")
        shutil.copytree(os.path.join(ROOT, "models", "shakespeare"), folder)  # for its vocabulary
        params = checkpoint.initial_params(**hparams)
        params["wpe"] *= 0  # then greedy text soon goes round in circles, as that of a trained model does
        checkpoint.save_model(params, hparams, folder)
        with open(os.path.join(folder, "encoder.json"), "r+", encoding="utf-8") as file:
            tokens = json.load(file)
            file.seek(0)
            json.dump({**tokens, **{f"[{id}]": id for id in range(len(tokens), n_vocab)}}, file)  # only ever grows

        def note(what):
            bar.update()
            bar.set_description(what)

        note("passes")
        load_s = medians({"": lambda: load(folder)}, 5)[""]
        params = load(folder)[1]
        n_bytes = sum(array.nbytes for array in arrays(params))
        result["passes"] = measure_passes(params, n_head)
        before = result["passes"]["PicoGPT"]
        for name in PEERS if peers else ():
            note(name)
            found = result["passes"][name] = measure_peer(name, folder)
            if isinstance(found, dict):
                after = measure_ours(params, n_head)
                found["PicoGPT beside it"] = {what: (before[what] + after[what]) / 2 for what in WORK}
                before = after
        note("chapters")
        result["more"] = measure_chapters(params, n_head)
        note("processes")
        result["more"] += [("loading the weights", "", f"{load_s * 1000:.1f} ms"), *measure_processes(work, n_bytes)]
    for ending, content in ("md", table(result)), ("json", json.dumps(result, indent=1) + "\n"):
        with open(f"{out}.{ending}", "w", encoding="utf-8") as file:
            file.write(content)
    chart(result, f"{out}.svg")
    return table(result)


if __name__ == "__main__":
    utils.run(main, "out")
