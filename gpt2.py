"""GPT-2 in NumPy: a prompt goes in, its continuation comes out.

    python gpt2.py "Alan Turing theorized that computers would one day become"

Read from top to bottom: the small layers, attention, the block, the model, sampling, generation, the command line.
Shapes are given after each def: n_seq tokens, each a vector of n_embd numbers; a head works on d = n_embd / n_head.
Parameters have the names of OpenAI's checkpoint, so **block and **ln_1 wire them. All arrays are float32.
"""

import numpy as np

# `x += 1` works in place where `x = x + 1` makes a new array, whose memory costs more time than the addition. In one
# expression, as x @ w + b, NumPy reuses the array in between by itself.


def gelu(x):  # any shape -> same shape
    scale = (2 / np.pi) ** 0.5  # x / 2 * (1 + tanh(scale * (x + 0.044715 * x^3))), https://arxiv.org/abs/1606.08415
    return (np.tanh(x * (x * x * (0.044715 * scale) + scale)) + 1) * x * 0.5


def softmax(x):  # [..., n] -> [..., n], positive, each row sums to 1
    x = np.exp(x - x.max(axis=-1, keepdims=True))  # less the maximum, so that nothing overflows
    x /= x.sum(axis=-1, keepdims=True)
    return x


def layer_norm(x, g, b, eps=1e-5):  # [..., n_embd] -> [..., n_embd]
    x = x - x.sum(axis=-1, keepdims=True) / x.shape[-1]  # mean 0
    return x / np.sqrt((x * x).sum(axis=-1, keepdims=True) / x.shape[-1] + eps) * g + b  # variance 1, then as learned


def linear(x, w, b):  # [..., n_in], [n_in, n_out], [n_out] -> [..., n_out]
    return x @ w + b


def ffn(x, c_fc, c_proj):  # [n_seq, n_embd] -> [n_seq, n_embd]
    return linear(gelu(linear(x, **c_fc)), **c_proj)  # up to 4 * n_embd and back


def attention(q, k, v, mask):  # [..., n_q, d], [..., n_k, d], [..., n_k, d], [n_q, n_k] -> [..., n_q, d]
    scores = (q / q.shape[-1] ** 0.5) @ k.swapaxes(-1, -2)  # how well each query fits each key
    scores += mask
    return softmax(scores) @ v


def mha(x, c_attn, c_proj, n_head, kv=None, past=0):  # [n_seq, n_embd] -> [n_seq, n_embd]
    n_seq, heads = x.shape[0], []
    # one product makes the queries, keys and values of all heads: three arrays [n_head, n_seq, d]
    q, k, v = linear(x, **c_attn).reshape(n_seq, 3, n_head, -1).transpose(1, 2, 0, 3)
    # with a cache, kv [2, n_head, n_ctx, d], the new keys and values join those of the past tokens
    if kv is not None:
        kv[0, :, past : past + n_seq], kv[1, :, past : past + n_seq] = k, v
        k, v = kv[:, :, : past + n_seq]
    # each head attends for itself, in blocks of queries, as a block needs no key that comes after it
    for i in range(0, n_seq, 256):
        j = min(i + 256, n_seq)
        # within the block, what comes after the query gets -1e10, which softmax turns into 0
        mask = (1 - np.tri(j - i, past + j, past + i, dtype=x.dtype)) * -1e10 if n_seq > 1 else 0
        heads.append(attention(q[:, i:j], k[:, : past + j], v[:, : past + j], mask))
    # side by side, the heads make n_embd again
    return linear(np.concatenate(heads, axis=1).transpose(1, 0, 2).reshape(n_seq, -1), **c_proj)


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
    from utils import check_inputs

    check_inputs(inputs, params, n_tokens_to_generate, temperature, top_k, top_p, seed)
    ids, past, rng = list(inputs), 0, np.random.default_rng(seed)
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
    """Continues a text with GPT-2 and prints the continuation."""  # utils.FLAGS says what the arguments mean
    from utils import check_options, encode_prompt, load_encoder_hparams_and_params, read_prompt, show

    options = n_tokens_to_generate, temperature, top_k, top_p, seed
    check_options(*options)
    prompt = read_prompt(prompt)
    encoder, hparams, params = load_encoder_hparams_and_params(model_size, models_dir)
    inputs, end_of_text = encode_prompt(encoder, prompt), encoder.encoder.get("<|endoftext|>")
    ids = stream(inputs, params, hparams["n_head"], *options, stop=end_of_text)
    return show(encoder.decode_stream(ids), n_tokens_to_generate)


if __name__ == "__main__":
    from utils import run

    run(main, "prompt", "model_size", "models_dir")
