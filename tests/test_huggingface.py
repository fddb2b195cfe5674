"""Models from and to Hugging Face: small repositories of each form, on a server that speaks the hub's routes."""

import hashlib
import http.server
import json
import os
from pathlib import Path
import pickle
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import urllib.parse

from conftest import ROOT, TINY, VOCABULARY, assert_error, command, write_model
import golden
import golden_huggingface as hf
import numpy as np
import pytest

from beyond import huggingface
from beyond.formats import checkpoint, transformers_folder
from beyond.formats import hub as formats_hub
from encoder import get_encoder
import gpt2
import utils

COMMIT = "0123456789abcdef" * 2 + "01234567"
GOLDEN = np.load(hf.PATH)
ADDED = [{"id": 259, "content": "<|endoftext|>", "special": True}]


class Hub(http.server.ThreadingHTTPServer):
    """The routes of the hub that a download uses, for the folders in root: /api/models/... and /OWNER/NAME/resolve/..."""

    daemon_threads = True

    def __init__(self, root):
        super().__init__(("127.0.0.1", 0), Routes)
        self.root, self.log, self.tokens, self.slow, self.cut, self.status = Path(root), [], [], 0, None, {}
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def downloads(self):
        return [path.rpartition("/")[2] for method, path in self.log if method == "GET" and "/resolve/" in path]


class Routes(http.server.BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
        self.server.log.append((self.command, path))
        self.server.tokens.append(self.headers.get("Authorization"))
        parts = path.removeprefix("/api/models").strip("/").split("/")
        name, folder = "/".join(parts[:2]), self.server.root / "/".join(parts[:2])
        revision = parts[3] if len(parts) > 3 else "main"
        if name in self.server.status and self.headers.get("Authorization") != "Bearer secret":
            status, code = self.server.status[name]
            return self.answer(status, b"{}", X_Error_Code=code)
        if not folder.is_dir():
            return self.answer(404, b"{}", X_Error_Code="RepoNotFound")
        if revision not in ("main", COMMIT):
            return self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
        if path.startswith("/api/models"):
            files = [
                {
                    "rfilename": file.name,
                    "path": file.name,
                    "type": "file",
                    "size": file.stat().st_size,
                    "oid": digest(file),
                    "blobId": digest(file),
                    "lfs": {
                        "sha256": digest(file),
                        "oid": digest(file),
                        "size": file.stat().st_size,
                        "pointerSize": 130,
                    }
                    if file.suffix == ".safetensors"
                    else None,
                }
                for file in sorted(folder.iterdir())
            ]
            tree = parts[2:3] == ["tree"]
            return self.answer(
                200, json.dumps(files if tree else {"id": name, "sha": COMMIT, "siblings": files}).encode()
            )
        file = folder / parts[-1]
        if not file.is_file():
            return self.answer(404, X_Error_Code="EntryNotFound")
        body, headers = (
            file.read_bytes(),
            {"ETag": f'"{digest(file)}"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"},
        )
        if self.server.slow and file.suffix == ".safetensors" and self.command == "GET":
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:1000])
            self.wfile.flush()
            return time.sleep(self.server.slow)
        self.answer(
            200, self.server.cut(body) if self.server.cut and file.suffix == ".safetensors" else body, **headers
        )


def digest(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


# --- the forms that are accepted, and those that are rejected ---

ACCEPTED = {
    **hf.FORMS,
    "tokenizer": {"tokenizer": {"added_tokens": ADDED}},
    "merges as text": {"tokenizer": {"model": {"merges": hf.MERGES}}},
    "model only": {"prefix": "", "config": {"architectures": ["GPT2Model"]}},
    "padded": {"vocabulary": hf.VOCABULARY[:256] + hf.VOCABULARY[-1:], "config": {"eos_token_id": 256}, "merges": []},
    "added beyond": {"tokenizer": {"added_tokens": [*ADDED, {"id": 260, "content": "[PAD]", "special": True}]}},
    "no eos id": {"config": {"eos_token_id": 50256}},
    "eos list": {"config": {"eos_token_id": [259, 3]}},
    "other end": {"vocabulary": [*hf.VOCABULARY[:-1], "</s>"]},
    "two ends": {
        "vocabulary": [*hf.VOCABULARY[:256], "<|endoftext|>", "<|im end|>", "Ġt", "he"],
        "merges": hf.MERGES[:2],
        "config": {"eos_token_id": 257},
    },
}
REJECTED = {  # the form, what the error says, and whether the weights had to be downloaded for that
    "llama": ({"config": {"model_type": "llama"}}, 'model_type="llama"'),
    "no config": ({"without": ["config.json"]}, "model_type=null"),
    "classifier": ({"config": {"architectures": ["GPT2ForSequenceClassification"]}}, "GPT2ForSequenceClassification"),
    "epsilon": ({"config": {"layer_norm_epsilon": 1e-6}}, "layer_norm_epsilon=1e-06"),
    "relu": ({"config": {"activation_function": "relu"}}, 'activation_function="relu"'),
    "gelu proper": ({"config": {"activation_function": "gelu"}}, 'activation_function="gelu"'),
    "unscaled": ({"config": {"scale_attn_weights": False}}, "scale_attn_weights=false"),
    "untied": ({"config": {"tie_word_embeddings": False}, "lm_head": 2}, "tie_word_embeddings=false"),
    "cross": ({"config": {"add_cross_attention": True}}, "add_cross_attention=true"),
    "quantized": ({"config": {"quantization_config": {"bits": 4}}}, "quantization_config="),
    "n_inner": ({"config": {"n_inner": 40}}, "n_inner=40"),
    "heads": ({"config": {"n_head": 7}}, "multiple of n_head"),
    "sizes": ({"config": {"n_embd": "20"}}, "positive integers"),
    "layers": ({"config": {"n_layer": 3_000_000}}, "they are from different models"),
    "bert": ({"without": ["vocab.json", "merges.txt"], "with": ["vocab.txt"]}, "BERT's WordPiece (vocab.txt)"),
    "sentencepiece": ({"without": ["merges.txt"], "with": ["spiece.model"]}, "SentencePiece (spiece.model)"),
    "no tokenizer": ({"without": ["merges.txt"]}, "neither tokenizer.json"),
    "wordpiece": ({"tokenizer": {"model": {"type": "WordPiece"}}}, "WordPiece"),
    "metaspace": ({"tokenizer": {"pre_tokenizer": {"type": "Metaspace"}}}, "Metaspace"),
    "split": (
        {"tokenizer": {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits"}, hf.BYTE_LEVEL]}}},
        "Digits and ByteLevel",
    ),
    "lower case": ({"tokenizer": {"normalizer": {"type": "Lowercase"}}}, "Lowercase"),
    "suffix": ({"tokenizer": {"model": {"end_of_word_suffix": "</w>"}}}, "end_of_word_suffix='</w>'"),
    "not tokenizers'": ({"tokenizer": {"model": {"merges": None}}}, "not in the format of the tokenizers library"),
    "gap": (
        {
            "vocabulary": [*hf.VOCABULARY[:-1]],
            "with": {"added_tokens.json": b'{"<|endoftext|>": 300}'},
            "config": {"vocab_size": 301},
        },
        "ids up to 300",
    ),
    "twice": (
        {"tokenizer": {"added_tokens": [{"id": 260, "content": "he"}]}, "config": {"vocab_size": 261}},
        "1 duplicate tokens",
    ),
    "merge": ({"merges": ["t t"]}, "merge 't t'"),
    "endless": ({"vocabulary": hf.VOCABULARY[:-1]}, "no token that ends a text"),
    "too many tokens": ({"vocabulary": [*hf.VOCABULARY, "x!"]}, "261 tokens"),
    "damaged": ({"with": {"config.json": b'{"model_type": '}}, "config.json is damaged"),
    "a list": ({"with": {"config.json": b"[]"}}, "must hold an object"),
    "pickled": (
        {"without": ["model.safetensors"], "with": {"pytorch_model.bin": pickle.dumps(print)}},
        "pytorch_model.bin",
    ),
    "no weights": ({"without": ["model.safetensors"]}, "no weights"),
    "a shard missing": ({"shards": 3, "without": ["model-2-of-3.safetensors"]}, "lacks model-2-of-3.safetensors"),
}
LATE = {
    "untied in secret": ({"lm_head": 2}, "output matrix, lm_head"),
    "fewer layers": ({"config": {"n_layer": 2}}, "12 tensors that GPT-2 does not have, such as h.2."),
    "wider": ({"config": {"vocab_size": 300}}, "instead of F32, F16 or BF16 [300, 20]"),
    "float64": ({"dtype": "float64"}, "F64"),
    "no safetensors": ({"with": {"model.safetensors": b"x" * 100_000}}, "is damaged"),
}


def make(folder, without=(), merges=None, **form):
    more = form.pop("with", {})
    hf.write_repository(folder, **form)
    if merges is not None:
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")
    for name in without:
        (folder / name).unlink()
    for name in more:
        (folder / name).write_bytes(more[name] if isinstance(more, dict) else b"words\n")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A server with a repository me/FORM for each form."""
    root = tmp_path_factory.mktemp("hub")
    for form, differs in {**ACCEPTED, **{form: differs for form, (differs, _) in {**REJECTED, **LATE}.items()}}.items():
        make(root / "me" / slug(form), **differs)
    hub = Hub(root)
    yield hub
    hub.shutdown()
    hub.server_close()


def slug(form):
    return form.replace(" ", "-").replace("'", "")


@pytest.fixture
def env(hub, tmp_path):
    hub.log.clear(), hub.tokens.clear()
    return {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path / "home"), "no_proxy": "*"}


def fetch(*args, env, **kwargs):
    return command("-m", "beyond.huggingface", "fetch", *map(str, args), program=None, env=env, cwd=ROOT, **kwargs)


@pytest.fixture(scope="module")
def fetched(hub, tmp_path_factory):
    """Each form, fetched by one process: {form: [the error or None, the files that were downloaded]}, and the folder."""
    folder = tmp_path_factory.mktemp("fetched")
    code = """
        import json, sys
        from beyond import huggingface
        for form in json.loads(sys.argv[1]):
            error = None
            try:
                huggingface.fetch("me/" + form, sys.argv[2] + "/" + form)
            except (ValueError, OSError) as caught:
                error = str(caught)
            print(json.dumps(error), flush=True)
            input()
    """
    forms = [*ACCEPTED, *REJECTED, *LATE]
    env = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "no_proxy": "*",
        "HF_HOME": str(tmp_path_factory.mktemp("home")),
    }
    hub.log.clear()
    found = {}
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), json.dumps([*map(slug, forms)]), str(folder)],
        cwd=ROOT,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        for form in forms:
            found[form] = json.loads(process.stdout.readline()), hub.downloads()
            hub.log.clear()
            process.stdin.write("\n")
            process.stdin.flush()
    return found, folder


@pytest.mark.parametrize("form", ACCEPTED)
def test_accepted_forms_compute_what_transformers_computes(fetched, form):
    found, folder = fetched
    assert found[form][0] is None
    assert sorted(os.listdir(folder / slug(form))) == sorted(utils.FILES)
    assert json.loads((folder / slug(form) / "hparams.json").read_text()) == hf.HPARAMS
    _, _, params = utils.load_encoder_hparams_and_params(slug(form), str(folder))
    logits = gpt2.gpt2(golden.inputs(hf.HPARAMS), **params, n_head=5)[::4]
    expected = GOLDEN[form if form in GOLDEN else "plain"]
    np.testing.assert_allclose(logits, expected[:, : logits.shape[1]], atol=2e-5)


def test_the_golden_forms_differ_where_they_should():
    differ = [form for form in GOLDEN if np.abs(GOLDEN[form] - GOLDEN["plain"]).max() > 1e-3]
    assert differ == ["float16", "bfloat16", "by layer"]


@pytest.mark.parametrize("form", ["plain", "tokenizer", "merges as text"])
def test_the_vocabulary_is_the_same_from_all_files(fetched, form):
    encoder = get_encoder(slug(form), str(fetched[1]))
    assert list(encoder.encoder) == hf.VOCABULARY
    assert (fetched[1] / slug(form) / "vocab.bpe").read_text("utf-8") == "#version: 0.2\nĠ t\nh e\nĠt he\n"
    assert encoder.encode("the the") == [83, 257, 258]


@pytest.mark.parametrize(
    "form, end, others",
    [
        ("padded", 256, {}),
        ("no eos id", 259, {}),
        ("eos list", 259, {}),
        ("other end", 259, {}),
        ("added beyond", 259, {}),
        ("two ends", 257, {"<|endoftext:256|>": 256}),
    ],
)
def test_the_end_of_text_is_the_configs(fetched, form, end, others):
    encoder = get_encoder(slug(form), str(fetched[1]))
    assert encoder.encoder["<|endoftext|>"] == end
    assert others.items() <= encoder.encoder.items() and "[PAD]" not in encoder.encoder


@pytest.mark.parametrize("form", REJECTED)
def test_rejected_forms_are_rejected_before_the_weights_are_downloaded(fetched, form):
    error, downloads = fetched[0][form]
    assert error and REJECTED[form][1] in error and ("me/" in error or "snapshots" in error), error
    assert not any(name.endswith((".safetensors", ".bin")) for name in downloads)
    assert slug(form) not in [name.partition(".part")[0] for name in os.listdir(fetched[1])]


@pytest.mark.parametrize("form", LATE)
def test_forms_that_are_rejected_by_their_weights_leave_nothing(fetched, form):
    error, _ = fetched[0][form]
    assert error and LATE[form][1] in error, error
    assert slug(form) not in [name.partition(".part")[0] for name in os.listdir(fetched[1])]


# --- the same bytes as OpenAI's ---


def test_the_index_is_tensorflows_byte_for_byte(tmp_path):
    import tensorflow as tf

    for hparams in [*golden.CONFIGS.values(), {**golden.CONFIGS["deep"], "n_layer": 30}]:
        made = golden.weights(hparams)
        tf.raw_ops.SaveV2(
            prefix=str(tmp_path / "theirs"),
            tensor_names=list(made),
            shape_and_slices=[""] * len(made),
            tensors=list(made.values()),
        )
        checkpoint.save_checkpoint(tmp_path / "ours", reversed(made), made.get)
        for ending in ".index", ".data-00000-of-00001":
            assert (tmp_path / f"ours{ending}").read_bytes() == (tmp_path / f"theirs{ending}").read_bytes()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same weights with OpenAI's vocabulary: a model folder by TensorFlow, and a repository of transformers."""
    from safetensors.numpy import save_file

    folder = tmp_path_factory.mktemp("both")
    made = write_model(folder / "124M", TINY)
    names = {name: transformers_folder.their_name(name.removeprefix("model/")) for name in made}
    assert names["model/h1/attn/c_attn/w"] == "h.1.attn.c_attn.weight" and names["model/ln_f/b"] == "ln_f.bias"
    (folder / "there").mkdir()
    save_file(
        {names[name]: array[0] if array.ndim == 3 else array for name, array in made.items()},
        folder / "there" / "model.safetensors",
    )
    config = {"model_type": "gpt2", **dict(zip(transformers_folder.SIZES, map(TINY.get, utils.HPARAMS)))}
    (folder / "there" / "config.json").write_text(json.dumps(config))
    shutil.copy(VOCABULARY / "encoder.json", folder / "there" / "vocab.json")
    shutil.copy(VOCABULARY / "vocab.bpe", folder / "there" / "merges.txt")
    return folder


def test_the_other_container_gives_the_same_files_and_the_same_text(both, tmp_path):
    huggingface.fetch(str(both / "there"), str(tmp_path / "a b" / "copy"))
    for name in utils.DATA, "model.ckpt.index", "encoder.json", "vocab.bpe", "checkpoint":
        assert (tmp_path / "a b" / "copy" / name).read_bytes() == (both / "124M" / name).read_bytes()
    shutil.copytree(both / "124M", tmp_path / "a b" / "original")
    texts = [gpt2.main("Not all heroes wear", 20, name, str(tmp_path / "a b")) for name in ("copy", "original")]
    assert texts[0] == texts[1] != ""


def test_openais_names_are_for_openais_models(both, tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "_load", lambda *args: None)
    with pytest.raises(ValueError, match=r"is not OpenAI's 124M: model.ckpt.data-00000-of-00001 has the SHA-256"):
        huggingface.fetch(str(both / "there"), str(tmp_path / "124M"))
    with pytest.raises(ValueError, match=r"is not OpenAI's 1558M: .* bytes instead of 6,230,444,800"):
        huggingface.fetch(str(both / "there"), str(tmp_path / "1558M"))
    assert os.listdir(tmp_path) == []
    digests = {name: digest(both / "124M" / name) for name in (utils.DATA, "encoder.json", "vocab.bpe")}
    monkeypatch.setitem(utils.SHA256, "124M", digests)
    huggingface.fetch(str(both / "there"), str(tmp_path / "124M"))


@pytest.mark.parametrize(
    "size, name", [("124M", "gpt2"), ("355M", "gpt2-medium"), ("774M", "gpt2-large"), ("1558M", "gpt2-xl")]
)
def test_if_openais_address_fails_the_hub_is_named(tmp_path, size, name):
    models = tmp_path / "my models"
    done = command("a", "4", size, str(models))
    assert_error(done, "cannot fetch http://127.0.0.1:9/")
    _, _, line = done.stderr.decode().strip().partition("Hugging Face also has it: ")
    way = ["fetch", f"openai-community/{name}", "--out", str(models / size)]
    assert shlex.split(line) == ["python", "-m", "beyond.huggingface", *way]


def test_an_unfinished_download_is_replaced(both, tmp_path, monkeypatch):
    """The command in the error works whichever of the seven files is missing; a complete model is kept."""
    digests = {name: digest(both / "124M" / name) for name in (utils.DATA, "encoder.json", "vocab.bpe")}
    monkeypatch.setitem(utils.SHA256, "124M", digests)
    for missing in "encoder.json", utils.DATA, "vocab.bpe":
        there = shutil.copytree(both / "124M", tmp_path / missing / "124M")
        (there / missing).rename(there / f"{missing}.part")
        shutil.copytree(there, there.with_name("mine"))
        huggingface.fetch(str(both / "there"), str(there))
        assert sorted(os.listdir(there)) == sorted(utils.FILES)
        for refused in there, there.with_name("mine"):
            with pytest.raises(ValueError, match="already exists"):
                huggingface.fetch(str(both / "there"), str(refused))
        (there / "hparams.json").rename(there / "notes.txt")
        with pytest.raises(ValueError, match="already exists"):
            huggingface.fetch(str(both / "there"), str(there))


# --- the download ---


def test_a_model_is_fetched_once(env, hub, tmp_path):
    out = tmp_path / "with spaces" / "plain"
    done = fetch("me/plain", "--out", out, env=env)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr
    assert done.stdout.decode() == f"{out}: 20,900 parameters, 260 tokens, a context of 24\n"
    assert sorted(hub.downloads()) == ["config.json", "merges.txt", "model.safetensors", "vocab.json"]
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    hub.log.clear()
    assert_error(fetch("me/plain", "--out", out, env=env), f"{out} already exists")
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before and hub.log == []
    done = fetch("me/plain", "--out", tmp_path / "again", "--revision", COMMIT, env=env)
    assert done.returncode == 0 and hub.downloads() == []  # from the cache
    done = fetch("me/plain", "--out", tmp_path / "offline", env={**env, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    [snapshot] = Path(env["HF_HOME"]).glob("hub/*/snapshots/*")
    assert fetch(snapshot, "--out", tmp_path / "snapshot", env=env).returncode == 0
    for name in "again", "offline", "snapshot":
        assert {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} == before


@pytest.mark.parametrize(
    "status, code, says",
    [
        (401, "RepoNotFound", "private (HTTP 401)"),
        (403, "GatedRepo", "restricted (HTTP 403)"),
        (404, "RepoNotFound", "(HTTP 404)"),
    ],
)
def test_a_repository_that_is_private_or_missing(env, hub, tmp_path, status, code, says):
    hub.status["me/plain"] = status, code
    try:
        assert_error(fetch("me/plain", "--out", tmp_path / "out", env=env), "me/plain", says, "HF_TOKEN")
        if status == 401:
            assert fetch("me/plain", "--out", tmp_path / "out", env={**env, "HF_TOKEN": "secret"}).returncode == 0
    finally:
        hub.status.clear()
    assert not (tmp_path / "out").exists() or "Bearer secret" in hub.tokens


@pytest.mark.parametrize(
    "source, extra, says",
    [
        ("me/none", (), "me/none does not exist on the hub"),
        ("me/plain", ("--revision=v9",), "does not have the revision v9"),
        ("a/b/c", (), "neither a folder nor a name on the hub"),
    ],
)
def test_a_source_that_does_not_exist(env, tmp_path, source, extra, says):
    assert_error(fetch(source, "--out", tmp_path / "out", *extra, env=env), says)
    assert not (tmp_path / "out").exists()


def test_no_network(env, tmp_path):
    assert_error(
        fetch("me/plain", "--out", tmp_path / "out", env={**env, "HF_ENDPOINT": "http://127.0.0.1:9"}),
        "cannot reach the hub for me/plain",
        "check the network",
    )
    assert_error(fetch("me/plain", "--out", tmp_path / "out", env={**env, "HF_HUB_OFFLINE": "1"}), "HF_HUB_OFFLINE")


def test_bytes_that_are_not_the_hubs_are_removed(env, hub, tmp_path):
    hub.cut = lambda body: body[:-4] + b"1234"
    try:
        assert_error(fetch("me/plain", "--out", tmp_path / "out", env=env), "SHA-256", "removed from the cache")
    finally:
        hub.cut = None
    assert fetch("me/plain", "--out", tmp_path / "out", env=env).returncode == 0


def test_files_that_change_or_vanish_during_the_download(tmp_path):
    (tmp_path / COMMIT).mkdir()
    with pytest.raises(OSError, match="me/plain changed while it was fetched"):
        formats_hub._checked("me/plain", {}, [], "another commit", lambda names: str(tmp_path / COMMIT))
    with pytest.raises(OSError, match="cannot fetch config.json of me/plain: check the network"):
        formats_hub._checked("me/plain", {}, ["config.json"], COMMIT, lambda names: str(tmp_path / COMMIT))


def test_a_fetch_that_is_killed_leaves_no_model_and_the_next_resumes(env, hub, tmp_path):
    hub.slow = 30
    process = subprocess.Popen(
        [sys.executable, "-m", "beyond.huggingface", "fetch", "me/plain", "--out", tmp_path / "out"],
        cwd=ROOT,
        env={**os.environ, **env},
        stderr=subprocess.DEVNULL,
    )
    while "model.safetensors" not in hub.downloads():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    hub.slow = 0
    assert not (tmp_path / "out").exists()
    assert_error(
        fetch("me/plain", "--out", tmp_path / "out", env={**env, "HF_HUB_OFFLINE": "1"}), "only part of me/plain"
    )
    hub.log.clear()
    assert fetch("me/plain", "--out", tmp_path / "out", env=env).returncode == 0
    assert hub.downloads() == ["model.safetensors"]


def repository(tmp_path, **form):
    make(tmp_path / "there", **form)
    return str(tmp_path / "there")


def test_a_download_without_a_single_complete_file_is_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "checkpoint.part").write_text("")
    huggingface.fetch(repository(tmp_path), str(tmp_path / "out"))
    assert sorted(os.listdir(tmp_path / "out")) == sorted(utils.FILES)
    with pytest.raises(ValueError, match="already exists"):
        huggingface.fetch(str(tmp_path / "there"), str(tmp_path / "out"))


def test_a_folder_that_is_called_like_an_unfinished_one_is_kept(tmp_path):
    (tmp_path / "out.part").mkdir()
    (tmp_path / "out.part" / "mine").write_text("whole")
    huggingface.fetch(repository(tmp_path), str(tmp_path / "out"))
    assert sorted(os.listdir(tmp_path / "out")) == sorted(utils.FILES)
    assert sorted(os.listdir(tmp_path)) == ["out", "out.part", "there"]
    assert (tmp_path / "out.part" / "mine").read_text() == "whole"


@pytest.mark.parametrize("word", ["fetch", "save"])
def test_a_full_disk_leaves_nothing(tmp_path, word):
    source = [repository(tmp_path)] if word == "fetch" else ["shakespeare"]
    args = [sys.executable, "-m", "beyond.huggingface", word, *source, "--out", str(tmp_path / "out")]
    code = "import os, resource as r, sys; r.setrlimit(r.RLIMIT_FSIZE, (50000, 50000)); os.execv(sys.argv[1], sys.argv[1:])"
    done = command("-c", code, *args, program=None, cwd=ROOT)
    assert_error(done, f"cannot write {tmp_path}/out: ", "make room")
    assert not [name for name in os.listdir(tmp_path) if name.startswith("out")]


def test_too_little_room_is_noticed_before_the_weights(tmp_path, monkeypatch):
    monkeypatch.delattr(transformers_folder, "open_weights")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 80_000))
    with pytest.raises(OSError, match="80,000 bytes free, but .*out will take 83,600: make room"):
        huggingface.fetch(repository(tmp_path), str(tmp_path / "out"))


@pytest.mark.parametrize("parent", ["a file", "read only"])
def test_no_permission(tmp_path, monkeypatch, parent):
    (tmp_path / "a file").write_text("")
    (tmp_path / "read only").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != str(tmp_path / "read only"))  # root may write anywhere
    for make_it in huggingface.fetch, huggingface.save:
        with pytest.raises(OSError, match=f"{parent} is not a folder that you can write to"):
            make_it("shakespeare", str(tmp_path / parent / "a" / "b"))
    assert sorted(os.listdir(tmp_path)) == ["a file", "read only"] and os.listdir(tmp_path / "read only") == []


def test_two_at_once(tmp_path):
    source = repository(tmp_path)
    start = [sys.executable, "-m", "beyond.huggingface", "fetch", source, "--out", str(tmp_path / "out")]
    processes = [subprocess.Popen(start, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate(timeout=60)[1] for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 1]
    assert any(b"already exists" in stderr for stderr in said)
    assert sorted(os.listdir(tmp_path / "out")) == sorted(utils.FILES)


def test_a_model_that_another_process_has_made_meanwhile_is_kept(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "hparams.json").write_text("theirs")
    with pytest.raises(ValueError, match="already exists"), huggingface.building(str(tmp_path / "out")):
        pass
    assert [file.read_text() for file in (tmp_path / "out").iterdir()] == ["theirs"]
    with pytest.raises(OSError, match="cannot write .*made: .*make room"), huggingface.building(str(tmp_path / "made")):
        (tmp_path / "made").mkdir()  # by a program that knows no lock
        (tmp_path / "made" / "hparams.json").write_text("theirs")
    assert [file.read_text() for file in (tmp_path / "made").iterdir()] == ["theirs"]
    assert sorted(os.listdir(tmp_path)) == ["made", "out"]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_permissions_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        huggingface.save("shakespeare", str(tmp_path / "there"))
        huggingface.fetch(str(tmp_path / "there"), str(tmp_path / "back"))
    finally:
        os.umask(before)
    for folder in tmp_path.iterdir():
        assert folder.stat().st_mode & 0o777 == 0o777 & ~umask
        assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o666 & ~umask}


# --- and back ---


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    out = tmp_path_factory.mktemp("saved") / "there"
    huggingface.save("shakespeare", str(out))
    return out


def test_saved_and_fetched_is_the_same_model(saved, tmp_path):
    assert sorted(os.listdir(saved)) == [
        "config.json",
        "generation_config.json",
        "merges.txt",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    ]
    huggingface.fetch(str(saved), str(tmp_path / "back"))
    for name in utils.DATA, "model.ckpt.index", "encoder.json", "vocab.bpe":
        assert (tmp_path / "back" / name).read_bytes() == (ROOT / "models/shakespeare" / name).read_bytes()


def test_the_saved_tokenizer_gives_the_same_ids(saved):
    from tokenizers import Tokenizer

    theirs, ours = Tokenizer.from_file(str(saved / "tokenizer.json")), get_encoder("shakespeare", str(ROOT / "models"))
    text = (ROOT / "models/shakespeare/held_out.txt").read_text("utf-8")[
        :20_000
    ] + " don't  x\n\n\té 中文 \U0001f600 1984 "
    assert theirs.encode(text).ids == ours.encode(text)
    assert theirs.decode(ours.encode(text)) == text
    assert theirs.encode("<|endoftext|>").ids == [1023]


def test_the_saved_weights_have_the_names_of_transformers(saved):
    from safetensors import safe_open

    with safe_open(saved / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
        names = {name: file.get_slice(name).get_shape() for name in file.keys()}
    block = {
        f"{part}.{end}"
        for part in ("ln_1", "ln_2", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        for end in ("weight", "bias")
    }
    assert names.keys() == {
        f"transformer.{name}" for name in ("wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias")
    } | {f"transformer.h.{i}.{name}" for i in range(6) for name in block}
    assert names["transformer.h.5.attn.c_attn.weight"] == [192, 576]
    config = json.loads((saved / "config.json").read_text())
    assert (config["vocab_size"], config["n_positions"], config["eos_token_id"]) == (1024, 256, 1023)


def test_the_saved_model_in_transformers_itself(saved):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    ids = get_encoder("shakespeare", str(ROOT / "models")).encode("ROMEO: what light")
    with torch.no_grad():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(saved)(torch.tensor([ids])).logits[0].numpy()
    _, hparams, params = utils.load_encoder_hparams_and_params("shakespeare", str(ROOT / "models"))
    np.testing.assert_allclose(gpt2.gpt2(ids, **params, n_head=hparams["n_head"]), theirs, atol=1e-4)
