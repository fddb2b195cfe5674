"""Writes tests/golden.npz: outputs of Hugging Face transformers for models whose weights follow from a formula.

    pip install torch transformers && python tests/golden.py

It has the logits for each of CONFIGS and, for each of WARPS, the probabilities of SCORES after that temperature, top_k
and top_p. The tests make the same weights by weights() and compare; they need neither package.
"""

import os

import numpy as np

PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden.npz")
CONFIGS = {  # odd shapes: 5 heads of 8, and enough layers that the name h10 sorts before h2
    "deep": {"n_vocab": 97, "n_ctx": 24, "n_embd": 40, "n_head": 5, "n_layer": 12},
    "wide": {"n_vocab": 61, "n_ctx": 48, "n_embd": 66, "n_head": 3, "n_layer": 2},
}
SCORES = np.round(3 * np.sin(np.arange(40) ** 2), 1).astype(np.float32)  # rounded, so that some are equal
WARPS = [
    (temperature, top_k, top_p)
    for temperature in (0.3, 1.0, 1.7)
    for top_k in (None, 1, 5, 12, 99)
    for top_p in (None, 0.0, 0.05, 0.6, 0.9, 1.0)
]


def shapes(n_vocab, n_ctx, n_embd, n_head, n_layer):
    """{name in the checkpoint: shape}, with OpenAI's leading axis of 1 on the weights, in OpenAI's order."""
    names = {"wte": (n_vocab, n_embd), "wpe": (n_ctx, n_embd), "ln_f/g": (n_embd,), "ln_f/b": (n_embd,)}
    for i in range(n_layer):
        for name, n_in, n_out in (
            ("attn/c_attn", n_embd, 3 * n_embd),
            ("attn/c_proj", n_embd, n_embd),
            ("mlp/c_fc", n_embd, 4 * n_embd),
            ("mlp/c_proj", 4 * n_embd, n_embd),
        ):
            names[f"h{i}/{name}/w"], names[f"h{i}/{name}/b"] = (1, n_in, n_out), (n_out,)
        for name in ("ln_1/g", "ln_1/b", "ln_2/g", "ln_2/b"):
            names[f"h{i}/{name}"] = (n_embd,)
    return {f"model/{name}": names[name] for name in sorted(names)}


def weights(hparams):
    """{name: float32 array} for each of shapes, by a formula without random numbers."""
    made = {}
    for i, (name, shape) in enumerate(shapes(**hparams).items()):
        wave = np.sin(np.arange(np.prod(shape), dtype=np.float64) * (1.7 + 0.31 * i)).reshape(shape)
        made[name] = (name.endswith("/g") + 0.3 * wave).astype(np.float32)
    return made


def inputs(hparams):
    return np.arange(hparams["n_ctx"]) * 17 % hparams["n_vocab"]


def hugging_face(hparams):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=hparams["n_vocab"],
            n_positions=hparams["n_ctx"],
            n_embd=hparams["n_embd"],
            n_head=hparams["n_head"],
            n_layer=hparams["n_layer"],
        )
    ).eval()
    state = {}
    for name, array in weights(hparams).items():
        name = name.removeprefix("model/").replace("/", ".")
        name = "h." + name[1:] if name[0] == "h" else name
        name = name + ".weight" if name in ("wte", "wpe") else name
        for ours, theirs in (".w", ".weight"), (".g", ".weight"), (".b", ".bias"):
            name = name[:-2] + theirs if name.endswith(ours) else name
        state["transformer." + name] = torch.from_numpy(array.squeeze(0) if array.ndim == 3 else array)
    state["lm_head.weight"] = state["transformer.wte.weight"]
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert all(name.endswith(("attn.bias", "masked_bias")) for name in missing), missing
    with torch.no_grad():
        return model(torch.from_numpy(inputs(hparams))[None]).logits[0].numpy()


def hugging_face_warp(temperature, top_k, top_p):
    import torch
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores = torch.from_numpy(SCORES.astype(np.float64))[None]
    scores = TemperatureLogitsWarper(temperature)(None, scores)
    scores = scores if top_k is None else TopKLogitsWarper(top_k)(None, scores)
    scores = scores if top_p is None else TopPLogitsWarper(top_p)(None, scores)
    return torch.softmax(scores, -1)[0].numpy()


if __name__ == "__main__":
    import transformers

    print("transformers", transformers.__version__)
    logits = {name: hugging_face(hparams) for name, hparams in CONFIGS.items()}
    np.savez_compressed(PATH, warps=np.array([hugging_face_warp(*warp) for warp in WARPS]), **logits)
