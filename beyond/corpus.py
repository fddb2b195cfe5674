"""A text of any size as token ids in a file, which a training maps into memory instead of reading it.

    python -m beyond.corpus wiki.jsonl books/*.txt --out data/mine
    python -m beyond.train data/mine --model_size mine --steps 100000

The texts go through in pieces of a megabyte, cut where white space begins, so that their tokens together are those of
the whole (beyond/evaluate.py does the same). All cores work on pieces, and no more are read than are worked on, so that
memory does not grow: for 200 MB of made-up text three processes took 397 MB together, for 1 GB 418 MB.
A document is a file, or a line {"text": ...} of a file that ends in .jsonl; <|endoftext|> comes after it. The
vocabulary is a model's, or is learned from pieces that are evenly spread over all but the last tenth of the text, with
which a training measures.

OUT gets encoder.json, vocab.bpe, ids.bin, two bytes an id (four where there are more than 65,536), and corpus.json,
which says that it is whole. Until then pieces.jsonl has a line for each piece, with its digest, and a run that goes on
reads the texts again, compares, and tokenizes what is not there yet. A kill costs the pieces in work, one a core.
"""

import collections
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
import functools
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import signal
import sys
import threading

import numpy as np

from beyond import tokenizer
from beyond.files import reading, runs, writing
from beyond.files.reading import beginning, pieces
from beyond.learn import corpora
import cli
import utils

# --- reading: a part is [text, whether its document ends there]; a piece is a list of parts ---


def read_parts(paths):
    """Yields the parts of all documents. Raises ValueError, naming the place, for what is no UTF-8 or no record."""
    for path in paths:
        if path.endswith(".jsonl"):
            for _, record in reading.read_records(path, {"text": "a document"}):
                text = record["text"].encode("utf-16", "surrogatepass")  # JSON can spell half a character
                yield [text.decode("utf-16", "replace"), True]
            continue
        with open(path, "rb") if path != "-" else sys.stdin.buffer as data:
            try:
                yield from (
                    [text, False] for text in pieces(io.TextIOWrapper(data, "utf-8", newline=""), corpora.PIECE)
                )
            except UnicodeDecodeError as error:
                place = error.start + (data.tell() - len(error.object) if data.seekable() else 0)
                byte = error.object[error.start]
                raise ValueError(f"{path} is not UTF-8: byte {place:,} is 0x{byte:02x}; convert it first") from None
        yield ["", True]


def read_pieces(paths):
    """Yields pieces of about corpora.PIECE characters."""
    piece, n = [], 0
    for part in read_parts(paths):
        piece.append(part)
        n += len(part[0])
        if n >= corpora.PIECE // 2:
            yield piece
            piece, n = [], 0
    if piece:
        yield piece


def spread(pieces, n):
    """n of the pieces or fewer, evenly spread over all but their last tenth, in one pass."""
    kept, every = [], 1
    for i, piece in enumerate(pieces):
        if i % every == 0:
            kept.append((i, piece))
        if len(kept) > n:
            kept, every = kept[::2], 2 * every
    return [piece for j, piece in kept if j == 0 or j < 0.9 * i]


def digest(piece):
    return hashlib.sha256(json.dumps(piece).encode()).hexdigest()


# --- tokenizing: each process has the vocabulary from the folder ---


def tokenize(folder, piece):  # -> ids [n]
    encoder = corpora.vocabulary(folder)
    end = beginning(encoder)  # [] where the vocabulary has none
    ids = (itertools.chain(encoder.encode(text), end * ends) for text, ends in piece)
    return np.fromiter(itertools.chain.from_iterable(ids), corpora.dtype_of(encoder))


def watch():
    """In each process: Ctrl-C is the first one's to answer, and whoever kills that one ends this one, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()


def in_order(function, items, cores):
    """map(function, items) in so many processes, which takes no more than twice as many items ahead."""
    if cores == 1:
        yield from map(function, items)
        return
    pool, waiting = ProcessPoolExecutor(cores, multiprocessing.get_context("spawn"), watch), collections.deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * cores:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise OSError("a process was ended, maybe for want of memory: repeat this with fewer cores") from None
    finally:
        pool.shutdown(cancel_futures=True)


# --- the folder ---


def check_out(out, settings):
    """Raises ValueError unless the folder is new, or holds what a run with these settings left."""
    found = set(os.listdir(out)) if os.path.isdir(out) else set()
    if os.path.exists(out) and not os.path.isdir(out):
        raise ValueError(f"{out} is a file: give the name of a new folder")
    if corpora.WHOLE in found or found and corpora.LOG not in found:
        what = "is a corpus already" if corpora.WHOLE in found else "holds other files"
        raise ValueError(f"{out} {what}: give another out, or remove that folder")
    if found and settings:
        with open(os.path.join(out, corpora.LOG), encoding="utf-8") as log:
            runs.same_work(out, log.readline(), settings)


def resume(log, ids, itemsize):
    """What pieces.jsonl says of the pieces that are whole; cuts off both files what a kill left after those."""
    size, kept, n_ids, records = os.path.getsize(ids.name), len(log.readline()), 0, []  # the first line: settings
    for line in log:
        if not line.endswith(b"\n") or itemsize * (n_ids + json.loads(line)["tokens"]) > size:
            break
        records.append(json.loads(line))
        n_ids, kept = n_ids + records[-1]["tokens"], kept + len(line)
    log.truncate(kept)
    ids.truncate(itemsize * n_ids)
    log.seek(kept)
    return records


def add(whole, out, cores, bar):
    """Tokenizes what the folder lacks of the pieces, and writes corpus.json."""
    itemsize = corpora.dtype_of(corpora.vocabulary(out)).itemsize
    with open(os.path.join(out, corpora.LOG), "rb+") as log, open(os.path.join(out, corpora.IDS), "ab") as ids:
        writing.lock(log)
        records = resume(log, ids, itemsize)
        for record in records:
            if digest(next(whole, None)) != record["sha256"]:
                raise ValueError(f"{out} was begun with other texts: repeat those, or give another out, or remove it")
            bar.update(record["bytes"])
        known, whole = itertools.tee(whole)  # in_order is a few pieces ahead
        for piece, found in zip(known, in_order(functools.partial(tokenize, out), whole, cores)):
            n_bytes = sum(len(text.encode()) for text, _ in piece)
            records.append({"sha256": digest(piece), "tokens": len(found), "bytes": n_bytes})
            ids.write(found)
            ids.flush()
            log.write(json.dumps(records[-1]).encode() + b"\n")
            log.flush()
            bar.update(n_bytes)
    sums = {name: sum(record[name] for record in records) for name in ("tokens", "bytes")}
    sums["sha256"] = hashlib.sha256("".join(record["sha256"] for record in records).encode()).hexdigest()
    writing.write_text(os.path.join(out, corpora.WHOLE), json.dumps(sums))
    os.remove(os.path.join(out, corpora.LOG))
    return sums["tokens"], sums["bytes"]


def main(*texts, out, model_size: str = None, models_dir="models", n_vocab=50257, sample=16, cores: int = None):
    """Tokenizes texts of any size into a folder that beyond.train learns from. A killed run goes on.

    Args:
        texts: Paths of UTF-8 texts, each a document, and of .jsonl files with a document, {"text": ...}, in each line;
            - reads the standard input.
        out: The folder of the corpus.
        model_size: A model whose vocabulary is taken; by default one is learned from the texts.
        models_dir: Where that model is; by default models/ beside gpt2.py.
        n_vocab: Tokens in a vocabulary that is learned, 257 or more.
        sample: Megabytes to learn it from, evenly spread over the texts; of the standard input the first ones.
        cores: How many processes tokenize; by default one for each core.
    """
    from tqdm import tqdm

    texts, cores = list(map(str, texts)), os.cpu_count() if cores is None else cores
    cli.check("n_vocab", n_vocab, 257, 10**7, "256 bytes and <|endoftext|>")
    cli.check("sample", sample, 1, 10**6)
    cli.check("cores", cores, 1, 10**4)
    if not texts or texts.count("-") > 1:
        raise ValueError("name one text or more, - for the standard input only once")
    n_bytes = sum(os.path.getsize(path) for path in texts if path != "-" and not open(path, "rb").close())
    check_out(out, None)
    whole, once = read_pieces(texts), "-" in texts or model_size
    some = list(itertools.islice(whole, 1 if model_size else sample)) if once else spread(whole, sample)
    if not any(text for piece in some for text, _ in piece):
        raise ValueError(f"{' and '.join(texts)}: nothing is in it; give a text to learn from")
    if model_size:
        folder = utils.folder_of(model_size, models_dir)
        found = corpora.contents(folder)
        settings = {"vocabulary": hashlib.sha256("".join(found.values()).encode()).hexdigest()}
    else:
        settings = {"n_vocab": n_vocab, "sample": hashlib.sha256("".join(map(digest, some)).encode()).hexdigest()}
    check_out(out, settings)
    paths = [os.path.join(out, name) for name in ("encoder.json", "vocab.bpe")]
    if not all(map(os.path.exists, paths)):
        if not model_size:
            found = tokenizer.contents(tokenizer.learn((text for piece in some for text, _ in piece), n_vocab))
        os.makedirs(out, exist_ok=True)
        writing.write_text(os.path.join(out, corpora.LOG), json.dumps(settings) + "\n")
        for name, text in found.items():
            writing.write_text(os.path.join(out, name), text)
    whole = itertools.chain(some, whole) if once else read_pieces(texts)
    cores, total = (cores, None) if "-" in texts else (cores if n_bytes > 2 * corpora.PIECE else 1, n_bytes)
    with tqdm(total=total, desc="tokenizing", unit="B", unit_scale=True, disable=None) as bar:
        n, n_bytes = add(whole, out, cores, bar)
    return f"{out}: {n:,} tokens of {n_bytes:,} bytes, {n_bytes / n:.2f} bytes a token"


if __name__ == "__main__":
    cli.run(main)
