"""The training data of each step: sequences drawn from the token ids of a text, in memory or mapped from a corpus.

Only the ids of the text are kept. For BPE dropout, or to begin with a document, a few hundred characters of it are
decoded and encoded again. A batch depends only on the seed and the step, so it is the same on any number of devices and
processes.
"""

from concurrent.futures import ThreadPoolExecutor
import itertools
import re
import time

import numpy as np

from encoder import BYTE_TO_CHAR, Encoder


def check_length(ids, n_ctx, what):
    """Raises ValueError unless a sequence of n_ctx tokens, and the token after it, can be cut from ids."""
    if len(ids) <= n_ctx:
        raise ValueError(
            f"n_ctx={n_ctx} needs {n_ctx + 1} tokens, and {what} has {len(ids)}: use a longer text or a smaller n_ctx"
        )


def without_merges(encoder, share, rng):
    """An encoder without a random share of the merges, and without those that build on them."""
    kept = {char: None for char in BYTE_TO_CHAR.values()}  # {token: the merge that makes it}
    for pair in encoder.bpe_ranks:
        if pair[0] in kept and pair[1] in kept and rng.random() >= share:
            kept["".join(pair)] = pair
    return Encoder({token: encoder.encoder[token] for token in kept}, filter(None, kept.values()))


def sequence_maker(encoder, ids, n_ctx, batch_size, bpe_dropout=0.0, by_blank_lines=False):
    """draw(rng) -> ids [batch_size, n_ctx + 1]: sequences from the text that has these ids.

    BPE dropout (https://arxiv.org/abs/1910.13267) reduces memorization by varying the tokenization: three sequences in
    four are tokenized by one of 128 encoders (16 for a large vocabulary), which lack a share bpe_dropout of the merges.
    by_blank_lines: blank lines separate documents. One sequence in eight then begins with a document and has
    <|endoftext|> for blank lines, so that the model continues a document to its end and no further.
    Raises ValueError if there are no more than n_ctx ids.
    """
    check_length(ids, n_ctx, "the text without its last tenth")
    end = encoder.encoder.get("<|endoftext|>")
    exact = Encoder(encoder.encoder, encoder.bpe_ranks, "surrogateescape")  # a piece may end within a character
    n = min(max(16, 2**17 // len(encoder.encoder)), 128) if bpe_dropout else 0  # more are better, but take more memory
    rng = np.random.default_rng(0)
    others = [without_merges(encoder, bpe_dropout, rng) for _ in range(n)]

    def encoded_again(piece, other):
        found = []
        for i, part in enumerate(np.split(piece, np.flatnonzero(piece == end))):  # all but the first begin with end
            n = 1 if i else 0
            found += [*part[:n], *other.encode(exact.decode(part[n:].tolist()))]
        return found

    def documents(start):
        found = []
        text = exact.decode(ids[start : start + 4 * n_ctx + 400].tolist())
        for document in re.split(r"\r?\n\r?\n", text)[1:]:
            if len(found) > n_ctx:
                break
            found += [*encoder.encode(document), end] if document else []
        return found[:-1]  # the last one was cut off, so it does not end here

    def sequence(rng):
        kind, start = rng.integers(8), rng.integers(len(ids) - n_ctx)
        found = piece = np.asarray(ids[start : start + n_ctx + 1])
        if kind == 0 and by_blank_lines:
            found = documents(start)
        elif kind >= 2 and others:
            found = encoded_again(piece, others[rng.integers(len(others))])
        return found[: n_ctx + 1] if len(found) > n_ctx else piece

    return lambda rng: np.array([sequence(rng) for _ in range(batch_size)], np.int32)


def read_ahead(function, arguments):
    """Yields (function(argument), seconds spent waiting for it) for each; a thread prefetches the next one."""
    arguments = iter(arguments)
    with ThreadPoolExecutor(1) as thread:
        coming = [thread.submit(function, one) for one in itertools.islice(arguments, 1)]
        while coming:
            start = time.perf_counter()
            found = coming.pop().result()
            waited = time.perf_counter() - start
            coming = [thread.submit(function, one) for one in itertools.islice(arguments, 1)]
            yield found, waited
