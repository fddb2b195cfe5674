import argparse
import collections
import functools
import inspect
import json
import pickle

from conftest import ROOT, assert_error, command, in_process
from hypothesis import given, settings
import pytest
from test_encoder import texts, tiktoken_of

from beyond import tokenizer
from encoder import BYTE_TO_CHAR, Encoder, get_encoder

TEXT = (
    inspect.getsource(argparse)
    + "Näive Ünicode: 中文, 日本語, 👍🏽👍🏽 and “quotes” — again “quotes” — 中文.\n" * 20
    + inspect.getsource(pickle)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "learned"
    tokenizer.save(tokenizer.learn(TEXT, 1000), folder)
    return folder


def test_the_merges_are_those_of_the_tokenizers_library():
    """Its trainer can number the bytes as GPT-2 does, and also prefers older tokens among equally frequent pairs."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    theirs = Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.train_from_iterator(
        [TEXT], trainers.BpeTrainer(vocab_size=999, initial_alphabet=list(BYTE_TO_CHAR.values()), show_progress=False)
    )
    merges = [tuple(pair) for pair in json.loads(theirs.to_str())["model"]["merges"]]
    ours = tokenizer.learn(TEXT, 1000)
    assert len(ours) == len(merges) == 743
    counts = [frequencies(merges[:n], merges[n]) for n in range(0, 743, 53)]
    assert counts == [
        frequencies(ours[:n], ours[n]) for n in range(0, 743, 53)
    ]  # each time a pair of the same frequency: equal up to ties
    assert len(set(ours) & set(merges)) > 0.9 * 743


def frequencies(merges, pair):
    """How often a pair occurs in TEXT after these merges, counted in the whole text."""
    encoder = Encoder({token: 0 for token in BYTE_TO_CHAR.values()}, merges)
    total = 0
    for word in tokenizer.WORDS.findall(TEXT):
        symbols = encoder.merge("".join(BYTE_TO_CHAR[byte] for byte in word.encode()))
        total += sum((a, b) == pair for a, b in zip(symbols, symbols[1:]))
    return total


def test_each_merge_was_the_most_frequent_pair():
    """Counted again after each merge of a short text: no pair is more frequent than the merged one."""
    text = TEXT[:3000]
    merges = tokenizer.learn(text, 257 + 60)
    words = [[BYTE_TO_CHAR[byte] for byte in word.encode()] for word in tokenizer.WORDS.findall(text)]
    for merge in merges:
        counts = collections.Counter(pair for word in words for pair in zip(word, word[1:]))
        assert counts[merge] == max(counts.values())
        words = [tokenizer.join(word, merge) for word in words]


def test_of_equally_frequent_pairs_the_older_tokens_come_first():
    """The pairs (ab, z) and (c, d) are equally frequent, but ab is a newer token than c."""
    assert tokenizer.learn("abz\nabz\nabq\ncd\ncd", 259) == [("a", "b"), ("c", "d")]
    assert tokenizer.learn("ba\nab", 258) == [("a", "b")]


@settings(max_examples=500, deadline=None)
@given(text=texts)
def test_the_encoding_is_tiktokens_with_the_same_two_files(folder, text):
    oracle, encoder = learned(folder)
    for part in text, TEXT[len(text) * 100 :][:500]:
        assert encoder.encode(part) == oracle.encode_ordinary(part)
        assert encoder.decode(encoder.encode(part)) == part


@functools.lru_cache
def learned(folder):
    return tiktoken_of(folder), get_encoder(folder.name, str(folder.parent))


def test_the_files_are_in_gpt2s_form(folder):
    vocabulary, merges = (
        json.loads((folder / "encoder.json").read_text()),
        (folder / "vocab.bpe").read_text("utf-8").split("\n"),
    )
    assert list(vocabulary.values()) == list(range(1000)) and list(vocabulary)[:256] == list(BYTE_TO_CHAR.values())
    assert list(vocabulary)[-1] == "<|endoftext|>" and merges[0] == "#version: 0.2" and merges[-1] == ""
    assert [merge.replace(" ", "") for merge in merges[1:-1]] == list(vocabulary)[256:-1]
    assert sorted(path.name for path in folder.iterdir()) == ["encoder.json", "vocab.bpe"]


def test_the_command(tmp_path, folder):
    (tmp_path / "text").write_text(TEXT, "utf-8", newline="\n")
    args = str(tmp_path / "text"), "--n_vocab", "1000", "--out", str(tmp_path / "new")
    done = command("-m", "beyond.tokenizer", *args, program=None, cwd=ROOT)
    assert (
        done.returncode == 0
        and done.stderr == b""
        and done.stdout.decode().startswith(f"{tmp_path}/new: 1000 tokens; ")
    )
    for name in "encoder.json", "vocab.bpe":
        assert (tmp_path / "new" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize(
    "content, n_vocab, parts",
    [
        (b"", 300, ["is empty"]),
        (b"caf\xe9", 300, ["not UTF-8: byte 3 is 0xe9"]),
        (b"abab", 300, ["n_vocab=300", "at most n_vocab=259"]),
        (b"abab", 256, ["n_vocab=256", "at least 257"]),
        (b"abab", 300.5, ["n_vocab=300.5"]),
        (None, 300, ["No such file"]),
    ],
)
def test_errors(tmp_path, content, n_vocab, parts):
    if content is not None:
        (tmp_path / "text").write_bytes(content)
    done = in_process(tokenizer.main, tmp_path / "text", tmp_path / "out", f"--n_vocab={n_vocab}")
    assert_error(done, *parts)
    assert not (tmp_path / "out").exists()
