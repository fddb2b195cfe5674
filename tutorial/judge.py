"""Which functions of a GPT-2 are right, and which mistake is in those that are not: check() says it.

Each function is called on the inputs of tutorial/inputs.py and compared with a right one. If the numbers differ, the
mistakes of tutorial/mistakes.py are made one by one, then two at a time, in the right function: the one that gives the
reader's numbers on all inputs is the reader's. A function that is wrong or missing is replaced by a right one before
those that call it are tried, so that a mistake is told once.

Here are no files, processes or threads: tutorial/check.py has those.
"""

import contextlib
import copy
import inspect
import io
import itertools
import linecache
from typing import NamedTuple

import numpy as np

from tutorial.inputs import causal
from tutorial.mistakes import RIGHT, SOURCES, called_by, made_in, variant

NAMES = [name for name in RIGHT if name != "hidden_states"]  # that one is checked, too, but nobody needs to have it
FLOAT64 = (
    "The numbers are right, but float32 went in and float64 comes out: twice the memory and time. It comes from "
    "np.tri, np.zeros or np.array without a dtype, or from a scalar of NumPy's: np.sqrt(2 / np.pi) is float64, "
    "(2 / np.pi) ** 0.5 is a number of Python's and does no harm."
)
CHANGED = "It changes its argument {}: whoever called it finds other numbers there. Write x = x + 1 instead of x += 1."
APPENDED = "It changes the caller's list {}. Begin with a copy, ids = list(inputs)."


class Finding(NamedTuple):
    """What is said of a function. status: right, wrong, to do or waits; mistakes: their names."""

    function: str
    status: str
    mistakes: list = []
    text: str = ""


class Outcome(NamedTuple):
    """What a call gave: [result, *caches], or an error's name and what to say of it; what it changed and printed."""

    parts: list
    error: str = ""
    text: str = ""
    changed: list = []
    said: str = ""


class WaitsError(Exception):
    """A function that is not right yet takes other arguments than ours, so ours cannot take its place."""


# --- to call, and to compare ---


class FirstLine(io.StringIO):
    """Keeps the beginning of what is printed, however much it is."""

    def write(self, text):
        return super().write(text[:200]) if self.tell() < 200 else len(text)


def attempt(function, case, namespace=None, names=()):
    """The Outcome of a function on a copy of (args, kwargs).

    namespace: the globals of the reader's own file. names: of the arguments, to say which of them was changed.
    """
    args, kwargs = copy.deepcopy(case)
    said, parts, error, text = FirstLine(), [], "", ""
    try:
        with contextlib.redirect_stdout(said), np.errstate(all="ignore"):
            parts = [function(*args, **kwargs)]
        parts += [kwargs["kv"]] if "kv" in kwargs else kwargs.get("cache", [])
    except (KeyboardInterrupt, WaitsError):
        raise
    except BaseException as problem:  # exit() too
        error, text = type(problem).__name__, describe(problem, namespace)
    given, before = ({**dict(zip(names, one[0])), **one[1]} for one in ((args, kwargs), case))
    changed = [name for name in names if name in given and not unchanged(given[name], before[name])]
    return Outcome(parts, error, text, changed, said.getvalue())


def unchanged(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(unchanged(a[key], b[key]) for key in a)
    if isinstance(a, list) and a and isinstance(a[0], (dict, np.ndarray)):
        return len(a) == len(b) and all(map(unchanged, a, b))
    return np.array_equal(a, b)


def describe(problem, namespace):
    """An exception in a line, with the last line of the reader's file that it came through."""
    frame, number, line = problem.__traceback__, None, ""
    while frame is not None:
        if frame.tb_frame.f_globals is namespace:
            number = frame.tb_lineno
            line = linecache.getline(frame.tb_frame.f_code.co_filename, number).strip()
        frame = frame.tb_next
    message = f"{type(problem).__name__}: {str(problem).strip() or 'no message'}".splitlines()[0]
    return f"{f'Line {number}' if number else 'It'} raises {message}." + (f"\n    {line}" if line else "")


def close(a, b):
    """Whether two results are the same: ids exactly, arrays but for rounding, whatever their dtype."""
    if not isinstance(b, np.ndarray) or not isinstance(a, np.ndarray):
        return type(a) is type(b) and a == b
    size = np.abs(b[np.isfinite(b)]).max(initial=0)
    return a.shape == b.shape and a.dtype.kind == b.dtype.kind and np.allclose(a, b, 2e-5, 2e-5 * size, equal_nan=True)


def same(a, b):
    """Whether two Outcomes are: the same error, or the same results."""
    return a.error == b.error and len(a.parts) == len(b.parts) and all(map(close, a.parts, b.parts))


# --- to find the mistake, and to say it ---


def find(name, cases, outcomes, right, has, wrap):
    """The one or two mistakes that give what the reader's function gave, on all inputs, else []."""
    if all(outcome.error or same(outcome, ours) for outcome, ours in zip(outcomes, right)):
        return []  # many things raise an error
    own = made_in(name, without=has)
    for made in itertools.chain(((one,) for one in made_in(name)), itertools.combinations(own, 2)):
        functions = variant(*made)
        if functions and all(map(alike, outcomes, right, runs(wrap(functions[name]), cases))):
            return [mistake for mistake, _ in made]
    return []


def alike(mine, right, other):
    """Whether a mistake gives what the reader's function gave, or, where that raised an error, is not right either."""
    return same(mine, other) or (mine.error != "" and not same(right, other))


def runs(function, cases):
    return (attempt(function, case) for case in cases)


def difference(name, case, mine, right):
    """The first place where an Outcome is not as it should be."""
    if mine.error:
        return mine.text
    for a, b, what in zip(mine.parts, right.parts, ["", *(f", cache {i} afterwards" for i in range(99))]):
        if a is None:
            return "It returns None: is a return missing?"
        if type(a) is not type(b):
            return f"It gives a {type(a).__name__}{shape(a)}, and should give a {type(b).__name__}{shape(b)}."
        if isinstance(a, list) and a != b:
            return f"It gives {a}\n    and should give {b}\n    for {shown(name, case)}"
        if isinstance(a, np.ndarray) and a.shape != b.shape:
            return f"It gives an array{shape(a)}, and should give{shape(b)}, for {shown(name, case)}"
        if not close(a, b):
            wrong = ~np.isclose(a, b, 2e-5, 2e-5 * np.abs(b[np.isfinite(b)]).max(initial=0), equal_nan=True)
            at = tuple(map(int, np.argwhere(wrong)[0])) if wrong.any() else (0,) * a.ndim
            place = f"{name}(...){list(at)}{what}"
            return f"{place} is {a[at]:.6g}, and should be {b[at]:.6g}, for {shown(name, case)}"
    return ""


def shape(value):
    if isinstance(value, np.ndarray):
        return f" {list(value.shape)}"
    return f" of {len(value)}" if isinstance(value, (list, tuple)) else ""


def shown(name, case):
    """The arguments of a call, those that can be read in full."""
    words = []
    for argument, value in zip(inspect.signature(RIGHT[name]).parameters, case[0]):
        words.append((argument, value))
    texts = []
    for argument, value in [*words, *case[1].items()]:
        if isinstance(value, np.ndarray) and value.size <= 16:
            texts.append(f"{argument} = {np.round(value.astype(float), 4).tolist()}")
        elif isinstance(value, (int, list)) and len(str(value)) < 50:
            texts.append(f"{argument} = {value}")
        elif isinstance(value, np.ndarray):
            texts.append(f"{argument}{shape(value)}")
    return ", ".join(texts)


def remarks(name, function, case, mine, right):
    """What can be seen from the numbers alone, where no known mistake gives them."""
    a, b = (outcome.parts[0] if outcome.parts else None for outcome in (mine, right))
    if not same(attempt(function, case), mine):
        yield "chance", "Two calls with the same arguments give different results: something in it is random or kept."
    if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray) or a.dtype.kind != "f":
        return
    if np.isnan(a).any() and not np.isnan(b).any():
        yield "nan", "There is nan among the numbers: 0 / 0, inf - inf or 0 * inf."
    if a.shape == b.shape[::-1] and a.ndim == 2 and close(a.T, b):
        yield "transposed", "The result is right, but transposed."
    if a.shape != b.shape:
        return
    x, rest = case[0][0], a - b
    if (b != 0).all() and np.ptp(a / b) < 1e-4 * abs((a / b).mean()):
        yield "factor", f"All numbers are {(a / b).mean():.4g} times what they should be."
    elif np.ptp(rest) < 1e-4 * abs(rest.mean()):
        yield "offset", f"All numbers are too large by {rest.mean():.4g}."
    elif isinstance(x, np.ndarray) and x.shape == b.shape and (close(rest, x) or close(rest, -x)):
        yield "x", f"The difference is x itself: x is added once too {'often' if close(rest, x) else 'seldom'}."
    if name in ("mha", "transformer_block", "hidden_states", "gpt2") and len(x) > 1:
        other = x[:-1] + [0] if isinstance(x, list) else np.concatenate([x[:-1], x[-1:] + numbers_like(x)])
        later = attempt(function, ((other,), case[1])).parts
        if later and not close(later[0][:-1], a[:-1]):
            yield "looks ahead", "Earlier positions change when the last token does, so they see it: look at the mask."


def numbers_like(x):
    return np.arange(1, x.shape[1] + 1, dtype=x.dtype)


def judge(name, function, cases, namespace, has, wrap):
    """The Finding for a function that can be called."""
    names = [argument for argument in inspect.signature(RIGHT[name]).parameters if argument not in ("kv", "cache")]
    outcomes = [attempt(function, case, namespace, names) for case in cases]
    right = [attempt(wrap(RIGHT[name]), case) for case in cases]
    if is_empty(function, outcomes[0]):
        return Finding(name, "to do")
    said = next((f"It prints: {one.said.strip().splitlines()[0][:80]}" for one in outcomes if one.said.strip()), "")
    wrong = [i for i, pair in enumerate(zip(outcomes, right)) if not same(*pair)]
    told = []
    if wrong:
        told = [(one.name, one.says) for one in find(name, cases, outcomes, right, has, wrap)]
        i = wrong[0]
        if not told and not outcomes[i].error:
            told += remarks(name, function, cases[i], outcomes[i], right[i])
        told += [("" if told else outcomes[i].error or "unknown", difference(name, cases[i], outcomes[i], right[i]))]
    elif any(
        a.dtype != b.dtype
        for one, other in zip(outcomes, right)
        for a, b in zip(one.parts, other.parts)
        if isinstance(a, np.ndarray)
    ):
        told = [("float64", FLOAT64)]
    for argument in {argument: None for one in outcomes for argument in one.changed}:
        told.append(("changes its arguments", (APPENDED if argument == "inputs" else CHANGED).format(argument)))
    told += [("", said)] * bool(said)
    names = [mistake for mistake, _ in told if mistake]
    return Finding(name, "wrong" if names else "right", names, "\n".join(text for _, text in told))


def is_empty(function, outcome):
    """Whether a function is still to be written: its body is `...`, or it raises NotImplementedError."""
    code = getattr(getattr(function, "__code__", None), "co_code", b"1" * 99)
    short = len(code) <= len((lambda: None).__code__.co_code)
    return outcome.error == "NotImplementedError" or (bool(outcome.parts) and outcome.parts[0] is None and short)


# --- the forms that a function may have ---


def fits(function, case):
    try:
        inspect.signature(function).bind(*case[0], **case[1])
    except TypeError:
        return False
    except ValueError:  # one of NumPy's own, which has no signature
        pass
    return True


def form(name, function, cases):
    """(cases, wrap) for the arguments that the reader's function takes, as the article has more than one form.

    kv, cache and past may be missing. attention may have no mask: then it looks at all keys, or masks by itself.
    """
    if name != "attention" or fits(function, cases[0]):
        usual = [case for case in cases if fits(function, case) or not {"kv", "cache"} & case[1].keys()]
        return usual, lambda right: right
    cases = [(case[0][:3], {}) for case in cases if len(case[0][0]) == len(case[0][1])]
    q, k, v = cases[0][0]
    one, other = (attempt(function, ((q, k, y), {})).parts for y in (v, np.concatenate([v[:-1], v[-1:] + 1])))
    masks = bool(one) and isinstance(one[0], np.ndarray) and one[0].ndim == 2 and close(one[0][0], other[0][0])

    def wrap(right):
        return lambda q, k, v: right(q, k, v, causal(q.shape[-2], k.shape[-2]) if masks else np.float32(0))

    return cases, wrap


def stand_in(name, wrap=lambda right: right):
    """Ours in place of a function that is wrong, missing or still to do."""
    right = wrap(RIGHT[name])

    def ours(*args, **kwargs):
        if not fits(right, (args, kwargs)):
            raise WaitsError(name)
        return right(*args, **kwargs)

    return ours


def signature_of(name):
    signature = SOURCES[name][4 : SOURCES[name].index(")") + 1]
    return signature.replace(", kv=None, past=0", "").replace(", cache=None, past=0", "")


# --- all of it ---


def check(namespace, cases, only=None, skip=(), before=lambda name: None):
    """Yields a Finding for each function, in the order in which they build on each other.

    namespace: the globals of the reader's functions. They are changed meanwhile, and restored.
    cases: inputs(params, n_head) of a whole model, or inputs(). only: the name of one function; what it calls is tried,
    too, but not told.
    skip: names that are taken for wrong without being tried. before: is called with each name before it is tried.
    """
    mine = {name: namespace[name] for name in RIGHT if callable(namespace.get(name))}
    added = [name for name in RIGHT if name not in namespace]
    needed = list(RIGHT) if only is None else [only, *called_by(only)]
    try:
        namespace.update({name: stand_in(name) for name in added})
        for name in RIGHT:
            if name not in mine:
                finding = Finding(name, "to do")
            elif name in skip or name not in needed:
                namespace[name], finding = stand_in(name), None
            else:
                before(name)
                finding = try_one(name, mine[name], cases[name], namespace, mine)
            if finding and only in (None, name) and not (name == "hidden_states" and name not in mine):
                yield finding
    finally:
        namespace.update(mine)
        for name in added:
            namespace.pop(name, None)


def try_one(name, function, cases, namespace, mine):
    """The Finding for one function; if it is not right, ours takes its place."""
    wrap = None
    try:
        cases, wrap = form(name, function, cases)
        if not all(fits(function, case) for case in cases):
            found = f"def {name}{inspect.signature(function)}", f"def {signature_of(name)}"
            finding = Finding(
                name,
                "wrong",
                ["arguments"],
                f"It is {found[0]}, and should be {found[1]}.\n"
                "The names matter: the checkpoint's dictionaries are handed over as **ln_1 or **c_fc.",
            )
        else:
            finding = judge(name, function, cases, namespace, mine, wrap)
    except WaitsError as other:
        text = f"It cannot be tried yet: it calls {other}, which has to be right first."
        finding = Finding(name, "waits", ["waits"], text)
    if finding.status != "right":
        namespace[name] = stand_in(name, wrap or (lambda right: right))
    return finding
