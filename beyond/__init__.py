"""What comes after gpt2.py: a chapter a file, each one idea. A chapter redefines what its idea changes; this is the seam.

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


def variant(module, **names):
    """A copy of the module, made from its file, in which these names mean something else. Takes two milliseconds."""
    names = {**getattr(module, "_names", {}), **names}
    spec = importlib.util.spec_from_file_location(f"{os.path.basename(module.__file__)[:-3]}_with_{'_'.join(names)}", module.__file__)
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    vars(copy).update(names, _names=names)
    return copy
