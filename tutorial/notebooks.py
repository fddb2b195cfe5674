"""The pages as notebooks, for Jupyter and Colab: with outputs and pictures, and with cells to fill in.

    python -m tutorial.notebooks

writes tutorial.ipynb from README.md and tutorial.zh.ipynb from README.zh.md. What the blocks print is taken from the
pages, so python -m tutorial.blocks comes first; and after python -m tutorial.figures this draws the pictures anew, as
PNG, since neither GitHub nor Colab shows SVG, or what is attached to a text, in every notebook.

What tutorial/blocks.py runs becomes a cell of code. Excerpts and commands that it does not run stay text. An exercise
gets an empty cell, and its solution stays folded, as text: it is there to be compared with, not to be run in passing.
A paragraph that names functions to be written in `mine.py` is followed by two cells, one that writes them to that file
and one that checks it. What is between <!-- page --> and <!-- /page --> is on the page alone.
The same pages give the same bytes: cells are numbered, and nothing has a date.
"""

import ast
import base64
import hashlib
import io
import re
import unicodedata
import warnings

import matplotlib
from matplotlib import font_manager
import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from beyond import files
from beyond.style import STYLE
from tutorial import figures
from tutorial.blocks import FENCE, LINK, PAGES, ROOT
from tutorial.judge import NAMES
import utils

REPOSITORY = "https://github.com/YOUR-NAME/picogpt"
NOTEBOOKS = {page: page.with_name(page.name.replace("README", "tutorial").replace(".md", ".ipynb")) for page in PAGES}
SETUP = """
# In Colab, this fetches the repository and installs what it needs. In a checkout it only goes to its folder.
REPOSITORY = "{}"

import os
import subprocess
import sys

if os.path.exists("../gpt2.py"):
    os.chdir("..")
if not os.path.exists("gpt2.py"):
    subprocess.run(["git", "clone", "-q", "--depth", "1", REPOSITORY, "picogpt"], check=True)
    os.chdir("picogpt")
    pip = [sys.executable, "-m", "pip", "install", "-q"]
    subprocess.run([*pip, "-r", "requirements.txt", "-r", "beyond/requirements.txt"], check=True)
sys.path.insert(0, os.getcwd())

from IPython.display import SVG
"""
CHECK = """
from tutorial.check import check_file, report

print(report(check_file("mine.py")))
"""
PAGE_ONLY = re.compile(r"<!-- page -->.*?<!-- /page -->\n*", re.S)
PICTURE = re.compile(r"!\[([^]]*)\]\((figures/[^)\s]*)\)")
HEADING = re.compile(r"^#+ (.*)$", re.M)


# --- what a page is made of ---


def pieces(page):
    """Yields (kind, text, output) in order: "text", a paragraph; "python" or "sh", a block that is run, and what it
    prints, if anything; "shown", a block that is not run."""
    end, blocks, before = 0, list(FENCE.finditer(page)), None
    for i, found in enumerate(blocks):
        between = page[end : found.start()]
        yield from (("text", text, None) for text in between.strip("\n").split("\n\n") if text.strip())
        language, code, end = found[1], found[2], found.end()
        linked = LINK.search(between.rstrip("\n").rpartition("\n")[2])
        follows = blocks[i + 1] if i + 1 < len(blocks) else None
        output = follows[2] if follows and not follows[1] and not page[end : follows.start()].strip() else None
        if language == "" and not linked and before is not None:
            before = None  # it was given with the block that prints it
        elif linked or language not in ("python", "sh") or (language == "sh" and output is None):
            before = None
            yield "shown", found[0], None
        else:
            before = output
            yield language, code, output
    yield from (("text", text, None) for text in page[end:].strip("\n").split("\n\n") if text.strip())


def anchors(page):
    """{GitHub's anchor of a heading: Jupyter's}"""
    found = {}
    for heading in HEADING.findall(FENCE.sub("", page)):
        text = re.sub(r"[`*]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading))
        kept = [char for char in text.lower() if char in "-_ " or unicodedata.category(char)[0] in "LN"]
        jupyter = text.replace(" ", "-").replace("(", "%28").replace(")", "%29")
        found.setdefault("".join(kept).replace(" ", "-"), jupyter)
    return found


def stubs(names):
    """These functions as tutorial/start.py has them, still to be written."""
    source = (ROOT / "tutorial" / "start.py").read_text("utf-8")
    nodes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    lines = source.splitlines()
    return "\n\n\n".join("\n".join(lines[nodes[name].lineno - 1 : nodes[name].end_lineno]) for name in names)


# --- cells ---


class Cells:
    """The cells of a notebook, made from the pieces of a page one by one."""

    def __init__(self, page, picture, yours):
        self.anchors, self.picture, self.yours = anchors(page), picture, yours
        self.cells, self.text, self.taught = [], [], []
        self.exercise, self.folded = False, False  # whether a cell to fill in is due; whether it is in a solution

    def add(self, cell):
        cell.id = f"cell-{len(self.cells)}"
        self.cells.append(cell)

    def end_text(self):
        if self.text:
            self.add(new_markdown_cell("\n\n".join(self.text)))
            self.text = []

    def add_code(self, code, outputs=(), **metadata):
        self.end_text()
        self.add(new_code_cell(code.strip("\n"), outputs=list(outputs), metadata=metadata))

    def add_block(self, language, code, output):
        outputs = [new_output("stream", name="stdout", text=output)] if output else []
        self.add_code(("%%sh\n" if language == "sh" else "") + code, outputs)

    def add_text(self, text):
        if text.startswith("<details>"):
            if self.exercise:
                self.add_code(self.yours)
            self.folded, self.exercise = True, False
        if HEADING.match(text):
            self.end_text()
        if (found := PICTURE.fullmatch(text)) and not self.folded:
            self.add_picture(*found.groups())
            return
        self.text.append(self.linked(text))
        if text.startswith("</details>"):
            self.folded = False
            self.end_text()
        elif not self.folded:
            self.exercise = re.match(r"\*\*\d+\. ", text) is not None or (self.exercise and not HEADING.match(text))
            self.add_functions(text)

    def add_functions(self, text):
        """A cell for the functions that a paragraph says are to be written now, and one that checks them."""
        names = [name for name in NAMES if f"`{name}`" in text and name not in self.taught]
        if "`mine.py`" in text and names:
            begin = "%%writefile -a mine.py\n\n\n" if self.taught else "%%writefile mine.py\nimport numpy as np\n\n\n"
            self.add_code(begin + stubs(names))
            self.add_code(CHECK)
            self.taught += names

    def add_picture(self, alt, path):
        data = {"image/png": self.picture(ROOT / "tutorial" / path), "text/plain": alt}
        file = (ROOT / "tutorial" / path).resolve().relative_to(ROOT).as_posix()
        self.add_code(f'SVG("{file}")', [new_output("display_data", data)], jupyter={"source_hidden": True})

    def linked(self, text):
        """A text whose links lead to where they do on the page."""
        text = LINK.sub(lambda found: re.sub(r' "[^"\n]*"\)$', ")", found[0]), text)
        text = re.sub(r"\]\(#([^)\s]+)\)", lambda found: f"](#{self.anchors.get(found[1], found[1])})", text)
        return re.sub(r"\]\(README(\.zh)?\.md\)", r"](tutorial\1.ipynb)", text)


def notebook(path, picture):
    """The notebook of a page. picture(path of an SVG) -> the PNG, in base64."""
    page = PAGE_ONLY.sub("", path.read_text("utf-8"))
    cells = Cells(page, picture, "# 在这里写你的代码" if ".zh" in path.name else "# your code")
    cells.add_code(SETUP.format(REPOSITORY))
    for kind, text, output in pieces(page):
        if kind == "text":
            cells.add_text(text)
        elif kind == "shown":
            cells.text.append(text)
        elif cells.folded:
            cells.text.append(f"```{kind}\n{text}```" + (f"\n```\n{output}```" if output else ""))
        else:
            cells.add_block(kind, text, output)
    cells.end_text()
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return new_notebook(cells=cells.cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


# --- files ---


def png(path):
    """The picture of a file in tutorial/figures once more, as PNG in base64, which names the file's SHA-256.

    Raises ValueError if it is not one of tutorial/figures.py's, or if there is no font for its words.
    """
    name, _, language = path.stem.partition(".")
    make = {make.__name__: make for make in figures.FIGURES}.get(name)
    if make is None:
        raise ValueError(f"{path} is none of the pictures of tutorial/figures.py, so it cannot be drawn as PNG")
    known = {font.name for font in font_manager.fontManager.ttflist}
    fonts = [name for name in STYLE["font.sans-serif"] if name in known]
    about = {"Software": None, "Source": hashlib.sha256(path.read_bytes()).hexdigest()}
    file = io.BytesIO()
    with matplotlib.rc_context({**STYLE, "font.family": fonts}), warnings.catch_warnings():
        warnings.filterwarnings("error", "Glyph .* missing")
        try:
            make(figures.LANGUAGES[f".{language}" if language else ""]).figure.savefig(file, dpi=144, metadata=about)
        except UserWarning as warning:
            raise ValueError(
                f"no font here can draw {path.name}: {warning}; install one of {', '.join(STYLE['font.sans-serif'])} "
                f"(fonts-noto-cjk, say) and remove {matplotlib.get_cachedir()}, which lists the fonts"
            ) from None
    return base64.b64encode(file.getvalue()).decode()


def content(notebook):
    """What the file of a notebook holds."""
    return nbformat.writes(notebook) + "\n"


def main():
    """Makes the tutorial's notebooks from its pages."""
    made = {NOTEBOOKS[page]: notebook(page, png) for page in PAGES}
    for path, one in made.items():
        nbformat.validate(one)
        files.write_text(path, content(one))
    return "\n".join(
        f"{path.relative_to(ROOT)}: {len(one.cells)} cells, {path.stat().st_size:,} bytes" for path, one in made.items()
    )


if __name__ == "__main__":
    utils.run(main)
