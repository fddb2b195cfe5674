import csv
import io
import os
import re
import signal
import subprocess
import sys
import textwrap

from conftest import ROOT, assert_error, command, flat, nested
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beyond import classify, finetune
from beyond.learn import adapting
import gpt2
import gpt2_pico
import utils

HPARAMS = golden.CONFIGS["wide"]


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    return {**nested(golden.weights(HPARAMS)), "cls_head": (0.1 * rng.standard_normal((66, 4))).astype(np.float32)}


def test_the_logits_come_from_the_last_token(params):
    ids, n_head = golden.inputs(HPARAMS)[:20], HPARAMS["n_head"]
    base = {**params, "wte": np.concatenate([params["wte"], params["cls_head"].T])}  # pico projects by wte.T
    del base["cls_head"]
    expected = gpt2_pico.gpt2(ids, **base, n_head=n_head)[:, -4:]
    np.testing.assert_allclose(classify.gpt2(ids, **params, n_head=n_head), expected[-1], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(
        classify.gpt2([*ids[:9], 0, 0], **params, n_head=n_head, last=8), expected[8], rtol=1e-3, atol=1e-3
    )
    base.pop("wte")
    trained = {"blocks": params["blocks"][1:], "ln_f": params["ln_f"], "cls_head": params["cls_head"]}
    row = np.array([*ids[:9], 0, 0]), 8, 2, 3.0
    logits = expected[8].astype(np.float64)
    loss = classify.loss_of(n_head)(trained, row, None, {name: params[name] for name in params if name != "cls_head"})
    assert float(loss) == pytest.approx(
        3 * (np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[2]), rel=1e-3
    )
    assert gpt2.np is np


def test_gradients_are_finite_differences(params):
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():  # moved in JAX 0.8
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
        head, rng = params.pop("cls_head"), np.random.default_rng(0)
        trained = {**finetune.begin(params, "last_k", 1, 0, 0), "cls_head": head}
        row = jnp.array(golden.inputs(HPARAMS)[:12]), 7, 1, 0.5
        loss = jax.jit(lambda trained: classify.loss_of(HPARAMS["n_head"])(trained, row, None, params))
        gradients, leaves, structure = jax.tree.leaves(jax.grad(loss)(trained)), *jax.tree.flatten(trained)
        for i, leaf in enumerate(leaves):
            way = rng.standard_normal(leaf.shape)
            both = [
                loss(jax.tree.unflatten(structure, [*leaves[:i], leaf + h * way, *leaves[i + 1 :]]))
                for h in (1e-5, -1e-5)
            ]
            np.testing.assert_allclose((both[0] - both[1]) / 2e-5, (gradients[i] * way).sum(), rtol=1e-5, atol=1e-9)


def test_figures_by_hand():
    """Three classes: a 3 of 4 right, b 1 of 2, c never found and never right."""
    matrix = classify.confusion(list("aaaabbc"), list("aaabbaa"), list("abc"))
    assert matrix.tolist() == [[3, 1, 0], [1, 1, 0], [1, 0, 0]]
    accuracy, f1, majority = classify.scores(matrix)
    assert (accuracy, majority) == (4 / 7, 4 / 7)
    precision, recall = 3 / 5, 3 / 4
    assert f1 == pytest.approx((2 * precision * recall / (precision + recall) + 0.5 + 0) / 3)


def test_what_is_held_out_is_a_fifth_of_each_class():
    labels = ["a"] * 50 + ["b"] * 7 + ["c"] * 2
    learned, unseen = classify.hold_out(labels, np.random.default_rng(0))
    assert sorted([*learned, *unseen]) == list(range(59))
    assert [[labels[i] for i in unseen].count(name) for name in "abc"] == [10, 1, 1]


def test_of_a_long_text_the_end_counts(encoder):
    ids = encoder.encode("To be, or not to be, that is the question")
    assert classify.encode("To be, or not to be, that is the question", encoder, 5) == ids[-5:]


def test_all_classes_weigh_the_same(short_models_dir, tmp_path, monkeypatch):
    """Nine rows of one class and three of the other."""
    table, kept = tmp_path / "rows.csv", {}

    def fit(trained, loss, rows, *rest, **more):
        for seed in range(20):
            for label, weight in zip(*rows(np.random.default_rng(seed))[2:]):
                kept[int(label)] = float(weight)
        raise ValueError("far enough")

    monkeypatch.setattr(adapting, "fit", fit)
    table.write_text("text,label\n" + "".join(f"{'x' * i},{'aaab'[i % 4]}\n" for i in range(1, 13)))
    with pytest.raises(ValueError, match="far enough"):
        classify.train(str(table), str(tmp_path / "new"), "short", str(short_models_dir), k=0)
    assert kept == {0: pytest.approx(12 / 2 / 9), 1: pytest.approx(12 / 2 / 3)}


def run(*args, **kwargs):
    return command(
        "-m",
        "beyond.classify",
        *map(str, args),
        program=None,
        cwd=ROOT,
        env={"JAX_PLATFORMS": "cpu"},
        timeout=300,
        **kwargs,
    )


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """lines.csv, made as the docstring says."""
    path = tmp_path_factory.mktemp("data") / "lines.csv"
    code = textwrap.dedent(re.search(r"    import csv, pathlib\n(    .*\n)+", classify.__doc__)[0])
    exec(code.replace('"lines.csv"', repr(str(path))).replace("Path(path)", f"Path({str(ROOT)!r}, path)"), {})
    return path


FLAGS = "--model_size=shakespeare", "--steps=30", "--eval_every=15", "--batch_size=4"


@pytest.fixture(scope="module")
def kinds(lines, tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "kinds"
    return out, run("train", lines, f"--out={out}", "--k=2", *FLAGS)


def test_it_learns_to_tell_kinds_apart(kinds, lines):
    out, done = kinds
    said = done.stdout.decode().splitlines()
    assert done.returncode == 0, done.stderr.decode()
    with open(lines, newline="") as file:
        labels = [row["label"] for row in csv.DictReader(file)]
    n = {name: labels.count(name) for name in sorted(set(labels))}
    held = {name: n[name] // 5 for name in n}
    assert said[0] == f"{len(labels) - sum(held.values())} rows to learn from, {sum(held.values())} held out"
    accuracy, f1, majority = map(
        float,
        re.fullmatch(
            r"accuracy ([\d.]+), macro-F1 ([\d.]+); always predicting the largest class: ([\d.]+)", said[1]
        ).groups(),
    )
    assert majority == round(held["play"] / sum(held.values()), 3) and accuracy > majority + 0.15 and f1 > 0.5
    matrix = np.array([[int(cell) for cell in line.split()[1:]] for line in said[3:]])
    assert said[2].split() == ["true,", "predicted", *n] and matrix.sum(axis=1).tolist() == list(held.values())
    assert [round(score, 3) for score in classify.scores(matrix)] == [accuracy, f1, majority]
    picture = (out / "confusion.svg").read_text()
    assert all(f"<!-- {label} -->" in picture for label in [*n, "true", "predicted", *map(str, matrix.ravel())])


def test_what_was_frozen_did_not_move(kinds):
    _, _, base = utils.load_encoder_hparams_and_params("shakespeare", str(ROOT / "models"))
    _, _, learned = utils.load_encoder_hparams_and_params("kinds", str(kinds[0].parent))
    for (path, a), (_, b) in zip(flat(base), flat(learned)):
        assert (a != b).any() == path.startswith(("/blocks/4/", "/blocks/5/", "/ln_f")), path


def test_predictions(kinds, lines, tmp_path):
    models_dir = f"--models_dir={kinds[0].parent}"
    done = run("predict", "import numpy as np", "--model_size=kinds", models_dir)
    found = dict(line.split("\t") for line in done.stdout.decode().splitlines())
    assert set(found) == {"play", "code", "prose"} and sum(map(float, found.values())) == pytest.approx(1, abs=2e-4)
    assert list(map(float, found.values())) == sorted(map(float, found.values()), reverse=True)
    with open(lines, newline="") as file:
        rows = list(csv.reader(file))
    some = [["more", "text"], *(['x,\n"y"', row[0]] for row in rows[1::40]), ["", ""]]
    with open(tmp_path / "some.csv", "w", newline="") as file:
        csv.writer(file).writerows(some)
    done = run("predict", tmp_path / "some.csv", "--model_size=kinds", models_dir)
    found = list(csv.reader(io.StringIO(done.stdout.decode(), newline="")))
    assert [row[:2] for row in found] == some and found[0][2] == "predicted", done.stderr.decode()
    expected = [row[1] for row in rows[1::40]]
    assert sum(a == b[2] for a, b in zip(expected, found[1:])) > 0.7 * len(expected)


def test_a_killed_run_goes_on_to_the_same_weights(kinds, lines, tmp_path):
    args = [sys.executable, "-m", "beyond.classify", "train", str(lines), f"--out={tmp_path}/killed", "--k=2", *FLAGS]
    with subprocess.Popen(
        args, cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"}, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as process:
        while b"step 15" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    done = run("train", lines, f"--out={tmp_path}/killed", "--k=2", *FLAGS)
    assert done.stdout == kinds[1].stdout and b"step 15:" not in done.stderr
    assert (tmp_path / "killed" / utils.DATA).read_bytes() == (kinds[0] / utils.DATA).read_bytes()
    assert_error(run("train", lines, f"--out={tmp_path}/killed", "--k=2", *FLAGS), "killed is a model already")


@pytest.mark.parametrize(
    "content, flags, parts",
    [
        ("text,label\na,x\nb,x\n", [], ["1 class", "two or more"]),
        ("text,label\na,x\nb,\nc,y\n", [], ["line 3", "no label"]),
        ('text,label\na,x\n"b\nb"\nc,y\n', [], ["line 4", "no label"]),
        ("text,kind\na,x\n", [], ["no column 'label'", "text, kind", "label_column"]),
        ("text,label\na,x\nb,x\nc,y\n", [], ["one row of class 'y'"]),
        ("", [], ["empty"]),
        ("text,label\n", [], ["0 class"]),
        ("text,label\na,x\nb,x\nc,y\nd,y\n", ["--k=9"], ["k=9", "n_layer is 6"]),
        ("text,label\na,x\n", ["--steps=0"], ["steps=0"]),
    ],
)
def test_errors(tmp_path, content, flags, parts):
    (tmp_path / "rows.csv").write_text(content)
    assert_error(
        run("train", tmp_path / "rows.csv", f"--out={tmp_path}/new", "--model_size=shakespeare", *flags), *parts
    )
    assert not (tmp_path / "new").exists()


def test_more_errors(tmp_path):
    assert_error(run("predict", "a text", "--model_size=shakespeare"), "no cls_head.npz", "beyond.classify train")
    assert_error(run("lern", "rows.csv"), "train or predict", "lern")
    assert_error(run(), "train or predict")
