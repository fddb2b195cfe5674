"""Many prompts at once: a pass a step for all of them, still in NumPy.

    python -m beyond.batch prompts.txt --out completions.jsonl --model_size shakespeare

A prompt a line goes in, a line of JSON for each comes out, in the same order: {"prompt": ..., "completion": ...}, the
completion that gpt2.py gives for that prompt alone, or {"prompt": ..., "error": ...}.

Decoding spends its time on reading the weights, and what has been read can serve 16 tokens as well as one. So each
step takes the last token of every text under way, a row each, through one product per layer; only attention looks at
each row's own past. A text that ends leaves its row to the next prompt. Redefined are the functions that see tokens of
one text in their rows, where here each row is a text: mha, transformer_block, hidden_states, generate.
"""

import collections
import itertools
import json

import numpy as np

import gpt2
import utils
from gpt2 import attention, ffn, layer_norm, linear, sample


def mha(x, c_attn, c_proj, n_head, kv, past):  # [n_rows, n_embd] -> [n_rows, n_embd]
    rows, n_keys = np.arange(len(x)), past.max() + 1  # kv [2, n_rows, n_head, n_ctx, d], past [n_rows]
    q, k, v = linear(x, **c_attn).reshape(len(x), 3, n_head, -1).swapaxes(0, 1)  # three times [n_rows, n_head, d]
    kv[0, rows, :, past], kv[1, rows, :, past] = k, v
    k, v = kv[:, :, :, :n_keys]  # as many as the longest text has; for the others, what lies behind is masked
    mask = np.where(np.arange(n_keys) <= past[:, None], np.float32(0), np.float32(-1e10))[:, None, None]
    return linear(attention(q[:, :, None], k, v, mask).reshape(len(x), -1), **c_proj)


def transformer_block(x, mlp, attn, ln_1, ln_2, n_head, kv, past):  # [n_rows, n_embd] -> [n_rows, n_embd]
    x = x + mha(layer_norm(x, **ln_1), **attn, n_head=n_head, kv=kv, past=past)
    return x + ffn(layer_norm(x, **ln_2), **mlp)


def hidden_states(inputs, wte, wpe, blocks, ln_f, n_head, cache, past):  # [n_rows], past [n_rows] -> [n_rows, n_embd]
    x = wte[inputs] + wpe[past]
    for block, kv in zip(blocks, cache):
        x = transformer_block(x, **block, n_head=n_head, kv=kv, past=past)
    return layer_norm(x, **ln_f)


class Text:
    """A text under way: its ids, where they begin to be new, where they end at the latest, and its own chance."""

    def __init__(self, inputs, n_tokens_to_generate, seed):
        self.ids, self.n_prompt, self.n_total = list(inputs), len(inputs), len(inputs) + n_tokens_to_generate
        self.rng = np.random.default_rng(seed)

    def is_done(self):
        return len(self.ids) == self.n_total


def generate(prompts, params, n_head, temperature=0, top_k=None, top_p=None, stop=None, batch_size=16):
    """Yields what gpt2.generate returns for each (inputs, n_tokens_to_generate, seed) of prompts, in their order.

    prompts may be endless: no more than 4 * batch_size of them are begun and not yet yielded.
    """
    n_ctx, n_embd = params["wpe"].shape
    # zeros, as what is behind a mask must be a number
    cache = [np.zeros((2, batch_size, n_head, n_ctx, n_embd // n_head), np.float32) for _ in params["blocks"]]
    prompts, prompt, texts, waiting = iter(prompts), (), [], collections.deque()  # texts[i] has row i of the cache

    def extend(texts, x):  # x [n_rows, n_embd]
        for text, logits in zip(texts, x @ params["wte"].T):
            next_id = sample(logits, temperature, top_k, top_p, text.rng)
            if next_id == stop:
                text.n_total = len(text.ids)
            else:
                text.ids.append(next_id)

    while waiting or prompt is not None:
        while len(texts) < batch_size and len(waiting) < 4 * batch_size and (prompt := next(prompts, None)):
            text, row = Text(*prompt), [kv[:, len(texts)] for kv in cache]
            waiting.append(text)
            if not text.is_done():
                extend([text], gpt2.hidden_states(text.ids, **params, n_head=n_head, cache=row)[-1:])
            if not text.is_done():
                texts.append(text)
        while waiting and waiting[0].is_done():
            text = waiting.popleft()
            yield text.ids[text.n_prompt:]
        if texts:
            rows, past = [kv[:, :len(texts)] for kv in cache], np.array([len(text.ids) - 1 for text in texts])
            inputs = [text.ids[-1] for text in texts]
            extend(texts, hidden_states(inputs, **params, n_head=n_head, cache=rows, past=past))
        for i in reversed(range(len(texts))):
            if texts[i].is_done():  # the last row moves here, so that those in use stay side by side
                last = texts.pop()
                if i < len(texts):
                    texts[i] = last
                    for kv in cache:
                        kv[:, i, :, :len(last.ids)] = kv[:, len(texts), :, :len(last.ids)]


def main(prompts, out, n_tokens_to_generate=40, model_size="124M", models_dir="models", temperature=0,
         top_k: int = None, top_p: float = None, seed: int = None, batch_size=16):
    """Completes each line of a file. After a kill the same command goes on where it stopped.

    Args:
        prompts: The path of a UTF-8 file with a prompt a line.
        out: The path of the file for the completions, a line of JSON each.
        n_tokens_to_generate: As for gpt2.py.
        model_size: As for gpt2.py.
        models_dir: As for gpt2.py.
        temperature: As for gpt2.py.
        top_k: As for gpt2.py.
        top_p: As for gpt2.py.
        seed: From 0 on: line n, from 1 on, is what gpt2.py gives with the seed seed + n - 1.
        batch_size: How many prompts at a time, from 1 on. Each needs memory for a cache of up to n_ctx tokens.
    """
    from tqdm import tqdm

    options = temperature, top_k, top_p
    utils.check_options(n_tokens_to_generate, *options, seed)
    utils.check("batch_size", batch_size, int, 1, 4096, "a whole number from 1 to 4096")
    encoder, hparams, params = utils.load_encoder_hparams_and_params(model_size, models_dir)
    end_of_text, records, n_errors = encoder.encoder.get("<|endoftext|>"), collections.deque(), 0
    with open(prompts, "rb") as lines, open(out, "ab+") as results:
        n_done = keep_whole_lines(lines, results)

        def begin(line, number):  # -> (inputs, n_tokens_to_generate, seed)
            own_seed, record = None if seed is None else seed + number, {}
            records.append(record)
            try:
                record["prompt"] = text_of(line)
                inputs = encoder.encode(record["prompt"]) or [end_of_text]
                utils.check_inputs(inputs, params, n_tokens_to_generate)
                return inputs, n_tokens_to_generate, own_seed
            except ValueError as error:  # this line's own fault: the others go on
                record["error"] = f"line {number + 1}: {error}"
                return [], 0, own_seed

        begun = map(begin, lines, itertools.count(n_done))
        found = generate(begun, params, hparams["n_head"], *options, end_of_text, batch_size)
        for ids in tqdm(found, "completing", initial=n_done, unit=" prompts", disable=None):
            record = records.popleft()
            if "error" in record:
                n_errors += 1
            else:
                record["completion"] = encoder.decode(ids)
            results.write(json.dumps(record).encode() + b"\n")
            results.flush()
            n_done += 1
    return f"{out}: {n_done} lines" + f", {n_errors} of those written now with an error" * (n_errors > 0)


def text_of(line):
    """A line without its end. Raises ValueError if it is not UTF-8."""
    return line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")


def keep_whole_lines(lines, results):
    """How many lines of results are whole: cuts off what stands behind them, and reads as many lines from lines.

    Raises ValueError if one of them does not belong to its prompt.
    """
    results.seek(0)
    n_bytes = n = 0
    for result in results:
        if not result.endswith(b"\n"):
            break
        n, n_bytes, line = n + 1, n_bytes + len(result), lines.readline()
        try:
            fits = line and ("prompt" not in json.loads(result) or json.loads(result)["prompt"] == text_of(line))
        except (ValueError, TypeError):
            fits = False
        if not fits:
            raise ValueError(f"{results.name} is there already, and its line {n} does not belong to line {n} of "
                             f"{lines.name}: give another out, or remove it")
    results.truncate(n_bytes)
    return n


if __name__ == "__main__":
    utils.run(main, "prompts", "out", "model_size", "models_dir")
