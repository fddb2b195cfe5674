"""Turns the pages into notebooks for Jupyter and Colab, with outputs and pictures, and with cells to fill in.

    python -m tutorial.notebooks

writes tutorial.ipynb from README.md and tutorial.zh.ipynb from README.zh.md. Run python -m tutorial.blocks and
python -m tutorial.figures first: outputs are copied from the pages, and pictures are redrawn as PNG, because neither
GitHub nor Colab shows SVG or attachments in every notebook.

Each block that tutorial/blocks.py runs becomes a code cell. Excerpts, and commands that it does not run, stay text. An
exercise gets an empty cell; its solution stays folded, as text, so that it is not run by accident.
A paragraph that asks for functions in `mine.py` is followed by two cells: one writes their stubs to that file, and one
checks it. Text between <!-- page --> and <!-- /page --> is left out.
The same pages give the same bytes: cells are numbered, and nothing is dated.
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

from beyond.files import writing
from beyond.files.style import STYLE
import cli
from tutorial import figures
from tutorial.blocks import FENCE, LINK, PAGES, ROOT
from tutorial.judge import NAMES

REPOSITORY = "https://github.com/YOUR-NAME/picogpt"
NOTEBOOKS = {page: page.with_name(page.name.replace("README", "tutorial").replace(".md", ".ipynb")) for page in PAGES}
SETUP = """
# In Colab, this fetches the repository and installs its requirements. In a checkout, it only changes to its folder.
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


# --- the parts of a page ---


def pieces(page):
    """Yields (kind, text, output) in order. kind: "text", a paragraph; "python" or "sh", a block that is run, with its
    output if it has any; "shown", a block that is not run."""
    blocks = list(FENCE.finditer(page))
    end, before = 0, None
    for i, found in enumerate(blocks):
        between = page[end : found.start()]
        yield from (("text", text, None) for text in between.strip("\n").split("\n\n") if text.strip())
        language, code, end = found[1], found[2], found.end()
        linked = LINK.search(between.rstrip("\n").rpartition("\n")[2])
        follows = blocks[i + 1] if i + 1 < len(blocks) else None
        output = follows[2] if follows and not follows[1] and not page[end : follows.start()].strip() else None
        if language == "" and not linked and before is not None:
            before = None  # this output was yielded with its block
        elif linked or language not in ("python", "sh") or (language == "sh" and output is None):
            before = None
            yield "shown", found[0], None
        else:
            before = output
            yield language, code, output
    yield from (("text", text, None) for text in page[end:].strip("\n").split("\n\n") if text.strip())


def anchors(page):
    """{anchor of a heading on GitHub: its anchor in Jupyter}"""
    found = {}
    for heading in HEADING.findall(FENCE.sub("", page)):
        text = re.sub(r"[`*]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading))
        kept = [char for char in text.lower() if char in "-_ " or unicodedata.category(char)[0] in "LN"]
        jupyter = text.replace(" ", "-").replace("(", "%28").replace(")", "%29")
        found.setdefault("".join(kept).replace(" ", "-"), jupyter)
    return found


def stubs(names):
    """The unwritten functions with these names from tutorial/start.py."""
    source = (ROOT / "tutorial" / "start.py").read_text("utf-8")
    nodes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    lines = source.splitlines()
    return "\n\n\n".join("\n".join(lines[nodes[name].lineno - 1 : nodes[name].end_lineno]) for name in names)


# --- cells ---


class Cells:
    """Builds the cells of a notebook from the pieces of a page, one by one."""

    def __init__(self, page, picture, yours):
        self.anchors, self.picture, self.yours = anchors(page), picture, yours
        self.cells, self.text, self.taught = [], [], []
        self.exercise = False  # whether the last exercise still needs its empty cell
        self.folded = False  # whether the text is inside a solution

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
        """Adds a cell for the functions that a paragraph asks the reader to write, and one that checks them."""
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
        """A text with its links adapted to the notebook."""
        text = LINK.sub(lambda found: re.sub(r' "[^"\n]*"\)$', ")", found[0]), text)
        text = re.sub(r"\]\(#([^)\s]+)\)", lambda found: f"](#{self.anchors.get(found[1], found[1])})", text)
        return re.sub(r"\]\(README(\.zh)?\.md\)", r"](tutorial\1.ipynb)", text)


def notebook(path, picture):
    """The notebook of a page. picture: path of an SVG -> PNG in base64."""
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
    """A picture of tutorial/figures redrawn as PNG in base64; its metadata holds the SHA-256 of the SVG file.

    Raises ValueError if tutorial/figures.py does not draw the picture, or if no font has its characters.
    """
    name, _, language = path.stem.partition(".")
    make = {make.__name__: make for make in figures.FIGURES}.get(name)
    if make is None:
        raise ValueError(f"{path} cannot be redrawn as PNG: it is not a picture of tutorial/figures.py")
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
                f"(such as fonts-noto-cjk) and delete the font cache, {matplotlib.get_cachedir()}"
            ) from None
    return base64.b64encode(file.getvalue()).decode()


def content(notebook):
    """The text of a notebook's file."""
    return nbformat.writes(notebook) + "\n"


def main():
    """Creates the tutorial's notebooks from its pages."""
    made = {NOTEBOOKS[page]: notebook(page, png) for page in PAGES}
    for path, one in made.items():
        nbformat.validate(one)
        writing.write_text(path, content(one))
    return "\n".join(
        f"{path.relative_to(ROOT)}: {len(one.cells)} cells, {path.stat().st_size:,} bytes" for path, one in made.items()
    )


if __name__ == "__main__":
    cli.run(main)
