"""Where vocab.bpe comes from: learns the merges of byte-pair encoding from a text.

    python -m beyond.tokenizer TEXT --n_vocab 1024 --out models/NAME

On tinyshakespeare that takes two seconds and prints

    models/NAME: 1024 tokens; the text's 1,115,394 characters take 459,913 tokens, 2.43 characters per token

encoder.py applies merges; this chapter learns them. Count each pair of adjacent symbols in the text, merge the most
frequent pair everywhere, and repeat: each round adds one token. Two things make this fast: a text has few distinct
words, so each is stored once with its count; and a merge changes only the pairs in the words that contain it, so only
those are recounted. Of equally frequent pairs, the one with the older tokens is merged first.

It writes encoder.json and vocab.bpe in GPT-2's format: 256 bytes, the merges by rank, <|endoftext|> last.
Sennrich et al. 2016, algorithm 1, https://arxiv.org/abs/1508.07909.
"""

from collections import Counter, defaultdict
from heapq import heapify, heappop, heappush
import json
import os

from beyond.files import reading, writing
from beyond.formats.vocabulary import merges_file
import cli
from encoder import BYTE_TO_CHAR, WORDS, Encoder


def learn(text, n_vocab):  # str or strings, int -> list of (str, str)
    """The merges, by rank, for a vocabulary of n_vocab tokens: 256 bytes, one token per merge, and <|endoftext|>.

    text: a text, or its parts if it was cut between words.
    Raises ValueError if n_vocab leaves no room for the bytes, or if the text does not have that many pairs to merge.
    """
    from tqdm import tqdm

    cli.check("n_vocab", n_vocab, 257, hint="256 bytes and <|endoftext|>")
    ids = {char: id for id, char in enumerate(BYTE_TO_CHAR.values())}
    word_counts = Counter()
    for part in [text] if isinstance(text, str) else text:
        word_counts.update(WORDS.findall(part))
    words = [([BYTE_TO_CHAR[byte] for byte in word.encode()], n) for word, n in word_counts.items()]
    counts, words_with = Counter(), defaultdict(set)  # for each pair: how often it occurs, and in which words
    for i, (symbols, n) in enumerate(words):
        for pair in zip(symbols, symbols[1:]):
            counts[pair] += n
            words_with[pair].add(i)

    def entry(pair):
        return -counts[pair], ids[pair[0]], ids[pair[1]], pair

    heap, merges = [entry(pair) for pair in counts], []
    heapify(heap)
    bar = tqdm(total=n_vocab - 257, desc="merges", leave=False, disable=None)
    while len(ids) < n_vocab - 1:
        if not heap:
            raise ValueError(
                f"n_vocab={n_vocab} is too large for this text: with {len(ids) + 1} tokens every word is a token; use "
                f"a longer text or at most n_vocab={len(ids) + 1}"
            )
        top = heappop(heap)
        pair = top[-1]
        if top != entry(pair) or counts[pair] == 0:
            continue  # stale: the count has changed, and a newer entry has the current one
        merges.append(pair)
        ids.setdefault("".join(pair), len(ids))
        bar.update()
        changed = set()
        for i in words_with.pop(pair):
            symbols, n = words[i]
            joined = join(symbols, pair)
            for old in zip(symbols, symbols[1:]):
                counts[old] -= n
                changed.add(old)
            for new in zip(joined, joined[1:]):
                counts[new] += n
                words_with[new].add(i)
                changed.add(new)
            words[i] = joined, n
        for pair in changed:
            if counts[pair] > 0:
                heappush(heap, entry(pair))
    bar.close()
    return merges


def join(symbols, pair):
    """The symbols with each occurrence of the pair merged into one, from left to right."""
    joined, i = [], 0
    while i < len(symbols):
        n = 2 if i + 1 < len(symbols) and (symbols[i], symbols[i + 1]) == pair else 1
        joined.append("".join(symbols[i : i + n]))
        i += n
    return joined


def vocabulary(merges):
    """{token: id}: the 256 bytes, one token per merge, and <|endoftext|>."""
    tokens = dict.fromkeys([*BYTE_TO_CHAR.values(), *map("".join, merges), "<|endoftext|>"])
    return {token: id for id, token in enumerate(tokens)}


def contents(merges):
    """{filename: text} of encoder.json and vocab.bpe."""
    return {
        "encoder.json": json.dumps(vocabulary(merges)),
        "vocab.bpe": merges_file(map(" ".join, merges)),
    }


def save(merges, folder):
    """Writes encoder.json and vocab.bpe into the folder, creating it if necessary."""
    os.makedirs(folder, exist_ok=True)
    for name, text in contents(merges).items():
        writing.write_text(os.path.join(folder, name), text)


def check_same(merges, folder):
    """Raises ValueError if the folder has another vocabulary, which a model's weights may depend on."""
    for name, text in contents(merges).items():
        path = os.path.join(folder, name)
        if os.path.exists(path) and reading.read_bytes(path) != text.encode():
            raise ValueError(f"{path} already exists and differs: choose another --out, or remove it")


def main(text, out, n_vocab=1024):
    """Learns a vocabulary from a text and prints how many characters there are per token.

    Args:
        text: The path of a UTF-8 text; - reads standard input.
        out: The folder for encoder.json and vocab.bpe, created if necessary.
        n_vocab: The size of the vocabulary, 257 or more (GPT-2's is 50257). The number of possible merges limits it.
    """
    content = reading.read_text(text)
    merges = learn(content, n_vocab)
    check_same(merges, out)
    save(merges, out)
    n, n_ids = len(content), len(Encoder(vocabulary(merges), merges).encode(content))
    per_token = f"{n / n_ids:.2f} characters per token"
    return f"{out}: {n_vocab} tokens; the text's {n:,} characters take {n_ids:,} tokens, {per_token}"


if __name__ == "__main__":
    cli.run(main)
