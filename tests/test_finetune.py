import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time

from conftest import ROOT, assert_error, command, flat, nested
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_train import pico_losses

from beyond import finetune
from beyond.learn import adapting
from encoder import get_encoder
import gpt2
import utils

HPARAMS = golden.CONFIGS["wide"]
METHODS = list(finetune.RATES)


@pytest.fixture(scope="module")
def params():
    return nested(golden.weights(HPARAMS))


def moved(params, trained, seed=0):
    """What a method trained, as if it had learned: zeros too have moved."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(x.dtype), trained)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_changes_before_the_first_step_and_then_what_the_method_says(params, method):
    ids, n_head = golden.inputs(HPARAMS), HPARAMS["n_head"]
    trained = finetune.begin(params, method, 1, 3, 0)
    row, loss = (ids, np.arange(len(ids) - 1) % 3 == 0), finetune.loss_of(method, n_head)
    expected = pico_losses(params, np.array(ids), n_head)[::3].mean()
    assert float(loss(trained, row, None, params)) == pytest.approx(expected, rel=1e-5)
    after = finetune.combine(params, moved(params, trained), method)
    changed = {
        path
        for (path, a), (_, b) in zip(
            flat(params),
            flat(
                {
                    **after,
                    "blocks": [
                        {name: part for name, part in block.items() if name != "adapter"} for block in after["blocks"]
                    ],
                }
            ),
        )
        if (a != b).any()
    }
    everything = {path for path, _ in flat(params)}
    assert (
        changed
        == {
            "full": everything,
            "adapter": set(),
            "head": {"/ln_f/b", "/ln_f/g"},
            "last_k": {path for path in everything if path.startswith(("/blocks/1/", "/ln_f"))},
            "lora": {path for path in everything if path.endswith("c_attn/w")},
        }[method]
    )
    if method != "adapter":
        expected = pico_losses(after, np.array(ids), n_head)[::3].mean()
        assert float(loss(moved(params, trained), row, None, params)) == pytest.approx(expected, rel=1e-5)


def test_an_adapter_is_a_network_after_each_half_of_the_block(params):
    trained, n_head, x = (
        moved(params, finetune.begin(params, "adapter", 1, 3, 0)),
        HPARAMS["n_head"],
        np.ones((5, 66), np.float32),
    )
    block = finetune.combine(params, trained, "adapter")["blocks"][1]
    expected = x
    for i, (layer, norm) in enumerate(
        [
            (lambda y: gpt2.mha(y, **block["attn"], n_head=n_head), "ln_1"),
            (lambda y: gpt2.ffn(y, **block["mlp"]), "ln_2"),
        ]
    ):
        y = layer(gpt2.layer_norm(expected, **block[norm]))
        inner = gpt2.gelu(y @ trained["down"][1, i] + trained["down_b"][1, i])
        expected = expected + y + inner @ trained["up"][1, i] + trained["up_b"][1, i]
    np.testing.assert_allclose(finetune.transformer_block(x, **block, n_head=n_head), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_finite_differences(params, method):
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():  # moved in JAX 0.8
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
        trained = jax.tree.map(
            lambda x: jnp.asarray(x, jnp.float64), moved(params, finetune.begin(params, method, 1, 3, 0))
        )
        row, rng = (jnp.array(golden.inputs(HPARAMS)[:12]), jnp.arange(11) % 2), np.random.default_rng(0)
        loss = jax.jit(lambda trained: finetune.loss_of(method, HPARAMS["n_head"])(trained, row, None, params))
        gradients, leaves, structure = jax.tree.leaves(jax.grad(loss)(trained)), *jax.tree.flatten(trained)
        for i, leaf in enumerate(leaves):
            way = rng.standard_normal(leaf.shape)
            both = [
                loss(jax.tree.unflatten(structure, [*leaves[:i], leaf + h * way, *leaves[i + 1 :]]))
                for h in (1e-5, -1e-5)
            ]
            np.testing.assert_allclose((both[0] - both[1]) / 2e-5, (gradients[i] * way).sum(), rtol=1e-5, atol=1e-9)


@pytest.fixture(scope="module", autouse=True)
def models(short_models_dir):
    run.models_dir = str(short_models_dir)
    return run.models_dir


def words(data, out, *flags):
    base = "--model_size=short", f"--models_dir={run.models_dir}"
    return ["-m", "beyond.finetune", str(data), f"--out={out}", *base, "--batch_size=4", *flags]


def run(*args):
    return command(*words(*args), program=None, cwd=ROOT, env={"JAX_PLATFORMS": "cpu"}, timeout=300)


SAID = r"([\d,]+) of 1,099,008 parameters trained \(([\d.]+)%\); held-out loss ([\d.]+) before, ([\d.]+) after (\d+) steps; (.*)\n"


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "code.txt"
    path.write_text("".join((ROOT / name).read_text("utf-8") for name in ("utils.py", "gpt2.py")), "utf-8", newline="")
    return path


@pytest.mark.parametrize(
    "method, n, name", [("lora", 12288, "lora.npz"), ("adapter", 13088, "adapter.npz"), ("last_k", 445248, None)]
)
def test_it_learns_and_the_rest_stays(code, models, tmp_path, method, n, name):
    done = run(code, tmp_path / "coder", f"--method={method}", "--k=1", "--steps=20", "--eval_every=10")
    said = re.search(SAID, done.stdout.decode())
    assert done.returncode == 0 and said, done.stderr.decode()
    assert int(said[1].replace(",", "")) == n and float(said[2]) == round(100 * n / 1099008, 2)
    before, after = float(said[3]), float(said[4])
    assert after < before - 1 and said[5] == "20" and (name or utils.DATA) in said[6]
    encoder, hparams, base = utils.load_encoder_hparams_and_params("short", models)
    content = code.read_text("utf-8")
    ids = np.array(encoder.encode(content[len(content) * 9 // 10 :]))
    windows = [ids[i : i + 65] for i in range(0, len(ids) - 64, 64)]
    assert np.mean([pico_losses(base, window, 6) for window in windows]) == pytest.approx(before, abs=6e-5)
    assert not list((tmp_path / "coder").glob("train*"))
    if method == "adapter":
        assert os.path.getsize(tmp_path / "coder" / name) < 70_000
        return
    _, _, learned = utils.load_encoder_hparams_and_params("coder", str(tmp_path))
    assert np.mean([pico_losses(learned, window, 6) for window in windows]) == pytest.approx(after, abs=6e-5)
    stay = [path for (path, a), (_, b) in zip(flat(base), flat(learned)) if (a == b).all()]
    assert len(stay) == (len(flat(base)) - 2 if method == "lora" else len(flat(base)) - 14)
    assert command("def ", "3", "coder", str(tmp_path)).returncode == 0
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(tmp_path / "coder" / "model.ckpt"))
    assert (reader.get_tensor("model/h1/attn/c_attn/w")[0] == learned["blocks"][1]["attn"]["c_attn"]["w"]).all()


def test_the_learning_rate_is_the_one_that_was_given(code, models, tmp_path):
    """Adam's first step is as long as the learning rate."""
    (tmp_path / "text.txt").write_text(code.read_text("utf-8")[:3000], "utf-8")
    finetune.main(
        str(tmp_path / "text.txt"),
        str(tmp_path / "new"),
        "short",
        models,
        "head",
        steps=1,
        learning_rate=0.25,
        batch_size=1,
    )
    before, after = (
        utils.load_encoder_hparams_and_params(*one)[2] for one in (("short", models), ("new", str(tmp_path)))
    )
    assert np.abs(after["ln_f"]["b"] - before["ln_f"]["b"]).max() == pytest.approx(0.25, rel=0.01)


def test_what_the_docstring_shows(code, models, tmp_path, capsys):
    """The adapter's file, run by NumPy, is the model whose held-out loss was told."""
    done = run(code, tmp_path / "coder", "--method=adapter", "--steps=4", "--eval_every=4")
    after = float(re.search(SAID, done.stdout.decode())[4])
    snippet = textwrap.dedent(re.search(r"    import gpt2, numpy, utils\n(    .*\n)+", finetune.__doc__)[0])
    names = {}
    for shown, here in ("models/coder", str(tmp_path / "coder")), ('"models"', repr(models)), ("shakespeare", "short"):
        assert shown in snippet
        snippet = snippet.replace(shown, here)
    exec(snippet, names)
    assert capsys.readouterr().out.strip()
    content, encoder = code.read_text("utf-8"), get_encoder("short", models)
    ids, found = np.array(encoder.encode(content[len(content) * 9 // 10 :])), []
    for i in range(0, len(ids) - 64, 64):
        logits = names["model"].gpt2(ids[i : i + 64], **names["params"], n_head=6)
        found.append(-np.log(gpt2.softmax(logits)[np.arange(64), ids[i + 1 : i + 65]]))
    assert np.mean(found) == pytest.approx(after, abs=1e-4)


def test_the_estimate_is_what_the_run_takes(code, models, tmp_path, monkeypatch):
    """In seconds of this process's own processor time, which other processes do not change."""
    monkeypatch.setattr(time, "perf_counter", time.process_time)
    told, fit, readable = [], adapting.fit, adapting.readable

    def tell(value, units):
        if units is adapting.SECONDS:
            told.extend([value, time.process_time()])
        return readable(value, units)

    def fit_until(*args, **more):
        history = fit(*args, **more)
        told.append(time.process_time())
        return history

    monkeypatch.setattr(adapting, "readable", tell)
    monkeypatch.setattr(adapting, "fit", fit_until)
    finetune.main(str(code), str(tmp_path / "coder"), "short", models, "full", steps=40, batch_size=4, eval_every=20)
    estimated, began, ended = told
    assert (ended - began) / 3 < estimated < 3 * (ended - began)


@pytest.mark.parametrize(
    "step, evaluation, n_trained, said",
    [
        (0.0001, 0.01, 10, ["1.0 seconds", "4.0 MB"]),
        (0.25, 1.0, 10, ["29 seconds", "4.0 MB"]),
        (0.25, 10, 10, ["1.1 minutes", "4.0 MB"]),
        (1, 2100, 10**6, ["2.4 hours", "36 MB"]),
        (3600, 0, 10**8, ["4.2 days", "3.2 GB"]),
    ],
)
def test_the_estimate_by_hand(step, evaluation, n_trained, said):
    """100 steps and four evaluations; of a million weights four bytes each, and of trained ones 32 more."""
    found = adapting.estimate(step, evaluation, 100, 30, 10**6, n_trained)
    memory = f"{said[1]} of memory besides activations and JAX itself"
    assert found == f"at most 100 more steps: about {said[0]} on this machine, and {memory}"


TASKS = [
    {"instruction": f"Who rules {land}?", "input": "", "output": king}
    if i % 2
    else {"instruction": "Who rules?", "input": land, "output": king}
    for i, (land, king) in enumerate([("Denmark", "Claudius"), ("Scotland", "Duncan"), ("England", "Henry")] * 10)
]


def test_a_line_may_hold_any_character(tmp_path):
    (tmp_path / "tasks.jsonl").write_text('{"instruction": "a\u2028b", "output": "c"}\n' * 10, "utf-8")
    encoder = get_encoder("shakespeare", str(ROOT / "models"))
    assert len(finetune.read(tmp_path / "tasks.jsonl", encoder, 256)[0][0]) == 9


def test_tasks_are_learned_and_answers_end(tmp_path):
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in TASKS))
    done = run(
        tmp_path / "tasks.jsonl",
        tmp_path / "kings",
        "--method=full",
        "--steps=60",
        "--eval_every=20",
        "--learning_rate=0.001",
    )
    said = re.search(SAID, done.stdout.decode())
    assert float(said[4]) < 0.5 < float(said[3]), done.stderr.decode()
    prompt = (
        (tmp_path / "kings" / "prompt.txt")
        .read_text()
        .removesuffix("\n")
        .format(instruction="Who rules?", input="Scotland")
    )
    assert prompt == finetune.prompt_of("Who rules?", "Scotland") == "Instruction: Who rules?\nInput: Scotland\nAnswer:"
    done = command(prompt, "20", "--model_size=kings", f"--models_dir={tmp_path}")
    assert done.stdout.decode() == " Duncan\n"


def test_the_loss_counts_the_answers_alone(models, tmp_path):
    encoder, _, params = utils.load_encoder_hparams_and_params("short", models)
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in TASKS))
    learned, unseen = finetune.read(tmp_path / "tasks.jsonl", encoder, 64)
    assert len(learned[0]) == len(learned[1]) == 27 and len(unseen[0]) == 3
    loss = finetune.loss_of("full", 4)
    for task, ids, counts in zip(TASKS, *learned):
        end = encoder.encoder["<|endoftext|>"]
        prompt = encoder.encode(finetune.prompt_of(task["instruction"], task["input"]))
        whole = [*prompt, *encoder.encode(" " + task["output"]), end]
        assert ids.tolist()[: len(whole)] == whole and set(ids.tolist()[len(whole) :]) <= {end}
        expected = pico_losses(params, np.array(whole), 4)[len(prompt) - 1 :].mean()
        assert float(loss(params, (ids, counts), None, params)) == pytest.approx(expected, rel=1e-4)


def test_a_killed_run_goes_on_to_the_same_weights(code, tmp_path):
    flags = "--method=lora", "--steps=12", "--eval_every=4"
    assert run(code, tmp_path / "whole", *flags).returncode == 0
    args, env = [sys.executable, *words(code, tmp_path / "killed", *flags)], {**os.environ, "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(args, cwd=ROOT, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        while b"step 4" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / "killed" / "train.npz").exists()
    done = run(code, tmp_path / "killed", *flags)
    assert done.returncode == 0 and b"step 4:" not in done.stderr and b"step 12:" in done.stderr
    whole, killed = ((tmp_path / name / utils.DATA).read_bytes() for name in ("whole", "killed"))
    assert whole == killed
    assert_error(run(code, tmp_path / "killed", *flags), "killed is a model already")


@pytest.mark.parametrize(
    "name, content, flags, parts",
    [
        ("a.txt", "To be", [], ["a.txt", "9 or more"]),
        ("a.txt", "", [], ["a.txt is empty"]),
        ("a.jsonl", '{"instruction": "a", "output": "b"}\n' * 9, [], ["9 tasks", "10 or more"]),
        ("a.jsonl", '{"instruction": "a", "output": "b"}\n{"instruction": "a"}\n', [], ["line 2", "output"]),
        ("a.jsonl", '{"instruction": "a", "output": "' + "b " * 300 + '"}\n', [], ["line 1", "64", "tokens"]),
        ("a.txt", "To be " * 500, ["--method=prefix"], ["method='prefix'", "lora"]),
        ("a.txt", "To be " * 500, ["--method=last_k", "--k=3"], ["k=3", "n_layer is 2"]),
        ("a.txt", "To be " * 500, ["--learning_rate=0"], ["learning_rate=0"]),
        ("a.txt", "To be " * 500, ["--rank=0"], ["rank=0"]),
    ],
)
def test_errors(tmp_path, name, content, flags, parts):
    (tmp_path / name).write_text(content)
    assert_error(run(tmp_path / name, tmp_path / "new", *flags), *parts)
    assert not (tmp_path / "new").exists()
