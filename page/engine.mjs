// The model for whoever draws it: each function here asks gpt2.py, which runs in a worker, and gives a promise.
//
//   const engine = new Engine({ lib, onPrint });           // lib: a folder's URL (?lib=), or null for the CDN;
//                                                          // onPrint(text): what a source prints
//   const model = await engine.load(onProgress);           // onProgress(megabytes, total, stage), at once and often;
//                                                          // stage: "files", "python", "model"
//   model = { source,                                      // the text of the repository's gpt2.py
//             breaks: [{ name, edits: [[old, new], ...] }],  // breaks.json: texts to put in place of texts in it
//             hparams: { n_vocab, n_ctx, n_embd, n_head, n_layer },
//             vocabulary: [{ text, bytes: "e5 8b", parts: [id, id] | null, rank }] }  // by id. text: "·the", "⏎";
//                                                          // parts: the two tokens that were merged; rank: when
//
// A prompt is a text, or a list of ids. settings = { temperature, top_k, top_p, seed }, null or absent as in gpt2.py.
//
//   await engine.analyse(prompt, settings) = {
//     ids: [..], n,                                        // n tokens, at most n_ctx
//     fresh,                                               // how many of them were computed anew
//     before, tempered, after: Float32Array(n_vocab),      // of the next token: at temperature 1; at the temperature;
//                                                          // after top_k and top_p too, what is drawn from (0: cut off)
//     heads,                                               // how many: n_head, but for an edited source
//     weights: Uint8Array(n_layer * heads * n * n) | null, // round(255 * sqrt(w)), [layer][head][query][key]
//     lens,                                                // of the last token, see below
//     milliseconds }                                       // in the worker
//   await engine.lens(prompt, token) = [n_layer lists of { id, p }] | null  // what each block would say after a token
//   await engine.steps(prompt, { layer, head, token }) = [  // one token through one block, in the order of gpt2.py
//     { name, in, shape: [..], row: Float32Array, all: Float32Array | null }, ...]
//       name: x, ln_1, q, k, v, scores, mask, weights, mixed, heads, mha, residual, ln_2, c_fc, gelu, ffn, out
//       in: the function of gpt2.py that computes it; shape: of the whole array;
//       row: the token's (and head's) part; all: for k and v, the rows of the tokens that the head can look at
//       A step that an edited source does not have is absent.
//   await engine.generate(prompt, { ...settings, n }, onToken) = { ids, reason }
//       onToken({ id, text, ids }): text is what the token adds, which may be "" in the middle of a character;
//       ids: prompt and new ids so far. reason: "length", "end" (<|endoftext|>), "context" (n_ctx is full), "stopped".
//       With n = 1 it is a step. Other calls may be made meanwhile.
//   await engine.stop() = { restarted }                    // ends whatever runs: a run of generate by asking; where
//       that does not help within 1.5 seconds, the worker is ended and another one started (1 to 3 s), with the
//       repository's gpt2.py. What was waited for fails with the code "stopped"; generate gives what it has.
//   await engine.setSource(text) = { edited }              // runs the text as gpt2.py from now on; null: the
//       repository's own. Fails with the code "python" where it does not run; what ran before then goes on.
//   await engine.heldOutLoss() = number | null             // nats a token, first 256 held-out tokens; null: no number
//   await engine.check(source, only, onFinding, language)
//       = { report, findings: [{ function, status, mistakes, text, line }] }
//       What tutorial/check.py says of a source; only: the name of one function, or null; language: of the texts, "en"
//       or "zh". status: right, wrong, to do, waits. A second worker does it, so the first goes on. A newer check ends an
//       older one (code "stopped").
//
//   await engine.keepOffline() = true | false              // the service worker keeps all that this page has loaded, or
//       there is none; Python's memory is kept as it is after its start, for the next one
//
// Errors are EngineErrors; the page puts code into words, with detail in them: no-wasm; file (opened from a disk);
// cannot-load (detail: URL); python (detail: { line, message }: the source's error, or a refusal of gpt2.py's with line
// null); too-long (detail: { n, n_ctx }); stopped; broken (detail: message).
//
// await loadEditor(lib) = { state, view, language, commands, python, highlight }: CodeMirror 6's modules.
//
// What tests look for in index.html:
//   #status (role=status: progress, errors), #progress (progress), #prompt (textarea), #tokens (a child with data-id for
//   each token), #bars (a child with data-id, data-before, data-after for each bar; class "cut" where after is 0),
//   #temperature, #top_k, #top_p (range inputs), #step, #run (buttons; aria-pressed while it runs), #stop,
//   #heads (buttons with data-layer, data-head), #lens, #steps, #source (CodeMirror's place), #apply ("run my version"),
//   #reset, #loss (data-loss: the number), [data-break=NAME] (buttons, aria-pressed while in force), #error (role=alert,
//   data-line), #check (button), #findings, #language, #link. window.engine: the Engine.
//
// What an edited source can reach. It is Python that can call all of JavaScript, so nothing is hidden from it; it runs
// where there is nothing to find. The worker is a data: URL in a frame with sandbox="allow-scripts", so it has an origin
// of its own, that nobody else has: no storage, no cookies, no DOM, no other page. The frame's Content-Security-Policy
// allows no connections and no scripts but data: ones, and the worker inherits it: no network, by fetch, WebSocket,
// import() or otherwise. All bytes that it needs are fetched here, and sent. What it sends back is numbers and text to
// draw. It may compute for ever or eat memory; then the frame is removed. The memory of Python that is kept for the next
// visit is of the time before any edited source.

const ROOT = new URL("../", import.meta.url);
const CDN = "https://cdn.jsdelivr.net/";
const MODEL = ["checkpoint", "encoder.json", "hparams.json", "model.ckpt.data-00000-of-00001", "model.ckpt.index",
  "model.ckpt.meta", "vocab.bpe", "held_out.txt"].map((name) => `models/shakespeare/${name}`);
const SOURCES = ["gpt2.py", "encoder.py", "utils.py", "beyond/__init__.py", "beyond/files.py", "beyond/attention.py",
  "page/live.py", "page/breaks.json", ...MODEL];
const CHECKER = ["check.py", "check.zh.json", "inputs.py", "judge.py", "mistakes.py"].map((name) => `tutorial/${name}`);
const POLICY = "default-src 'none'; script-src 'unsafe-inline' 'wasm-unsafe-eval' data:; worker-src data:";
const FRAME = `<meta http-equiv="Content-Security-Policy" content="${POLICY}"><script>
onmessage = ({ data, ports }) => {
  const worker = new Worker(data, { type: "module" });
  const [port] = ports, { port1, port2 } = new MessageChannel();
  worker.onerror = (event) => port.postMessage({ fails: event.message || "the worker cannot start" });
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

// A digest as fetch wants it: in base64 instead of hexadecimal.
const integrity = (hex) => `sha256-${btoa(String.fromCharCode(...hex.match(/../g).map((byte) => parseInt(byte, 16))))}`;

// The bytes of a URL; where a digest is given, no others. onBytes(n) is called as they come.
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

let table; // lib.json: what comes from the CDN or from lib, with sizes and digests
async function libraries() {
  table ??= fetchBytes(new URL("lib.json", import.meta.url)).then((bytes) => JSON.parse(textOf(bytes)));
  return table;
}

function placeOf(one, lib) {
  return lib ? new URL(one.name, new URL(lib.replace(/\/?$/, "/"), location.href)) : new URL(one.cdn, CDN);
}

export async function loadEditor(lib) {
  const named = (one) => one.cdn.replace(/^npm\/|@[\d.]+\/.*$/g, ""); // npm/@lezer/lr@1.4.12/dist/index.js is @lezer/lr
  const modules = new Map();
  await Promise.all((await libraries()).filter((one) => one.name.endsWith(".js")).map(async (one) => {
    modules.set(named(one), textOf(await fetchBytes(placeOf(one, lib), one.sha256)));
  }));
  const urls = new Map();
  const urlOf = (name) => { // each module with the URLs of those that it imports in place of their names
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

// Where the memory of this very Python is kept, once it has started: a browser goes on from there in a tenth of the time.
const SNAPSHOTS = "picogpt-python";

async function placeOfSnapshot(program) {
  const made = new TextEncoder().encode(program + JSON.stringify(await libraries()));
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", made));
  return new URL(`snapshot-${Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("")}`, import.meta.url);
}

async function findSnapshot(program) { // its bytes, or null
  try {
    const kept = await (await caches.open(SNAPSHOTS)).match(await placeOfSnapshot(program));
    return kept ? await new Response(kept.body.pipeThrough(new DecompressionStream("gzip"))).arrayBuffer() : null;
  } catch {
    return null; // a browser has such a place on https and localhost alone
  }
}

async function keepSnapshot(program, bytes) {
  const packed = await new Response(new Blob([bytes]).stream().pipeThrough(new CompressionStream("gzip"))).blob();
  await caches.delete(SNAPSHOTS); // of another version
  await (await caches.open(SNAPSHOTS)).put(await placeOfSnapshot(program), new Response(packed));
}

// --- a worker ---

// A frame with a worker, and the calls to it that are not answered yet.
class PythonWorker {
  constructor(program, onMessage) {
    this.calls = new Map();
    this.onMessage = onMessage;
    this.last = 0;
    const [toFrame, toWorker] = [new MessageChannel(), new MessageChannel()];
    const properties = { srcdoc: FRAME, title: "Python", tabIndex: -1, ariaHidden: true };
    this.frame = Object.assign(document.createElement("iframe"), properties);
    this.frame.sandbox = "allow-scripts";
    // a pixel, as a frame that is not shown at all may get less of the processor
    this.frame.style = "position: fixed; bottom: 0; right: 0; width: 1px; height: 1px; border: 0; opacity: 0.01";
    this.frame.onload = () => this.frame.contentWindow.postMessage(program, "*", [toFrame.port2, toWorker.port2]);
    document.body.append(this.frame);
    toFrame.port1.onmessage = ({ data }) => this.runs || this.end(new EngineError("broken", String(data.fails)));
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

  // Asks what runs to end, and gives whether it has, within PATIENCE; what is asked for later does not count.
  async stop() {
    const asked = [...this.calls.values()].map(({ answer }) => answer);
    for (const id of this.calls.keys()) this.port.postMessage({ stop: id });
    const patience = new Promise((resolve) => setTimeout(resolve, PATIENCE, false));
    return Promise.race([Promise.allSettled(asked).then(() => true), patience]);
  }

  end(error) { // what was waited for fails
    this.ended = true;
    this.frame.remove();
    this.port.close();
    for (const { reject } of this.calls.values()) reject(error);
    this.calls.clear();
  }
}

// --- the model ---

const ABOUT = 11.9e6; // bytes of our own files, until it is known
const PATIENCE = 1500; // milliseconds until a worker that does not answer to stop is ended

export class Engine {
  constructor({ lib = null, onPrint = () => {} } = {}) {
    Object.assign(this, { lib, onPrint, files: new Map(), libraries: [], tell: () => {} });
    this.seconds = 20; // that a function may take while it is checked, as in tutorial/check.py
  }

  async load(onProgress = () => {}) {
    if (location.protocol === "file:") throw new EngineError("file");
    if (typeof WebAssembly !== "object") throw new EngineError("no-wasm");
    const now = { had: 0, total: ABOUT, stage: "files" };
    let next = "python";
    this.tell = (change = {}) => {
      Object.assign(now, change, { had: now.had + (change.more ?? 0) });
      onProgress(now.had / 1e6, Math.max(now.had, now.total) / 1e6, now.stage);
    };
    this.tell();
    for (const name of ["page/worker.mjs", ...SOURCES]) this.file(name); // all at once, as each may take its time
    this.libraries = (await libraries()).filter((one) => !one.name.endsWith(".js"));
    this.tell({ total: ABOUT + this.libraries.reduce((sum, one) => sum + one.bytes, 0) });
    this.worker = await this.spawn(SOURCES, (stage) => {
      next = stage;
      if (now.stage !== "files") this.tell({ stage });
    }, (snapshot) => { this.snapshot = snapshot; });
    try {
      await Promise.all([...this.files.values()]);
      this.tell({ total: now.had, stage: next });
      return await this.worker.started;
    } catch (error) {
      this.worker.end(error);
      throw error;
    } finally {
      this.tell = () => {};
    }
  }

  // The bytes of a file of ours or of a library, fetched once.
  file(name) {
    if (!this.files.has(name)) {
      const one = this.libraries.find((other) => other.name === name);
      const [url, sha256] = one ? [placeOf(one, this.lib), one.sha256] : [new URL(name, ROOT), null];
      const bytes = fetchBytes(url, sha256, (more) => this.tell({ more }));
      bytes.catch(() => this.files.delete(name)); // it may be there another time
      this.files.set(name, bytes);
    }
    return this.files.get(name);
  }

  // A worker with these of our files; it starts while they come.
  async spawn(sources, onSay, onSnapshot = () => {}) {
    const names = this.libraries.map((one) => one.name);
    for (const name of names) this.file(name);
    const program = textOf(await this.file("page/worker.mjs"));
    const worker = new PythonWorker(`data:text/javascript,${encodeURIComponent(program)}`, (data) => {
      if (data.print !== undefined) this.onPrint(data.print);
      else if (!data.snapshot) onSay(data.says);
      else if (!worker.runs) onSnapshot(data.snapshot); // later it could be a reader's source that sends one
    });
    findSnapshot(program).then((bytes) => worker.send("snapshot", bytes, bytes ? [bytes] : []));
    for (const name of [...names, ...sources]) {
      this.file(name).then((bytes) => worker.send(name, bytes), (error) => worker.end(error));
    }
    worker.started = worker.call("start", [{ wheels: names.filter((name) => name.endsWith(".whl")), sources }]);
    worker.started.then(() => (worker.runs = true), () => {}); // whoever waits for it gets the error
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
      this.restart(this.source); // a source can bring Python itself down, by endless recursion for one
      const [reason] = String(error.detail).split("\n");
      throw new EngineError("python", { line: null, message: `Python broke down, and starts again: ${reason}` });
    }
  }

  // Another worker in place of this one; whatever waits for it fails.
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

  // Keeps all that this page has loaded, and how Python has started; gives whether the service worker has it.
  async keepOffline() {
    if (!navigator.serviceWorker) return false; // a browser has it on https and localhost alone
    await navigator.serviceWorker.register(new URL("sw.js", import.meta.url));
    const { active } = await navigator.serviceWorker.ready;
    const resources = performance.getEntriesByType("resource").map((entry) => entry.name);
    const loaded = resources.filter((url) => url.startsWith("http"));
    const { port1, port2 } = new MessageChannel();
    const kept = new Promise((resolve) => (port1.onmessage = ({ data }) => resolve(data)));
    active.postMessage({ keep: [...new Set([location.href.split("#")[0], ...loaded])] }, [port2]);
    if (this.snapshot) await keepSnapshot(textOf(await this.file("page/worker.mjs")), this.snapshot);
    this.snapshot &&= null; // undefined: Python went on from one that was kept
    return kept;
  }

  // As check_file of tutorial/check.py does it with processes: where a function does not come back, the worker is ended,
  // and another one does the same without that function.
  async check(source, only = null, onFinding = () => {}, language = "en") {
    const serial = (this.checks = (this.checks ?? 0) + 1);
    this.giveUp?.();
    for (const skip = []; ;) {
      const checker = await this.idleChecker();
      if (serial !== this.checks) throw new EngineError("stopped");
      let tried, timer;
      this.onTry = (name) => {
        clearTimeout(timer);
        timer = setTimeout(() => checker.end(new EngineError("slow")), 1000 * this.seconds);
        tried = name;
      };
      this.giveUp = () => checker.end(new EngineError("stopped"));
      try {
        const args = [source, only, skip, this.seconds, language];
        return await checker.call("check", args, ({ finding }) => onFinding(finding));
      } catch (error) {
        if (error.code !== "slow") throw error;
        if (tried === "the file" || skip.includes(tried)) {
          const message = `${tried} is not done after ${this.seconds} seconds`;
          throw new EngineError("python", { line: null, message });
        }
        skip.push(tried);
      } finally {
        clearTimeout(timer);
        this.giveUp = null;
      }
    }
  }

  async idleChecker() {
    const known = this.checker, worker = await known;
    if (known === this.checker && (!worker || worker.ended)) {
      this.checker = this.spawn([...SOURCES, ...CHECKER], (name) => this.onTry?.(name));
    }
    const checker = await this.checker;
    await checker.started;
    return checker;
  }
}

const floats = (bytes) => new Float32Array(bytes.slice().buffer);
