"""What a step learns from: rows of ids, drawn from those of a text, in memory or mapped from a corpus.

The ids are the only copy of the text. A row that is to be cut up differently, or to begin with a document, is drawn as
ids, too, made text again, a few hundred characters, and encoded once more. What a step draws depends on nothing but the
seed and the number of the step, so it is the same on any number of devices and processes.
"""

from concurrent.futures import ThreadPoolExecutor
import itertools
import re
import time

import numpy as np

from beyond import tokenizer
from beyond.learn import corpora
from encoder import BYTE_TO_CHAR, Encoder

HELD_OUT = 2**20  # tokens, at most, of a corpus


def from_text(text, n_vocab):
    """(encoder, ids to learn from, ids held out, {filename: text} for the model's folder); merges are learned first."""
    cut = len(text) * 9 // 10
    merges = tokenizer.learn(text[:cut], n_vocab)
    encoder = Encoder(tokenizer.vocabulary(merges), merges)
    learned, unseen = (np.array(encoder.encode(part), np.int32) for part in (text[:cut], text[cut:]))
    return encoder, learned, unseen, {**tokenizer.contents(merges), "held_out.txt": text[cut:]}


def from_corpus(folder):
    """The same of a corpus, whose ids stay where they are."""
    encoder, ids, _ = corpora.load(folder)
    cut = len(ids) - min(len(ids) // 10, HELD_OUT)
    return encoder, ids[:cut], ids[cut:], corpora.contents(folder)


def check_length(ids, n_ctx, what):
    """Raises ValueError unless a row of n_ctx tokens and the one that follows it can be cut from ids."""
    if len(ids) <= n_ctx:
        raise ValueError(
            f"n_ctx={n_ctx} needs {n_ctx + 1} tokens, and {what} has {len(ids)}: give a longer text or a smaller n_ctx"
        )


def without_merges(encoder, share, rng):
    """An encoder that lacks a share of the merges, drawn at random, and those that build on them."""
    kept = {char: None for char in BYTE_TO_CHAR.values()}  # {token: the merge that makes it}
    for pair in encoder.bpe_ranks:
        if pair[0] in kept and pair[1] in kept and rng.random() >= share:
            kept["".join(pair)] = pair
    return Encoder({token: encoder.encoder[token] for token in kept}, filter(None, kept.values()))


def row_maker(encoder, ids, n_ctx, batch_size, left_out=0.0, by_blank_lines=False):
    """rows(rng) -> ids [batch_size, n_ctx + 1]: pieces of the text whose ids are given.

    Three rows in four are cut up otherwise: by one of 128 encoders (of a large vocabulary, 16), each with a share
    left_out of the merges missing. Who sees a text cut up differently each time learns less by heart
    (https://arxiv.org/abs/1910.13267).
    by_blank_lines: these separate documents. Then one row in eight begins with one, and <|endoftext|> takes their
    place, so that a prompt that begins like a document is continued to that one's end and no further.
    Raises ValueError if there are no more than n_ctx ids.
    """
    check_length(ids, n_ctx, "the text without its last tenth")
    rng, end = np.random.default_rng(0), encoder.encoder.get("<|endoftext|>")
    exact = Encoder(encoder.encoder, encoder.bpe_ranks, "surrogateescape")  # a piece may end within a character
    n = min(max(16, 2**17 // len(encoder.encoder)), 128) if left_out else 0  # more are better, and take more memory
    others = [without_merges(encoder, left_out, rng) for _ in range(n)]

    def otherwise(piece, other):
        found = []
        for i, part in enumerate(np.split(piece, np.flatnonzero(piece == end))):  # <|endoftext|> begins all but one
            n = 1 if i else 0
            found += [*part[:n], *other.encode(exact.decode(part[n:].tolist()))]
        return found

    def documents(start):
        text, found = exact.decode(ids[start : start + 4 * n_ctx + 400].tolist()), []
        for document in re.split(r"\r?\n\r?\n", text)[1:]:
            if len(found) > n_ctx:
                break
            found += [*encoder.encode(document), end] if document else []
        return found[:-1]  # the last one was cut off, so that it does not end here

    def row(rng):
        kind, start = rng.integers(8), rng.integers(len(ids) - n_ctx)
        found = piece = np.asarray(ids[start : start + n_ctx + 1])
        if kind == 0 and by_blank_lines:
            found = documents(start)
        elif kind >= 2 and others:
            found = otherwise(piece, others[rng.integers(len(others))])
        return found[: n_ctx + 1] if len(found) > n_ctx else piece

    return lambda rng: np.array([row(rng) for _ in range(batch_size)], np.int32)


def read_ahead(function, arguments):
    """Yields function(argument) for each, and the seconds that this took to wait for; a thread makes the next one."""
    arguments = iter(arguments)
    with ThreadPoolExecutor(1) as thread:
        coming = [thread.submit(function, one) for one in itertools.islice(arguments, 1)]
        while coming:
            begin = time.perf_counter()
            found = coming.pop().result()
            waited = time.perf_counter() - begin
            coming = [thread.submit(function, one) for one in itertools.islice(arguments, 1)]
            yield found, waited
