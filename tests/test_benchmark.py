import json
import shutil

from conftest import ROOT, assert_error, command
import pytest

from beyond import benchmark, checkpoint, peers

SHAPE = {"n_vocab": 1024, "n_ctx": 1024, "n_embd": 24, "n_head": 3, "n_layer": 2}


def run(*args, **kwargs):
    return command("-m", "beyond.benchmark", *args, program=None, cwd=ROOT, timeout=300, **kwargs)


def test_the_command(tmp_path):
    done = run(f"--out={tmp_path}/new/found", *[f"--{name}={value}" for name, value in SHAPE.items()], "--peers=False")
    assert done.returncode == 0, done.stderr.decode()
    result, text = json.loads((tmp_path / "new/found.json").read_text()), (tmp_path / "new/found.md").read_text()
    assert done.stdout.decode() == text + "\n" and benchmark.table(result) == text
    assert list(result["passes"]) == ["the machine's limit", "PicoGPT", "gpt2_pico.py"] and result["hparams"] == SHAPE
    assert all(found.keys() == benchmark.WORK.keys() and min(found.values()) > 0 for found in result["passes"].values())
    for what in (
        "lookahead, text that repeats",
        "lookahead, text that does not",
        "batch of 1 ",
        "batch of 16",
        "batch of 64",
        "loading",
        "the command, 0 tokens",
        "the command, 40 tokens",
        "memory",
    ):
        assert what in text
    labels = (tmp_path / "new/found.svg").read_text()  # drawn as curves, with the text in a comment
    assert "tokens a second" in labels


def test_peers_are_measured_or_named(tmp_path, monkeypatch):
    folder = tmp_path / "random"
    shutil.copytree(ROOT / "models" / "shakespeare", folder)
    checkpoint.save_model(checkpoint.initial_params(**SHAPE), SHAPE, str(folder))
    found = benchmark.measure_peer("JAX", str(folder))
    assert found.keys() == {"version", *benchmark.WORK, "decode 1000", "prefill 900"}
    monkeypatch.setitem(benchmark.PEERS, "nobody", (peers.hugging_face, "no-such-package"))
    assert benchmark.measure_peer("nobody", str(folder)) == "not installed"
    assert "failed: " in benchmark.measure_peer("JAX", str(tmp_path))


def test_what_a_user_can_mend_is_one_line(tmp_path):
    def of(*args):
        return command("-m", "beyond.peers", *args, program=None, cwd=ROOT)

    assert_error(of("nobody", "models/shakespeare"), "name=nobody", "Hugging Face, JAX, ")
    assert_error(of("JAX", "models/shakespeare"), "models/shakespeare has n_ctx=256", "1024")
    assert_error(of("JAX", str(tmp_path)), str(tmp_path))


def test_a_peers_ratio_is_to_ours_beside_it():
    ours, beside, peer = (dict.fromkeys(benchmark.WORK, seconds) for seconds in (1.0, 6.0, 2.0))
    result = {
        "machine": "",
        "date": "",
        "more": [],
        "passes": {"PicoGPT": ours, "peer": {**peer, "PicoGPT beside it": beside}},
    }
    assert "| PicoGPT | 1.00 (1) |" in benchmark.table(result) and "| peer | 3.00 (0) |" in benchmark.table(result)


def test_the_limits_are_what_the_docstring_says():
    """With a bandwidth and a rate of 1, a token takes as many seconds as the weights have bytes, and so on."""
    params = checkpoint.initial_params(**SHAPE)
    found = benchmark.limits(params, 1.0, 1.0)
    blocks = 2 * 24 * (3 * 24 + 24 + 4 * 24 + 4 * 24) + 2 * (9 * 24 + 4 * 24)  # the matrices, the vectors
    assert found["decode 10"] == found["decode 900"] == 4 * (blocks + 1024 * 24 + 2 * 24)
    assert found["prefill 1000"] == 2 * 1000 * (blocks + 2 * 24)


def test_the_readme_shows_what_was_measured():
    result = json.loads((ROOT / "beyond" / "benchmark.json").read_text())
    assert benchmark.table(result) in (ROOT / "README.md").read_text("utf-8")
    assert result["hparams"] == {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12}
    labels = (ROOT / "beyond" / "benchmark.svg").read_text()
    for name, found in result["passes"].items():
        assert (f"<!-- {name} -->" in labels) == (isinstance(found, dict) and name != "the machine's limit")


@pytest.mark.parametrize(
    "flags, parts",
    [
        (["--n_ctx=512"], ["n_ctx=512", "1024"]),
        (["--n_embd=10", "--n_head=3"], ["n_embd=10", "n_head=3"]),
        (["--n_vocab=many"], ["n_vocab='many'"]),
    ],
)
def test_errors(flags, parts, tmp_path):
    assert_error(run(f"--out={tmp_path}/x", *flags), *parts)
