"""The files of a model on the Hugging Face hub, or in a folder, and what they reveal before the weights are downloaded.

huggingface_hub does the work: its cache, its progress bars, HF_TOKEN, HF_HUB_OFFLINE, HF_ENDPOINT and HF_HOME. This
file turns its many kinds of errors into one line each, and uses the list of files, a few kilobytes, to avoid
downloading gigabytes in vain.
"""

import os
import sys

from beyond.formats import vocabulary
from beyond.formats.transformers_folder import INDEX, WEIGHTS
import utils

SMALL = ["config.json", INDEX, *vocabulary.FILES]


def files_of(source, revision=None):
    """({file name: (bytes, SHA-256 or None)}, fetch). fetch(names) downloads these files if necessary and returns the
    folder that has them.

    Without a network, or with HF_HUB_OFFLINE, the files are those in the cache. Raises ValueError or OSError.
    """
    if os.path.isdir(source):
        if revision is not None:
            raise ValueError(f"{source} is a folder, which has no revisions: leave out revision={revision!r}")
        return _files_in(source), lambda names: source
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import disable_progress_bars

    if sys.stderr is None or not sys.stderr.isatty():
        disable_progress_bars()

    def fetch(names, **offline):
        return snapshot_download(source, revision=revision, allow_patterns=names, **offline)

    try:
        info = HfApi().model_info(source, revision=revision, files_metadata=True)
    except HFValidationError:
        raise ValueError(f"{source} is neither a folder nor a name on the hub, such as openai-community/gpt2") from None
    except Exception as error:  # the client's own types and those of its HTTP library, which it has replaced twice
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403, 404):
            raise OSError(_refusal(source, revision, error)) from None
        try:
            folder = fetch([], local_files_only=True)
        except Exception:
            raise OSError(
                f"cannot reach the hub for {source}: {_line(error)}; it is not in the cache either: check the network "
                f"and HF_HUB_OFFLINE, or give a folder"
            ) from None
        files = _files_in(folder)
        if not any(name.endswith(".safetensors") for name in files):
            raise OSError(
                f"the cache has only part of {source}, and the hub cannot be reached: {_line(error)}; try again with "
                f"a network"
            ) from None
        return files, lambda names: folder
    listed = {file.rfilename: (file.size or 0, file.lfs and file.lfs.sha256) for file in info.siblings}
    return listed, lambda names: _checked(source, listed, names, info.sha, fetch)


def _files_in(folder):
    return {entry.name: (entry.stat().st_size, None) for entry in os.scandir(folder) if entry.is_file()}


def _checked(source, listed, names, commit, fetch):
    """The folder with these files, each of the size and digest that the hub listed."""
    try:
        folder = fetch(names)
    except Exception as error:
        reason = getattr(error, "strerror", None) or _line(error)  # a full disk has a strerror
        raise OSError(
            f"cannot fetch {', '.join(names)} of {source}: {reason}; the same command resumes with the files that are "
            f"complete; HF_HOME sets the location of the cache"
        ) from None
    if os.path.basename(folder) != commit:
        raise OSError(f"{source} changed while it was fetched: try again")
    for name in names:
        path = os.path.join(folder, name)
        if not os.path.isfile(path):  # the network failed since the list was fetched, and the cache lacks the file
            raise OSError(f"cannot fetch {name} of {source}: check the network and try again")
        size, digest = listed[name]
        if problem := utils.problem_of(path, digest, size):
            for damaged in {os.path.realpath(path), path}:
                os.remove(damaged)
            raise OSError(f"{name} of {source} {problem}: it was removed from the cache; try again")
    return folder


def _refusal(source, revision, error):
    status = error.response.status_code
    if type(error).__name__ == "RevisionNotFoundError":
        return f"{source} does not have the revision {revision}: leave it out, or give a branch, tag or commit"
    if status == 403 or type(error).__name__ == "GatedRepoError":
        return f"access to {source} is restricted (HTTP {status}): request it on its page, then set HF_TOKEN"
    return (
        f"{source} does not exist on the hub or is private (HTTP {status}): check the name, OWNER/NAME; for a private "
        f"one set HF_TOKEN"
    )


def _line(error):
    return f"{type(error).__name__}: {error}".strip().partition("\n")[0]


# --- before the download ---


def choose_weights(source, folder, files):
    """The names of the safetensors files. Raises ValueError if there are none, or some are missing."""
    if WEIGHTS in files:
        return [WEIGHTS]
    names = sorted(set(vocabulary.read_json(folder, INDEX).get("weight_map", {}).values()))
    if missing := [name for name in names if name not in files]:
        raise ValueError(f"{source} lacks {', '.join(missing)}, listed in its {INDEX}")
    if not names:
        pickled = [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt"))]
        problem = f"only pickled weights, {min(pickled)}, which can contain code" if pickled else "no weights"
        raise ValueError(
            f"{source} has {problem}: look for {WEIGHTS} in another revision (refs/pr/1 may have it), or, if you trust "
            f"it, save it with transformers and fetch that folder"
        )
    return names
