"""PicoGPT as a package: the command picogpt, and one module to import from.

    from picogpt import generate, load_encoder_hparams_and_params

The files beside this one import each other by short names, such as utils. Loaded from here, they become picogpt.utils
and so on, and find each other even if the current folder has its own utils.py.
"""

import builtins
import importlib.util
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
MODULES = "cli", "encoder", "gpt2", "gpt2_pico", "tf_checkpoint", "utils"


def _load(name):
    """Loads our module of that name as picogpt.NAME."""
    full_name = f"picogpt.{name}"
    if full_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(full_name, os.path.join(HERE, f"{name}.py"))
        module = sys.modules[full_name] = importlib.util.module_from_spec(spec)
        module.__builtins__ = {**vars(builtins), "__import__": _import}  # import statements call it
        spec.loader.exec_module(module)
    return sys.modules[full_name]


def _import(name, *args):
    return _load(name) if name in MODULES else builtins.__import__(name, *args)


cli, gpt2, utils = map(_load, ("cli", "gpt2", "utils"))
generate, stream, main = gpt2.generate, gpt2.stream, gpt2.main
load_encoder_hparams_and_params, __version__ = utils.load_encoder_hparams_and_params, utils.VERSION


def command():
    cli.run(main)


if __name__ == "__main__":
    command()
