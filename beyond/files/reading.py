"""How texts are read: byte for byte for scoring and training, line by line where each line is an item of its own.

A text for scoring or training keeps its line endings and its byte-order mark (read_text, pieces). Where a line or cell
is an item (a prompt, a task, a row of a table), its line ending, LF or CRLF, and a byte-order mark at the start of the
file are not part of it (read_lines, read_table; cli.read_prompt does the same).
"""

import csv
import functools
import io
import json
import sys

import regex

import cli

cli.INPUTS.update(["--text", "--data", "--prompts", "--source", "--folder", "--path"])


def open_bytes(path):
    """Opens a file to read bytes from, or standard input for "-"."""
    return io.BytesIO(_standard_input()) if path == "-" else open(path, "rb")


@functools.lru_cache(None)
def _standard_input():  # kept, as it can be read only once
    if sys.stdin is None:
        raise ValueError("standard input is closed: name a file")
    return sys.stdin.buffer.read()


def read_bytes(path):
    with open_bytes(path) as file:
        return file.read()


def read_text(path):
    """The text of a UTF-8 file, byte for byte. Raises ValueError if it is empty or not UTF-8."""
    text = decode(read_bytes(path), path)
    if not text:
        raise ValueError(f"{path} is empty: give a text to learn from")
    return text


def decode(data, name):
    """bytes -> str. Raises ValueError, naming the first invalid byte, if they are not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} is not UTF-8: byte {error.start:,} is 0x{data[error.start]:02x}; convert it first"
        ) from None


def read_lines(path):
    """Iterates over the lines of a file, as bytes without line endings and byte-order mark. Opens it at once."""

    def lines(file):
        with file:
            for number, line in enumerate(file):
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line
                yield line.removesuffix(b"\n").removesuffix(b"\r")

    return lines(open_bytes(path))


def read_records(path, form):
    """Yields ("PATH, line N", record) for each line of a file of JSON objects; skips empty lines.

    form: {field: an example}. In each record these fields are strings; those whose example is None may be missing.
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
            example = json.dumps({name: example or "optional" for name, example in form.items()})
            raise ValueError(f"{path}, line {number}: this must be JSON like {example}")
        yield f"{path}, line {number}", record


def read_table(path):
    """The rows of a CSV file as [(line number, [cells])], without empty ones. Raises ValueError for bad quoting."""
    csv.field_size_limit(2**31 - 1)  # the default, 131,072 characters, is too small for long texts
    reader = csv.reader(io.StringIO(read_text(path).removeprefix("\ufeff"), newline=""), strict=True)
    try:
        return [(reader.line_num, row) for row in reader if row]
    except csv.Error:
        raise ValueError(
            f"{path}, line {reader.line_num}: a quote is not closed, or is followed by more text: write a "
            f'field that holds a quote as "a ""word"" in quotes"'
        ) from None


def pieces(file, size=2**20):
    """Yields a text file in pieces of about size characters, which together give the same tokens as the whole text.

    A piece ends before white space, where a word always ends (see encoder.py).
    """
    rest = [""]  # read but not yet yielded; only the last part can contain the end of a piece
    while more := file.read(size):
        last = rest[-1][-1:]
        if found := regex.match(r"(?s:.*)\S(?=\s)", last + more):
            end = found.end() - len(last)
            yield "".join(rest) + more[:end]
            rest = [more[end:]]
        else:
            rest.append(more)
    yield "".join(rest)


def separator(encoder):
    """[id] of <|endoftext|>, which separates documents, or [] if the vocabulary does not have it."""
    return [encoder.encoder["<|endoftext|>"]] if "<|endoftext|>" in encoder.encoder else []
