"""One idea per file: what comes after gpt2.py. A chapter redefines only what its idea changes, through this seam.

variant(gpt2, gelu=mine) is a copy of gpt2.py, a module of its own, in which every call of gelu calls mine:

    fast = variant(gpt2, gelu=gelu, layer_norm=layer_norm)
    ids = fast.generate(inputs, params, n_head, 40)

gpt2 itself does not change, so many variants can be used at once, in threads as well. A chapter calls what it does not
change as gpt2.NAME, so a chapter can use another model by a variant, and ideas can be combined in any order:

    both = variant(lookahead, gpt2=fast)

A variant of a variant has the redefinitions of both.

Each .py here is a chapter and a command, python -m beyond.NAME. Shared code is in folders: bench, devices, fast, files,
formats, learn. Chapters do not import each other; tests/test_house.py lists the exceptions.
"""

import difflib
import functools
import importlib.util
import os
import sys

# After each product NumPy's threads poll for work for 2^26 cycles, on cores that the threads of kernels.py need; 2^10
# are enough. OpenBLAS reads this when NumPy is loaded, and python -m beyond.NAME runs these lines first.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "10")


def variant(module, **names):
    """A copy of the module, executed from its file, in which these names have other values. Takes two milliseconds.

    Raises ValueError for a name that the module does not have.
    """
    for name in names:
        if not hasattr(module, name):
            close = difflib.get_close_matches(name, vars(module), 1, 0.5)
            hint = f": did you mean {close[0]}?" if close else ""
            raise ValueError(f"{module.__name__} has no {name} that could be redefined{hint}")
    names = {**getattr(module, "_names", {}), **names}
    name = f"{os.path.basename(module.__file__)[:-3]}_with_{'_'.join(names)}"
    spec = importlib.util.spec_from_file_location(name, module.__file__)
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    vars(copy).update(names, _names=names)
    return copy


def preset(chapter, **flags):
    """The main of beyond.CHAPTER with other defaults: python -m beyond.kernels is python -m beyond.complete --kernels.

    It is imported by name and only when a command starts, as its own imports may include the caller.
    """
    main = importlib.import_module(f"beyond.{chapter}").main
    made = functools.partial(main, **flags)
    made.__doc__ = main.__doc__
    return made


def _explain(kind, error, traceback):
    """Prints one line instead of a traceback when a package is missing."""
    if issubclass(kind, ModuleNotFoundError):
        print(f"error: {error.name} is not installed: pip install -r beyond/requirements.txt", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


if sys.argv[0] == "-m":  # python -m beyond.NAME, which imports this before the chapter
    sys.excepthook = _explain
