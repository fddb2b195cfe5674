"""The same text in fewer passes: guess the next tokens, and check all guesses at once.

    python -m beyond.lookahead "To be, or not to be" --model_size shakespeare --n_tokens_to_generate 200

prints what gpt2.py prints and, on standard error, how many tokens came a pass:

    200 tokens in 73 passes: 2.74 a pass

A pass reads every weight, whether it works on one token or on sixteen, so sixteen take only about three times as long
as one. Where the last few tokens were there before, in prompt or output, we guess that the same follows again, and
send the guesses through the model after the last token. Its logits say what should have come at each place: guesses are
kept up to the first wrong one. Dropping the rest from the cache takes nothing: past does not count them, and what comes
next overwrites them. https://arxiv.org/abs/2304.04487 has the idea. A wrong guess costs two tokens' time and more, so
here guesses are made all the time but sent only after two in a row came true: text that never repeats itself costs no
more than before.

A product of several rows may round otherwise than one of one row, in the seventh digit. Where two tokens are as close
as that, or the drawn number is as close to the border between them, the texts may part there.
"""

import itertools

import numpy as np

from beyond import preset
import cli
import gpt2

LONGEST = 16  # tokens a pass


def generate(inputs, params, n_head, n_tokens_to_generate, temperature=0, top_k=None, top_p=None, seed=None, stop=None):
    """What gpt2.generate returns; sampled text too, as rng draws once a token, from the same probabilities."""
    return list(stream(inputs, params, n_head, n_tokens_to_generate, temperature, top_k, top_p, seed, stop))


def stream(*args, **options):
    """What gpt2.stream yields, with the same arguments."""
    return itertools.chain.from_iterable(passes(*args, **options))


def passes(inputs, params, n_head, n_tokens_to_generate, temperature=0, top_k=None, top_p=None, seed=None, stop=None):
    """Yields the ids that each pass gives: one or more, but none where the first is stop."""
    cli.check_inputs(inputs, params, n_tokens_to_generate, temperature, top_k, top_p, seed)
    ids, past, rng = list(inputs), 0, np.random.default_rng(seed)
    n, n_total, followers, luck = 0, len(ids) + n_tokens_to_generate, {}, 0
    cache = [np.empty((2, n_head, n_total, params["wte"].shape[1] // n_head), np.float32) for _ in params["blocks"]]
    while len(ids) < n_total:
        guesses, n = guess(ids, followers, n), len(ids)
        draft = guesses[: min(LONGEST, n_total - n) - 1] if luck >= 2 else []
        x = gpt2.hidden_states(ids[past:] + draft, **params, n_head=n_head, cache=cache, past=past)
        past = n
        for logits, guessed in zip(x[-len(draft) - 1 :] @ params["wte"].T, [*draft, None]):
            next_id = gpt2.sample(logits, temperature, top_k, top_p, rng)
            if next_id == stop:
                n_total = len(ids)
                break
            ids.append(next_id)
            if next_id != guessed:
                break
            past += 1  # the cache has this one already
        luck = luck + 1 if ids[n:] == guesses[: len(ids) - n] else 0
        yield ids[n:]


def guess(ids, followers, begin):  # list of int -> LONGEST ids, or none
    """What followed the last 3, else 2, else 1 of ids where they stood before; if that is too short, over and over.

    followers: {ids before a place: the last such place}, which is brought up to date here for the places from begin on.
    """
    for end in range(max(1, begin), len(ids)):
        for n in 1, 2, 3:
            followers[tuple(ids[max(0, end - n) : end])] = end
    for n in 3, 2, 1:
        if place := followers.get(tuple(ids[-n:])):
            return [ids[place + i % (len(ids) - place)] for i in range(LONGEST)]
    return []


if __name__ == "__main__":
    cli.run(preset("complete", lookahead=True))
