"""Runs the tutorial's code blocks and writes what they print into its pages.

    python -m tutorial.blocks

brings README.md and README.zh.md up to date; tests/test_tutorial.py compares without writing.

Python blocks run in the order of the page, in the repository's folder, in a session that starts afresh at every heading
of level 2. Each sh block runs on its own. The standard output of either is the plain block below it; without one, a
Python block must print nothing, and an sh block is not run. A block below a link with a title is not run either: it is
an excerpt from the linked file. The title says which:

    [gpt2.py:25-28](../gpt2.py#L25-L28 "def softmax")   a function or a class
    ... "from 'names = ' to 'offsets = '")              from the line with the first text to the line with the second
    ... "between 'names = ' and 'offsets = '")          the same without those two lines
    ... "all of it")                                    the whole file

A block below two such links is the diff between the two excerpts. The line numbers in the links are updated as well.
"""

import ast
import contextlib
import difflib
import io
import os
from pathlib import Path
import re
import shlex
import subprocess
import sys

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "tutorial" / name for name in ("README.md", "README.zh.md")]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r'\[[^]\n]*\]\(\.\./([\w./-]+)#L\d+-L\d+ "([^"\n]*)"\)')


def lines_of(name, what):  # -> (first, last), counted from 1
    """The lines of the part of a file that a link's title names. Raises ValueError if there is no such part."""
    source = (ROOT / name).read_text("utf-8")
    lines = source.splitlines()
    if what == "all of it":
        return 1, len(lines)
    if found := re.fullmatch(r"(?:def|class) (\w+)", what):
        for node in ast.walk(ast.parse(source)):
            if getattr(node, "name", None) == found[1] and isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                return min([node.lineno, *(one.lineno for one in node.decorator_list)]), node.end_lineno
    if found := re.fullmatch(r"(from|between) '(.*)' (?:to|and) '(.*)'", what):
        first = next((i for i, line in enumerate(lines, 1) if found[2] in line), len(lines))
        last = next((i for i, line in enumerate(lines, 1) if found[3] in line and i >= first), 0)
        if found[1] == "between":  # skips empty lines and the end of a docstring
            inside = [i for i in range(first + 1, last) if lines[i - 1].strip('" ')]
            first, last = (inside[0], inside[-1]) if inside else (0, 0)
        if last:
            return first, last
    raise ValueError(f"{name} has no part {what!r}: correct the title of the link in tutorial/README.md")


def cut(name, what):
    """The part of a file that a link's title names, dedented."""
    first, last = lines_of(name, what)
    lines = (ROOT / name).read_text("utf-8").splitlines()[first - 1 : last]
    margin = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    return "".join(line[margin:] + "\n" for line in lines)


def number_links(page):
    """The page with current line numbers in its links."""

    def link(found):
        first, last = lines_of(found[1], found[2])
        lines = f"{first}-{last}" if last > first else first
        return f'[{found[1]}:{lines}](../{found[1]}#L{first}-L{last} "{found[2]}")'

    return LINK.sub(link, page)


def blocks_of(page):
    """[(language, text, links)] of a page's blocks; links: [(file, title)] if the block is an excerpt, else []."""
    blocks = []
    end = 0
    for found in FENCE.finditer(page):
        before = page[end : found.start()].rstrip("\n").rpartition("\n")[2]
        blocks.append((found[1], found[2], LINK.findall(before)))
        end = found.end()
    return blocks


def with_blocks(page, texts):
    """The page with the texts of its blocks replaced."""
    texts = iter(texts)
    return FENCE.sub(lambda found: f"```{found[1]}\n{next(texts)}```", page)


def run_python(code, number, namespace):
    """The output of a Python block."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, f"block {number} of the section", "exec"), namespace)
    return output.getvalue()


def run_sh(code):
    """The output of a command, which cannot download models. Raises ValueError if it fails."""
    words = [sys.executable if word == "python" else word for word in shlex.split(code)]
    env = {**os.environ, "GPT2_MODELS_URL": "http://127.0.0.1:9", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(words, capture_output=True, cwd=ROOT, env=env, encoding="utf-8", timeout=300)
    if done.returncode:
        raise ValueError(f"{code.strip()} failed: {done.stderr}")
    return done.stdout


def bring_up_to_date(page):
    """The page with current outputs. Runs each section on its own, as a reader may start at any of them."""
    return "".join(map(section_up_to_date, re.split(r"^(?=## )", page, flags=re.M)))


@np.printoptions()
def section_up_to_date(page):
    blocks = blocks_of(page)
    texts, namespace, printed = [], {"__name__": "__main__"}, None
    for number, (language, text, links) in enumerate(blocks, 1):
        output_follows = number < len(blocks) and blocks[number][0] == "" and not blocks[number][2]
        if len(links) == 2:
            old, new = (cut(*link).splitlines() for link in links)
            text = "".join(line + "\n" for line in [*difflib.unified_diff(old, new, n=len(old), lineterm="")][3:])
        elif links:
            text = cut(*links[0])
        elif language == "":
            if printed is None:
                raise ValueError(f"block {number} is an output, but no block above it is run: {text}")
            text = printed if printed.endswith("\n") else printed + "\n"
            printed = None
        elif language == "python":
            printed = run_python(text, number, namespace)
            if bool(printed) != output_follows:
                raise ValueError(f"block {number} prints {printed!r}; its output must be below it:\n{text}")
        elif language == "sh" and output_follows:
            printed = run_sh(text)
        texts.append(text)
    return with_blocks(number_links(page), texts)


def main():
    """Runs the tutorial's code blocks and writes their output below them, in both languages."""
    os.chdir(ROOT)
    texts = [text for _, text, _ in blocks_of(bring_up_to_date(PAGES[0].read_text("utf-8")))]
    for path in PAGES:
        page = path.read_text("utf-8")
        if (n := len(blocks_of(page))) != len(texts):
            raise ValueError(f"{path} has {n} blocks but README.md {len(texts)}: both must have the same, in order")
        path.write_text(with_blocks(number_links(page), texts), "utf-8", newline="\n")
    return f"{len(texts)} blocks are up to date"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from cli import run

    run(main)
