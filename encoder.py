"""Byte-pair encoding (BPE): text -> token ids -> text, as GPT-2 does it.

A language model needs a fixed list of tokens. There are too many words, and letters make sequences too long, so GPT-2
starts from the 256 bytes, which can spell any text, and adds 50,000 merges learned from its training text, most
frequent first. Encoding replays them: the word " theorized" is split into bytes, and the adjacent pair that was learned
first is merged, until no adjacent pair is in the list ("Ġ" stands for the byte of a space, see BYTE_TO_CHAR):

    Ġ t h e o r i z e d
    Ġt h e o r i z e d      rank 0: the first pair that was learned
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

Two files hold the result: encoder.json maps each token to its id, vocab.bpe lists the merges by rank.
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

# The byte alphabet: the files are text, so each byte needs a visible character. The 188 printable bytes of Latin-1 are
# written as themselves, the other 68 (controls, the space, 0xAD) as the characters from 256 on: the space is Ġ (288),
# the newline Ċ (266). The first 256 token ids are in this order.
PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
BYTE_TO_CHAR = {byte: chr(byte) for byte in PRINTABLE}
BYTE_TO_CHAR.update(zip(sorted(set(range(256)) - set(PRINTABLE)), map(chr, range(256, 324))))
CHAR_TO_BYTE = {char: byte for byte, char in BYTE_TO_CHAR.items()}

# Text is split into words first, and no merge crosses a word boundary: otherwise "dog.", "dog!" and "dog?" would each
# become a token. The first branch that matches wins: "I've  3 dogs!" is split into I, 've, a space, " 3", " dogs", !
BRANCHES = r"""
    [ ]?[\p{L}]+            # letters of any script, with the space before them
  | '(?:[sdmt]|ll|ve|re)    # the end of a contraction, in lower case: it's, we'll, they're
  | [ ]?[\p{N}]+            # digits and other numerals, likewise
  | [ ]?[^\s\p{L}\p{N}]+    # any other visible characters: punctuation, symbols, emoji
  | \s+(?!\S)               # white space, except for its last character if a word follows:
  | \s+                     # that one is a word of its own, or the space in front of the word
"""
WORDS = regex.compile(BRANCHES, regex.VERBOSE)
# Most English text is ASCII, where \p{L} is A-Za-z: then Python's re, which does not support \p, takes half as long.
ASCII_WORDS = re.compile(BRANCHES.replace(r"\p{L}", "A-Za-z").replace(r"\p{N}", "0-9"), re.VERBOSE | re.ASCII)


def to_bytes(chars):
    """The bytes of a string in the byte alphabet."""
    return bytes([CHAR_TO_BYTE[char] for char in chars])


class Encoder:
    """A vocabulary, {token: id}, and its merges, an iterable of pairs of tokens in the order of their ranks."""

    def __init__(self, encoder, bpe_merges, errors="replace"):
        """errors: how decode handles bytes that are not UTF-8, as in bytes.decode ("surrogateescape" keeps them)."""
        self.encoder, self._merges, self.errors = encoder, list(bpe_merges), errors
        self.bpe = lru_cache(2**16)(self.bpe)  # words recur

    def __reduce__(self):  # pickles and copies omit the cache
        return Encoder, (self.encoder, self._merges, self.errors)

    @cached_property
    def decoder(self):  # {id: token}
        return {id: token for token, id in self.encoder.items()}

    @cached_property
    def bpe_ranks(self):  # {pair: rank}, built at the first word that is not a token itself
        pairs = (merge.split() if isinstance(merge, str) else merge for merge in self._merges)
        return {tuple(pair): rank for rank, pair in enumerate(pairs)}

    def encode(self, text):
        """The token ids of a text, a list of int. The name of a special token, <|endoftext|>, is text like any other.

        Lone surrogates from U+DC80 to U+DCFF are bytes that Python could not decode (PEP 383) and become those bytes
        again; any other lone surrogate becomes U+FFFD, and a surrogate pair becomes the character that it encodes.
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
        """Yields decode(ids) in pieces, one for each id as it arrives: whole characters, which may take several ids."""
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
        """The tokens of a word: adjacent ones are merged, lowest rank first, as long as any pair has a rank.

        symbols: a str in the byte alphabet. A heap keeps the pairs in order, so n bytes take n log n steps.
        """
        n = len(symbols)
        rank_of = self.bpe_ranks.get
        end, start = list(range(1, n + 1)), list(range(n))  # a token is symbols[i:end[i]], and start[end[i] - 1] == i
        ranks = enumerate(map(rank_of, zip(symbols, symbols[1:])))
        heap = [(rank, i, i + 1, i + 2) for i, rank in ranks if rank is not None]
        heapify(heap)
        while heap:
            _, i, j, k = heappop(heap)  # the tokens from i to j and j to k; of equal ranks, the leftmost first
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

    vocab.bpe may begin with a line "#version: 0.2". Raises ValueError unless the files form a vocabulary: tokens in
    the byte alphabet, numbered from 0, and the merges that produce them.
    """
    with open(os.path.join(models_dir, model_name, "encoder.json"), encoding="utf-8") as file:
        encoder = json.load(file)
    with open(os.path.join(models_dir, model_name, "vocab.bpe"), encoding="utf-8") as file:
        merges = file.read().split("\n")
    if merges[0].startswith("#version"):
        del merges[0]
    check_vocabulary(encoder, merges)
    return Encoder(encoder, merges[:-1])


def check_vocabulary(encoder, merges):
    """Raises ValueError unless encoder, the content of encoder.json, and merges, the lines of vocab.bpe, match."""
    if not isinstance(encoder, dict) or not encoder or set(map(type, encoder.values())) != {int}:
        raise ValueError("encoder.json must be a JSON object that maps each token to an integer, its id")
    if missing := set(range(len(encoder))).difference(encoder.values()):
        raise ValueError(
            f"the {len(encoder)} tokens of encoder.json must have the ids from 0 to {len(encoder) - 1}, "
            f"but the id {min(missing)} is missing"
        )
    if strange := set("".join(encoder)).difference(CHAR_TO_BYTE):
        raise ValueError(f"a token of encoder.json has {min(strange)!r}, which is not in the byte alphabet")
    if merges[-1:] != [""]:
        raise ValueError("vocab.bpe is truncated: its last line has no newline")
    if strange := [line for line in merges[:-1] if line.count(" ") != 1]:
        raise ValueError(f"vocab.bpe has the line {strange[0]!r}, which is not a pair of tokens")
    merged = set("\n".join(merges[:-1]).replace(" ", "").split("\n")[: len(merges) - 1])
    # special tokens are not words, and no merge produces them; a few others may have been added or renamed
    lost = [token for token in set(encoder).difference(merged) if len(token) > 1]
    lost = [token for token in lost if len(WORDS.findall(bytes(map(CHAR_TO_BYTE.get, token)).decode("latin-1"))) == 1]
    for tokens, what in (lost, "vocab.bpe lacks the merges of"), (merged.difference(encoder), "encoder.json lacks"):
        if len(tokens) > 1 + len(merged) // 10:
            cause = "one of the two files is truncated or belongs to another model"
            raise ValueError(f"{what} {len(tokens)} tokens, such as {min(tokens)!r}: {cause}")
