"""What pip install . adds: the command picogpt, and one name to import generate and the loader from."""

from cli import run
from gpt2 import generate, main
from utils import VERSION as __version__
from utils import load_encoder_hparams_and_params

__all__ = ["__version__", "command", "generate", "load_encoder_hparams_and_params"]


def command():
    run(main)
