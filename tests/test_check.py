"""tutorial/check.py finds every mistake that it knows, and names no other, in files written in different styles."""

import os
import re
import subprocess
import sys

from conftest import ROOT, assert_error, command
from hypothesis import given, settings
from hypothesis import strategies as st
from learners import MADE, ONE, OTHER
import numpy as np
import pytest

import gpt2
from tutorial import check, judge, mistakes
from tutorial.inputs import inputs
from utils import load_encoder_hparams_and_params

_, HPARAMS, PARAMS = load_encoder_hparams_and_params("shakespeare", "models")
SMALL = inputs()
ALL = inputs(PARAMS, HPARAMS["n_head"])
FORMS = {ONE: "one", OTHER: "other"}
WAYS = [(function, name, way) for function, names in MADE.items() for name, ways in names.items() for way in ways]


def where(function):
    return "gpt2" if function == "hidden_states" else function  # neither learner's file defines it


def put(text, function, changes):
    """A learner's file with a mistake in a function."""
    start = text.index(f"def {function}(")
    end = text.find("\ndef ", start) % (len(text) + 1)
    body = text[start:end]
    for old, new in zip(changes[::2], changes[1::2]):
        assert old in body, old
        body = body.replace(old, new)
    return text[:start] + body + text[end:]


def findings(text, cases=SMALL, **kwargs):
    namespace = {"__name__": "mine"}
    exec(compile(text, "mine.py", "exec"), namespace)
    before = dict(namespace)
    found = list(judge.check(namespace, cases, **kwargs))
    assert namespace == before
    for line in check.chinese("\n".join(one.text for one in found)).splitlines():
        assert re.search("[\u4e00-\u9fff]", line) or not line[:4].strip(), line  # unless it is code
    return found


def wrong(text, *args, **kwargs):
    return {
        one.function: one.mistakes for one in findings(text, *args, **kwargs) if one.status not in ("right", "to do")
    }


def test_the_correct_functions_agree_with_gpt2():
    for name, cases in ALL.items():
        for args, kwargs in cases:
            if name == "gpt2" and "cache" in kwargs:
                continue
            ours, others = (
                {
                    key: np.copy(x) if key == "kv" else [np.copy(y) for y in x] if key == "cache" else x
                    for key, x in kwargs.items()
                }
                for _ in range(2)
            )
            a, b = mistakes.RIGHT[name](*args, **ours), getattr(gpt2, name)(*args, **others)
            np.testing.assert_allclose(a, b, 2e-5, 2e-5 * np.abs(b).max(initial=0))


def test_every_mistake_is_made_in_at_least_two_ways():
    assert {(one.function, one.name) for one in mistakes.TABLE} == {way[:2] for way in WAYS}
    assert len(mistakes.TABLE) >= 40
    assert all(len(ways) >= 2 for names in MADE.values() for ways in names.values())
    for one in mistakes.TABLE:
        assert all(mistakes.variant((one, change)) for change in one.changes) and one.message.endswith((".", ")"))
        assert check.chinese(one.message) != one.message


@pytest.mark.parametrize(
    "text",
    [ONE, OTHER, *((ROOT / name).read_text() for name in ("gpt2.py", "gpt2_pico.py"))],
    ids=["one", "other", "gpt2", "pico"],
)
def test_correct_files_pass(text):
    found = findings(text, ALL)
    assert {one.function for one in found} >= {*judge.NAMES} and not any(one.text for one in found)
    assert {one.status for one in found} <= {"right", "to do"}
    absent = {"gelu", "linear", "ffn", "attention", "transformer_block"} if "def mlp(" in text else set()
    assert {one.function for one in found if one.status == "to do"} == absent


@pytest.mark.parametrize("function, name, way", WAYS, ids=[f"{a}-{b}-{FORMS[way[0]]}" for a, b, way in WAYS])
def test_a_mistake_is_found(function, name, way):
    text = put(way[0], where(function), way[1:])
    assert wrong(text) == {where(function): [name]}


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.data())
def test_mistakes_in_several_functions_are_each_reported_once(data):
    learner = data.draw(st.sampled_from([ONE, OTHER]))
    expected, text = {}, learner
    for function in data.draw(
        st.lists(st.sampled_from(sorted(set(MADE) - {"hidden_states"})), min_size=2, max_size=4, unique=True)
    ):
        name = data.draw(st.sampled_from(sorted(MADE[function])))
        ways = [way for way in MADE[function][name] if way[0] is learner]
        if ways:
            text, expected[function] = put(text, function, ways[0][1:]), [name]
    assert wrong(text) == expected


@pytest.mark.parametrize(
    "learner, function, names, changes",
    [
        (
            ONE,
            "layer_norm",
            ["eps outside the root", "ddof"],
            [
                "(variance + eps) ** 0.5",
                "(variance ** 0.5 + eps)",
                "np.mean((x - mean) ** 2, axis=-1, keepdims=True)",
                "np.var(x, axis=-1, ddof=1, keepdims=True)",
            ],
        ),
        (
            OTHER,
            "mha",
            ["no mask", "heads interleaved"],
            ["-1e10", "0", "y.reshape(n, 3, n_head, e // n_head)", "y.reshape(n, 3, -1, n_head).swapaxes(2, 3)"],
        ),
        (
            ONE,
            "gpt2",
            ["no wpe", "no ln_f"],
            ["tokens + positions", "tokens", 'x = layer_norm(x, ln_f["g"], ln_f["b"])', "pass"],
        ),
    ],
)
def test_two_mistakes_in_one_function(learner, function, names, changes):
    assert sorted(wrong(put(learner, function, changes))[function]) == sorted(names)


PICO = (ROOT / "gpt2_pico.py").read_text()


@pytest.mark.parametrize(
    "name, function, old, new",
    [
        ("no scale", "mha", " / k.shape[-1] ** 0.5", ""),
        ("relu", "gpt2", "0.5 * x * (1 + np.tanh", "np.maximum(x, 0) #"),
        ("no residual around ffn", "gpt2", "x = x + mlp", "x = mlp"),
        ("mask reversed", "mha", "1 - np.tri", "np.tri"),
    ],
)
def test_a_mistake_in_code_without_a_function_of_its_own(name, function, old, new):
    assert old in PICO and wrong(PICO.replace(old, new)) == {function: [name]}


@pytest.mark.parametrize(
    "name, function, text",
    [
        (
            "float64",
            "gelu",
            "def gelu(x): return 0.5 * x * (1 + np.tanh(np.array([(2 / np.pi) ** 0.5]) * (x + 0.044715 * x ** 3)))",
        ),
        (
            "modifies its arguments",
            "softmax",
            "def softmax(x):\n x -= x.max(-1, keepdims=True)\n return np.exp(x) / np.exp(x).sum(-1, keepdims=True)",
        ),
        (
            "modifies its arguments",
            "generate",
            "def generate(inputs, params, n_head, n):\n m = len(inputs)\n for _ in range(n):\n"
            "  inputs.append(int(gpt2(inputs, **params, n_head=n_head)[-1].argmax()))\n return inputs[m:]",
        ),
        ("arguments", "linear", "def linear(x, weight, bias): return x @ weight + bias"),
        ("ZeroDivisionError", "ffn", "def ffn(x, c_fc, c_proj): return 1 / 0"),
        ("SystemExit", "gelu", "def gelu(x): exit()"),
        ("unknown", "gelu", "def gelu(x): x * 2"),
        ("unknown", "gelu", "def gelu(x): return 1.0"),
        ("unknown", "softmax", "def softmax(x): return x[..., :1]"),
        ("random", "gelu", "def gelu(x): return np.random.rand(*x.shape).astype(x.dtype)"),
        (
            "factor",
            "softmax",
            "def softmax(x):\n e = np.exp(x - x.max(-1, keepdims=True))\n return 7 * e / e.sum(-1, keepdims=True)",
        ),
        ("offset", "linear", "def linear(x, w, b): return x @ w + b + np.float32(7)"),
        ("looks ahead", "mha", "def mha(x, c_attn, c_proj, n_head): return x * x.sum()"),
    ],
)
def test_mistakes_that_are_not_in_the_table(name, function, text):
    assert wrong(OTHER + text)[function] == [name]
    assert set(wrong(OTHER + text)) == {function}


def test_the_text_of_a_finding():
    (found,) = (
        one
        for one in findings(put(ONE, "layer_norm", ["(variance + eps) ** 0.5", "(variance + eps)"]))
        if one.status == "wrong"
    )
    assert (
        "square root" in found.text
        and "layer_norm(...)[0, 0] is" in found.text
        and "x = [[1.0, 2.0, 3.0, 4.0]" in found.text
    )
    (found,) = (one for one in findings(OTHER + "def gelu(x):\n    return x.nothing") if one.status == "wrong")
    assert f"Line {len(OTHER.splitlines()) + 2} raises AttributeError" in found.text
    found = findings(ONE.replace("    return x * (np", "    print('hello')\n    return x * (np"))[0]
    assert found.status == "right" and found.text == "It prints: hello"


def test_the_forms_of_attention():
    """The article's first version attends to all keys; other versions make their own mask."""
    form = ONE.replace("def attention(q, k, v, mask):", "def attention(q, k, v):").replace(
        "v[:, part], mask)", "v[:, part])"
    )
    causal = form.replace("scores + mask", "scores + np.triu(np.full((len(q), len(k)), -1e10, q.dtype), 1)")
    assert wrong(causal) == {} and wrong(form.replace("scores + mask", "scores")) == {"mha": ["no mask"]}
    assert wrong(causal.replace(" / math.sqrt(d)", "")) == {"attention": ["no scale"]}


def test_a_caller_with_other_arguments_waits():
    text = ONE.replace("def mha(x, c_attn, c_proj, n_head):", "def mha(x, c_attn, c_proj, n_head, more):").replace(
        '["c_proj"], n_head)', '["c_proj"], n_head, more=1)'
    )
    assert wrong(text) == {"mha": ["arguments"], "transformer_block": ["waits"]}


def test_functions_that_are_still_to_be_written():
    start = (ROOT / "tutorial" / "start.py").read_text()
    assert [(one.function, one.status) for one in findings(start)] == [(name, "to do") for name in judge.NAMES]
    one = put(
        start,
        "softmax",
        ["    ...\n", "    e = np.exp(x - x.max(-1, keepdims=True))\n    return e / e.sum(-1, keepdims=True)\n"],
    )
    assert [one.status for one in findings(one)].count("right") == 1
    assert [one.function for one in findings(ONE, only="mha")] == ["mha"]
    assert wrong(put(ONE, "softmax", [" / np.sum(powers, axis=-1, keepdims=True)", ""]), only="mha") == {}


# --- the command ---


def run_check(tmp_path, text, *flags):
    path = tmp_path / "mine.py"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return command("-m", "tutorial.check", str(path), *flags, program=None, cwd=ROOT)


def test_the_command(tmp_path):
    done = run_check(tmp_path, put(ONE, "softmax", ["np.exp(x - biggest)", "np.exp(x)"]))
    output = done.stdout.decode()
    assert done.returncode == 1 and done.stderr == b"" and "softmax            wrong: no maximum (line 9)" in output
    assert "\n9 right, 1 wrong, 0 still to do\n" in output
    done = run_check(tmp_path, ONE, "--only=mha")
    assert (done.returncode, done.stderr) == (0, b"") and done.stdout.decode().startswith("mha                right\n")
    assert_error(run_check(tmp_path, ONE, "--only=mhaa"), "only='mhaa'", "gelu, softmax")


def test_a_file_that_loops_exits_and_prints(tmp_path):
    text = (
        ONE + "def gelu(x):\n    while True:\n        x = x + 0\n\ndef softmax(x):\n    import os\n    os._exit(3)\n"
        "def linear(x, w, b):\n    import os\n    os.write(1, b'noise' * 100); print('noise' * 100)\n    return x @ w + b\n"
    )
    done = run_check(tmp_path, text, "--seconds=4")
    output = done.stdout.decode()
    line = len(ONE.splitlines())
    assert done.returncode == 1 and done.stderr == b"" and len(output) < 2000
    assert "wrong: timeout" in output and (f"Line {line + 2} was" in output or f"Line {line + 3} was" in output)
    assert (
        "wrong: exit" in output
        and "status 3" in output
        and "It prints: noisenoise" in output
        and "8 right, 2 wrong" in output
    )


@pytest.mark.parametrize(
    "text, parts",
    [
        ("def gelu(x:\n", ["line 1 is not valid Python", "def gelu(x:"]),
        ("def gelu(x): ...\n1 / 0\n", ["Line 2 raises ZeroDivisionError", "1 / 0"]),
        ("x = 3\n", ["defines none of gelu", "tutorial/start.py"]),
        (b"\xff\xfe\n", ["not valid Python"]),
        ("while True: pass\n", ["still running after 1 sec"]),
    ],
)
def test_a_file_that_cannot_be_checked(tmp_path, text, parts):
    assert_error(run_check(tmp_path, text, "--seconds=1"), "mine.py", *parts)


def test_no_file():
    assert_error(command("-m", "tutorial.check", "nothing.py", program=None, cwd=ROOT), "No such file", "nothing.py")


def test_watch(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def gelu(x: ...")
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "tutorial.check", str(path), "--watch"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert "line 1 is not valid Python" in process.stdout.readline() and process.stdout.readline() == "\n"
        assert "waiting for" in process.stdout.readline()
        (tmp_path / "new").write_text("def gelu(x): ...")
        os.replace(tmp_path / "new", path)
        assert process.stdout.readline() == "\n" and "gelu               still to do" in process.stdout.readline()
    finally:
        process.kill()
        process.communicate()
