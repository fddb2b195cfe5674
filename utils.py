"""From the name of a model to (encoder, hparams, params): download, check and load a checkpoint.

A model is a folder, models/NAME, with the seven files of OpenAI's releases. Three of them matter most here:
hparams.json gives the sizes, model.ckpt.data-00000-of-00001 the numbers, model.ckpt.index the name, type, shape and
place of each tensor among them. Float32 tensors in one file, as OpenAI's are, need no copy: the file is mapped into
memory and cut into arrays, which takes a millisecond and reads only what the model then touches.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shlex
import sys
import tempfile
import time

import numpy as np

from encoder import get_encoder

VERSION = "1.0.0"
DATA = "model.ckpt.data-00000-of-00001"
FILES = ["checkpoint", "encoder.json", "hparams.json", DATA, "model.ckpt.index", "model.ckpt.meta", "vocab.bpe"]
HPARAMS = ["n_vocab", "n_ctx", "n_embd", "n_head", "n_layer"]

_SHARED = {  # the same in every release
    "checkpoint": "dd1b025d2e155283f5e300ce95bf6d5b6bc0f7fe010db73daa6975eb896ab9cb",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
SHA256 = {  # what can be downloaded: {model_size: {filename: hex digest, where it is known}}
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
DATA_BYTES = {"774M": 3_096_120_320, "1558M": 6_230_444_800}  # where no digest is known: 4 bytes x parameters
HUB = {"124M": "gpt2", "355M": "gpt2-medium", "774M": "gpt2-large", "1558M": "gpt2-xl"}  # their names on Hugging Face

TIMEOUT = 10, 30  # seconds to connect, and between two reads
TRIES = 5  # in a row without a single new byte; the wait is half a second after the first, and doubles each time
RETRY = 408, 425, 429, 500, 502, 503, 504  # HTTP answers that may be better next time


# --- download ---


def download_gpt2_files(model_size, model_dir):
    """Fetches a model's seven files into model_dir from {GPT2_MODELS_URL}/{model_size}/, by default OpenAI's address.

    A file gets its name only when it is whole and right; until then it is NAME.part, which the next start goes on
    with. Files that are there already and have the right digest (or, where none is known, size) are kept.
    Raises OSError: no network, no space, no such file, bytes that are not the model's.
    """
    base = os.environ.get("GPT2_MODELS_URL") or "https://openaipublic.blob.core.windows.net/gpt-2/models"
    os.makedirs(model_dir, exist_ok=True)
    with locked(model_dir):
        for name in FILES:
            url, path = f"{base.rstrip('/')}/{model_size}/{name}", os.path.join(model_dir, name)
            digest = SHA256.get(model_size, {}).get(name)
            size = DATA_BYTES.get(model_size) if name == DATA else None
            if (digest or size) and os.path.exists(path) and not problem_of(path, digest, size):
                continue
            try:
                _fetch(url, path + ".part")
                if problem := problem_of(path + ".part", digest, size):
                    os.remove(path + ".part")
                    raise ConnectionError(
                        f"{url} {problem}: it was removed; try again, or set GPT2_MODELS_URL to another address"
                    )
            except ConnectionError as error:
                if model_size not in HUB:
                    raise
                command = f"fetch openai-community/{HUB[model_size]} --out {shlex.quote(model_dir)}"
                raise OSError(f"{error}; Hugging Face has it, too: python -m beyond.huggingface {command}") from None
            os.replace(path + ".part", path)


def problem_of(path, digest, size):
    """What is wrong with a file whose digest and size may be known, or None."""
    if size and os.path.getsize(path) != size:
        return f"has {os.path.getsize(path):,} bytes instead of {size:,}"
    if digest:
        found = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(2**20):
                found.update(block)
        if found.hexdigest() != digest:
            return f"has the SHA-256 {found.hexdigest()} instead of {digest}"


@contextlib.contextmanager
def locked(path, wait=True):
    """Lets one process at a time into the block that writes path, a file or folder that need not exist yet.

    The lock is a file beside it, .NAME.lock, which ends with the block; one that a killed process left behind does not
    lock. A file system without locks costs a note. Raises OSError where the folder cannot be written to, and with
    wait=False ValueError where another process is in its block; with wait=True the call waits until it has left.
    """
    from filelock import FileLock, Timeout

    folder, name = os.path.split(os.path.realpath(path))
    lock = FileLock(os.path.join(folder, f".{name}.lock"))
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise ValueError(
                    f"another process is writing to {path}: wait for it, or choose another output"
                ) from None
            print(f"waiting for another process that is writing to {path}", file=sys.stderr)
            lock.acquire()
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise
        print(f"note: {path} cannot be locked ({error.strerror}): write to it from one process", file=sys.stderr)
    try:
        yield
    finally:
        if os.name != "nt":  # there, release() removes the file, and it cannot be removed before
            with contextlib.suppress(FileNotFoundError):
                os.remove(lock.lock_file)  # while it is held: after that, it may be another process's
        lock.release()


def _fetch(url, part):
    """Appends to the file part what is still missing of url, trying again where that may help.

    Raises ConnectionError if url does not give it, another OSError if part does not take it.
    """
    import requests
    from tqdm import tqdm

    tries, longest, name = 0, 0, os.path.basename(part)[: -len(".part")]
    with open(part, "ab", buffering=0) as file, tqdm(desc=name, unit="B", unit_scale=True, disable=None) as bar:
        while True:
            try:
                return _fetch_rest(url, file, bar)
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
                tries = 1 if file.tell() > longest else tries + 1
                longest = max(longest, file.tell())
                refused = getattr(getattr(error.args[0] if error.args else None, "reason", None), "__cause__", None)
                if tries == 2 and bar.total is None and isinstance(refused, OSError):  # there never was a connection
                    raise ConnectionError(
                        f"cannot fetch {url}: {refused.strerror}; check the network and GPT2_MODELS_URL, or "
                        f"take --model_size=shakespeare, which comes with this program"
                    ) from None
                if tries == TRIES:
                    raise ConnectionError(
                        f"cannot fetch {url}, tried {TRIES} times: {error}; check the network, or copy the "
                        f"files into {os.path.dirname(part)} yourself, or set GPT2_MODELS_URL"
                    ) from None
                bar.set_postfix_str(f"try {tries + 1} of {TRIES}")
                after = error.response.headers.get("Retry-After", "") if error.response is not None else ""
                time.sleep(max(2 ** (tries - 2), min(int(after), 60) if after.isdigit() else 0))
            except requests.RequestException as error:
                raise ConnectionError(
                    f"cannot fetch {url}: {error}; check the name of the model and GPT2_MODELS_URL"
                ) from None
            except OSError as error:
                if error.errno is None:  # requests itself: the file that REQUESTS_CA_BUNDLE names is not there
                    raise OSError(f"cannot fetch {url}: {error}; check REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE") from None
                raise OSError(
                    f"cannot write {part} beyond {file.tell():,} bytes: {error.strerror}; make room there, "
                    f"or name another folder with models_dir"
                ) from None


def _fetch_rest(url, file, bar):
    """One request for the bytes of url after those in file. Raises requests.ConnectionError if some are missing."""
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
    """(encoder, hparams, params) of models_dir/model_size; if it is one of OpenAI's, what is missing is downloaded.

    Where the checkpoint has more rows in wte than there are tokens, as those padded to a multiple of 64 have, the rest
    is left out and n_vocab is the number of tokens: an id without a token can never be chosen.
    Raises ValueError or OSError: no such model, a file that is missing or damaged, a download that failed.
    """
    model_size, model_dir = str(model_size), folder_of(model_size, models_dir)
    if model_size in SHA256:
        try:
            return _load(model_dir, whole_vocabulary=True)
        except (FileNotFoundError, ValueError):  # never fetched, or cut short by whoever did
            download_gpt2_files(model_size, model_dir)
    elif not os.path.isdir(model_dir):
        models_dir = os.path.dirname(model_dir)
        entries = os.scandir(models_dir) if os.path.isdir(models_dir) else ()
        local = sorted(entry.name for entry in entries if entry.is_dir() and entry.name not in SHA256)
        known = ", ".join([*SHA256, *local])
        raise ValueError(f"unknown model_size={model_size!r}: choose one of {known}, or make a folder {model_dir}")
    return _load(model_dir)


def folder_of(model_size, models_dir):
    """models_dir/model_size. By default, "models", it is the first of these that has the model: models/ in the current
    folder, models/ beside this file, and the folder for downloads: PICOGPT_MODELS, models/ of a clone, or a cache."""
    check_name(str(model_size))
    if models_dir != "models":
        return os.path.join(models_dir, str(model_size))
    here = os.path.dirname(os.path.abspath(__file__))
    beside, is_clone = os.path.join(here, "models"), os.path.exists(os.path.join(here, "pyproject.toml"))
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
        way_out = f"; write --models_dir={folder} --model_size={name}" if os.path.isdir(model_size) else ""
        raise ValueError(
            f"model_size={shortened(model_size)} must be the name of a model, without a path, which goes into models_dir"
            f"{way_out}"
        )


def shortened(value):
    """A value as an error shows it: the whole of it, unless that is long."""
    try:
        text = repr(value)
    except ValueError:  # Python does not print whole numbers of more than 4300 digits
        text = f"a number of {value.bit_length()} bits"
    return text if len(text) <= 200 else f"{text[:100]}... ({len(text)} characters)"


def _load(model_dir, whole_vocabulary=False):
    if missing := [name for name in FILES if not os.path.isfile(os.path.join(model_dir, name))]:
        raise FileNotFoundError(f"{model_dir} lacks {', '.join(missing)}: a model is a folder with {', '.join(FILES)}")
    try:
        with open(os.path.join(model_dir, "hparams.json"), encoding="utf-8") as file:
            hparams = json.load(file)
        encoder = get_encoder(os.path.basename(model_dir), os.path.dirname(model_dir))
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or not a vocabulary
        raise ValueError(f"hparams.json, encoder.json or vocab.bpe in {model_dir} is damaged: {error}") from None
    sizes = [hparams.get(name) for name in HPARAMS] if isinstance(hparams, dict) else [None]
    if not all(type(size) is int and size > 0 for size in sizes) or hparams["n_embd"] % hparams["n_head"]:
        raise ValueError(
            f"{model_dir}/hparams.json must give {', '.join(HPARAMS)} as positive whole numbers, with "
            f"n_embd a multiple of n_head; it gives {hparams}"
        )
    if (n := len(encoder.encoder)) > hparams["n_vocab"]:
        raise ValueError(f"{model_dir}/encoder.json has {n} tokens, over n_vocab={hparams['n_vocab']}")
    if whole_vocabulary:  # a line for the version and one for each token but the 256 bytes and <|endoftext|>
        with open(os.path.join(model_dir, "vocab.bpe"), "rb") as file:
            if file.read().count(b"\n") != hparams["n_vocab"] - 256:
                raise ValueError(f"{model_dir}/vocab.bpe is damaged: it has not {hparams['n_vocab'] - 256} lines")
    params = load_gpt2_params_from_tf_ckpt(os.path.join(model_dir, "model.ckpt"), hparams)
    return encoder, {**hparams, "n_vocab": n}, {**params, "wte": params["wte"][:n]}


def load_gpt2_params_from_tf_ckpt(tf_ckpt_path, hparams):
    """The parameters in a TensorFlow checkpoint, as nested dicts of float32 arrays (blocks is a list of dicts):

        wte [n_vocab, n_embd]   wpe [n_ctx, n_embd]   ln_f {g, b} [n_embd]
        blocks[i]: ln_1, ln_2 {g, b} [n_embd]
                   attn: c_attn {w [n_embd, 3 * n_embd], b}, c_proj {w [n_embd, n_embd], b}
                   mlp: c_fc {w [n_embd, 4 * n_embd], b}, c_proj {w [4 * n_embd, n_embd], b}

    tf_ckpt_path is the path up to ".index". Float32 in one data file is mapped: writing to an array changes memory, not
    the file. What has another type or several files goes through TensorFlow. Raises ValueError or OSError for a
    checkpoint that is not whole or does not fit hparams.
    """
    n_shards, index = _read_index(tf_ckpt_path + ".index")
    if (last := f"model/h{hparams['n_layer'] - 1}/ln_1/g") not in index:  # before a list is made of millions
        raise ValueError(
            f"{tf_ckpt_path} does not fit hparams.json: it has no {last}, which n_layer={hparams['n_layer']} takes"
        )
    shapes = shapes_of(**{name: hparams[name] for name in HPARAMS})
    for name, shape in shapes.items():
        dtype, found, *_ = index.get(f"model/{name}", (None, "missing"))
        if found not in (shape, [1, *shape]):  # OpenAI's w has the shape [1, n_in, n_out]
            raise ValueError(f"{tf_ckpt_path} does not fit hparams.json: {name} {found} instead of {shape}")
        if dtype not in FLOATS:
            raise ValueError(
                f"{tf_ckpt_path} has numbers of another kind (DataType {dtype}) in {name}: they must be "
                f"{', '.join(FLOATS.values())}"
            )

    arrays = _map(tf_ckpt_path, shapes, index) if n_shards == 1 else None
    return nested(arrays or _read_with_tensorflow(tf_ckpt_path, shapes))


def named_arrays(params, prefix=""):
    """Yields (name, array) of params, named as in the checkpoint without "model/": ("h3/attn/c_attn/w", array).

    Whatever is not a dict or the list of blocks counts as an array. The order is that of params: shapes_of's if loaded.
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
    """The params made of {name: array}, the inverse of named_arrays: h3/ln_1/g is params["blocks"][3]["ln_1"]["g"]."""
    params = {}
    for name, array in arrays.items():
        *folders, last = name.split("/")
        node = params
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = array
    blocks = {int(key[1:]): params.pop(key) for key in list(params) if re.fullmatch("h[0-9]+", key)}
    return {**params, "blocks": [blocks.get(i, {}) for i in range(max(blocks, default=-1) + 1)]}


def shapes_of(n_vocab, n_ctx, n_embd, n_head, n_layer):
    """{name: [sizes]} of all tensors, named as in the checkpoint without "model/"."""
    shapes = {"wte": [n_vocab, n_embd], "wpe": [n_ctx, n_embd], "ln_f/g": [n_embd], "ln_f/b": [n_embd]}
    layers = {"attn/c_attn": (1, 3), "attn/c_proj": (1, 1), "mlp/c_fc": (1, 4), "mlp/c_proj": (4, 1)}
    for i in range(n_layer):
        for name, (n_in, n_out) in layers.items():
            shapes[f"h{i}/{name}/w"], shapes[f"h{i}/{name}/b"] = [n_in * n_embd, n_out * n_embd], [n_out * n_embd]
        for name in "ln_1/g", "ln_1/b", "ln_2/g", "ln_2/b":
            shapes[f"h{i}/{name}"] = [n_embd]
    return shapes


FLOATS = {1: "float32", 2: "float64", 14: "bfloat16", 19: "float16"}  # TensorFlow's numbers for types, types.proto


def _read_index(path):
    """(number of data files, {tensor: (type, shape, offset, length, sliced)}) from a checkpoint's index.

    The file is a table of LevelDB (https://github.com/google/leveldb/blob/main/doc/table_format.md): blocks with the
    names in order and, for each, a protocol buffer (TensorFlow's tensor_bundle.proto); a block that says where those
    are; and 48 bytes that say where that one is. Raises ValueError for anything else.
    """
    with open(path, "rb") as file:
        table = file.read()

    def block(handle):  # a handle: offset and size
        offset, at = _varint(handle, 0)
        size, _ = _varint(handle, at)
        end = offset + size + 1  # then a byte that says whether the block is compressed, and a checksum
        if table[end - 1] or _crc32c(table[offset:end]) != int.from_bytes(table[end : end + 4], "little"):
            raise ValueError
        return _entries(table[offset : end - 1])

    found, n_shards = {}, 1
    try:
        _, at = _varint(table[-48:], 0)  # the first of the two handles is not needed
        _, at = _varint(table[-48:], at)
        for _, handle in block(table[-48 + at :]):
            for name, value in block(handle):
                entry = _fields(value)
                if name == b"":
                    n_shards = entry[1]
                else:
                    sizes = [_fields(size).get(1, 0) for size in _fields(entry.get(2, b""), repeated=True).get(2, [])]
                    found[name.decode()] = entry.get(1), sizes, entry.get(4, 0), entry.get(5, 0), 7 in entry
    except (IndexError, KeyError, ValueError, TypeError, AttributeError):
        raise ValueError(f"{path} is damaged: it is not the index of a checkpoint") from None
    return n_shards, found


def _crc32c(data):
    """The checksum of a block: CRC-32C, turned and moved as LevelDB does, as it may be a part of what it checks."""
    crc = 2**32 - 1
    for byte in data:
        crc = crc >> 8 ^ _CRC[(crc ^ byte) & 255]
    crc ^= 2**32 - 1
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


_CRC = list(range(256))
for _ in range(8):
    _CRC = [value >> 1 ^ (value & 1) * 0x82F63B78 for value in _CRC]


def _varint(data, at):
    """(the whole number that begins at a byte, where the next one begins): seven bits a byte, the low ones first."""
    end = at
    while data[end] > 127:  # a high bit if more follow
        end += 1
    return sum((byte & 127) << 7 * i for i, byte in enumerate(data[at : end + 1])), end + 1


def _entries(block):
    """Yields (key, value); a key is written as how many bytes it shares with the one before it, and the others."""
    key, at, end = b"", 0, len(block) - 4 * (1 + int.from_bytes(block[-4:], "little"))
    while at < end:
        shared, at = _varint(block, at)
        n_own, at = _varint(block, at)
        length, at = _varint(block, at)
        key, at = key[:shared] + block[at : at + n_own], at + n_own
        yield key, block[at : at + length]
        at += length


def _fields(message, repeated=False):
    """{number: value} of a protocol buffer, or {number: [values]}; a value is a whole number or bytes."""
    found, at = {}, 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag & 7 == 0:
            value, at = _varint(message, at)
        else:  # 32 bits, or as many bytes as it says
            n, at = (4, at) if tag & 7 == 5 else _varint(message, at)
            value, at = message[at : at + n], at + n
        found.setdefault(tag >> 3, []).append(value)
    return found if repeated else {number: values[-1] for number, values in found.items()}


def _map(tf_ckpt_path, shapes, index):
    """The arrays {name: array}, views of the mapped data file; None if some are not plain float32 there."""
    entries = {name: index[f"model/{name}"] for name in shapes}
    if any(dtype != 1 or offset % 4 or sliced for dtype, _, offset, _, sliced in entries.values()):
        return None
    path = f"{tf_ckpt_path}.data-00000-of-00001"
    size, needed = os.path.getsize(path), max(offset + length for _, _, offset, length, _ in index.values())
    if size != needed or any(length != 4 * math.prod(shapes[name]) for name, (*_, length, _) in entries.items()):
        raise ValueError(f"{path} is damaged: it has {size:,} bytes, but its tensors take {needed:,}")
    data = np.asarray(np.memmap(path, np.uint8, "c"))
    return {
        name: data[offset : offset + length].view(np.float32).reshape(shapes[name])
        for name, (_, _, offset, length, _) in entries.items()
    }


def _read_with_tensorflow(tf_ckpt_path, shapes):
    with silent_stderr():  # TensorFlow prints a lot about the machine when it is imported
        try:
            import tensorflow as tf
        except ImportError:
            raise ValueError(
                f"{tf_ckpt_path} is not float32 in one file, as OpenAI's models are, and only TensorFlow "
                f"can read it: pip install tensorflow"
            ) from None
    folder, prefix = os.path.split(os.path.abspath(tf_ckpt_path))
    arrays = {}
    try:
        with tempfile.TemporaryDirectory() as work:  # TensorFlow takes a name with [ or * for a pattern
            for name in os.listdir(folder):
                if name.startswith(f"{prefix}."):
                    os.symlink(os.path.join(folder, name), os.path.join(work, f"model{name[len(prefix) :]}"))
            reader = tf.train.load_checkpoint(os.path.join(work, "model"))
            for name, shape in shapes.items():
                arrays[name] = np.asarray(reader.get_tensor(f"model/{name}"), np.float32).reshape(shape)
    except Exception as error:  # its reader raises many kinds, even IndexError for a truncated file
        raise ValueError(f"TensorFlow cannot read {tf_ckpt_path}: {str(error).splitlines()[0]}") from None
    return arrays


@contextlib.contextmanager
def silent_stderr():
    """Inside the block, standard error goes nowhere, C++ code's included."""
    sys.stderr.flush()
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)
