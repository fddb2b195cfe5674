"""GPT-2 in NumPy: a prompt goes in, its continuation comes out.

    python gpt2.py "Alan Turing theorized that computers would one day become"

Read from top to bottom: the small layers, attention, the block, the model, sampling, generation, the command line.
Shapes are given after each def: n_seq tokens, each a vector of n_embd numbers; a head works on d = n_embd / n_head.
Parameters have the names of OpenAI's checkpoint, so **block and **ln_1 wire them. All arrays are float32.
"""

import numpy as np


def gelu(x):  # any shape -> same shape; x * x * x, as x ** 3 would take 47 times as long in float32
    return 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x * x * x)))  # https://arxiv.org/abs/1606.08415


def softmax(x):  # [..., n] -> [..., n], positive, each row sums to 1
    x = np.exp(x - x.max(axis=-1, keepdims=True))  # less the maximum, so that nothing overflows
    return x / x.sum(axis=-1, keepdims=True)


def layer_norm(x, g, b, eps=1e-5):  # [..., n_embd] -> [..., n_embd]
    x = x - x.mean(axis=-1, keepdims=True)  # mean 0
    return g * x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) + b  # variance 1, then as learned


def linear(x, w, b):  # [..., n_in], [n_in, n_out], [n_out] -> [..., n_out]
    return x @ w + b


def ffn(x, c_fc, c_proj):  # [n_seq, n_embd] -> [n_seq, n_embd]
    return linear(gelu(linear(x, **c_fc)), **c_proj)  # up to 4 * n_embd and back


def attention(q, k, v, mask):  # [..., n_q, d], [..., n_k, d], [..., n_k, d], [n_q, n_k] -> [..., n_q, d]
    # how well each query fits each key, made weights by which the values are summed
    return softmax(q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5 + mask) @ v


def causal_attention(q, k, v):  # [n_head, n_q, d], [n_head, n_k, d], [n_head, n_k, d] -> [n_head, n_q, d]
    """The queries are those of the last n_q of n_k tokens; each looks at its own token and those before it."""
    past, found = k.shape[1] - q.shape[1], []
    for i in range(0, q.shape[1], 256):  # in chunks of queries, as a chunk needs no key that comes after it
        chunk = q[:, i : i + 256]
        n_seen = past + i + chunk.shape[1]
        mask = (1 - np.tri(chunk.shape[1], n_seen, past + i, dtype=q.dtype)) * -1e10  # what softmax turns into 0
        found.append(attention(chunk, k[:, :n_seen], v[:, :n_seen], mask))
    return np.concatenate(found, axis=1)


def mha(x, c_attn, c_proj, n_head, kv=None, past=0):  # [n_seq, n_embd] -> [n_seq, n_embd]
    n_seq = len(x)
    # one product makes the queries, keys and values of all heads: three arrays [n_head, n_seq, d]
    q, k, v = linear(x, **c_attn).reshape(n_seq, 3, n_head, -1).transpose(1, 2, 0, 3)
    if kv is not None:  # a cache [2, n_head, n_ctx, d]: the new keys and values join those of the past tokens
        kv[0, :, past : past + n_seq], kv[1, :, past : past + n_seq] = k, v
        k, v = kv[:, :, : past + n_seq]
    heads = causal_attention(q, k, v)
    return linear(heads.swapaxes(0, 1).reshape(n_seq, -1), **c_proj)  # side by side, they make n_embd again


def transformer_block(x, mlp, attn, ln_1, ln_2, n_head, kv=None, past=0):  # [n_seq, n_embd] -> [n_seq, n_embd]
    x = x + mha(layer_norm(x, **ln_1), **attn, n_head=n_head, kv=kv, past=past)  # tokens look at each other
    return x + ffn(layer_norm(x, **ln_2), **mlp)  # each token is worked on alone


def hidden_states(inputs, wte, wpe, blocks, ln_f, n_head, cache=None, past=0):  # [n_seq] -> [n_seq, n_embd]
    x = np.take(wte, np.asarray(inputs), axis=0) + wpe[past : past + len(inputs)]  # what the token is + where it is
    for block, kv in zip(blocks, cache or [None] * len(blocks)):
        x = transformer_block(x, **block, n_head=n_head, kv=kv, past=past)
    return layer_norm(x, **ln_f)


def gpt2(inputs, wte, wpe, blocks, ln_f, n_head):  # [n_seq] -> [n_seq, n_vocab]
    """Logits: row i scores every token of the vocabulary as the one that follows inputs[:i + 1]."""
    return hidden_states(inputs, wte, wpe, blocks, ln_f, n_head) @ wte.T


def sample(logits, temperature, top_k, top_p, rng):  # [n_vocab] -> int
    if np.isnan(logits).any():
        raise ValueError("the logits are not numbers: the model's weights are damaged")
    if temperature == 0:
        return int(np.argmax(logits))
    logits = (logits.astype(np.float64) - logits.max()) / max(temperature, 1e-200)  # less would overflow
    if top_k is not None:  # only the k most probable tokens, and any that equal the last of them
        logits[logits < np.sort(logits)[-min(top_k, len(logits))]] = -np.inf
    probs = softmax(logits)
    if top_p is not None:  # only the smallest set of tokens whose probability reaches p, and always one
        order = np.argsort(-probs, kind="stable")
        probs[order[1:][np.cumsum(probs[order])[:-1] >= top_p]] = 0
    return int(rng.choice(len(probs), p=probs / probs.sum()))


def stream(inputs, params, n_head, n_tokens_to_generate, temperature=0, top_k=None, top_p=None, seed=None, stop=None):
    """Yields the ids that follow the ids in inputs, one by one: at most n_tokens_to_generate, fewer if stop comes up.

    Greedy at temperature 0, else drawn from seed. ValueError if all of them do not fit the context, n_ctx tokens.
    """
    from cli import check_inputs

    check_inputs(inputs, params, n_tokens_to_generate, temperature, top_k, top_p, seed)
    ids, past = list(inputs), 0
    rng = np.random.default_rng(seed)
    shape = 2, n_head, len(ids) + n_tokens_to_generate, params["wte"].shape[1] // n_head
    cache = [np.empty(shape, np.float32) for _ in params["blocks"]]
    for _ in range(n_tokens_to_generate):
        x = hidden_states(ids[past:], **params, n_head=n_head, cache=cache, past=past)  # the prompt, then one by one
        past = len(ids)
        next_id = sample(x[-1] @ params["wte"].T, temperature, top_k, top_p, rng)
        if next_id == stop:
            break
        yield next_id
        ids.append(next_id)


def generate(inputs, params, n_head, n_tokens_to_generate, temperature=0, top_k=None, top_p=None, seed=None, stop=None):
    """The list of all that stream yields."""
    return list(stream(inputs, params, n_head, n_tokens_to_generate, temperature, top_k, top_p, seed, stop))


def main(prompt: str = None, n_tokens_to_generate=40, model_size="124M", models_dir="models",
         temperature=0, top_k: int = None, top_p: float = None, seed: int = None):  # fmt: skip
    """Continues a text with GPT-2 and prints the continuation."""  # cli.HELP describes the arguments
    from cli import check_options, encode_prompt, read_prompt, show
    from utils import load_encoder_hparams_and_params

    options = n_tokens_to_generate, temperature, top_k, top_p, seed
    check_options(*options)
    prompt = read_prompt(prompt)
    encoder, hparams, params = load_encoder_hparams_and_params(model_size, models_dir)
    inputs, end_of_text = encode_prompt(encoder, prompt), encoder.encoder.get("<|endoftext|>")
    ids = stream(inputs, params, hparams["n_head"], *options, stop=end_of_text)
    return show(encoder.decode_stream(ids), n_tokens_to_generate)


if __name__ == "__main__":
    from cli import run

    run(main)
