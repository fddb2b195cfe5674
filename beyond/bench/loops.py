"""Training loops, measured on the same shape and sequences: PicoGPT's, and one like nanoGPT's in PyTorch.

    python -m beyond.benchmark --train

compares them, each in a process of its own, in turns. A peer that is not installed is left out. The PyTorch model is
GPT-2 made of torch.nn's layers with its fused attention, trained by AdamW, as in https://github.com/karpathy/nanoGPT.
On an idle machine (2 x AMD EPYC, PyTorch 2.13, JAX 0.10.2) PicoGPT reached 7,768 tokens/s with AdamW and 6,100 with
Muon, and PyTorch 7,188, with XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= in the environment. With that
version's default flags, PicoGPT reached 5,035 and 4,726, and PyTorch 6,942.
"""

import functools
import itertools
import json
import statistics

import numpy as np

from beyond.bench.engines import medians, run_alone
from beyond.formats import checkpoint
from beyond.learn import learner, optimizers
import cli

SHAPE = {"n_vocab": 1024, "n_ctx": 256, "n_embd": 192, "n_head": 6, "n_layer": 6}
BATCH, STEPS, TURNS = 8, 5, 3


def batch(i):  # -> ids [BATCH, n_ctx + 1] of step i
    return np.random.default_rng(i).integers(SHAPE["n_vocab"], size=(BATCH, SHAPE["n_ctx"] + 1))


def picogpt(muon=False):
    """A function that takes step i and returns the loss before it."""
    import jax

    from beyond.devices import sharding
    from beyond.learn import loop

    mesh, n_head = sharding.all_devices(), SHAPE["n_head"]
    make = functools.partial(optimizers.muon_and_adamw, weight_decay=0.1) if muon else optimizers.adamw
    optimizer = make(1000, learning_rate=1e-3)
    params = sharding.split(sharding.by_heads(checkpoint.initial_params(**SHAPE), n_head), mesh)
    update = loop.updater(lambda params, ids, key: learner.lm_loss(params, ids, n_head), optimizer, 0, mesh)
    tree = jax.jit(functools.partial(loop.begin, optimizer=optimizer, averaging=False, mesh=mesh))(params)

    def step(i):
        nonlocal tree
        tree, loss = update(tree, loop.in_parts(batch(i), mesh, None), i)
        return float(loss)

    return step


def pytorch(compiled=False):
    """The same in PyTorch, with or without torch.compile."""
    import torch
    from torch import nn

    n_embd, n_head = SHAPE["n_embd"], SHAPE["n_head"]

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)
            self.c_attn, self.c_proj = nn.Linear(n_embd, 3 * n_embd), nn.Linear(n_embd, n_embd)
            c_fc, c_proj = nn.Linear(n_embd, 4 * n_embd), nn.Linear(4 * n_embd, n_embd)
            self.mlp = nn.Sequential(c_fc, nn.GELU(approximate="tanh"), c_proj)

        def forward(self, x):  # [n_batch, n_seq, n_embd] -> same
            heads = self.c_attn(self.ln_1(x)).unflatten(-1, (3, n_head, -1)).permute(2, 0, 3, 1, 4)
            attended = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
            x = x + self.c_proj(attended.transpose(1, 2).flatten(2))
            return x + self.mlp(self.ln_2(x))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte, self.wpe = nn.Embedding(SHAPE["n_vocab"], n_embd), nn.Embedding(SHAPE["n_ctx"], n_embd)
            self.blocks = nn.Sequential(*(Block() for _ in range(SHAPE["n_layer"])))
            self.ln_f = nn.LayerNorm(n_embd)
            for weights in self.wte.weight, self.wpe.weight:
                nn.init.normal_(weights, std=0.02)

        def forward(self, ids):  # [n_batch, n_seq + 1] -> loss
            x = self.wte(ids[:, :-1]) + self.wpe(torch.arange(ids.shape[1] - 1))
            logits = self.ln_f(self.blocks(x)) @ self.wte.weight.T
            return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, (0.9, 0.99), weight_decay=0.01, fused=True)
    loss_of = torch.compile(model) if compiled else model

    def step(i):
        loss = loss_of(torch.from_numpy(batch(i)))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


LOOPS = {
    "PicoGPT, AdamW": picogpt,
    "PicoGPT, Muon": functools.partial(picogpt, muon=True),
    "PyTorch, AdamW": pytorch,
    "PyTorch compiled, AdamW": functools.partial(pytorch, compiled=True),
}


def compare():
    """A table: tokens per second of each loop, and its speed relative to the first loop's in the same turn."""
    turns = [{name: run_alone("beyond.bench.loops", name) for name in LOOPS} for _ in range(TURNS)]
    first = next(iter(LOOPS))
    lines = ["| training loop | tokens per second | ratio | loss of the first step |", "|---|---|---|---|"]
    for name in LOOPS:
        found = [(turn[name], turn[first]["seconds"]) for turn in turns if isinstance(turn[name], dict)]
        if not found:
            lines.append(f"| {name} | {turns[0][name]} | | |")
            continue
        seconds = statistics.median(one["seconds"] for one, _ in found)
        ratio = statistics.median(ours / one["seconds"] for one, ours in found)
        lines.append(f"| {name} | {BATCH * SHAPE['n_ctx'] / seconds:,.0f} | {ratio:.2f} | {found[0][0]['loss']:.2f} |")
    return "\n".join(lines)


def main(name):
    """Measures a training loop and prints JSON: the loss before the first step, and the median seconds of later ones.

    Args:
        name: A key of LOOPS, such as "PicoGPT, AdamW".
    """
    if name not in LOOPS:
        raise ValueError(f"name={name!r} must be one of {'; '.join(LOOPS)}")
    step, numbers = LOOPS[name](), itertools.count()
    loss = step(next(numbers))  # compiles
    seconds = medians({name: lambda: step(next(numbers))}, STEPS)[name]
    return json.dumps({"loss": loss, "seconds": seconds})


if __name__ == "__main__":
    cli.run(main)
