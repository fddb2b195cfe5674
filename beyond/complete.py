"""A command line with the usual flags: several samples, a stop text, fewer repetitions.

    python -m beyond.complete "ROMEO:" --model_size shakespeare --n_samples 2 --temperature 0.8 --seed 1 --stop .

prints one line of JSON per sample (a single sample is printed as plain text):

    "\\nAy, give me sock: I wish it"
    "\\nI thank thee"

The prompt passes through the model once, however many the samples: each continues from a copy of the prompt's cache.
A repetition penalty p divides the logits of tokens that are already in the text by p if they are above 0 and multiplies
them by p otherwise (Keskar et al. 2019, section 4.1, https://arxiv.org/abs/1909.05858, as implemented in transformers).
"""

import json
import sys

import numpy as np

from beyond.fast import flags
import cli


def penalized(logits, ids, penalty):  # [n_vocab], list of int -> [n_vocab]
    """The logits, lowered for the tokens in ids, the text so far."""
    logits, seen = logits.copy(), np.unique(ids)
    logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    return logits


def samples(model, inputs, params, n_head, n_tokens_to_generate, seeds, options=(0, None, None), penalty=1, stop=None):
    """For each seed, an iterator over the ids that model.generate returns with that seed.

    options: temperature, top_k, top_p. Raises ValueError if the arguments do not fit the model.
    """
    cli.check_inputs(inputs, params, n_tokens_to_generate, *options)
    n, n_total = len(inputs), len(inputs) + n_tokens_to_generate
    cache = model.new_cache(params, n_head, n_total)
    first = model.hidden_states(list(inputs), **params, n_head=n_head, cache=cache)[-1] if n < n_total else None

    def sample(seed):
        own_cache = [kv.copy() for kv in cache]
        rng, ids, x = np.random.default_rng(seed), list(inputs), first
        for past in range(n, n_total):
            if past > n:
                x = model.hidden_states(ids[-1:], **params, n_head=n_head, cache=own_cache, past=past - 1)[-1]
            logits = x @ params["wte"].T
            logits = penalized(logits, ids, penalty) if penalty != 1 else logits
            ids.append(model.sample(logits, *options, rng))
            if ids[-1] == stop:
                return
            yield ids[-1]

    return map(sample, seeds)


def counted(passes, counts):
    """Yields the ids of passes, and appends the number of ids in each pass to counts."""
    for ids in passes:
        counts.append(len(ids))
        yield from ids


def until(stop, pieces):
    """Yields the pieces of a text up to the stop string. An ending that may be the beginning of stop is held back."""
    held = ""
    for piece in pieces:
        held += piece
        if stop in held:
            yield held.partition(stop)[0]
            return
        kept = max(0, len(held) - len(stop) + 1)
        yield held[:kept]
        held = held[kept:]
    yield held


def main(prompt: str = None, n_tokens_to_generate=40, model_size="124M", models_dir="models", temperature=0,
         top_k: int = None, top_p: float = None, seed: int = None, *, n_samples=1, stop: str = None,
         repetition_penalty=1, keep_end=False, fit=False, kernels=False, bits: int = None, lookahead=False,
         weights: str = None):  # fmt: skip
    """Continues a text with GPT-2 and prints one or several continuations.

    Args:
        seed: Sample n is the one that gpt2.py generates with the seed seed + n - 1. By default texts differ each time.
        n_samples: How many continuations, 1 to 10000; several are printed as JSON, one line each.
        stop: A text that ends a continuation, and is not printed.
        repetition_penalty: Above 1, tokens that are already in the text become less probable; 1 changes nothing.
        keep_end: Of a prompt that is too long, keeps the end that fits.
        fit: Adds at most as many tokens as fit, instead of an error.
    """
    cli.check_options(n_tokens_to_generate, temperature, top_k, top_p, seed)
    cli.check("n_samples", n_samples, 1, 10000)
    cli.check("repetition_penalty", repetition_penalty, 1e-3, 1e3)
    if lookahead and repetition_penalty != 1:
        raise ValueError(f"repetition_penalty={repetition_penalty} does not work with lookahead: leave one of them out")
    prompt = cli.read_prompt(prompt)
    model, encoder, hparams, params = flags.load(model_size, models_dir, kernels, bits, weights)
    inputs, n = cli.encode_prompt(encoder, prompt), n_tokens_to_generate
    if keep_end:
        inputs = inputs[-max(1, hparams["n_ctx"] - (1 if fit else n)) :]
    if fit:
        n = min(n, max(0, hparams["n_ctx"] - len(inputs)))
    seeds = [None if seed is None else seed + i for i in range(n_samples)]
    args = inputs, params, hparams["n_head"], n
    options, end_of_text = (temperature, top_k, top_p), encoder.encoder.get("<|endoftext|>")
    counts = []  # of tokens per pass
    if lookahead:
        guessing = flags.with_lookahead(model)
        found = (counted(guessing.passes(*args, *options, one, end_of_text), counts) for one in seeds)
    else:
        found = samples(model, *args, seeds, options, repetition_penalty, end_of_text)
    texts = (until(stop, text) if stop else text for text in map(encoder.decode_stream, found))
    if n_samples == 1:
        result = cli.show(next(texts), n)
    else:
        result = None
        for text in texts:
            print(json.dumps("".join(text), ensure_ascii=False), flush=True)
    if lookahead:
        rate = sum(counts) / max(1, len(counts))
        print(f"{sum(counts)} tokens in {len(counts)} passes: {rate:.2f} per pass", file=sys.stderr)
    return result


if __name__ == "__main__":
    cli.run(main)
