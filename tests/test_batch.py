"""beyond/batch.py: each text is the one that gpt2.py gives alone; files, resuming and errors."""

import json
import signal
import subprocess
import sys
import time

from conftest import MODELS, QUICK, ROOT, assert_error, command, in_process
from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from beyond import batch
import gpt2

HELD_OUT = (ROOT / "models" / "shakespeare" / "held_out.txt").read_text("utf-8")


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(QUICK), st.integers(1, 5), st.sampled_from([0, 0.7]), st.data())
def test_each_text_is_what_it_is_alone(name, batch_size, temperature, data):
    """Prompts and completions of any length up to the context's, more prompts than fit at once; some stop early."""
    params, hparams = MODELS[name]
    prompts = []
    for seed in range(data.draw(st.integers(0, 2 * batch_size + 2))):
        inputs = data.draw(st.lists(st.integers(0, hparams["n_vocab"] - 1), min_size=1, max_size=hparams["n_ctx"]))
        prompts.append((inputs, data.draw(st.integers(0, hparams["n_ctx"] - len(inputs))), seed))
    stop = data.draw(st.integers(0, 5))
    expected = [
        gpt2.generate(inputs, params, hparams["n_head"], n, temperature, seed=seed, stop=stop)
        for inputs, n, seed in prompts
    ]
    found = batch.generate(prompts, params, hparams["n_head"], temperature, stop=stop, batch_size=batch_size)
    assert list(found) == expected


def test_no_more_prompts_are_read_than_needed():
    params, hparams = MODELS["wide"]
    read = []

    def prompts():  # the first takes long, the others end at once
        for i in range(10**9):
            read.append(i)
            yield [1], 40 if i == 0 else 1, 0

    found = batch.generate(prompts(), params, hparams["n_head"], batch_size=3)
    assert len(next(found)) == 40 and len(read) <= 12
    assert [len(next(found)) for _ in range(50)] == [1] * 50 and len(read) <= 75


def test_a_step_is_one_product_per_layer(monkeypatch):
    """Each weight is read once per step, whatever the number of texts."""
    params, hparams = MODELS["wide"]
    shapes, linear = [], gpt2.linear
    monkeypatch.setattr(gpt2, "linear", lambda x, w, b: shapes.append(x.shape) or linear(x, w, b))
    list(batch.generate([([i], 3, 0) for i in range(4)], params, hparams["n_head"], batch_size=4))
    n_products = 4 * hparams["n_layer"]  # four linear layers per block
    assert [rows for rows, _ in shapes] == [4] * (3 * n_products)  # three steps


def flags_of(folder, *flags):
    return str(folder / "prompts.txt"), f"--out={folder / 'out.jsonl'}", "--model_size=shakespeare", *flags


def run(folder, *flags):
    return in_process(batch.main, *flags_of(folder, f"--models_dir={ROOT / 'models'}", *flags))


def results(folder):
    return [json.loads(line) for line in (folder / "out.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("flags", [[], ["--temperature=0.8", "--top_p=0.9", "--seed=5"]])
def test_the_command(tmp_path, flags):
    prompts = ["ROMEO:", "", "First Citizen:\\n", "To be, or not to be", "JULIET:", " näive 中 "]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts), "utf-8", newline="")
    args = flags_of(tmp_path, "--n_tokens_to_generate=12", "--batch_size=4", *flags)
    done = in_process(batch.main, *args) if flags else command("-m", "beyond.batch", *args, program=None, cwd=ROOT)
    assert done.returncode == 0 and done.stderr == b"" and done.stdout.decode() == f"{tmp_path}/out.jsonl: 6 lines\n"
    assert [record["prompt"] for record in results(tmp_path)] == prompts
    for i in 0, 1, 5:
        own = [f"--seed={5 + i}" if "seed" in flag else flag for flag in flags]
        alone = in_process(gpt2.main, prompts[i], 12, "shakespeare", str(ROOT / "models"), *own).stdout.decode()
        assert results(tmp_path)[i] == {"prompt": prompts[i], "completion": alone.removesuffix("\n")}


def test_a_bad_line_has_its_error_and_the_others_are_completed(tmp_path):
    (tmp_path / "prompts.txt").write_bytes(b"ROMEO:\r\n" + b"caf\xe9\n" + b"word " * 300 + b"\nJULIET:\n")
    done = run(tmp_path, "--n_tokens_to_generate=3")
    assert done.returncode == 0 and done.stdout.decode().endswith(": 4 lines, 2 of those written now with an error\n")
    first, second, third, fourth = results(tmp_path)
    assert first.keys() == fourth.keys() == {"prompt", "completion"} and first["prompt"] == "ROMEO:"
    assert second.keys() == {"error"} and second["error"].startswith("line 2: ") and "0xe9" in second["error"]
    assert third["prompt"] == "word " * 300 and third["error"].startswith("line 3: ") and "256" in third["error"]
    again = run(tmp_path, "--n_tokens_to_generate=3")
    assert again.stdout == done.stdout and results(tmp_path) == [first, second, third, fourth]


def test_a_killed_run_resumes_where_it_stopped(tmp_path):
    prompts = [line for line in HELD_OUT.splitlines() if line][:60]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts) + "\n", "utf-8", newline="")
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "prompts.txt").write_bytes((tmp_path / "prompts.txt").read_bytes())
    flags = "--n_tokens_to_generate=20", "--batch_size=4"
    assert run(whole, *flags).returncode == 0
    args = [sys.executable, "-m", "beyond.batch", *flags_of(tmp_path, *flags)]
    with subprocess.Popen(args, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        out, deadline = tmp_path / "out.jsonl", time.monotonic() + 60
        while not out.exists() or out.read_bytes().count(b"\n") < 10:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    with open(out, "r+b") as file:  # as if it had been killed within a line
        file.truncate(len(file.read()) - 7)
    begun = len(results_bytes := out.read_bytes().split(b"\n")) - 1
    assert 9 <= begun < 60 and results_bytes[-1]
    assert run(tmp_path, *flags).returncode == 0
    assert results(tmp_path) == results(whole) and len(results(whole)) == 60


def test_errors(tmp_path):
    assert_error(run(tmp_path), "No such file", "prompts.txt")
    (tmp_path / "prompts.txt").write_text("a\nb\n")
    for content in (
        '{"prompt": "b", "completion": ""}\n',
        "no JSON\n",
        '{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "c"}\n',
        "3\n",
    ):
        (tmp_path / "out.jsonl").write_text(content)
        assert_error(run(tmp_path), "out.jsonl already exists", "another --out")
        assert (tmp_path / "out.jsonl").read_text() == content
    (tmp_path / "out.jsonl").unlink()
    assert run(tmp_path, "--n_tokens_to_generate=2").returncode == 0
    good = (tmp_path / "out.jsonl").read_text()
    for content in good.replace('"a"', '"b"'), good + good, "3\n", good.replace("completion", "x"):
        (tmp_path / "out.jsonl").write_text(content)
        assert_error(
            run(tmp_path, "--n_tokens_to_generate=2"),
            "out.jsonl already exists",
            "line ",
            "prompts.txt",
            "another --out",
        )
        assert (tmp_path / "out.jsonl").read_text() == content
    (tmp_path / "out.jsonl").unlink()
    for flag, parts in (
        ("--batch_size=0", ["batch_size=0"]),
        ("--temperature=-1", ["temperature=-1"]),
        ("--models_dir=x/y", ["x/y"]),
    ):
        assert_error(run(tmp_path, flag), *parts)
