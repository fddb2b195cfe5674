"""GPT-2 in NumPy: continues a prompt.

    python gpt2.py "Alan Turing theorized that computers would one day become"

Read it from top to bottom. Shapes follow each def: n_seq tokens, each a vector of n_embd numbers; a head works on
d = n_embd / n_head. Parameters have the names of OpenAI's checkpoint, so **block and **ln_1 wire them. All are float32.
"""

import numpy as np


def gelu(x):  # any shape -> same shape; x * x * x, because x ** 3 takes 47 times as long in float32
    return 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x * x * x)))  # https://arxiv.org/abs/1606.08415


def softmax(x):  # [..., n] -> [..., n], positive, each row sums to 1
    x = np.exp(x - x.max(axis=-1, keepdims=True))  # subtract the maximum so that nothing overflows
    return x / x.sum(axis=-1, keepdims=True)


def layer_norm(x, g, b, eps=1e-5):  # [..., n_embd] -> [..., n_embd]
    x = x - x.mean(axis=-1, keepdims=True)  # mean 0
    return g * x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) + b  # variance 1, then a learned scale and shift


def linear(x, w, b):  # [..., n_in], [n_in, n_out], [n_out] -> [..., n_out]
    return x @ w + b


def ffn(x, c_fc, c_proj):  # [n_seq, n_embd] -> [n_seq, n_embd]
    return linear(gelu(linear(x, **c_fc)), **c_proj)  # up to 4 * n_embd and back


def attention(q, k, v, mask):  # [..., n_q, d], [..., n_k, d], [..., n_k, d], [n_q, n_k] -> [..., n_q, d]
    # softmax turns the match between each query and each key into weights for an average of the values
    return softmax(q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5 + mask) @ v


def causal_attention(q, k, v):  # [n_head, n_q, d] of the last n_q tokens, twice [n_head, n_k, d] -> [n_head, n_q, d]
    past = k.shape[1] - q.shape[1]
    heads = []
    for i in range(0, q.shape[1], 256):  # in chunks of queries, as none attends to the tokens after it
        chunk = q[:, i : i + 256]
        n_seen = past + i + chunk.shape[1]
        mask = (1 - np.tri(chunk.shape[1], n_seen, past + i, dtype=q.dtype)) * -1e10  # softmax makes this 0
        heads.append(attention(chunk, k[:, :n_seen], v[:, :n_seen], mask))
    return np.concatenate(heads, axis=1)


def mha(x, c_attn, c_proj, n_head, kv=None, past=0):  # [n_seq, n_embd] -> [n_seq, n_embd]
    qkv = linear(x, **c_attn)  # project: [n_seq, 3 * n_embd]
    q, k, v = qkv = qkv.reshape(len(x), 3, n_head, -1).transpose(1, 2, 0, 3)  # split: 3 times [n_head, n_seq, d]
    if kv is not None:  # a cache: [2, n_head, n_ctx, d]
        kv[:, :, past : past + len(x)] = qkv[1:]  # store the new keys and values
        k, v = kv[:, :, : past + len(x)]  # recall all of them: [n_head, past + n_seq, d]
    heads = causal_attention(q, k, v).swapaxes(0, 1)  # attend: [n_seq, n_head, d]
    return linear(heads.reshape(len(x), -1), **c_proj)  # merge the heads and project: [n_seq, n_embd]


def transformer_block(x, mlp, attn, ln_1, ln_2, n_head, kv=None, past=0):  # [n_seq, n_embd] -> [n_seq, n_embd]
    x = x + mha(layer_norm(x, **ln_1), **attn, n_head=n_head, kv=kv, past=past)  # tokens exchange information
    return x + ffn(layer_norm(x, **ln_2), **mlp)  # each token is processed on its own


def hidden_states(inputs, wte, wpe, blocks, ln_f, n_head, cache=None, past=0):  # [n_seq] -> [n_seq, n_embd]
    x = np.take(wte, np.asarray(inputs), axis=0) + wpe[past : past + len(inputs)]  # which token + which position
    for block, kv in zip(blocks, cache or [None] * len(blocks)):
        x = transformer_block(x, **block, n_head=n_head, kv=kv, past=past)
    return layer_norm(x, **ln_f)


def gpt2(inputs, wte, wpe, blocks, ln_f, n_head):  # [n_seq] -> [n_seq, n_vocab]
    """Logits: row i scores every token of the vocabulary as the one that follows inputs[:i + 1]."""
    return hidden_states(inputs, wte, wpe, blocks, ln_f, n_head) @ wte.T


def new_cache(params, n_head, n_tokens):  # -> for each block, room for keys and values: [2, n_head, n_tokens, d]
    return [np.empty((2, n_head, n_tokens, params["wte"].shape[1] // n_head), np.float32) for _ in params["blocks"]]


def sample(logits, temperature, top_k, top_p, rng):  # [n_vocab] -> int
    if np.isnan(logits).any():
        raise ValueError("the model's weights are damaged: the logits contain NaN")
    if temperature == 0:
        return int(np.argmax(logits))
    logits = (logits.astype(np.float64) - logits.max()) / max(temperature, 1e-200)  # less would overflow
    if top_k is not None:  # keep the k most probable tokens, and any that tie with the last of them
        logits[logits < np.sort(logits)[-min(top_k, len(logits))]] = -np.inf
    probs = softmax(logits)
    if top_p is not None:  # keep the smallest set of tokens whose probabilities sum to at least p, and at least one
        order = np.argsort(-probs, kind="stable")
        before = np.cumsum(probs[order])[:-1]  # of each token but the first: the sum over more probable ones
        probs[order[1:][before >= top_p]] = 0
    return int(rng.choice(len(probs), p=probs / probs.sum()))


def stream(inputs, params, n_head, n_tokens_to_generate, temperature=0, top_k=None, top_p=None, seed=None, stop=None):
    """Iterates over the ids that follow inputs: n_tokens_to_generate of them, or fewer if stop is generated. Greedy at
    temperature 0, otherwise sampled with seed. Raises ValueError if they do not fit into the context, n_ctx tokens."""
    from cli import check_inputs

    check_inputs(inputs, params, n_tokens_to_generate, temperature, top_k, top_p, seed)

    def steps(ids, past=0):
        cache = new_cache(params, n_head, len(ids) + n_tokens_to_generate)
        rng = np.random.default_rng(seed)
        for _ in range(n_tokens_to_generate):
            x = hidden_states(ids[past:], **params, n_head=n_head, cache=cache, past=past)  # prompt, then one by one
            past = len(ids)
            ids.append(sample(x[-1] @ params["wte"].T, temperature, top_k, top_p, rng))
            if ids[-1] == stop:
                return
            yield ids[-1]

    return steps(list(inputs))  # a generator of its own, so that the check above runs right away


def generate(inputs, params, n_head, n_tokens_to_generate, temperature=0, top_k=None, top_p=None, seed=None, stop=None):
    """The list of the ids that stream yields."""
    return list(stream(inputs, params, n_head, n_tokens_to_generate, temperature, top_k, top_p, seed, stop))


def main(prompt: str = None, n_tokens_to_generate=40, model_size="124M", models_dir="models",
         temperature=0, top_k: int = None, top_p: float = None, seed: int = None):  # fmt: skip
    """Continues a text with GPT-2 and prints the continuation."""
    from cli import check_options, encode_prompt, read_prompt, show
    from utils import load_encoder_hparams_and_params

    check_options(n_tokens_to_generate, temperature, top_k, top_p, seed)
    prompt = read_prompt(prompt)
    encoder, hparams, params = load_encoder_hparams_and_params(model_size, models_dir)
    inputs = encode_prompt(encoder, prompt)
    options = n_tokens_to_generate, temperature, top_k, top_p, seed, encoder.encoder.get("<|endoftext|>")
    return show(encoder.decode_stream(stream(inputs, params, hparams["n_head"], *options)), n_tokens_to_generate)


if __name__ == "__main__":
    from cli import run

    run(main)
