"""What people expect of a command line: several samples, a stop text, fewer repetitions.

    python -m beyond.complete "ROMEO:" --model_size shakespeare --n_samples 2 --temperature 0.8 --seed 1 --stop .

prints a line of JSON for each of several samples; a single one is printed as it is:

    "\\nAy, give me sock: I wish it"
    "\\nI thank thee"

The prompt passes through the model once, whatever the number of samples: each goes on from a copy of its cache.
A repetition penalty p divides the logits of tokens that are in the text already by p where they are above 0, and
multiplies them by p where they are not (Keskar et al. 2019, section 4.1, https://arxiv.org/abs/1909.05858, in the form
that transformers has given it).
"""

import itertools
import json
import sys

import numpy as np

from beyond.fast import flags
import cli


def penalized(logits, ids, penalty):  # [n_vocab], list of int -> [n_vocab]
    """The logits with those of ids, the text so far, made less probable."""
    logits, seen = logits.copy(), np.unique(ids)
    logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    return logits


def samples(model, inputs, params, n_head, n_tokens_to_generate, seeds, options=(0, None, None), penalty=1, stop=None):
    """For each of seeds, an iterator of the ids that model.generate gives with it, one by one, as they are made.

    options: temperature, top_k, top_p. The prompt's cache is computed once.
    """
    cli.check_inputs(inputs, params, n_tokens_to_generate, *options)
    n = len(inputs)
    shape = 2, n_head, n + n_tokens_to_generate, params["wte"].shape[1] // n_head
    cache = [np.empty(shape, np.float32) for _ in params["blocks"]]
    first = (
        model.hidden_states(list(inputs), **params, n_head=n_head, cache=cache)[-1] if n_tokens_to_generate else None
    )

    def sample(seed):
        kv, rng, ids, x = [one.copy() for one in cache], np.random.default_rng(seed), list(inputs), first
        for past in range(n, n + n_tokens_to_generate):
            logits = x @ params["wte"].T
            logits = penalized(logits, ids, penalty) if penalty != 1 else logits
            if (next_id := model.sample(logits, *options, rng)) == stop:
                return
            yield next_id
            ids.append(next_id)
            if past + 1 < n + n_tokens_to_generate:
                x = model.hidden_states(ids[past:], **params, n_head=n_head, cache=kv, past=past)[-1]

    return map(sample, seeds)


def until(stop, pieces):
    """Yields the pieces of a text up to the text stop. What may be its beginning is held back until that is known."""
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
        seed: Sample n is what gpt2.py writes with the seed seed + n - 1. By default other texts each time.
        n_samples: How many continuations, 1 to 10000; more than one is printed as JSON, a line for each.
        stop: A text that ends a continuation, and is not printed.
        repetition_penalty: Above 1, what was said already becomes less probable; 1 changes nothing.
        keep_end: Of a prompt that is too long, takes the end for which there is room.
        fit: Adds at most as many tokens as there is room for, instead of an error.
    """
    cli.check_options(n_tokens_to_generate, temperature, top_k, top_p, seed)
    cli.check("n_samples", n_samples, 1, 10000)
    cli.check("repetition_penalty", repetition_penalty, 1e-3, 1e3)
    if lookahead and repetition_penalty != 1:
        raise ValueError(f"repetition_penalty={repetition_penalty} does not work with lookahead: leave one of them out")
    prompt = cli.read_prompt(prompt)
    model, encoder, hparams, params = flags.load(model_size, models_dir, kernels, bits, weights)
    inputs, n_ctx = cli.encode_prompt(encoder, prompt), hparams["n_ctx"]
    if keep_end:
        inputs = inputs[-max(1, n_ctx - (1 if fit else n_tokens_to_generate)) :]
    n = min(n_tokens_to_generate, max(0, n_ctx - len(inputs))) if fit else n_tokens_to_generate
    seeds = [None if seed is None else seed + i for i in range(n_samples)]
    options, end_of_text, passes = (temperature, top_k, top_p), encoder.encoder.get("<|endoftext|>"), []
    if lookahead:
        guessing = flags.with_lookahead(model)
        each = (guessing.passes(inputs, params, hparams["n_head"], n, *options, one, end_of_text) for one in seeds)
        found = (itertools.chain.from_iterable(counted(one, passes)) for one in each)
    else:
        found = samples(model, inputs, params, hparams["n_head"], n, seeds, options, repetition_penalty, end_of_text)
    texts = map(encoder.decode_stream, found)
    texts = (until(stop, text) if stop else text for text in texts)
    if n_samples == 1:
        result = cli.show(next(texts), n)
    else:
        result = None
        for text in texts:
            print(json.dumps("".join(text), ensure_ascii=False), flush=True)
    if lookahead:
        total = sum(passes)
        print(f"{total} tokens in {len(passes)} passes: {total / max(1, len(passes)):.2f} per pass", file=sys.stderr)
    return result


def counted(passes, counts):
    """Yields the passes, lists of ids, and appends the length of each to counts."""
    for ids in passes:
        counts.append(len(ids))
        yield ids


if __name__ == "__main__":
    cli.run(main)
