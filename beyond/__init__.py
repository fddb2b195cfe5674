"""What comes after gpt2.py: a chapter a file, each one idea, which redefines what its idea changes. This is the seam.

variant(gpt2, gelu=mine) is gpt2.py once more, as a module of its own, in which gelu means mine, wherever it is called:

    fast = variant(gpt2, gelu=gelu, layer_norm=layer_norm)
    ids = fast.generate(inputs, params, n_head, 40)

gpt2 itself stays as it is, so that many variants live side by side, in threads too. What a chapter takes as it is it
calls as gpt2.NAME; so a chapter over another model is a variant as well, and ideas go together in any order:

    both = variant(lookahead, gpt2=fast)

A variant of a variant has the names of both.
"""

import importlib.util
import os
import sys

# After each product NumPy's threads go on asking for work for 2^26 cycles, on a core that kernels.py's threads need;
# 2^10 are enough. OpenBLAS reads this when NumPy is loaded: python -m beyond.NAME comes here before.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "10")


def variant(module, **names):
    """A copy of the module, made from its file, in which these names mean something else. Takes two milliseconds."""
    names = {**getattr(module, "_names", {}), **names}
    name = f"{os.path.basename(module.__file__)[:-3]}_with_{'_'.join(names)}"
    spec = importlib.util.spec_from_file_location(name, module.__file__)
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    vars(copy).update(names, _names=names)
    return copy


def _explain(kind, error, traceback):
    """What a command says instead of a traceback where a package is missing."""
    if issubclass(kind, ModuleNotFoundError):
        print(f"error: {error.name} is not installed: pip install -r beyond/requirements.txt", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


if sys.argv[0] == "-m":  # python -m beyond.NAME, which imports this before the chapter
    sys.excepthook = _explain
