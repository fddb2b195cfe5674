"""From a name to files, and whether they are a GPT-2: a repository on the Hugging Face hub, or a folder that looks so.

huggingface_hub does the work: its cache, its progress bars, HF_TOKEN, HF_HUB_OFFLINE, HF_ENDPOINT and HF_HOME. Here
are its many kinds of errors in a line each, and what a few kilobytes can tell before gigabytes are downloaded: the
list of files, and config.json.
"""

import json
import os
import shutil
import sys

from beyond.formats import vocabulary
import utils

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SMALL = ["config.json", INDEX, *vocabulary.FILES]
SIZES = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12}  # the defaults there
ONLY = {  # where gpt2.py supports one way only: the values in config.json that mean it, default first
    "model_type": (["gpt2"], "another architecture"),
    "activation_function": (["gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate"], "another curve"),
    "layer_norm_epsilon": ([1e-5], "another layer norm"),
    "scale_attn_weights": ([True], "attention without the division by sqrt(d)"),
    "add_cross_attention": ([False], "attention to a second text"),
    "tie_word_embeddings": ([True], "an output matrix, lm_head, that is not wte"),
    "quantization_config": ([None], "quantized weights"),
}
ARCHITECTURES = "GPT2LMHeadModel", "GPT2Model", "GPT2DoubleHeadsModel"

# --- the files ---


def files_of(source, revision=None):
    """({name of a file: (its bytes, its SHA-256 or None)}, fetch), where fetch(names) makes sure of some files and
    returns the folder that has them.

    Without a network, or with HF_HUB_OFFLINE, the files are those in the cache. Raises ValueError or OSError.
    """
    if os.path.isdir(source):
        if revision is not None:
            raise ValueError(f"{source} is a folder, which has no revision={revision!r}: leave that out")
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
    except Exception as error:  # the client raises its own kinds and those of its HTTP library, which has changed twice
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403, 404):
            raise OSError(_refusal(source, revision, error)) from None
        try:
            folder = fetch([], local_files_only=True)
        except Exception:
            raise OSError(
                f"cannot reach the hub for {source}: {_line(error)}; it is not in the cache either: check "
                f"the network and HF_HUB_OFFLINE, or give a folder"
            ) from None
        files = _files_in(folder)
        if not any(name.endswith(".safetensors") for name in files):
            raise OSError(
                f"the cache has only a part of {source}, and the hub cannot be reached: {_line(error)}; try "
                f"again with a network"
            ) from None
        return files, lambda names: folder
    listed = {file.rfilename: (file.size or 0, file.lfs and file.lfs.sha256) for file in info.siblings}
    return listed, lambda names: _checked(source, listed, names, info.sha, fetch)


def _files_in(folder):
    return {entry.name: (entry.stat().st_size, None) for entry in os.scandir(folder) if entry.is_file()}


def _checked(source, listed, names, commit, fetch):
    try:
        folder = fetch(names)
    except Exception as error:
        reason = getattr(error, "strerror", None) or _line(error)  # a disk that is full has its own words
        raise OSError(
            f"cannot fetch {', '.join(names)} of {source}: {reason}; the same command goes on with what is "
            f"whole; where the cache is, HF_HOME says"
        ) from None
    if os.path.basename(folder) != commit:
        raise OSError(f"{source} was changed while it was fetched: try again")
    for name in names:
        path, (size, digest) = os.path.join(folder, name), listed[name]
        if not os.path.isfile(path):  # the network failed in between, and the cache is incomplete
            raise OSError(f"cannot fetch {name} of {source}: check the network and try again")
        if problem := utils.problem_of(path, digest, size):
            for damaged in {os.path.realpath(path), path}:
                os.remove(damaged)
            raise OSError(f"{name} of {source} {problem}: it was removed from the cache; try again")
    return folder


def _refusal(source, revision, error):
    status = error.response.status_code
    if type(error).__name__ == "RevisionNotFoundError":
        return f"{source} has no revision {revision}: leave it out, or give a branch, tag or commit that it has"
    if status == 403 or type(error).__name__ == "GatedRepoError":
        return f"{source} is open to some only (HTTP {status}): ask for access on its page, then log in: set HF_TOKEN"
    return (
        f"there is no {source} on the hub, or it is private (HTTP {status}): check the name, OWNER/NAME; for a "
        f"private one log in: set HF_TOKEN"
    )


def _line(error):
    return f"{type(error).__name__}: {error}".strip().partition("\n")[0]


# --- what the small files say ---


def read_config(source, config):
    """hparams of config.json. Raises ValueError for a model that gpt2.py would compute differently."""
    config.setdefault("model_type", "gpt2" if config.get("architectures") else None)
    for key, (values, what) in ONLY.items():
        if (found := config.get(key, values[0])) not in values:
            raise ValueError(
                f"{source} has {key}={json.dumps(found)[:80]} in config.json, {what}: gpt2.py has only "
                f"{json.dumps(values[0])}; choose another model"
            )
    if (names := config.get("architectures")) and names[0] not in ARCHITECTURES:
        raise ValueError(f"{source} is a {names[0]}, and gpt2.py needs one that writes text, a {ARCHITECTURES[0]}")
    sizes = [config.get(key, default) for key, default in SIZES.items()]
    if not all(type(size) is int and size > 0 for size in sizes) or sizes[2] % sizes[3]:
        raise ValueError(
            f"{source} has {dict(zip(SIZES, sizes))} in config.json: they must be positive whole numbers, "
            f"and n_embd a multiple of n_head"
        )
    if (n_inner := config.get("n_inner")) not in (None, 4 * sizes[2]):
        raise ValueError(
            f"{source} has n_inner={n_inner} in config.json: gpt2.py has only 4 * n_embd, here "
            f"{4 * sizes[2]}; choose another model"
        )
    return dict(zip(utils.HPARAMS, sizes))


def choose_weights(source, folder, files):
    """The names of the safetensors files. Raises ValueError if there are none, or not all of them."""
    if WEIGHTS in files:
        return [WEIGHTS]
    names = sorted(set(vocabulary.read_json(folder, INDEX).get("weight_map", {}).values()))
    if missing := [name for name in names if name not in files]:
        raise ValueError(f"{source} lacks {', '.join(missing)}, which its {INDEX} names")
    if not names:
        pickled = [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt"))]
        problem = f"only pickled weights, {min(pickled)}, in which code can hide" if pickled else "no weights"
        raise ValueError(
            f"{source} has {problem}: look for {WEIGHTS} in another revision (refs/pr/1 may have it), or, "
            f"if you trust it, save it with transformers and fetch that folder"
        )
    return names


def check_room(source, hparams, n_bytes, out):
    """How many parameters the model has. Raises ValueError or OSError if its files or our disk cannot hold them."""
    n_vocab, n_ctx, n, _, n_layer = hparams.values()
    n_params = (n_vocab + n_ctx + 2) * n + n_layer * (12 * n + 13) * n
    if n_bytes < 2 * n_params:
        raise ValueError(
            f"{source} has {n_bytes:,} bytes of weights, and the {n_params:,} numbers of its config.json "
            f"take at least {2 * n_params:,}: they do not belong together, or the weights are quantized"
        )
    parent = os.path.dirname(os.path.abspath(out))
    while not os.path.exists(parent):
        parent = os.path.dirname(parent)
    if not os.access(parent, os.W_OK):
        raise OSError(f"there is no permission to write in {parent}: name another folder with --out")
    if (free := shutil.disk_usage(parent).free) < 4 * n_params:
        raise OSError(
            f"{parent} has {free:,} bytes free, and {out} will take {4 * n_params:,}: make room, or name "
            f"another folder with --out"
        )
    return n_params
