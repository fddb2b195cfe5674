"""Generation on GPUs and TPUs, on one or many, on one machine or several: JAX instead of NumPy.

    python -m beyond.gpu "ROMEO:" --model_size shakespeare

prints what gpt2.py prints and, on standard error, the devices. gpt2.py itself runs there unchanged, even in batches:

    import gpt2, jax
    from beyond import variant
    model = variant(gpt2, np=jax.numpy)
    logits = jax.jit(model.gpt2, static_argnames="n_head")(ids, **params, n_head=n_head)          # [n_seq, n_vocab]
    logits = jax.vmap(lambda ids: model.gpt2(ids, **params, n_head=n_head))(batch)      # [n_prompts, n_seq, n_vocab]

For generation the whole loop is compiled, so the cache must have a fixed shape and be returned instead of written to:
the functions redefined here do that. With a mesh, several devices share the weights (devices/sharding.py). Eight
devices, in two groups, each with its own prompts:

    python -m beyond.gpu - --lines --mesh 2x4 < prompts.txt

On two machines, with N = 0 and N = 1 (only process 0 prints):

    python -m beyond.gpu "ROMEO:" --mesh 1x16 --coordinator HOST:PORT --n_processes 2 --process_id N

--dtype bfloat16 halves the memory. For 1,000 prompts of 40 tokens from held_out.txt, it chose the same next token as
float32 in 992 cases.
"""

import functools
import json
import re
import sys

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from beyond import variant
from beyond.devices import processes, sharding
import cli
import gpt2
import utils

model = variant(gpt2, np=jnp)  # gpt2.py with jax.numpy


def mha(x, c_attn, c_proj, n_head, kv, past):  # [n_seq, n_embd], kv [2, n_head, n_total, d] -> [n_seq, n_embd], kv
    q, k, v = jnp.einsum("se,ethd->thsd", x, c_attn["w"]) + c_attn["b"][:, :, None]  # w [n_embd, 3, n_head, d]
    kv = jax.lax.dynamic_update_slice(kv, jnp.stack([k, v]), (0, 0, past, 0))
    seen = jnp.arange(kv.shape[2]) <= past + jnp.arange(len(x))[:, None]
    heads = model.attention(q, *kv, jnp.where(seen, 0.0, -1e10))
    return model.linear(heads.swapaxes(0, 1).reshape(len(x), -1), **c_proj), kv


def transformer_block(x, mlp, attn, ln_1, ln_2, n_head, kv, past):  # as mha
    attended, kv = mha(model.layer_norm(x, **ln_1), **attn, n_head=n_head, kv=kv, past=past)
    x = x + attended
    return x + model.ffn(model.layer_norm(x, **ln_2), **mlp), kv


def hidden_states(inputs, wte, wpe, blocks, ln_f, n_head, cache, past):  # [n_seq] -> [n_seq, n_embd], cache
    x = wte[inputs] + jax.lax.dynamic_slice_in_dim(wpe, past, len(inputs))
    new = []
    for block, kv in zip(blocks, cache):
        x, kv = transformer_block(x, **block, n_head=n_head, kv=kv, past=past)
        new.append(kv)
    return model.layer_norm(x, **ln_f), new


@functools.partial(jax.jit, static_argnames=("n_head", "n_vocab", "n_tokens", "stop", "everywhere"))
def complete(params, inputs, lengths, n_head, n_vocab, n_tokens, stop, everywhere):
    """Greedy: [n_prompts, n_longest] with lengths [n_prompts] -> [n_prompts, n_tokens], with -1 from stop onwards."""

    def run(inputs, cache, past):  # whatever follows a shorter prompt in the cache is overwritten before it is read
        return hidden_states(inputs, **params, n_head=n_head, cache=cache, past=past)

    def prefill(inputs):
        cache = model.new_cache(params, n_head, len(inputs) + n_tokens)
        return run(inputs, [kv.astype(params["wte"].dtype) for kv in cache], 0)

    def choose(x):  # [n_prompts, n_embd] -> [n_prompts]
        logits = (x @ params["wte"].T).astype(jnp.float32)
        return jnp.where(jnp.arange(logits.shape[1]) < n_vocab, logits, -jnp.inf).argmax(axis=-1)

    def unfinished(state):
        i, ids, _, next_ids, ended = state
        return (i < n_tokens) & ~ended.all()

    def step(state):
        i, ids, cache, next_ids, ended = state
        ids = ids.at[:, i].set(jnp.where(ended, -1, next_ids))
        x, cache = jax.vmap(run)(next_ids[:, None], cache, lengths + i)
        next_ids = choose(x[:, 0])
        return i + 1, ids, cache, next_ids, ended | (next_ids == stop)

    x, cache = jax.vmap(prefill)(inputs)
    next_ids = choose(jnp.take_along_axis(x, lengths[:, None, None] - 1, axis=1)[:, 0])
    ids = jnp.full((len(inputs), n_tokens + 1), -1)  # one more, so that no axis has length 0
    ids = jax.lax.while_loop(unfinished, step, (0, ids, cache, next_ids, next_ids == stop))[1]
    return jax.lax.with_sharding_constraint(ids[:, :n_tokens], everywhere)


def place(params, n_head, mesh, dtype="float32"):
    """Puts params on the mesh's devices for the functions here, heads and vocabulary split along its axis "model".

    The vocabulary is padded with zeros, which complete never chooses. Raises ValueError if the heads cannot be split.
    """
    sharding.check_heads(n_head, mesh)
    params = sharding.by_heads(params, n_head)
    wte = np.pad(params["wte"], ((0, -len(params["wte"]) % mesh.shape["model"]), (0, 0)))

    def put(path, array):
        array = cli.check_numbers(np.asarray(array)).astype(dtype)
        return jax.device_put(array, NamedSharding(mesh, sharding.spec_of(path)))

    return jax.tree_util.tree_map_with_path(put, {**params, "wte": wte})


def generate(inputs, params, n_head, n_tokens_to_generate, mesh, stop=None, dtype="float32"):
    """For a list of prompts, each a list of ids: what gpt2.generate returns for each of them at temperature 0."""
    for ids in inputs:
        cli.check_inputs(ids, params, n_tokens_to_generate)
    if not inputs:
        return []
    padded = [*inputs, *inputs[-1:] * (-len(inputs) % mesh.shape["data"])]  # the same number for each group
    longest = max(map(len, inputs))
    ids = np.array([[*prompt, *[0] * (longest - len(prompt))] for prompt in padded])
    lengths = np.array([len(prompt) for prompt in padded])
    by_prompt = [jax.device_put(array, NamedSharding(mesh, P("data"))) for array in (ids, lengths)]
    options = n_head, len(params["wte"]), n_tokens_to_generate, -2 if stop is None else stop, NamedSharding(mesh, P())
    found = complete(place(params, n_head, mesh, dtype), *by_prompt, *options)
    found = np.asarray(found.addressable_data(0))[: len(inputs)]
    return [ids[ids >= 0].tolist() for ids in found]


@sharding.memory_errors()
def main(
    prompt: str = None, n_tokens_to_generate=40, model_size="124M", models_dir="models", lines=False, mesh="1x1",
    dtype="float32", coordinator: str = None, n_processes=1, process_id=0,
):  # fmt: skip
    """Continues a text greedily with GPT-2 on the devices that JAX finds, and prints the continuation.

    Args:
        lines: Treats each line of the prompt as a separate prompt; prints each completion as a line of JSON, or
            {"error": ...}.
        dtype: float32 or bfloat16, which needs half the memory.
    """
    cli.check_options(n_tokens_to_generate)
    sharding.check_dtype(dtype)
    processes.join(coordinator, n_processes, process_id)
    devices = sharding.make_mesh(mesh)
    prompt = cli.read_prompt(prompt)
    encoder, hparams, params = utils.load_encoder_hparams_and_params(model_size, models_dir)
    inputs, results = [], []  # results: an error, or None where a completion will be
    for text in re.split(r"\r?\n", prompt) if lines else [prompt]:
        try:
            ids = cli.encode_prompt(encoder, text)
            cli.check_inputs(ids, params, n_tokens_to_generate)
            inputs.append(ids)
            results.append(None)
        except ValueError as error:
            if not lines:
                raise
            results.append({"error": str(error)})
    end_of_text = encoder.encoder.get("<|endoftext|>")
    found = iter(generate(inputs, params, hparams["n_head"], n_tokens_to_generate, devices, end_of_text, dtype))
    texts = [result or encoder.decode(next(found)) for result in results]
    if not processes.is_process_0():
        return None
    first = devices.devices.flat[0]
    print(f"on {devices.size} x {first.device_kind} ({first.platform}), {dtype}", file=sys.stderr)
    if not inputs:
        raise ValueError(f"all {len(results)} lines failed; the first: {results[0]['error']}")
    return "\n".join(map(json.dumps, texts)) if lines else texts[0]


if __name__ == "__main__":
    cli.run(main)
