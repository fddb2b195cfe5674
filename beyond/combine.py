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
        kernels: Compiles the small layers. beyond.kernels always does.
        bits: 8 or 4: quantizes the weights. beyond.quantize has 8, if nothing is said.
        lookahead: Guesses the next tokens, and tells how many came a pass. beyond.lookahead always does.
    """
    options = n_tokens_to_generate, temperature, top_k, top_p, seed
    utils.check_options(*options)
    prompt = utils.read_prompt(prompt)
    model, encoder, hparams, params = load(model_size, models_dir, kernels, bits, weights)
    inputs, end_of_text = utils.encode_prompt(encoder, prompt), encoder.encoder.get("<|endoftext|>")
    args = inputs, params, hparams["n_head"], *options, end_of_text
    if not lookahead:
        return utils.show(encoder.decode_stream(model.stream(*args)), n_tokens_to_generate)
    from beyond import lookahead as guessing

    counts = []  # the tokens of each pass

    def counted():
        for ids in variant(guessing, gpt2=model).passes(*args):
            counts.append(len(ids))
            yield from ids

    text = utils.show(encoder.decode_stream(counted()), n_tokens_to_generate)
    n, n_passes = sum(counts), len(counts)
    print(f"{n} tokens in {n_passes} passes: {n / max(1, n_passes):.2f} a pass", file=sys.stderr)
    return text


def chapter(**defaults):
    """main with these flags set."""

    @functools.wraps(main)
    def chosen(*args, **kwargs):
        return main(*args, **{**defaults, **kwargs})

    return chosen


def run(**defaults):
    """The command of a chapter."""
    utils.run(chapter(**defaults), "prompt", "model_size", "models_dir", "weights")
