"""python -m picogpt, once it is installed; in a clone, python FOLDER."""

from picogpt import command

command()
