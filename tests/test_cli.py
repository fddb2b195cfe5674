"""The two programs, checked by stdout, stderr and exit status: in a process where it matters, else in this one."""

import inspect
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys

from conftest import ROOT, TINY, assert_error, command, golden, in_process, nested
import numpy as np
import pytest

from beyond.formats import checkpoint
import cli
import gpt2
import gpt2_pico
import utils

fcntl, pty, termios = map(pytest.importorskip, ("fcntl", "pty", "termios"))  # these tests need a Unix

PROGRAMS = {"gpt2.py": gpt2.main, "gpt2_pico.py": gpt2_pico.main}


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory):
    """conftest's, but with shakespeare's vocabulary, which loads faster, and a different output for each prompt here."""
    hparams = {**TINY, "n_vocab": 1024}
    rng = np.random.default_rng(1)
    params = nested(
        {
            name: (name.endswith("/g") + 0.4 * rng.standard_normal(shape)).astype(np.float32)
            for name, shape in golden.shapes(**hparams).items()
        }
    )
    folder = tmp_path_factory.mktemp("models")
    (folder / "tiny").mkdir()
    checkpoint.save_folder(params, hparams, str(folder / "tiny"), "shakespeare", str(ROOT / "models"))
    return folder


def complete(models_dir, prompt, n=4, **options):
    return gpt2.main(prompt, n, "tiny", str(models_dir), **options)


def run(models_dir, *args, program="gpt2.py", **kwargs):
    return in_process(PROGRAMS[program], *args, "--model_size=tiny", f"--models_dir={models_dir}", **kwargs)


def run_alone(models_dir, *args, **kwargs):
    return command(*args, "--model_size=tiny", f"--models_dir={models_dir}", **kwargs)


def assert_prints(done, text):
    assert (done.returncode, done.stderr.decode(), done.stdout.decode()) == (0, "", text + "\n")


PROMPTS = ["1984", "1e3", "[1,2]", "None", "'quoted'", '"double"', "True", "{'a': 1}", "a=b", " two  spaces ", "a\nb",
           "日本", "#", "0x10", "1_000", "hello()", "<|endoftext|>", ""]  # fmt: skip
DASHES = ["- item", "--", "-x", "--help me"]


def test_the_test_prompts_can_be_told_apart(models_dir):
    prompts = {*PROMPTS, *DASHES, "Hello", "Two\nlines", "caf", "café", "caf\udce9"}
    assert len({complete(models_dir, prompt) for prompt in prompts}) == len(prompts)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_stays_as_typed(models_dir, program, prompt):
    assert_prints(run(models_dir, prompt, "4", program=program), complete(models_dir, prompt))


@pytest.mark.parametrize("prompt", [*DASHES, "1984", ""])
def test_a_prompt_as_a_flag(models_dir, prompt):
    assert_prints(run(models_dir, f"--prompt={prompt}", "--n_tokens_to_generate=4"), complete(models_dir, prompt))


@pytest.mark.parametrize("program", PROGRAMS)
def test_bytes_that_are_not_utf8_reach_the_model(models_dir, program):
    expected = complete(models_dir, "caf\udce9")
    assert_prints(command(b"caf\xe9", "4", "tiny", str(models_dir), program=program), expected)
    assert_prints(run_alone(models_dir, "-", "4", input=b"caf\xe9", program=program), expected)


@pytest.mark.parametrize("program", PROGRAMS)
def test_standard_input(models_dir, program):
    expected = complete(models_dir, "Two\nlines")
    for args in (["-", "4"], ["--n_tokens_to_generate=4"], ["--prompt=-", "--n_tokens_to_generate", "4"]):
        for text in b"Two\nlines", b"Two\nlines\n", b"Two\nlines\r\n":
            assert_prints(run(models_dir, *args, input=text, program=program), expected)


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_prompt_at_a_terminal(models_dir, program):
    ours, theirs = pty.openpty()
    done = run_alone(models_dir, program=program, stdin=theirs, input=None)
    assert_error(done, "no prompt: give a text in quotes")


def test_no_tokens_and_every_option(models_dir):
    assert_prints(run(models_dir, "Hello", "0"), "")
    options = {"temperature": 1.5, "top_k": 50, "top_p": 0.9, "seed": 3}
    expected = complete(models_dir, "Hello", 20, **options)
    others = complete(models_dir, "Hello", 20, **{**options, "seed": 4}), complete(models_dir, "Hello", 20)
    assert len({expected, *others}) == 3
    flags = [f"--{name}={value}" for name, value in options.items()]
    assert_prints(run(models_dir, "Hello", "20", *flags), expected)
    assert_prints(run_alone(models_dir, "Hello", "20", *flags), expected)
    assert_prints(in_process(gpt2.main, "Hello", "20", "tiny", models_dir, "1.5", "50", "0.9", "3"), expected)


def test_the_end_of_text_is_not_printed(own_models_dir, monkeypatch):
    """Renames the third generated token to <|endoftext|>: both programs stop before it."""
    import json

    encoder, hparams, params = utils.load_encoder_hparams_and_params("tiny", str(own_models_dir))
    ids = gpt2.generate(encoder.encode("Hello"), params, hparams["n_head"], 20)
    third = next(i for i, id in enumerate(ids) if id not in ids[:i] and i >= 2)
    vocabulary = {token: id for token, id in encoder.encoder.items() if id not in (ids[third], 1023)}
    (own_models_dir / "tiny" / "encoder.json").write_text(json.dumps({**vocabulary, "<|endoftext|>": ids[third]}))
    for program in PROGRAMS:
        assert_prints(run(own_models_dir, "Hello", "20", program=program), encoder.decode(ids[:third]))


@pytest.mark.parametrize("program", PROGRAMS)
def test_from_any_directory(models_dir, tmp_path, program):
    expected = complete(models_dir, "Hello")
    assert_prints(
        command("Hello", "4", "tiny", "m", program=program, cwd=shutil.copytree(models_dir, tmp_path / "m").parent),
        expected,
    )
    assert_prints(run_alone(models_dir, "Hello", "4", cwd="/", program=program), expected)


@pytest.mark.parametrize(
    "args, parts",
    [
        (["a", "-1"], ["n_tokens_to_generate=-1", "an integer of at least 0"]),
        (["a", "1.5"], ["n_tokens_to_generate=1.5", "an integer of at least 0"]),
        (["a", "1e3"], ["n_tokens_to_generate=1000.0"]),
        (["a", "many"], ["n_tokens_to_generate='many'"]),
        (["Alan", "Turing"], ["n_tokens_to_generate='Turing'", "quotes"]),
        (["a", "None"], ["n_tokens_to_generate=None"]),
        (["a", "--temperature=-0.1"], ["temperature=-0.1", "of at least 0"]),
        (["a", "--temperature=nan"], ["temperature='nan'"]),
        (["a", "--temperature=inf"], ["temperature='inf'"]),
        (["a", "--temperature=1e999"], ["temperature=inf"]),
        (["a", "--top_k=0"], ["top_k=0", "of at least 1"]),
        (["a", "--top_k=2.5"], ["top_k=2.5"]),
        (["a", "--top_p=1.01"], ["top_p=1.01", "from 0 to 1"]),
        (["a", "--top_p=nan"], ["top_p='nan'"]),
        (["a", "--seed=-3"], ["seed=-3", "of at least 0"]),
        (["a", "--seed"], ["seed=True"]),
        (["a", "--tokens=3"], ["--tokens=3", "--help"]),
        (["a", "--verbose"], ["--verbose", "--help"]),
        (["-x"], ["-x", "--help"]),
        (["a", "65"], ["1 tokens", "65 make 66", "context is 64", "at most 63"]),
        (["word " * 70, "3"], ["context is 64", "shorten the prompt by at least"]),
    ],
)
def test_options_out_of_range(models_dir, args, parts):
    assert_error(run(models_dir, *args), *parts)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    "args, parts",
    [
        (["a", "9", "125M"], ["'125M'", "124M, 355M, 774M, 1558M"]),
        (["a", "9", "../tiny"], ["'../tiny'", "models_dir"]),
        (["a", "9", ""], ["model_size=''"]),
        (["a", "65", "tiny"], ["at most 63"]),
        (["a", "x", "tiny"], ["n_tokens_to_generate='x'"]),
    ],
)
def test_errors_of_both_programs(models_dir, program, args, parts):
    assert_error(in_process(PROGRAMS[program], *args, f"--models_dir={models_dir}"), *parts)


def test_no_network(tmp_path):
    done = command("a", f"--models_dir={tmp_path}/new")
    assert_error(done, "cannot fetch http://127.0.0.1:9/124M/checkpoint", "check the network", "GPT2_MODELS_URL")


@pytest.mark.parametrize(
    "damage, parts",
    [
        (lambda folder: (folder / "vocab.bpe").unlink(), ["lacks vocab.bpe"]),
        (lambda folder: os.truncate(folder / utils.DATA, 5000), ["damaged", "5,000 bytes"]),
        (lambda folder: (folder / "encoder.json").write_text("{"), ["damaged"]),
        (lambda folder: (folder / "hparams.json").write_bytes(b"\xff"), ["damaged"]),
        (lambda folder: (folder / "hparams.json").write_text("[1]"), ["must contain n_vocab"]),
        (lambda folder: os.truncate(folder / "model.ckpt.index", 99), ["index is damaged"]),
        (lambda folder: (shutil.rmtree(folder), folder.write_text("a file")), ["unknown model_size='tiny'"]),
        (lambda folder: ((folder / "vocab.bpe").unlink(), (folder / "vocab.bpe").mkdir()), ["lacks vocab.bpe"]),
    ],
)
def test_damaged_models(own_models_dir, damage, parts):
    damage(own_models_dir / "tiny")
    assert_error(run(own_models_dir, "a"), *parts)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_read_permission(own_models_dir):
    (own_models_dir / "tiny" / "encoder.json").chmod(0)
    assert_error(run(own_models_dir, "a"), "Permission denied", "encoder.json")


def test_models_dir_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    assert_error(in_process(gpt2.main, "a", f"--models_dir={tmp_path}/file"), "Not a directory", "file")


@pytest.mark.parametrize("program", PROGRAMS)
def test_help(program):
    done = command("--help", program=program)
    assert done.returncode == 0 and done.stderr == b""
    for args in ["-h"], ["a prompt", "--seed=3", "--help"]:
        _, _, flags = done.stdout.partition(b"\n\n")
        assert in_process(PROGRAMS[program], *args).stdout.endswith(flags)
    for name, parameter in inspect.signature(PROGRAMS[program]).parameters.items():
        _, _, text = done.stdout.decode().partition(f"--{name}={name.upper()}\n")
        text = text[: text.find("\n    -")]
        assert f"Default: {parameter.default!r}" in text and len(text.splitlines()[-1].strip()) > 40
    assert "FIRE" not in done.stdout.decode()


def test_ctrl_c(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts a connection and never answers
        env = {**os.environ, "GPT2_MODELS_URL": f"http://127.0.0.1:{server.getsockname()[1]}", "no_proxy": "*"}
        process = subprocess.Popen(  # a shell's background jobs inherit that Ctrl-C is ignored
            [sys.executable, str(ROOT / "gpt2.py"), "a", f"--models_dir={tmp_path}"],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        connection, _ = server.accept()
        connection.recv(1)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == (b"", b"") and process.returncode == 130
        connection.close()


def test_a_closed_pipe(models_dir):
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "gpt2.py"), "a", "--model_size=tiny", f"--models_dir={models_dir}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(timeout=60) == 141


@pytest.mark.parametrize(
    "redirection, part", [(">/dev/full", "No space left on device"), (">&-", "standard output is closed")]
)
def test_an_output_that_cannot_be_written(models_dir, redirection, part):
    done = subprocess.run(
        [
            "sh",
            "-c",
            f'exec "$@" {redirection}',
            "sh",
            sys.executable,
            str(ROOT / "gpt2.py"),
            "a",
            "4",
            "tiny",
            str(models_dir),
        ],
        capture_output=True,
    )
    assert_error(done, part)


def test_a_terminal_without_some_characters(models_dir):
    expected = complete(models_dir, "a", 60)
    assert not expected.isascii()
    done = run_alone(models_dir, "a", "60", env={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == expected.encode("ascii", "replace") + b"\n"


def test_the_progress_bar_is_for_terminals_only(models_dir):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 25, 80, 0, 0))  # a new one has 0 columns
    os.set_blocking(ours, False)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "gpt2.py"), "a", "60", "tiny", str(models_dir)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    assert process.communicate(timeout=60)[0].decode() == complete(models_dir, "a", 60) + "\n"
    assert b"generating" in os.read(ours, 10_000)


# --- arguments ---


def everything(text, *more, named="x", typed: str = None, number: int = None, rate=0.5, switch=False,
               either: bool | str = False):  # fmt: skip
    pass


@pytest.mark.parametrize(
    "args, expected",
    [
        (["1e3", "2020_01", "[1]"], {"text": "1e3", "more": ("2020_01", "[1]")}),
        (["a", "--named=1", "--typed=None"], {"text": "a", "named": "1", "typed": "None"}),
        (["a", "--number=1_000", "--rate=1e3"], {"text": "a", "number": 1000, "rate": 1000.0}),
        (["a", "--switch"], {"text": "a", "switch": True}),
        (["a", "--noswitch"], {"text": "a", "switch": False}),
        (["a", "--switch=False"], {"text": "a", "switch": False}),
        (["a", "--either"], {"text": "a", "either": True}),
        (["a", "--either=H100"], {"text": "a", "either": "H100"}),
    ],
)
def test_annotations_and_defaults_decide_what_stays_text(monkeypatch, args, expected):
    monkeypatch.setattr(sys, "argv", ["everything", *args])
    found, kwargs = cli.parse(everything)
    given = inspect.signature(everything).bind(*found, **kwargs).arguments
    assert given == expected and all(type(given[name]) is type(expected[name]) for name in given)


@pytest.mark.parametrize("value", ["no", "yes", "1", "0", "None", "true", "a text"])
def test_a_switch_takes_no_text(monkeypatch, value):
    monkeypatch.setattr(sys, "argv", ["everything", "a", f"--switch={value}"])
    with pytest.raises(ValueError, match="switch=.* must be True or False: write --switch or --switch=False"):
        cli.parse(everything)
