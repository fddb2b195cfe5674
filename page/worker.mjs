// Runs Python in a worker: page/engine.mjs starts this file in a frame without origin or network, sends it the files
// that it needs, and calls it; page/live.py answers. Messages: { id, call, args } -> { id, result } or { id, error },
// with { id, events } in between, and { print } or { reports } at any time. Files are sent as { file, bytes }.
// { snapshot } is Python's memory after its start: sent as a file, it makes the next start take a tenth of the time.

const HOME = "/home/pyodide";
const LOCK = { // without packages: they are unpacked here
  info: { abi_version: "2026_0", arch: "wasm32", platform: "emscripten_5_0_3", python: "3.14.0" }, packages: {} };
// the parts of the standard library that numpy and our files import, so that they are in the snapshot
const IMPORTED = "import csv, ctypes, datetime, difflib, hashlib, pickle, platform, secrets, shlex";
const files = new Map(); // name -> { promise, resolve }
const stopped = new Set(); // the ids of calls to be stopped
let port, live;
let printed = 0;

function file(name) {
  if (!files.has(name)) {
    const one = {};
    one.promise = new Promise((resolve) => (one.resolve = resolve));
    files.set(name, one);
  }
  return files.get(name);
}

// Imports a module from its bytes: without an origin, only data: URLs can be imported.
async function moduleOf(name) {
  const reader = new FileReader();
  const read = new Promise((resolve) => (reader.onload = resolve));
  reader.readAsDataURL(new Blob([await file(name).promise], { type: "text/javascript" }));
  await read;
  return import(reader.result);
}

function print(text) { // at most 20,000 characters per call
  printed += text.length + 1;
  if (printed < 20000) port.postMessage({ print: text });
}

// Pyodide fetches the files that were sent.
self.fetch = async (url) => {
  const name = String(url).split("/").pop();
  const type = name.endsWith(".wasm") ? "application/wasm" : "application/octet-stream";
  return new Response(await file(name).promise, { headers: { "Content-Type": type } });
};

// Compiles Python while its script is still being parsed.
function compile() {
  const module = self.fetch("pyodide.asm.wasm").then(WebAssembly.compileStreaming);
  WebAssembly.instantiateStreaming = async (response, imports) => ({
    module: await module, instance: await WebAssembly.instantiate(await module, imports) });
}

async function start({ wheels, sources }) {
  compile();
  const [{ loadPyodide }, { default: createPyodideModule }] = await Promise.all(
    ["pyodide.mjs", "pyodide.asm.mjs"].map(moduleOf));
  const load = (options) => loadPyodide({
    indexURL: "https://lib.invalid/", createPyodideModule, lockFileContents: LOCK,
    stdout: print, stderr: print, env: { HOME }, ...options });
  const snapshot = await file("snapshot").promise; // null: none is cached
  let python = snapshot && await load({ _loadSnapshot: snapshot }).catch(() => null);
  if (!python) {
    python = await load({ _makeSnapshot: true });
    python.runPython(IMPORTED);
    const { buffer } = python.makeMemorySnapshot();
    port.postMessage({ snapshot: buffer }, [buffer]);
  }
  for (const wheel of wheels) python.unpackArchive(await file(wheel).promise, "wheel");
  port.postMessage({ reports: "model" });
  for (const name of sources) {
    const path = `${HOME}/${name}`;
    python.FS.mkdirTree(path.slice(0, path.lastIndexOf("/")));
    python.FS.writeFile(path, new Uint8Array(await file(name).promise));
    files.delete(name); // Python's file system has a copy
  }
  python.runPython(`import sys; sys.path[:0] = ["${HOME}", "${HOME}/page"]`);
  live = python.pyimport("live");
  live.report = (name) => port.postMessage({ reports: name });
}

function toObject(result) {
  const object = result.toJs({ dict_converter: Object.fromEntries, create_pyproxies: false });
  result.destroy();
  return object;
}

const channel = new MessageChannel(); // setTimeout would wait for 4 ms
const waiting = [];
channel.port1.onmessage = () => waiting.shift()();
const pause = () => new Promise((resolve) => {
  waiting.push(resolve);
  channel.port2.postMessage(null);
});

async function perform({ id, call, args }) {
  for (let result = toObject(live.answer(call, JSON.stringify(args), id)); ; result = toObject(live.more(id))) {
    if (result.events) port.postMessage({ id, events: result.events });
    if (result.error) throw result.error;
    if (!result.more) return result;
    await pause(); // lets messages that arrived in the meantime be received
    if (!stopped.delete(id)) continue;
    live.forget(id);
    return { stopped: true };
  }
}

async function receive({ data }) {
  if (data.file) return file(data.file).resolve(data.bytes);
  if (data.stop) return stopped.add(data.stop);
  printed = 0;
  try {
    if (data.call === "start") await start(data.args[0]);
    const began = performance.now();
    const result = await perform(data.call === "start" ? { ...data, args: [] } : data);
    port.postMessage({ id: data.id, result, milliseconds: performance.now() - began });
  } catch (error) {
    const broken = { code: "broken", detail: String(error.message ?? error) };
    port.postMessage({ id: data.id, error: error.code ? error : broken });
  }
}

self.onmessage = ({ ports }) => {
  [port] = ports;
  port.onmessage = receive;
};
