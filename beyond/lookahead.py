"""The same text in fewer passes (speculative decoding by prompt lookup): guess the next tokens, check all at once.

    python -m beyond.lookahead "To be, or not to be" --model_size shakespeare --n_tokens_to_generate 200

prints what gpt2.py prints and, on standard error, the average number of tokens per pass:

    200 tokens in 73 passes: 2.74 per pass

A pass reads every weight, whether for one token or for sixteen, so sixteen take only about three times as long as one.
Where the last few tokens have occurred before, in the prompt or the output, we guess that the same tokens follow, and
send the guesses through the model after the last token. Its logits give the right token at each position; guesses are
kept up to the first wrong one. Dropping the others from the cache takes no work: past does not count them, and later
tokens overwrite them. The idea is from https://arxiv.org/abs/2304.04487. A wrong guess costs at least the time of two
tokens, so guesses are sent only after two in a row were right: text that never repeats itself takes no longer.

A matrix product with several rows may be rounded differently from one with a single row, in the seventh digit. Where
two logits are that close, or the random number is that close to the boundary between two tokens, texts may diverge.
"""

import itertools

import numpy as np

from beyond import preset
import cli
import gpt2

LONGEST = 16  # tokens per pass


def generate(inputs, params, n_head, n_tokens_to_generate, temperature=0, top_k=None, top_p=None, seed=None, stop=None):
    """What gpt2.generate returns, even when sampling: rng draws once per token, from the same probabilities."""
    return list(stream(inputs, params, n_head, n_tokens_to_generate, temperature, top_k, top_p, seed, stop))


def stream(*args, **options):
    """The ids that gpt2.stream yields, with the same arguments."""
    return itertools.chain.from_iterable(passes(*args, **options))


def passes(inputs, params, n_head, n_tokens_to_generate, temperature=0, top_k=None, top_p=None, seed=None, stop=None):
    """An iterator over the list of ids from each pass: at least one id, or none if the first is stop."""
    cli.check_inputs(inputs, params, n_tokens_to_generate, temperature, top_k, top_p, seed)

    def steps(ids):
        past = n = luck = 0  # luck: how many passes in a row were guessed right
        n_total = len(ids) + n_tokens_to_generate
        cache = gpt2.new_cache(params, n_head, n_total)
        followers = {}
        rng = np.random.default_rng(seed)
        while len(ids) < n_total:
            guesses = guess(ids, followers, n)
            n = len(ids)
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
                past += 1  # the cache already holds this token
            luck = luck + 1 if ids[n:] == guesses[: len(ids) - n] else 0
            yield ids[n:]

    return steps(list(inputs))


def guess(ids, followers, begin):  # list of int -> LONGEST ids, or none
    """The ids that followed an earlier occurrence of the last 3 (else 2, else 1) of ids, repeated if they are too few.

    followers: {n-gram: the position after its last occurrence}; this adds the positions from begin on.
    """
    for end in range(max(1, begin), len(ids)):
        for n in 1, 2, 3:
            followers[tuple(ids[max(0, end - n) : end])] = end
    for n in 3, 2, 1:
        if position := followers.get(tuple(ids[-n:])):
            return [ids[position + i % (len(ids) - position)] for i in range(LONGEST)]
    return []


if __name__ == "__main__":
    cli.run(preset("complete", lookahead=True))
