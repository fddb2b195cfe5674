"""Is your own gpt2.py right, and if not, which mistake is in it? Begin with a copy of tutorial/start.py:

    python -m tutorial.check mine.py

    softmax            right
    layer_norm         wrong: no root (line 14)
        It divides by the variance. Divide by its square root, the standard deviation.
        layer_norm(...)[0, 0] is -1.2, and should be -1.34163, for x = [[1.0, 2.0, 3.0, 4.0], ...
    linear             still to do

tutorial/judge.py finds out what is said here, in a process of its own: the file may print, exit or loop for ever.
That process writes a line of JSON for each thing that it knows; when a function takes too long, it shows where and
ends, and another process does the same without that function.
"""

import faulthandler
import functools
import json
import linecache
import os
import re
import subprocess
import sys
import time
import types

from tutorial.inputs import inputs
from tutorial.judge import NAMES, Finding, FirstLine, check, describe
from tutorial.mistakes import TABLE

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
START = f"import sys; sys.path.insert(0, {ROOT!r}); from tutorial.check import child; child(*sys.argv[1:])"
ALL = "the file"  # what is tried first, as if it were a function


# --- in the reader's process ---


def child(path, options):
    """Runs the file, and writes a line of JSON for each Finding, and before each thing that it tries."""
    from utils import load_encoder_hparams_and_params

    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whatever the file prints on whatever way
    options, sys.stdout, sys.dont_write_bytecode = json.loads(options), FirstLine(), True
    stderr, sys.stderr = sys.stderr, FirstLine()

    def before(name):
        print(json.dumps({"tries": name}), file=out, flush=True)
        faulthandler.dump_traceback_later(options["seconds"], exit=True, file=stderr)

    _, hparams, params = load_encoder_hparams_and_params("shakespeare", "models")
    before(ALL)
    try:
        namespace = load(path)
        mine = dict(namespace)
        for finding in check(namespace, inputs(params, hparams["n_head"]), options["only"], options["skip"], before):
            code = getattr(mine.get(finding.function), "__code__", None)
            line = code.co_firstlineno if code and code.co_filename == path else None
            print(json.dumps({**finding._asdict(), "line": line}), file=out, flush=True)
        print(json.dumps({"done": True}), file=out, flush=True)
    except ValueError as error:
        print(json.dumps({"error": str(error)}), file=out, flush=True)
    os._exit(0)  # whatever threads or handlers the file left


def load(path):
    """The globals of the reader's file, which runs, but not as a program. Raises ValueError if it does not."""
    with open(path, "rb") as file:
        source = file.read()
    module = types.ModuleType("mine")
    module.__file__, sys.modules["mine"] = path, module
    sys.path.append(os.path.dirname(path))
    try:
        code = compile(source, path, "exec")
    except SyntaxError as error:
        line = (error.text or "").strip()
        raise ValueError(f"line {error.lineno} is not Python: {error.msg}: {line}") from None
    except ValueError as error:
        raise ValueError(f"it is not Python: {error}") from None
    try:
        exec(code, vars(module))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise ValueError(describe(error, vars(module))) from None
    if not any(callable(vars(module).get(name)) for name in NAMES):
        raise ValueError(f"it has none of the functions {', '.join(NAMES)}: begin with a copy of tutorial/start.py")
    return vars(module)


# --- in ours ---


def check_file(path, only=None, seconds=20):
    """[(Finding, line)] of a file. Raises ValueError or OSError if it cannot be run."""
    skip, path = {}, os.path.abspath(path)
    with open(path, "rb"):
        pass
    while True:
        options = json.dumps({"only": only, "seconds": seconds, "skip": list(skip)})
        command = [sys.executable, "-c", START, path, options]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
        said = [json.loads(line) for line in done.stdout.splitlines()]
        if said and "error" in said[-1]:
            raise ValueError(f"{path}: {said[-1]['error']}")
        if said and "done" in said[-1]:
            found = {
                one["function"]: (Finding(*(one[key] for key in Finding._fields)), one["line"])
                for one in said
                if "function" in one
            }
            order = [one for one in [*skip, *found] if one in skip or one in found]
            order.sort(key=lambda name: [*NAMES[:8], "hidden_states", *NAMES[8:]].index(name))
            return [(skip.get(name) or found[name]) for name in order if only in (None, name)]
        tried = [one["tries"] for one in said if "tries" in one]
        if not tried:
            raise ValueError(f"the checker itself failed: {done.stderr.decode(errors='replace').strip()[-300:]}")
        kind, text, line = ended(done, path, seconds)
        if tried[-1] == ALL or tried[-1] in skip:
            raise ValueError(f"{path}: {text}")
        skip[tried[-1]] = Finding(tried[-1], "wrong", [kind], text), line


def ended(done, path, seconds):
    """(name, text, line) of why the reader's process ended before it was done."""
    stderr = done.stderr.decode(errors="replace")
    if "Timeout (" not in stderr:
        return "exit", f"It ended Python itself, with status {done.returncode}.", None
    lines = [int(number) for name, number in re.findall(r'File "(.*)", line (\d+)', stderr) if same_file(name, path)]
    if not lines:
        return "time", f"It is not done after {seconds} seconds; --seconds={3 * seconds} waits longer.", None
    text = (
        f"Line {lines[0]} is still running after {seconds} seconds: does a loop never end? "
        f"--seconds={3 * seconds} waits longer.\n    {linecache.getline(path, lines[0]).strip()}"
    )
    return "time", text, None


def same_file(name, path):
    return name == path or name == path.encode("ascii", "backslashreplace").decode()


def report(findings):
    """What is printed: a line for each function, and what is wrong below it."""
    lines = []
    for (name, status, mistakes, text), line in findings:
        named = ", ".join(name for name in mistakes if name != "unknown") if status == "wrong" else ""
        status = {"to do": "still to do", "waits": "not tried"}.get(status, status)
        lines.append(f"{name:18} {status}{f': {named}' if named else ''}{f' (line {line})' if line and named else ''}")
        lines += [f"    {part}" for part in text.splitlines()]
    count = [finding.status for finding, _ in findings]
    lines.append(
        f"\n{count.count('right')} right, {count.count('wrong') + count.count('waits')} wrong, "
        f"{count.count('to do')} still to do"
    )
    return "\n".join(lines)


@functools.cache
def forms():
    """[(pattern, in Chinese)] of all that is said of a function; {} in both is what may vary."""
    with open(os.path.join(ROOT, "tutorial", "check.zh.json"), encoding="utf-8") as file:
        table = json.load(file)
    said = {one.says: table[one.function][one.name] for one in TABLE} | table["others"]
    return [(re.compile(re.escape(form).replace(r"\{\}", "(.*)")), words) for form, words in said.items()]


def chinese(text):
    """What is said of a function, in Chinese. Lines that are not ours, such as code, stay as they are."""
    lines = text.splitlines()
    for i, line in enumerate(lines):
        found = ((form.fullmatch(line), words) for form, words in forms())
        lines[i] = next((words.format(*one.groups()) for one, words in found if one), line)
    return "\n".join(lines)


def main(path: str, only: str = None, watch=False, seconds=20):
    """Says for each function of your own gpt2.py whether it is right, and if not, which mistake is in it.

    The exit status is 0 if everything that is there is right. Begin with a copy of tutorial/start.py.

    Args:
        path: Your file. It runs in a process of its own, but with your rights: check only what you would run.
        only: The name of one function, to be told of that one alone. By default all.
        watch: Checks again whenever the file has changed, until Ctrl-C.
        seconds: How long a function may take, 1 or more.
    """
    from utils import check as check_option

    check_option("seconds", seconds, 1.0, 86400.0)
    check_option("watch", int(watch) if isinstance(watch, bool) else watch, 0, 1, "given without a value")
    names = [*NAMES, "hidden_states"]
    if only is not None and only not in names:
        raise ValueError(f"only={only!r} must be one of {', '.join(names)}")
    while watch:
        look(path, only, seconds)
    findings = check_file(path, only, seconds)
    print(report(findings), flush=True)
    if any(finding.status in ("wrong", "waits") for finding, _ in findings):
        sys.exit(1)


def look(path, only, seconds):
    """Checks a file once and waits until it changes."""
    before = stamp(path)
    try:
        print(report(check_file(path, only, seconds)), flush=True)
    except (ValueError, OSError) as error:
        print("error:", error, flush=True)
    print(f"\nwaiting for {path} to change; Ctrl-C ends it\n", flush=True)
    while stamp(path) in (before, None):
        time.sleep(0.3)


def stamp(path):
    """What changes when a file does; None while it is not there, as when an editor puts a new one in its place."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


if __name__ == "__main__":
    sys.path.insert(0, ROOT)
    from utils import run

    run(main, "path", "only")
