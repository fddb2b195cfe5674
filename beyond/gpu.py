"""On GPUs and TPUs, on many of them, and on more than one machine: JAX instead of NumPy.

    python -m beyond.gpu "ROMEO:" --model_size shakespeare

prints what gpt2.py prints and, on standard error, where it ran. gpt2.py itself runs there as it is, for a batch too:

    import gpt2, jax
    from beyond import variant
    model = variant(gpt2, np=jax.numpy)
    logits = jax.jit(model.gpt2, static_argnames="n_head")(ids, **params, n_head=n_head)          # [n_seq, n_vocab]
    logits = jax.vmap(lambda ids: model.gpt2(ids, **params, n_head=n_head))(batch)         # [n_rows, n_seq, n_vocab]

To generate, JAX wants the whole loop compiled: a cache whose shape never changes, and which is handed on rather than
written to. That is what the functions redefined here do. With a mesh the weights are split over several devices, as in
Megatron-LM (https://arxiv.org/abs/1909.08053): attention by heads, mlp by columns and then rows, wte by vocabulary;
jit finds out what has to be sent where. Eight devices, two groups of prompts, each on four:

    python -m beyond.gpu - --lines --mesh 2x4 < prompts.txt

On two machines, with N of 0 and 1 (all print nothing but process 0):

    python -m beyond.gpu "ROMEO:" --mesh 1x16 --coordinator HOST:PORT --n_processes 2 --process_id N

--dtype bfloat16 takes half the memory. Of the tokens that follow 1,000 pieces of held_out.txt, 40 tokens each, it chose
992 as float32 does.
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

model = variant(gpt2, np=jnp)  # gpt2.py with the NumPy of JAX


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
    x, new = wte[inputs] + jax.lax.dynamic_slice_in_dim(wpe, past, len(inputs)), []
    for block, kv in zip(blocks, cache):
        x, kv = transformer_block(x, **block, n_head=n_head, kv=kv, past=past)
        new.append(kv)
    return model.layer_norm(x, **ln_f), new


@functools.partial(jax.jit, static_argnames=("n_head", "n_vocab", "n_tokens", "stop", "everywhere"))
def complete(params, inputs, lengths, n_head, n_vocab, n_tokens, stop, everywhere):
    """Greedy: [n_rows, n_prompt] with lengths [n_rows] -> [n_rows, n_tokens], filled up with -1 from stop on."""
    (n_rows, n_prompt), n_embd = inputs.shape, params["wte"].shape[1]
    shape = n_rows, 2, n_head, n_prompt + n_tokens, n_embd // n_head
    cache = [jnp.zeros(shape, params["wte"].dtype) for _ in params["blocks"]]

    def run(inputs, cache, past):  # what follows a shorter prompt is overwritten before anyone looks at it
        return hidden_states(inputs, **params, n_head=n_head, cache=cache, past=past)

    def choose(x):  # [n_rows, n_embd] -> [n_rows]
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

    x, cache = jax.vmap(run, (0, 0, None))(inputs, cache, 0)
    next_ids = choose(jnp.take_along_axis(x, lengths[:, None, None] - 1, axis=1)[:, 0])
    state = 0, jnp.full((n_rows, n_tokens + 1), -1), cache, next_ids, next_ids == stop  # no axis of length 0
    ids = jax.lax.while_loop(unfinished, step, state)[1][:, :n_tokens]
    return jax.lax.with_sharding_constraint(ids, everywhere)


def place(params, n_head, mesh, dtype="float32"):
    """params on the mesh's devices: heads and vocabulary split over its axis "model", for the functions here.

    Raises ValueError if the heads do not divide. The vocabulary is filled up with zeros, which complete never chooses.
    """
    sharding.check_heads(n_head, mesh)
    params = sharding.by_heads(params, n_head)
    wte = np.pad(params["wte"], ((0, -len(params["wte"]) % mesh.shape["model"]), (0, 0)))

    def put(path, array):
        return jax.device_put(
            cli.check_numbers(np.asarray(array)).astype(dtype), NamedSharding(mesh, sharding.spec_of(path))
        )

    return jax.tree_util.tree_map_with_path(put, {**params, "wte": wte})


def generate(inputs, params, n_head, n_tokens_to_generate, mesh, stop=None, dtype="float32"):
    """For a list of prompts, each a list of ids: what gpt2.generate returns for each at temperature 0."""
    for ids in inputs:
        cli.check_inputs(ids, params, n_tokens_to_generate)
    if not inputs:
        return []
    longest, more = max(map(len, inputs)), -len(inputs) % mesh.shape["data"]
    rows = np.array([[*ids, *[0] * (longest - len(ids))] for ids in [*inputs, *inputs[-1:] * more]])  # a multiple of it
    lengths = np.array([len(ids) for ids in [*inputs, *inputs[-1:] * more]])
    by_row, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    found = complete(
        place(params, n_head, mesh, dtype),
        jax.device_put(rows, by_row),
        jax.device_put(lengths, by_row),
        n_head,
        len(params["wte"]),
        n_tokens_to_generate,
        -2 if stop is None else stop,
        everywhere,
    )
    found = np.asarray(found.addressable_data(0))[: len(inputs)]
    return [ids[ids >= 0].tolist() for ids in found]


@sharding.memory_errors()
def main(
    prompt: str = None,
    n_tokens_to_generate=40,
    model_size="124M",
    models_dir="models",
    lines=False,
    mesh="1x1",
    dtype="float32",
    coordinator: str = None,
    n_processes=1,
    process_id=0,
):
    """Continues a text greedily with GPT-2 on what JAX finds, and prints the continuation.

    Args:
        prompt: The text to continue; - reads the standard input, "" begins from nothing.
        model_size: 124M, 355M, 774M, 1558M, shakespeare or another folder in models_dir.
        lines: Takes each line of the prompt for a prompt of its own, and prints a line of JSON for each completion, or
            {"error": ...}.
        mesh: DATAxMODEL: how many groups of devices share the prompts, and how many devices in each share the weights.
        dtype: float32 or bfloat16, which needs half the memory.
        coordinator: With several processes, HOST:PORT of process 0.
        n_processes: How many there are.
        process_id: Which one this is, from 0 to n_processes - 1.
    """
    cli.check_options(n_tokens_to_generate)
    sharding.check_dtype(dtype)
    processes.join(coordinator, n_processes, process_id)
    devices = sharding.make_mesh(mesh)
    prompt = cli.read_prompt(prompt)
    encoder, hparams, params = utils.load_encoder_hparams_and_params(model_size, models_dir)
    prompts, inputs = re.split(r"\r?\n", prompt) if lines else [prompt], []
    results = [{"error": None} for _ in prompts]
    for result, text in zip(results, prompts):
        try:
            ids = cli.encode_prompt(encoder, text)
            cli.check_inputs(ids, params, n_tokens_to_generate)
            inputs.append(ids)
            result.clear()
        except ValueError as error:
            if not lines:
                raise
            result["error"] = str(error)
    end_of_text = encoder.encoder.get("<|endoftext|>")
    found = iter(generate(inputs, params, hparams["n_head"], n_tokens_to_generate, devices, end_of_text, dtype))
    texts = [result or encoder.decode(next(found)) for result in results]
    if jax.process_index() > 0:
        return None
    first = devices.devices.flat[0]
    print(f"on {devices.size} x {first.device_kind} ({first.platform}), {dtype}", file=sys.stderr)
    if lines and all(results):
        raise ValueError(f"all {len(results)} lines failed; the first: {results[0]['error']}")
    return "\n".join(map(json.dumps, texts)) if lines else texts[0]


if __name__ == "__main__":
    cli.run(main)
