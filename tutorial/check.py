"""Is your own gpt2.py right, and if not, what is wrong with it? Start with a copy of tutorial/start.py:

    python -m tutorial.check mine.py

    softmax            right
    layer_norm         wrong: no square root (line 14)
        This divides by the variance. Divide by its square root, the standard deviation.
        layer_norm(...)[0, 0] is -1.19999 but should be -1.34164, for x = [[1.0, 2.0, 3.0, 4.0], ...
    linear             still to do

tutorial/judge.py does the checking in a separate process, because the file may print, exit or loop forever. That
process writes each finding as a line of JSON. When a function takes too long, it prints where and ends, and another
process starts over without that function.
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
from tutorial.mistakes import RIGHT, TABLE

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
START = f"import sys; sys.path.insert(0, {ROOT!r}); from tutorial.check import child; child(*sys.argv[1:])"
ALL = "the file"  # loading it is the first step, named as if it were a function


# --- in the reader's process ---


def child(path, options):
    """Runs the file. Writes a line of JSON before it checks each function, and one for each Finding."""
    from utils import load_encoder_hparams_and_params

    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # discards output that bypasses sys.stdout
    options = json.loads(options)
    sys.stdout = FirstLine()
    sys.dont_write_bytecode = True
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
    os._exit(0)  # despite any threads or exit handlers that the file left behind


def load(path):
    """The globals of the reader's file after it has run, not as __main__. Raises ValueError if it fails."""
    with open(path, "rb") as file:
        source = file.read()
    module = types.ModuleType("mine")
    module.__file__ = path
    sys.modules["mine"] = module
    sys.path.append(os.path.dirname(path))
    try:
        code = compile(source, path, "exec")
    except SyntaxError as error:
        line = (error.text or "").strip()
        raise ValueError(f"line {error.lineno} is not valid Python: {error.msg}: {line}") from None
    except ValueError as error:
        raise ValueError(f"it is not valid Python: {error}") from None
    try:
        exec(code, vars(module))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise ValueError(describe(error, vars(module))) from None
    if not any(callable(vars(module).get(name)) for name in NAMES):
        raise ValueError(f"it defines none of {', '.join(NAMES)}: start with a copy of tutorial/start.py")
    return vars(module)


# --- in the checker's process ---


def check_file(path, only=None, seconds=20):
    """[(Finding, line)] of a file. Raises ValueError or OSError if it cannot be run."""
    path = os.path.abspath(path)
    with open(path, "rb"):
        pass
    skip = {}
    while True:
        options = json.dumps({"only": only, "seconds": seconds, "skip": list(skip)})
        command = [sys.executable, "-c", START, path, options]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
        messages = [json.loads(line) for line in done.stdout.splitlines()]
        if messages and "error" in messages[-1]:
            raise ValueError(f"{path}: {messages[-1]['error']}")
        if messages and "done" in messages[-1]:
            found = {
                one["function"]: (Finding(*(one[key] for key in Finding._fields)), one["line"])
                for one in messages
                if "function" in one
            }
            found.update(skip)
            return [found[name] for name in RIGHT if name in found and only in (None, name)]
        tried = [one["tries"] for one in messages if "tries" in one]
        if not tried:
            raise ValueError(f"the checker itself failed: {done.stderr.decode(errors='replace').strip()[-300:]}")
        mistake, text = why_it_ended(done, path, seconds)
        if tried[-1] == ALL or tried[-1] in skip:
            raise ValueError(f"{path}: {text}")
        skip[tried[-1]] = Finding(tried[-1], "wrong", [mistake], text), None


def why_it_ended(done, path, seconds):
    """(name, text) of the reason why the reader's process ended early."""
    stderr = done.stderr.decode(errors="replace")
    if "Timeout (" not in stderr:
        return "exit", f"It ended the Python process with exit status {done.returncode}."
    lines = [int(number) for name, number in re.findall(r'File "(.*)", line (\d+)', stderr) if same_file(name, path)]
    if not lines:
        return "timeout", f"It did not finish within {seconds} seconds; --seconds={3 * seconds} allows more time."
    text = (
        f"Line {lines[0]} was still running after {seconds} seconds: is there an infinite loop? "
        f"--seconds={3 * seconds} allows more time.\n    {linecache.getline(path, lines[0]).strip()}"
    )
    return "timeout", text


def same_file(name, path):
    return name == path or name == path.encode("ascii", "backslashreplace").decode()


def report(findings):
    """The text to print: a line for each function, followed by what is wrong with it."""
    lines = []
    for (name, status, mistakes, text), line in findings:
        verdict = {"to do": "still to do", "waits": "not checked"}.get(status, status)
        named = ", ".join(mistake for mistake in mistakes if mistake != "unknown")
        if status == "wrong" and named:
            verdict += f": {named}" + (f" (line {line})" if line else "")
        lines.append(f"{name:18} {verdict}")
        lines += [f"    {part}" for part in text.splitlines()]
    statuses = [finding.status for finding, _ in findings]
    lines.append(
        f"\n{statuses.count('right')} right, {statuses.count('wrong') + statuses.count('waits')} wrong, "
        f"{statuses.count('to do')} still to do"
    )
    return "\n".join(lines)


@functools.cache
def translations():
    """[(pattern, Chinese)] of all the checker's messages, as in check.zh.json; {} stands for the parts that vary."""
    with open(os.path.join(ROOT, "tutorial", "check.zh.json"), encoding="utf-8") as file:
        table = json.load(file)
    messages = {one.message: table[one.function][one.name] for one in TABLE} | table["others"]
    return [(re.compile(re.escape(form).replace(r"\{\}", "(.*)")), words) for form, words in messages.items()]


def chinese(text):
    """The checker's messages in Chinese. Other lines, such as code, stay as they are."""
    return "\n".join(map(translated, text.splitlines()))


def translated(text):
    for pattern, words in translations():
        if found := pattern.fullmatch(text):
            return words.format(*map(translated, found.groups()))
    return text


def main(path: str, only: str = None, watch=False, seconds=20):
    """Tells you which functions of your own gpt2.py are right, and what is wrong with the others.

    The exit status is 0 if no function is wrong. Start with a copy of tutorial/start.py.

    Args:
        path: Your file. It runs in a separate process, but with your permissions: check only code that you would run.
        only: The name of the only function to report on. By default all.
        watch: Checks again whenever the file changes, until Ctrl-C.
        seconds: How many seconds a function may take, 1 or more.
    """
    from cli import check as check_option

    check_option("seconds", seconds, 1.0, 86400.0)
    check_option("watch", int(watch) if isinstance(watch, bool) else watch, 0, 1, "given without a value")
    if only is not None and only not in RIGHT:
        raise ValueError(f"only={only!r} must be one of {', '.join(RIGHT)}")
    while watch:
        look(path, only, seconds)
    findings = check_file(path, only, seconds)
    print(report(findings), flush=True)
    if any(finding.status in ("wrong", "waits") for finding, _ in findings):
        sys.exit(1)


def look(path, only, seconds):
    """Checks a file once, then waits until it changes."""
    before = stamp(path)
    try:
        print(report(check_file(path, only, seconds)), flush=True)
    except (ValueError, OSError) as error:
        print("error:", error, flush=True)
    print(f"\nwaiting for {path} to change; press Ctrl-C to stop\n", flush=True)
    while stamp(path) in (before, None):
        time.sleep(0.3)


def stamp(path):
    """A value that differs once the file has changed; None while it is missing, as when an editor replaces it."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


if __name__ == "__main__":
    sys.path.insert(0, ROOT)
    from cli import run

    run(main)
