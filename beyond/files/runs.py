"""Whether two runs do the same work: before resuming, a run compares everything that determines its result.

That is its settings, its data and the base model, the last two by digest.
"""

import hashlib
import json
import os

from beyond.files.reading import open_bytes
import utils


def digest(path):
    """The SHA-256 of a file, in hexadecimal; "-" is standard input."""
    found = hashlib.sha256()
    with open_bytes(path) as file:
        while block := file.read(2**20):
            found.update(block)
    return found.hexdigest()


def model_digest(model_size, models_dir):
    """The SHA-256 over the digests of the files that define a model: its sizes, vocabulary and weights."""
    folder = utils.folder_of(model_size, models_dir)
    files = sorted(name for name in os.listdir(folder) if name in utils.FILES[1:] or name.startswith("model.ckpt.data"))
    files.remove("model.ckpt.meta")  # TensorFlow writes different bytes each time
    return hashlib.sha256("".join(digest(os.path.join(folder, name)) for name in files).encode()).hexdigest()


def same_work(path, before, now):
    """Raises ValueError, naming the differences, unless before, a JSON string, holds the same settings as now, a dict.

    path: the file or folder that the run would resume from.
    """
    try:
        before, now = dict(json.loads(before)), json.loads(json.dumps(now))
    except (ValueError, TypeError, RecursionError):
        raise ValueError(f"{path} was not created by this command: choose another name, or remove it") from None
    if differing := [name for name in {**before, **now} if before.get(name) != now.get(name)]:
        both = "; ".join(f"{name} {before.get(name)}, now {now.get(name)}" for name in differing)
        raise ValueError(
            f"{path} was started with different settings or files ({both}): use those to resume it, choose another "
            "name, or remove it"
        )
