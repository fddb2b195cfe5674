"""GPT-2, greedy, no cache: for each new token the model runs again over all previous tokens."""

from cli import check_inputs, check_numbers, encode_prompt, read_prompt, run
import numpy as np
from utils import load_encoder_hparams_and_params


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def layer_norm(x, g, b, eps=1e-5):
    return g * (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + eps) + b


def mha(x, c_attn, c_proj, n_head):  # [n_seq, n_embd] -> [n_seq, n_embd]
    q, k, v = (np.split(y, n_head, axis=-1) for y in np.split(x @ c_attn["w"] + c_attn["b"], 3, axis=-1))
    mask = (1 - np.tri(len(x), dtype=np.float32)) * -1e10  # no looking ahead
    heads = [softmax(q @ k.T / k.shape[-1] ** 0.5 + mask) @ v for q, k, v in zip(q, k, v)]
    return np.hstack(heads) @ c_proj["w"] + c_proj["b"]


def mlp(x, c_fc, c_proj):  # [n_seq, n_embd] -> [n_seq, n_embd]
    x = x @ c_fc["w"] + c_fc["b"]
    x = 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x * x * x)))  # gelu
    return x @ c_proj["w"] + c_proj["b"]


def gpt2(inputs, wte, wpe, blocks, ln_f, n_head):  # [n_seq] -> [n_seq, n_vocab]
    x = wte[inputs] + wpe[: len(inputs)]
    for block in blocks:
        x = x + mha(layer_norm(x, **block["ln_1"]), **block["attn"], n_head=n_head)
        x = x + mlp(layer_norm(x, **block["ln_2"]), **block["mlp"])
    return layer_norm(x, **ln_f) @ wte.T


def generate(inputs, params, n_head, n_tokens_to_generate):
    check_inputs(inputs, params, n_tokens_to_generate)
    ids = list(inputs)
    for _ in range(n_tokens_to_generate):
        ids += [int(check_numbers(gpt2(ids, **params, n_head=n_head)[-1]).argmax())]
    return ids[len(inputs) :]


def main(prompt: str = None, n_tokens_to_generate=40, model_size="124M", models_dir="models"):
    """Continues a text with the most probable tokens and prints the continuation."""
    prompt = read_prompt(prompt)
    encoder, hparams, params = load_encoder_hparams_and_params(model_size, models_dir)
    end = encoder.encoder.get("<|endoftext|>")
    ids = generate(encode_prompt(encoder, prompt), params, hparams["n_head"], n_tokens_to_generate)
    return encoder.decode(ids[: ids.index(end)] if end in ids else ids)


if __name__ == "__main__":
    run(main)
