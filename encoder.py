"""Byte-pair encoding (BPE): text -> token ids -> text, as GPT-2 does it.

A language model wants a fixed list of tokens. Words are too many and letters are too short, so GPT-2 starts from
the 256 bytes, which can spell any text, and learned 50,000 merges from its training text, most frequent first.
Encoding replays them. The word " theorized" is split into bytes, and the pair that was learned first is joined
until no neighbours are in the list ("Ġ" is how the byte of a space is written, see BYTE_TO_CHAR):

    Ġ t h e o r i z e d
    Ġt h e o r i z e d      rank 0, the first pair that was learned
    Ġt he o r i z e d       rank 2
    Ġthe o r i z e d        rank 6
    Ġthe or i z e d
    Ġthe or i z ed
    Ġthe or iz ed
    Ġthe or ized
    Ġtheor ized             "Ġtheor" and "ized" were never learned as a pair

    >>> encoder = get_encoder("124M", "models")
    >>> encoder.merge("Ġtheorized")
    ['Ġtheor', 'ized']
    >>> encoder.encode(" theorized")
    [18765, 1143]
    >>> encoder.decode([18765, 1143])
    ' theorized'

Two files hold what was learned: encoder.json maps each token to its id, vocab.bpe lists the merges by rank.
Sennrich et al. 2016, https://arxiv.org/abs/1508.07909; on bytes: Radford et al. 2019, section 2.2.
"""

from codecs import getincrementaldecoder
from functools import cached_property, lru_cache
from heapq import heapify, heappop, heappush
from itertools import chain
import json
import os
import re

import regex

# The byte alphabet: the files are text, so each byte needs a character that can be seen. The 188 printable bytes of
# Latin-1 are written as themselves; the other 68 (controls, the space, 0xAD) take the characters starting at 256: the
# space is Ġ (288), the newline Ċ (266). The first 256 token ids are in this order.
PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
BYTE_TO_CHAR = {byte: chr(byte) for byte in PRINTABLE}
BYTE_TO_CHAR.update(zip(sorted(set(range(256)) - set(PRINTABLE)), map(chr, range(256, 324))))
CHAR_TO_BYTE = {char: byte for byte, char in BYTE_TO_CHAR.items()}

# Text is cut into words first, and no merge crosses a cut: otherwise "dog.", "dog!" and "dog?" would each become a
# token of their own. The first branch that matches wins: "I've  3 dogs!" is cut into I, 've, a space, " 3", " dogs", !
BRANCHES = r"""
    [ ]?[\p{L}]+            # letters of any script, with the space before them
  | '(?:[sdmt]|ll|ve|re)    # the end of a contraction, lower case only: it's, we'll, they're
  | [ ]?[\p{N}]+            # digits and other numerals, likewise
  | [ ]?[^\s\p{L}\p{N}]+    # anything else that can be seen: punctuation, symbols, emoji
  | \s+(?!\S)               # white space, but for its last character if a word follows:
  | \s+                     # that one is a word itself, or is the space that begins the word
"""
WORDS = regex.compile(BRANCHES, regex.VERBOSE)
# Most English text is ASCII, where \p{L} is A-Za-z: then Python's own re, which knows no \p, takes half the time.
ASCII_WORDS = re.compile(BRANCHES.replace(r"\p{L}", "A-Za-z").replace(r"\p{N}", "0-9"), re.VERBOSE | re.ASCII)


def to_bytes(chars):
    """The bytes of tokens, which are written in the byte alphabet."""
    return bytes([CHAR_TO_BYTE[char] for char in chars])


class Encoder:
    """A vocabulary (token -> id) and its merges: pairs of tokens by rank, any iterable."""

    def __init__(self, encoder, bpe_merges, errors="replace"):
        """errors: what decode does with bytes that are not UTF-8, as in bytes.decode ("surrogateescape" keeps them)."""
        self.encoder, self._merges, self.errors = encoder, list(bpe_merges), errors
        self.bpe = lru_cache(2**16)(self.bpe)  # text repeats its words

    def __reduce__(self):  # to pickle and copy all but the cache
        return Encoder, (self.encoder, self._merges, self.errors)

    @cached_property
    def decoder(self):
        return {id: token for token, id in self.encoder.items()}

    @cached_property
    def bpe_ranks(self):  # {pair: rank}, built when the first word that is not a token itself turns up
        pairs = (merge.split() if isinstance(merge, str) else merge for merge in self._merges)
        return {tuple(pair): rank for rank, pair in enumerate(pairs)}

    def encode(self, text):
        """The token ids of a text, a list of int. The text of a special token, <|endoftext|>, is text like any other.

        Lone surrogates from U+DC80 to U+DCFF are the bytes that Python could not decode (PEP 383) and become those
        bytes again; any other lone surrogate becomes U+FFFD, and a pair of two the character that it spells.
        Raises ValueError for a byte that the vocabulary lacks.
        """
        try:
            text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        words = (ASCII_WORDS if text.isascii() else WORDS).findall(text)
        return list(chain.from_iterable(map(self.bpe, words)))

    def decode(self, ids):
        """The text of token ids. Raises ValueError for an id that is not in the vocabulary."""
        try:
            chars = "".join([self.decoder[id] for id in ids])
        except KeyError as error:
            raise ValueError(f"token id {error} is not one of the {len(self.decoder)} in the vocabulary") from None
        return to_bytes(chars).decode("utf-8", self.errors)

    def decode_stream(self, ids):
        """Yields decode(ids) in pieces, one for each id as it comes: whole characters, which may take several ids."""
        decoder = getincrementaldecoder("utf-8")(self.errors)
        for id in ids:
            yield decoder.decode(to_bytes(self.decoder[id]))
        if rest := decoder.decode(b"", final=True):
            yield rest

    def bpe(self, word):
        """The ids of one word: a tuple of int."""
        symbols = "".join([BYTE_TO_CHAR[byte] for byte in word.encode("utf-8", "surrogateescape")])
        if symbols in self.encoder:
            return (self.encoder[symbols],)
        try:
            return tuple([self.encoder[symbol] for symbol in self.merge(symbols)])
        except KeyError as error:
            data = to_bytes(error.args[0]).hex(" ")
            raise ValueError(f"the vocabulary has no token for the bytes {data} of {word!r}") from None

    def merge(self, symbols):
        """The tokens of a word: neighbours are joined, lowest rank first, while any pair of them has a rank.

        symbols: a str in the byte alphabet. A heap keeps the pairs in order, so n bytes take n log n steps.
        """
        n, rank_of = len(symbols), self.bpe_ranks.get
        end, start = list(range(1, n + 1)), list(range(n))  # a token is symbols[i:end[i]], and start[end[i] - 1] == i
        ranks = enumerate(map(rank_of, zip(symbols, symbols[1:])))
        heap = [(rank, i, i + 1, i + 2) for i, rank in ranks if rank is not None]
        heapify(heap)
        while heap:
            _, i, j, k = heappop(heap)  # the tokens from i to j and j to k; of equal ranks the leftmost comes first
            if end[i] != j or end[j] != k:
                continue  # one of the two is part of a longer token by now
            end[i], end[j], start[k - 1] = k, None, i
            if k < n and (rank := rank_of((symbols[i:k], symbols[k : end[k]]))) is not None:
                heappush(heap, (rank, i, k, end[k]))
            if i > 0 and (rank := rank_of((symbols[start[i - 1] : i], symbols[i:k]))) is not None:
                heappush(heap, (rank, start[i - 1], i, k))
        return [symbols[i : end[i]] for i in range(n) if end[i]]


def get_encoder(model_name, models_dir):
    """The Encoder of models_dir/model_name, from encoder.json, {token: id}, and vocab.bpe, one merge per line.

    vocab.bpe may begin with a line "#version: 0.2". Raises ValueError unless the two are a vocabulary: the tokens, in
    the byte alphabet, are numbered from 0, one id each, and the merges make them.
    """
    with open(os.path.join(models_dir, model_name, "encoder.json"), encoding="utf-8") as file:
        encoder = json.load(file)
    with open(os.path.join(models_dir, model_name, "vocab.bpe"), encoding="utf-8") as file:
        merges = file.read().split("\n")
    if merges[0].startswith("#version"):
        del merges[0]
    check_vocabulary(encoder, merges)
    return Encoder(encoder, merges[:-1])


def check_vocabulary(encoder, merges):  # {token: id}, lines
    if not isinstance(encoder, dict) or not encoder or set(map(type, encoder.values())) != {int}:
        raise ValueError("encoder.json must be a JSON object with a whole number, its id, for each token")
    if missing := set(range(len(encoder))).difference(encoder.values()):
        raise ValueError(
            f"the {len(encoder)} tokens of encoder.json must have the ids from 0 to {len(encoder) - 1}, "
            f"but the id {min(missing)} has no token"
        )
    if strange := set("".join(encoder)).difference(CHAR_TO_BYTE):
        raise ValueError(f"a token of encoder.json has {min(strange)!r}, which is not one of the 256 bytes' characters")
    if merges[-1:] != [""]:
        raise ValueError("vocab.bpe was cut short: its last line has no end")
    if strange := [line for line in merges[:-1] if line.count(" ") != 1]:
        raise ValueError(f"vocab.bpe has the line {strange[0]!r}, which is not two tokens")
    made = set("\n".join(merges[:-1]).replace(" ", "").split("\n")[: len(merges) - 1])
    # tokens that no merge makes are special ones, which are not a word; a few others may have been added or renamed
    lost = [token for token in set(encoder).difference(made) if len(token) > 1]
    lost = [token for token in lost if len(WORDS.findall(bytes(map(CHAR_TO_BYTE.get, token)).decode("latin-1"))) == 1]
    for tokens, what in (lost, "vocab.bpe lacks the merges of"), (made.difference(encoder), "encoder.json lacks"):
        if len(tokens) > 1 + len(made) // 10:
            raise ValueError(
                f"{what} {len(tokens)} tokens, {min(tokens)!r} for one: one of the two files is another "
                f"model's, or was cut short"
            )
