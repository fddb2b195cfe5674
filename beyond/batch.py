"""Many prompts at once: one pass per step for all of them, still in NumPy.

    python -m beyond.batch prompts.txt --out completions.jsonl --model_size shakespeare

A prompt in each line goes in, a line of JSON for each comes out, in the same order: {"prompt": ..., "completion": ...},
the completion that gpt2.py gives for that prompt alone (but for what beyond/lookahead.py says of rounding), or
{"prompt": ..., "error": ...}.

Decoding spends its time on reading the weights, and what has been read can serve 16 tokens as well as one. So each
step takes the last token of every unfinished text, one row each, through one product per layer; only attention looks
at each row's own past. A text that ends makes room for the next prompt, whose tokens join the rows in chunks.
The functions whose rows are the tokens of one text are redefined, as here several texts share the rows: mha,
transformer_block, hidden_states, generate.
"""

import collections
import itertools
import json
import os
import sys

import numpy as np

from beyond import variant
from beyond.fast import flags
from beyond.files import reading, runs, writing
import cli
import gpt2

CHUNK = 64  # tokens of new prompts per step, besides one of each text


def mha(x, c_attn, c_proj, n_head, kv, past, ends):  # [n_rows, n_embd] -> [n_rows, n_embd]
    n_rows = np.diff(ends, prepend=-1)  # kv [2, n_texts, n_head, n_ctx, d], past [n_rows], ends [n_texts]
    texts, n_keys = np.repeat(np.arange(len(ends)), n_rows), past.max() + 1
    q, k, v = gpt2.linear(x, **c_attn).reshape(len(x), 3, n_head, -1).swapaxes(0, 1)  # [n_rows, n_head, d] each
    kv[0, texts, :, past], kv[1, texts, :, past] = k, v
    heads, (k, v) = np.empty_like(q), kv[:, :, :, :n_keys]  # as many as the longest text has; more is masked
    mask = np.where(np.arange(n_keys) <= past[ends, None], np.float32(0), np.float32(-1e10))[:, None, None]
    heads[ends] = gpt2.attention(q[ends][:, :, None], k, v, mask)[:, :, 0]  # the last rows of all texts at once
    for i in np.flatnonzero(n_rows > 1):  # a prompt's rows before its last one
        end, begin = ends[i], ends[i] - n_rows[i] + 1
        mask = (1 - np.tri(end - begin, past[end], past[begin], dtype=x.dtype)) * -1e10
        k, v = kv[:, i, :, : past[end]]
        heads[begin:end] = gpt2.attention(q[begin:end].swapaxes(0, 1), k, v, mask).swapaxes(0, 1)
    return gpt2.linear(heads.reshape(len(x), -1), **c_proj)


def transformer_block(x, mlp, attn, ln_1, ln_2, n_head, **rows):  # [n_rows, n_embd] -> [n_rows, n_embd]
    x = x + mha(gpt2.layer_norm(x, **ln_1), **attn, n_head=n_head, **rows)
    return x + gpt2.ffn(gpt2.layer_norm(x, **ln_2), **mlp)


def hidden_states(inputs, wte, wpe, blocks, ln_f, n_head, cache, past, ends):  # [n_rows] -> [n_texts, n_embd]
    """past [n_rows]: each row's place in its text. ends [n_texts]: the last row of each, whose vectors are returned."""
    x = np.take(wte, inputs, axis=0) + wpe[past]
    for block, kv in zip(blocks, cache):
        x = transformer_block(x, **block, n_head=n_head, kv=kv, past=past, ends=ends)
    return gpt2.layer_norm(x[ends], **ln_f)


class Text:
    """An unfinished text: its ids, the length of its prompt, the most it may grow to, and its own random numbers."""

    def __init__(self, inputs, n_tokens_to_generate, seed):
        self.ids, self.n_prompt, self.n_total = list(inputs), len(inputs), len(inputs) + n_tokens_to_generate
        self.rng, self.past = np.random.default_rng(seed), 0  # past: how many of the ids are in the cache

    def is_done(self):
        return len(self.ids) == self.n_total

    def extend(self, next_id, stop):
        if next_id == stop:
            self.n_total = len(self.ids)
        else:
            self.ids.append(next_id)


def generate(prompts, params, n_head, temperature=0, top_k=None, top_p=None, stop=None, batch_size=16):
    """Yields what gpt2.generate returns for each (inputs, n_tokens_to_generate, seed) of prompts, in their order.

    prompts may be endless: no more than 4 * batch_size of them are begun and not yet yielded.
    """
    n_ctx, n_embd = params["wpe"].shape
    # zeros, as even masked values must be numbers
    cache = [np.zeros((2, batch_size, n_head, n_ctx, n_embd // n_head), np.float32) for _ in params["blocks"]]
    prompts, prompt, texts, waiting = iter(prompts), (), [], collections.deque()  # texts[i] has row i of the cache

    def step():  # one more token of each text, or up to CHUNK more of a prompt
        room, rows = CHUNK, []
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
            if texts[i].is_done():  # the last row moves here, so that the rows in use stay contiguous
                last = texts.pop()
                if i < len(texts):
                    texts[i] = last
                    for kv in cache:
                        kv[:, i, :, : last.past] = kv[:, len(texts), :, : last.past]


# --- the command: files, resuming, errors ---


def main(
    prompts,
    out,
    n_tokens_to_generate=40,
    model_size="124M",
    models_dir="models",
    temperature=0,
    top_k: int = None,
    top_p: float = None,
    seed: int = None,
    batch_size=16,
    *,
    kernels=False,
    bits: int = None,
    weights: str = None,
):
    """Completes each line of a file. After a kill the same command goes on where it stopped.

    Run again once it is done, it tries only the lines that failed, if they have been mended since, and what was added.
    What it was made with is in OUT.settings; with other settings OUT is refused.

    Args:
        prompts: The path of a UTF-8 file with a prompt in each line; - reads the standard input. In a file that ends in
            .jsonl a line is {"prompt": "..."}, and a prompt may have several lines.
        out: The path of the file for the completions, a JSON object in each line.
        n_tokens_to_generate: How many tokens to add to each, 0 or more; with the prompt at most n_ctx (1024).
        model_size: 124M, 355M, 774M, 1558M, shakespeare or another folder in models_dir.
        seed: 0 or more: line n of the file is what gpt2.py gives with the seed seed + n - 1.
        batch_size: How many prompts at a time, 1 to 4096. Each needs memory for a cache of up to n_ctx tokens.
    """
    from tqdm import tqdm

    settings = {
        name: value
        for name, value in locals().items()
        if name not in ("prompts", "out", "batch_size", "tqdm", "kernels", "weights")
    }
    options = temperature, top_k, top_p
    cli.check_options(n_tokens_to_generate, *options, seed)
    cli.check("batch_size", batch_size, 1, 4096)
    writing.check_file(f"{out}.settings", lambda file: b'"n_tokens_to_generate"' in file.read(4096), prompts)
    writing.check_file(out, lambda file: os.path.exists(f"{out}.settings"), prompts)
    model, encoder, hparams, params = flags.load(model_size, models_dir, kernels, bits, weights)
    settings.update(model_size=runs.model_digest(model_size, models_dir), models_dir=None)
    end_of_text = encoder.encoder.get("<|endoftext|>")

    def begin(number, line):  # -> (record, (inputs, n_tokens_to_generate, seed))
        own_seed, record = None if seed is None else seed + number, {}
        try:
            record["prompt"] = prompt_of(line, prompts)
            inputs = cli.encode_prompt(encoder, record["prompt"])
            cli.check_inputs(inputs, params, n_tokens_to_generate)
            return record, (inputs, n_tokens_to_generate, own_seed)
        except ValueError as error:  # this line's own fault: the others go on
            return {**record, "error": f"line {number + 1}: {error}"}, ([], 0, own_seed)

    def complete(lines, **bar):  # (number, line) -> yields records, in order
        begun, records = itertools.starmap(begin, lines), collections.deque()
        works = (records.append(record) or work for record, work in begun)
        over = variant(sys.modules[__name__], gpt2=model)
        found = over.generate(works, params, hparams["n_head"], *options, end_of_text, batch_size)
        for ids in tqdm(found, "completing", unit=" prompts", disable=None, **bar):
            record = records.popleft()
            yield record if "error" in record else {**record, "completion": encoder.decode(ids)}

    lines = enumerate(reading.read_lines(prompts))
    with open(out, "ab+") as results:
        writing.lock(results)
        kept, failed = whole_records(results, lines, out, prompts, settings)
        again = dict(zip([number for number, _ in failed], complete(failed)))
        if any("error" not in record for record in again.values()):  # they take their places all at once
            writing.write_whole(
                out, lambda part: write_records(part, [again.get(i, one) for i, one in enumerate(kept)])
            )
            results.close()
    n_done, errors = len(kept), [record["error"] for record in again.values() if "error" in record]
    with open(out, "ab") as results:
        writing.lock(results)
        for record in complete(lines, initial=n_done):
            errors += [record["error"]] if "error" in record else []
            results.write(to_line(record))
            results.flush()
            n_done += 1
    if errors and len(errors) == n_done:
        raise ValueError(f"all lines of {prompts} failed: {errors[0]}")
    return f"{out}: {n_done} lines" + f", {len(errors)} of those written now with an error" * bool(errors)


def prompt_of(line, path):
    """The prompt in a line, bytes, of the file. Raises ValueError if there is none."""
    if not str(path).endswith(".jsonl"):
        return reading.decode(line, "it")
    try:
        if isinstance(prompt := json.loads(line)["prompt"], str):
            return prompt
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise ValueError('this must be JSON like {"prompt": "a text"}')


def to_line(record):
    """A record as a line of JSON: UTF-8, and what cannot be, half a surrogate pair, escaped."""
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def write_records(path, records):
    with open(path, "wb") as file:
        file.writelines(map(to_line, records))


def whole_records(results, lines, out, prompts, settings):
    """(records, failed) of an output that goes on: failed has the (number, line) that have an error instead.

    Cuts off what a kill left of a last line. Takes the lines that it has read from lines. Raises ValueError, and
    changes nothing, if the output was made with other settings or a record does not belong to its line.
    """
    path, records, failed, n_bytes = f"{out}.settings", [], [], 0
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
                f"{out} is there already, and its line {len(records) + 1} does not belong to that line of "
                f"{prompts}: choose another --out, or remove it"
            )
    writing.write_text(path, json.dumps(settings))
    results.truncate(n_bytes)
    return records, failed


if __name__ == "__main__":
    cli.run(main)
