"""What comes after gpt2.py: one idea per file, which redefines what the idea changes. This is the seam.

variant(gpt2, gelu=mine) is gpt2.py once more, as a module of its own, in which gelu means mine, wherever it is called:

    fast = variant(gpt2, gelu=gelu, layer_norm=layer_norm)
    ids = fast.generate(inputs, params, n_head, 40)

gpt2 itself stays as it is, so that many variants can be used at once, in threads too. What a chapter uses unchanged it
calls as gpt2.NAME; so a chapter over another model is a variant as well, and ideas can be combined in any order:

    both = variant(lookahead, gpt2=fast)

A variant of a variant has the names of both.
"""

import importlib.util
import os
import sys

# After each product NumPy's threads keep polling for work for 2^26 cycles, on cores that kernels.py's threads need;
# 2^10 are enough. OpenBLAS reads this when NumPy is loaded, and python -m beyond.NAME runs these lines first.
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
    """Prints one line instead of a traceback when a package is missing."""
    if issubclass(kind, ModuleNotFoundError):
        print(f"error: {error.name} is not installed: pip install -r beyond/requirements.txt", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


if sys.argv[0] == "-m":  # python -m beyond.NAME, which imports this before the chapter
    sys.excepthook = _explain
