"""Texts as ids."""

import functools
import json
import os

import numpy as np

from beyond.files import reading
from encoder import get_encoder


def load(folder):
    """(encoder, ids, digest) of a corpus; the ids are mapped. Raises ValueError for one that is not whole."""
    if not os.path.exists(os.path.join(folder, WHOLE)):
        raise ValueError(f"{folder} is not a whole corpus: make it with python -m beyond.corpus, or repeat that")
    encoder, found = vocabulary(folder), json.loads(reading.read_text(os.path.join(folder, WHOLE)))
    ids = np.memmap(os.path.join(folder, IDS), dtype_of(encoder), "r")
    if len(ids) != found["tokens"]:
        raise ValueError(f"{folder} is damaged: {IDS} has {len(ids):,} ids instead of {found['tokens']:,}")
    return encoder, ids, found["sha256"]


def contents(folder):
    """{filename: text} of the vocabulary in a folder."""
    return {name: reading.read_text(os.path.join(folder, name)) for name in ("encoder.json", "vocab.bpe")}


@functools.lru_cache(1)
def vocabulary(folder):
    name, parent = os.path.basename(os.path.abspath(folder)), os.path.dirname(os.path.abspath(folder))
    return get_encoder(name, parent)


def dtype_of(encoder):
    return np.dtype("<u2" if len(encoder.encoder) <= 2**16 else "<u4")


LOG, IDS, WHOLE = "pieces.jsonl", "ids.bin", "corpus.json"


LOG, IDS, WHOLE = "pieces.jsonl", "ids.bin", "corpus.json"


LOG, IDS, WHOLE = "pieces.jsonl", "ids.bin", "corpus.json"


PIECE = 2**20  # characters
