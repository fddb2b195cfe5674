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
import os
import re
import socket
import sys
import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from beyond import variant
import gpt2
import utils

model = variant(gpt2, np=jnp)  # gpt2.py with the NumPy of JAX
SPLIT = {  # the axis of each parameter that goes over the mesh's axis "model"; all else is everywhere
    "wte": P("model"), "c_attn/w": P(None, None, "model"), "c_attn/b": P(None, "model"), "attn/c_proj/w": P("model"),
    "c_fc/w": P(None, "model"), "c_fc/b": P("model"), "mlp/c_proj/w": P("model")}  # fmt: skip


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
    check_heads(n_head, mesh)
    params = by_heads(params, n_head)
    wte = np.pad(params["wte"], ((0, -len(params["wte"]) % mesh.shape["model"]), (0, 0)))

    def put(path, array):
        return jax.device_put(utils.check_numbers(np.asarray(array)).astype(dtype), NamedSharding(mesh, spec_of(path)))

    return jax.tree_util.tree_map_with_path(put, {**params, "wte": wte})


def check_dtype(dtype):
    """Raises ValueError unless it is one that models run in."""
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype={dtype!r} must be float32 or bfloat16")


def check_heads(n_head, mesh):
    """Raises ValueError unless the heads divide over the mesh's axis "model"."""
    if n_head % (n := mesh.shape["model"]):
        fitting = [i for i in range(1, n_head + 1) if n_head % i == 0]
        raise ValueError(
            f"the model's {n_head} heads do not divide over {n} devices: choose one of {fitting} for "
            f"the second number of mesh"
        )


def by_heads(params, n_head):
    """params whose c_attn has axes for queries, keys and values and for heads: w [n_embd, 3, n_head, d], b."""

    def reshape(path, array):
        return array.reshape(*array.shape[:-1], 3, n_head, -1) if "c_attn" in jax.tree_util.keystr(path) else array

    return jax.tree_util.tree_map_with_path(reshape, params)


def spec_of(path):
    """How the parameter at a path of the tree is split."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return next((spec for end, spec in SPLIT.items() if name.endswith(end)), P())


def generate(inputs, params, n_head, n_tokens_to_generate, mesh, stop=None, dtype="float32"):
    """For a list of prompts, each a list of ids: what gpt2.generate returns for each at temperature 0."""
    for ids in inputs:
        utils.check_inputs(ids, params, n_tokens_to_generate)
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


def make_mesh(mesh):
    """A mesh with the axes data and model from a text like 2x4. Raises ValueError if there are not as many devices."""
    sizes, devices = mesh_sizes(mesh), jax.devices()
    n = sizes[0] * sizes[1]
    if n > len(devices) or n < len(devices) and jax.process_count() > 1:
        raise ValueError(f"mesh={mesh} takes {n} devices, and JAX sees {len(devices)}: choose numbers that fit")
    return Mesh(np.array(devices[:n]).reshape(sizes), ("data", "model"))


def mesh_sizes(mesh):
    """(groups, devices in each) from a text like 2x4. Raises ValueError for any other."""
    sizes = str(mesh).split("x")
    if len(sizes) != 2 or not all(size.isdecimal() and 0 < len(size) < 10 and int(size) for size in sizes):
        raise ValueError(f"mesh={mesh!r} must be two numbers, groups of rows x devices that share a model: 2x4, say")
    return int(sizes[0]), int(sizes[1])


def meet(coordinator, n_processes, process_id, patience=120):
    """Waits until all processes are there, at HOST:PORT of process 0, as JAX ends a program that waits in vain.

    Raises ValueError for what is no HOST:PORT, OSError if the others are not there after patience seconds.
    """
    host, _, port = str(coordinator).rpartition(":")
    if not host or not port.isdecimal() or not 0 < len(port) < 6 or not 0 < int(port) < 2**16:
        raise ValueError(f"coordinator={coordinator!r} must be HOST:PORT of process 0, with a port from 1 to 65535")
    try:
        socket.getaddrinfo(host, int(port))
        if process_id == 0:
            with socket.create_server(("", int(port))) as server:
                for _ in range(1, n_processes):
                    server.settimeout(patience)
                    server.accept()[0].close()
            return
        for second in range(patience, -1, -1):
            try:
                return socket.create_connection((host, int(port)), timeout=patience).close()
            except ConnectionRefusedError:  # process 0 is not there yet
                if not second:
                    raise
                time.sleep(1)
    except OSError as error:
        others = "the other processes" if process_id == 0 else "process 0"
        raise OSError(
            f"no connection with {others} at {coordinator}: {error.strerror or error}; begin all {n_processes} "
            f"within {patience} seconds, with the same coordinator"
        ) from None


def join(coordinator, n_processes, process_id):
    """Makes this process one of several, which see each other's devices, if a coordinator is named. Raises as meet."""
    utils.check("n_processes", n_processes, 1, 10**5)
    utils.check("process_id", process_id, 0, n_processes - 1, "less than n_processes")
    if coordinator is not None:
        meet(coordinator, n_processes, process_id)
        sys.stdout = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors="replace")
        os.dup2(2, 1)  # so that what C++ prints on the standard output, as Gloo does, goes to the standard error
        jax.distributed.initialize(coordinator, n_processes, process_id)


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
    utils.check_options(n_tokens_to_generate)
    check_dtype(dtype)
    utils.check_switch("lines", lines)
    join(coordinator, n_processes, process_id)
    devices = make_mesh(mesh)
    prompt = utils.read_prompt(prompt)
    encoder, hparams, params = utils.load_encoder_hparams_and_params(model_size, models_dir)
    prompts, inputs = re.split(r"\r?\n", prompt) if lines else [prompt], []
    results = [{"error": None} for _ in prompts]
    for result, text in zip(results, prompts):
        try:
            ids = utils.encode_prompt(encoder, text)
            utils.check_inputs(ids, params, n_tokens_to_generate)
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
    utils.run(main, "prompt", "model_size", "models_dir", "mesh", "dtype", "coordinator")
