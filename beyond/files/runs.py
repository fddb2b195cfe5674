"""What makes two runs the same work."""

import hashlib
import json
import os

from beyond.files.reading import open_bytes
import utils

STATE = "train.npz"  # in a folder whose run is not finished; see beyond/fit.py


def digest(path):
    """The SHA-256 of a file."""
    found = hashlib.sha256()
    with open_bytes(path) as file:
        while block := file.read(2**20):
            found.update(block)
    return found.hexdigest()


def model_digest(model_size, models_dir):
    """What makes a model what it is: a digest of its sizes, vocabulary and weights."""
    folder = utils.folder_of(model_size, models_dir)
    files = sorted(name for name in os.listdir(folder) if name in utils.FILES[1:] or name.startswith("model.ckpt.data"))
    files.remove("model.ckpt.meta")  # TensorFlow's own, which differs each time it is written
    return hashlib.sha256("".join(digest(os.path.join(folder, name)) for name in files).encode()).hexdigest()


def same_work(place, before, now):
    """Raises ValueError unless the settings, a JSON text and a dict, are equal; names what differs."""
    try:
        before, now = dict(json.loads(before)), json.loads(json.dumps(now))
    except (ValueError, TypeError, RecursionError):
        raise ValueError(f"{place} is not what this command left: give another name, or remove it") from None
    if differing := [name for name in {**before, **now} if before.get(name) != now.get(name)]:
        both = "; ".join(f"{name} {before.get(name)}, now {now.get(name)}" for name in differing)
        raise ValueError(
            f"{place} was begun with other settings or files ({both}): repeat those to go on with it, or "
            f"give another name, or remove it"
        )
