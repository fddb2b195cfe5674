import os
import shutil
import signal
import subprocess
import sys
import time
from unittest import mock

from conftest import ROOT, assert_error, command
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from beyond import quantize
import gpt2
import utils

SHAPES = st.tuples(st.integers(1, 150), st.integers(1, 140))


@settings(max_examples=80, deadline=None)
@given(st.sampled_from([8, 4]), SHAPES, st.integers(0, 9), st.floats(-15, 15))
def test_the_error_is_half_a_step_at_most(bits, shape, seed, exponent):
    w = (10**exponent * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)
    w[:, 0] = 0
    found = quantize.quantize(w, bits).T.take(np.arange(shape[1])).T
    group = quantize.GROUP if bits == 4 else shape[0]
    for i in range(0, shape[0], group):
        step = np.abs(w[i : i + group]).max(axis=0) / (2 ** (bits - 1) - 1)
        assert (np.abs(found - w)[i : i + group] <= step * 0.50001).all()


@settings(max_examples=80, deadline=None)
@given(st.sampled_from([8, 4]), SHAPES, st.integers(1, 170))
def test_multiples_of_the_scale_are_exact_and_so_is_their_product(bits, shape, n):
    """But for the rounding of x, whose step is that of its group: a large number spoils no other group."""
    rng, most, group = np.random.default_rng(n), 2 ** (bits - 1) - 1, quantize.GROUP
    w = rng.integers(-most, most + 1, shape).astype(np.float32)
    w[:: min(shape[0], group if bits == 4 else shape[0])] = most  # each group has the largest number
    matrix = quantize.quantize(w / 4, bits)
    np.testing.assert_array_equal(matrix.T.take([*range(shape[1])]).T, w / 4)
    x = rng.standard_normal((n, shape[0])).astype(np.float32)
    x[:, ::group] *= 10.0 ** rng.integers(-6, 6, (n, len(range(0, shape[0], group))))
    found, exact = x @ matrix, x.astype(np.float64) @ (w / 4)
    assert found.dtype == np.float32 and found.shape == exact.shape
    starts = range(0, shape[0], group)
    steps = [np.abs(x[:, i : i + group]).max(axis=1, keepdims=True) / (127 * 128) for i in starts]
    off = sum(0.501 * step * np.abs(w[i : i + group] / 4).sum(axis=0) for i, step in zip(starts, steps))
    assert (np.abs(found - exact) <= off + 1e-5 * np.abs(x) @ np.abs(w / 4)).all()
    for row, alone in zip(found, x):
        np.testing.assert_array_equal(alone @ matrix, row)


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
    """With the products of this processor, and with those of one that cannot multiply bytes."""
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
    expected, path = dict(quantize.flat(quantize.convert(params, bits))), models / "mine" / f"model.int{bits}"
    for _ in range(2):
        found = quantize.load("mine", str(models), bits)[2]
        for name, array in quantize.flat(found):
            np.testing.assert_array_equal(array, expected[name])
            assert not array.flags.owndata and not array.flags.writeable
        assert len(dict(quantize.flat(found))) == len(expected)
        written = path.stat().st_mtime_ns
    quantize.load("mine", str(models), bits)
    assert path.stat().st_mtime_ns == written and [*path.parent.glob("*.part*")] == []
    data, wpe = models / "mine" / utils.DATA, 1.5 * params["wpe"]  # now, as params are mapped from the file
    data.write_bytes(np.float32(1.5 * np.fromfile(data, np.float32)).tobytes())  # another checkpoint, as large
    now = quantize.load("mine", str(models), bits)[2]
    assert path.stat().st_mtime_ns != written
    np.testing.assert_array_equal(now["wpe"], wpe)


def run(models, *args):
    return command(
        "-m", "beyond.quantize", "ROMEO:", "--model_size=mine", f"--models_dir={models}", *args, program=None, cwd=ROOT
    )


def test_the_command_and_its_errors(models, tmp_path):
    encoder, hparams, params = utils.load_encoder_hparams_and_params("mine", str(models))
    end, n_head = encoder.encoder["<|endoftext|>"], hparams["n_head"]
    expected = gpt2.generate(encoder.encode("ROMEO:"), quantize.convert(params, 4), n_head, 40, stop=end)
    own = tmp_path / "own"
    done = run(models, "--bits=4", f"--weights={own}")
    assert done.stdout.decode() == encoder.decode(expected) + "\n" and own.exists()
    whole = own.read_bytes()
    for content in (
        whole[:-100],
        whole[:1000],
        b"",
        b"[]",
        whole[:-5000] + bytes(5000),
        whole.replace(b"ized 2", b"ized 1", 1),
    ):
        own.write_bytes(content)
        assert_error(run(models, "--bits=4", f"--weights={own}"), str(own), "remove it")
        assert own.read_bytes() == content
    assert_error(run(models, "--bits=5"), "bits=5 must be 8 or 4")
    assert_error(run(models, f"--weights={tmp_path}/none/x"), f"cannot write {tmp_path}/none/x", "weights")


def test_a_kill_while_it_is_written_leaves_nothing_taken_for_whole(models):
    slow = (
        "import time, numpy; from beyond import quantize; made = numpy.ascontiguousarray;"
        "quantize.np.ascontiguousarray = lambda *a: (time.sleep(0.1), made(*a))[1];"
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
    """Each gives the same text, and what is left is whole."""
    command = [sys.executable, "-m", "beyond.quantize", "ROMEO:", "--model_size=mine", f"--models_dir={models}"]
    started = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(3)]
    texts = {process.communicate(timeout=120)[0] for process in started}
    assert [process.returncode for process in started] == [0, 0, 0] and len(texts) == 1
    assert run(models).stdout in texts and not [*(models / "mine").glob("*part*")]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to(models):
    (models / "mine").chmod(0o500)
    try:
        assert_error(run(models), f"cannot write {models / 'mine' / 'model.int8'}", "name another file with weights")
    finally:
        (models / "mine").chmod(0o700)


def test_a_full_disk_leaves_nothing(models, monkeypatch):
    monkeypatch.setattr(quantize.files, "write_whole", mock.Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="cannot write .*model.int8: No space left on device; name another file"):
        quantize.load("mine", str(models))
