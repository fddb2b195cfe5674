"""Many prompts at once: one pass per step for all of them, still in NumPy.

    python -m beyond.batch prompts.txt --out completions.jsonl --model_size shakespeare

reads a prompt from each line and writes a line of JSON for each, in the same order: {"prompt": ..., "completion": ...},
the completion that gpt2.py gives for that prompt alone (except for rounding, see beyond/lookahead.py), or
{"prompt": ..., "error": ...}.

Decoding is limited by memory bandwidth, and weights, once read, serve 16 tokens as well as one. So each step passes the
last token of every unfinished text, one row each, through the same matrix products; only attention works on each text's
own past. When a text is finished, the next prompt takes its place (continuous batching), and its tokens join the rows
in chunks (chunked prefill). Functions whose rows are the tokens of one text are redefined, because here several texts
share the rows: mha, transformer_block, hidden_states, generate.
"""

import collections
import itertools
import json
import os
import pathlib
import sys

import numpy as np

from beyond import variant
from beyond.fast import flags
from beyond.files import reading, runs, writing
import cli
import gpt2
import utils

CHUNK = 64  # tokens of new prompts per step, in addition to one token of each text


def mha(x, c_attn, c_proj, n_head, kv, past, ends):  # [n_rows, n_embd] -> [n_rows, n_embd]
    n_rows = np.diff(ends, prepend=-1)  # kv [2, n_texts, n_head, n_ctx, d], past [n_rows], ends [n_texts]
    texts = np.repeat(np.arange(len(ends)), n_rows)  # which text each row belongs to
    n_keys = past.max() + 1  # of the longest text; in the others the rest is masked
    q, k, v = gpt2.linear(x, **c_attn).reshape(len(x), 3, n_head, -1).swapaxes(0, 1)  # [n_rows, n_head, d] each
    kv[0, texts, :, past], kv[1, texts, :, past] = k, v
    heads = np.empty_like(q)
    k, v = kv[:, :, :, :n_keys]
    mask = np.where(np.arange(n_keys) <= past[ends, None], np.float32(0), np.float32(-1e10))[:, None, None]
    heads[ends] = gpt2.attention(q[ends][:, :, None], k, v, mask)[:, :, 0]  # the last rows of all texts at once
    for i in np.flatnonzero(n_rows > 1):  # the rows of a prompt before its last one
        begin, end = ends[i] - n_rows[i] + 1, ends[i]
        mask = (1 - np.tri(end - begin, past[end], past[begin], dtype=x.dtype)) * -1e10
        k, v = kv[:, i, :, : past[end]]
        heads[begin:end] = gpt2.attention(q[begin:end].swapaxes(0, 1), k, v, mask).swapaxes(0, 1)
    return gpt2.linear(heads.reshape(len(x), -1), **c_proj)


def transformer_block(x, mlp, attn, ln_1, ln_2, n_head, **rows):  # [n_rows, n_embd] -> [n_rows, n_embd]
    x = x + mha(gpt2.layer_norm(x, **ln_1), **attn, n_head=n_head, **rows)
    return x + gpt2.ffn(gpt2.layer_norm(x, **ln_2), **mlp)


def hidden_states(inputs, wte, wpe, blocks, ln_f, n_head, cache, past, ends):  # [n_rows] -> [n_texts, n_embd]
    """past [n_rows]: each row's position in its text. ends [n_texts]: the last row of each text, which is returned."""
    x = np.take(wte, inputs, axis=0) + wpe[past]
    for block, kv in zip(blocks, cache):
        x = transformer_block(x, **block, n_head=n_head, kv=kv, past=past, ends=ends)
    return gpt2.layer_norm(x[ends], **ln_f)


class Text:
    """A text in the batch: its ids, the length of its prompt, its maximum length, and its own random generator."""

    def __init__(self, inputs, n_tokens_to_generate, seed):
        self.ids, self.n_prompt, self.n_total = list(inputs), len(inputs), len(inputs) + n_tokens_to_generate
        self.rng = np.random.default_rng(seed)
        self.past = 0  # how many of the ids are in the cache

    def is_done(self):
        return len(self.ids) == self.n_total

    def extend(self, next_id, stop):
        if next_id == stop:
            self.n_total = len(self.ids)
        else:
            self.ids.append(next_id)


def generate(prompts, params, n_head, temperature=0, top_k=None, top_p=None, stop=None, batch_size=16):
    """Yields what gpt2.generate returns for each (inputs, n_tokens_to_generate, seed) of prompts, in their order.

    prompts may be endless: at any time, at most 4 * batch_size of them have been read but not yet yielded.
    """
    shapes = [(2, batch_size, *kv.shape[1:]) for kv in gpt2.new_cache(params, n_head, len(params["wpe"]))]
    cache = [np.zeros(shape, np.float32) for shape in shapes]  # zeros, because even masked values must not be NaN
    prompts = iter(prompts)
    prompt = ()  # None after the last one
    texts, waiting = [], collections.deque()  # texts[i] uses kv[:, i]; waiting holds all that are not yet yielded

    def step():  # one more token of each text, or up to CHUNK more of a prompt
        room = CHUNK
        rows = []
        for text in texts:
            rows.append(text.ids[text.past : text.past + room + 1])
            room -= len(rows[-1]) - 1
        past = np.concatenate([np.arange(text.past, text.past + len(ids)) for text, ids in zip(texts, rows)])
        x = hidden_states(
            np.concatenate(rows),
            **params,
            n_head=n_head,
            cache=[kv[:, : len(texts)] for kv in cache],
            past=past,
            ends=np.cumsum([len(ids) for ids in rows]) - 1,
        )
        for text, ids in zip(texts, rows):
            text.past += len(ids)
        ready = [i for i, text in enumerate(texts) if text.past == len(text.ids)]
        for i, logits in zip(ready, x[ready] @ params["wte"].T if ready else ()):
            texts[i].extend(gpt2.sample(logits, temperature, top_k, top_p, texts[i].rng), stop)

    while waiting or prompt is not None:
        while len(texts) < batch_size and len(waiting) < 4 * batch_size and (prompt := next(prompts, None)):
            waiting.append(Text(*prompt))
            if not waiting[-1].is_done():
                texts.append(waiting[-1])
        while waiting and waiting[0].is_done():
            text = waiting.popleft()
            yield text.ids[text.n_prompt :]
        if texts:
            step()
        for i in reversed(range(len(texts))):
            if texts[i].is_done():  # the last text moves here, so that those in use stay contiguous
                last = texts.pop()
                if i < len(texts):
                    texts[i] = last
                    for kv in cache:
                        kv[:, i, :, : last.past] = kv[:, len(texts), :, : last.past]


# --- the command: files, resuming, errors ---


def main(prompts, out, n_tokens_to_generate=40, model_size="124M", models_dir="models", temperature=0,
         top_k: int = None, top_p: float = None, seed: int = None, batch_size=16, *, kernels=False, bits: int = None,
         weights: str = None):  # fmt: skip
    """Completes each line of a file. If it is stopped, the same command resumes where it was.

    Once all lines are done, it tries only lines that failed, in case they have been fixed, and lines that were added.
    The settings are kept in OUT.settings; with other settings OUT is refused.

    Args:
        prompts: The path of a UTF-8 file with one prompt per line; - reads standard input. If the name ends in .jsonl,
            a line is {"prompt": "..."}, and a prompt may have several lines.
        out: The path of the file for the completions, one JSON object per line.
        seed: 0 or more: line n of the file is completed as by gpt2.py with the seed seed + n - 1.
        batch_size: How many prompts at a time, 1 to 4096. Each needs memory for a cache of n_ctx tokens.
    """
    from tqdm import tqdm

    options = temperature, top_k, top_p
    cli.check_options(n_tokens_to_generate, *options, seed)
    cli.check("batch_size", batch_size, 1, 4096)
    writing.check_file(f"{out}.settings", lambda file: b'"n_tokens_to_generate"' in file.read(4096), prompts)
    writing.check_file(out, lambda file: os.path.exists(f"{out}.settings"), prompts)
    model, encoder, hparams, params = flags.load(model_size, models_dir, kernels, bits, weights)
    model_digest, end_of_text = runs.model_digest(model_size, models_dir), encoder.encoder.get("<|endoftext|>")
    settings = {"n_tokens_to_generate": n_tokens_to_generate, "model_size": model_digest, "bits": bits,
                "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}  # fmt: skip

    def begin(number, line):  # -> (record, (inputs, n_tokens_to_generate, seed))
        record = {}
        try:
            record["prompt"] = prompt_of(line, prompts)
            inputs = cli.encode_prompt(encoder, record["prompt"])
            cli.check_inputs(inputs, params, n_tokens_to_generate)
            return record, (inputs, n_tokens_to_generate, None if seed is None else seed + number)
        except ValueError as error:  # the other lines are completed anyway
            return {**record, "error": f"line {number + 1}: {error}"}, ([], 0, None)

    def complete(lines, **bar):  # (number, line) -> yields records, in order
        begun, again = itertools.tee(itertools.starmap(begin, lines))
        over = variant(sys.modules[__name__], gpt2=model)
        found = over.generate((task for _, task in begun), params, hparams["n_head"], *options, end_of_text, batch_size)
        for ids, (record, _) in zip(tqdm(found, "completing", unit=" prompts", disable=None, **bar), again):
            yield record if "error" in record else {**record, "completion": encoder.decode(ids)}

    with utils.locked(out, wait=False):
        n_done, errors = update(out, prompts, settings, complete)
    if errors and len(errors) == n_done:
        raise ValueError(f"all lines of {prompts} failed: {errors[0]}")
    return f"{out}: {n_done} lines" + f", {len(errors)} of those written now with an error" * bool(errors)


def update(out, prompts, settings, complete):
    """Completes the missing and failed lines of out. Returns its number of lines, and the errors of this run."""
    lines = enumerate(reading.read_lines(prompts))
    records, failed = whole_records(out, lines, prompts, settings)
    again = dict(zip([number for number, _ in failed], complete(failed)))
    if any("error" not in record for record in again.values()):  # all of them are replaced at once
        updated = [to_line(again.get(i, record)) for i, record in enumerate(records)]
        writing.write_whole(out, lambda part: pathlib.Path(part).write_bytes(b"".join(updated)))
    errors = [record["error"] for record in again.values() if "error" in record]
    n_done = len(records)
    with open(out, "ab") as results:
        for record in complete(lines, initial=n_done):
            errors += [record["error"]] if "error" in record else []
            results.write(to_line(record))
            results.flush()
            n_done += 1
    return n_done, errors


def prompt_of(line, path):
    """The prompt in a line (bytes) of the file. Raises ValueError if the line does not have one."""
    if not str(path).endswith(".jsonl"):
        return reading.decode(line, "it")
    try:
        if isinstance(prompt := json.loads(line)["prompt"], str):
            return prompt
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise ValueError('it must be JSON like {"prompt": "a text"}')


def to_line(record):
    """A record as a line of JSON in UTF-8, with lone surrogates, which UTF-8 lacks, escaped."""
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def whole_records(out, lines, prompts, settings):
    """(records, failed): the records in out, and (number, line) for each one that has an error.

    Consumes as many lines as there are records. Removes a last line left incomplete by a kill. Raises ValueError,
    and changes nothing, if out was made with other settings or a record does not belong to its line.
    """
    path, records, failed, n_bytes = f"{out}.settings", [], [], 0
    with open(out, "ab+") as results:
        results.seek(0)
        for result in results:
            if not records:
                runs.same_work(out, reading.read_text(path), settings)
            if not result.endswith(b"\n"):
                break
            number, line = next(lines, (None, b""))
            try:
                record = json.loads(result)
                n_bytes += len(result)
                if "error" in record:
                    failed.append((number, line))
                elif record["prompt"] != prompt_of(line, prompts) or not isinstance(record["completion"], str):
                    raise ValueError
                records.append(record)
            except (ValueError, TypeError, KeyError):
                number = None
            if number is None:
                raise ValueError(
                    f"{out} already exists, and its line {len(records) + 1} does not belong to that line of {prompts}: "
                    "choose another --out, or remove it"
                )
        writing.write_text(path, json.dumps(settings))
        results.truncate(n_bytes)
    return records, failed


if __name__ == "__main__":
    cli.run(main)
