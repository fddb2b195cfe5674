"""Tokenizes a text of any size into a file, which a training run maps into memory instead of reading it.

    python -m beyond.corpus wiki.jsonl books/*.txt --out data/mine
    python -m beyond.train data/mine --model_size mine --steps 100000

The texts are read in pieces of a megabyte, cut before white space, so that the pieces give the same tokens as the whole
text (beyond/evaluate.py does the same). All cores tokenize, and reading stays only a few pieces ahead, so memory use
barely grows with the text: three processes used 397 MB in total for 200 MB of synthetic text, and 418 MB for 1 GB.
A document is a file, or a line {"text": ...} of a file that ends in .jsonl; <|endoftext|> follows each. The vocabulary
is that of a model, or is learned from pieces evenly spread over the first nine tenths of the text; training holds out
the rest.

OUT gets encoder.json, vocab.bpe, ids.bin with two bytes per id (four if there are more than 65,536), and finally
corpus.json, which marks it as complete. Until then pieces.jsonl has a line for each piece, with its digest. The same
command resumes a killed run, which loses only the pieces in progress, a few per core: it reads the texts again,
compares them, and tokenizes the missing pieces.
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

from beyond.files import reading, runs, writing
from beyond.learn import corpora
import cli
import utils

PIECE = 2**20  # characters
LOG = "pieces.jsonl"

# --- reading: a part is [text, whether its document ends there]; a piece is a list of parts ---


def read_parts(paths):
    """Yields the parts of all documents. Raises ValueError, naming the position, for invalid UTF-8 or JSON."""
    for path in paths:
        if path.endswith(".jsonl"):
            for _, record in reading.read_records(path, {"text": "a document"}):
                text = record["text"].encode("utf-16", "surrogatepass")  # JSON can escape half a character
                yield [text.decode("utf-16", "replace"), True]
            continue
        with open(path, "rb") if path != "-" else sys.stdin.buffer as data:
            try:
                for text in reading.pieces(io.TextIOWrapper(data, "utf-8", newline=""), PIECE):
                    yield [text, False]
            except UnicodeDecodeError as error:
                position = error.start + (data.tell() - len(error.object) if data.seekable() else 0)
                byte = error.object[error.start]
                raise ValueError(f"{path} is not UTF-8: byte {position:,} is 0x{byte:02x}; convert it first") from None
        yield ["", True]


def read_pieces(paths):
    """Yields pieces of about PIECE characters."""
    piece, n = [], 0
    for part in read_parts(paths):
        piece.append(part)
        n += len(part[0])
        if n >= PIECE // 2:
            yield piece
            piece, n = [], 0
    if piece:
        yield piece


def spread(pieces, n):
    """At most n of the pieces, evenly spread over all but the last tenth of them, in one pass."""
    kept, every = [], 1
    for i, piece in enumerate(pieces):
        if i % every == 0:
            kept.append((i, piece))
        if len(kept) > n:
            kept, every = kept[::2], 2 * every
    return [piece for j, piece in kept if j == 0 or j < 0.9 * i]


def digest(piece):
    return hashlib.sha256(json.dumps(piece).encode()).hexdigest()


# --- tokenizing ---


def tokenize(folder, piece):  # -> ids [n]; each process reads the vocabulary in the folder once
    encoder = corpora.encoder_of(folder)
    end = reading.separator(encoder)
    ids = (itertools.chain(encoder.encode(text), end * ends) for text, ends in piece)
    return np.fromiter(itertools.chain.from_iterable(ids), corpora.dtype_of(encoder))


def watch():
    """In each process: ignores Ctrl-C, which the main process handles, and exits when that process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()


def in_order(function, items, cores):
    """map(function, items) in that many processes; takes items from the iterator at most 2 * cores ahead."""
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
        raise OSError("a process was killed, possibly because memory ran out: try again with fewer cores") from None
    finally:
        pool.shutdown(cancel_futures=True)


# --- the folder ---


def check_out(out, settings=None):
    """Raises ValueError unless the folder is new, or holds an unfinished run, with these settings if given."""
    found = set(os.listdir(out)) if os.path.isdir(out) else set()
    if os.path.exists(out) and not os.path.isdir(out):
        raise ValueError(f"{out} is a file: give the name of a new folder")
    if corpora.WHOLE in found or found and LOG not in found:
        what = "is already a corpus" if corpora.WHOLE in found else "holds other files"
        raise ValueError(f"{out} {what}: choose another --out, or remove that folder")
    if found and settings:
        with open(os.path.join(out, LOG), encoding="utf-8") as log:
            runs.same_work(out, log.readline(), settings)


def begin(out, settings, make_vocabulary):
    """Writes the settings as the log's first line, and the vocabulary, unless an earlier run already has."""
    if all(os.path.exists(os.path.join(out, name)) for name in ("encoder.json", "vocab.bpe")):
        return
    files = make_vocabulary()
    os.makedirs(out, exist_ok=True)
    for name, text in {LOG: json.dumps(settings) + "\n", **files}.items():
        writing.write_text(os.path.join(out, name), text)


def resume(log, ids, itemsize):
    """The log's records of complete pieces; truncates both files after these, as a killed run may leave part of one."""
    size, kept, n_ids, records = os.path.getsize(ids.name), len(log.readline()), 0, []  # the first line: settings
    for line in log:
        if not line.endswith(b"\n") or itemsize * (n_ids + json.loads(line)["tokens"]) > size:
            break
        records.append(json.loads(line))
        n_ids += records[-1]["tokens"]
        kept += len(line)
    log.truncate(kept)
    ids.truncate(itemsize * n_ids)
    log.seek(kept)
    return records


def add(pieces, out, cores, bar):
    """Tokenizes the pieces that the folder lacks, and writes corpus.json; (number of tokens, number of bytes)."""
    itemsize, log_path = corpora.dtype_of(corpora.encoder_of(out)).itemsize, os.path.join(out, LOG)
    with utils.locked(log_path, wait=False):
        with open(log_path, "rb+") as log, open(os.path.join(out, corpora.IDS), "ab") as ids:
            records = resume(log, ids, itemsize)
            for record in records:
                if digest(next(pieces, None)) != record["sha256"]:
                    raise ValueError(
                        f"{out} was started with different texts: pass those again, choose another --out, or remove it"
                    )
                bar.update(record["bytes"])
            known, pieces = itertools.tee(pieces)  # because in_order reads ahead
            for piece, found in zip(known, in_order(functools.partial(tokenize, out), pieces, cores)):
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
        os.remove(log_path)
    return sums["tokens"], sums["bytes"]


def main(*texts, out, model_size: str = None, models_dir="models", n_vocab=50257, sample=16, cores: int = None):
    """Tokenizes texts of any size into a folder that beyond.train learns from. The same command resumes a killed run.

    Args:
        texts: Paths of UTF-8 texts, each a document, and of .jsonl files with a document, {"text": ...}, in each line;
            - reads standard input.
        out: The folder of the corpus.
        model_size: The model whose vocabulary is used; by default a vocabulary is learned from the texts.
        n_vocab: The size of a learned vocabulary, 257 or more.
        sample: Megabytes of text to learn it from: evenly spread over the texts, or the first ones of standard input.
        cores: The number of processes that tokenize; by default one per core.
    """
    from tqdm import tqdm

    texts, cores = list(map(str, texts)), os.cpu_count() if cores is None else cores
    cli.check("n_vocab", n_vocab, 257, 10**7, "256 bytes and <|endoftext|>")
    cli.check("sample", sample, 1, 10**6)
    cli.check("cores", cores, 1, 10**4)
    if not texts or texts.count("-") > 1:
        raise ValueError("name one or more texts, and - for standard input only once")
    n_bytes = sum(os.path.getsize(path) for path in texts if path != "-" and not open(path, "rb").close())
    check_out(out)
    pieces, read_once = read_pieces(texts), "-" in texts or model_size
    some = list(itertools.islice(pieces, 1 if model_size else sample)) if read_once else spread(pieces, sample)
    if not any(text for piece in some for text, _ in piece):
        raise ValueError(f"{' and '.join(texts)}: no text found; give a text to learn from")
    if model_size:
        files = corpora.vocabulary_files(utils.folder_of(model_size, models_dir))
        settings = {"vocabulary": hashlib.sha256("".join(files.values()).encode()).hexdigest()}
    else:
        settings = {"n_vocab": n_vocab, "sample": hashlib.sha256("".join(map(digest, some)).encode()).hexdigest()}
    check_out(out, settings)
    learned = (text for piece in some for text, _ in piece)
    begin(out, settings, lambda: files if model_size else corpora.learn_vocabulary(learned, n_vocab))
    pieces = itertools.chain(some, pieces) if read_once else read_pieces(texts)
    if "-" in texts:
        n_bytes = None  # unknown
    elif n_bytes <= 2 * PIECE:
        cores = 1
    with tqdm(total=n_bytes, desc="tokenizing", unit="B", unit_scale=True, disable=None) as bar:
        n, n_bytes = add(pieces, out, cores, bar)
    return f"{out}: {n:,} tokens of {n_bytes:,} bytes, {n_bytes / n:.2f} bytes per token"


if __name__ == "__main__":
    cli.run(main)
