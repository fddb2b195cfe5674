"""Every number of the README's table, from one command.

    python -m beyond.benchmark --out benchmark

measures gpt2.py, its chapters and those peers that are installed, and writes benchmark.md, benchmark.svg and
benchmark.json. The shape is the 124M model's, with random weights, as speed does not depend on their values.

Like is compared with like: engines whose weights are float32, of 8 bits, of 4 bits. Each is one of beyond/peers.py and
runs in a process of its own, and its ratio is to what PicoGPT needed just before and just after it. Beside them is the
machine's limit: a token cannot come sooner than all weights can be read, at the speed at which a product with one row
reads a large matrix; a prompt takes two operations a weight and token, at the rate of a large product of matrices.
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

from beyond.bench import loops, report
from beyond.bench.engines import ENGINES, load, medians
from beyond.files import writing
from beyond.formats import checkpoint
import cli
import utils

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ONE_CORE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
PROMPT = "First Citizen:\nBefore we proceed any further, hear me speak."


# --- the measurements ---


def measure(name, folder, env=None):
    """What beyond/peers.py prints of an engine, and its version; a text if it is not installed, or why it failed."""
    try:
        package = ENGINES[name][1]
        version = {"version": importlib.metadata.version(package)} if package else {}
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    command = [sys.executable, "-m", "beyond.bench.engines", name, folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **(env or {})})
    if done.returncode:
        return " ".join([*version.values(), "failed:", done.stderr.strip().splitlines()[-1]])
    return json.loads(done.stdout.splitlines()[-1]) | version


def must(found):
    """The same, unless it is why one of our own engines failed."""
    if isinstance(found, str):
        raise ValueError(f"PicoGPT could not be measured: {found}")
    return found


def measure_group(names, folder, env, note):
    """{engine: {what: seconds}}; beside has what the first one needed just before and after that engine."""
    first, *others = names
    runs, found = [must(measure(first, folder, env))], {first: {}}
    for name in others:
        note(name)
        found[name] = measure(name, folder, env)
        if isinstance(found[name], dict):
            runs.append(must(measure(first, folder, env)))
            found[name]["beside"] = {what: (runs[-2][what] + runs[-1][what]) / 2 for what in report.WORK}
    found[first] = {what: float(np.median([run[what] for run in runs])) for what in report.WORK}
    return found


def limits(params, bandwidth, rate, n_bytes=4):
    """{what: seconds} if nothing but bytes a second, to read the weights, or operations a second held us up.

    n_bytes: of a weight. Where they are fewer than float32's, what operations take is not known.
    """
    used = sum(array.size for _, array in checkpoint.tensors(params)) - params["wpe"].size  # of wpe one row a token
    token = n_bytes * used / bandwidth
    inside = 2 * (used - params["wte"].size) / rate  # for each token; only the last one needs the projection
    found = {what: token for what in report.WORK if what.startswith("decode")}
    if n_bytes == 4:
        found |= {what: max(token, n * inside) for what, n in report.WORK.items() if what.startswith("prefill")}
    return found


def chapters(found):
    """Rows (what, ratio, figure) of lookahead and batches, as multiples of gpt2.py with one prompt."""
    times = {(what, engine): seconds for what, engine, seconds in found["seconds"]}
    passes = {(what, engine): n for what, engine, n in found["passes"]}
    rows = []
    for (what, engine), seconds in times.items():
        if engine == "alone":
            continue
        n, alone = (100, what) if (what, engine) in passes else (40, "one prompt")
        size = 1 if alone == what else int(what.split()[-1])
        ratio = size * times[alone, "alone"] / seconds
        more = f", {n / passes[what, engine]:.1f} tokens a pass" if alone == what else ""
        name = f"lookahead, {what}" if alone == what else what
        rows.append((f"{name}, {engine}", f"{ratio:.2f} times gpt2.py", f"{size * n / seconds:.0f} tokens/s{more}"))
    return rows


def measure_processes(folder, n_bytes):
    """Rows of whole processes, from the command to its end, and of the memory that they take."""
    commands = {
        "gpt2.py": ["gpt2.py"],
        "gpt2_pico.py": ["gpt2_pico.py"],
        "int8": ["-m", "beyond.quantize", "--kernels=True"],
        "int4": ["-m", "beyond.quantize", "--kernels=True", "--bits=4"],
    }
    memory = {}

    def run(program, n):
        # a small process starts it, as a child's peak begins with the size of the process that it was forked from
        code = (
            "import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True);"
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        )
        args = [sys.executable, "-c", code, sys.executable, *commands[program], PROMPT, str(n), "random", folder]
        peak = int(subprocess.run(args, capture_output=True, check=True, cwd=ROOT).stdout)
        memory[program] = peak * 1024

    names = [(program, n) for n in (0, 40) for program in commands]
    times = medians({name: functools.partial(run, *name) for name in names}, 3)
    rows = []
    for program, n in names:
        if program != "gpt2_pico.py":
            ratio = f"{times['gpt2_pico.py', n] / times[program, n]:.2f} times gpt2_pico.py"
            rows.append((f"the command, {n} tokens, {program}", ratio, f"{times[program, n]:.2f} s"))
    for program, peak in memory.items():
        if program != "gpt2_pico.py":
            rows.append((f"memory, {program}", f"{peak / n_bytes:.2f} times the weights", f"{peak / 1e9:.2f} GB"))
    return rows


# --- the report ---


# --- the command ---


def chosen(peers):
    """GROUPS, if not peers without others' engines."""
    return {group: [name for name in names if peers or name in report.OURS] for group, names in report.GROUPS.items()}


def write_model(hparams, folder):
    """A model with random weights, and a vocabulary of n_vocab tokens, in the folder."""
    shutil.copytree(os.path.join(ROOT, "models", "shakespeare"), folder)  # for its vocabulary
    params = checkpoint.initial_params(**hparams)
    params["wpe"] *= 0  # then greedy text soon goes round in circles, as that of a trained model does
    checkpoint.save_model(params, hparams, folder)
    with open(os.path.join(folder, "encoder.json"), "r+", encoding="utf-8") as file:
        tokens = json.load(file)
        file.seek(0)
        more = range(len(tokens), hparams["n_vocab"])
        json.dump({**tokens, **{f"[{id}]": id for id in more}}, file)  # only ever grows


def check_outputs(out):
    """Raises ValueError or OSError unless the three files may be written."""
    for ending, mark in report.MARKS.items():
        writing.check_file(f"{out}.{ending}", lambda file: mark.encode() in file.read(4096))
    with tempfile.TemporaryFile(dir=os.path.dirname(os.path.abspath(out))):  # the folder can be written to
        pass


def measure_all(work, hparams, groups, note):
    """{"groups": {group: {engine: {what: seconds}}}, "more": rows}."""
    folder = os.path.join(work, "random")
    write_model(hparams, folder)
    load_s = medians({"": lambda: load(folder)}, 5)[""]
    params, found = load(folder)[1], {}
    n_bytes = sum(array.nbytes for _, array in checkpoint.tensors(params))
    machine = must(measure("limit", folder))
    for group, names in groups.items():
        env = ONE_CORE if group == "one core" else None
        found[group] = measure_group(names, folder, env, lambda name, group=group: note(f"{group}: {name}"))
        if group in report.BYTES:
            found[group][report.LIMIT] = limits(params, machine["bandwidth"], machine["rate"], report.BYTES[group])
    note("chapters")
    more = chapters(must(measure("together", folder)))
    note("processes")
    more += [("loading the weights", "", f"{load_s * 1000:.1f} ms"), *measure_processes(work, n_bytes)]
    return {"groups": found, "more": more}


def main(out="benchmark", n_vocab=50257, n_ctx=1024, n_embd=768, n_head=12, n_layer=12, peers=True, train=False):
    """Measures and writes OUT.md, OUT.svg and OUT.json; takes about fifteen minutes.

    Args:
        out: Where the three files go, without their endings.
        n_vocab: The shape that is measured, by default that of 124M. 1024 or more.
        n_ctx: 1024 or more.
        n_embd: A multiple of n_head.
        n_head: Attention heads in a block.
        n_layer: Blocks.
        peers: True or False: whether to measure the peers, too.
        train: True measures training loops instead, prints a table and writes nothing.
    """
    if not isinstance(train, bool):
        raise ValueError(f"train={train!r} must be True or False")
    if train:
        return loops.compare()
    from tqdm import tqdm

    hparams = dict(zip(utils.HPARAMS, (n_vocab, n_ctx, n_embd, n_head, n_layer)))
    for name, low in zip(utils.HPARAMS, (1024, 1024, 1, 1, 1)):
        cli.check(name, hparams[name], low, 10**7)
    if n_embd % n_head:
        raise ValueError(f"n_embd={n_embd} must be a multiple of n_head={n_head}")
    if not isinstance(peers, bool):
        raise ValueError(f"peers={peers!r} must be True or False")
    check_outputs(out)
    groups = chosen(peers)
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}"
    result = {"made by": report.MADE_BY, "machine": f"{report.cpu()}, {versions}", "date": time.strftime("%Y-%m-%d")}
    with (
        tempfile.TemporaryDirectory() as work,
        tqdm(total=2 + sum(len(names) - 1 for names in groups.values()), disable=None) as bar,
    ):

        def note(what):
            bar.update()
            bar.set_description(what)

        result |= {"hparams": hparams, **measure_all(work, hparams, groups, note)}
    writing.write_text(f"{out}.md", report.table(result))
    writing.write_text(f"{out}.json", json.dumps(result, indent=1) + "\n")
    writing.write_whole(f"{out}.svg", lambda part: report.chart(result, part))
    return report.table(result)


if __name__ == "__main__":
    cli.run(main)
