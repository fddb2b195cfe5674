"""beyond/quantize.py: its rounding, its product against NumPy's, and the file."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from unittest import mock

from conftest import ROOT, assert_error, command, in_process
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from beyond import preset, quantize
from beyond.fast import quantized_file
import gpt2
import utils

SHAPES = st.tuples(st.integers(1, 150), st.integers(1, 140))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([8, 4]), SHAPES, st.integers(0, 9), st.floats(-15, 15))
def test_the_error_is_at_most_half_a_step(bits, shape, seed, exponent):
    w = (10**exponent * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)
    w[:, 0] = 0
    found = quantize.dequantize(quantize.quantize(w, bits))
    assert found.dtype == np.float32 and found.shape == w.shape
    group = quantize.GROUP if bits == 4 else shape[0]
    for i in range(0, shape[0], group):
        step = np.abs(w[i : i + group]).max(axis=0) / (2 ** (bits - 1) - 1)
        assert (np.abs(found - w)[i : i + group] <= step * 0.50001).all()


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([8, 4]), SHAPES, st.integers(0, 9))
def test_multiples_of_the_scale_are_exact(bits, shape, seed):
    most, group = 2 ** (bits - 1) - 1, quantize.GROUP if bits == 4 else shape[0]
    w = np.random.default_rng(seed).integers(-most, most + 1, shape).astype(np.float32)
    w[::group] = most  # each group contains the largest number
    matrix = quantize.quantize(w / 4, bits)
    np.testing.assert_array_equal(quantize.dequantize(matrix), w / 4)
    ids = np.random.default_rng(seed).integers(0, shape[1], (2, 3))
    np.testing.assert_array_equal(np.take(matrix.T, ids, axis=0), np.take(w.T / 4, ids, axis=0))


@settings(max_examples=80, deadline=None)
@given(st.sampled_from([8, 4]), SHAPES, st.integers(1, 170))
def test_the_compiled_product_is_that_of_dequantize(bits, shape, n):
    """x is rounded to integers of 15 bits, in groups of 64: a large number does not spoil the other groups."""
    rng, group = np.random.default_rng(n), quantize.GROUP
    matrix = quantize.quantize(rng.standard_normal(shape).astype(np.float32), bits)
    w = quantize.dequantize(matrix).astype(np.float64)
    x = rng.standard_normal((n, shape[0])).astype(np.float32)
    x[:, ::group] *= 10.0 ** rng.integers(-6, 6, (n, len(range(0, shape[0], group))))
    found, exact = x @ matrix, x @ w
    assert found.dtype == np.float32 and found.shape == exact.shape
    rounding = np.zeros_like(exact)
    for i in range(0, shape[0], group):
        step = np.abs(x[:, i : i + group]).max(axis=1, keepdims=True) / (127 * 128)
        rounding += 0.501 * step * np.abs(w[i : i + group]).sum(axis=0)
    assert (np.abs(found - exact) <= rounding + 1e-6 * np.abs(x) @ np.abs(w)).all()
    for row, alone in zip(found, x):
        np.testing.assert_array_equal(alone @ matrix, row)


def test_a_product_of_wrong_sizes_is_an_error():
    matrix = quantize.quantize(np.ones((70, 5), np.float32), 8)
    for n_in in 6, 69, 128:
        with pytest.raises(ValueError, match=rf"{n_in} .*\(70, 5\)"):
            np.ones((2, n_in), np.float32) @ matrix


EXTREMES = """
import numpy as np
from beyond import quantize
for bits in 8, 4:
    most = 2 ** (bits - 1) - 1
    w = most * np.float32([[1, -1, (-1) ** i, i % 2] for i in range(6400)])
    w[0] = most
    for n in 1, 5:
        x = np.float32([[1, -1] * 3200, [1] * 6400, [-1] * 6400, [0] * 6400, [-1, 1] * 3200])[-n:]
        np.testing.assert_allclose(x @ quantize.quantize(w, bits), np.float64(x) @ w, rtol=1e-6, atol=0.02)
"""


@pytest.mark.parametrize("processor", [{}, {"NUMBA_CPU_NAME": "generic"}], ids=["this", "any"])
def test_the_largest_numbers_neither_overflow_nor_saturate(processor):
    """With the instructions of this processor, and with those that every processor has."""
    done = subprocess.run([sys.executable, "-c", EXTREMES], cwd=ROOT, env={**os.environ, **processor}, timeout=120)
    assert done.returncode == 0


@pytest.fixture
def models(tmp_path):
    shutil.copytree(
        ROOT / "models" / "shakespeare", tmp_path / "models" / "mine", ignore=shutil.ignore_patterns("model.int*")
    )
    return tmp_path / "models"


@pytest.mark.parametrize("bits", [8, 4])
def test_the_file_is_written_once_and_mapped(models, bits):
    _, hparams, params = utils.load_encoder_hparams_and_params("mine", str(models))
    expected, path = quantize.arrays_of(quantize.convert(params, bits)), models / "mine" / f"model.int{bits}"
    for _ in range(2):
        found = quantize.arrays_of(quantize.load("mine", str(models), bits)[2])
        assert found.keys() == expected.keys()
        for name, array in found.items():
            np.testing.assert_array_equal(array, expected[name])
            assert not array.flags.owndata and not array.flags.writeable
        written = path.stat().st_mtime_ns
    quantize.load("mine", str(models), bits)
    assert path.stat().st_mtime_ns == written and [*path.parent.glob("*.part*")] == []
    data, wpe = models / "mine" / utils.DATA, 1.5 * params["wpe"]  # now, as params are mapped from the file
    data.write_bytes(np.float32(1.5 * np.fromfile(data, np.float32)).tobytes())  # another checkpoint, as large
    now = quantize.load("mine", str(models), bits)[2]
    assert path.stat().st_mtime_ns != written
    np.testing.assert_array_equal(now["wpe"], wpe)


@pytest.mark.parametrize("bits", [8, 4])
def test_the_file_is_one_of_safetensors(models, bits):
    from safetensors import safe_open

    expected = quantize.arrays_of(quantize.load("mine", str(models), bits)[2])
    with safe_open(models / "mine" / f"model.int{bits}", "np") as file:
        assert file.metadata()["format"] == quantized_file.FORMAT and {*file.keys()} == expected.keys()
        for name, array in expected.items():
            assert file.get_tensor(name).dtype == array.dtype
            np.testing.assert_array_equal(file.get_tensor(name), array)


def run(models, *flags):
    return in_process(preset("complete", bits=8), "ROMEO:", "--model_size=mine", f"--models_dir={models}", *flags)


def test_the_command_and_its_errors(models, tmp_path):
    encoder, hparams, params = utils.load_encoder_hparams_and_params("mine", str(models))
    end, n_head = encoder.encoder["<|endoftext|>"], hparams["n_head"]
    expected = gpt2.generate(encoder.encode("ROMEO:"), quantize.convert(params, 4), n_head, 40, stop=end)
    own = tmp_path / "own"
    start = "-m", "beyond.quantize", "ROMEO:", "--model_size=mine", f"--models_dir={models}"
    done = command(*start, "--bits=4", f"--weights={own}", program=None, cwd=ROOT)
    assert done.stdout.decode() == encoder.decode(expected) + "\n" and own.exists()
    whole = own.read_bytes()
    before = b'{"format": "PicoGPT quantized 2", "bits": 4}'.ljust(2**18) + bytes(2**20)
    damaged = whole[:-100], whole + b"\0", whole[:-5000] + bytes(5000)
    others = whole[:1000], b"", b"[]", b"\xff" * 100, whole.replace(b"ized 3", b"ized 2", 1), before
    for contents, said in (damaged, "is damaged"), (others, "not a quantized model in the current format"):
        for content in contents:
            own.write_bytes(content)
            assert_error(run(models, "--bits=4", f"--weights={own}"), str(own), said, "remove it")
            assert own.read_bytes() == content
    assert_error(run(models, "--bits=5"), "bits=5 must be 8 or 4")
    assert_error(run(models, f"--weights={tmp_path}/none/x"), f"cannot write {tmp_path}/none/x", "--weights")


def test_a_file_of_other_shapes_is_refused(models):
    """Otherwise compiled code would read beyond the arrays. Each file is as write leaves it, of the right checkpoint."""
    path = models / "mine" / "model.int8"
    _, hparams, params = quantize.load("mine", str(models))
    arrays = quantize.arrays_of(params)
    layout = quantize.layout_of(utils.shapes_of(**{name: hparams[name] for name in utils.HPARAMS}), 8)
    source = quantized_file.source_of(str(models / "mine"), hparams, 8)
    wide, names = "h0/mlp/c_fc/w/packed", list(layout)
    kind, (n_blocks, n_groups, n_bytes) = layout[wide]
    shorter = {**layout, wide: (kind, (n_blocks, n_groups - 1, n_bytes))}
    others = {
        "shorter": (shorter, {**arrays, wide: arrays[wide][:, 1:]}),
        "reshaped": ({**layout, wide: (kind, (n_groups, n_blocks, n_bytes))}, arrays),
        "other type": ({**layout, wide: ("U8", layout[wide][1])}, {**arrays, wide: arrays[wide].view(np.uint8)}),
        "other order": ({name: layout[name] for name in [names[1], names[0], *names[2:]]}, arrays),
        "one less": ({name: layout[name] for name in names[:-1]}, arrays),
        "one more": ({**layout, "more": ("F32", (1,))}, {**arrays, "more": np.zeros(1, np.float32)}),
    }
    for name, (other, its_arrays) in others.items():
        quantized_file.write(path, its_arrays, other, source)
        with pytest.raises(ValueError, match="is damaged: .*remove it"):
            assert quantize.load("mine", str(models)) is None, name
    header = quantized_file.header_of(layout, source, "0" * 64)
    for content in header, header.replace(b'"F32"', b'"I32"'), header + bytes(64):  # and no arrays
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is damaged"):
            quantize.load("mine", str(models))
    for header in json.dumps({"__metadata__": [1]}), "[" * 10**6, '{"__metadata__": {"format": 3}}':
        path.write_bytes(len(header).to_bytes(8, "little") + header.encode())
        with pytest.raises(ValueError, match="current format"):
            quantize.load("mine", str(models))


def test_a_kill_while_it_is_written_leaves_no_file(models):
    slow = (  # to write the last bytes, those of the header
        "import time; from beyond import quantize; from beyond.fast import quantized_file as file; made = file.header_of;"
        "file.header_of = lambda *args: made(*args) if args[2] == '0' * 64 else time.sleep(60);"
        f"quantize.load('mine', {str(models)!r})"
    )
    folder = models / "mine"
    with subprocess.Popen([sys.executable, "-c", slow], cwd=ROOT) as process:
        deadline = time.monotonic() + 60
        while not [part for part in folder.glob("*part*") if part.stat().st_size > 2**18]:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not (folder / "model.int8").exists()
    quantize.load("mine", str(models))
    assert (folder / "model.int8").exists() and not [*folder.glob("*part*")]


def test_two_starts_at_once_write_one_file(models):
    """All of them print the same text, and the file is complete."""
    command = [sys.executable, "-m", "beyond.quantize", "ROMEO:", "--model_size=mine", f"--models_dir={models}"]
    started = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(3)]
    texts = {process.communicate(timeout=120)[0] for process in started}
    assert [process.returncode for process in started] == [0, 0, 0] and len(texts) == 1
    assert run(models).stdout in texts and not [*(models / "mine").glob("*part*")]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to(models):
    (models / "mine").chmod(0o500)
    try:
        assert_error(run(models), f"cannot write {models / 'mine' / 'model.int8'}", "name another file with --weights")
    finally:
        (models / "mine").chmod(0o700)


def test_a_full_disk_leaves_nothing(models, monkeypatch):
    monkeypatch.setattr(
        quantized_file.writing, "write_whole", mock.Mock(side_effect=OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError, match="cannot write .*model.int8: No space left on device; name another file"):
        quantize.load("mine", str(models))
