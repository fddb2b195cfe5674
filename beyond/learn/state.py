"""The state of a training run on disk: one file with everything needed to resume as if nothing had happened.

The file exists from the first evaluation until the run is finished, and is always replaced as a whole. Only a run with
the same settings and data resumes from it (files/runs.py), on any number of devices and processes.
"""

import json
import os
import zipfile

import jax
import numpy as np

from beyond.devices.processes import is_process_0
from beyond.files import runs, writing
import utils

STATE = "train.npz"


def load_npz(path, *names):
    """{name: array} of a file that NumPy saved, all or only these. Raises ValueError for any other file."""
    try:
        with np.load(path) as file:
            return {name: file[name] for name in names or file}
    except (ValueError, EOFError, KeyError, TypeError, AttributeError, NotImplementedError, zipfile.BadZipFile):
        raise ValueError(
            f"{path} is damaged or from another program: remove it, or its folder, and start again"
        ) from None


def state_path(folder):
    return os.path.join(folder, STATE)


def check_new(folder):
    """Raises ValueError unless a model can be made in the folder: it does not exist, is empty, or holds a run's state.

    A run that was killed while it wrote its first state leaves nothing but an incomplete copy of it.
    """
    if os.path.basename(os.path.realpath(folder)) in utils.SHA256:
        raise ValueError(f"{folder} has the name of one of OpenAI's models: give another name")
    if not os.path.exists(folder):
        return
    if not os.path.isdir(folder):
        raise ValueError(f"{folder} is a file: give the name of a new folder")
    found = set(os.listdir(folder))
    if STATE not in found and not all(map(writing.is_part, found)):
        what = "is a model already" if {utils.DATA, "adapter.npz"} & found else "holds other files"
        raise ValueError(f"{folder} {what}: give another name, or remove that folder")


def write_state(folder, settings, steps, tree, history):
    """Saves the state after an evaluation. Process 0 does it for all."""
    if not is_process_0():
        return
    leaves = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(tree))}
    os.makedirs(folder, exist_ok=True)
    writing.write_whole(
        state_path(folder),
        lambda part: np.savez(part, settings=json.dumps(settings), steps=steps, history=history, **leaves),
    )


def check_state(folder, settings):
    """Whether the folder holds the state of a run with these settings. Raises ValueError if it holds anything else.

    Call this before anything slow, and before anything is written.
    """
    check_new(folder)
    if not os.path.exists(state_path(folder)):
        return False
    runs.same_work(folder, str(load_npz(state_path(folder), "settings")["settings"]), settings)
    return True


def saved_steps(folder):
    """The total number of steps of the run in the folder; None if there is no run."""
    return int(load_npz(state_path(folder), "steps")["steps"]) if os.path.exists(state_path(folder)) else None


def read_state(folder, settings, tree):
    """(tree, history) as passed to write_state, with the structure of tree; None if there is no run."""
    if not check_state(folder, settings):
        return None
    leaves, structure = jax.tree.flatten(tree)
    saved = load_npz(state_path(folder))
    found = [saved.get(str(i)) for i in range(len(leaves))]
    if [np.shape(x) for x in found] != [np.shape(x) for x in leaves] or "history" not in saved:
        raise ValueError(f"{folder} holds a run of another version of this program: give another name, or remove it")
    return jax.tree.unflatten(structure, found), saved["history"].tolist()


def finish(folder):
    """Marks the folder as finished; removes incomplete files that killed runs left."""
    if is_process_0():
        for name in filter(writing.is_part, os.listdir(folder)):
            os.remove(os.path.join(folder, name))
        os.remove(state_path(folder))
