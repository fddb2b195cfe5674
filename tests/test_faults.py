"""Kinds of faults, each tried in every command: runs resumed with other settings, lost files, text read inconsistently,
uncaught exceptions, ids without a token, names that look like patterns."""

import contextlib
import csv
import inspect
import io
import itertools
import json
import os
from pathlib import Path
import pickle
import re
import shutil
import socket
import subprocess
import sys
import threading

from conftest import ROOT, assert_error, command, in_process
import numpy as np
import pytest

from beyond import (
    attention,
    batch,
    classify,
    complete,
    corpus,
    evaluate,
    finetune,
    gpu,
    interactive,
    preset,
    tokenizer,
    train,
)
from beyond.devices import processes
from beyond.files import reading
from beyond.formats import checkpoint
from beyond.learn import adapting, learner, loop, state
import cli
from encoder import Encoder
import gpt2
import gpt2_pico
import utils

TEXT = (ROOT / "models" / "shakespeare" / "held_out.txt").read_text("utf-8")
HPARAMS = {"n_vocab": 320, "n_ctx": 32, "n_embd": 16, "n_head": 2, "n_layer": 2}
COMMANDS = {
    "gpt2": (gpt2.main, "prompt"),
    "pico": (gpt2_pico.main, "prompt"),
    "lookahead": (preset("complete", lookahead=True), "prompt"),
    "kernels": (preset("complete", kernels=True), "prompt"),
    "complete": (complete.main, "prompt"),
    "interactive": (interactive.main, None),
    "batch": (batch.main, "prompts"),
    "gpu": (gpu.main, "prompt"),
    "evaluate": (evaluate.main, "text"),
    "attention": (attention.main, "prompt"),
    "tokenizer": (tokenizer.main, "text"),
    "corpus": (corpus.main, "out"),
    "train": (train.main, "text"),
    "finetune": (finetune.main, "data"),
    "classify train": (classify.train, "data"),
    "classify predict": (classify.predict, "text"),
}


def make_model(folder, seed=0, **changes):
    """An untrained model with its own vocabulary."""
    hparams = {**HPARAMS, **changes}
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save_model(checkpoint.initial_params(**hparams, seed=seed), hparams, str(folder))
    tokenizer.save(tokenizer.learn(TEXT, HPARAMS["n_vocab"]), folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    make_model(folder / "models" / "small")
    make_model(folder / "models" / "other", seed=1)
    return folder


@pytest.fixture
def work(made, tmp_path, monkeypatch):
    """The current folder, with models, a text, prompts, tasks and a table."""
    folder = Path(shutil.copytree(made, tmp_path / "work"))
    (folder / "text.txt").write_text(TEXT[:20000], "utf-8", newline="")
    (folder / "prompts.txt").write_text("ROMEO:\nO, my\n", "utf-8", newline="")
    (folder / "tasks.jsonl").write_text(
        "".join(json.dumps({"instruction": f"{i}?", "output": f"{i}."}) + "\n" for i in range(12))
    )
    (folder / "table.csv").write_text(
        "text,label\n" + "".join(f"{'ab'[i % 2] * (i + 1)},{'ab'[i % 2]}\n" for i in range(12))
    )
    monkeypatch.chdir(folder)
    return folder


def tree(folder):
    """{path: content} of everything below the folder; the content of a folder is None."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def run(name, *args, stdin=b""):
    """(exit status, standard output, standard error) of a command, run in this process."""
    done = in_process(COMMANDS[name][0], *args, input=stdin)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def assert_refused(found, *parts):
    status, out, err = found
    line = err.splitlines()[-1] if err else ""
    assert (
        (status, out) == (1, "") and err.count("error:") == 1 and line.startswith("error: ") and "Traceback" not in err
    ), found
    assert all(part in line for part in parts), line


LEARN = "--steps=4", "--eval_every=2", "--batch_size=2"
RUNS = {  # commands that write files, and their arguments
    "train": [
        "text.txt",
        "new",
        "--models_dir=.",
        "--n_vocab=300",
        "--n_ctx=16",
        "--n_embd=8",
        "--n_head=2",
        "--n_layer=1",
        *LEARN,
    ],
    "finetune": ["text.txt", "new", "--model_size=small", "--models_dir=models", "--method=head", *LEARN],
    "classify train": ["table.csv", "new", "--model_size=small", "--models_dir=models", "--k=0", *LEARN],
    "batch": ["prompts.txt", "new", "--n_tokens_to_generate=3", "--model_size=small", "--models_dir=models"],
    "attention": ["O, my", "--out=new", "--model_size=small", "--models_dir=models"],
    "tokenizer": ["text.txt", "new", "--n_vocab=300"],
    "corpus": ["text.txt", "--out=new", "--n_vocab=300"],
}
LEARNING = ["train", "finetune", "classify train"]


def kill_after(patch, module, name):
    """Makes a function of a module end the program, like a kill, once it has done its work."""

    def killed(*args, **kwargs):
        function(*args, **kwargs)
        raise KeyboardInterrupt

    function = getattr(module, name)
    patch.setattr(module, name, killed)


def run_killed(name, args, module=loop, after="write_state"):
    with pytest.MonkeyPatch.context() as patch:
        kill_after(patch, module, after)
        assert run(name, *args)[0] == 130


# --- A: a run resumes only with the settings and files that it began with ---


@pytest.mark.parametrize("name", ["finetune", "classify train"])
@pytest.mark.parametrize("change", ["weights", "vocabulary", "models_dir", "data", "flag", "hparams"])
def test_a_run_does_not_resume_with_another_base(work, name, change):
    args = RUNS[name]
    run_killed(name, args)
    state = tree(work / "new")
    if change == "weights":
        make_model(work / "models" / "small", seed=1)
    elif change == "vocabulary":
        merges = tokenizer.learn(TEXT[50000:], HPARAMS["n_vocab"])
        tokenizer.save(merges, work / "models" / "small")
    elif change == "hparams":
        (work / "models" / "small" / "hparams.json").write_text(json.dumps({**HPARAMS, "n_head": 4}))
    elif change == "models_dir":
        shutil.copytree(work / "models" / "other", work / "elsewhere" / "small")
        args = [arg.replace("--models_dir=models", "--models_dir=elsewhere") for arg in args]
    elif change == "data":
        with open(args[0], "a") as file:
            file.write("b,a\n")
    else:
        args = [*args, "--seed=7"]
    assert_refused(
        run(name, *args),
        "new was started with different settings or files",
        "seed 0, now 7" if change == "flag" else "now ",
    )
    assert tree(work / "new") == state


@pytest.mark.parametrize("name", LEARNING)
def test_a_run_resumes_after_its_base_is_renamed(work, name):
    """Also if it was killed after the last step, before it had saved its model."""
    args = RUNS[name]
    status, whole, _ = run(name, *args)
    assert status == 0
    expected = (work / "new" / utils.DATA).read_bytes()
    kills = [(train if name == "train" else adapting, "fit"), (checkpoint, "save_model"), (loop, "write_state")]
    for module, after in kills[: 1 if name == "train" else 3]:
        shutil.rmtree(work / "new")
        run_killed(name, args, module, after)
        assert (work / "new" / state.STATE).exists()
        found = run(name, *args)
        assert found[:2] == (0, whole) and (work / "new" / utils.DATA).read_bytes() == expected
        assert not (work / "new" / state.STATE).exists()
    shutil.move(work / "models", work / "moved")
    shutil.rmtree(work / "new")
    shutil.copytree(work / "moved", work / "models")
    run_killed(name, args)
    shutil.move(work / "models", work / "again")
    assert run(name, *[arg.replace("_dir=models", "_dir=again") for arg in args])[:2] == (0, whole)


@pytest.mark.parametrize(
    "flags",
    [
        ["--n_tokens_to_generate=4"],
        ["--temperature=1"],
        ["--temperature=1", "--top_k=3"],
        ["--seed=1"],
        ["--model_size=other"],
        ["--temperature=1", "--top_p=0.5"],
    ],
)
@pytest.mark.parametrize("tail", [b"", b'{"prompt": "O'])
def test_completions_of_other_settings_are_not_reused(work, flags, tail):
    assert run("batch", *RUNS["batch"])[:2] == (0, "new: 2 lines\n")
    with open("new", "ab") as file:
        file.write(tail)
    before = tree(work)
    assert_refused(run("batch", *RUNS["batch"], *flags), "new was started with different settings or files", "now ")
    assert tree(work) == before
    shutil.copytree("models/small", "models/renamed")
    assert run("batch", *RUNS["batch"][:-2], "--model_size=renamed", "--models_dir=models")[:2] == (0, "new: 2 lines\n")


def test_failed_lines_are_retried_once_they_are_fixed(work):
    (work / "prompts.txt").write_bytes(b"ROMEO:\n\xff\nO, my\n" + b"word " * 99 + b"\n")
    status, out, _ = run("batch", *RUNS["batch"])
    assert (status, out) == (0, "new: 4 lines, 2 of those written now with an error\n")
    first = [json.loads(line) for line in open("new", encoding="utf-8")]
    assert ["error" in record for record in first] == [False, True, False, True]
    (work / "prompts.txt").write_bytes(b"ROMEO:\nfixed\nO, my\n" + b"word " * 99 + b"\nlast\n")
    assert run("batch", *RUNS["batch"])[:2] == (0, "new: 5 lines, 1 of those written now with an error\n")
    again = [json.loads(line) for line in open("new", encoding="utf-8")]
    assert (
        [again[0], again[2], again[3]] == [first[0], first[2], first[3]]
        and again[1]["prompt"] == "fixed"
        and again[4]["prompt"] == "last"
    )
    for i in 1, 4:
        assert again[i]["completion"] + "\n" == run("gpt2", again[i]["prompt"], 3, "small", "models")[1]
    (work / "bad.txt").write_bytes(b"\xff\n\xfe\n")
    assert_refused(
        run("batch", "bad.txt", "bad.out", *RUNS["batch"][2:]), "all lines of bad.txt failed", "line 1", "0xff"
    )


def test_a_finished_adapter_is_not_overwritten(work):
    args = [*RUNS["finetune"], "--method=adapter"]
    assert run("finetune", *args)[0] == 0
    before = tree(work)
    for method in "adapter", "lora", "full":
        assert_refused(run("finetune", *args[:-1], f"--method={method}"), "new is a model already", "another name")
    assert tree(work) == before


# --- B: no command overwrites a file that it did not write ---


OBSTACLES = ["a file", "an unfinished line", "a folder", "a link", "an input", "missing folders", "a device"]


@pytest.mark.parametrize(
    "name, existing",
    [
        (name, existing)
        for name, existing in itertools.product(sorted(RUNS), OBSTACLES)
        # the input of attention is not a file, the output of train is a name in models_dir
        if (name, existing) != ("attention", "an input") and (name != "train" or existing in OBSTACLES[:4])
    ],
)
def test_an_output_replaces_only_output_of_the_same_command(work, name, existing):
    out = {"missing folders": "none/new/x", "an input": RUNS[name][0], "a device": "/dev/null"}.get(existing, "new")
    args = [out if arg == "new" else f"--out={out}" if arg == "--out=new" else arg for arg in RUNS[name]]
    if existing in ("a file", "an unfinished line"):
        (work / "new").write_text("my notes" + "\n" * (existing == "a file"))
    elif existing == "a folder":
        (work / "new").mkdir()
        (work / "new" / "hparams.json").write_text("mine")
        (work / "new" / "vocab.bpe").write_text("mine")
    elif existing == "a link":
        (work / "notes").write_text("my notes")
        (work / "new").symlink_to(work / "notes")
    before = tree(work)
    status, _, err = found = run(name, *args)
    if existing == "missing folders" and name not in ("batch", "attention"):
        assert status == 0, err  # a folder for a model is made
    else:
        assert_refused(found, Path(out).name)
        assert tree(work) == before


@pytest.mark.parametrize("name", ["attention", "batch"])
def test_a_link_is_followed(work, name):
    (work / "there").mkdir()
    (work / "new").symlink_to(work / "there" / "real")
    for _ in range(2):  # a command may replace or resume its own output
        assert run(name, *RUNS[name])[0] == 0
        assert (work / "new").is_symlink() and (work / "there" / "real").stat().st_size > 50


def test_completions_are_not_their_own_input(work):
    assert run("batch", *RUNS["batch"])[0] == 0
    before = tree(work)
    assert_refused(run("batch", "new", *RUNS["batch"][1:]), "new is also the input and would be lost")
    assert tree(work) == before


def test_a_vocabulary_is_not_replaced_by_another(work):
    assert run("tokenizer", *RUNS["tokenizer"])[0] == run("tokenizer", *RUNS["tokenizer"])[0] == 0
    before = tree(work)
    assert_refused(run("tokenizer", *RUNS["tokenizer"][:2], "--n_vocab=301"), "new", "already exists")
    assert_refused(run("tokenizer", "text.txt", "models/small", "--n_vocab=300"), "small", "already exists")
    assert tree(work) == before


def test_two_runs_cannot_write_one_output(work):
    with utils.locked("new"):
        assert_refused(run("batch", *RUNS["batch"]), "another process is writing to new")
    assert not (work / "new").exists()


@pytest.mark.parametrize("name", LEARNING)
@pytest.mark.parametrize("size", sorted(utils.SHA256))
def test_the_names_of_openais_models_are_reserved(work, name, size):
    args = [size if arg == "new" else arg for arg in RUNS[name]]
    assert_refused(run(name, *args), size, "OpenAI", "another name")
    assert not (work / size).exists()


@pytest.mark.parametrize(
    "name, args, part",
    [
        ("train", ["--n_vocab=9999"], "n_vocab=9999"),
        ("train", ["--n_ctx=4000"], "n_ctx=4000"),
        ("train", ["--n_embd=9"], "n_embd=9"),
        ("finetune", ["--model_size=none"], "unknown model_size"),
        ("finetune", ["--rank=0"], "rank=0"),
        ("finetune", ["--data=none.txt"], "No such file"),
        ("classify train", ["--label_column=x"], "no column 'x'"),
        ("classify train", ["--k=3"], "k=3"),
        ("classify train", ["--data=text.txt"], "text.txt"),
        ("batch", ["--temperature=-1"], "temperature"),
        ("batch", ["--prompts=none"], "No such file"),
        ("batch", ["--models_dir=none"], "unknown"),
        ("attention", ["--prompt=" + "word " * 99], "context is 32"),
        ("tokenizer", ["--n_vocab=99999"], "n_vocab=99999"),
    ],
)
def test_an_error_changes_no_files(work, name, args, part):
    flag = args[0].partition("=")[0][2:]
    words = RUNS[name][1:] if flag == COMMANDS[name][1] else RUNS[name]
    words = [
        f"--out={words[0]}" if flag == COMMANDS[name][1] and not words[0].startswith("--") else words[0],
        *words[1:],
    ]
    before = tree(work)
    assert_refused(run(name, *words, *args), part)
    assert tree(work) == before
    if part in ("n_vocab=9999", "rank=0", "k=3"):  # nor those of an interrupted run
        run_killed(name, RUNS[name])
        before = tree(work)
        assert_refused(run(name, *words, *args))
        assert tree(work) == before


def test_another_text_does_not_change_the_vocabulary_of_a_run(work):
    run_killed("train", RUNS["train"])
    before = tree(work)
    (work / "text.txt").write_text(TEXT[30000:50000], "utf-8", newline="")
    before["text.txt"] = (work / "text.txt").read_bytes()
    assert_refused(run("train", *RUNS["train"]), "new was started with different settings or files (text ")
    assert tree(work) == before


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", b"not an archive", "cut", "foreign"])
@pytest.mark.parametrize("name", ["finetune", "classify train"])
def test_a_damaged_or_foreign_state(work, name, damage):
    run_killed(name, RUNS[name])
    path = work / "new" / state.STATE
    if damage == "foreign":
        np.savez(path, settings="[1", steps=3)
    else:
        path.write_bytes(path.read_bytes()[:-100] if damage == "cut" else damage)
    assert_refused(run(name, *RUNS[name]), "new", "remove")


def test_saving_changes_only_its_own_files(work):
    """A folder of the user's stays beside them; the remains of an interrupted save are removed."""
    run_killed("finetune", RUNS["finetune"])
    (work / "new" / "part").mkdir()
    (work / "new" / "part" / "hparams.json").write_text("mine")
    (work / "new" / "model.ckpt.part").mkdir()
    (work / "new" / "model.ckpt.part" / "model.ckpt.data-00000-of-00001.tempstate1").write_text("half")
    assert run("finetune", *RUNS["finetune"])[0] == 0
    assert (work / "new" / "part" / "hparams.json").read_text() == "mine"
    assert sorted(os.listdir("new")) == sorted([*utils.FILES, "part"])
    assert json.loads((work / "new" / "hparams.json").read_text()) == HPARAMS


def test_a_read_only_base(work):
    for path in (work / "models" / "small").iterdir():
        path.chmod(0o444)
    for name in "finetune", "classify train":
        assert run(name, *RUNS[name])[0] == 0
        assert all(path.stat().st_mode & 0o200 for path in (work / "new").iterdir())
        shutil.rmtree("new")


def test_a_file_system_without_locks(work, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def flock(*args):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    status, out, err = run("batch", *RUNS["batch"])
    assert (status, out) == (0, "new: 2 lines\n") and "note: new cannot be locked (No locks available)" in err
    notes = io.StringIO()
    with contextlib.redirect_stderr(notes), utils.locked("models"):
        pass
    assert notes.getvalue() == "note: models cannot be locked (No locks available): write to it from one process\n"


def test_a_tilde_is_the_home_folder(work, monkeypatch):
    """Also in a flag's value, where most shells do not expand it, but never in a text."""
    monkeypatch.setenv("HOME", str(work))
    monkeypatch.chdir("/")
    model = "--model_size=small", "--models_dir=~/models"
    expected = run("gpt2", "~/prompts.txt", 3, "small", work / "models")
    assert run("gpt2", "--prompt=~/prompts.txt", "--n_tokens_to_generate=3", *model) == expected
    assert run("batch", "--prompts=~/prompts.txt", "--out=~/new", "--n_tokens_to_generate=3", *model)[0] == 0
    assert run("evaluate", "--text=~/text.txt", *model)[0] == 0
    assert run("tokenizer", "--text=~/text.txt", "--out=~/words", "--n_vocab=260")[0] == 0
    assert (work / "new").exists() and (work / "words" / "vocab.bpe").exists() and not Path("/~").exists()
    for arg in "~/x", "--prompt=~/text.txt", "--text=~/no such file", "--text=~ is a tilde", "--out", "--stop=~":
        assert cli.expand_home(arg) == arg


# --- C: all commands read text in the same way ---


def test_crlf_does_not_hide_the_documents(work):
    """Sequences contain <|endoftext|> as often as with LF, and the CRs of the text itself."""
    counts = []
    for text in TEXT, TEXT.replace("\n", "\r\n"):
        merges = tokenizer.learn(text, 400)
        encoder = Encoder(tokenizer.vocabulary(merges), merges)
        draw = train.sequence_maker(encoder, np.array(encoder.encode(text)), 64, 8, 0.1, by_blank_lines=True)
        sequences = np.concatenate([draw(np.random.default_rng(i)) for i in range(100)])
        counts.append((sequences == encoder.encoder["<|endoftext|>"]).any(axis=1).sum())
        assert any("\r" in encoder.decode(one) for one in sequences.tolist()) == ("\r" in text)
    assert min(counts) > 40 and max(counts) < 1.2 * min(counts)


BOM = "\ufeff"


@pytest.mark.parametrize(
    "form",
    [
        lambda text: text,
        lambda text: BOM + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: BOM + text.replace("\n", "\r\n"),
    ],
)
def test_line_ends_and_byte_order_marks_are_not_part_of_a_line(work, form):
    for name in "prompts.txt", "tasks.jsonl", "table.csv":
        (work / name).write_text(form((work / name).read_text()), "utf-8", newline="")
    prompts, model = (work / "prompts.txt").read_bytes(), ["--model_size=small", "--models_dir=models"]
    alone = [run("gpt2", prompt, 5, *model)[1] for prompt in ("ROMEO:", "O, my")]
    for name in "gpt2", "pico", "lookahead", "complete", "gpu":  # of one line
        assert run(name, "-", 5, *model, stdin=form("ROMEO:\n").encode())[1] == alone[0], name
    assert json.loads("[" + run("gpu", "-", 5, *model, "--lines", stdin=prompts)[1].replace("\n", ",")[:-1] + "]") == [
        one[:-1] for one in alone
    ]
    assert run("batch", "prompts.txt", "new", 5, *model)[0] == 0
    assert [json.loads(line) for line in open("new")] == [
        {"prompt": prompt, "completion": one[:-1]} for prompt, one in zip(("ROMEO:", "O, my"), alone)
    ]
    encoder = utils.load_encoder_hparams_and_params("small", "models")[0]
    plain = [{"instruction": f"{i}?", "output": f"{i}."} for i in range(12)]
    assert (
        finetune.read("tasks.jsonl", encoder, 32)[0][0].tolist()[0][:4]
        == encoder.encode(finetune.prompt_of(**{"instruction": plain[0]["instruction"]}))[:4]
    )
    header, rows, texts, labels = classify.read("table.csv", "text", "label")
    assert header == ["text", "label"] and texts[:2] == ["a", "bb"] and labels[:2] == ["a", "b"] and len(rows) == 12


@pytest.mark.parametrize("text", [BOM + "To be\r\n\r\nor not", "\r\nTo be", "To be\r", BOM])
def test_a_text_that_is_scored_or_learned_is_kept_byte_for_byte(work, text):
    data = text.encode()
    (work / "x.txt").write_bytes(data)
    assert reading.read_text("x.txt").encode() == data
    encoder, hparams, _ = utils.load_encoder_hparams_and_params("small", "models")
    for args, stdin in (["x.txt"], b""), (["-"], data):
        report = run("evaluate", *args, "--model_size=small", "--models_dir=models", stdin=stdin)[1]
        assert report.startswith(f"{len(encoder.encode(text))} tokens, {len(text.split())} words, {len(data)} bytes\n")


def test_a_dash_means_standard_input_for_every_text(work):
    data = {name: (work / name).read_bytes() for name in ("text.txt", "table.csv", "prompts.txt")}
    for name, args in RUNS.items():
        if name != "attention":
            assert run(name, *args)[0] == 0
            expected = take(work / "new")
            status, _, err = run(name, "-", *args[1:], stdin=data[args[0]])
            assert status == 0, err
            assert take(work / "new") == expected


def take(path):
    """The content of an output, which is removed, without pictures, whose ids are random."""
    if path.is_file():
        content = path.read_bytes()
        path.unlink()
        return content
    found = {name: data for name, data in tree(path).items() if not name.endswith(".svg")}
    shutil.rmtree(path)
    return found


def test_a_text_without_white_space_is_read_once():
    """In linear time: each piece is searched only once, because earlier pieces cannot end a word."""
    text = "x" * 300_000 + " y"
    pieces = list(reading.pieces(io.StringIO(text), 100))
    assert "".join(pieces) == text and len(pieces) <= 3
    with pytest.MonkeyPatch.context() as patch:
        seen = []
        match = reading.regex.match
        patch.setattr(reading.regex, "match", lambda pattern, text: seen.append(len(text)) or match(pattern, text))
        list(reading.pieces(io.StringIO(text), 100))
    assert len(text) <= sum(seen) < 2 * len(text)


# --- D: uncaught exceptions ---


@pytest.mark.parametrize(
    "table, part",
    [
        ("text,label\n" + '"' + "word " * 40000 + '",a\nb,a\nc,b\nd,b\n', None),
        ('text,label\n"a,x\nb,y\n', "a quote is not closed"),
        ('text,label\n"a"b,x\n', "a quote is not closed"),
        ("", "is empty"),
        ("\n\n", "no column 'text'"),
        ("label\na\n", "no column 'text'"),
        ("text,label\na\n", "line 2: it has no label"),
        ("text,label\na, \n", "line 2: it has no label"),
        ("text,label\n", "0 class"),
    ],
)
def test_unusual_tables(work, table, part):
    (work / "table.csv").write_text(table)
    found = run("classify train", *RUNS["classify train"])
    if part is None:
        assert found[0] == 0, found
        assert run("classify predict", "table.csv", "new", ".")[0] == 0
    else:
        assert_refused(found, "table.csv", part)


def test_a_class_is_in_its_own_column(work):
    """Rows may be shorter than the header, but not longer, as extra cells would shift the columns."""
    shutil.copytree(work / "models" / "small", work / "new")
    np.savez(work / "new" / "cls_head.npz", cls_head=np.ones((16, 2), np.float32), classes=["x", "x"])
    (work / "table.csv").write_text("text,a,b\nI\nII,1\nIII,1,2\n")
    status, out, _ = run("classify predict", "table.csv", "new", ".")
    assert (status, out) == (0, "text,a,b,predicted\nI,,,x\nII,1,,x\nIII,1,2,x\n")
    (work / "table.csv").write_text("text,label\nI,a\nyes, you,a\n")
    for name, args in ("classify predict", ["table.csv", "new", "."]), ("classify train", RUNS["classify train"]):
        shutil.rmtree("new") if name == "classify train" else None
        assert_refused(run(name, *args), "table.csv, line 3", "3 cells", "2 columns", "quotes")


def test_a_class_may_have_any_name(work):
    with open("table.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["text", "label"], *(["x" * (i + 1), ["$a^$", "_b\\frac{"][i % 2]] for i in range(12))])
    assert run("classify train", *RUNS["classify train"])[0] == 0
    assert "$a^$" in (work / "new" / "confusion.svg").read_text()


@pytest.mark.parametrize("head", [b"", b"PK\x03\x04", "cut", "foreign", "other shape"])
def test_a_damaged_or_foreign_head(work, head):
    assert run("classify train", *RUNS["classify train"])[0] == 0
    path = work / "new" / "cls_head.npz"
    if head == "foreign":
        np.savez(path, x=1)
    elif head == "other shape":
        np.savez(path, cls_head=np.zeros((3, 2)), classes=["a", "b"])
    else:
        path.write_bytes(path.read_bytes()[:-50] if head == "cut" else head)
    assert_refused(run("classify predict", "text", "new", "."), "cls_head.npz")


def test_a_vocabulary_without_an_end_of_text(work):
    path = work / "models" / "small" / "encoder.json"
    vocabulary = json.loads(path.read_text())
    del vocabulary["<|endoftext|>"]
    path.write_text(json.dumps(vocabulary))
    model = "--model_size=small", "--models_dir=models"
    for name in "gpt2", "pico", "lookahead", "gpu":
        assert run(name, "O, my", 4, *model)[0] == 0
        assert_refused(run(name, "", 4, *model), "the prompt is empty", "<|endoftext|>")
    for name in "evaluate", "finetune", "classify train", "attention", "batch":
        args = RUNS.get(name, ["text.txt", *model])
        assert run(name, *args)[0] == 0
        shutil.rmtree("new", ignore_errors=True)
        Path("new").unlink(missing_ok=True)
    assert_refused(run("finetune", "tasks.jsonl", *RUNS["finetune"][1:]), "<|endoftext|>", "lacks")
    (work / "words.jsonl").write_text('{"text": "a rose is a rose"}\n')
    assert run("evaluate", "words.jsonl", *model)[0] == 0
    (work / "words.jsonl").write_text('{"text": "rose"}\n')
    assert_refused(run("evaluate", "words.jsonl", *model), "line 1", "no text before its last word")
    encoder = utils.load_encoder_hparams_and_params("small", "models")[0]
    (work / "x.txt").write_text("To be, or not to be")
    n = len(encoder.encode("To be, or not to be"))
    assert run("evaluate", "x.txt", *model)[1].startswith(
        f"{n - 1} tokens, 6 words, {19 - len(encoder.decode(encoder.encode('To be, or')[:1]))} bytes"
    )


def test_a_vocabulary_that_lacks_a_byte(work):
    path = work / "models" / "small" / "encoder.json"
    vocabulary = json.loads(path.read_text())
    last = max(vocabulary, key=vocabulary.get)
    vocabulary[last] = vocabulary.pop("Ã")  # which has the first byte of é
    path.write_text(json.dumps(vocabulary))
    model = "--model_size=small", "--models_dir=models"
    (work / "text.txt").write_text("é" + TEXT[:20000], "utf-8")
    (work / "prompts.txt").write_text("é\nROMEO:\n", "utf-8")
    for name in "gpt2", "pico", "lookahead", "gpu", "attention":
        assert_refused(run(name, "é", *model), "no token for the bytes c3 of 'é'")
    for name in "evaluate", "finetune":
        assert_refused(run(name, "text.txt", *(RUNS.get(name, ["", *model])[1:])), "no token for the bytes c3")
    assert run("batch", *RUNS["batch"])[0] == 0
    assert "no token for the bytes c3" in json.loads(open("new", encoding="utf-8").readline())["error"]


@pytest.mark.parametrize(
    "vocabulary, merges, part",
    [
        ([], None, "JSON object"),
        ({}, None, "JSON object"),
        ({"a": "b"}, None, "JSON object"),
        ({"a": 1}, None, "the id 0 is missing"),
        ({"a": 0, "b": 0}, None, "the id 1 is missing"),
        ({"a": True}, None, "JSON object"),
        (None, "", "truncated"),
        (None, "#version: 0.2\n", "truncated"),
        (None, "#version: 0.2\na b\n", "truncated"),
        (None, "#version: 0.2\na b", "its last line has no newline"),
        (None, "#version: 0.2\na\n", "which is not a pair of tokens"),
        ({"中": 0}, None, "not in the byte alphabet"),
    ],
)
def test_invalid_vocabularies(work, vocabulary, merges, part):
    folder = work / "models" / "small"
    if vocabulary is not None:
        (folder / "encoder.json").write_text(json.dumps(vocabulary), "utf-8")
    if merges is not None:
        (folder / "vocab.bpe").write_text(merges, "utf-8")
    assert_refused(run("gpt2", "a", 2, "small", "models"), "models/small is damaged", part)


@pytest.mark.parametrize("content", ["[" * 100000, '{"a":' * 100000, "\x00", "{}", "NaN", '{"n_vocab": 1e999}'])
def test_invalid_json(work, content):
    for name in "hparams.json", "encoder.json":
        shutil.copytree(work / "models" / "small", work / "models" / name)
        (work / "models" / name / name).write_text(content)
        assert_refused(run("gpt2", "a", 2, name, "models"), name)


def test_the_smallest_steps_and_minutes(work):
    for flags in ["--steps=1"], ["--minutes=0.01"]:
        args = [arg for arg in RUNS["train"] if not arg.startswith("--steps")]
        status, out, err = run("train", *args, *flags)
        assert status == 0 and "held-out loss" in out, err
        shutil.rmtree("new")


@pytest.mark.parametrize("name", LEARNING)
def test_the_largest_seed(work, name):
    assert run(name, *RUNS[name], "--steps=1", f"--seed={2**63 - 1}")[0] == 0
    shutil.rmtree("new")
    assert_refused(run(name, *RUNS[name], f"--seed={2**63}"), "seed=9223372036854775808", "to 9223372036854775807")


def test_a_text_that_is_too_short_to_learn_from(work):
    """Most of it repeats one token, so that the training part has fewer tokens than the held-out end."""
    (work / "text.txt").write_text("a" * 2**10 + TEXT[:114], "utf-8")
    assert_refused(
        run(
            "train",
            "text.txt",
            "new",
            "--models_dir=.",
            "--n_vocab=262",
            "--n_ctx=60",
            "--n_embd=8",
            "--n_head=2",
            "--n_layer=1",
            "--steps=1",
            "--learning_rate=1",
        ),
        "needs 61 tokens",
        "has ",
    )
    encoder = Encoder({chr(i): i - 33 for i in range(33, 127)}, [])
    with pytest.raises(ValueError, match="n_ctx=9 needs 10 tokens, and the text without its last tenth has 9"):
        train.sequence_maker(encoder, np.array(encoder.encode("abcabcabc")), 9, 1, 0.1)


@pytest.mark.parametrize("temperature", ["1e-320", "5e-324", "1e-200", "1e308", "1.7976931348623157e308"])
def test_extreme_temperatures(work, temperature):
    model = "--model_size=small", "--models_dir=models"
    for name in "gpt2", "lookahead":
        status, out, err = run(name, "O, my", 9, *model, f"--temperature={temperature}", "--seed=1")
        assert status == 0 and len(err.splitlines()) == (name == "lookahead"), err  # its report
        assert (out == run("gpt2", "O, my", 9, *model)[1]) == (float(temperature) < 1)
    done = command(
        "-W", "error", "gpt2.py", "O, my", "9", "small", str(work / "models"), temperature, program=None, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, b"")
    logits = np.float32([1, 3e38, -3e38, 2.9e38])
    with np.errstate(all="raise", under="ignore"):
        assert gpt2.sample(logits, 1e-320, None, None, np.random.default_rng(0)) == 1


@pytest.mark.parametrize(
    "mesh",
    ["²x1", "1x²", "x", "0x1", "1x0", "1x9999999999", "1" * 5000 + "x1", "1x1x1", "-1x-1", "1x2", "True", "1.0x1"],
)
def test_invalid_meshes(work, mesh):
    assert_refused(run("gpu", "O, my", 2, "small", "models", f"--mesh={mesh}"), "mesh=")


@pytest.mark.parametrize(
    "flags",
    [
        ["--coordinator=bad"],
        ["--coordinator=localhost:1x"],
        ["--coordinator=localhost:0"],
        ["--coordinator=localhost:70000"],
        ["--coordinator=:1"],
        ["--n_processes=x"],
        ["--n_processes=0"],
        ["--process_id=1"],
        ["--process_id=-1"],
        ["--lines=3"],
        ["--coordinator=no.such.host.invalid:5000"],
        ["--dtype=float64"],
    ],
)
def test_processes_that_cannot_connect(work, flags):
    assert_refused(run("gpu", "O, my", 2, "small", "models", *flags), flags[-1].partition("=")[0][2:])


def test_missing_processes():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(OSError, match="no connection with the other processes"):
            processes.meet(f"127.0.0.1:{port}", 2, 0, patience=1)  # the port is taken
    with pytest.raises(
        OSError, match="no connection with process 0 at .*: Connection refused; start all 2 within 1 seconds"
    ):
        processes.meet(f"127.0.0.1:{port}", 2, 1, patience=1)
    with pytest.raises(OSError, match="no connection with the other processes at .*timed out"):
        processes.meet(f"127.0.0.1:{port}", 2, 0, patience=1)


def test_a_failed_line_does_not_stop_the_others(work):
    status, out, _ = run("gpu", "-", 3, "small", "models", "--lines", stdin=b"ROMEO:\n" + b"word " * 99 + b"\nO, my\n")
    first, second, third = map(json.loads, out.splitlines())
    assert status == 0 and isinstance(first, str) and isinstance(third, str) and "context is 32" in second["error"]
    assert_refused(run("gpu", "-", 3, "small", "models", "--lines", stdin=b"word " * 99), "all 1 lines failed")


def test_a_full_disk(work):
    """Simulated by a limit on file sizes, which has the same effect."""
    code = """
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
_, limit, name, *sys.argv[1:] = sys.argv
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), -1))
runpy.run_module(name, run_name="__main__")
"""
    for name, limit in (
        ("finetune", 2000),
        ("batch", 100),
        ("attention", 3000),
        ("tokenizer", 1000),
        ("finetune", 30000),
    ):
        done = command(
            "-c",
            code,
            str(limit),
            f"beyond.{name}",
            *RUNS[name],
            program=None,
            cwd=work,
            env={"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        )
        assert done.returncode == 1 and b"Traceback" not in done.stderr, done.stderr.decode()
        assert (
            done.stderr.decode().splitlines()[-1].startswith("error: cannot write")
            or b"File too large" in done.stderr.splitlines()[-1]
        ), done.stderr
        assert not [path for path in work.rglob("*") if "part" in path.name]
        shutil.rmtree("new", ignore_errors=True)
        Path("new").unlink(missing_ok=True)


def test_weights_that_are_not_numbers(work):
    params = checkpoint.initial_params(**HPARAMS)
    params["ln_f"]["b"][0] = np.nan
    checkpoint.save_model(params, HPARAMS, str(work / "models" / "small"))
    shutil.copytree(work / "models" / "small", work / "models" / "kinds")
    np.savez(work / "models" / "kinds" / "cls_head.npz", cls_head=np.ones((16, 2), np.float32), classes=["a", "b"])
    model = "--model_size=small", "--models_dir=models"
    for name, args in (
        ("gpt2", ["a", 3]),
        ("pico", ["a", 3]),
        ("lookahead", ["a", 3]),
        ("gpt2", ["a", 3, "--temperature=1"]),
        ("complete", ["a", 3]),
        ("kernels", ["a", 3, "--bits=8"]),
        ("gpu", ["a", 3]),
        ("batch", ["prompts.txt", "new", 3]),
        ("attention", ["a", "--out=new.html"]),
        ("evaluate", ["text.txt"]),
        ("evaluate", ["text.txt", "--tokens"]),
        ("classify predict", ["a", "--model_size=kinds", "--models_dir=models"]),
    ):
        assert_refused(run(name, *args, *(model if "kinds" not in str(args) else ())), "weights are damaged", "NaN")


@pytest.mark.parametrize("name", ["gpt2", "gpu", "finetune", "classify train"])
def test_too_little_memory(work, monkeypatch, name):
    def load(*args):
        raise MemoryError if name == "gpt2" else RuntimeError("RESOURCE_EXHAUSTED: ...")  # JAX's error

    monkeypatch.setattr(utils, "load_encoder_hparams_and_params", load)
    args = RUNS.get(name, ["a", 2, "small", "models"])
    assert_refused(run(name, *args), "out of memory: use a smaller model")


def test_a_context_of_one_token(work):
    make_model(work / "models" / "small", n_ctx=1)
    for name, args in (
        ("evaluate", ["text.txt", "--model_size=small", "--models_dir=models"]),
        ("finetune", RUNS["finetune"]),
        ("attention", [arg.replace("O, my", "O") for arg in RUNS["attention"]]),
        ("train", [arg.replace("n_ctx=16", "n_ctx=1").replace("new", "one") for arg in RUNS["train"]]),
    ):
        assert run(name, *args)[0] == 0, name
        shutil.rmtree("new", ignore_errors=True)
        Path("new").unlink(missing_ok=True)


@pytest.mark.parametrize("text", ["\n" * 3000, "word " * 600, "a"])
def test_texts_with_hardly_any_words(work, text):
    (work / "text.txt").write_text(text)
    for n_vocab in 257, 258, 300:
        found = run("train", *RUNS["train"], f"--n_vocab={n_vocab}")
        if text == "a" or n_vocab == 300:
            assert_refused(found, "text", "use a longer text")
        else:
            assert found[0] == 0, found
            shutil.rmtree("new")
    found = run("finetune", *RUNS["finetune"])
    if text == "a":
        assert_refused(found, "text.txt", "use a longer text")
    else:
        assert found[0] == 0, found


NASTY = [
    "",
    "-",
    "0",
    "-1",
    "1",
    "1.5",
    "1e3",
    "1e-320",
    "nan",
    "inf",
    "-inf",
    "None",
    "True",
    "[1]",
    "{}",
    "²",
    "9" * 25,
    "9" * 5000,
    "1e999",
    "x",
    "a/b",
    "..",
    "/",
    "\udcff",
    "é",
    "%s",
    "{0}",
    "$",
    "a" * 300,
    "*",
]
LIGHT = [
    "gpt2",
    "pico",
    "lookahead",
    "kernels",
    "complete",
    "interactive",
    "batch",
    "gpu",
    "evaluate",
    "attention",
    "tokenizer",
    "corpus",
    "classify predict",
]


def all_flags(name):
    parameters = inspect.signature(COMMANDS[name][0]).parameters.values()
    return [one.name for one in parameters if one.kind is not one.VAR_POSITIONAL]


@pytest.mark.parametrize("name", LIGHT)
def test_any_value_of_any_flag_works_or_is_refused_in_one_line(work, name):
    """A working command line, with one flag at a time set to each of many values."""
    model = {"model_size": "small", "models_dir": "models"}
    good = {
        "gpt2": {"prompt": "O, my", **model},
        "interactive": model,
        "batch": {"prompts": "prompts.txt", "out": "new", **model},
        "evaluate": {"text": "text.txt", **model},
        "attention": {"prompt": "O, my", "out": "new", **model},
        "tokenizer": {"text": "text.txt", "out": "new", "n_vocab": 300},
        "corpus": {"out": "new", "n_vocab": 300, "cores": 1},
        "classify predict": {"text": "a", "model_size": "new", "models_dir": "."},
    }
    words = good.get(name, good["gpt2"])
    if "n_tokens_to_generate" in all_flags(name):
        words["n_tokens_to_generate"] = 2
    statuses = set()
    if name == "evaluate":
        (work / "text.txt").write_text(TEXT[:300])
    if name == "classify predict":
        assert run("classify train", *RUNS["classify train"])[0] == 0
    for flag, value in itertools.product(all_flags(name), NASTY):
        if flag == "coordinator" and value == "None":
            continue
        status, out, err = found = run(
            name,
            *["text.txt"] * (name == "corpus"),
            *[f"--{one}={text}" for one, text in {**words, flag: value}.items()],
            stdin=b"O, my",
        )
        details = (flag, value, found)
        statuses.add(status)
        assert "Traceback" not in err and "Warning" not in err, details
        if status:
            assert_refused(found)
            assert 12 < len(err) < 1500, details
        if name == "batch":
            Path("new").unlink(missing_ok=True)
        if name == "corpus":
            shutil.rmtree("new", ignore_errors=True)
    assert statuses == {0, 1}


@pytest.mark.parametrize("name", LEARNING)
def test_any_value_of_a_flag_of_the_learning_chapters(work, monkeypatch, name):
    """Up to the first step: the steps take seconds and are tested elsewhere."""

    def begin(*args, **more):
        raise ValueError("it began")

    module = sys.modules[COMMANDS[name][0].__module__]
    monkeypatch.setattr(module if name == "train" else adapting, "fit", begin)
    if name == "train":
        monkeypatch.setattr(module, "held_out_loss", lambda *args: 1.0)
        monkeypatch.setattr(module, "sequence_maker", lambda *args, **more: None)
    words = [f"--{flag}={value}" for flag, value in zip(all_flags(name), RUNS[name][:2])] + RUNS[name][2:]
    began = 0
    for flag, value in itertools.product(all_flags(name), NASTY):
        if flag.startswith("n_") and value == "9" * 25 or (flag, value) == ("dry_run", "True"):
            continue
        status, _, err = found = run(name, *words, f"--{flag}={value}")
        assert status == 1 and "Traceback" not in err and "Warning" not in err, (flag, value, found)
        assert_refused(found)
        began += "it began" in err
        assert not (work / "new").exists()
    assert began > 10


# --- E: ids without a token ---


def test_an_id_without_a_token_is_never_chosen(work):
    """A model padded to a multiple of 64, with extra rows that would always win, gives the output of the unpadded one."""
    encoder, hparams, params = utils.load_encoder_hparams_and_params("small", "models")
    shutil.copytree(work / "models" / "small", work / "models" / "padded")
    rng = np.random.default_rng(0)
    wte = np.concatenate([params["wte"], 100 * rng.standard_normal((64, HPARAMS["n_embd"]), np.float32)])
    checkpoint.save_model({**params, "wte": wte}, {**HPARAMS, "n_vocab": 384}, str(work / "models" / "padded"))
    _, padded, cut = utils.load_encoder_hparams_and_params("padded", "models")
    assert padded == hparams and (cut["wte"] == params["wte"]).all()
    (work / "words.jsonl").write_text('{"text": "a rose is a rose"}\n')
    for name, args in (
        ("gpt2", ["O, my", 9]),
        ("gpt2", ["O, my", 9, "--temperature=2", "--seed=1"]),
        ("pico", ["O, my", 9]),
        ("lookahead", ["O, my", 9]),
        ("gpu", ["O, my", 9]),
        ("batch", ["prompts.txt", "new", 3]),
        ("evaluate", ["text.txt"]),
        ("evaluate", ["words.jsonl"]),
        ("attention", ["O, my", "--out=new.html"]),
        ("finetune", ["text.txt", "tuned", "--method=head", *LEARN]),
    ):
        outputs = []
        for model in "small", "padded":
            found = run(name, *args, f"--model_size={model}", "--models_dir=models")
            assert found[0] == 0, found
            (work / "new.settings").unlink(missing_ok=True)
            outputs.append((found[1], [take(path) for path in [*work.glob("new*"), *work.glob("tuned")]]))
        assert outputs[0] == outputs[1], name


# --- F: names that look like patterns ---


@pytest.mark.parametrize("folder", ["a[b]c", "a*?", "{x}", "%s", "a b", "$HOME", "~", "é", "a'b\"c", "-x"])
def test_folders_of_any_name(work, folder):
    os.rename("models", f"./{folder}")
    where = f"--models_dir=./{folder}"
    for name in LEARNING:
        args = [
            where if arg.startswith("--models_dir") else f"./{folder}/new" if arg == "new" and name != "train" else arg
            for arg in RUNS[name]
        ]
        assert run(name, *args, "--steps=1")[0] == 0, name
        assert run("gpt2", "O, my", 2, "new", where)[0] == 0
        shutil.rmtree(f"./{folder}/new")
    for name in "batch", "attention":
        args = [
            where if arg.startswith("--models_dir") else arg.replace("new", f"./{folder}/new") for arg in RUNS[name]
        ]
        assert run(name, *args)[0] == 0, name
        os.remove(f"./{folder}/new")


# --- the command line itself ---


@pytest.mark.parametrize(
    "name, args, parts",
    [
        ("gpt2", ["hi", "--temprature=1"], ["unknown flag --temprature", "did you mean --temperature?"]),
        ("gpt2", ["hi", "--n_tokens", "5"], ["did you mean --n_tokens_to_generate?"]),
        ("gpt2", ["hi", "--model", "x"], ["did you mean --model_size or --models_dir?"]),
        ("gpt2", ["hi", "-t", "1"], ["-t", "--temperature or --top_k or --top_p"]),
        ("gpt2", ["hi", "--xyz=1"], ["unknown flag --xyz=1: see --help"]),
        ("gpt2", ["hi", "--model_size"], ["--model_size needs a value"]),
        ("batch", ["prompts.txt", "--out"], ["--out needs a value"]),
        ("attention", ["hi", "--out", "--model_size=small"], ["--out needs a value"]),
        ("batch", ["prompts.txt"], ["out is missing", "--help"]),
        ("attention", ["hello", "world"], ["one argument too many: world", "quotes"]),
        ("gpt2", ["hi", "--model_size=models/small"], ["must be a name without a path", "--model_size=small"]),
    ],
)
def test_errors_suggest_what_was_probably_meant(work, name, args, parts):
    assert_refused(run(name, *args), *parts)
    assert not (work / "True").exists()


def test_closed_and_unusual_streams(work):
    def sh(redirection, *args):
        return subprocess.run(
            [
                "sh",
                "-c",
                f'exec "$@" {redirection}',
                "sh",
                sys.executable,
                str(ROOT / "gpt2.py"),
                *args,
                "--model_size=small",
                f"--models_dir={work}/models",
            ],
            capture_output=True,
            input=b"",
            cwd=work,
        )

    good = sh("", "O, my", "3")
    assert good.returncode == 0 and good.stdout
    for n, expected in ("3", (0, good.stdout)), ("-3", (1, b"")):
        done = sh("2>&-", "O, my", n)
        assert (done.returncode, done.stdout) == expected
    assert_error(sh("<&-", "-", "3"), "standard input is closed")
    code = "import os, cli; cli.run(lambda: [os.path.samestat(os.fstat(i), os.stat(os.devnull)) for i in (0, 2)])"
    line = ["sh", "-c", 'exec "$@" <&- 2>&-', "sh", sys.executable, "-c", code]  # no other file gets their numbers
    assert subprocess.run(line, capture_output=True, cwd=ROOT).stdout == b"[True, True]\n"
    done = sh("<.", "-", "3")
    assert done.returncode == 1 and done.stdout == b"" and b"Traceback" not in done.stderr


SWITCHES = [
    (name, parameter.name)
    for name, (main, _) in COMMANDS.items()
    for parameter in inspect.signature(main).parameters.values()
    if cli.is_switch(parameter)
]


@pytest.mark.parametrize("name, switch", SWITCHES)
def test_a_switch_takes_no_text(work, name, switch):
    main, first = COMMANDS[name]
    required = [f"--{one.name}=x" for one in inspect.signature(main).parameters.values() if one.default is one.empty]
    found = run(name, *[arg for arg in required if "VAR" not in arg], f"--{switch}=no")
    assert_refused(found, f"{switch}='no' must be True or False", f"--{switch}=False")


@pytest.mark.parametrize("module", ["train", "finetune", "classify", "gpu"])
def test_a_missing_package_is_named(tmp_path, module):
    (tmp_path / "jax.py").write_text("raise ModuleNotFoundError(\"No module named 'jax'\", name='jax')")
    done = command("-m", f"beyond.{module}", "--help", program=None, cwd=ROOT, env={"PYTHONPATH": str(tmp_path)})
    assert_error(done, "jax", "pip install -r beyond/requirements.txt")


@pytest.mark.parametrize(
    "module", sorted(path.stem for path in (ROOT / "beyond").glob("*.py") if "__main__" in path.read_text("utf-8"))
)
def test_a_chapter_run_by_its_path_names_its_command(module):
    assert_error(command(f"beyond/{module}.py", program=None, cwd=ROOT), f"python -m beyond.{module}")


def test_flags_without_effect_get_a_note(work):
    model = "--model_size=small", "--models_dir=models"
    for name in "gpt2", "lookahead":
        assert run(name, "a", 2, *model, "--top_k=3", "--seed=1")[2].endswith(
            "note: --top_k and --seed have no effect without a --temperature above 0\n"
        )
        assert "note" not in run(name, "a", 2, *model, "--top_k=3", "--temperature=1")[2] + run(name, "a", 2, *model)[2]


def test_an_older_python_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    assert_refused(run("gpt2", "a"), "needs Python 3.10")


def test_prompts_of_several_lines(work):
    (work / "prompts.jsonl").write_text('{"prompt": "O,\\nmy"}\n{"prompt": "\\ud83d é"}\n[1]\n', "utf-8")
    assert run("batch", "prompts.jsonl", *RUNS["batch"][1:])[:2] == (
        0,
        "new: 3 lines, 1 of those written now with an error\n",
    )
    first, second, third = (json.loads(line) for line in (work / "new").read_bytes().splitlines())
    assert first["completion"] + "\n" == run("gpt2", "O,\nmy", 3, "small", "models")[1]
    assert second["prompt"] == "\ud83d é" and " é" in (work / "new").read_text("utf-8")
    assert 'must be JSON like {"prompt": "a text"}' in third["error"]


def test_prompt_txt_has_the_form_of_its_tasks(work):
    for tasks, form in (False, finetune.prompt_of("{instruction}")), (True, finetune.PROMPT):
        (work / "tasks.jsonl").write_text(
            "".join(
                json.dumps({"instruction": f"{i}?", "output": "a", **({"input": "b"} if tasks else {})}) + "\n"
                for i in range(12)
            )
        )
        assert run("finetune", "tasks.jsonl", *RUNS["finetune"][1:])[0] == 0
        assert (work / "new" / "prompt.txt").read_text() == form + "\n"
        shutil.rmtree("new")
    (work / "tasks.json").write_text("[]")
    assert_refused(run("finetune", "tasks.json", *RUNS["finetune"][1:]), "tasks.json", ".jsonl")


def test_the_estimate_is_printed_before_the_run(work):
    _, _, err = run("finetune", *RUNS["finetune"])
    found = re.fullmatch(
        r"at most 2 more steps: about ([\d.]+) (?:seconds|minutes) on this machine, and ([\d.]+) MB of memory besides .*",
        err.splitlines()[0],
    )
    assert found and float(found[1]) >= 1 and float(found[2]) >= 1, err


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself(work, name):
    status, out, err = run(name, "--help")
    assert (status, err) == (0, "") and "As for gpt2.py" not in out and "[--FLAG=VALUE ...]" in out.splitlines()[0]
    blocks = re.split(r"\n    --|\n    (?=[A-Z]+ \.\.\.)", out)[1:]
    blocks = [block for block in blocks if "..." not in block.splitlines()[0]]
    assert [block.partition("=")[0] for block in blocks] == all_flags(name)
    assert all(len(block.splitlines()[2].strip()) > 5 for block in blocks), out


def test_threads_do_not_disturb_each_other():
    """gpt2.generate in one thread while a chapter traces its variant of the model in another."""
    params = checkpoint.initial_params(**HPARAMS)
    failed = []
    rounds = []
    ended = threading.Event()

    def generate():
        while not ended.is_set():
            rounds.append(1)
            try:
                gpt2.generate([1, 2], params, 2, 4, temperature=1, seed=0)
                attention.look([1, 2, 3], params, 2)
            except Exception as error:
                failed.append(error)

    thread = threading.Thread(target=generate)
    thread.start()
    for n in range(5, 7):
        learner.token_losses(params, np.arange(n), 2)
        classify.loss_of(2)(
            {"ln_f": params["ln_f"], "cls_head": np.zeros((16, 2))}, (np.arange(n), 2, 1, 1.0), None, params
        )
    ended.set()
    thread.join()
    assert len(rounds) > 1 and not failed and gpt2.np is np


def test_an_encoder_in_many_threads(encoder):
    """The merges are read once, whichever thread asks first."""
    for _ in range(3):
        fresh = Encoder(encoder.encoder, iter(encoder._merges))
        found = []
        threads = [threading.Thread(target=lambda: found.append(len(fresh.bpe_ranks))) for _ in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert found == [50000] * 4
    assert pickle.loads(pickle.dumps(fresh)).encode("a theorized Zxqy") == encoder.encode("a theorized Zxqy")
