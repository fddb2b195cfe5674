import json
import os
import signal
import subprocess
import sys
import time

from conftest import ROOT, assert_error, command, in_process
import numpy as np
import pytest

from beyond import corpus, tokenizer
from beyond.learn import corpora
from encoder import Encoder
import utils

TEXT = (ROOT / "models" / "shakespeare" / "held_out.txt").read_text("utf-8")
FLAGS = "--n_vocab=400", "--cores=2"
FILES = ["corpus.json", "encoder.json", "ids.bin", "vocab.bpe"]


def run(*args, **kwargs):
    return command("-m", "beyond.corpus", *map(str, args), program=None, cwd=ROOT, **kwargs)


def ids_of(folder):
    return np.fromfile(folder / "ids.bin", "<u2").tolist()


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(corpus, "PIECE", 1000)


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """A few megabytes: enough for several pieces and processes."""
    path = tmp_path_factory.mktemp("big") / "text.txt"
    path.write_text("".join(f"{i} {TEXT}" for i in range(40)), "utf-8", newline="")
    return path


def test_the_ids_are_those_of_the_whole(tmp_path, small_pieces):
    """Of several files, which are hard to cut: no white space, long white space, both kinds of line ends."""
    texts = [TEXT[:20000], "x" * 5000 + " " * 3000 + "\r\n" * 2000 + "é" * 1500, "中文 " * 900]
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_text(text, "utf-8", newline="")
    records = ["a  ", "", "\ud83d half, and \n\n two"]
    (tmp_path / "3.jsonl").write_text("".join(json.dumps({"text": text, "id": 1}) + "\n" for text in records))
    paths = [str(tmp_path / name) for name in ("0.txt", "1.txt", "2.txt", "3.jsonl")]
    pieces = list(corpus.read_pieces(paths))
    assert (
        len(pieces) > 20 and max(sum(len(text) for text, _ in piece) for piece in pieces) < 9000
    )  # 8500 that cannot be cut
    output = corpus.main(*paths, out=str(tmp_path / "out"), n_vocab=400)
    encoder, ids, _ = corpora.load(tmp_path / "out")
    end = encoder.encoder["<|endoftext|>"]
    expected = [id for text in [*texts, *records] for id in [*encoder.encode(text), end]]
    assert ids.tolist() == expected and ids.dtype == np.uint16 and isinstance(ids, np.memmap)
    n_bytes = sum(len(text.encode("utf-8", "replace")) for text in texts) + 3 + len(records[2]) + 2  # U+FFFD has three
    assert (
        output == f"{tmp_path}/out: {len(ids):,} tokens of {n_bytes:,} bytes, {n_bytes / len(ids):.2f} bytes per token"
    )
    assert sorted(os.listdir(tmp_path / "out")) == FILES


def test_a_training_run_reads_its_text_once(tmp_path, monkeypatch):
    """Of a text and of a corpus: the default n_vocab, the digest, and the ids, of which the last tenth is held out."""
    (tmp_path / "text.txt").write_text(TEXT[:20000], "utf-8", newline="")
    corpus.main(str(tmp_path / "text.txt"), out=str(tmp_path / "out"), n_vocab=400)
    for name, function, n_vocab in ("text.txt", "read_text", 1024), ("out", "load", 400):
        module, calls = corpora.reading if function == "read_text" else corpora, []
        read = getattr(module, function)
        with monkeypatch.context() as patch:
            patch.setattr(module, function, lambda *args: calls.append(args) or read(*args))
            source = corpora.Source(str(tmp_path / name))
            assert (source.n_vocab, len(source.digest), source.is_corpus) == (n_vocab, 64, name == "out")
            encoder, learned, held_out, files = source.split(400)
        assert [call for call in calls if call[0] == source.path] == [(source.path,)]
        text = encoder.decode([*learned.tolist(), *held_out.tolist()])
        assert text == TEXT[:20000] + "<|endoftext|>" * (name == "out")
        if name == "out":
            assert len(held_out) == (len(learned) + len(held_out)) // 10
        else:
            assert files.pop("held_out.txt") == TEXT[18000:20000] == encoder.decode(held_out.tolist())
        assert sorted(files) == ["encoder.json", "vocab.bpe"]
        assert json.loads(files["encoder.json"]) == encoder.encoder


def test_two_processes_give_the_same_as_one(tmp_path, big):
    for cores in 1, 2:
        done = run(big, f"--out={tmp_path}/{cores}", "--n_vocab=400", "--sample=1", f"--cores={cores}")
        assert done.returncode == 0, done.stderr
    assert ids_of(tmp_path / "1") == ids_of(tmp_path / "2")
    assert (tmp_path / "1" / "corpus.json").read_text() == (tmp_path / "2" / "corpus.json").read_text()


def test_the_standard_input_and_a_models_vocabulary(tmp_path):
    done = run("-", f"--out={tmp_path}/out", "--model_size=shakespeare", input=TEXT.encode())
    assert done.returncode == 0, done.stderr
    encoder, ids, _ = corpora.load(tmp_path / "out")
    assert ids.tolist() == [*encoder.encode(TEXT), encoder.encoder["<|endoftext|>"]]
    for name in "encoder.json", "vocab.bpe":
        assert (tmp_path / "out" / name).read_bytes() == (ROOT / "models" / "shakespeare" / name).read_bytes()


def test_a_large_vocabulary_takes_four_bytes_per_id():
    tokens = {str(i): i for i in range(2**16)}
    assert corpora.dtype_of(Encoder(tokens, [])) == np.uint16
    assert corpora.dtype_of(Encoder({**tokens, "x": 2**16}, [])) == np.uint32


def test_a_sample_is_spread_over_all_but_the_last_tenth():
    for n, most in (1, 4), (3, 4), (100, 4), (1000, 16), (17, 16):
        found = corpus.spread(iter(range(n)), most)
        steps = np.diff(found)
        assert found[0] == 0 and len(found) <= most and len(set(steps)) <= 1 and found[-1] <= max(0, 0.9 * n)
        assert n == 1 or found[-1] > 0.3 * n
    cut = TEXT.index("\n", 9000)
    assert tokenizer.learn([TEXT[:cut], TEXT[cut:20000]], 300) == tokenizer.learn(TEXT[:20000], 300)


def test_reading_stays_a_few_pieces_ahead():
    """So memory does not grow: of an endless text only a few pieces are taken."""
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield len(taken)

    found = corpus.in_order(abs, endless(), 2)
    assert [next(found) for _ in range(20)] == list(range(1, 21)) and len(taken) <= 25
    found.close()


def test_a_killed_run_resumes(tmp_path, big):
    """Complete pieces stay as they are; no process is left; other texts, or a second run at once, are refused."""
    args = [sys.executable, "-m", "beyond.corpus", str(big), f"--out={tmp_path}/out", *FLAGS]
    log = tmp_path / "out" / "pieces.jsonl"
    with subprocess.Popen(args, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while not log.exists() or log.read_bytes().count(b"\n") < 2:
            assert process.poll() is None
            time.sleep(0.01)
        path = f"/proc/{process.pid}/task/{process.pid}/children"
        children = open(path).read().split() if os.path.exists(path) else []  # on Linux
        process.send_signal(signal.SIGKILL)
    n_whole = log.read_bytes().count(b"\n") - 1
    before = os.stat(tmp_path / "out" / "encoder.json").st_mtime_ns
    with open(log, "ab") as file, open(tmp_path / "out" / "ids.bin", "ab") as ids:  # as a kill may leave them
        file.write(b'{"sha256": "torn')
        ids.write(b"torn")
    with pytest.raises(ValueError, match="not a complete corpus"):
        corpora.load(tmp_path / "out")
    other = tmp_path / "other.txt"
    other.write_text("other " + big.read_text("utf-8"), "utf-8", newline="")
    assert_error(run(other, f"--out={tmp_path}/out", *FLAGS), "started with different", "sample")
    assert_error(run(big, f"--out={tmp_path}/out", "--n_vocab=401"), "n_vocab 400, now 401")
    with utils.locked(log):
        assert_error(run(big, f"--out={tmp_path}/out", *FLAGS), "another process is writing to", "pieces.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        made, tokenize = [], corpus.tokenize
        patch.setattr(corpus, "tokenize", lambda *args: made.append(1) or tokenize(*args))
        corpus.main(str(big), out=str(tmp_path / "out"), n_vocab=400, cores=1)
    assert len(made) == len(list(corpus.read_pieces([str(big)]))) - n_whole > 0
    assert os.stat(tmp_path / "out" / "encoder.json").st_mtime_ns == before
    encoder, ids, _ = corpora.load(tmp_path / "out")
    assert ids.tolist() == [*encoder.encode(big.read_text("utf-8")), encoder.encoder["<|endoftext|>"]]
    deadline = time.time() + 20
    while any(os.path.exists(f"/proc/{pid}") for pid in children) and time.time() < deadline:
        time.sleep(0.1)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in children)
    assert_error(run(big, f"--out={tmp_path}/out", *FLAGS), "is already a corpus")
    assert sorted(os.listdir(tmp_path / "out")) == FILES


@pytest.mark.parametrize(
    "name, content, flags, parts",
    [
        ("a.txt", b"", [], ["a.txt", "no text found"]),
        ("a.jsonl", b'{"text": ""}\n', [], ["no text found"]),
        ("a.txt", b"a " * 5000 + b"caf\xe9 ", [], ["a.txt is not UTF-8: byte 10,003 is 0xe9"]),
        ("a.jsonl", b'{"text": "a"}\n{"txt": "a"}\n', [], ["line 2", '{"text":']),
        ("a.txt", b"abab", [], ["n_vocab=50257", "at most n_vocab=259"]),
        ("a.txt", b"abab", ["--n_vocab=1"], ["n_vocab=1", "257"]),
        ("a.txt", b"abab", ["--sample=0"], ["sample=0"]),
        ("a.txt", b"abab", ["--cores=0"], ["cores=0"]),
        ("a.txt", b"abab", ["--model_size=none"], ["none"]),
        ("none", None, [], ["No such file", "none"]),
    ],
)
def test_errors(tmp_path, name, content, flags, parts):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert_error(in_process(corpus.main, tmp_path / name, f"--out={tmp_path}/out", *flags), *parts)
    assert not (tmp_path / "out").exists()


def test_more_errors(tmp_path):
    assert_error(in_process(corpus.main, f"--out={tmp_path}/out"), "name one or more texts")
    assert_error(in_process(corpus.main, "-", "-", f"--out={tmp_path}/out"), "only once")
    (tmp_path / "a.txt").write_text("a b")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    assert_error(in_process(corpus.main, tmp_path / "a.txt", f"--out={tmp_path}/full"), "holds other files")
    assert_error(in_process(corpus.main, tmp_path / "a.txt", f"--out={tmp_path}/a.txt"), "is a file")
    assert_error(in_process(corpus.main, tmp_path / "a.txt"), "out")
    assert_error(in_process(corpus.main, "-", f"--out={tmp_path}/out", input=b"caf\xe9"), "- is not UTF-8", "0xe9")
