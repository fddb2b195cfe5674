"""Files, for all chapters: how a text is read, when an output may be written, and what makes two runs the same work.

Reading. A text that is scored or learned is kept byte for byte, with its ends of lines and byte-order mark (read_text).
Where a line or a field means something by itself (a prompt, a task, a row of a table), its end, LF or CRLF, and a
byte-order mark before the first are not part of it (read_lines, read_table; utils.read_prompt does the same).

Writing. An output is written only over what the same command made, which it has to prove; never over an input, a device
or a folder; and it takes its place whole (check_new, check_file, write_whole).

The same work. A run that goes on from a file proves that everything that decides its result is as it was: settings,
data and the base model, the latter two by digest (same_work).
"""

import csv
import functools
import hashlib
import io
import json
import os
import stat
import sys

import utils

STATE = "train.npz"  # in a folder whose run is not finished; see beyond/fit.py


# --- reading ---


def open_bytes(path):
    """The file, or for "-" the standard input, to read bytes from."""
    return io.BytesIO(_standard_input()) if path == "-" else open(path, "rb")


@functools.lru_cache(None)
def _standard_input():  # which can be read only once
    if sys.stdin is None:
        raise ValueError("the standard input is closed: name a file")
    return sys.stdin.buffer.read()


def read_bytes(path):
    with open_bytes(path) as file:
        return file.read()


def read_text(path):
    """The text of a UTF-8 file, byte for byte. Raises ValueError if it is empty or not UTF-8, naming the place."""
    text = decode(read_bytes(path), path)
    if not text:
        raise ValueError(f"{path} is empty: give a text to learn from")
    return text


def decode(data, name):
    """bytes -> str. Raises ValueError for what is not UTF-8, naming the place."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} is not UTF-8: byte {error.start:,} is 0x{data[error.start]:02x}; convert it first"
        ) from None


def read_lines(path):
    """The lines of a file, which it opens at once: an iterator of bytes, without ends and without a byte-order mark."""

    def lines(file):
        with file:
            for number, line in enumerate(file):
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line
                yield line.removesuffix(b"\n").removesuffix(b"\r")

    return lines(open_bytes(path))


def read_records(path, form):
    """Yields (place, record) for each line of JSON that is not empty; place is "FILE, line N".

    form: {field: an example}; of each record these are texts, or absent where the example is None.
    Raises ValueError for any other line.
    """
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            fits = all(
                isinstance(record[name] if example else record.get(name, ""), str) for name, example in form.items()
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            fits = False
        if not fits:
            example = json.dumps({name: example or "a text or nothing" for name, example in form.items()})
            raise ValueError(f"{path}, line {number}: this must be JSON like {example}")
        yield f"{path}, line {number}", record


def read_table(path):
    """The rows of a CSV file, [(line number, [cells])]; the first one names the columns. Raises ValueError."""
    csv.field_size_limit(2**31 - 1)  # by default 131,072 characters; more is an error
    reader = csv.reader(io.StringIO(read_text(path).removeprefix("\ufeff"), newline=""), strict=True)
    try:
        return [(reader.line_num, row) for row in reader if row]
    except csv.Error:
        raise ValueError(
            f"{path}, line {reader.line_num}: a quote is not closed, or is followed by more text: write a "
            f'field that holds a quote as "a ""word"" in quotes"'
        ) from None


# --- writing ---


def write_whole(path, write):
    """Lets write(part) make a file, which gets its name only when it is whole. Follows a symbolic link."""
    name, ending = os.path.splitext(os.path.realpath(path))
    part = f"{name}.part{ending}"
    try:
        write(part)
        os.replace(part, name + ending)
    except BaseException as error:
        if os.path.exists(part):
            os.remove(part)
        if isinstance(error, OSError) and error.errno:
            raise OSError(f"cannot write {path}: {error.strerror}") from None
        raise


def write_text(path, text):
    """A UTF-8 text to a file, as write_whole does."""

    def write(part):
        with open(part, "w", encoding="utf-8", newline="") as file:
            file.write(text)

    write_whole(path, write)


def check_file(path, is_ours, *inputs):
    """Raises ValueError unless path can become the output of this command, whose inputs are other files.

    is_ours: a function of an open binary file that says whether this command wrote it.
    """
    path = str(path)
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder):
        raise ValueError(f"No such file or directory: {path}: make the folder {folder} first")
    if not os.path.exists(path):
        return
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"{path} is a folder or a device: name a file for the output")
    if any(os.path.exists(other) and os.path.samefile(path, other) for other in inputs):
        raise ValueError(f"{path} is the input, too, and would be lost: name another file for the output")
    with open(path, "rb") as file:
        if os.path.getsize(path) and not is_ours(file):
            raise ValueError(
                f"{path} is there already, and this command did not write it: give another out, or remove it"
            )


def check_new(folder):
    """Raises ValueError unless a model can be made in the folder: it is not there, is empty, or holds a run's state."""
    if os.path.basename(os.path.realpath(folder)) in utils.SHA256:
        raise ValueError(f"{folder} has the name of a model of OpenAI's, and would be taken for it: give another name")
    if not os.path.exists(folder):
        return
    if not os.path.isdir(folder):
        raise ValueError(f"{folder} is a file: give the name of a new folder")
    found = set(os.listdir(folder))
    if STATE not in found and found - {"train.part.npz"}:
        what = "is a model already" if {utils.DATA, "adapter.npz"} & found else "holds other files"
        raise ValueError(f"{folder} {what}: give another name, or remove that folder")


def lock(file):
    """Raises ValueError if another process has locked an open file. The lock ends with the file or the process."""
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"another process is writing to {file.name}: wait for it, or give another out") from None
    except OSError as error:  # a file system without locks
        print(f"note: {file.name} cannot be locked ({error.strerror}): one run at a time", file=sys.stderr)


# --- the same work ---


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
