"""The engines that beyond/benchmark.py compares, PicoGPT's own among them, each on the same weights.

    python -m beyond.bench.engines "Hugging Face" models/124M

prints, as JSON, the seconds of reading prompts of 10, 100 and 1000 tokens and of a token after 10, 100 and 900. Each
engine has a process of its own, so that none inherits another's threads. Its own form of a model is made from the
folder first, in a temporary one: names and layout differ, the numbers do not, but where they are rounded to 8 or 4
bits.
"""

import functools
import json
import os
import shutil
import tempfile
import time

import numpy as np

from beyond import batch, lookahead, variant
from beyond.devices import sharding
from beyond.fast import flags
from beyond.formats import checkpoint
import cli
import gpt2
import gpt2_pico
import utils

IDS = [i * 7 % 1024 for i in range(1024)]
LENGTHS = 10, 100, 900, 1000
PROMPTS, TEXTS = (10, 100, 1000), (10, 100, 900)  # what is read, what a token comes after


def medians(runs, n):
    """{name: median seconds} of functions that take turns n times, after one round to warm up."""
    times = {name: [] for name in runs}
    for _ in range(n + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(values[1:])) for name, values in times.items()}


def load(folder):
    with open(os.path.join(folder, "hparams.json")) as file:
        hparams = json.load(file)
    return hparams, utils.load_gpt2_params_from_tf_ckpt(os.path.join(folder, "model.ckpt"), hparams)


def steps(n, prefill, decode):
    """{what: median seconds} of prefill() and decode(), for a prompt of n, where the table has them."""
    prefill_s = medians({"": prefill}, 3)[""] if n in PROMPTS else prefill()
    found = {f"prefill {n}": prefill_s} if n in PROMPTS else {}
    return found | ({f"decode {n}": medians({"": decode}, 20)[""]} if n in TEXTS else {})


# --- PicoGPT ---


def picogpt(folder, kernels=False, bits=None):
    model, _, hparams, params = flags.load(*parts(folder), kernels, bits)
    shape = 2, hparams["n_head"], hparams["n_ctx"], hparams["n_embd"] // hparams["n_head"]
    cache = [np.zeros(shape, np.float32) for _ in params["blocks"]]

    def run(n, past):
        x = model.hidden_states(IDS[:n], **params, n_head=hparams["n_head"], cache=cache, past=past)
        return x[-1] @ params["wte"].T

    return merged(steps(n, functools.partial(run, n, 0), functools.partial(run, 1, n)) for n in LENGTHS)


def pico(folder):
    """gpt2_pico.py has no cache: it reads the whole text for each token."""
    hparams, params = load(folder)
    times = medians(
        {n: functools.partial(gpt2_pico.gpt2, IDS[:n], **params, n_head=hparams["n_head"]) for n in LENGTHS}, 3
    )
    return merged({f"prefill {n}": seconds, f"decode {n}": seconds} for n, seconds in times.items())


def limit(folder):
    """The machine's: bytes a second as a product with one row reads them, operations a second of a large product."""
    large, row = np.ones((40_000, 2000), np.float32), np.ones(2000, np.float32)  # 320 MB, more than any cache
    a, b = np.ones((1000, 3000), np.float32), np.ones((3000, 3000), np.float32)
    times = medians({"read": lambda: large @ row, "multiply": lambda: a @ b}, 20)
    return {"bandwidth": large.nbytes / times["read"], "rate": 2 * a.size * len(b) / times["multiply"]}


def together(folder):
    """Seconds of whole texts with lookahead and in batches, {(what, engine): seconds}, and tokens a pass.

    They take turns with gpt2.py, so that a noisy machine disturbs all alike.
    """
    engines = {
        "gpt2.py": flags.load(*parts(folder)),
        "kernels": flags.load(*parts(folder), True),
        "int8": flags.load(*parts(folder), True, 8),
    }
    runs, passes, prompts = {}, {}, [(IDS[i : i + 10], 40, 0) for i in range(64)]
    texts = {"text that repeats": {}, "text that does not": {"temperature": 1.0, "seed": 0}}
    for engine, (model, _, hparams, params) in engines.items():
        rest, guessing, many = (params, hparams["n_head"]), variant(lookahead, gpt2=model), variant(batch, gpt2=model)
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


def parts(folder):
    """A model's folder as model_size and models_dir."""
    return os.path.basename(folder), os.path.dirname(folder)


def merged(found):
    return {what: seconds for one in found for what, seconds in one.items()}


# --- others ---


def hugging_face(folder):
    import torch

    model = hugging_face_model(folder)
    found, state = {}, {}
    for n in LENGTHS:
        ids = torch.tensor([IDS[:n]])

        def prefill():
            with torch.inference_mode():
                state["cache"] = model(ids, use_cache=True, logits_to_keep=1).past_key_values

        def decode():
            with torch.inference_mode():
                state["cache"] = model(ids[:, :1], past_key_values=state["cache"], use_cache=True).past_key_values

        found |= steps(n, prefill, decode)
    return found


def hugging_face_model(folder):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    hparams, params = load(folder)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=hparams["n_vocab"],
            n_positions=hparams["n_ctx"],
            **{name: hparams[name] for name in ("n_embd", "n_head", "n_layer")},
        )
    ).eval()
    ends, state = {"g": "weight", "w": "weight", "b": "bias"}, {}
    for name, array in checkpoint.tensors(params):
        name, _, last = name.removeprefix("model/").replace("/", ".").rpartition(".")
        name = (
            f"{name[:1]}.{name[1:]}.{ends[last]}"
            if name[:1] == "h"
            else f"{name}.{ends[last]}"
            if name
            else f"{last}.weight"
        )
        state[f"transformer.{name}"] = torch.from_numpy(np.array(array))
    state["lm_head.weight"] = state["transformer.wte.weight"]
    model.load_state_dict(state, strict=False)
    return model


def jax(folder):
    """beyond/gpu.py on the CPU: a step compiled once for each length, its cache handed on without a copy."""
    from beyond import gpu

    jax, jnp = gpu.jax, gpu.jnp
    hparams, params = load(folder)
    params, n_head = gpu.place(params, hparams["n_head"], sharding.make_mesh("1x1")), hparams["n_head"]
    shape = 2, n_head, hparams["n_ctx"], hparams["n_embd"] // n_head

    @functools.partial(jax.jit, donate_argnums=1)
    def step(ids, cache, past):
        x, cache = gpu.hidden_states(ids, **params, n_head=n_head, cache=cache, past=past)
        return (x[-1] @ params["wte"].T).argmax(), cache

    found, state = {}, {"cache": [jnp.zeros(shape) for _ in range(hparams["n_layer"])]}
    for n in LENGTHS:

        def run(ids, past):
            best, state["cache"] = step(jnp.array(ids), state["cache"], past)
            best.block_until_ready()

        found |= steps(n, lambda: run(IDS[:n], 0), lambda: run(IDS[:1], n))
    return found


def ctranslate2(folder, quantization="float32"):
    import ctranslate2

    with tempfile.TemporaryDirectory() as work:
        hugging_face_model(folder).save_pretrained(work)
        for theirs, ours in ("vocab.json", "encoder.json"), ("merges.txt", "vocab.bpe"):
            shutil.copy(os.path.join(folder, ours), os.path.join(work, theirs))
        out = os.path.join(work, "converted")
        ctranslate2.converters.TransformersConverter(work).convert(out, quantization=quantization)
        generator = ctranslate2.Generator(out, intra_threads=os.cpu_count())
    with open(os.path.join(folder, "encoder.json"), encoding="utf-8") as file:
        tokens = {id: token for token, id in json.load(file).items()}

    def generate(n, more):
        generator.generate_batch(
            [[tokens[id] for id in IDS[:n]]],
            max_length=more,
            sampling_topk=1,
            include_prompt_in_result=False,
            end_token=[],
        )

    found = {}
    for n in LENGTHS:  # it only tells whole generations, so a token is the difference of two
        times = medians({more: functools.partial(generate, n, more) for more in (1, 21)}, 3)
        found |= {f"prefill {n}": times[1], f"decode {n}": (times[21] - times[1]) / 20}
    return found


def llama_cpp(folder, kind="F32"):
    import gguf
    import llama_cpp

    hparams, params = load(folder)
    kinds = gguf.GGMLQuantizationType
    with open(os.path.join(folder, "encoder.json"), encoding="utf-8") as file:
        tokens = list(json.load(file))
    with open(os.path.join(folder, "vocab.bpe"), encoding="utf-8") as file:
        merges = file.read().splitlines()[1:]
    with tempfile.TemporaryDirectory() as work:
        path = os.path.join(work, "model.gguf")
        writer = gguf.GGUFWriter(path, "gpt2")
        writer.add_context_length(hparams["n_ctx"])
        writer.add_embedding_length(hparams["n_embd"])
        writer.add_block_count(hparams["n_layer"])
        writer.add_feed_forward_length(4 * hparams["n_embd"])
        writer.add_head_count(hparams["n_head"])
        writer.add_layer_norm_eps(1e-5)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(tokens)
        writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
        writer.add_token_merges(merges)

        def add(name, array, matrix=False):
            array = np.ascontiguousarray(array, np.float32)
            if matrix and kind != "F32":
                writer.add_tensor(name, gguf.quants.quantize(array, kinds[kind]), raw_dtype=kinds[kind])
            else:
                writer.add_tensor(name, array)

        add("token_embd.weight", params["wte"], True)
        add("output.weight", params["wte"], True)
        add("position_embd.weight", params["wpe"])
        for theirs, ours in [("output_norm", params["ln_f"])] + [
            (f"blk.{i}.{name}", block[key])
            for i, block in enumerate(params["blocks"])
            for name, key in (("attn_norm", "ln_1"), ("ffn_norm", "ln_2"))
        ]:
            add(f"{theirs}.weight", ours["g"])
            add(f"{theirs}.bias", ours["b"])
        for i, block in enumerate(params["blocks"]):
            for name, layer in (
                ("attn_qkv", block["attn"]["c_attn"]),
                ("attn_output", block["attn"]["c_proj"]),
                ("ffn_up", block["mlp"]["c_fc"]),
                ("ffn_down", block["mlp"]["c_proj"]),
            ):
                add(f"blk.{i}.{name}.weight", layer["w"].T, True)
                add(f"blk.{i}.{name}.bias", layer["b"])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        model = llama_cpp.Llama(
            path,
            n_ctx=hparams["n_ctx"],
            n_batch=1024,
            n_ubatch=1024,
            n_threads=os.cpu_count(),
            n_threads_batch=os.cpu_count(),
            verbose=False,
        )
    found = {}
    for n in LENGTHS:

        def prefill():
            model.reset()
            model.eval(IDS[:n])

        found |= steps(n, prefill, lambda: model.eval(IDS[:1]))
    return found


ENGINES = {  # what measures it, and the package whose version it has, if it is not ours
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
    """Measures an engine and prints JSON: the seconds of prompts, prefill 10 and so on, and of a token, decode 10.

    Args:
        name: Hugging Face, CTranslate2 int8 or another one; a wrong name lists them.
        folder: A model's folder; its n_ctx is at least 1024.
    """
    if name not in ENGINES:
        raise ValueError(f"name={name} must be one of {', '.join(ENGINES)}")
    if (n_ctx := load(folder)[0]["n_ctx"]) < 1024:
        raise ValueError(f"{folder} has n_ctx={n_ctx}, and the prompts take 1024 tokens: give a larger model")
    try:
        return json.dumps(ENGINES[name][0](folder))
    except ModuleNotFoundError as error:
        raise ValueError(f"{name} needs {error.name}, which is not installed: install it with pip") from None


if __name__ == "__main__":
    cli.run(main)
