"""The page's interface to gpt2.py. It runs in the browser's Python, next to the repository's unchanged files.

A Version is gpt2.py, or the user's edit of it, as a module in which two functions are wrapped: attention is called a
second time with the identity matrix as its values, which returns the weights themselves, and the outputs of the blocks
are recorded. Probabilities come from sample, which is given a random generator that records them.

page/worker.mjs calls answer, which returns dicts of numbers, texts, lists and bytes.
"""

import itertools
import json
import math
import sys
import time
import traceback
import types

import numpy as np

from beyond.attention import visible
from beyond.learn.losses import cross_entropy
import cli
from encoder import to_bytes
import utils

# an edited source may import tqdm, which the browser does not have
sys.modules.setdefault("tqdm", types.SimpleNamespace(tqdm=lambda steps, *args, **kwargs: steps))

FILE = "gpt2.py"  # in a traceback
N_HELD_OUT, N_LENS = 256, 10
SLICE = 0.02  # seconds between messages to the page, as a message takes a third as long as a token

encoder, hparams, params = utils.load_encoder_hparams_and_params("shakespeare", "/home/pyodide/models")
n_vocab, n_ctx, n_embd, n_head, n_layer = (hparams[name] for name in utils.HPARAMS)
END = encoder.encoder["<|endoftext|>"]
EYE = np.eye(n_ctx, dtype=np.float32)
with open(f"/home/pyodide/{FILE}", encoding="utf-8") as file:
    SOURCE = file.read()


def report(name):
    """Reports progress to the page during a call; page/worker.mjs replaces this function."""


class TooLongError(Exception):
    """More tokens than n_ctx."""


class Recorder:
    """A substitute for a random generator: records the probabilities and returns the most probable token."""

    def choice(self, n, p):
        self.p = np.array(p)
        return int(np.argmax(p))


def code_of(function):
    """The bytecode of a function, without its position in the file."""
    code = getattr(function, "__code__", None)
    return code and (code.co_code, code.co_consts, code.co_names)


class Version:
    """A version of gpt2.py, with what it computed for the last text."""

    def __init__(self, source):
        self.edited = source != SOURCE
        self.module = module = types.ModuleType("gpt2")
        exec(compile(source, FILE, "exec"), vars(module))
        self.recording = False
        self.block = getattr(module, "transformer_block", None)
        for name, record in ("attention", self.record_attention), ("transformer_block", self.record_block):
            if hasattr(module, name):
                setattr(module, name, record(getattr(module, name)))
        self.hidden_states = module.hidden_states
        if not self.edited:
            module.hidden_states = self.cached_states
        self.ids = self.stream_ids = ()  # of the last analyzed text, and of the one that stream continues
        self.heads = n_head
        self.hidden = np.zeros((n_ctx, n_embd), np.float32)
        self.states = np.zeros((n_layer + 1, n_ctx, n_embd), np.float32)  # the input of each block, the last output
        self.weights = None
        self.cache = None if self.edited else module.new_cache(params, n_head, n_ctx)

    def record_attention(self, attention):
        def recorded(q, k, v, *args, **kwargs):
            if self.recording:
                n = k.shape[-2]
                values = np.broadcast_to(EYE[:n, :n], (*k.shape[:-1], n))
                try:
                    self.recorded_weights.append(attention(q.copy(), k, values, *args, **kwargs))
                except Exception:  # an edited version may reject these values; then no weights are shown
                    self.recorded_weights.append(None)
                self.heads = k.shape[0]
            return attention(q, k, v, *args, **kwargs)

        return recorded

    def record_block(self, block):
        def recorded(x, *args, **kwargs):
            result = block(x, *args, **kwargs)
            if self.recording:
                self.recorded_states += [result] if self.recorded_states else [x, result]
            return result

        return recorded

    def update(self, ids):
        """Computes the tokens that are not cached; returns their number. An edited version recomputes every text that
        changes: there a token may look ahead, so the states of a prefix depend on the tokens that follow it."""
        known = 0
        while known < min(len(ids), len(self.ids)) and ids[known] == self.ids[known]:
            known += 1
        if known == len(ids) and (known == len(self.ids) or not self.edited):
            return 0
        past = 0 if self.edited else known
        self.ids = []  # after an error, nothing is cached
        cache = {} if self.edited else {"cache": self.cache, "past": past}
        self.recorded_weights, self.recorded_states, self.recording = [], [], True
        try:
            hidden = self.hidden_states(ids[past:], **params, n_head=n_head, **cache)
        finally:
            self.recording = False
        self.store(past, len(ids), hidden)
        self.ids = list(ids)
        return len(ids) - past

    def store(self, past, n, hidden):
        self.hidden[past:n] = hidden
        self.has_states = len(self.recorded_states) == n_layer + 1
        if self.has_states:
            self.states[:, past:n] = self.recorded_states
        weights = self.recorded_weights
        if len(weights) != n_layer or any(np.shape(w) != (self.heads, n - past, n) for w in weights):
            self.weights = None
            return
        if self.weights is None or self.weights.shape[1] != self.heads:
            self.weights = np.zeros((n_layer, self.heads, n_ctx, n_ctx), np.uint8)
        with np.errstate(all="ignore"):
            self.weights[:, :, past:n, :n] = np.round(255 * np.sqrt(np.nan_to_num(weights).clip(0, 1)))

    def logits(self, n):
        return self.hidden[n - 1] @ params["wte"].T

    def distribution(self, logits, temperature, top_k=None, top_p=None):  # -> [n_vocab]
        """The probabilities with which sample draws; at temperature 0, where it does not draw, 1 for its choice."""
        recorder = Recorder()
        id = self.module.sample(logits, temperature, top_k, top_p, recorder)
        return recorder.p if hasattr(recorder, "p") else np.eye(len(logits))[id]

    def cached_states(self, inputs, *args, cache=None, past=0, **kwargs):
        """hidden_states for stream: shares the cache of the views, so that nothing is computed twice."""
        if cache is None:
            return self.hidden_states(inputs, *args, **kwargs)
        self.update(self.stream_ids)
        return self.hidden[past : len(self.stream_ids)]

    def next_ids(self, ids, n, *options):
        """Yields the ids of stream, or those of generate if that function has been edited."""
        generate = getattr(self.module, "generate", None)
        is_edited = generate and code_of(generate) != code_of(original.module.generate)
        new_ids = iter((generate if is_edited else self.module.stream)(ids, params, n_head, n, *options, stop=END))
        while len(ids) < n_ctx:
            self.stream_ids = ids  # another run may have changed it in the meantime
            id = next(new_ids, None)
            if id is None:
                return
            ids = [*ids, int(id)]
            yield ids[-1]

    def final_norm(self, x):
        """x after ln_f, unless this version skips ln_f."""
        n = len(self.ids)
        if np.array_equal(self.hidden[:n], self.states[-1, :n]):
            return x
        return self.module.layer_norm(x, **params["ln_f"])


# --- the calls ---


def ids_of(prompt):
    ids = cli.encode_prompt(encoder, prompt) if isinstance(prompt, str) else prompt
    if len(ids) > n_ctx:
        raise TooLongError({"n": len(ids), "n_ctx": n_ctx})
    cli.check_inputs(ids, params, 0)
    return list(ids)


def options_of(settings):
    options = settings.get("temperature") or 0, settings.get("top_k"), settings.get("top_p"), settings.get("seed")
    cli.check_options(0, *options)
    return options


def start():
    """The constants: the source, the hyperparameters, and each token with the merge that created it."""
    merges = {a + b: (rank, a, b) for (a, b), rank in reversed(encoder.bpe_ranks.items())}
    vocabulary = []
    for id in range(n_vocab):
        token = encoder.decoder[id]
        rank, *parts = merges.get(token, (None,))
        parts = [encoder.encoder[part] for part in parts] or None
        vocabulary.append({"text": visible(token), "bytes": to_bytes(token).hex(" "), "parts": parts, "rank": rank})
    with open("/home/pyodide/page/breaks.json", encoding="utf-8") as file:
        breaks = json.load(file)
    return {"source": SOURCE, "hparams": hparams, "vocabulary": vocabulary, "breaks": breaks}


def analyse(prompt, settings):
    ids, (temperature, top_k, top_p, _) = ids_of(prompt), options_of(settings)
    fresh, n = version.update(ids), len(ids)
    logits = version.logits(n)
    weights = None if version.weights is None else version.weights[:, :, :n, :n].tobytes()
    return {
        "ids": ids,
        "n": n,
        "fresh": fresh,
        "before": floats(version.distribution(logits, 1)),
        "tempered": floats(version.distribution(logits, temperature)),
        "after": floats(version.distribution(logits, temperature, top_k, top_p)),
        "heads": version.heads,
        "weights": weights,
        "lens": lens(ids, n - 1)["lens"],
    }


def lens(prompt, token):
    """The most probable next tokens after one token, for each block as if it were the last (logit lens)."""
    ids = ids_of(prompt)
    version.update(ids)
    if not version.has_states:
        return {"lens": None}
    rows = [*(version.final_norm(x) for x in version.states[1:-1, token, None]), version.hidden[token, None]]
    found = []
    for row in rows:
        p = version.distribution(row[0] @ params["wte"].T, 1)
        best = np.argsort(-p, kind="stable")[:N_LENS]
        found.append([{"id": int(id), "p": float(p[id])} for id in best])
    return {"lens": found}


def steps(prompt, layer, head, token):
    """One token through one block: the arrays that its functions take and return."""
    ids = ids_of(prompt)
    version.update(ids)
    if not version.has_states:
        return {"steps": []}
    return {"steps": list(steps_of(version, params["blocks"][layer], version.states[layer, : len(ids)], head, token))}


def steps_of(version, block, x, head, token):
    module, calls = version.module, {}  # {name of a function: [(arguments, result)]}
    names = [name for name in ("layer_norm", "linear", "softmax", "gelu", "mha", "ffn") if hasattr(module, name)]
    before = {name: getattr(module, name) for name in (*names, "attention") if hasattr(module, name)}

    def record(name, function):
        def recorded(*args, **kwargs):
            copies = [np.copy(one) if isinstance(one, np.ndarray) else one for one in args]
            output = function(*args, **kwargs)
            calls.setdefault(name, []).append((copies, np.copy(output)))
            return output

        return recorded

    def argument(name, call=0, i=0):
        found = calls.get(name, [])
        return found[call][0][i] if call < len(found) and i < len(found[call][0]) else None

    def result(name, i=0):
        return calls[name][i][1] if i < len(calls.get(name, [])) else None

    try:
        for name, function in before.items():
            setattr(module, name, record(name, function))
        out = version.block(x, **block, n_head=n_head)
        q, k, v, mask = (argument("attention", 0, i) for i in range(4))
        masked, weights = argument("softmax"), result("softmax")
        calls.pop("softmax", None)
        if mask is not None:
            before["attention"](q, k, v, mask * np.float32(0))  # again without the mask, for the scores alone
        scores = argument("softmax")
    finally:
        for name, function in before.items():
            setattr(module, name, function)

    if mask is None or scores is None or np.array_equal(scores, masked):  # the mask is not used
        mask = None
    else:
        mask = np.broadcast_to(np.float32(mask), (len(x), len(x)))
    found = [
        ("x", "transformer_block", x),
        ("ln_1", "layer_norm", result("layer_norm")),
        *((name, "mha", value) for name, value in zip("qkv", (q, k, v))),
        ("scores", "attention", masked if scores is None else scores),
        ("mask", "attention", mask),
        ("weights", "softmax", weights),
        ("mixed", "attention", result("attention")),
        ("heads", "mha", argument("linear", 1)),
        ("mha", "mha", result("mha")),
        ("residual", "transformer_block", argument("layer_norm", 1)),
        ("ln_2", "layer_norm", result("layer_norm", 1)),
        ("c_fc", "ffn", argument("gelu")),
        ("gelu", "gelu", result("gelu")),
        ("ffn", "ffn", result("ffn")),
        ("out", "transformer_block", out),
    ]
    for name, function, value in found:
        if value is None:
            continue
        rows = value[min(head, len(value) - 1)] if value.ndim == 3 else value
        whole = floats(rows[: token + 1]) if name in ("k", "v") else None
        yield {"name": name, "in": function, "shape": list(value.shape), "row": floats(rows[token]), "all": whole}


def generate(prompt, settings, n):
    """Yields each new id with the text that it adds, in whole characters."""
    ids, options = ids_of(prompt), options_of(settings)
    cli.check("n", n, 0)
    yield {"ids": ids}
    n_new = 0
    room = min(n, n_ctx - len(ids))
    new_ids, same = itertools.tee(version.next_ids(ids, room, *options))
    for id, text in zip(new_ids, encoder.decode_stream(same)):
        n_new += 1
        yield {"id": id, "text": text}
    return {"reason": "end" if n_new < room else "context" if n_new < n else "length"}


def decode(ids):
    return {"text": encoder.decode(ids)}


def set_source(source):
    """Switches to another source, if the file runs and so does a forward pass over two tokens."""
    global version
    source = SOURCE if source is None else source
    new = original if source == SOURCE else Version(source)
    new.update(ids_of(HELD_OUT[:2]))
    version = new
    return {"ok": True, "edited": new.edited}


def held_out_loss():
    """The mean loss on the first held-out tokens, in nats per token."""
    with np.errstate(all="ignore"):
        logits = version.module.gpt2(HELD_OUT[:-1], **params, n_head=n_head).astype(np.float64)
        loss = float(cross_entropy(logits, HELD_OUT[1:]).mean())
    return {"loss": loss if math.isfinite(loss) else None}


def check(source, only, skip, seconds, language):
    """The findings of tutorial/check.py. skip: the functions that did not return in an earlier attempt."""
    from tutorial import check
    from tutorial.inputs import inputs
    from tutorial.judge import RIGHT, Finding
    from tutorial.judge import check as findings_of

    path = "/home/pyodide/mine.py"
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.write(source)
    report(check.ALL)
    words = check.chinese if language == "zh" else str
    try:
        namespace = check.load(path)
    except ValueError as error:
        raise ValueError(words(str(error))) from None
    mine = dict(namespace)
    text = f"It did not finish within {seconds} seconds: is there an infinite loop?"
    found = {name: (Finding(name, "wrong", ["timeout"], words(text)), None) for name in skip}
    for finding in findings_of(namespace, inputs(params, n_head), only, skip, report):
        code = getattr(mine.get(finding.function), "__code__", None)
        line = code.co_firstlineno if code and code.co_filename == path else None
        finding = finding._replace(text=words(finding.text))
        found[finding.function] = finding, line
        yield {"finding": {**finding._asdict(), "line": line}}
    found = [found[name] for name in RIGHT if name in found and only in (None, name)]
    return {"findings": [{**one._asdict(), "line": line} for one, line in found], "report": check.report(found)}


# --- the worker ---

CALLS = {one.__name__: one for one in (
    start, analyse, lens, steps, generate, decode, set_source, held_out_loss, check)}  # fmt: skip
tasks = {}  # generators that are not exhausted


def answer(call, args, id):
    """The answer to a call, a dict; "more": the worker should call more(id); "error": the call failed."""
    try:
        result = CALLS[call](*json.loads(args))
        if isinstance(result, types.GeneratorType):
            tasks[id] = result
            return more(id)
        return result
    except BaseException as error:  # an edited source may raise anything
        return {"error": described(error)}


def more(id):
    """The next "events" of a generator, and its return value if it is exhausted."""
    events = []
    until = time.perf_counter() + SLICE
    try:
        while not events or time.perf_counter() < until:
            events.append(next(tasks[id]))
        return {"events": events, "more": True}
    except StopIteration as end:
        result = end.value
    except BaseException as error:
        result = {"error": described(error)}
    forget(id)
    return {"events": events, **result}


def forget(id):
    tasks.pop(id, None)


def described(error):
    """A one-line message for an exception, and the innermost line of gpt2.py in its traceback."""
    if isinstance(error, TooLongError):
        return {"code": "too-long", "detail": error.args[0]}
    line = None
    if isinstance(error, SyntaxError) and error.filename == FILE:
        line, error = error.lineno, type(error)(error.msg)
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == FILE:
            line = frame.lineno
    message = str(error).strip().split("\n")[0]
    name = type(error).__name__
    if not (line is None and isinstance(error, ValueError)):  # our own messages suffice
        message = f"{name}: {message}" if message else name
    return {"code": "python", "detail": {"line": line, "message": message}}


def floats(array):
    return np.ascontiguousarray(array, np.float32).tobytes()


original = version = Version(SOURCE)
with open("/home/pyodide/models/shakespeare/held_out.txt", encoding="utf-8") as file:
    HELD_OUT = encoder.encode(file.read(4000))[:N_HELD_OUT]
