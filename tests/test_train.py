import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

from conftest import ROOT, assert_error, command, flat, nested
import golden
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from beyond import tokenizer, train
from beyond.formats import checkpoint
from beyond.learn import learner, loop, losses, optimizers, sequences, state
import cli
from encoder import get_encoder
import gpt2
import gpt2_pico
import utils

HPARAMS = golden.CONFIGS["wide"]
TEXT = (ROOT / "models" / "shakespeare" / "held_out.txt").read_text("utf-8")
SIZES = {"n_vocab": 300, "n_ctx": 16, "n_embd": 16, "n_head": 2, "n_layer": 2, "eval_every": 20}
FLAGS = [f"--{name}={value}" for name, value in SIZES.items()] + ["--learning_rate=0.01"]
HISTORY = r"step (\d+): loss ([\d.]+), held out ([\d.]+)"


@pytest.fixture(scope="module")
def params():
    return nested(golden.weights(HPARAMS))


def pico_losses(params, ids, n_head):
    """-log p of ids[1:], from gpt2_pico's logits, in float64."""
    logits = gpt2_pico.gpt2(ids[:-1], **params, n_head=n_head).astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    return np.log(np.exp(logits).sum(axis=-1)) - logits[np.arange(len(ids) - 1), ids[1:]]


def test_the_loss_is_the_cross_entropy_of_the_shifted_ids(params):
    ids = golden.inputs(HPARAMS)
    expected = pico_losses(params, ids, HPARAMS["n_head"])
    np.testing.assert_allclose(learner.token_losses(params, ids, HPARAMS["n_head"]), expected, rtol=2e-4, atol=2e-4)
    assert float(learner.lm_loss(params, ids, HPARAMS["n_head"])) == pytest.approx(expected.mean(), rel=1e-5)
    assert gpt2.np is np and gpt2.transformer_block is not learner.transformer_block  # gpt2.py itself is unchanged


@pytest.mark.parametrize("module", [losses, learner.in_jax])
def test_cross_entropy_in_numpy_and_in_jax(module):
    rng = np.random.default_rng(0)
    logits = (30 * rng.standard_normal((2, 3, 50))).astype(np.float32)
    targets = rng.integers(50, size=(2, 3))
    exact = np.exp(logits.astype(np.float64))
    expected = -np.log(np.take_along_axis(exact / exact.sum(axis=-1, keepdims=True), targets[..., None], -1)[..., 0])
    found = module.cross_entropy(logits, targets)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert module.cross_entropy(np.float32([0, 200, -1000]), 2) == 1200  # 200 overflows exp, and -1000 becomes 0


def test_the_loss_is_finite_where_a_probability_is_0(params):
    certain = {**params, "wte": params["wte"] * 1000}
    assert pico_losses(certain, golden.inputs(HPARAMS), HPARAMS["n_head"]).max() > 104  # exp(-104) is 0 in float32
    assert np.isfinite(learner.lm_loss(certain, golden.inputs(HPARAMS), HPARAMS["n_head"]))


@pytest.mark.parametrize("rate", [0, 0.3])
def test_gradients_are_finite_differences(params, rate):
    """In float64, along a random direction through each parameter."""
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():  # moved in JAX 0.8
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
        ids, rng = golden.inputs(HPARAMS)[:12], np.random.default_rng(0)

        @jax.jit
        def loss(params):
            return learner.lm_loss(
                learner.dropout(params, jax.random.key(1), rate, 11), ids, HPARAMS["n_head"], learner.training_model()
            )

        gradients, leaves, structure = jax.tree.leaves(jax.grad(loss)(params)), *jax.tree.flatten(params)
        for i, leaf in enumerate(leaves):
            way = rng.standard_normal(leaf.shape)
            both = [
                loss(jax.tree.unflatten(structure, [*leaves[:i], leaf + h * way, *leaves[i + 1 :]]))
                for h in (1e-5, -1e-5)
            ]
            np.testing.assert_allclose((both[0] - both[1]) / 2e-5, (gradients[i] * way).sum(), rtol=1e-6, atol=1e-9)


def test_dropout_zeroes_a_share_and_keeps_the_mean(params):
    dropped = learner.dropout(params, jax.random.key(0), 0.2, 40)["blocks"]
    masks = np.concatenate([np.asarray(mask)[None] for block in dropped for mask in block["keep"]])
    assert masks.shape == (5, 40, HPARAMS["n_embd"]) and set(np.unique(masks)) == {0, np.float32(1.25)}
    assert np.abs((masks == 0).mean(axis=(1, 2)) - 0.2).max() < 0.04
    assert all((a != b).any() for i, a in enumerate(masks) for b in masks[:i])
    ids = golden.inputs(HPARAMS)[:20]
    plain = float(learner.lm_loss(params, ids, HPARAMS["n_head"]))
    none, some = (
        float(
            learner.lm_loss(
                learner.dropout(params, jax.random.key(0), rate, 19), ids, HPARAMS["n_head"], learner.training_model()
            )
        )
        for rate in (0, 0.2)
    )
    assert none == pytest.approx(plain, rel=1e-6) and some != pytest.approx(plain, rel=1e-3)


def test_the_first_parameters_are_gpt2s():
    made = dict(flat(checkpoint.initial_params(**{**HPARAMS, "n_layer": 8, "n_ctx": 1024})))
    for name, array in made.items():
        assert array.dtype == np.float32
        if name.endswith(("/g", "/b")):
            assert (array == name.endswith("/g")).all()
        else:
            assert (
                array.std() == pytest.approx(0.02 / (4 if "c_proj" in name else 1), rel=0.05)
                and abs(array.mean()) < 0.002
            )
    assert {name: array.shape for name, array in made.items()} == {
        name: array.shape for name, array in flat(nested(golden.weights({**HPARAMS, "n_layer": 8, "n_ctx": 1024})))
    }


@pytest.mark.parametrize("n, stride", [(49, 48), (50, 7), (144, 48), (145, 48), (200, 1), (171, 13)])
def test_each_held_out_token_is_scored_once_with_its_context(params, n, stride):
    ids, n_ctx, losses = np.arange(n) * 29 % HPARAMS["n_vocab"], HPARAMS["n_ctx"], {}
    for start in [*range(0, n - 1 - n_ctx, stride), n - 1 - n_ctx]:
        for i, loss in enumerate(pico_losses(params, ids[start : start + n_ctx + 1], HPARAMS["n_head"])):
            losses.setdefault(start + i + 1, loss)
    assert sorted(losses) == list(range(1, n))
    assert learner.held_out_loss(params, ids, HPARAMS["n_head"], stride) == pytest.approx(
        np.mean(list(losses.values())), rel=1e-5
    )


def test_sequences_are_pieces_of_the_text(tmp_path):
    """An eighth begins with a document and marks where documents end; three quarters get BPE dropout, which changes most of them."""
    tokenizer.save(tokenizer.learn(TEXT, 400), tmp_path)
    encoder = get_encoder("", str(tmp_path))
    end, n = encoder.encoder["<|endoftext|>"], {"document": 0, "other": 0, "plain": 0}
    plain = encoder.encode(TEXT)
    pieces = {tuple(plain[i : i + 33]) for i in range(len(plain) - 32)}
    draw = sequences.sequence_maker(encoder, np.array(plain), 32, 8, 0.1, by_blank_lines=True)
    for ids in np.concatenate([draw(np.random.default_rng(i)) for i in range(200)]).tolist():
        assert len(ids) == 33
        if end in ids:
            n["document"] += 1
            assert "\n\n" + encoder.decode(ids).replace("<|endoftext|>", "\n\n") in "\n\n" + TEXT + "\n\n"
        else:
            n["plain" if tuple(ids) in pieces else "other"] += 1
            assert encoder.decode(ids).strip("\ufffd") in TEXT
    assert 0.04 < n["document"] / 1600 < 0.15 and 0.58 < n["other"] / 1600 < 0.75
    assert (draw(np.random.default_rng(1)) == draw(np.random.default_rng(1))).all()
    draw = sequences.sequence_maker(encoder, np.array(plain), 32, 99)  # without BPE dropout, all come from one encoding
    assert {tuple(ids) for ids in draw(np.random.default_rng(0)).tolist()} <= pieces


# --- the loop, on a model with one number ---


def line(folder, loss=None, held_out=None, settings=None, **changes):
    """fit of w to numbers near 3: (history, [(w, length of the history) when it was saved])."""
    saved = []
    history = loop.fit(
        **{
            "params": {"w": np.float32(0)},
            "loss": loss or (lambda params, example, key: ((params["w"] - example) ** 2).mean()),
            "draw": lambda rng: np.full((8, 2), 3.0) + rng.normal(size=(8, 2)),
            "held_out": held_out or (lambda params: float((params["w"] - 3) ** 2)),
            "optimizer": lambda steps: optax.sgd(0.05),
            "save": lambda params, history: saved.append((float(params["w"]), len(history))),
            "folder": str(folder),
            "settings": {"steps": 40, "eval_every": 10, "seed": 1, **(settings or {})},
            **changes,
        }
    )
    return history, saved


def test_patience_ends_a_run(tmp_path):
    scores = iter([5.0, 2.0, 3.0, 2.5, 1.0])
    history, saved = line(tmp_path, held_out=lambda params: next(scores), settings={"eval_every": 8, "patience": 2})
    assert (
        [row[0] for row in history] == [8, 16, 24, 32]
        and [n for _, n in saved] == [1, 2]
        and os.listdir(tmp_path) == ["train.npz"]
    )


def test_the_best_weights_are_saved(tmp_path):
    scores = iter([5.0, 2.0, 3.0, 1.0])
    history, saved = line(tmp_path, held_out=lambda params: next(scores))
    assert [row[0] for row in history] == [10, 20, 30, 40] and [n for _, n in saved] == [1, 2, 4]
    assert [row[2] for row in history] == [5, 2, 3, 1] and history[-1][1] < history[0][1]
    state.finish(tmp_path)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("after", [13, 20, 35])
def test_a_run_resumes_to_the_same_weights(tmp_path, after):
    class Killed(Exception):
        pass

    def draw(rng):
        if draw.left == 0:
            raise Killed
        draw.left -= 1
        return 3 + rng.normal(size=(8, 2))

    draw.left = 10**9
    expected = line(tmp_path / "a", draw=draw)
    draw.left = after
    with pytest.raises(Killed):
        line(tmp_path / "b", draw=draw)
    draw.left = 10**9
    with pytest.raises(ValueError, match=r"b was started with different settings or files \(steps 40, now 50\)"):
        line(tmp_path / "b", draw=draw, settings={"steps": 50})
    history, saved = line(tmp_path / "b", draw=draw)
    assert history == expected[0] and saved[-1] == expected[1][-1]
    assert 10**9 - draw.left == 40 - after // 10 * 10  # only the steps since the last evaluation are repeated


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_ends_a_run_and_keeps_the_best_weights(tmp_path, bad):
    def loss(params, example, key):
        return jnp.where(params["w"] > 2.5, bad, ((params["w"] - example) ** 2).mean())

    with pytest.raises(
        ValueError, match=f"the loss is {bad} at step (1[1-9]|2[0-9]): try a lower learning_rate.*keeps the best"
    ):
        line(tmp_path, loss=loss)
    assert float(np.load(tmp_path / "train.npz")["0"]) < 2.5
    with pytest.raises(ValueError, match="the loss is inf at step 10.*nothing was saved"):
        line(tmp_path / "none", held_out=lambda params: np.inf)
    assert not (tmp_path / "none").exists()


def test_the_learning_rate_rises_at_once_and_falls_to_the_end():
    """It is never 0, not even in the first update."""
    for steps, n in (1, 0), (2, 1), (40, 2), (200, 6):
        found = [float(optimizers.schedule(steps, 0.5)(i)) for i in range(steps + 1)]
        np.testing.assert_allclose(found[: n + 1], [0.5 * (i + 1) / (n + 1) for i in range(n + 1)], rtol=1e-5)
        along = [0.5 * (0.02 + 0.98 * (1 + np.cos(np.pi * i / (steps - n))) / 2) for i in range(steps - n + 1)]
        np.testing.assert_allclose(found[n:], along, rtol=1e-4)


# --- the optimizers ---

OPTIMIZERS = {
    "AdamW": lambda: optimizers.adamw(40, 0.1),
    "Muon": lambda: optimizers.muon_and_adamw(40, 0.1, 0.3),
    "Muon without decay": lambda: optimizers.muon_and_adamw(40, 0.1, 0),
}
FIRST = 0.1 / 3  # the learning rate of the first of 40 updates, two of which are warm-up


def like_params(seed):
    rng = np.random.default_rng(seed)
    block = {"w": rng.standard_normal((6, 4)) @ np.diag([1, 0.2, 0.1, 0.05]), "b": rng.standard_normal(4)}
    return jax.tree.map(jnp.float32, {"wte": rng.standard_normal((5, 4)), "blocks": [block]})


def unit(tree):
    length = np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(tree)))
    return jax.tree.map(lambda x: x / length, tree)


def changes(name, *gradients):
    optimizer, params = OPTIMIZERS[name](), like_params(0)
    state, found = optimizer.init(params), []
    for gradient in gradients:
        change, state = optimizer.update(gradient, state, params)
        found.append(jax.tree.map(np.asarray, change))
    return found


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_gradient_longer_than_1_counts_as_1(name):
    first, second = (unit(like_params(i)) for i in (1, 2))
    huge = jax.tree.map(lambda x: 1e4 * x, first)
    for a, b in zip(*(jax.tree.leaves(changes(name, one, second)[1]) for one in (first, huge))):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name, wte, w", [("AdamW", 0.01, 0.01), ("Muon", 0, 0.3), ("Muon without decay", 0, 0)])
def test_matrices_decay_and_nothing_else(name, wte, w):
    params, (found,) = like_params(0), changes(name, jax.tree.map(jnp.zeros_like, like_params(0)))
    np.testing.assert_allclose(found["wte"], -FIRST * wte * params["wte"], rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(found["blocks"][0]["w"], -FIRST * w * params["blocks"][0]["w"], rtol=1e-4, atol=1e-8)
    assert (found["blocks"][0]["b"] == 0).all()


def test_muon_moves_the_blocks_matrices_in_all_directions_alike():
    (found,) = changes("Muon without decay", jax.tree.map(lambda x: 0.01 * x, like_params(1)))
    lengths = np.linalg.svd(found["blocks"][0]["w"], compute_uv=False)
    assert lengths.max() < 2 * lengths.min()  # of the gradient the largest is over 10 times the smallest
    assert np.sqrt((found["blocks"][0]["w"] ** 2).mean()) == pytest.approx(0.2 * FIRST, rel=0.3)
    for change in found["wte"], found["blocks"][0]["b"]:  # AdamW with Nesterov momentum: the same first step for all
        np.testing.assert_allclose(np.abs(change), FIRST * (1 + 0.9 * 0.1 / (1 - 0.9**2)), rtol=1e-3)


def test_minutes_become_steps(tmp_path, monkeypatch):
    """By a clock that moves on by a second whenever it is read, five updates take a second."""
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=map(float, itertools.count()).__next__))
    history, _ = line(tmp_path, settings={"steps": None, "minutes": 0.5})
    assert history[-1][0] == 5 * 30
    told = []
    line(tmp_path / "told", after_two=lambda *args: told.append(args))
    assert told == [(pytest.approx(1, abs=0.5), 38)]  # a second per step, and the time that it waited for its batch


# --- the command ---


def run(text, folder, *flags, devices=1, **kwargs):
    env = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    return command(
        "-m",
        "beyond.train",
        str(text),
        "--model_size=new",
        f"--models_dir={folder}",
        *FLAGS,
        *flags,
        program=None,
        cwd=ROOT,
        env=env,
        timeout=300,
        **kwargs,
    )


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT, "utf-8", newline="")
    return path


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    done = run(text, folder, "--steps=150")
    assert done.returncode == 0, done.stderr.decode()
    return folder, done


def losses(done):
    return np.array([[float(x) for x in row] for row in re.findall(HISTORY, done.stderr.decode())])


def test_training_makes_the_held_out_loss_fall(trained, text):
    folder, done = trained
    found = losses(done)
    assert found[:, 0].tolist() == [20, 40, 60, 80, 100, 120, 140, 150]
    encoder, hparams, params = utils.load_encoder_hparams_and_params("new", str(folder))
    cut = len(TEXT) * 9 // 10
    assert (folder / "new" / "held_out.txt").read_text("utf-8") == TEXT[cut:]
    ids = encoder.encode(TEXT[cut:])
    counts = np.bincount(encoder.encode(TEXT[:cut]), minlength=300) + 1
    without_context = -np.log(counts / counts.sum())[ids].mean()
    assert found[-1, 2] < without_context - 0.1 < found[0, 2]  # it has learned which tokens follow which
    n, per_token = len(ids) - 1, learner.held_out_loss(params, ids, 2, 4)
    assert done.stdout.decode() == (
        f"{folder}/new: held-out loss {per_token:.4f} nats per token, "
        f"{per_token * n / len(encoder.decode(ids[1:])):.4f} per character\n"
    )
    curve = (folder / "new" / "loss.svg").read_text()
    assert curve.count("<svg") == 1
    drawn = json.loads(curve.partition("<dc:description>")[2].partition("</dc:description>")[0])
    np.testing.assert_allclose(np.array(drawn)[:, :3], found, atol=1e-4)  # as many decimals as it printed


def test_the_folder_is_a_model_in_openais_form(trained):
    import tensorflow as tf

    folder = trained[0] / "new"
    assert sorted(os.listdir(folder)) == sorted([*utils.FILES, "held_out.txt", "loss.svg"])
    assert (
        folder / "checkpoint"
    ).read_text() == 'model_checkpoint_path: "model.ckpt"\nall_model_checkpoint_paths: "model.ckpt"\n'
    hparams = json.loads((folder / "hparams.json").read_text())
    assert hparams == {name: SIZES[name] for name in utils.HPARAMS}
    reader = tf.train.load_checkpoint(str(folder / "model.ckpt"))
    tensors = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    assert {name: array.shape for name, array in tensors.items()} == golden.shapes(**hparams)
    loaded = dict(flat(utils.load_gpt2_params_from_tf_ckpt(str(folder / "model.ckpt"), hparams)))
    np.testing.assert_equal(loaded, dict(flat(nested(tensors))))


def test_a_killed_command_resumes_to_the_same_weights(trained, text, tmp_path):
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1", "JAX_PLATFORMS": "cpu"}
    args = [
        sys.executable,
        "-m",
        "beyond.train",
        str(text),
        "--model_size=new",
        f"--models_dir={tmp_path}",
        *FLAGS,
        "--steps=150",
    ]
    with subprocess.Popen(args, cwd=ROOT, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        while b"step 40" not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(np.random.default_rng().random())  # at any point
        process.send_signal(signal.SIGKILL)
    done = run(text, tmp_path, "--steps=150")
    assert losses(done)[0, 0] > 20 and (losses(done) == losses(trained[1])[-len(losses(done)) :]).all()
    data = utils.DATA
    assert (tmp_path / "new" / data).read_bytes() == (trained[0] / "new" / data).read_bytes()
    assert_error(run(text, tmp_path, "--steps=150"), f"{tmp_path}/new is a model already")


def test_eight_devices_give_the_losses_of_one(trained, text, tmp_path):
    done = run(text, tmp_path, "--steps=150", devices=8)
    np.testing.assert_allclose(losses(done), losses(trained[1]), rtol=2e-3)
    np.testing.assert_allclose(losses(done)[:3], losses(trained[1])[:3], atol=2e-4)


@pytest.mark.parametrize(
    "content, flags, parts",
    [
        (b"", {}, ["is empty"]),
        (b"ab", {}, ["n_vocab=300"]),
        (b"caf\xe9", {}, ["not UTF-8: byte 3 is 0xe9"]),
        (TEXT[:1000].encode(), {"n_vocab": 257, "n_ctx": 100}, ["n_ctx=100 needs 101 tokens", "has 100"]),
        (None, {"n_embd": 15}, ["n_embd=15", "multiple of 2, n_head"]),
        (None, {"n_layer": 0}, ["n_layer=0", "from 1"]),
        (None, {"n_ctx": 1.5}, ["n_ctx=1.5"]),
        (None, {"dropout_rate": 1}, ["dropout_rate=1", "0 to 0.99"]),
        (None, {"learning_rate": 0}, ["learning_rate=0"]),
        (None, {"seed": -1}, ["seed=-1"]),
        (None, {"n_vocab": 256}, ["n_vocab=256", "257"]),
        (None, {"steps": None}, ["steps", "minutes"]),
        (None, {"minutes": 3}, ["steps", "minutes"]),
        (None, {"steps": 0}, ["steps=0"]),
        (None, {"model_size": "124M"}, ["124M", "OpenAI"]),
        (None, {"model_size": "a/b"}, ["a/b", "models_dir"]),
    ],
)
def test_errors(tmp_path, text, content, flags, parts):
    path = text
    if content is not None:
        path = tmp_path / "text"
        path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        train.main(
            str(path), **{"model_size": "new", "models_dir": str(tmp_path / "models"), **SIZES, "steps": 1, **flags}
        )
    assert all(part in str(error.value) for part in parts), error.value
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--left_out=0.2", r"unknown flag --left_out=0.2: did you mean --bpe_dropout\?"),  # its name until now
        ("--rematerialize=3", "rematerialize=3 must be True or False"),
    ],
)
def test_flags_that_are_refused(monkeypatch, flag, message):
    monkeypatch.setattr(sys, "argv", ["train", "text", "new", flag])
    with pytest.raises(ValueError, match=message):
        cli.parse(train.main)


def test_errors_are_one_line(text, tmp_path):
    assert_error(
        run(text, tmp_path, "--steps=5", "--batch_size=9", devices=2),
        "batch_size=9",
        "multiple of 2, the number of devices",
    )
    assert_error(run(tmp_path / "none", tmp_path, "--steps=5"), "No such file", "none")
