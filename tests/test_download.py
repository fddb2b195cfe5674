"""Downloads from a server on this machine that drops, corrupts, stalls, lies and refuses."""

import hashlib
import http.server
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types

from conftest import ROOT, TINY, write_model
import pytest

import utils


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """{filename: bytes} of a whole model, small enough to be fetched often."""
    folder = tmp_path_factory.mktemp("release") / "124M"
    write_model(folder, TINY)
    return {name: (folder / name).read_bytes() for name in utils.FILES}


class Server(http.server.ThreadingHTTPServer):
    """Serves files under /124M/ and the other models' names, unless behave(handler, name, body) answers and returns True."""

    daemon_threads = True

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.log, self.behave = files, [], lambda handler, name, body: False
        threading.Thread(target=self.serve_forever, args=[0.01], daemon=True).start()

    def names(self):
        return [name for name, _ in self.log]


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def start(self, status, length=None, **headers):
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def do_GET(self):
        _, model_size, name = self.path.split("/")
        self.server.log.append((name, self.headers.get("Range")))
        body = self.server.files.get(name) if model_size in utils.SHA256 else None
        if body is None:
            return self.start(404, 0)
        try:
            if not self.server.behave(self, name, body):
                self.whole_or_range(body)
        except ConnectionError:
            pass

    def whole_or_range(self, body, up_to=None, pause=0):
        first = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1]) if "Range" in self.headers else 0
        if first >= len(body) and "Range" in self.headers:
            return self.start(416, 0, Content_Range=f"bytes */{len(body)}")
        headers = {"Content_Range": f"bytes {first}-{len(body) - 1}/{len(body)}"} if first else {}
        self.start(206 if first else 200, len(body) - first, **headers)
        for i in range(first, len(body[:up_to]), 100_000):
            self.wfile.write(body[i:up_to][:100_000])
            time.sleep(pause)


@pytest.fixture
def server(files, monkeypatch):
    server = Server(dict(files))
    monkeypatch.setenv("GPT2_MODELS_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setitem(utils.SHA256, "124M", {name: hashlib.sha256(body).hexdigest() for name, body in files.items()})
    monkeypatch.setattr(utils, "time", types.SimpleNamespace(sleep=lambda seconds: slept.append(seconds)))
    slept = server.slept = []
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def fetch(server, tmp_path):
    folder = tmp_path / "models" / "124M"

    def fetch():
        utils.download_gpt2_files("124M", str(folder))
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    fetch.folder = folder
    return fetch


def test_seven_files_and_nothing_else(fetch, server, files):
    assert fetch() == files and server.names() == utils.FILES
    assert fetch() == files and server.names() == utils.FILES  # a second time asks for nothing


def test_a_model_is_downloaded_when_it_is_first_loaded(fetch, server, files):
    load = lambda: utils.load_encoder_hparams_and_params("124M", str(fetch.folder.parent))
    assert load()[1] == TINY and load()[1] == TINY and server.names() == utils.FILES


@pytest.mark.parametrize("name", ["encoder.json", "hparams.json", "vocab.bpe", utils.DATA, "model.ckpt.index"])
@pytest.mark.parametrize("cut", [1, 0.5, None])
def test_a_file_that_another_tool_left_half_done_is_noticed_at_load(fetch, server, files, name, cut):
    fetch()
    path = fetch.folder / name
    if cut is None:
        path.unlink()
    else:
        os.truncate(path, len(files[name]) - 1 if cut == 1 else int(cut * len(files[name])))
    server.log.clear()
    assert utils.load_encoder_hparams_and_params("124M", str(fetch.folder.parent))[1] == TINY
    if path.read_bytes() != files[name]:  # a last byte without meaning: the end of the JSON text or of the index
        assert cut == 1 and server.log == [] and name in ("hparams.json", "encoder.json", "model.ckpt.index")
    else:
        assert server.names() == [name]


def test_a_wrong_file_in_place_is_replaced(fetch, server, files):
    fetch()
    (fetch.folder / utils.DATA).write_bytes(files[utils.DATA][:-4] + b"1234")
    server.log.clear()
    assert fetch() == files and server.names() == [utils.DATA]


def test_a_dropped_connection_is_resumed(fetch, server, files):
    """Dropped again and again, each time after some progress, which is not a reason to give up."""
    step = len(files[utils.DATA]) // 12 + 1

    def behave(handler, name, body):
        if name == utils.DATA:
            first = int((handler.headers["Range"] or "bytes=0-")[6:-1])
            handler.whole_or_range(body, first + step)
            handler.wfile.flush()
            handler.connection.close()
            return True

    server.behave = behave
    assert fetch() == files
    asked = [int((wanted or "bytes=0-")[6:-1]) for name, wanted in server.log if name == utils.DATA]
    assert (
        asked == sorted(set(asked)) and len(asked) > 2 * utils.TRIES
    )  # from where it broke off, not from the beginning


def test_a_connection_that_ends_early_without_an_error(tmp_path, monkeypatch):
    """As with urllib3 1, which does not compare the number of bytes received with the number announced."""
    import contextlib

    import requests
    from tqdm import tqdm

    short = types.SimpleNamespace(status_code=200, headers={"Content-Length": "10"}, iter_content=lambda n: [b"12345"])
    monkeypatch.setattr(requests, "get", lambda *args, **kwargs: contextlib.nullcontext(short))
    with open(tmp_path / "x.part", "ab", buffering=0) as file:
        with pytest.raises(requests.ConnectionError, match="got 5 of 10 bytes"):
            utils._fetch_rest("http://x/y", file, tqdm(disable=True))


def test_a_server_without_range_starts_over(fetch, server, files):
    def behave(handler, name, body):
        if name == utils.DATA:
            handler.start(200, len(body))
            handler.wfile.write(body if server.names().count(name) == 3 else body[:100_000])
            handler.wfile.flush()
            handler.connection.close()
            return True

    server.behave = behave
    assert fetch() == files and server.names().count(utils.DATA) == 3


def test_a_server_that_always_drops_at_the_same_byte_is_given_up(fetch, server):
    def behave(handler, name, body):
        handler.start(200, len(body))
        handler.wfile.write(body[:10])
        handler.wfile.flush()
        handler.connection.close()
        return True

    server.behave = behave
    with pytest.raises(OSError, match="/124M/checkpoint: .*; check the network and GPT2_MODELS_URL"):
        fetch()
    assert len(server.log) in (utils.TRIES, utils.TRIES + 1) and not (fetch.folder / "checkpoint").exists()


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_temporary_errors(fetch, server, files, status):
    def behave(handler, name, body):
        if server.names().count(name) <= 2 and name == "vocab.bpe":
            handler.start(status, 0, Retry_After="7" if server.names().count(name) == 1 else "9999")
            return True

    server.behave = behave
    assert fetch() == files and server.slept == [7, 60]


def test_an_error_that_persists(fetch, server):
    server.behave = lambda handler, name, body: handler.start(503, 0) or True
    with pytest.raises(OSError, match=r"/124M/checkpoint: HTTP 503 .*; check the network"):
        fetch()
    assert server.slept == [0.5, 1, 2, 4] and list(fetch.folder.glob("*")) == [fetch.folder / "checkpoint.part"]


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_refusal_is_final(fetch, server, status):
    server.behave = lambda handler, name, body: handler.start(status, 0) or True
    with pytest.raises(OSError, match=f"/124M/checkpoint: HTTP {status}"):
        fetch()
    assert len(server.log) == 1


@pytest.mark.parametrize("lie", ["corrupt", "page", "longer", "shorter", "gzip"])
def test_bytes_that_are_not_the_models_are_refused_and_removed(fetch, server, files, lie):
    def behave(handler, name, body):
        if name == "encoder.json":
            other = {
                "corrupt": body[:5000] + b"?" + body[5001:],
                "page": b"<html>Log in to the network</html>",
                "longer": body + b"\n",
                "shorter": body[:-1],
                "gzip": body,
            }[lie]
            handler.start(200, len(other), **({"Content_Encoding": "gzip"} if lie == "gzip" else {}))
            handler.wfile.write(other)
            return True

    server.behave = behave
    with pytest.raises(
        OSError,
        match="cannot fetch" if lie == "gzip" else "encoder.json: it has the SHA-256 .* instead of .*, and was deleted",
    ):
        fetch()
    assert not (fetch.folder / "encoder.json").exists()
    if lie != "gzip":
        assert sorted(path.name for path in fetch.folder.iterdir()) == ["checkpoint"]
    server.behave = lambda handler, name, body: False
    assert fetch() == files


@pytest.mark.parametrize("content_range", ["bytes 0-9/10", "nonsense", ""])
def test_an_answer_that_is_not_the_range_asked_for(fetch, server, files, content_range):
    fetch.folder.mkdir(parents=True)
    (fetch.folder / (utils.DATA + ".part")).write_bytes(files[utils.DATA][:1000])

    def behave(handler, name, body):
        if "Range" in handler.headers:
            handler.start(206, len(body), Content_Range=content_range)
            handler.wfile.write(body)
            return True

    server.behave = behave
    assert fetch() == files


@pytest.mark.parametrize("n", [1000, "all", "more"])
def test_the_part_of_an_earlier_start_is_resumed(fetch, server, files, n):
    body = files[utils.DATA]
    fetch.folder.mkdir(parents=True)
    (fetch.folder / (utils.DATA + ".part")).write_bytes({1000: body[:1000], "all": body, "more": body + b"xx"}[n])
    assert fetch() == files


def test_the_part_of_another_file_is_noticed(fetch, server, files):
    fetch.folder.mkdir(parents=True)
    (fetch.folder / (utils.DATA + ".part")).write_bytes(b"x" * 1000)
    with pytest.raises(OSError, match="SHA-256"):
        fetch()
    assert fetch() == files


def test_a_server_that_stalls(fetch, server, files, monkeypatch):
    monkeypatch.setattr(utils, "TIMEOUT", (1, 0.3))

    def behave(handler, name, body):
        if name == utils.DATA and server.names().count(name) == 1:
            handler.start(200, len(body))
            handler.wfile.write(body[:1000])
            handler.wfile.flush()
            asked_again.wait(10)
            waited.append(asked_again.is_set())
            return True
        if name == utils.DATA:
            asked_again.set()

    asked_again, waited = threading.Event(), []
    server.behave = behave
    assert fetch() == files and waited == [True]  # the client gave up, not the server


def test_no_network(fetch, server, monkeypatch):
    monkeypatch.setenv("GPT2_MODELS_URL", "http://127.0.0.1:9")
    with pytest.raises(
        OSError,
        match="cannot fetch http://127.0.0.1:9/124M/checkpoint: Connection refused; check the network and GPT2_MODELS_URL, or use --model_size=shakespeare",
    ):
        fetch()


@pytest.mark.parametrize("url", ["nonsense", "ftp://x", "http://"])
def test_an_address_that_is_not_one(fetch, monkeypatch, url):
    monkeypatch.setenv("GPT2_MODELS_URL", url)
    with pytest.raises(OSError, match="cannot fetch .*; check .*GPT2_MODELS_URL"):
        fetch()


def test_certificates_that_do_not_exist(fetch, monkeypatch):
    monkeypatch.setenv("GPT2_MODELS_URL", "https://127.0.0.1:9")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/file")
    with pytest.raises(OSError, match="cannot fetch .*/no/such/file; check REQUESTS_CA_BUNDLE"):
        fetch()


def test_the_sizes_of_the_models_without_digests(fetch, server, tmp_path, monkeypatch):
    folder, body = tmp_path / "774M", b"x" * 1000
    monkeypatch.setattr(utils, "DATA_BYTES", {"774M": 1000})
    server.files = {name: body for name in utils.FILES}
    utils.download_gpt2_files("774M", str(folder))
    server.files[utils.DATA] = body[:-1]
    (folder / utils.DATA).write_bytes(body[:-1])
    with pytest.raises(OSError, match="it has 999 bytes instead of 1,000, and was deleted"):
        utils.download_gpt2_files("774M", str(folder))
    parameters = lambda n_embd, n_layer: (50257 + 1024 + 2) * n_embd + n_layer * (12 * n_embd**2 + 13 * n_embd)
    monkeypatch.undo()
    assert utils.DATA_BYTES == {"774M": 4 * parameters(1280, 36), "1558M": 4 * parameters(1600, 48)}


PROCESS = textwrap.dedent("""
    import sys, utils
    exec(sys.stdin.readline())  # the digests
    utils.download_gpt2_files("124M", sys.argv[1])
""")


def start(folder, files, **kwargs):
    digests = {name: hashlib.sha256(body).hexdigest() for name, body in files.items()}
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(folder)], cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs
    )
    process.stdin.write(f"utils.SHA256['124M'] = {digests!r}\n".encode())
    process.stdin.close()
    return process


def slowly(handler, name, body):
    handler.whole_or_range(body, pause=0.01)
    return True


def test_killed_at_any_moment(fetch, server, files):
    """Kills the process in the middle of each file in turn; each start resumes what the one before left."""
    for stalled in utils.FILES:
        reached, killed = threading.Event(), threading.Event()

        def behave(handler, name, body):
            if name == stalled and not killed.is_set():
                handler.whole_or_range(body, len(body) // 2)
                handler.wfile.flush()
                reached.set()
                return killed.wait(60)

        server.behave = behave
        process = start(fetch.folder, files)
        assert reached.wait(60)
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed.set()
        assert (fetch.folder / f"{stalled}.part").exists() and not (fetch.folder / stalled).exists()
        for path in fetch.folder.iterdir():
            assert path.name.endswith(".part") or path.read_bytes() == files[path.name]
    assert fetch() == files


def test_two_processes_at_once(fetch, server, files):
    server.behave = slowly
    processes = [start(fetch.folder, files) for _ in range(3)]
    said = [process.stderr.read() for process in processes]
    assert [process.wait() for process in processes] == [0, 0, 0], said
    assert fetch() == files and sorted(server.names()) == sorted(utils.FILES)  # each file was fetched once


HOLDER = "import sys, time, utils\nwith utils.locked(sys.argv[1]):\n    print('locked', flush=True)\n    time.sleep(60)"


@pytest.fixture
def holder(tmp_path):
    """(path, a process that holds its lock)."""
    path = str(tmp_path / "new")
    process = subprocess.Popen([sys.executable, "-c", HOLDER, path], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"locked\n"
    yield path, process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_lock_is_deleted_whatever_ends_its_block(tmp_path):
    with utils.locked(tmp_path / "new"):
        assert [path.name for path in tmp_path.iterdir()] == [".new.lock"]
    with pytest.raises(KeyError), utils.locked(tmp_path / "new"):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_lock_that_is_held(holder):
    path, _ = holder
    with pytest.raises(ValueError, match="another process is writing to .*/new: wait for it, or choose another output"):
        with utils.locked(path, wait=False):
            pass
    os.symlink(path, path + " link")  # the same file by another name
    with pytest.raises(ValueError, match="another process"), utils.locked(path + " link", wait=False):
        pass


def test_a_lock_is_waited_for(holder, capsys):
    path, process = holder
    threading.Timer(0.5, process.kill).start()
    start = time.monotonic()
    with utils.locked(path):
        assert time.monotonic() - start > 0.4
    assert capsys.readouterr().err == f"waiting for another process that is writing to {path}\n"


def test_the_lock_of_a_killed_process_does_not_lock(holder, tmp_path):
    path, process = holder
    process.kill()
    process.wait()
    assert (tmp_path / ".new.lock").exists()
    with utils.locked(path, wait=False):
        pass
    assert not list(tmp_path.iterdir())


def test_many_processes_take_turns(tmp_path):
    """Each adds 1 to a number in a file, which loses nothing if the lock file is deleted at the right moment."""
    code = "import os, sys, utils\n"
    code += "for _ in range(50):\n    with utils.locked(sys.argv[1]):\n"
    code += "        n = int(open(sys.argv[1]).read())\n        open(sys.argv[1], 'w').write(str(n + 1))"
    (tmp_path / "n").write_text("0")
    args = [sys.executable, "-c", code, str(tmp_path / "n")]
    processes = [subprocess.Popen(args, cwd=ROOT, stderr=subprocess.DEVNULL) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert (tmp_path / "n").read_text() == "150" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_without_permission_to_write(tmp_path, monkeypatch):
    def deny(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", deny)
        with pytest.raises(PermissionError), utils.locked(tmp_path / "new"):
            pass


def test_a_full_disk(fetch, server, files):
    """A limit on the size of a file instead of a full disk: to the program both are a failing write."""
    limit = textwrap.dedent("""
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (700_000, 700_000))
    """)
    done = subprocess.run(
        [sys.executable, "-c", limit + PROCESS, str(fetch.folder)],
        cwd=ROOT,
        capture_output=True,
        input=f"utils.SHA256['124M'] = {utils.SHA256['124M']!r}\n".encode(),
    )
    assert b"OSError: cannot write" in done.stderr and b".part: File too large; make room" in done.stderr
    assert (fetch.folder / "encoder.json.part").stat().st_size == 700_000 and not (
        fetch.folder / "encoder.json"
    ).exists()
    assert fetch() == files
