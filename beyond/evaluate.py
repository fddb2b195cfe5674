"""How well a model predicts a text: its loss on each token, and how often it predicts the last word of a passage.

    python -m beyond.evaluate models/shakespeare/held_out.txt --model_size shakespeare

prints, for the last tenth of Shakespeare, which the model has not seen:

    49422 tokens, 20153 words, 111540 bytes
    loss 3.1399 nats per token
    perplexity 23.10 per token, 2208.72 per word, 2.0072 bits per byte

The loss of a token is -log p of that token given those before it, in nats. Each token is scored once, in windows of
n_ctx tokens that begin every stride tokens: all but the first n_ctx tokens have at least n_ctx - stride tokens of
context, so a smaller stride is more accurate and takes longer. The first token follows <|endoftext|>, as documents did
in training; if the vocabulary does not have it, scoring begins with the second token. A file that ends in .jsonl holds
passages, {"text": ...} in each line, like LAMBADA's test (https://arxiv.org/abs/1606.06031): the accuracy is the share
of passages whose last word greedy decoding generates, token by token.

Zero-shot results of OpenAI's models, from their paper (Radford et al. 2019, table 3, https://cdn.openai.com/
better-language-models/language_models_are_unsupervised_multitask_learners.pdf), with its own preprocessing:

                                 124M    355M    774M   1558M
    LAMBADA       perplexity    35.13   15.60   10.87    8.63
    LAMBADA       accuracy %    45.99   55.48   60.12   63.24
    WikiText2     perplexity    29.41   22.76   19.93   18.34
    PTB           perplexity    65.85   47.33   40.31   35.76
    enwik8        bits/byte      1.16    1.01    0.97    0.93
    text8         bits/char      1.17    1.06    1.02    0.98
    WikiText103   perplexity    37.50   26.37   22.05   17.48
    1BW           perplexity    75.20   55.72   44.575  42.16

Their perplexity is exp(loss per word); ours is given per token and per word, words being separated by white space.
"""

import collections
import io
import itertools
import json
import math
import os
import sys

import numpy as np

from beyond import variant
from beyond.fast import flags
from beyond.files import reading
from beyond.learn.losses import cross_entropy
import cli
import gpt2


def losses(inputs, targets, params, n_head):  # [n_seq], [n] -> [n], [n] bool
    """-log p of each target, in nats, and whether it has the highest logit; the last target follows all of inputs."""
    logits = gpt2.hidden_states(inputs, **params, n_head=n_head)[-len(targets) :] @ params["wte"].T
    return cli.check_numbers(cross_entropy(logits, targets)), logits.argmax(axis=-1) == targets


def evaluate(ids, params, n_head, stride):
    """Yields the losses of the ids (any iterable) after the first one, each once, an array per window."""
    n_ctx, n_new = len(params["wpe"]), 0
    recent, due = collections.deque(maxlen=n_ctx + 1), n_ctx
    for id in ids:
        n_new += len(recent) > 0
        recent.append(id)
        if n_new == due:
            yield losses(list(recent)[:-1], list(recent)[-n_new:], params, n_head)[0]
            n_new, due = 0, stride
    if n_new:
        yield losses(list(recent)[:-1], list(recent)[-n_new:], params, n_head)[0]


def read_ids(file, encoder, counts):
    """Yields the ids of a text file, which it reads in pieces; counts what it has read: {"words": n, "bytes": n}."""
    for piece in reading.pieces(file):
        counts["words"] += len(piece.split())
        counts["bytes"] += len(piece.encode("utf-8", "surrogateescape"))
        yield from encoder.encode(piece)


def score_text(path, encoder, params, n_head, stride):
    """The report that main prints for a text, which may be larger than memory."""
    from tqdm import tqdm

    # invalid UTF-8 is scored as raw bytes
    file = io.TextIOWrapper(reading.open_bytes(path), "utf-8", "surrogateescape", newline="")
    total = os.path.getsize(path) if os.path.exists(path) else None
    bar = tqdm(total=total, desc="scoring", unit="B", unit_scale=True, leave=False, disable=None)
    with file, bar:
        counts, loss, n = collections.Counter(), 0.0, 0
        start, ids = reading.separator(encoder), read_ids(file, encoder, counts)
        if not start:  # then the first token serves only as context
            start = list(itertools.islice(ids, 1))
            counts["bytes"] -= sum(len(encoder.decoder[id]) for id in start)
        for found in evaluate(itertools.chain(start, ids), params, n_head, stride):
            loss += float(found.sum(dtype=np.float64))
            n += len(found)
            bar.update(counts["bytes"] - bar.n)
    if not n:
        raise ValueError(f"{path} is empty: there is nothing to score")
    n_words, n_bytes = counts["words"], counts["bytes"]
    per_word = f"{perplexity(loss / n_words)} per word, " if n_words else ""
    return (
        f"{n} tokens, {n_words} words, {n_bytes} bytes\nloss {loss / n:.4f} nats per token\nperplexity "
        f"{perplexity(loss / n)} per token, {per_word}{loss / math.log(2) / n_bytes:.4f} bits per byte"
    )


def token_lines(path, encoder, params, n_head, stride):
    """Yields a JSON object for each token that score_text scores: its id, its text, and log p in nats."""
    ids = [*reading.separator(encoder), *encoder.encode(reading.read_text(path))]
    found = itertools.chain.from_iterable(evaluate(iter(ids), params, n_head, stride))
    for id, loss in zip(ids[1:], found):
        record = {"id": id, "token": encoder.decode([id]), "logprob": -round(float(loss), 6)}
        yield json.dumps(record, ensure_ascii=False)


def score_last_words(path, encoder, params, n_head):
    """The report that main prints for passages; the last word begins with the last space."""
    from tqdm import tqdm

    n_ctx, n_right, found = len(params["wpe"]), 0, []
    records = reading.read_records(path, {"text": "a passage"})
    for place, record in tqdm(records, "scoring", unit=" passages", leave=False, disable=None):
        context, space, word = record["text"].rstrip().rpartition(" ")
        before, target = [*reading.separator(encoder), *encoder.encode(context)], encoder.encode(space + word)
        if not 0 < len(target) <= n_ctx:
            raise ValueError(f"{place}: its last word has {len(target)} tokens; it must have from 1 to {n_ctx}")
        if not before:
            raise ValueError(f"{place}: there is no text before its last word: give a longer passage")
        inputs = [*before, *target][-n_ctx - 1 :]
        loss, right = losses(inputs[:-1], target, params, n_head)
        found.append(loss.sum(dtype=np.float64))
        n_right += right.all()
    if not found:
        raise ValueError(f"{path} is empty: there is nothing to score")
    return (
        f"{len(found)} passages\naccuracy of the last word {100 * n_right / len(found):.2f}%\n"
        f"perplexity {perplexity(np.mean(found))} per last word"
    )


def perplexity(loss):
    """exp(loss) as a string, since it may be too large for a float."""
    return f"{math.exp(loss):.2f}" if loss < 700 else f"e^{loss:.0f}"


def main(
    text, model_size="124M", models_dir="models", stride: int = None, *, tokens=False, kernels=False,
    bits: int = None, weights: str = None,
):  # fmt: skip
    """Scores a text: its loss in nats per token, its perplexity per token and per word, and its bits per byte.

    Zero-shot results of OpenAI's models, 124M / 355M / 774M / 1558M (table 3 of their paper): WikiText2 29.41 / 22.76 /
    19.93 / 18.34 per word, enwik8 1.16 / 1.01 / 0.97 / 0.93 bits per byte, LAMBADA 45.99 / 55.48 / 60.12 / 63.24% of
    the last words.

    Args:
        text: The path of a text; - reads standard input. If it ends in .jsonl, it holds passages, {"text": ...} in each
            line, whose last words are scored.
        stride: The number of tokens between the starts of two windows, from 1 to n_ctx; by default half of n_ctx.
        tokens: Prints a line of JSON per token of a text instead: {"id": ..., "token": ..., "logprob": ...}.
    """
    model, encoder, hparams, params = flags.load(model_size, models_dir, kernels, bits, weights)
    stride = max(1, hparams["n_ctx"] // 2) if stride is None else stride
    cli.check("stride", stride, 1, hparams["n_ctx"], "at most n_ctx")
    chapter = variant(sys.modules[__name__], gpt2=model)
    if tokens:
        print(*chapter.token_lines(text, encoder, params, hparams["n_head"], stride), sep="\n")
        return None
    if str(text).endswith(".jsonl"):
        return chapter.score_last_words(text, encoder, params, hparams["n_head"])
    return chapter.score_text(text, encoder, params, hparams["n_head"], stride)


if __name__ == "__main__":
    cli.run(main)
