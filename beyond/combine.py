"""Kernels, quantized weights, lookahead: the flags by which any of them go together, for all commands that have them.

    python -m beyond.kernels "ROMEO:" --model_size shakespeare --bits 8 --lookahead

Each is a chapter and independent of the others: kernels.py is another gpt2, quantize.py gives other params, and
lookahead.py calls whatever gpt2 it is made over (see beyond/__init__.py).
"""

import functools
import sys

from beyond import variant
import gpt2
import utils


def load(model_size, models_dir, kernels=False, bits=None, weights=None):
    """(gpt2 or kernels.model, encoder, hparams, params). Raises ValueError or OSError, as when Numba is missing."""
    model = gpt2
    if bits is not None:
        from beyond import quantize

        encoder, hparams, params = quantize.load(model_size, models_dir, bits, weights)
    elif weights is not None:
        raise ValueError(f"weights={weights!r} is where quantized weights go: give bits, 8 or 4, too")
    else:
        encoder, hparams, params = utils.load_encoder_hparams_and_params(model_size, models_dir)
    if kernels:
        from beyond import kernels as compiled

        model, params = compiled.model, compiled.prepare(params)
    return model, encoder, hparams, params


def main(
    prompt: str = None,
    n_tokens_to_generate=40,
    model_size="124M",
    models_dir="models",
    temperature=0,
    top_k: int = None,
    top_p: float = None,
    seed: int = None,
    *,
    kernels=False,
    bits: int = None,
    lookahead=False,
    weights: str = None,
):
    """Continues a text with GPT-2 and prints the continuation.

    Args:
        prompt: The text to continue; - reads the standard input, "" begins from nothing.
        n_tokens_to_generate: How many tokens to add, 0 or more; with the prompt at most n_ctx (1024).
        model_size: 124M, 355M, 774M, 1558M, shakespeare or another folder in models_dir.
        models_dir: Where the models are; by default models/ beside gpt2.py.
        temperature: 0 always takes the most probable token; the higher it is, the more chance has a say.
        top_k: At a temperature, draws from the k most probable tokens only, 1 or more. By default from all.
        top_p: Likewise, from the fewest tokens that reach this probability, 0 to 1, together. By default from all.
        seed: Likewise, the same seed, 0 or more, gives the same text. By default another text each time.
        kernels: Compiles the small layers. beyond.kernels always does.
        bits: 8 or 4: quantizes the weights. beyond.quantize has 8, if nothing is said.
        lookahead: Guesses the next tokens, and tells how many came a pass. beyond.lookahead always does.
        weights: Where the quantized weights are kept; by default model.int8 or model.int4 in the model's folder.
    """
    options = n_tokens_to_generate, temperature, top_k, top_p, seed
    utils.check_options(*options)
    prompt = utils.read_prompt(prompt)
    model, encoder, hparams, params = load(model_size, models_dir, kernels, bits, weights)
    inputs, end_of_text = utils.encode_prompt(encoder, prompt), encoder.encoder.get("<|endoftext|>")
    if not lookahead:
        return encoder.decode(model.generate(inputs, params, hparams["n_head"], *options, stop=end_of_text))
    from beyond import lookahead as guessing

    guessing = variant(guessing, gpt2=model)
    found = list(guessing.passes(inputs, params, hparams["n_head"], *options, stop=end_of_text))
    n = sum(map(len, found))
    print(f"{n} tokens in {len(found)} passes: {n / max(1, len(found)):.2f} a pass", file=sys.stderr)
    return encoder.decode([id for ids in found for id in ids])


def chapter(**defaults):
    """main with these flags set."""

    @functools.wraps(main)
    def chosen(*args, **kwargs):
        return main(*args, **{**defaults, **kwargs})

    return chosen


def run(**defaults):
    """The command of a chapter."""
    utils.run(chapter(**defaults), "prompt", "model_size", "models_dir", "weights")
