// The source beside the views: edited, run, broken and mended, checked.

import { changedLines, Editor, linesOf } from "./editor.mjs";
import { make } from "./views.mjs";

const $ = (id) => document.getElementById(id);
const PAUSE = 800;  // milliseconds after a key until the checker looks
const PRINTED = 5000;  // characters that are kept of what a source prints
const TO_WRITE = ["gelu", "softmax", "layer_norm", "linear", "ffn", "attention", "mha", "transformer_block", "gpt2"];

// A break is edits [[old, new], ...] of the source. `new` may be empty, so to find it again the rest of its line, and
// the line before or after, go with it: ways to say the same edit, of which one has to fit. Where another edit changed
// the same line, the bare one may.
function ways(source, [old, changed]) {
  const at = source.indexOf(old), line = source.lastIndexOf("\n", at - 1) + 1, end = at + old.length;
  const rest = old.endsWith("\n") ? end : source.indexOf("\n", end) + 1;
  const before = source.lastIndexOf("\n", line - 2) + 1, after = source.indexOf("\n", rest) + 1;
  return [[before, rest], [line, after], [line, rest]]
    .map(([from, to]) => [source.slice(from, to), source.slice(from, at) + changed + source.slice(end, to)])
    .concat([[old, changed]])
    .filter(([, text]) => text.trim());
}

// The text with a break made or mended, or null where it has no such line.
function turn(source, text, edits, mend) {
  for (const edit of edits) {
    const found = ways(source, edit).map((way) => mend ? way.toReversed() : way).find(([old]) => text.includes(old));
    if (!found) return null;
    text = text.replace(found[0], () => found[1]);
  }
  return text;
}

export class Code {
  // page: { engine, model, t, say(text), busy(promise), halt(), fail(error), explain(error), rerun(), number(x) }
  constructor(page, lib) {
    Object.assign(this, { page, lib, running: null, loss: undefined, error: null, part: null, writes: null, printed: "" });
    const [onChange, onRun] = [() => this.changed(), () => this.apply()];
    this.editor = new Editor($("source"), { label: page.t.editorLabel, onChange, onRun });
    $("apply").onclick = () => this.apply();
    $("reset").onclick = () => this.reset();
    $("check").onclick = () => this.check(null);
    $("empty").onclick = () => this.empty($("write").value);
    for (const name of TO_WRITE) make("option", $("write"), name);
    $("write").value = "attention";
  }

  start(source) {
    const { model } = this.page;
    this.running = model.source;
    this.editor.set(source || model.source);
    $("linked").hidden = !this.edited;
    for (const { name, edits } of model.breaks) {
      const button = make("button", $("breaks"), "", { type: "button", onclick: () => this.toggle(edits) });
      button.dataset.break = name;
    }
    this.show();
  }

  upgrade() {  // to CodeMirror, once the views are there
    this.editor.upgrade(this.lib).then(() => {
      this.mark();
      requestAnimationFrame(() => this.mark(true));  // when the height of a line has been measured
    }).catch((error) => this.page.fail(error));
  }

  get edited() {
    return this.editor.text !== this.page.model.source;
  }

  changed() {
    if (!this.page.model) return;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      this.mark();
      this.show();
      if (this.writes) this.check(this.writes);
    }, this.writes ? PAUSE : 150);
  }

  // Shows what a view is computed by: a function, or the line of it that fits.
  point(name, pattern) {
    this.part = [name, pattern];
    this.mark(true);
  }

  mark(reveal = false) {
    const { model } = this.page, { text } = this.editor;
    if (!model) return;
    let lines = this.part && linesOf(text, this.part[0]);
    if (lines && this.part[1]) {
      const one = text.split("\n").findIndex((line, i) => i >= lines[0] && i < lines[1] && this.part[1].test(line));
      if (one >= 0) lines = [one + 1, one + 1];
    }
    this.editor.mark({ part: lines, changed: changedLines(model.source, text), error: this.error });
    if (reveal && lines && !$("source").contains(document.activeElement)) this.editor.reveal(...lines);
  }

  show() {
    const { model, t, number } = this.page, edited = this.running !== model.source;
    this.showLoss(edited);
    $("reset").disabled = !this.edited && !edited;
    $("apply").disabled = this.editor.text === this.running && !this.error;
    for (const { name, edits } of model.breaks) {
      const button = $("breaks").querySelector(`[data-break="${name}"]`);
      const [whole, broken] = [false, true].map((mend) => turn(model.source, this.running, edits, mend) !== null);
      button.textContent = t.breaks[name] ?? name;
      button.title = t.breakHelp[name] ?? "";
      button.setAttribute("aria-pressed", broken && !whole);
    }
    $("error").hidden = !this.error;
    const { line, message = "" } = this.error ?? {};
    $("error").textContent = line ? t.errorLine(line, message) : message;
    if (line) $("error").dataset.line = line;
    else delete $("error").dataset.line;
  }

  showLoss(edited) {  // undefined: not known yet; null: no number
    const { model, t, number } = this.page, { loss } = this;
    $("loss").textContent = loss === undefined ? t.lossWaits : loss === null ? t.lossNone
      : t.loss(number(loss), number(Math.exp(loss), 0)) + (edited ? t.lossWas(number(model.loss)) : "");
    $("loss").title = t.lossHelp;
    $("loss").classList.toggle("worse", loss === null || loss > model.loss + 0.005);
    if (loss === undefined) delete $("loss").dataset.loss;
    else $("loss").dataset.loss = loss ?? "none";
  }

  async measure() {
    const { model, engine } = this.page, { running } = this, original = running === model.source;
    this.loss = undefined;
    this.show();
    let loss = null;
    try {
      loss = original && model.loss || await engine.heldOutLoss();
      if (original) model.loss = loss;
    } finally {
      if (running === this.running) {  // no other one has come
        this.loss = loss;
        this.show();
      }
    }
  }

  // Runs what is in the editor.
  async apply() {
    const { page } = this, text = this.editor.text;
    $("linked").hidden = true;
    await page.halt();
    this.printed = "";
    $("printed").hidden = true;
    try {
      await page.busy((async () => {
        await page.engine.setSource(text);
        Object.assign(this, { running: text, error: null });
        await Promise.all([page.rerun(), this.measure()]);
      })());
      page.say(`${text === page.model.source ? page.t.runningOriginal : page.t.running} ${$("loss").textContent}`);
    } catch (error) {
      if (error.code === "python") this.failed(error.detail);
      else page.fail(error);
    }
    this.mark();
  }

  // What a source prints; of a flood the end.
  print(text) {
    this.printed = `${this.printed}${text}\n`.slice(-PRINTED);
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      $("printed").hidden = !this.printed;
      $("printed").lastElementChild.textContent = this.printed;
    });
  }

  reset() {
    Object.assign(this, { writes: null, error: null });
    this.findings(null);
    this.editor.set(this.page.model.source);
    return this.apply();
  }

  toggle(edits) {
    const { model, t } = this.page, { text } = this.editor;
    const changed = turn(model.source, text, edits, false) ?? turn(model.source, text, edits, true);
    if (changed === null) return this.page.say(t.breakGone);
    this.editor.set(changed);
    return this.apply();
  }

  // An error of the source; `passing` where another text may do without it.
  failed(error, passing = false) {
    this.error = error && { ...error, passing };
    this.mark();
    this.show();
    if (error?.line) this.editor.reveal(error.line);
  }

  works() {
    if (this.error?.passing) this.failed(null);
  }

  restarted() {
    Object.assign(this, { running: this.page.model.source, loss: this.page.model.loss });
    this.show();
  }

  // "Write it yourself": a function keeps its def line, and the reader writes the rest.
  empty(name) {
    const { t } = this.page, { text } = this.editor, lines = linesOf(text, name);
    if (!lines) return this.page.say(t.emptyGone(name));
    const all = text.split("\n"), start = all.slice(0, lines[0]).join("\n").length + 5;
    all.splice(lines[0], lines[1] - lines[0], "    ...");
    this.writes = name;
    this.editor.set(all.join("\n"));
    this.point(name);
    this.editor.select(start, start + 3);
    this.findings(null, t.emptyDone(name));
  }

  async check(only) {
    const { page } = this, { t } = page;
    clearTimeout(this.timer);
    this.findings(null, t.checking);
    try {
      const found = [];
      const { findings } = await page.engine.check(this.editor.text, only, (finding) => {
        found.push(finding);
        if (!only) this.findings(found);
      }, page.language);
      this.findings(findings, only && findings[0]?.status === "right" ? t.writtenRight(only) : "");
    } catch (error) {
      if (error.code === "stopped") return;
      this.findings(null, page.explain(error));
    }
  }

  findings(findings, text = "") {
    const { t } = this.page;
    $("findings").replaceChildren();
    if (text) make("p", $("findings"), text);
    if (!findings) return;
    const list = make("ul", $("findings"));
    for (const { function: name, status, mistakes, text, line } of findings) {
      const item = make("li", list, undefined, { className: status.replace(" ", "-") });
      make("code", item, name);
      make("b", item, t.verdicts[status] ?? status);
      const named = (mistakes ?? []).filter((one) => one !== "unknown").join(", ");
      if (status === "wrong") make("span", item, [named, line && t.verdictLine(line)].filter(Boolean).join(", "));
      if (text && status !== "right") make("p", item, text);
    }
  }
}
