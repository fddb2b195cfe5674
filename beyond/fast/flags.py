"""The flags --kernels, --bits, --weights and --lookahead for every command that takes them, in any combination.

    python -m beyond.complete "ROMEO:" --model_size shakespeare --kernels --bits 8 --lookahead

kernels.py is a variant of gpt2, quantize.py returns other params, and lookahead.py calls whichever gpt2 it is built on
(see beyond/__init__.py).
"""

from beyond import variant
import cli
import gpt2
import utils

cli.PATHS.add("--weights")
cli.HELP.update(
    kernels="Runs compiled loops instead of NumPy: beyond/kernels.py.",
    bits="8 or 4: quantizes the weights to that many bits: beyond/quantize.py. By default they stay float32.",
    weights="The file that caches the quantized weights; by default model.int8 or model.int4 in the model's folder.",
    lookahead="Guesses the next tokens and checks all guesses in one pass: beyond/lookahead.py.",
)


def load(model_size, models_dir, kernels=False, bits=None, weights=None):
    """(model, encoder, hparams, params); model is gpt2 or kernels.model. Raises ValueError, OSError or ImportError."""
    if bits is None and weights is not None:
        raise ValueError(f"weights={weights!r} is the file for quantized weights: add --bits=8 or --bits=4")
    if bits is None:
        encoder, hparams, params = utils.load_encoder_hparams_and_params(model_size, models_dir)
    else:
        from beyond import quantize

        encoder, hparams, params = quantize.load(model_size, models_dir, bits, weights)
    if not kernels:
        return gpt2, encoder, hparams, params
    from beyond import kernels as compiled

    return compiled.model, encoder, hparams, compiled.prepare(params)


def with_lookahead(model):
    """lookahead.py built on the given gpt2: the same stream and generate, plus passes."""
    from beyond import lookahead

    return variant(lookahead, gpt2=model)
