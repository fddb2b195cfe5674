"""The engines that beyond/benchmark.py compares, PicoGPT's own among them, each with the same weights.

    python -m beyond.bench.engines "Hugging Face" models/124M

prints, as JSON, the seconds for prompts of 10, 100 and 1000 tokens, and for decoding a token after 10, 100 and 900.
Each engine runs in a process of its own, so that none inherits another's threads. For an engine with a format of its
own, the model is first converted, in a temporary folder: the numbers stay the same unless they are quantized.
"""

import functools
import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np

from beyond import batch, variant
from beyond.devices import sharding
from beyond.fast import flags
from beyond.formats import transformers_folder
import cli
import gpt2
import gpt2_pico
import utils

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
IDS = [i * 7 % 1024 for i in range(1024)]
LENGTHS = 10, 100, 900, 1000
PROMPTS, TEXTS = (10, 100, 1000), (10, 100, 900)  # lengths of the timed prompts, and of the texts before a timed token


def run_alone(*args, env=None):
    """What python -m ARGS prints as JSON in a process of its own, or the last line of its error message."""
    command = [sys.executable, "-m", *args]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **(env or {})})
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["killed"])[-1]
    return json.loads(done.stdout.splitlines()[-1])


def medians(runs, n):
    """{name: median seconds} of functions that take turns n times, after a warm-up round."""
    times = {name: [] for name in runs}
    for _ in range(n + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(values[1:])) for name, values in times.items()}


def timed(prefill, decode):
    """{what: median seconds} of prefill(n), which reads a prompt of n tokens, and decode(n), which adds a token."""
    found = {}
    for n in LENGTHS:
        prefill(n)
        if n in PROMPTS:
            found[f"prefill {n}"] = medians({n: lambda: prefill(n)}, 3)[n]
        if n in TEXTS:
            found[f"decode {n}"] = medians({n: lambda: decode(n)}, 20)[n]
    return found


def load(folder):
    """(hparams, params) without the vocabulary."""
    with open(os.path.join(folder, "hparams.json")) as file:
        hparams = json.load(file)
    return hparams, utils.load_gpt2_params_from_tf_ckpt(os.path.join(folder, "model.ckpt"), hparams)


def name_and_parent(folder):
    """A model's folder as model_size and models_dir."""
    return os.path.basename(folder), os.path.dirname(folder)


# --- PicoGPT ---


def picogpt(folder, kernels=False, bits=None):
    model, _, hparams, params = flags.load(*name_and_parent(folder), kernels, bits)
    n_head = hparams["n_head"]
    cache = gpt2.new_cache(params, n_head, hparams["n_ctx"])

    def run(ids, past):
        x = model.hidden_states(ids, **params, n_head=n_head, cache=cache, past=past)
        return x[-1] @ params["wte"].T

    return timed(lambda n: run(IDS[:n], 0), lambda n: run(IDS[:1], n))


def pico(folder):
    """gpt2_pico.py has no cache: it reads the whole text again for each token."""
    hparams, params = load(folder)
    run = functools.partial(gpt2_pico.gpt2, **params, n_head=hparams["n_head"])
    times = medians({n: functools.partial(run, IDS[:n]) for n in LENGTHS}, 3)
    return {f"{what} {n}": seconds for n, seconds in times.items() for what in ("prefill", "decode")}


def limit(folder):
    """The machine's limits: bytes per second of a matrix-vector product, operations per second of a matrix product."""
    large, row = np.ones((40_000, 2000), np.float32), np.ones(2000, np.float32)  # 320 MB, larger than any cache
    a, b = np.ones((1000, 3000), np.float32), np.ones((3000, 3000), np.float32)
    times = medians({"read": lambda: large @ row, "multiply": lambda: a @ b}, 20)
    return {"bandwidth": large.nbytes / times["read"], "rate": 2 * a.size * len(b) / times["multiply"]}


def together(folder):
    """Whole texts with lookahead and in batches: {"seconds": [[what, engine, seconds]], "passes": [[..., passes]]}.

    They take turns with gpt2.py alone, so that other load on the machine affects all of them equally.
    """
    name = name_and_parent(folder)
    engines = {"gpt2.py": flags.load(*name), "kernels": flags.load(*name, True), "int8": flags.load(*name, True, 8)}
    texts = {"text that repeats": {}, "text that does not repeat": {"temperature": 1.0, "seed": 0}}
    prompts = [(IDS[i : i + 10], 40, 0) for i in range(64)]
    runs, passes = {}, {}
    for engine, (model, _, hparams, params) in engines.items():
        rest, guessing, many = (params, hparams["n_head"]), flags.with_lookahead(model), variant(batch, gpt2=model)
        for what, options in texts.items():
            if engine == "gpt2.py":
                runs[what, "alone"] = functools.partial(gpt2.generate, IDS[:10], *rest, 100, **options)
            if engine != "kernels":
                runs[what, engine] = functools.partial(guessing.generate, IDS[:10], *rest, 100, **options)
                passes[what, engine] = len(list(guessing.passes(IDS[:10], *rest, 100, **options)))
        if engine == "gpt2.py":
            runs["one prompt", "alone"] = functools.partial(gpt2.generate, IDS[:10], *rest, 40)
        for size in 1, 16, 64:
            runs[f"batch of {size}", engine] = lambda size=size, many=many, rest=rest: list(
                many.generate(prompts[:size], *rest, batch_size=size)
            )
    times = medians(runs, 2)
    return {"seconds": [[*name, times[name]] for name in runs], "passes": [[*name, n] for name, n in passes.items()]}


def jax(folder):
    """beyond/gpu.py on the CPU: one step compiled for each length, with the cache donated instead of copied."""
    from beyond import gpu

    jnp = gpu.jnp
    hparams, params = load(folder)
    n_head = hparams["n_head"]
    params = gpu.place(params, n_head, sharding.make_mesh("1x1"))
    cache = gpu.model.new_cache(params, n_head, hparams["n_ctx"])

    @functools.partial(gpu.jax.jit, donate_argnums=1)
    def step(ids, cache, past):
        x, cache = gpu.hidden_states(ids, **params, n_head=n_head, cache=cache, past=past)
        return (x[-1] @ params["wte"].T).argmax(), cache

    def run(ids, past):
        nonlocal cache
        best, cache = step(jnp.array(ids), cache, past)
        best.block_until_ready()

    return timed(lambda n: run(IDS[:n], 0), lambda n: run(IDS[:1], n))


# --- other engines ---


def write_for_transformers(folder, out):
    transformers_folder.write(out, *utils.load_encoder_hparams_and_params(*name_and_parent(folder)))


def hugging_face(folder):
    import torch
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as work:
        write_for_transformers(folder, work)
        model = AutoModelForCausalLM.from_pretrained(work)
    ids, cache = torch.tensor([IDS]), None

    def prefill(n):
        nonlocal cache
        with torch.inference_mode():
            cache = model(ids[:, :n], use_cache=True, logits_to_keep=1).past_key_values

    def decode(n):
        nonlocal cache
        with torch.inference_mode():
            cache = model(ids[:, :1], past_key_values=cache, use_cache=True).past_key_values

    return timed(prefill, decode)


def ctranslate2(folder, quantization="float32"):
    import ctranslate2

    with tempfile.TemporaryDirectory() as work:
        write_for_transformers(folder, work)
        out = os.path.join(work, "converted")
        ctranslate2.converters.TransformersConverter(work).convert(out, quantization=quantization)
        generator = ctranslate2.Generator(out, intra_threads=os.cpu_count())
    with open(os.path.join(folder, "encoder.json"), encoding="utf-8") as file:
        tokens = {id: token for token, id in json.load(file).items()}

    def generate(n, more):
        prompt, options = [tokens[id] for id in IDS[:n]], {"sampling_topk": 1, "end_token": []}
        generator.generate_batch([prompt], max_length=more, include_prompt_in_result=False, **options)

    found = {}
    for n in LENGTHS:  # it only generates whole texts, so the time per token comes from the difference of two runs
        times = medians({more: functools.partial(generate, n, more) for more in (1, 21)}, 3)
        found |= {f"prefill {n}": times[1], f"decode {n}": (times[21] - times[1]) / 20}
    return found


def llama_cpp(folder, kind="F32"):
    import llama_cpp

    threads = {"n_threads": os.cpu_count(), "n_threads_batch": os.cpu_count()}
    with tempfile.TemporaryDirectory() as work:
        path = os.path.join(work, "model.gguf")
        n_ctx = write_gguf(folder, path, kind)
        model = llama_cpp.Llama(path, n_ctx=n_ctx, n_batch=1024, n_ubatch=1024, **threads, verbose=False)

    def prefill(n):
        model.reset()
        model.eval(IDS[:n])

    return timed(prefill, lambda n: model.eval(IDS[:1]))


def write_gguf(folder, path, kind):
    """The model as a GGUF file with matrices of this kind, F32, Q8_0 or Q4_0. Returns n_ctx."""
    import gguf

    encoder, hparams, params = utils.load_encoder_hparams_and_params(*name_and_parent(folder))
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(hparams["n_ctx"])
    writer.add_embedding_length(hparams["n_embd"])
    writer.add_block_count(hparams["n_layer"])
    writer.add_feed_forward_length(4 * hparams["n_embd"])
    writer.add_head_count(hparams["n_head"])
    writer.add_layer_norm_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(list(encoder.encoder))
    writer.add_token_types([gguf.TokenType.NORMAL] * len(encoder.encoder))
    writer.add_token_merges([" ".join(pair) for pair in encoder.bpe_ranks])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, hparams["n_layer"])
    dtype = gguf.GGMLQuantizationType[kind]
    tensors = {f"transformer.{transformers_folder.their_name(name)}": one for name, one in utils.named_arrays(params)}
    for name, array in {**tensors, "lm_head.weight": params["wte"]}.items():
        array = np.ascontiguousarray(array.T if ".c_" in name else array, np.float32)  # a vector's .T is the vector
        is_quantized = array.ndim == 2 and "wpe" not in name and kind != "F32"
        array = gguf.quants.quantize(array, dtype) if is_quantized else array
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), array, raw_dtype=dtype if is_quantized else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return hparams["n_ctx"]


ENGINES = {  # the function that measures it, and the package whose version is reported, unless it is ours
    "limit": (limit, None),
    "gpt2.py": (picogpt, None),
    "PicoGPT kernels": (functools.partial(picogpt, kernels=True), None),
    "PicoGPT int8": (functools.partial(picogpt, kernels=True, bits=8), None),
    "PicoGPT int4": (functools.partial(picogpt, kernels=True, bits=4), None),
    "gpt2_pico.py": (pico, None),
    "together": (together, None),
    "Hugging Face": (hugging_face, "transformers"),
    "JAX": (jax, "jax"),
    "CTranslate2": (ctranslate2, "ctranslate2"),
    "CTranslate2 int8": (functools.partial(ctranslate2, quantization="int8"), "ctranslate2"),
    "llama.cpp": (llama_cpp, "llama-cpp-python"),
    "llama.cpp q8_0": (functools.partial(llama_cpp, kind="Q8_0"), "llama-cpp-python"),
    "llama.cpp q4_0": (functools.partial(llama_cpp, kind="Q4_0"), "llama-cpp-python"),
}


def main(name, folder):
    """Measures an engine and prints JSON: the seconds per prompt, as "prefill 10", and per token, as "decode 10".

    Args:
        name: An engine, such as Hugging Face or CTranslate2 int8; a wrong name lists all of them.
        folder: A model's folder; its n_ctx must be at least 1024.
    """
    if name not in ENGINES:
        raise ValueError(f"name={name} must be one of {', '.join(ENGINES)}")
    if (n_ctx := load(folder)[0]["n_ctx"]) < 1024:
        raise ValueError(f"{folder} has n_ctx={n_ctx}, but the prompts take 1024 tokens: give a larger model")
    try:
        return json.dumps(ENGINES[name][0](folder))
    except ModuleNotFoundError as error:
        raise ValueError(f"{name} needs {error.name}, which is not installed: install it with pip") from None


if __name__ == "__main__":
    cli.run(main)
