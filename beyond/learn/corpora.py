"""From a text file, or a folder made by beyond.corpus, to the ids for a training run.

    data = Source("input.txt")
    encoder, learned, held_out, files = data.split(n_vocab=1024)

sequences.py then draws sequences from learned, and the loop measures the loss on held_out. The ids of a corpus remain
in its file, which is mapped into memory.
"""

import functools
import hashlib
import json
import os

import numpy as np

from beyond import tokenizer
from beyond.files import reading
from encoder import Encoder, get_encoder

IDS, WHOLE = "ids.bin", "corpus.json"  # in the folder of a corpus; the latter is written last
HELD_OUT = 2**20  # the most tokens of a corpus that are held out


class Source:
    """A text file ("-" is standard input) or the folder of a corpus, which is read once, when it is first needed."""

    def __init__(self, path):
        self.path, self.is_corpus = path, os.path.isdir(path)

    @functools.cached_property
    def text(self):
        return reading.read_text(self.path)

    @functools.cached_property
    def corpus(self):
        return load(self.path)

    @property
    def n_vocab(self):
        """The size of a corpus's vocabulary, or the default size of one that is learned from a text."""
        return len(self.corpus[0].encoder) if self.is_corpus else 1024

    @property
    def digest(self):
        """The SHA-256 of the text, or of the pieces of a corpus."""
        return self.corpus[2] if self.is_corpus else hashlib.sha256(self.text.encode()).hexdigest()

    def split(self, n_vocab):
        """(encoder, ids to learn from, ids held out, {filename: text} for the model's folder).

        The last tenth is held out, but at most 2**20 tokens of a corpus. Merges are learned from the rest of a text; a
        corpus already has a vocabulary.
        """
        if self.is_corpus:
            encoder, ids, _ = self.corpus
            cut = len(ids) - min(len(ids) // 10, HELD_OUT)
            return encoder, ids[:cut], ids[cut:], vocabulary_files(self.path)
        cut = len(self.text) * 9 // 10
        merges = tokenizer.learn(self.text[:cut], n_vocab)
        encoder = Encoder(tokenizer.vocabulary(merges), merges)
        learned, held_out = (np.array(encoder.encode(part), np.int32) for part in (self.text[:cut], self.text[cut:]))
        return encoder, learned, held_out, {**tokenizer.contents(merges), "held_out.txt": self.text[cut:]}


def load(folder):
    """(encoder, ids, digest) of a corpus; the ids are mapped. Raises ValueError unless it is complete."""
    if not os.path.exists(os.path.join(folder, WHOLE)):
        raise ValueError(f"{folder} is not a complete corpus: make it with python -m beyond.corpus, or run that again")
    encoder, found = encoder_of(folder), json.loads(reading.read_text(os.path.join(folder, WHOLE)))
    ids = np.memmap(os.path.join(folder, IDS), dtype_of(encoder), "r")
    if len(ids) != found["tokens"]:
        raise ValueError(f"{folder} is damaged: {IDS} has {len(ids):,} ids instead of {found['tokens']:,}")
    return encoder, ids, found["sha256"]


@functools.lru_cache(1)
def encoder_of(folder):
    parent, name = os.path.split(os.path.abspath(folder))
    return get_encoder(name, parent)


def vocabulary_files(folder):
    """{filename: text} of the vocabulary in a folder."""
    return {name: reading.read_text(os.path.join(folder, name)) for name in ("encoder.json", "vocab.bpe")}


def learn_vocabulary(texts, n_vocab):
    """{filename: text} of a vocabulary that is learned from texts, an iterable of strings."""
    return tokenizer.contents(tokenizer.learn(texts, n_vocab))


def dtype_of(encoder):
    """The type of the ids in a corpus: two bytes each, or four if the vocabulary has more than 65,536 tokens."""
    return np.dtype("<u2" if len(encoder.encoder) <= 2**16 else "<u4")
