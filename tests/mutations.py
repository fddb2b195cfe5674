"""Mutation testing: does a test notice when the code is wrong? By hand, as all of it takes half an hour:

    python tests/mutations.py            # all
    python tests/mutations.py encoder    # those with this word in their file, text or tests

Each mutation is made in a copy of the repository, where the tests named beside it must pass before and fail after it.
"""

from pathlib import Path
import shutil
import subprocess
import sys
import tempfile

ROOT = Path(__file__).resolve().parent.parent
MUTATIONS = [  # (file, old text, new text, the file and -k of the tests that notice)
    # the model
    ("gpt2.py", "0.044715", "0.0447", "gpt2", "gelu"),
    ("gpt2.py", "np.exp(x - x.max(axis=-1, keepdims=True))", "np.exp(x)", "gpt2", "test_softmax"),
    ("gpt2.py", "eps=1e-5", "eps=1e-6", "gpt2", "layer_norm"),
    ("gpt2.py", "/ q.shape[-1] ** 0.5", "/ q.shape[-1]", "gpt2", "loop_over_positions"),
    ("gpt2.py", "* -1e10", "* -1e3", "gpt2", "the_mask_holds"),
    ("gpt2_pico.py", "-1e10", "-1e3", "gpt2", "the_mask_holds"),
    ("gpt2.py", "n_seen, past + i, dtype", "n_seen, i, dtype", "gpt2", "in_chunks"),
    ("gpt2.py", "n_seen = past + i + chunk.shape[1]", "n_seen = past + i + 1", "gpt2", "in_chunks"),
    ("gpt2.py", "wpe[past : past + len(inputs)]", "wpe[: len(inputs)]", "gpt2", "in_chunks"),
    ("gpt2.py", "return x + ffn(", "return ffn(", "gpt2", "adds_to_its_input"),
    # sampling
    ("gpt2.py", "logits.astype(np.float64)", "logits", "gpt2", "sampling_equals"),
    ("gpt2.py", "before >= top_p", "before > top_p", "gpt2", "smallest_set"),
    ("gpt2.py", ', kind="stable")', ")", "gpt2", "smallest_set"),
    ("gpt2.py", "-min(top_k, len(logits))", "-top_k", "gpt2", "sampling_equals"),
    ("gpt2.py", "max(temperature, 1e-200)", "temperature", "faults", "extreme_temperatures"),
    ("gpt2.py", "np.random.default_rng(seed)", "np.random.default_rng(seed or None)", "gpt2", "seed_decides"),
    ("gpt2.py", "if np.isnan(logits).any():", "if False:", "faults", "not_numbers"),
    # tokens
    ("encoder.py", r"| [ ]?[\p{N}]+ ", r"| [\p{N}]+ ", "encoder", "tiktoken"),
    ("encoder.py", r"| \s+(?!\S)  ", r"| \s+  ", "encoder", "tiktoken"),
    ("encoder.py", "(?:[sdmt]|ll|ve|re)", "(?:[sdmt]|ll|ve)", "encoder", "contractions"),
    ("encoder.py", '"A-Za-z").replace(r"\\p{N}", "0-9")', '"A-Za-z").replace(r"\\p{N}", "0-8")', "encoder", "tiktoken"),
    ("encoder.py", "if end[i] != j or end[j] != k:", "if end[j] != k:", "encoder", "compete"),
    ("encoder.py", "if i > 0 and (rank", "if i > 1 and (rank", "encoder", "compete"),
    ("encoder.py", '.decode("utf-8", self.errors)', '.decode("utf-8", "replace")', "encoder", "bytes_that"),
    ("encoder.py", '"utf-16", "replace")', '"utf-16", "ignore")', "encoder", "surrogates"),
    ("encoder.py", "list(bpe_merges)", "bpe_merges", "faults", "encoder_in_many_threads"),
    ("encoder.py", 'if merges[0].startswith("#version"):', "if True:", "encoder", "version_line"),
    ("encoder.py", 'if merges[-1:] != [""]:', "if False:", "faults", "invalid_vocabularies"),
    # a download
    ("utils.py", "timeout=TIMEOUT", "timeout=None", "download", "stalls"),
    ("utils.py", "min(int(after), 60)", "int(after)", "download", "temporary_errors"),
    ("utils.py", "tries = 1 if file.tell() > longest else tries + 1", "tries += 1", "download", "dropped"),
    ("utils.py", 'if status == 416 and content_range == f"bytes */{have}":', "if status == 416:", "download", "earlier"),
    ("utils.py", "if total is not None and file.tell() != total:", "if False:", "download", "ends_early"),
    ("utils.py", "if sha256.hexdigest() != digest:", "if False:", "download", "not_the_models"),
    ("utils.py", "if error.errno is None:", "if False:", "download", "certificates"),
    # a checkpoint
    ("utils.py", "if found not in (shape, [1, *shape]):", 'if found == "missing" or sum(found) - sum(shape) not in (0, 1):',
     "load", "names_types"),
    ("utils.py", "if dtype not in tf_checkpoint.DTYPES:", "if False:", "load", "names_types"),
    ("tf_checkpoint.py", "<< 16", "<< 15", "load", "types_and_data_files"),
    ("tf_checkpoint.py", 'np.uint8, "c"', 'np.uint8, "r+"', "load", "file_alone"),
    ("utils.py", '"wte": params["wte"][:n]', '"wte": params["wte"]', "faults", "never_chosen"),
    ("beyond/formats/checkpoint.py", "0.02 / math.sqrt(2 * n_layer)", "0.02 / math.sqrt(n_layer)", "train", "are_gpt2s"),
    # the command line, and files
    ("cli.py", "except MemoryError:", "except ZeroDivisionError:", "faults", "too_little_memory"),
    ("cli.py", ", (bool, np.bool_))", ", ())", "gpt2", "filled_exactly"),
    ("cli.py", '.removesuffix("\\n").removesuffix("\\r")', '.removesuffix("\\n")', "faults", "byte_order_marks"),
    ("cli.py", "os.open(os.devnull, os.O_RDWR)", "pass", "faults", "unusual_streams"),
    ("cli.py", "path = os.path.expanduser(value)", "path = value", "faults", "tilde"),
    ("cli.py", "if np.isnan(array).any():", "if False:", "faults", "not_numbers"),
    ("cli.py", "if is_switch(parameters[name]) and not", "if False and not", "cli", "switch_takes_no_text"),
    ("cli.py", "return parameter.annotation is str", "return True", "cli", "decide_what_stays_text"),
    ("beyond/files/writing.py", "os.path.samefile(path, other)", "False", "faults", "their_own_input"),
    ("beyond/files/runs.py", "if differing := [", "if differing := False and [", "faults", "other_settings_are"),
    # the chapters
    ("beyond/attention.py", '.replace("<", "\\\\u003c")', "", "attention", "ends_the_script"),
    ("beyond/batch.py", "seed + number", "seed", "batch", "command"),
    ("beyond/classify.py", "[-n_ctx:]", "[:n_ctx]", "classify", "end_counts"),
    ("beyond/classify.py", "[len(labels) / len(classes) / count[label] for", "[1 for", "classify", "weigh_the_same"),
    ("beyond/classify.py", "if len(row) > len(header):", "if False:", "faults", "own_column"),
    ("beyond/evaluate.py", "loss < 700", "loss < 7000", "evaluate", "too_large_for_a_float"),
    ("beyond/evaluate.py", "max(1, hparams", "max(0, hparams", "faults", "context_of_one_token"),
    ("beyond/finetune.py", "learning_rate or RATES[method]", "RATES[method]", "finetune", "was_given"),
    ("beyond/learn/optimizers.py", "lambda x: x.ndim > 1", "lambda x: True", "train", "decay"),
    ("beyond/learn/optimizers.py", "weight_decay=weight_decay,", "", "train", "decay"),
    ("beyond/learn/optimizers.py", "schedule(learning_rate / (n + 1), ", "schedule(0, ", "train", "rises_at_once"),
    ("beyond/learn/optimizers.py", "steps, 0.02 * learning_rate)", "steps, learning_rate)", "train", "rises_at_once"),
    ("beyond/learn/optimizers.py", "optax.clip_by_global_norm(1),\n        optax", "optax", "train", "longer_than_1"),
    ("beyond/learn/optimizers.py", "optax.clip_by_global_norm(1),\n        muon", "muon", "train", "longer_than_1"),
    ("beyond/learn/optimizers.py", "MuonDimensionNumbers(0, tuple(range(1, x.ndim))) if is_matrix else None", "None",
     "train", "all_directions"),
    ("beyond/gpu.py", "jnp.where(jnp.arange(logits.shape[1]) < n_vocab, logits, -jnp.inf)", "logits", "gpu", "eight_devices"),
    ("beyond/lookahead.py", "if luck >= 2", "if luck >= 0", "lookahead", "at_worst"),
    ("beyond/tokenizer.py", "-counts[pair], ids[pair[0]], ids[pair[1]], pair", "-counts[pair], pair",
     "tokenizer", "equally_frequent"),
    ("beyond/learn/sequences.py", "return found[: n_ctx + 1] if len(found) > n_ctx else piece",
     "return found[: n_ctx + 1]", "train", "sequences_are_pieces"),
]  # fmt: skip


def passes(folder, file, words):
    """Whether the tests pass there. Exits if none of them could be run."""
    args = [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider", f"tests/test_{file}.py", "-k", words]
    done = subprocess.run(args, cwd=folder, capture_output=True, text=True)
    if done.returncode > 1:
        sys.exit(f"tests/test_{file}.py -k {words} could not be run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 0


def main(word=""):
    chosen, survived, checked = [one for one in MUTATIONS if word in " ".join(one)], [], set()
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(ROOT, Path(folder, "copy"), ignore=shutil.ignore_patterns(".*", "*M", "__pycache__"))
        for file, old, new, *tests in chosen:
            path = copy / file
            source = path.read_text("utf-8")
            if source.count(old) != 1:
                sys.exit(f"{file} contains {old!r} {source.count(old)} times, not once: update this mutation")
            if tuple(tests) not in checked and not passes(copy, *tests):
                sys.exit(f"tests/test_{tests[0]}.py -k {tests[1]} fails without any mutation")
            checked.add(tuple(tests))
            path.write_text(source.replace(old, new), "utf-8")
            verdict = "survived" if passes(copy, *tests) else "caught"
            path.write_text(source, "utf-8")
            survived += [file] * (verdict == "survived")
            print(f"{verdict}  {file}: {old!r} -> {new!r}", flush=True)
    sys.exit(f"{len(survived)} of {len(chosen)} survived" if survived or not chosen else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
