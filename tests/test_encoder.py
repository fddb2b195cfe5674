import hashlib
import random
import string
import sys
import unicodedata

from conftest import VOCABULARY
from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

import encoder as bpe
import utils

# tiktoken's definition of the encoding "gpt2", from its own source; its vocabulary is made from the two files
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


def tiktoken_of(folder):
    ranks = data_gym_to_mergeable_bpe_ranks(str(folder / "vocab.bpe"), str(folder / "encoder.json"))
    return tiktoken.Encoding(
        "gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": len(ranks)}
    )


@pytest.fixture(scope="module")
def oracle():
    return tiktoken_of(VOCABULARY)


@pytest.mark.parametrize("name", ["encoder.json", "vocab.bpe"])
def test_the_vocabulary_of_these_tests_is_openais(name):
    assert hashlib.sha256((VOCABULARY / name).read_bytes()).hexdigest() == utils.SHA256["124M"][name]


def test_every_character_in_every_surrounding(encoder, oracle):
    wrong = []
    for code in range(sys.maxunicode + 1):
        char = chr(code)
        if unicodedata.category(char) not in ("Cs", "Cn"):  # unassigned, or not a character
            text = f"a{char}b {char}1{char} {char}{char}\n{char}'s"
            if encoder.encode(text) != oracle.encode_ordinary(text):
                wrong.append(hex(code))
    assert wrong == []


SNIPPETS = [
    "'s",
    "'S",
    "'ll",
    "'LL",
    "'Ll",
    "'ve",
    "'re",
    "'m",
    "'d",
    "'x",
    "n't",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "\xa0",
    "\u2003",
    "\u3000",
    "\x85",
    "\x1c",
    "a",
    "The",
    " the",
    "é",
    "e\u0301",
    "ß",
    "中文",
    "日本",
    "أهلا",
    "हिन्दी",
    "ไทย",
    "👍🏽",
    "👩‍👩‍👧",
    "\u200d",
    "\ufeff",
    "123",
    "٣",
    "²",
    "Ⅷ",
    "½",
    "_",
    "--",
    "...",
    "<|endoftext|>",
    "<|",
    "\0",
    "\x7f",
    "http://x.y/z?a=b&c",
    "SolidGoldMagikarp",
    "ÃÂ",
    "Ġ",
    "Ċ",
]
texts = st.one_of(
    st.text(), st.lists(st.sampled_from(SNIPPETS)).map("".join), st.text(alphabet=" \n\t'stvelrd1a-", max_size=60)
)


@settings(max_examples=3000, deadline=None)
@given(texts)
def test_equals_tiktoken_and_round_trips(encoder, oracle, text):
    ids = encoder.encode(text)
    assert ids == oracle.encode_ordinary(text)
    assert encoder.decode(ids) == text


def test_contractions_in_every_case(encoder, oracle):
    for ending in "s", "d", "m", "t", "ll", "ve", "re", "l", "v", "r", "x", "sd", "lls":
        for form in {ending, ending.upper(), ending.capitalize(), ending.capitalize().swapcase()}:
            for text in f"it'{form}", f"it '{form} it", f"'{form}{form}", f"''{form}", f"é'{form}":
                assert encoder.encode(text) == oracle.encode_ordinary(text)


@pytest.mark.parametrize(
    "alphabet", ["ab", "a", "a ", " \n", "=-_*#", "0123456789 ", "aeinorst", string.ascii_letters, "äöüß", "中文字"]
)
def test_equals_tiktoken_if_many_merges_compete(encoder, oracle, alphabet):
    rng = random.Random(alphabet)
    for _ in range(500):
        text = "".join(rng.choices(alphabet, k=rng.randint(1, 80)))
        assert encoder.encode(text) == oracle.encode_ordinary(text)


@pytest.fixture(scope="module")
def keeping(encoder):
    return bpe.Encoder(encoder.encoder, [], errors="surrogateescape")


@settings(max_examples=500, deadline=None)
@given(st.binary())
def test_bytes_that_are_not_utf8_survive(encoder, keeping, data):
    ids = encoder.encode(data.decode("utf-8", "surrogateescape"))
    assert b"".join(bytes([bpe.CHAR_TO_BYTE[char] for char in encoder.decoder[id]]) for id in ids) == data
    assert keeping.decode(ids).encode("utf-8", "surrogateescape") == data
    assert encoder.decode(ids) == data.decode("utf-8", "replace")


@pytest.mark.parametrize("text", ["\ud83d", "x\ud800y", "\ud83d\ude00", "\ud83d\udc80", "\udfff \ud800\ud800"])
def test_other_lone_surrogates_as_in_tiktoken(encoder, oracle, text):
    assert encoder.encode(text) == oracle.encode_ordinary(text)


def join_by_rank(symbols, ranks):
    """The steps of BPE as in the paper: each one joins all occurrences of the best pair."""
    symbols = list(symbols)
    while True:
        yield symbols
        pairs = [pair for pair in zip(symbols, symbols[1:]) if pair in ranks]
        if not pairs:
            return
        best, joined, i = min(pairs, key=ranks.get), [], 0
        while i < len(symbols):
            n = 2 if tuple(symbols[i : i + 2]) == best else 1
            joined.append("".join(symbols[i : i + n]))
            i += n
        symbols = joined


def test_merge_equals_the_algorithm_of_the_paper(encoder):
    rng = random.Random(0)
    for alphabet in ("ab", "Ġaest", string.ascii_letters):
        for _ in range(300):
            symbols = "".join(rng.choices(alphabet, k=rng.randint(2, 40)))
            *_, expected = join_by_rank(symbols, encoder.bpe_ranks)
            assert encoder.merge(symbols) == expected


def test_the_docstrings_example(encoder):
    lines = [line for line in bpe.__doc__.splitlines() if line.startswith("    Ġ")]
    steps = [line.partition("   ")[0] if not line.startswith("    ") else line[4:].split("  ")[0] for line in lines]
    assert [step.split() for step in steps] == list(join_by_rank("Ġtheorized", encoder.bpe_ranks))
    assert [encoder.bpe_ranks[pair] for pair in [("Ġ", "t"), ("h", "e"), ("Ġt", "he")]] == [0, 2, 6]
    for line, output in zip(bpe.__doc__.splitlines(), bpe.__doc__.splitlines()[1:]):
        if line.startswith("    >>> encoder."):
            assert repr(eval(line[8:], {"encoder": encoder})) == output.strip()
    assert bpe.WORDS.findall("I've  3 dogs!") == ["I", "'ve", " ", " 3", " dogs", "!"]


def test_the_byte_alphabet_is_the_vocabularys_beginning(encoder):
    assert [encoder.decoder[id] for id in range(256)] == list(bpe.BYTE_TO_CHAR.values())
    assert sorted(bpe.BYTE_TO_CHAR) == list(range(256)) and bpe.BYTE_TO_CHAR[32] == "Ġ" and bpe.BYTE_TO_CHAR[10] == "Ċ"


def test_a_long_word_costs_n_log_n(encoder, monkeypatch):
    """Counts steps instead of seconds: a letter of a long word takes as many as a letter of a short word."""
    pops = []
    monkeypatch.setattr(bpe, "heappop", lambda heap, pop=bpe.heappop: pops.append(len(heap)) or pop(heap))
    letters = "".join(random.Random(0).choices(string.ascii_lowercase, k=40_000))
    for n in 10_000, 40_000:
        pops.clear()
        encoder.encode(letters[:n])
        assert n / 2 < len(pops) < 3 * n and max(pops) < n


def test_a_list_of_merges_without_a_version_line(tmp_path, encoder, oracle):
    (tmp_path / "encoder.json").write_bytes((VOCABULARY / "encoder.json").read_bytes())
    version, merges = (VOCABULARY / "vocab.bpe").read_bytes().split(b"\n", 1)
    assert version.startswith(b"#version")
    (tmp_path / "vocab.bpe").write_bytes(merges)
    found = bpe.get_encoder("", str(tmp_path))
    assert found.bpe_ranks == encoder.bpe_ranks and len(found.bpe_ranks) == 50000
    assert found.encode("ROMEO: the thing") == oracle.encode_ordinary("ROMEO: the thing")


def test_ids_that_are_not_in_the_vocabulary(encoder):
    for id in (50257, -1, "a"):
        with pytest.raises(ValueError, match=f"{id!r} is not one of the 50257"):
            encoder.decode([11, id])


def test_nothing_is_computed_before_it_is_needed():
    fresh = bpe.get_encoder("data", str(VOCABULARY.parent))
    assert fresh.encode(" the") == [262] and "bpe_ranks" not in vars(fresh) and "decoder" not in vars(fresh)
    assert fresh.encode(" theorized") == [18765, 1143] and len(fresh.bpe_ranks) == 50000


def test_a_text_in_full(encoder, oracle):
    text = (VOCABULARY / "vocab.bpe").read_text("utf-8") + open(bpe.__file__, encoding="utf-8").read()
    assert encoder.encode(text) == oracle.encode_ordinary(text) and encoder.decode(encoder.encode(text)) == text
