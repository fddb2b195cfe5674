"""How fast gpt2.py is, as ratios to what the same machine can do at best, all measured in one run.

    python tests/benchmark.py

Takes the shape of the 124M model with random weights (speed does not depend on their values), written by TensorFlow
into a temporary folder. Times are medians of runs that take turns, so that a noisy machine disturbs all alike.
"""

import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from conftest import ROOT, VOCABULARY, write_model
from test_encoder import tiktoken_of

import gpt2
import utils
from encoder import get_encoder

SHAPE = {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12}
PROMPT = "Alan Turing theorized that computers would one day become"


def seconds(runs, n):
    """{name: median seconds} of functions that take turns n times, after one round to warm up."""
    times = {name: [] for name in runs}
    for i in range(n + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(values[1:])) for name, values in times.items()}


def show(what, ratio, asked, detail):
    print(f"{what:34s} {ratio:7.2f}   {asked:8s}   {detail}", flush=True)


def model(folder):
    prefix = os.path.join(folder, "124M", "model.ckpt")
    load = seconds({"weights": lambda: utils.load_gpt2_params_from_tf_ckpt(prefix, SHAPE),
                    "all": lambda: utils.load_encoder_hparams_and_params("124M", folder)}, 5)
    show("load: weights, seconds", load["weights"], "< 0.05", "")
    show("load: with the vocabulary, seconds", load["all"], "< 0.2", "")

    params = utils.load_gpt2_params_from_tf_ckpt(prefix, SHAPE)
    layers = [layer for block in params["blocks"] for part in (block["attn"], block["mlp"]) for layer in part.values()]
    cache = [np.ones((2, 12, 1024, 64), np.float32) for _ in params["blocks"]]
    ids = np.arange(1000) * 7 % 50257

    def products(n):  # all products with weights that n tokens need, the projection onto the vocabulary for one of them
        inputs = {n_in: np.ones((n, n_in), np.float32) for n_in in (768, 3072)}

        def run():
            for layer in layers:
                inputs[len(layer["w"])] @ layer["w"]
            inputs[768][-1] @ params["wte"].T
        return run

    def attention_products():
        q, scores = np.ones((12, 256, 64), np.float32), np.ones((12, 256, 1000), np.float32)
        for kv in cache:
            for end in 256, 512, 768, 1000:
                n = end - (end - 1) // 256 * 256
                q[:, :n] @ kv[0, :, :end].swapaxes(-1, -2)
                scores[:, :n, :end] @ kv[1, :, :end]

    def read(ids, past=0):
        x = gpt2.hidden_states(ids, **params, n_head=12, cache=cache, past=past)
        return (x[-1] @ params["wte"].T).argmax()

    decode = seconds({"limit": products(1), "10": lambda: read([5], 10), "900": lambda: read([5], 900)}, 60)
    for context, asked in ("10", "> 0.95"), ("900", "> 0.8"):
        show(f"decode at a context of {context}", decode["limit"] / decode[context], asked,
             f"{1 / decode[context]:.0f} of at most {1 / decode['limit']:.0f} tokens/s")
    prefill = seconds({"weights": products(1000), "attention": attention_products, "prefill": lambda: read(ids)}, 9)
    show("prefill of 1000 tokens", prefill["weights"] / prefill["prefill"], "> 0.7", f"{prefill['prefill']:.2f} s; limit: the products with weights")
    show("  likewise, with attention's", (prefill["weights"] + prefill["attention"]) / prefill["prefill"], "", "limit: all matrix products")


def processes(folder):
    def run(program):
        # a small process starts it: a child's peak begins with the size of the process that it was forked from
        code = ("import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL); "
                "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6)")
        args = [sys.executable, "-c", code, sys.executable, str(ROOT / program), PROMPT, "40", "124M", folder]
        memory.append(float(subprocess.run(args, capture_output=True, check=True).stdout))

    memory = []
    whole = seconds({program: lambda program=program: run(program) for program in ("gpt2.py", "gpt2_pico.py")}, 3)
    show("process for 40 tokens, to pico", whole["gpt2_pico.py"] / whole["gpt2.py"], "> 20", f"{whole['gpt2.py']:.2f} s to {whole['gpt2_pico.py']:.2f} s")
    show("peak memory, GB", max(memory), "< 0.8", "")


def encoding():
    oracle = tiktoken_of(VOCABULARY)
    text = "\n\n".join(doc for module in list(sys.modules.values()) if (doc := vars(module).get("__doc__")) and doc.isascii())
    encoder, new = [get_encoder("data", str(VOCABULARY.parent)) for _ in range(2)]
    times = seconds({"again": lambda: encoder.encode(text), "tiktoken": lambda: oracle.encode_ordinary(text),
                     "new": lambda: (new.bpe.cache_clear(), new.encode(text))}, 9)
    show("encoding, to tiktoken", times["tiktoken"] / times["again"], "> 0.5", f"{len(text) / times['again'] / 1e6:.1f} MB/s on {len(text) / 1e6:.1f} MB")
    show("  likewise, no word seen before", times["tiktoken"] / times["new"], "", "")
    letters = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=40_000))
    show("a word of 40,000 letters, seconds", seconds({"word": lambda: encoder.merge(letters)}, 5)["word"], "< 1", "")


if __name__ == "__main__":
    print(f"Python {platform.python_version()}, NumPy {np.__version__}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}\n")
    print(f"{'what':34s} {'ratio':>7s}   asked")
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "124M", SHAPE, scale=0.02)
        model(folder)
        processes(folder)
    encoding()
