"""Measures every number of the benchmark's tables and chart with one command.

    python -m beyond.benchmark --out benchmark

measures gpt2.py, its chapters and the peers that are installed, and writes benchmark.md, benchmark.svg and
benchmark.json. The model has the shape of 124M and random weights, as the speed does not depend on their values.

Engines are grouped by weight size: float32, 8 bits, 4 bits. Each one (see bench/engines.py) runs in a process of its
own, and it is compared with PicoGPT's times just before and just after it. The machine's limit is also shown:
decoding cannot be faster than reading all weights at the memory bandwidth, measured by a product of a large matrix and
a vector; a prompt takes two operations per weight and token, at the rate of a product of two large matrices.
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
from beyond.bench.engines import ENGINES, ROOT, load, medians, run_alone
from beyond.files import writing
from beyond.formats import checkpoint
import cli
import utils

ONE_CORE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
PROMPT = "First Citizen:\nBefore we proceed any further, hear me speak."


# --- the measurements ---


def measure(name, folder, env=None):
    """What bench/engines.py prints for an engine, and its version; or the reason why there is no measurement."""
    package = ENGINES[name][1]
    try:
        version = {"version": importlib.metadata.version(package)} if package else {}
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    found = run_alone("beyond.bench.engines", name, folder, env=env)
    return " ".join([*version.values(), "failed:", found]) if isinstance(found, str) else found | version


def required(found):
    """Returns found, a measurement of one of our own engines. Raises ValueError if it failed."""
    if isinstance(found, str):
        raise ValueError(f"PicoGPT could not be measured: {found}")
    return found


def measure_group(names, folder, env, note):
    """{engine: {what: seconds}}; "beside" holds the first one's mean time just before and after that engine."""
    first, *others = names
    runs, found = [required(measure(first, folder, env))], {first: {}}
    for name in others:
        note(name)
        found[name] = measure(name, folder, env)
        if isinstance(found[name], dict):
            runs.append(required(measure(first, folder, env)))
            found[name]["beside"] = {what: (runs[-2][what] + runs[-1][what]) / 2 for what in report.WORK}
    found[first] = {what: float(np.median([run[what] for run in runs])) for what in report.WORK}
    return found


def limits(params, bandwidth, rate, n_bytes=4):
    """{what: seconds}: lower bounds at this bandwidth, in bytes per second, and rate, in operations per second.

    n_bytes: per weight. The rate is known for float32 only, so prompts have no limit with smaller weights.
    """
    used = sum(array.size for _, array in utils.named_arrays(params)) - params["wpe"].size  # a token uses a row of wpe
    token = n_bytes * used / bandwidth
    inside = 2 * (used - params["wte"].size) / rate  # per token; only the last one needs the output projection
    found = {what: token for what in report.WORK if what.startswith("decode")}
    if n_bytes == 4:
        found |= {what: max(token, n * inside) for what, n in report.WORK.items() if what.startswith("prefill")}
    return found


def chapters(found):
    """Rows (what, ratio, figure) for lookahead and batches, relative to gpt2.py with one prompt."""
    times = {(what, engine): seconds for what, engine, seconds in found["seconds"]}
    passes = {(what, engine): n for what, engine, n in found["passes"]}
    rows = []
    for (what, engine), seconds in times.items():
        if engine == "alone":
            continue
        if n_passes := passes.get((what, engine)):  # a text with lookahead
            rate, alone = 100 / seconds, 100 / times[what, "alone"]
            name, more = f"lookahead, {what}", f", {100 / n_passes:.1f} tokens per pass"
        else:
            rate, alone = 40 * int(what.split()[-1]) / seconds, 40 / times["one prompt", "alone"]
            name, more = what, ""
        rows.append((f"{name}, {engine}", f"{rate / alone:.2f} times gpt2.py", f"{rate:.0f} tokens/s{more}"))
    return rows


def measure_processes(folder, n_bytes):
    """Rows (what, ratio, figure) for whole processes: their total time and their peak memory."""
    commands = {
        "gpt2.py": ["gpt2.py"],
        "gpt2_pico.py": ["gpt2_pico.py"],
        "int8": ["-m", "beyond.quantize", "--kernels=True"],
        "int4": ["-m", "beyond.quantize", "--kernels=True", "--bits=4"],
    }
    memory = {}

    def run(program, n):
        # started by a small process, as a child's peak memory includes the size of the process it was forked from
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


# --- the command ---


def chosen(peers):
    """report.GROUPS, with or without the peers."""
    return {group: [name for name in names if peers or name in report.OURS] for group, names in report.GROUPS.items()}


def write_model(hparams, folder):
    """Makes a model folder with random weights and a vocabulary of n_vocab tokens."""
    shutil.copytree(os.path.join(ROOT, "models", "shakespeare"), folder)  # for its vocabulary
    params = checkpoint.initial_params(**hparams)
    params["wpe"] *= 0  # so that greedy text soon repeats itself, like a trained model's
    checkpoint.save_model(params, hparams, folder)
    with open(os.path.join(folder, "encoder.json"), "r+", encoding="utf-8") as file:
        tokens = json.load(file)
        file.seek(0)
        more = range(len(tokens), hparams["n_vocab"])
        json.dump({**tokens, **{f"[{id}]": id for id in more}}, file)  # longer than before, so it overwrites everything


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
    n_bytes = sum(array.nbytes for _, array in utils.named_arrays(params))
    machine = required(measure("limit", folder))
    for group, names in groups.items():
        env = ONE_CORE if group == "one core" else None
        found[group] = measure_group(names, folder, env, lambda name, group=group: note(f"{group}: {name}"))
        if group in report.BYTES:
            found[group][report.LIMIT] = limits(params, machine["bandwidth"], machine["rate"], report.BYTES[group])
    note("chapters")
    more = chapters(required(measure("together", folder)))
    note("processes")
    more += [("loading the weights", "", f"{load_s * 1000:.1f} ms"), *measure_processes(work, n_bytes)]
    return {"groups": found, "more": more}


def main(out="benchmark", n_vocab=50257, n_ctx=1024, n_embd=768, n_head=12, n_layer=12, peers=True, train=False):
    """Measures and writes OUT.md, OUT.svg and OUT.json; takes about fifteen minutes.

    Args:
        out: The path of the three files, without extensions.
        n_vocab: The size of the vocabulary, 1024 or more. By default the model has the shape of 124M.
        n_ctx: The size of the context, 1024 or more.
        n_embd: The embedding size, a multiple of n_head.
        n_head: The number of attention heads per block.
        n_layer: The number of blocks.
        peers: Whether to measure the peers as well; --peers=False leaves them out.
        train: Measures training loops instead, prints a table and writes nothing.
    """
    if train:
        return loops.compare()
    from tqdm import tqdm

    hparams = dict(zip(utils.HPARAMS, (n_vocab, n_ctx, n_embd, n_head, n_layer)))
    for name, low in zip(utils.HPARAMS, (1024, 1024, 1, 1, 1)):
        cli.check(name, hparams[name], low, 10**7)
    if n_embd % n_head:
        raise ValueError(f"n_embd={n_embd} must be a multiple of n_head={n_head}")
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
