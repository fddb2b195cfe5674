import json
import os
import re
import socket
import subprocess
import sys
import textwrap

from conftest import ROOT, assert_error, command, nested
import golden
import jax
import numpy as np
import pytest

from beyond import gpu
from beyond.devices import sharding
import gpt2
import gpt2_pico
import utils

HPARAMS = {
    "n_vocab": 61,
    "n_ctx": 48,
    "n_embd": 48,
    "n_head": 8,
    "n_layer": 2,
}  # 61 tokens divide over no number of devices


def negative(params):
    """The same ids, but all logits below 0, the logit of the rows that fill the vocabulary up."""
    wte, b = params["wte"].copy(), params["ln_f"]["b"].copy()
    wte[:, 0], b[0] = -1, 50
    return {**params, "wte": wte, "ln_f": {**params["ln_f"], "b": b}}


PROMPTS = [[1, 2, 3], [4], list(range(40)), [60, 59], [7] * 11]


@pytest.fixture(scope="module")
def params():
    return nested(golden.weights(HPARAMS))


def test_the_ids_are_those_of_generate(params):
    expected = [gpt2.generate(ids, params, 8, 8) for ids in PROMPTS]
    mesh = sharding.make_mesh("1x1")
    assert gpu.generate(PROMPTS, params, 8, 8, mesh) == expected
    stop = expected[0][3]
    assert gpu.generate(PROMPTS, params, 8, 8, mesh, stop) == [
        gpt2.generate(ids, params, 8, 8, stop=stop) for ids in PROMPTS
    ]
    assert gpu.generate(PROMPTS, params, 8, 0, mesh) == [[]] * 5 and gpt2.np is np


def test_what_the_docstring_shows(params):
    """gpt2.gpt2 as it is under jit and vmap: the lines themselves, run on a model."""
    code = re.search(r"    import gpt2, jax\n(    .*\n)+", gpu.__doc__)[0]
    batch = np.array([golden.inputs(HPARAMS), golden.inputs(HPARAMS)[::-1]])
    names = {"params": params, "n_head": 8, "ids": batch[0], "batch": batch}
    exec(textwrap.dedent(code).replace("logits =", "one =", 1), names)
    expected = np.array([gpt2_pico.gpt2(ids, **params, n_head=8) for ids in batch])
    np.testing.assert_allclose(names["one"], expected[0], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(names["logits"], expected, rtol=1e-3, atol=1e-3)


MESHES = """
import json, os, sys
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import golden, jax
from conftest import nested
from test_gpu import HPARAMS, PROMPTS, negative
from beyond import gpu
from beyond.devices import sharding
params = negative(nested(golden.weights(HPARAMS)))
print(json.dumps([gpu.generate(PROMPTS, params, 8, 8, sharding.make_mesh(mesh)) for mesh in {meshes}]))
w = gpu.place(params, 8, sharding.make_mesh({meshes}[-1]))["blocks"][0]["mlp"]["c_fc"]["w"]
print(w.addressable_shards[0].data.shape)
"""


def test_meshes_of_eight_devices(params):
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = command(
        "-c", MESHES.format(root=str(ROOT), meshes=["8x1", "2x4", "1x8"]), program=None, env=env, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode()
    found, shape = done.stdout.decode().splitlines()
    params = negative(params)
    assert gpt2.gpt2(PROMPTS[2], **params, n_head=8).max() < -10
    assert json.loads(found) == [[gpt2.generate(ids, params, 8, 8) for ids in PROMPTS]] * 3
    assert shape == "(48, 24)"  # an eighth of the columns on each


def test_two_processes_print_the_text_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=3", "JAX_PLATFORMS": "cpu"}
    args = [
        sys.executable,
        "-m",
        "beyond.gpu",
        "ROMEO:",
        "--model_size=shakespeare",
        "--n_tokens_to_generate=12",
        "--mesh=1x6",
        f"--coordinator={address}",
        "--n_processes=2",
    ]
    both = [
        subprocess.Popen(
            [*args, f"--process_id={i}"], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for i in (0, 1)
    ]
    found = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], found
    plain = command("ROMEO:", "--model_size=shakespeare", "--n_tokens_to_generate=12")
    assert found[0][0] == plain.stdout and found[1][0] == b""
    assert b"on 6 x cpu (cpu), float32" in found[0][1]


def run(*args, devices=1, **kwargs):
    env = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    return command("-m", "beyond.gpu", *args, "--model_size=shakespeare", program=None, cwd=ROOT, env=env, **kwargs)


def test_the_command():
    done, plain = run("ROMEO:"), command("ROMEO:", "--model_size=shakespeare")
    assert done.returncode == 0 and done.stdout == plain.stdout and done.stderr == b"on 1 x cpu (cpu), float32\n"
    done = run("-", "--lines", "--mesh=2x2", devices=4, input=b"ROMEO:\nTo be, or not\n\n")
    texts = [
        command(prompt, "--model_size=shakespeare").stdout.decode()[:-1] for prompt in ("ROMEO:", "To be, or not", "")
    ]
    assert [
        json.loads(line) for line in done.stdout.splitlines()
    ] == texts and done.stderr == b"on 4 x cpu (cpu), float32\n"


def test_bfloat16_mostly_agrees(params):
    """The next token of 200 prompts, with all weights in bfloat16 and in float32."""
    placed = gpu.place(params, 8, sharding.make_mesh("1x1"), "bfloat16")
    assert {array.dtype.name for array in jax.tree.leaves(placed)} == {"bfloat16"}
    encoder, hparams, params = utils.load_encoder_hparams_and_params("shakespeare", str(ROOT / "models"))
    ids = encoder.encode((ROOT / "models" / "shakespeare" / "held_out.txt").read_text("utf-8"))
    prompts = [ids[i : i + 40] for i in range(0, 40000, 200)]
    exact, rough = (
        gpu.generate(prompts, params, hparams["n_head"], 1, sharding.make_mesh("1x1"), dtype=dtype)
        for dtype in ("float32", "bfloat16")
    )
    assert 180 < sum(a == b for a, b in zip(exact, rough)) < 200


@pytest.mark.parametrize(
    "flags, parts",
    [
        (["--mesh=1x5"], ["6 heads cannot be split evenly across 5 devices", "[1, 2, 3, 6]"]),
        (["--mesh=2x4"], ["mesh=2x4 takes 8", "sees 5"]),
        (["--mesh=8"], ["mesh='8'"]),
        (["--mesh=0x1"], ["mesh='0x1'"]),
        (["--dtype=int8"], ["dtype='int8'", "bfloat16"]),
        (["--n_tokens_to_generate=300"], ["300", "256"]),
    ],
)
def test_errors(flags, parts):
    assert_error(run("ROMEO:", *flags, devices=5), *parts)
