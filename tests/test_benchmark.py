import json
import shutil

from conftest import ROOT, assert_error, command
import numpy as np
import pytest

from beyond import benchmark
from beyond.bench import engines, loops, report
from beyond.formats import checkpoint

SHAPE = {"n_vocab": 1024, "n_ctx": 1024, "n_embd": 24, "n_head": 3, "n_layer": 1}
FLAGS = [f"--{name}={value}" for name, value in SHAPE.items()]


def run(*args, **kwargs):
    return command("-m", "beyond.benchmark", *args, program=None, cwd=ROOT, timeout=300, **kwargs)


def test_all_is_measured_and_written(tmp_path, monkeypatch):
    """One engine or two of each group, and one round of processes instead of three, as each takes a second to start."""
    groups = {"float32": ["PicoGPT kernels", "gpt2.py"], "8 bits": ["PicoGPT int8"], "4 bits": ["PicoGPT int4"]}
    groups["one core"] = ["PicoGPT kernels", "nobody"]
    monkeypatch.setitem(benchmark.ENGINES, "nobody", (engines.hugging_face, "no-such-package"))
    monkeypatch.setattr(report, "GROUPS", groups)
    monkeypatch.setattr(benchmark, "medians", lambda runs, n: engines.medians(runs, 1))
    text = benchmark.main(str(tmp_path / "found"), **SHAPE)
    result = json.loads((tmp_path / "found.json").read_text())
    assert text == (tmp_path / "found.md").read_text() == report.table(result) and result["hparams"] == SHAPE
    assert "Not measured: nobody: not installed." in text
    for group, names in groups.items():
        found = result["groups"][group]
        assert [*found] == names + [report.LIMIT] * (group in report.BYTES)
        for name in set(names) - {"nobody"}:
            assert min(found[name][what] for what in report.WORK) > 0
    assert result["groups"]["float32"]["gpt2.py"]["beside"].keys() == report.WORK.keys()
    names = "gpt2.py", "kernels", "int8"
    whats = [f"batch of {size}, {engine}" for size in (1, 16, 64) for engine in names]
    texts = "text that repeats", "text that does not repeat"
    whats += [f"lookahead, {text}, {engine}" for text in texts for engine in names[::2]]
    whats += [f"the command, {n} tokens, {program}" for n in (0, 40) for program in ("gpt2.py", "int8", "int4")]
    whats += ["loading the weights", "memory, gpt2.py", "memory, int8", "memory, int4"]
    assert sorted(what for what, *_ in result["more"]) == sorted(whats)
    assert "<!-- PicoGPT int4 -->" in (tmp_path / "found.svg").read_text()  # drawn as curves, the text in a comment
    benchmark.check_outputs(tmp_path / "found")  # its own files may be replaced


def test_peers_can_be_left_out():
    assert benchmark.chosen(True) == report.GROUPS
    assert benchmark.chosen(False)["8 bits"] == ["PicoGPT int8", "gpt2.py"]


def test_outputs_that_may_not_be_written_are_rejected_first(tmp_path):
    out = tmp_path / "found"
    for ending in "md", "json", "svg":
        path = tmp_path / f"found.{ending}"
        path.write_text("I ran `python -m beyond.benchmark --out found`")
        assert_error(run(f"--out={out}", *FLAGS), path.name, "another --out")
        assert path.read_text().startswith("I ran")
        path.unlink()
        path.mkdir()
        assert_error(run(f"--out={out}", *FLAGS), path.name, "a folder or a device")
        path.rmdir()
    assert_error(run(f"--out={out}/x", *FLAGS), str(out), "make the folder")
    assert not [*tmp_path.iterdir()]


def test_engines_are_measured_or_named(tmp_path, monkeypatch):
    folder = tmp_path / "random"
    shutil.copytree(ROOT / "models" / "shakespeare", folder)
    checkpoint.save_model(checkpoint.initial_params(**SHAPE), SHAPE, str(folder))
    found = benchmark.measure("JAX", str(folder))
    assert found.keys() == {"version", *report.WORK}
    monkeypatch.setitem(benchmark.ENGINES, "nobody", (engines.hugging_face, "no-such-package"))
    assert benchmark.measure("nobody", str(folder)) == "not installed"
    assert "failed: " in (why := benchmark.measure("JAX", str(tmp_path)))
    with pytest.raises(ValueError, match="failed"):
        benchmark.required(why)


@pytest.mark.parametrize("name", ["Hugging Face", "CTranslate2", "CTranslate2 int8", "llama.cpp", "llama.cpp q8_0"])
def test_peers_that_are_installed(tmp_path, name):
    """They are not in the requirements: tested where they are installed."""
    folder = tmp_path / "random"
    shutil.copytree(ROOT / "models" / "shakespeare", folder)
    hparams = {**SHAPE, "n_embd": 96}  # q8_0 needs rows of a multiple of 32
    checkpoint.save_model(checkpoint.initial_params(**hparams), hparams, str(folder))
    if (found := benchmark.measure(name, str(folder))) == "not installed":
        pytest.skip(f"{name} is not installed")
    assert found.keys() == {"version", *report.WORK}, found


def test_errors_of_the_engines_are_one_line(tmp_path):
    def of(*args):
        return command("-m", "beyond.bench.engines", *args, program=None, cwd=ROOT)

    assert_error(of("nobody", "models/shakespeare"), "name=nobody", "gpt2.py, PicoGPT kernels, ", "Hugging Face, JAX, ")
    assert_error(of("JAX", "models/shakespeare"), "models/shakespeare has n_ctx=256", "1024")
    assert_error(of("JAX", str(tmp_path)), str(tmp_path))


def test_a_ratio_is_to_the_groups_first_beside_it():
    ours, beside, peer = (dict.fromkeys(report.WORK, seconds) for seconds in (1.0, 6.0, 2.0))
    found = {
        "ours": ours,
        "peer": {**peer, "beside": beside, "version": "7"},
        "limit": {"decode 10": 0.5},
        "nobody": "?",
    }
    text = report.table({"machine": "", "date": "", "more": [], "groups": {"float32": found}})
    assert "| **float32** | | | | | | |\n| ours | 1.00 (1) |" in text and "| peer 7 | 3.00 (0) |" in text
    assert "| limit | 2.00 (2) |  |" in text and "Not measured: nobody: ?." in text


def test_the_first_engine_is_measured_before_and_after_each_other(monkeypatch):
    seconds = iter([1.0, 9.0, 3.0, "not installed", 9.0, 6.0])

    def measure(*args):
        found = next(seconds)
        return found if isinstance(found, str) else dict.fromkeys(report.WORK, found)

    monkeypatch.setattr(benchmark, "measure", measure)
    found = benchmark.measure_group(["ours", "a", "absent", "b"], "folder", None, lambda name: None)
    assert found["absent"] == "not installed" and next(seconds, None) is None
    assert {found["a"]["beside"][what] for what in report.WORK} == {2.0}
    assert {found["b"]["beside"][what] for what in report.WORK} == {4.5}
    assert found["ours"] == dict.fromkeys(report.WORK, 3.0)


def test_each_length_is_timed_after_its_prompt():
    calls = []
    found = engines.timed(lambda n: calls.append((n, "prefill")), lambda n: calls.append((n, "decode")))
    assert found.keys() == report.WORK.keys()
    lengths = [n for n, _ in calls]
    assert lengths == sorted(lengths) and set(lengths) == {10, 100, 900, 1000}
    assert [dict(reversed(calls))[n] for n in (10, 100, 900, 1000)] == ["prefill"] * 4  # the first call of each
    assert calls.count((900, "decode")) == 21 and (1000, "decode") not in calls


def test_the_rows_of_the_chapters():
    """In 2 s gpt2.py makes 100 tokens or 40; lookahead 100 in 1 s; a batch of 16 in 8 s has 640."""
    found = benchmark.chapters(
        {
            "seconds": [
                ["text that repeats", "alone", 2.0],
                ["text that repeats", "int8", 1.0],
                ["one prompt", "alone", 2.0],
                ["batch of 16", "int8", 8.0],
            ],
            "passes": [["text that repeats", "int8", 25]],
        }
    )
    assert found == [
        ("lookahead, text that repeats, int8", "2.00 times gpt2.py", "100 tokens/s, 4.0 tokens per pass"),
        ("batch of 16, int8", "4.00 times gpt2.py", "80 tokens/s"),
    ]


def test_the_limits_are_what_the_docstring_says():
    """With a bandwidth and a rate of 1, a token takes as many seconds as the weights have bytes, and so on."""
    params = checkpoint.initial_params(**SHAPE)
    found = benchmark.limits(params, 1.0, 1.0)
    blocks = 24 * (3 * 24 + 24 + 4 * 24 + 4 * 24) + (9 * 24 + 4 * 24)  # the matrices, the vectors
    assert found["decode 10"] == found["decode 900"] == 4 * (blocks + 1024 * 24 + 2 * 24)
    assert found["prefill 1000"] == 2 * 1000 * (blocks + 2 * 24)
    assert benchmark.limits(params, 1.0, 1.0, 1) == {f"decode {n}": found["decode 10"] / 4 for n in (10, 100, 900)}


def test_a_training_loop_is_measured(monkeypatch):
    shape = {"n_vocab": 64, "n_ctx": 16, "n_embd": 12, "n_head": 2, "n_layer": 1}
    monkeypatch.setattr(loops, "SHAPE", shape)
    found = json.loads(loops.main("PicoGPT, AdamW"))
    assert abs(found["loss"] - np.log(64)) < 0.1 and 0 < found["seconds"] < 1
    step = loops.picogpt(muon=True)
    losses = [step(0) for _ in range(4)]  # the same sequences each time
    assert losses[0] == pytest.approx(found["loss"], rel=1e-5) and losses == sorted(losses, reverse=True)


def test_training_loops_are_compared(monkeypatch):
    """The second loop is twice as fast as the first in two turns, and four times as fast in the third."""
    times = iter([2.0, 1.0, 4.0, 2.0, 8.0, 2.0])
    monkeypatch.setattr(loops, "LOOPS", {"first": None, "second": None, "nobody": None})
    real = loops.run_alone

    def run_alone(module, name):
        return real(module, name) if name == "nobody" else {"loss": 6.931, "seconds": next(times)}

    monkeypatch.setattr(loops, "run_alone", run_alone)
    first, second, nobody = loops.compare().splitlines()[2:]
    assert first == "| first | 512 | 1.00 | 6.93 |" and second == "| second | 1,024 | 2.00 | 6.93 |"
    assert nobody.startswith("| nobody | error: name='nobody' must be one of PicoGPT, AdamW; ")


def test_the_table_and_the_chart_show_what_was_measured():
    """tests/test_readme.py compares the table with beyond/README.md."""
    result = json.loads((ROOT / "beyond" / "benchmark.json").read_text())
    assert report.table(result) == (ROOT / "beyond" / "benchmark.md").read_text("utf-8")
    assert result["hparams"] == {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12}
    labels = (ROOT / "beyond" / "benchmark.svg").read_text()
    for group in report.BYTES:
        assert all(f"<!-- {name} -->" in labels for name in report.drawn(result["groups"][group], group))
    benchmark.check_outputs(ROOT / "beyond" / "benchmark")


@pytest.mark.parametrize(
    "flags, parts",
    [
        (["--n_ctx=512"], ["n_ctx=512", "1024"]),
        (["--n_embd=10", "--n_head=3"], ["n_embd=10", "n_head=3"]),
        (["--n_vocab=many"], ["n_vocab='many'"]),
        (["--peers=no"], ["peers='no'", "True or False"]),
        (["--train=no"], ["train='no'", "True or False"]),
    ],
)
def test_errors(flags, parts, tmp_path):
    assert_error(run(f"--out={tmp_path}/x", *flags), *parts)
