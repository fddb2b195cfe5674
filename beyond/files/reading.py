"""Files, for all chapters: how a text is read, when an output may be written, and what makes two runs the same work.

Reading. A text that is scored or learned is kept byte for byte, with its ends of lines and byte-order mark (read_text).
Where a line or a field means something by itself (a prompt, a task, a row of a table), its end, LF or CRLF, and a
byte-order mark before the first are not part of it (read_lines, read_table; cli.read_prompt does the same).

Writing. An output is written only over what the same command made, which it has to prove; never over an input, a device
or a folder; and it takes its place whole (check_new, check_file, write_whole).

The same work. A run that goes on from a file proves that everything that decides its result is as it was: settings,
data and the base model, the latter two by digest (same_work).
"""

import csv
import functools
import io
import json
import sys

import regex

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


# --- the same work ---


# --- a text of any size ---


def pieces(file, size=2**20):
    """Yields a text file in pieces of about that many characters, whose tokens together are those of the whole.

    A piece ends where white space begins: there ends a word in any case (see encoder.py).
    """
    rest = [""]  # in parts, only the last of which can contain such a place
    while more := file.read(size):
        last = rest[-1][-1:]
        if found := regex.match(r"(?s:.*)\S(?=\s)", last + more):
            end = found.end() - len(last)
            yield "".join(rest) + more[:end]
            rest = [more[end:]]
        else:
            rest.append(more)
    yield "".join(rest)


def beginning(encoder):
    """[id] of <|endoftext|>, or [] where the vocabulary has none."""
    return [encoder.encoder["<|endoftext|>"]] if "<|endoftext|>" in encoder.encoder else []
