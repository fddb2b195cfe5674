"""From a model's name to (encoder, hparams, params): download, check and load a checkpoint.

A model is a folder, models/NAME, with the seven files of OpenAI's releases. Three of them matter most here:
hparams.json has the sizes, model.ckpt.data-00000-of-00001 the weights, and model.ckpt.index the name, type, shape and
offset of each tensor. Float32 weights are not copied: the file is mapped into memory, and the arrays are views of it,
so loading takes milliseconds and reads only the pages that the model then uses.
"""

import contextlib
import errno
import hashlib
from importlib.util import find_spec
import json
import os
import re
import shlex
import sys
import time

from encoder import get_encoder
import tf_checkpoint

VERSION = "1.0.0"
DATA = "model.ckpt.data-00000-of-00001"
FILES = ["checkpoint", "encoder.json", "hparams.json", DATA, "model.ckpt.index", "model.ckpt.meta", "vocab.bpe"]
HPARAMS = ["n_vocab", "n_ctx", "n_embd", "n_head", "n_layer"]

_SHARED = {  # the same in every release
    "checkpoint": "dd1b025d2e155283f5e300ce95bf6d5b6bc0f7fe010db73daa6975eb896ab9cb",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
SHA256 = {  # the models that can be downloaded: {model_size: {file: hexadecimal digest, if it is known}}
    "124M": {
        **_SHARED,
        "hparams.json": "d9d56e4121c427164e0c55c6f03c08e1daf9002b9b672825112d19097b680318",
        DATA: "2060c885360cc0cf41d7a6dbc4d24b5127aae20260c8b5ae521b5a6578407118",
        "model.ckpt.index": "71916f763f9746f9b2a06b12d91996cf1084ae008d0424543d39391c5f2dc687",
        "model.ckpt.meta": "4668c448fa11531fd6700460487f73e82d3272960cea942252f8744bf225c77b",
    },
    "355M": {
        **_SHARED,
        "hparams.json": "310dfdb1f0c786b79d93459eaa470f3978d873bdc3e1f9fed1cad24d9dd0b1f6",
        DATA: "22b4212602a087d1cdeec3509648f4d7b1f181eaa33ce0f3c688fbfb732d622f",
        "model.ckpt.index": "4490e7b1f5ec0abfc1e111fcd27cdda7cb280c597ba0a885c364134e62ce43aa",
        "model.ckpt.meta": "06e1a92057d2a4fbdc483bd1f61a26cc274f1c999b84c6d9e9c50aa8d5ead44a",
    },
    "774M": {},
    "1558M": {},
}
DATA_BYTES = {"774M": 3_096_120_320, "1558M": 6_230_444_800}  # if no digest is known: 4 bytes per parameter
HUB = {"124M": "gpt2", "355M": "gpt2-medium", "774M": "gpt2-large", "1558M": "gpt2-xl"}  # their names on Hugging Face

TIMEOUT = 10, 30  # seconds to connect, and between two reads
TRIES = 5  # consecutive attempts without a new byte; the first pause is half a second, and each further one doubles
RETRY = 408, 425, 429, 500, 502, 503, 504  # HTTP statuses of transient errors


# --- download ---


def download_gpt2_files(model_size, model_dir):
    """Downloads a model's files into model_dir from {GPT2_MODELS_URL}/{model_size}/, by default OpenAI's address.

    A file is called NAME.part until it is complete and verified; the next call resumes it. Existing files with the
    right digest (or size, if no digest is known) are kept. Raises OSError if the network or the disk fails.
    """
    import requests

    base = os.environ.get("GPT2_MODELS_URL") or "https://openaipublic.blob.core.windows.net/gpt-2/models"
    os.makedirs(model_dir, exist_ok=True)
    with locked(model_dir):
        for name in FILES:
            url = f"{base.rstrip('/')}/{model_size}/{name}"
            path = os.path.join(model_dir, name)
            digest = SHA256.get(model_size, {}).get(name)
            size = DATA_BYTES.get(model_size) if name == DATA else None
            if (digest or size) and os.path.exists(path) and not problem_of(path, digest, size):
                continue
            try:
                _fetch(url, path + ".part")
                if problem := problem_of(path + ".part", digest, size):
                    os.remove(path + ".part")
                    raise requests.RequestException(f"it {problem}, and was deleted")
            except requests.RequestException as error:
                hint = "check the network and GPT2_MODELS_URL, or use --model_size=shakespeare, which needs no download"
                if model_size in HUB and find_spec("beyond"):
                    command = f"fetch openai-community/{HUB[model_size]} --out {shlex.quote(model_dir)}"
                    hint += f"; Hugging Face also has it: python -m beyond.huggingface {command}"
                raise OSError(f"cannot fetch {url}: {_refusal(error) or error}; {hint}") from None
            except OSError as error:
                if error.errno is None:  # requests did not find the file that REQUESTS_CA_BUNDLE names
                    raise OSError(f"cannot fetch {url}: {error}; check REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE") from None
                hint = "make room there, or choose another folder with models_dir"
                raise OSError(f"cannot write {path}.part: {error.strerror}; {hint}") from None
            os.replace(path + ".part", path)


def problem_of(path, digest, size):
    """What is wrong with a file, or None; its SHA-256 digest and its size in bytes are checked unless they are None."""
    if size and os.path.getsize(path) != size:
        return f"has {os.path.getsize(path):,} bytes instead of {size:,}"
    if digest:
        sha256 = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(2**20):
                sha256.update(block)
        if sha256.hexdigest() != digest:
            return f"has the SHA-256 {sha256.hexdigest()} instead of {digest}"


@contextlib.contextmanager
def locked(path, wait=True):
    """Lets one process at a time run the block, which writes path, a file or folder that need not exist yet.

    The lock is a file beside it, .NAME.lock, deleted at the end; one left by a killed process does not block others.
    Raises OSError if the lock cannot be created and, with wait=False, ValueError if another process holds it.
    """
    from filelock import FileLock, Timeout

    folder, name = os.path.split(os.path.realpath(path))
    lock = FileLock(os.path.join(folder, f".{name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise ValueError(f"another process is writing to {path}: wait for it, or choose another output") from None
        print(f"waiting for another process that is writing to {path}", file=sys.stderr)
        lock.acquire()
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise
        print(f"note: {path} cannot be locked ({error.strerror}): write to it from one process", file=sys.stderr)
    try:
        yield
    finally:
        if os.name != "nt":  # on Windows, release() deletes the file
            with contextlib.suppress(FileNotFoundError):
                os.remove(lock.lock_file)  # while it is held: afterwards it may be another process's lock
        lock.release()


def _fetch(url, part):
    """Appends the missing bytes of url to the file part; after TRIES attempts without progress, the error is raised."""
    import requests
    from tqdm import tqdm

    name = os.path.basename(part).removesuffix(".part")
    tries = longest = 0
    with open(part, "ab", buffering=0) as file, tqdm(desc=name, unit="B", unit_scale=True, disable=None) as bar:
        while True:
            try:
                return _fetch_rest(url, file, bar)
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
                tries = 1 if file.tell() > longest else tries + 1
                longest = max(longest, file.tell())
                if tries == (2 if _refusal(error) and bar.total is None else TRIES):  # no total: never connected
                    raise
                bar.set_postfix_str(f"try {tries + 1} of {TRIES}")
                after = error.response.headers.get("Retry-After", "") if error.response is not None else ""
                time.sleep(max(2 ** (tries - 2), min(int(after), 60) if after.isdigit() else 0))


def _refusal(error):
    """Why the operating system could not connect, such as "Connection refused", from an error of requests; or None."""
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    return getattr(getattr(reason, "__cause__", None), "strerror", None)


def _fetch_rest(url, file, bar):
    """Requests the bytes of url after those in file, once. Raises requests.ConnectionError if any are still missing."""
    import requests

    have = file.seek(0, os.SEEK_END)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        status, content_range = response.status_code, response.headers.get("Content-Range", "")
        if status in RETRY:
            raise requests.ConnectionError(f"HTTP {status} {response.reason}", response=response)
        if status >= 400 and status != 416:
            raise requests.HTTPError(f"HTTP {status} {response.reason}")
        if status == 416 and content_range == f"bytes */{have}":
            return  # Range Not Satisfiable: nothing was missing
        if have and not (status == 206 and content_range.startswith(f"bytes {have}-")):
            have = file.seek(file.truncate(0))  # a server without Range starts over, and so do we
            if status != 200:
                raise requests.ConnectionError(f"HTTP {status} with Content-Range {content_range!r}", response=response)
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdigit() and "Content-Encoding" not in response.headers else None
        bar.total, bar.n = total, have
        for block in response.iter_content(2**16):  # a block cut off by a broken connection is lost
            bar.update(len(block))
            while block:  # a nearly full disk may take only part of it
                block = block[file.write(block) :]
    if total is not None and file.tell() != total:
        raise requests.ConnectionError(f"got {file.tell():,} of {total:,} bytes")


# --- load ---


def load_encoder_hparams_and_params(model_size, models_dir):
    """(encoder, hparams, params) of models_dir/model_size; missing files of one of OpenAI's models are downloaded.

    If wte has more rows than there are tokens (some checkpoints pad it to a multiple of 64), the extra rows are dropped
    and n_vocab is the number of tokens, so that no id without a token can be chosen.
    Raises ValueError or OSError if there is no such model, a file is missing or damaged, or a download fails.
    """
    model_size = str(model_size)
    model_dir = folder_of(model_size, models_dir)
    if model_size in SHA256:
        try:
            return _load(model_dir, is_openais=True)
        except (FileNotFoundError, ValueError):  # not downloaded yet, or truncated by another program
            download_gpt2_files(model_size, model_dir)
    elif not os.path.isdir(model_dir):
        models_dir = os.path.dirname(model_dir)
        entries = os.scandir(models_dir) if os.path.isdir(models_dir) else ()
        local = sorted(entry.name for entry in entries if entry.is_dir() and entry.name not in SHA256)
        known = ", ".join([*SHA256, *local])
        raise ValueError(f"unknown model_size={model_size!r}: choose one of {known}, or create the folder {model_dir}")
    return _load(model_dir)


def folder_of(model_size, models_dir):
    """models_dir/model_size. The default, "models", stands for the first of these that has the model: models/ here,
    models/ beside this file, and the folder for downloads: PICOGPT_MODELS, models/ of a clone, or a cache."""
    check_name(str(model_size))
    if models_dir != "models":
        return os.path.join(models_dir, str(model_size))
    here = os.path.dirname(os.path.abspath(__file__))
    beside = os.path.join(here, "models")
    is_clone = os.path.exists(os.path.join(here, "pyproject.toml"))
    downloads = os.environ.get("PICOGPT_MODELS") or (beside if is_clone else None)
    if not downloads:
        from platformdirs import user_cache_dir

        downloads = os.path.join(user_cache_dir("picogpt", False), "models")
    folders = [os.path.join(folder, str(model_size)) for folder in (models_dir, beside, downloads)]
    return next(filter(os.path.isdir, folders), folders[-1])


def check_name(model_size):
    """Raises ValueError unless model_size can be the name of a folder."""
    if model_size in ("", ".", "..") or os.path.basename(model_size) != model_size:
        folder, name = os.path.split(os.path.abspath(model_size))
        way_out = f": write --models_dir={folder} --model_size={name}" if os.path.isdir(model_size) else ""
        raise ValueError(
            f"model_size={model_size!r:.200} must be a name without a path; the path goes into models_dir{way_out}"
        )


def _load(model_dir, is_openais=False):
    """(encoder, hparams, params) of a folder. Raises ValueError or OSError if a file is missing or damaged."""
    found = {one.name for one in os.scandir(model_dir) if one.is_file()} if os.path.isdir(model_dir) else set()
    if any(re.fullmatch(r"model\.ckpt\.data-\d{5}-of-\d{5}", name) for name in found):
        found.add(DATA)  # the weights may be in several files, which the index lists
    if missing := [name for name in FILES if name not in found]:
        raise FileNotFoundError(f"{model_dir} lacks {', '.join(missing)}: a model is a folder with {', '.join(FILES)}")
    try:
        with open(os.path.join(model_dir, "hparams.json"), encoding="utf-8") as file:
            hparams = json.load(file)
        encoder = get_encoder(os.path.basename(model_dir), os.path.dirname(model_dir))
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or not a vocabulary
        raise ValueError(f"hparams.json, encoder.json or vocab.bpe in {model_dir} is damaged: {error}") from None
    sizes = [hparams.get(name) for name in HPARAMS] if isinstance(hparams, dict) else [None]
    if not all(type(size) is int and size > 0 for size in sizes) or hparams["n_embd"] % hparams["n_head"]:
        rule = f"{', '.join(HPARAMS)} as positive integers, with n_embd a multiple of n_head"
        raise ValueError(f"{model_dir}/hparams.json must contain {rule}; it contains {hparams}")
    if (n := len(encoder.encoder)) > hparams["n_vocab"]:
        raise ValueError(f"{model_dir}/encoder.json has {n} tokens, more than n_vocab={hparams['n_vocab']}")
    if is_openais:  # one line for the version, and one per token except for the 256 bytes and <|endoftext|>
        expected = hparams["n_vocab"] - 256
        with open(os.path.join(model_dir, "vocab.bpe"), "rb") as file:
            if (found := file.read().count(b"\n")) != expected:
                raise ValueError(f"{model_dir}/vocab.bpe is damaged: expected {expected} lines, found {found}")
    params = load_gpt2_params_from_tf_ckpt(os.path.join(model_dir, "model.ckpt"), hparams)
    return encoder, {**hparams, "n_vocab": n}, {**params, "wte": params["wte"][:n]}


def load_gpt2_params_from_tf_ckpt(tf_ckpt_path, hparams):
    """The parameters in a TensorFlow checkpoint, as nested dicts of float32 arrays (blocks is a list of dicts):

        wte [n_vocab, n_embd]   wpe [n_ctx, n_embd]   ln_f {g, b} [n_embd]
        blocks[i]: ln_1, ln_2 {g, b} [n_embd]
                   attn: c_attn {w [n_embd, 3 * n_embd], b}, c_proj {w [n_embd, n_embd], b}
                   mlp: c_fc {w [n_embd, 4 * n_embd], b}, c_proj {w [4 * n_embd, n_embd], b}

    tf_ckpt_path is the path without ".index". Float32 arrays are mapped (writing to one changes memory, not the file),
    other types are converted. Raises ValueError or OSError for a checkpoint that is damaged or does not fit hparams.
    """
    entries = tf_checkpoint.read_index(tf_ckpt_path)
    misfit = f"{tf_ckpt_path} does not fit hparams.json"
    if (last := f"model/h{hparams['n_layer'] - 1}/ln_1/g") not in entries:  # so that shapes_of need not list millions
        raise ValueError(f"{misfit}: {last} is missing, but n_layer is {hparams['n_layer']}")
    shapes = shapes_of(**{name: hparams[name] for name in HPARAMS})
    for name, shape in shapes.items():
        dtype, found, *_ = entries.get(f"model/{name}", (None, "missing"))
        if found not in (shape, [1, *shape]):  # OpenAI's w has the shape [1, n_in, n_out]
            raise ValueError(f"{misfit}: {name} {found} instead of {shape}")
        if dtype not in tf_checkpoint.DTYPES:
            known = "float32, float64, float16 and bfloat16 can be read"
            raise ValueError(f"{tf_ckpt_path} has the unsupported DataType {dtype} in {name}: {known}")
    arrays = tf_checkpoint.read_tensors(tf_ckpt_path, entries, [f"model/{name}" for name in shapes])
    return nested({name: arrays[f"model/{name}"].reshape(shape) for name, shape in shapes.items()})


def shapes_of(n_vocab, n_ctx, n_embd, n_head, n_layer):
    """{name: shape} of all tensors, named as in the checkpoint without "model/"."""
    shapes = {"wte": [n_vocab, n_embd], "wpe": [n_ctx, n_embd], "ln_f/g": [n_embd], "ln_f/b": [n_embd]}
    layers = {"attn/c_attn": (1, 3), "attn/c_proj": (1, 1), "mlp/c_fc": (1, 4), "mlp/c_proj": (4, 1)}
    for i in range(n_layer):
        for name, (n_in, n_out) in layers.items():
            shapes[f"h{i}/{name}/w"] = [n_in * n_embd, n_out * n_embd]
            shapes[f"h{i}/{name}/b"] = [n_out * n_embd]
        shapes |= {f"h{i}/{name}": [n_embd] for name in ("ln_1/g", "ln_1/b", "ln_2/g", "ln_2/b")}
    return shapes


def named_arrays(params, prefix=""):
    """Yields (name, array), named as shapes_of does: params["blocks"][3]["ln_1"]["g"] is "h3/ln_1/g".

    Whatever is not a dict or the list of blocks counts as an array. The order is that of the dicts.
    """
    for key, value in params.items():
        if key == "blocks":
            for i, block in enumerate(value):
                yield from named_arrays(block, f"{prefix}h{i}/")
        elif isinstance(value, dict):
            yield from named_arrays(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value


def nested(arrays):
    """The params of {name: array}: the inverse of named_arrays."""
    params = {}
    for name, array in arrays.items():
        *folders, last = name.split("/")
        node = params
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = array
    blocks = {int(key[1:]): params.pop(key) for key in list(params) if re.fullmatch("h[0-9]+", key)}
    return {**params, "blocks": [blocks.get(i, {}) for i in range(max(blocks, default=-1) + 1)]}
