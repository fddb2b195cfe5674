"""How well a model knows a text: its loss on each token, and how often it guesses a passage's last word.

    python -m beyond.evaluate models/shakespeare/held_out.txt --model_size shakespeare

prints, for the last tenth of Shakespeare, of which the model has seen nothing:

    49422 tokens, 20153 words, 111540 bytes
    loss 3.1399 nats a token
    perplexity 23.10 a token, 2208.72 a word, 2.0072 bits a byte

The loss of a token is -log p, in nats, of that token given those before it. Each token is scored once, in
windows of n_ctx tokens that begin every stride tokens: all but the first n_ctx tokens see at least n_ctx - stride
tokens before them, so a small stride is more accurate and takes longer. The first token follows <|endoftext|>,
as documents did in training; where the vocabulary has none, scoring begins with the second. A file that ends in .jsonl
holds passages, {"text": ...} in each line, as LAMBADA's test has them (https://arxiv.org/abs/1606.06031): counted are
those whose last word greedy decoding gives, token by token.

Zero-shot results of OpenAI's models, as the paper has them (Radford et al. 2019, table 3, https://cdn.openai.com/
better-language-models/language_models_are_unsupervised_multitask_learners.pdf), after its own cleaning of the texts:

                                 124M    355M    774M   1558M
    LAMBADA       perplexity    35.13   15.60   10.87    8.63
    LAMBADA       accuracy %    45.99   55.48   60.12   63.24
    WikiText2     perplexity    29.41   22.76   19.93   18.34
    PTB           perplexity    65.85   47.33   40.31   35.76
    enwik8        bits a byte    1.16    1.01    0.97    0.93
    text8         bits a char    1.17    1.06    1.02    0.98
    WikiText103   perplexity    37.50   26.37   22.05   17.48
    1BW           perplexity    75.20   55.72   44.575  42.16

Perplexity is e to the loss of a word there; ours is given for tokens and for words, which white space separates.
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
import cli
import gpt2


def losses(inputs, targets, params, n_head):  # [n_seq], [n] -> [n], [n] bool
    """-log p of each target, in nats, and whether it has the highest logit; the last of them follows all of inputs."""
    logits = gpt2.hidden_states(inputs, **params, n_head=n_head)[-len(targets) :] @ params["wte"].T
    logits -= logits.max(axis=-1, keepdims=True)
    chosen = logits[np.arange(len(targets)), targets]
    return cli.check_numbers(np.log(np.exp(logits).sum(axis=-1)) - chosen), chosen == 0


def evaluate(ids, params, n_head, stride):
    """Yields the losses of the ids (any iterable) after the first one, each once, an array for each window."""
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


def score_text(path, encoder, params, n_head, stride):
    """What main prints for a text, which is read in pieces, so that it may be larger than memory."""
    from tqdm import tqdm

    n_words = n_bytes = n_read = n = 0
    loss, start = 0.0, reading.beginning(encoder)
    # bytes that are not UTF-8 are scored as they are
    with (
        io.TextIOWrapper(reading.open_bytes(path), "utf-8", "surrogateescape", newline="") as file,
        tqdm(
            total=os.path.getsize(path) if os.path.exists(path) else None,
            desc="scoring",
            unit="B",
            unit_scale=True,
            leave=False,
            disable=None,
        ) as bar,
    ):

        def read():
            nonlocal n_words, n_bytes, n_read
            for piece in reading.pieces(file):
                ids = encoder.encode(piece)
                if not start and not n_read:
                    n_bytes -= sum(len(encoder.decoder[id]) for id in ids[:1])  # the first token is not scored
                n_words, n_read = n_words + len(piece.split()), n_read + len(ids)
                n_bytes += len(piece.encode("utf-8", "surrogateescape"))
                yield from ids

        for found in evaluate(itertools.chain(start, read()), params, n_head, stride):
            loss, n = loss + float(found.sum(dtype=np.float64)), n + len(found)
            bar.update(n_bytes - bar.n)
    if not n:
        raise ValueError(f"{path} is empty: there is nothing to score")
    per_word = f"{perplexity(loss / n_words)} a word, " if n_words else ""
    return (
        f"{n} tokens, {n_words} words, {n_bytes} bytes\nloss {loss / n:.4f} nats a token\nperplexity "
        f"{perplexity(loss / n)} a token, {per_word}{loss / math.log(2) / n_bytes:.4f} bits a byte"
    )


def token_lines(path, encoder, params, n_head, stride):
    """Yields a JSON object for each token that score_text scores: its id, its text, and log p in nats."""
    ids = [*reading.beginning(encoder), *encoder.encode(reading.read_text(path))]
    found = itertools.chain.from_iterable(evaluate(iter(ids), params, n_head, stride))
    for id, loss in zip(ids[1:], found):
        yield json.dumps(
            {"id": id, "token": encoder.decode([id]), "logprob": -round(float(loss), 6)}, ensure_ascii=False
        )


def score_last_words(path, encoder, params, n_head):
    """What main prints for passages; the last word is what follows the last space."""
    from tqdm import tqdm

    n_ctx, n_right, found = len(params["wpe"]), 0, []
    records = reading.read_records(path, {"text": "a passage"})
    for place, record in tqdm(records, "scoring", unit=" passages", leave=False, disable=None):
        context, space, word = record["text"].rstrip().rpartition(" ")
        before, target = [*reading.beginning(encoder), *encoder.encode(context)], encoder.encode(space + word)
        if not 0 < len(target) <= n_ctx:
            raise ValueError(f"{place}: its last word has {len(target)} tokens; it must have from 1 to {n_ctx}")
        if not before:
            raise ValueError(f"{place}: nothing comes before its last word: give a longer passage")
        inputs = [*before, *target][-n_ctx - 1 :]
        loss, right = losses(inputs[:-1], target, params, n_head)
        found.append(loss.sum(dtype=np.float64))
        n_right += right.all()
    if not found:
        raise ValueError(f"{path} is empty: there is nothing to score")
    return (
        f"{len(found)} passages\naccuracy of the last word {100 * n_right / len(found):.2f}%\n"
        f"perplexity {perplexity(np.mean(found))} a last word"
    )


def perplexity(loss):
    """e to the loss, as a text, as it may be beyond all floats."""
    return f"{math.exp(loss):.2f}" if loss < 700 else f"e^{loss:.0f}"


def main(
    text,
    model_size="124M",
    models_dir="models",
    stride: int = None,
    *,
    tokens=False,
    kernels=False,
    bits: int = None,
    weights: str = None,
):
    """Scores a text: its loss in nats a token, its perplexity a token and a word, and bits a byte.

    OpenAI's models, 124M / 355M / 774M / 1558M, without training on it (table 3 of their paper): WikiText2 29.41 /
    22.76 / 19.93 / 18.34 a word, enwik8 1.16 / 1.01 / 0.97 / 0.93 bits a byte, LAMBADA 45.99 / 55.48 / 60.12 / 63.24%
    of the last words.

    Args:
        text: The path of a text; - reads the standard input. If it ends in .jsonl, of passages, {"text": ...} in each
            line, whose last words are scored.
        model_size: 124M, 355M, 774M, 1558M, shakespeare or another folder in models_dir.
        stride: From 1 to n_ctx: a window begins every so many tokens. By default half of n_ctx.
        tokens: Prints a line of JSON for each token of a text instead: {"id": ..., "token": ..., "logprob": ...}.
    """
    model, encoder, hparams, params = flags.load(model_size, models_dir, kernels, bits, weights)
    stride = max(1, hparams["n_ctx"] // 2) if stride is None else stride
    cli.check("stride", stride, 1, hparams["n_ctx"], "at most n_ctx")
    over = variant(sys.modules[__name__], gpt2=model)
    if tokens:
        print(*over.token_lines(text, encoder, params, hparams["n_head"], stride), sep="\n")
        return None
    if str(text).endswith(".jsonl"):
        return over.score_last_words(text, encoder, params, hparams["n_head"])
    return over.score_text(text, encoder, params, hparams["n_head"], stride)


if __name__ == "__main__":
    cli.run(main)
