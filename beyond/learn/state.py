"""The state of a training on disk: all that it takes to go on as if nothing had happened, in one file of the folder.

The file is there from the first evaluation until the work is done, and is replaced whole. A run goes on from it only if
it is the same work (see beyond/files.py), on any number of devices and processes.
"""

import json
import os
import zipfile

import jax
import numpy as np

from beyond.files import runs, writing


def load_npz(path, *names):
    """{name: array} of a file that NumPy saved, of all or of these. Raises ValueError for any other file."""
    try:
        with np.load(path) as file:
            return {name: file[name] for name in names or file}
    except (ValueError, EOFError, KeyError, TypeError, AttributeError, NotImplementedError, zipfile.BadZipFile):
        raise ValueError(
            f"{path} is damaged, or another program's: remove it, or what it is in, and begin again"
        ) from None


def state_path(folder):
    return os.path.join(folder, runs.STATE)


def write_state(folder, settings, steps, tree, history):
    """Keeps the last evaluation's state, all at once. Process 0 does it, for all."""
    if jax.process_index():
        return
    leaves = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(tree))}
    os.makedirs(folder, exist_ok=True)
    writing.write_whole(
        state_path(folder),
        lambda part: np.savez(part, settings=json.dumps(settings), steps=steps, history=history, **leaves),
    )


def check_state(folder, settings):
    """Whether the folder holds the state of a run with these settings. Raises ValueError unless it does, or is new.

    To be called before anything takes long or is written.
    """
    writing.check_new(folder)
    if not os.path.exists(state_path(folder)):
        return False
    runs.same_work(folder, str(load_npz(state_path(folder), "settings")["settings"]), settings)
    return True


def saved_steps(folder):
    """How many steps the run in the folder makes; None where there is none."""
    return int(load_npz(state_path(folder), "steps")["steps"]) if os.path.exists(state_path(folder)) else None


def read_state(folder, settings, tree):
    """(tree, history) as write_state had them, with the structure of tree; None where there is none."""
    if not check_state(folder, settings):
        return None
    leaves, structure = jax.tree.flatten(tree)
    saved = load_npz(state_path(folder))
    found = [saved.get(str(i)) for i in range(len(leaves))]
    if [np.shape(x) for x in found] != [np.shape(x) for x in leaves] or "history" not in saved:
        raise ValueError(f"{folder} holds a run of another version of this program: give another name, or remove it")
    return jax.tree.unflatten(structure, found), saved["history"].tolist()


def finish(folder):
    """Marks the folder as finished."""
    if jax.process_index() == 0:
        os.remove(state_path(folder))
