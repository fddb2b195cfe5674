// The interface to the model: each function here calls gpt2.py, which runs in a worker, and returns a promise.
//
//   const engine = new Engine({ lib, onPrint });           // lib: the URL of a folder (?lib=), or null for the CDN;
//                                                          // onPrint(text): called with what a source prints
//   const model = await engine.load(onProgress);           // onProgress(megabytes, total, stage), called often;
//                                                          // stage: "files", "python", "model"
//   model = { source,                                      // the text of the repository's gpt2.py
//             breaks: [{ name, edits: [[old, new], ...] }],  // breaks.json: replacements of parts of the source
//             hparams: { n_vocab, n_ctx, n_embd, n_head, n_layer },
//             vocabulary: [{ text, bytes: "e5 8b", parts: [id, id] | null, rank }] }  // by id; text: "·the", "⏎";
//                                                          // parts: the two tokens merged into it; rank: of the merge
//
// A prompt is a text or a list of ids. settings = { temperature, top_k, top_p, seed }; null or absent as in gpt2.py.
//
//   await engine.analyse(prompt, settings) = {
//     ids: [..], n,                                        // n tokens, at most n_ctx
//     fresh,                                               // the number of tokens that were not cached
//     before, tempered, after: Float32Array(n_vocab),      // probabilities of the next token: at temperature 1; at the
//                                                          // temperature; after top_k and top_p as well (0: cut off)
//     heads,                                               // their number: n_head, unless an edited source differs
//     weights: Uint8Array(n_layer * heads * n * n) | null, // round(255 * sqrt(w)), [layer][head][query][key]
//     lens,                                                // of the last token, see below
//     milliseconds }                                       // in the worker
//   await engine.lens(prompt, token) = [n_layer lists of { id, p }] | null  // the predictions after each block
//   await engine.steps(prompt, { layer, head, token }) = [  // one token through one block, in the order of gpt2.py
//     { name, in, shape: [..], row: Float32Array, all: Float32Array | null }, ...]
//       name: x, ln_1, q, k, v, scores, mask, weights, mixed, heads, mha, residual, ln_2, c_fc, gelu, ffn, out
//       in: the function of gpt2.py that computes it; shape: of the whole array;
//       row: the part for the token (and head); all: for k and v, the rows of all tokens that the token can see
//       Steps that an edited source does not have are absent.
//   await engine.generate(prompt, { ...settings, n }, onToken) = { ids, reason }
//       onToken({ id, text, ids }): text is what the token adds, possibly "" in the middle of a character;
//       ids: prompt and new ids so far. reason: "length", "end" (<|endoftext|>), "context" (n_ctx is full), "stopped".
//       Other calls are answered in the meantime.
//   await engine.stop() = { restarted }                    // stops all calls. If one does not stop within 1.5 seconds,
//       the worker is replaced by a new one (1 to 3 s), which runs the repository's gpt2.py. Pending calls fail with
//       the code "stopped"; generate returns the tokens it has.
//   await engine.setSource(text) = { edited }              // runs the text as gpt2.py from now on; null: the
//       repository's. If it does not run, fails with the code "python" and keeps the previous source.
//   await engine.heldOutLoss() = number | null             // nats per token, 256 held-out tokens; null: not finite
//   await engine.check(source, only, onFinding, language)
//       = { report, findings: [{ function, status, mistakes, text, line }] }
//       The findings of tutorial/check.py; only: the name of one function, or null; language: of the texts, "en" or
//       "zh"; status: right, wrong, to do, waits. Uses a second worker, so the first stays available. A new check stops
//       an older one (code "stopped").
//
//   await engine.keepOffline() = true | false              // caches everything the page has loaded, if a service worker
//       is available, and a snapshot of Python's memory after its start, for a faster start next time
//
// All errors are EngineErrors with a code, which texts.mjs turns into text: no-wasm; file (opened from disk);
// cannot-load (detail: URL); python (detail: { line, message }; line is null if gpt2.py rejects its input); too-long
// (detail: { n, n_ctx }); stopped; broken (detail: message).
//
// await loadEditor(lib) = { state, view, language, commands, python, highlight }: the modules of CodeMirror 6.
//
// The tests expect in index.html:
//   #status (role=status: progress, errors), #progress (progress), #prompt (textarea), #tokens (one child with data-id
//   per token), #bars (one child with data-id, data-before, data-after per bar; class "cut" where after is 0),
//   #temperature, #top_k, #top_p (range inputs), #step, #run (buttons; aria-pressed while it runs), #stop,
//   #heads (buttons with data-layer, data-head), #lens, #steps, #source (holds CodeMirror), #apply ("run my version"),
//   #reset, #loss (data-loss: the number), [data-break=NAME] (buttons, aria-pressed while active), #error (role=alert,
//   data-line), #check (button), #findings, #language, #link. window.engine: the Engine.
//
// What an edited source can reach: Python in the browser can call any JavaScript, so the source is not restricted but
// isolated. The worker is a data: URL in a frame with sandbox="allow-scripts", so it has a unique origin: no storage,
// cookies, DOM or other pages. The frame's Content-Security-Policy allows no connections and only data: scripts, and
// the worker inherits it: no network through fetch, WebSocket, import() or anything else. The page fetches all bytes
// and sends them; it receives numbers and text to draw. If the source never ends or exhausts memory, the frame is
// removed. The snapshot of Python's memory is taken before any edited source runs.

const ROOT = new URL("../", import.meta.url);
const CDN = "https://cdn.jsdelivr.net/";
const MODEL = ["checkpoint", "encoder.json", "hparams.json", "model.ckpt.data-00000-of-00001", "model.ckpt.index",
  "model.ckpt.meta", "vocab.bpe", "held_out.txt"].map((name) => `models/shakespeare/${name}`);
const SOURCES = ["gpt2.py", "encoder.py", "tf_checkpoint.py", "utils.py", "cli.py", "beyond/__init__.py",
  "beyond/attention.py", "beyond/learn/__init__.py", "beyond/learn/losses.py",
  ...["__init__.py", "reading.py", "runs.py", "writing.py"].map((name) => `beyond/files/${name}`),
  "page/live.py", "page/breaks.json", ...MODEL];
const CHECKER = ["check.py", "check.zh.json", "inputs.py", "judge.py", "mistakes.py"].map((name) => `tutorial/${name}`);
const POLICY = "default-src 'none'; script-src 'unsafe-inline' 'wasm-unsafe-eval' data:; worker-src data:";
const FRAME = `<meta http-equiv="Content-Security-Policy" content="${POLICY}"><script>
onmessage = ({ data, ports }) => {
  const worker = new Worker(data, { type: "module" });
  const [port] = ports, { port1, port2 } = new MessageChannel();
  worker.onerror = (event) => port.postMessage({ failure: event.message || "the worker cannot start" });
  worker.postMessage(null, [ports[1]]);
};
</script>`;

export class EngineError extends Error {
  constructor(code, detail = null) {
    super(`${code}${detail ? `: ${JSON.stringify(detail)}` : ""}`);
    Object.assign(this, { code, detail });
  }
}

// --- files ---

// A hexadecimal digest in the form that fetch expects, base64.
const integrity = (hex) => `sha256-${btoa(String.fromCharCode(...hex.match(/../g).map((byte) => parseInt(byte, 16))))}`;

// The bytes of a URL, checked against a digest if there is one. onBytes(n) is called for each part received.
async function fetchBytes(url, sha256, onBytes = () => {}) {
  try {
    const response = await fetch(url, sha256 ? { integrity: integrity(sha256) } : {});
    if (!response.ok) throw Error(response.status);
    const parts = [];
    for (const reader = response.body.getReader(); ;) {
      const { done, value } = await reader.read();
      if (done) break;
      parts.push(value);
      onBytes(value.length);
    }
    return await new Blob(parts).arrayBuffer();
  } catch {
    throw new EngineError("cannot-load", String(url));
  }
}

const textOf = (bytes) => new TextDecoder().decode(bytes);

let table; // lib.json: the files from the CDN or lib, with sizes and digests
async function libraries() {
  table ??= fetchBytes(new URL("lib.json", import.meta.url)).then((bytes) => JSON.parse(textOf(bytes)));
  return table;
}

function addressOf(one, lib) {
  return lib ? new URL(one.name, new URL(lib.replace(/\/?$/, "/"), location.href)) : new URL(one.cdn, CDN);
}

export async function loadEditor(lib) {
  const named = (one) => one.cdn.replace(/^npm\/|@[\d.]+\/.*$/g, ""); // npm/@lezer/lr@1.4.12/dist/index.js is @lezer/lr
  const modules = new Map();
  await Promise.all((await libraries()).filter((one) => one.name.endsWith(".js")).map(async (one) => {
    modules.set(named(one), textOf(await fetchBytes(addressOf(one, lib), one.sha256)));
  }));
  const urls = new Map();
  const urlOf = (name) => { // of a module whose imports are replaced by URLs
    if (!urls.has(name)) {
      const text = modules.get(name).replace(/(\bfrom\s*)(["'])([\w@/-]+)\2/g, (all, from, quote, other) =>
        modules.has(other) ? `${from}"${urlOf(other)}"` : all);
      urls.set(name, URL.createObjectURL(new Blob([text], { type: "text/javascript" })));
    }
    return urls.get(name);
  };
  const wanted = { state: "@codemirror/state", view: "@codemirror/view", language: "@codemirror/language",
    commands: "@codemirror/commands", python: "@codemirror/lang-python", highlight: "@lezer/highlight" };
  const found = await Promise.all(Object.entries(wanted).map(async ([key, name]) => [key, await import(urlOf(name))]));
  return Object.fromEntries(found);
}

// The cache for a snapshot of Python's memory after its start; the next start then takes a tenth of the time.
const SNAPSHOTS = "picogpt-python";

async function snapshotAddress(program) {
  const identity = new TextEncoder().encode(program + JSON.stringify(await libraries()));
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", identity));
  return new URL(`snapshot-${Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("")}`, import.meta.url);
}

async function findSnapshot(program) { // its bytes, or null
  try {
    const cached = await (await caches.open(SNAPSHOTS)).match(await snapshotAddress(program));
    return cached ? await new Response(cached.body.pipeThrough(new DecompressionStream("gzip"))).arrayBuffer() : null;
  } catch {
    return null; // browsers have caches on https and localhost only
  }
}

async function keepSnapshot(program, bytes) {
  const packed = await new Response(new Blob([bytes]).stream().pipeThrough(new CompressionStream("gzip"))).blob();
  await caches.delete(SNAPSHOTS); // of older versions
  await (await caches.open(SNAPSHOTS)).put(await snapshotAddress(program), new Response(packed));
}

// --- a worker ---

// A frame with a worker, and its pending calls.
class PythonWorker {
  constructor(program, onMessage) {
    this.calls = new Map();
    this.onMessage = onMessage;
    this.last = 0;
    const [toFrame, toWorker] = [new MessageChannel(), new MessageChannel()];
    const properties = { srcdoc: FRAME, title: "Python", tabIndex: -1, ariaHidden: true };
    this.frame = Object.assign(document.createElement("iframe"), properties);
    this.frame.sandbox = "allow-scripts";
    // one pixel, as browsers may throttle a frame that is not visible
    this.frame.style = "position: fixed; bottom: 0; right: 0; width: 1px; height: 1px; border: 0; opacity: 0.01";
    this.frame.onload = () => this.frame.contentWindow.postMessage(program, "*", [toFrame.port2, toWorker.port2]);
    document.body.append(this.frame);
    toFrame.port1.onmessage = ({ data }) => this.running || this.end(new EngineError("broken", String(data.failure)));
    this.port = toWorker.port1;
    this.port.onmessage = ({ data }) => this.receive(data);
  }

  receive(data) {
    const call = this.calls.get(data.id);
    if (data.events) return call && data.events.forEach(call.onEvent);
    if (!data.id) return this.onMessage(data);
    this.calls.delete(data.id);
    if (data.error) call?.reject(new EngineError(data.error.code, data.error.detail));
    else call?.resolve(Object.assign(data.result, { milliseconds: data.milliseconds }));
  }

  async call(name, args, onEvent = () => {}) {
    if (this.ended) throw new EngineError("stopped");
    const id = ++this.last;
    const answer = new Promise((resolve, reject) => {
      this.calls.set(id, { name, resolve, reject, onEvent });
      this.port.postMessage({ id, call: name, args });
    });
    this.calls.get(id).answer = answer;
    return answer;
  }

  send(file, bytes, transfer = []) {
    this.port.postMessage({ file, bytes }, transfer);
  }

  // Stops the calls that are pending now; returns whether they end within PATIENCE.
  async stop() {
    const pending = [...this.calls.values()].map(({ answer }) => answer);
    for (const id of this.calls.keys()) this.port.postMessage({ stop: id });
    const patience = new Promise((resolve) => setTimeout(resolve, PATIENCE, false));
    return Promise.race([Promise.allSettled(pending).then(() => true), patience]);
  }

  end(error) { // pending calls fail
    this.ended = true;
    this.frame.remove();
    this.port.close();
    for (const { reject } of this.calls.values()) reject(error);
    this.calls.clear();
  }
}

// --- the model ---

const ESTIMATE = 11.9e6; // bytes of our own files, until the total is known
const PATIENCE = 1500; // milliseconds before a worker that does not stop is ended

export class Engine {
  constructor({ lib = null, onPrint = () => {} } = {}) {
    Object.assign(this, { lib, onPrint, files: new Map(), libraries: [], report: () => {} });
    this.seconds = 20; // the time limit for each function that is checked, as in tutorial/check.py
  }

  async load(onProgress = () => {}) {
    if (location.protocol === "file:") throw new EngineError("file");
    if (typeof WebAssembly !== "object") throw new EngineError("no-wasm");
    const now = { loaded: 0, total: ESTIMATE, stage: "files" };
    let next = "python";
    this.report = (change = {}) => {
      Object.assign(now, change, { loaded: now.loaded + (change.more ?? 0) });
      onProgress(now.loaded / 1e6, Math.max(now.loaded, now.total) / 1e6, now.stage);
    };
    this.report();
    for (const name of ["page/worker.mjs", ...SOURCES]) this.file(name); // in parallel
    this.libraries = (await libraries()).filter((one) => !one.name.endsWith(".js"));
    this.report({ total: ESTIMATE + this.libraries.reduce((sum, one) => sum + one.bytes, 0) });
    this.worker = await this.spawn(SOURCES, (stage) => {
      next = stage;
      if (now.stage !== "files") this.report({ stage });
    }, (snapshot) => { this.snapshot = snapshot; });
    try {
      await Promise.all([...this.files.values()]);
      this.report({ total: now.loaded, stage: next });
      return await this.worker.started;
    } catch (error) {
      this.worker.end(error);
      throw error;
    } finally {
      this.report = () => {};
    }
  }

  // The bytes of one of our files or of a library, fetched once.
  file(name) {
    if (!this.files.has(name)) {
      const one = this.libraries.find((other) => other.name === name);
      const [url, sha256] = one ? [addressOf(one, this.lib), one.sha256] : [new URL(name, ROOT), null];
      const bytes = fetchBytes(url, sha256, (more) => this.report({ more }));
      bytes.catch(() => this.files.delete(name)); // the next attempt may succeed
      this.files.set(name, bytes);
    }
    return this.files.get(name);
  }

  // A worker with these of our files; it starts while they load.
  async spawn(sources, onReport, onSnapshot = () => {}) {
    const names = this.libraries.map((one) => one.name);
    for (const name of names) this.file(name);
    const program = textOf(await this.file("page/worker.mjs"));
    const worker = new PythonWorker(`data:text/javascript,${encodeURIComponent(program)}`, (data) => {
      if (data.print !== undefined) this.onPrint(data.print);
      else if (!data.snapshot) onReport(data.reports);
      else if (!worker.running) onSnapshot(data.snapshot); // a later one could come from an edited source
    });
    findSnapshot(program).then((bytes) => worker.send("snapshot", bytes, bytes ? [bytes] : []));
    for (const name of [...names, ...sources]) {
      this.file(name).then((bytes) => worker.send(name, bytes), (error) => worker.end(error));
    }
    worker.started = worker.call("start", [{ wheels: names.filter((name) => name.endsWith(".whl")), sources }]);
    worker.started.then(() => (worker.running = true), () => {}); // callers that await it get the error
    return worker;
  }

  async call(name, args, onEvent) {
    await this.restarting;
    const { worker } = this;
    await worker.started;
    try {
      return await worker.call(name, args, onEvent);
    } catch (error) {
      if (error.code !== "broken" || worker !== this.worker) throw error;
      this.restart(this.source); // a source can crash Python itself, for example by endless recursion
      const [reason] = String(error.detail).split("\n");
      throw new EngineError("python", { line: null, message: `Python crashed and is being restarted: ${reason}` });
    }
  }

  // Replaces the worker; pending calls fail.
  restart(source = null) {
    this.worker.end(new EngineError("stopped"));
    this.source = source;
    const start = async () => {
      this.worker = await this.spawn(SOURCES, () => {});
      await this.worker.started;
      if (source) await this.worker.call("set_source", [source]).catch(() => {});
    };
    return (this.restarting = start());
  }

  async analyse(prompt, settings = {}) {
    const found = await this.call("analyse", [prompt, settings]);
    for (const name of ["before", "tempered", "after"]) found[name] = floats(found[name]);
    return found;
  }

  async lens(prompt, token) {
    return (await this.call("lens", [prompt, token])).lens;
  }

  async steps(prompt, { layer, head, token }) {
    const { steps } = await this.call("steps", [prompt, layer, head, token]);
    return steps.map((step) => ({ ...step, row: floats(step.row), all: step.all && floats(step.all) }));
  }

  async generate(prompt, { n, ...settings }, onToken = () => {}) {
    const ids = [];
    try {
      const found = await this.call("generate", [prompt, settings, n], (event) => {
        ids.push(...(event.ids ?? [event.id]));
        if (!event.ids) onToken({ id: event.id, text: event.text, ids: [...ids] });
      });
      return { ids, reason: found.reason ?? "stopped" };
    } catch (error) {
      if (error.code !== "stopped") throw error;
      return { ids, reason: "stopped" };
    }
  }

  async decode(ids) {
    return (await this.call("decode", [ids])).text;
  }

  async setSource(source) {
    const { edited } = await this.call("set_source", [source]);
    this.source = source;
    return { edited };
  }

  async heldOutLoss() {
    return (await this.call("held_out_loss", [])).loss;
  }

  async stop() {
    const { worker } = this;
    await worker.started;
    if (await worker.stop()) return { restarted: false };
    await this.restart();
    return { restarted: true };
  }

  // Caches everything the page has loaded and the snapshot; returns whether the service worker has cached it.
  async keepOffline() {
    if (!navigator.serviceWorker) return false; // browsers have it on https and localhost only
    await navigator.serviceWorker.register(new URL("sw.js", import.meta.url));
    const { active } = await navigator.serviceWorker.ready;
    const resources = performance.getEntriesByType("resource").map((entry) => entry.name);
    const loaded = resources.filter((url) => url.startsWith("http"));
    const { port1, port2 } = new MessageChannel();
    const cached = new Promise((resolve) => (port1.onmessage = ({ data }) => resolve(data)));
    active.postMessage({ keep: [...new Set([location.href.split("#")[0], ...loaded])] }, [port2]);
    if (this.snapshot) await keepSnapshot(textOf(await this.file("page/worker.mjs")), this.snapshot);
    this.snapshot &&= null; // undefined: Python started from a cached one
    return cached;
  }

  // Like check_file of tutorial/check.py, which uses processes: if a function does not return, the worker is ended, and
  // another one repeats the check without that function.
  async check(source, only = null, onFinding = () => {}, language = "en") {
    const serial = (this.checks = (this.checks ?? 0) + 1);
    this.abandon?.();
    for (const skip = []; ;) {
      const checker = await this.idleChecker();
      if (serial !== this.checks) throw new EngineError("stopped");
      let tried, timer;
      this.onTry = (name) => {
        clearTimeout(timer);
        timer = setTimeout(() => checker.end(new EngineError("slow")), 1000 * this.seconds);
        tried = name;
      };
      this.abandon = () => checker.end(new EngineError("stopped"));
      try {
        const args = [source, only, skip, this.seconds, language];
        return await checker.call("check", args, ({ finding }) => onFinding(finding));
      } catch (error) {
        if (error.code !== "slow") throw error;
        if (tried === "the file" || skip.includes(tried)) {
          const message = `${tried} did not finish within ${this.seconds} seconds`;
          throw new EngineError("python", { line: null, message });
        }
        skip.push(tried);
      } finally {
        clearTimeout(timer);
        this.abandon = null;
      }
    }
  }

  async idleChecker() {
    const current = this.checker, worker = await current;
    if (current === this.checker && (!worker || worker.ended)) {
      this.checker = this.spawn([...SOURCES, ...CHECKER], (name) => this.onTry?.(name));
    }
    const checker = await this.checker;
    await checker.started;
    return checker;
  }
}

const floats = (bytes) => new Float32Array(bytes.slice().buffer);
