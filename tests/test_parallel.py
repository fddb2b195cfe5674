"""Training on many devices, in several processes, from a corpus: the losses are always those of one device."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

from conftest import ROOT, assert_error, command
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beyond import corpus, train
from beyond.devices import sharding
from beyond.formats import checkpoint
from beyond.learn import corpora, learner, loop, optimizers, plan, sequences
import utils

HPARAMS = {"n_vocab": 320, "n_ctx": 16, "n_embd": 16, "n_head": 2, "n_layer": 2}
FLAGS = [f"--{name}={value}" for name, value in HPARAMS.items()]
FLAGS += ["--learning_rate=0.01", "--steps=60", "--eval_every=20"]
TEXT = (ROOT / "models" / "shakespeare" / "held_out.txt").read_text("utf-8")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A corpus of two documents, with fewer tokens than rows of wte."""
    folder = tmp_path_factory.mktemp("data")
    for name, part in ("a.txt", TEXT[:40000]), ("b.txt", TEXT[40000:60000]):
        (folder / name).write_text(part, "utf-8", newline="")
    corpus.main(str(folder / "a.txt"), str(folder / "b.txt"), out=str(folder / "corpus"), n_vocab=300)
    return folder / "corpus"


def words(data, folder, *flags):
    return ["-m", "beyond.train", str(data), "--model_size=new", f"--models_dir={folder}", *FLAGS, *flags]


def env(n_devices):
    return {"XLA_FLAGS": f"--xla_force_host_platform_device_count={n_devices}", "JAX_PLATFORMS": "cpu"}


def run(data, folder, *flags, devices=1):
    return command(*words(data, folder, *flags), program=None, cwd=ROOT, env=env(devices), timeout=300)


def losses(stderr):
    found = re.findall(r"step (\d+): loss ([\d.]+), held out ([\d.]+), averaged ([\d.]+)", stderr.decode())
    return {int(step): [float(loss) for loss in rest] for step, *rest in found}


def assert_same_losses(found, expected):
    assert found and set(found) <= set(expected)
    for step in found:
        np.testing.assert_allclose(found[step], expected[step], rtol=2e-3)


@pytest.fixture(scope="module")
def one(data, tmp_path_factory):
    """(folder, losses) of a run on one device."""
    folder = tmp_path_factory.mktemp("one")
    done = run(data, folder)
    assert done.returncode == 0, done.stderr.decode()
    assert re.search(
        r"[\d,]+ tokens/s, MFU \d+% of [\d.]+ TFLOP/s; \d+\.\d% of the time waiting for batches", done.stderr.decode()
    )
    return folder, losses(done.stderr)


def test_a_training_from_a_corpus(data, one):
    """The folder has the model with the lower loss on the last tenth of the corpus."""
    folder, history = one
    encoder, hparams, params = utils.load_encoder_hparams_and_params("new", str(folder))
    assert hparams["n_vocab"] == 300  # of 320 rows in the checkpoint, those without a token are cut off
    _, ids, _ = corpora.load(data)
    unseen = ids[len(ids) - len(ids) // 10 :]
    saved = learner.held_out_loss(params, unseen, 2, 16)
    assert saved == pytest.approx(min(min(row[1:]) for row in history.values()), abs=0.02)  # with 20 rows more
    assert list(history) == [20, 40, 60] and history[60][1] < history[20][1] < np.log(300)
    assert sorted(os.listdir(folder / "new")) == sorted([*utils.FILES, "loss.svg"])


@pytest.mark.parametrize("flags", [["--mesh=4x2"], ["--micro_batch_size=1", "--mesh=2x1", "--rematerialize"]])
def test_a_mesh_gives_the_losses_of_one_device(data, one, tmp_path, flags):
    done = run(data, tmp_path, *flags, devices=8)
    assert done.returncode == 0, done.stderr.decode()
    assert list(losses(done.stderr)) == [20, 40, 60]
    assert_same_losses(losses(done.stderr), one[1])


def start(data, folder, *flags):
    """Two processes with two devices each; a flag is for both, a list of flags for one of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
    shared = [flag for flag in flags if isinstance(flag, str)]
    own = [flag for flag in flags if isinstance(flag, list)] or [[], []]
    return [
        subprocess.Popen(
            [sys.executable, *words(data, folder, *shared, *own[i], address, "--n_processes=2", f"--process_id={i}")],
            cwd=ROOT,
            env={**os.environ, **env(2)},
            stdout=subprocess.PIPE,
            stderr=open(folder / f"{i}.log", "wb"),
        )
        for i in (0, 1)
    ]


def test_two_processes_and_after_a_kill_one(data, one, tmp_path):
    """Two processes, two devices each, which share a model in pairs; both are killed, and one process resumes."""
    both = start(data, tmp_path, "--mesh=2x2")
    deadline = time.time() + 250
    while not (tmp_path / "new" / "train.npz").exists():
        assert time.time() < deadline and [process.poll() for process in both] == [None, None]
        time.sleep(0.01)
    for process in both[::-1]:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    first = losses((tmp_path / "0.log").read_bytes())
    done = run(data, tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    second = losses(done.stderr)
    assert 60 in second and 20 not in second
    assert_same_losses(first | second, one[1])
    assert done.stdout.decode().startswith(f"{tmp_path}/new: held-out loss ")


def test_two_processes_to_the_end(data, one, tmp_path):
    """Process 0 prints and writes, the other does neither."""
    both = start(data, tmp_path)
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], (tmp_path / "0.log").read_text()
    assert said[0].decode().startswith(f"{tmp_path}/new: held-out loss ") and said[1] == b""
    assert_same_losses(losses((tmp_path / "0.log").read_bytes()), one[1])
    assert not losses((tmp_path / "1.log").read_bytes())
    assert sorted(os.listdir(tmp_path / "new")) == sorted([*utils.FILES, "loss.svg"])


def test_processes_with_different_flags(data, tmp_path):
    both = start(data, tmp_path, ["--seed=1"], ["--seed=2"])
    for i, process in enumerate(both):
        assert process.communicate(timeout=300)[0] == b"" and process.returncode == 1
        said = (tmp_path / f"{i}.log").read_text()  # among lines of JAX's libraries, in any order
        assert said.count("error: the processes differ in their flags") == 1 and "Traceback" not in said, said
    assert not (tmp_path / "new").exists()


def test_sequences_of_a_corpus(data):
    """Pieces of the ids or, three times in four, of the same text with BPE dropout; both may contain <|endoftext|>."""
    encoder, ids, _ = corpora.load(data)
    end = encoder.encoder["<|endoftext|>"]
    short = ids[len(ids) * 2 // 3 - 400 : len(ids) * 2 // 3 + 400]
    assert end in short
    draw = sequences.sequence_maker(encoder, short, 32, 8, 0.3)
    pieces = {tuple(short[i : i + 33].tolist()) for i in range(len(short) - 32)}
    text = encoder.decode(short.tolist())
    drawn = np.concatenate([draw(np.random.default_rng(i)) for i in range(100)]).tolist()
    assert all(encoder.decode(ids).strip("\ufffd") in text for ids in drawn)
    assert 0.19 < sum(tuple(ids) in pieces for ids in drawn) / 800 < 0.31
    assert sum(end in ids for ids in drawn if tuple(ids) not in pieces) > 10
    assert (draw(np.random.default_rng(3)) == draw(np.random.default_rng(3))).all()
    draw = sequences.sequence_maker(encoder, short, 32, 99)  # without BPE dropout
    assert {tuple(ids) for ids in draw(np.random.default_rng(0)).tolist()} <= pieces


def test_batches_are_read_ahead():
    """In a thread, one at a time: drawing does not wait for the step, nor the step for drawing."""
    made = []

    def draw(step):
        time.sleep(0.05)
        made.append(step)
        return step

    found, waits = [], []
    for step, waited in sequences.read_ahead(draw, range(6)):
        time.sleep(0.1)
        found.append(step)
        waits.append(waited)
        assert made == list(range(min(step + 2, 6)))
    assert found == list(range(6)) and waits[0] > 0.04 and max(waits[1:]) < 0.04


# --- the model as it learns ---


@pytest.fixture(scope="module")
def params():
    hparams = {**golden.CONFIGS["wide"], "n_layer": 2}
    return hparams, checkpoint.initial_params(**hparams)


def gradient(params, learning, n_head, ids):
    return jax.jit(jax.value_and_grad(lambda params: learner.lm_loss(params, ids, n_head, learning)))(params)


def test_the_layout_by_heads_changes_nothing(params):
    hparams, params = params
    n_head, ids = hparams["n_head"], np.arange(20) % hparams["n_vocab"]
    split = sharding.by_heads(params, n_head)
    assert split["blocks"][0]["attn"]["c_attn"]["w"].ndim == 4
    for a, b in zip(jax.tree.leaves(sharding.plain(split)), jax.tree.leaves(params)):
        np.testing.assert_array_equal(a, b)
    expected, grads = gradient(params, learner.model, n_head, ids)
    found, found_grads = gradient(split, learner.model, n_head, ids)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    for a, b in zip(jax.tree.leaves(sharding.plain(found_grads)), jax.tree.leaves(grads)):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)
    optimizer = optimizers.muon_and_adamw(10, 0.01, 0.1)  # for Muon it is one matrix, whatever its axes
    step = jax.jit(lambda grads, params: optimizer.update(grads, optimizer.init(params), params)[0])
    moved, expected = step(found_grads, split), step(grads, params)
    for a, b in zip(jax.tree.leaves(sharding.plain(moved)), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-5)


def test_bfloat16_and_rematerialization(params):
    """Only the products are in bfloat16, all of them; rematerialization changes nothing."""
    hparams, params = params
    n_head, ids = hparams["n_head"], np.arange(40) % hparams["n_vocab"]
    exact, grads = gradient(params, learner.model, n_head, ids)
    half, half_grads = gradient(params, learner.training_model("bfloat16", False), n_head, ids)
    again, again_grads = gradient(params, learner.training_model("float32", False, True), n_head, ids)
    assert 0 < abs(float(half) - float(exact)) < 5e-3 * float(exact)
    assert float(again) == pytest.approx(float(exact), rel=1e-6)
    for a, b, c in zip(*map(jax.tree.leaves, (grads, half_grads, again_grads))):
        assert b.dtype == jnp.float32 and np.linalg.norm(a - b) < 0.05 * np.linalg.norm(a)
        np.testing.assert_allclose(a, c, rtol=1e-4, atol=1e-6)
    text = str(
        jax.make_jaxpr(lambda p: learner.lm_loss(p, ids, n_head, learner.training_model("bfloat16", False)))(params)
    )
    products = re.findall(r":(\w+)\[[^\]]*\] = dot_general", text)
    assert len(products) == 2 * 6 + 1 and set(products) == {"bf16"}


def memory_of(hparams, n_sequences, rematerialize=False):
    """Bytes that a step takes according to XLA, without the passes that undo rematerialization on a CPU."""
    learning, n_head = learner.training_model("float32", False, rematerialize), hparams["n_head"]
    optimizer = optimizers.muon_and_adamw(100, 1e-3, 0.1)

    def loss(params, ids, key):
        return learner.lm_loss(params, ids, n_head, learning)

    update = loop.updater(loss, optimizer, 0, sharding.all_devices(), (), 0.9)
    jitted = next(cell.cell_contents for cell in update.__closure__ if hasattr(cell.cell_contents, "lower"))
    params = jax.eval_shape(
        lambda: sharding.by_heads(jax.tree.map(jnp.asarray, checkpoint.initial_params(**hparams)), n_head)
    )
    batch = jax.ShapeDtypeStruct((2, n_sequences, hparams["n_ctx"] + 1), jnp.int32)
    lowered = jitted.lower((params, jax.eval_shape(optimizer.init, params), params), batch, 1, ())
    found = lowered.compile({"xla_disable_hlo_passes": "cse,cse_barrier_expander"}).memory_analysis()
    return found.argument_size_in_bytes + found.temp_size_in_bytes


def test_the_estimate_of_memory_is_close_to_xlas():
    shape = {"n_vocab": 2000, "n_ctx": 384, "n_embd": 64, "n_head": 2, "n_layer": 2}
    for rematerialize in False, True:
        found = memory_of(shape, 6, rematerialize)
        assert sum(plan.memory(shape, 6, 1, rematerialize, 0.9)) == pytest.approx(found, rel=0.15), rematerialize


def test_the_average_of_the_weights():
    """The weights of a step lose the share 1 - ema with each later step."""
    average, steps, ema = {"w": jnp.zeros(())}, 3000, 0.99
    for step in range(steps):
        average = loop.averaged(average, {"w": jnp.float32(step >= 2000)}, step, ema)
    assert float(average["w"]) == pytest.approx(1 - ema**1000, abs=1e-4)
    assert loop.averaged(None, {"w": 1}, 0, ema) is None
    first = loop.averaged({"w": jnp.zeros(())}, {"w": jnp.float32(1)}, 0, ema)
    assert float(first["w"]) == pytest.approx(0.9)  # the start is soon forgotten


# --- --dry_run ---


def main(data, folder, **flags):
    return train.main(str(data), "new", models_dir=str(folder), **{**HPARAMS, "steps": 60, **flags})


def test_a_dry_run(tmp_path):
    shape = {"n_vocab": 50304, "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12}
    batches = {"batch_size": 512, "steps": 19073, "micro_batch_size": 16, "mesh": "8x1", "dtype": "bfloat16"}
    said = main("none", tmp_path, dry_run="H100", **shape, **batches)
    n = 50304 * 768 + 1024 * 768 + 12 * (12 * 768**2 + 13 * 768) + 2 * 768
    per_token = 6 * (n - 1024 * 768) + 12 * 12 * 768 * 1024
    hours = per_token * 19073 * 512 * 1024 / (8 * 989e12 * 0.165) / 3600
    assert said.splitlines()[0] == f"{n:,} parameters, 9,999,745,024 tokens in 19,073 steps of 524,288"
    assert "it fits" in said and f"an MFU of 16.5% {hours:.1f} hours" in said and said.count("(estimate)") == 2
    assert said in plan.__doc__.replace("\n    ", "\n")
    said = main("none", tmp_path, dry_run=True, n_embd=20000, n_layer=100)
    assert "it does not fit" in said and f"on {jax.device_count()} x cpu" in said
    minutes = main("none", tmp_path, dry_run="A100", steps=None, minutes=60.0, **shape)
    assert minutes.endswith(" 1.0 hours") and not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "flags, parts",
    [
        ({"dry_run": "H1000"}, ["dry_run='H1000'", "H100, A100, L4"]),
        ({"dry_run": [1]}, ["dry_run=[1]"]),
        ({"dtype": "float16"}, ["dtype='float16'", "bfloat16"]),
        ({"mesh": "1x999"}, ["mesh=1x999 takes 999"]),
        ({"micro_batch_size": 16}, ["batch_size=8", "multiple of 16", "micro_batch_size=16"]),
        ({"ema": 1}, ["ema=1", "0.99999"]),
        ({"n_vocab": 299}, ["n_vocab=299", "at least 300"]),
        ({"coordinator": "nowhere"}, ["coordinator='nowhere'"]),
        ({"process_id": 1}, ["process_id=1"]),
    ],
)
def test_errors(data, tmp_path, flags, parts):
    with pytest.raises(ValueError) as error:
        main(data, tmp_path, **flags)
    assert all(part in str(error.value) for part in parts), error.value
    assert not os.listdir(tmp_path)


def test_a_corpus_that_is_not_whole(tmp_path):
    (tmp_path / "half").mkdir()
    assert_error(run(tmp_path / "half", tmp_path, devices=1), "half is not a complete corpus", "beyond.corpus")
