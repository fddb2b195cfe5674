// The source beside the views: to edit, run, break, restore and check.

import { changedLines, Editor, linesOf } from "./editor.mjs";
import { make } from "./views.mjs";

const $ = (id) => document.getElementById(id);
const PAUSE = 800;  // milliseconds after a keystroke before the checker runs
const MAX_PRINTED = 5000;  // characters of output that are kept
const TO_WRITE = ["gelu", "softmax", "layer_norm", "linear", "ffn", "attention", "mha", "transformer_block", "gpt2"];

// A break is a list of edits [[old, new], ...]. As `new` may be empty, the rest of its line and a neighboring line help
// to find it again. Returns equivalent edits, to be tried in turn; the bare one is for lines that another edit changed.
function variants(source, [old, changed]) {
  const at = source.indexOf(old), line = source.lastIndexOf("\n", at - 1) + 1, end = at + old.length;
  const rest = old.endsWith("\n") ? end : source.indexOf("\n", end) + 1;
  const before = source.lastIndexOf("\n", line - 2) + 1, after = source.indexOf("\n", rest) + 1;
  return [[before, rest], [line, after], [line, rest]]
    .map(([from, to]) => [source.slice(from, to), source.slice(from, at) + changed + source.slice(end, to)])
    .concat([[old, changed]])
    .filter(([, text]) => text.trim());
}

// The text with a break applied or undone, or null if the lines in question are not in it.
function applyBreak(source, text, edits, undo) {
  for (const edit of edits) {
    const found = variants(source, edit).map((it) => undo ? it.toReversed() : it).find(([old]) => text.includes(old));
    if (!found) return null;
    text = text.replace(found[0], () => found[1]);
  }
  return text;
}

export class Code {
  // page: { engine, model, t, announce(text), busy(promise), halt(), fail(error), explain(error), refresh(), number }
  constructor(page, lib) {
    Object.assign(this, { page, lib, running: null, error: null, target: null, exercise: null, printed: "" });
    const callbacks = { onChange: () => this.changed(), onRun: () => this.apply() };
    this.editor = new Editor($("source"), { label: page.t.editorLabel, ...callbacks });
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

  upgrade() {  // to CodeMirror, after the views are drawn
    this.editor.upgrade(this.lib).then(() => {
      this.mark();
      requestAnimationFrame(() => this.mark(true));  // once line heights are measured
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
      if (this.exercise) this.check(this.exercise);
    }, this.exercise ? PAUSE : 150);
  }

  // Highlights the function that computes a view, or only its line that matches the pattern.
  highlight(name, pattern) {
    this.target = [name, pattern];
    this.mark(true);
  }

  mark(reveal = false) {
    const { model } = this.page, { text } = this.editor;
    if (!model) return;
    const [name, pattern] = this.target ?? [];
    let lines = name && linesOf(text, name);
    if (lines && pattern) {
      const i = text.split("\n").findIndex((line, i) => i >= lines[0] && i < lines[1] && pattern.test(line));
      if (i >= 0) lines = [i + 1, i + 1];
    }
    this.editor.mark({ part: lines, changed: changedLines(model.source, text), error: this.error });
    if (reveal && lines && !$("source").contains(document.activeElement)) this.editor.reveal(...lines);
  }

  show() {
    const { model, t } = this.page, edited = this.running !== model.source;
    this.showLoss(edited);
    $("reset").disabled = !this.edited && !edited;
    $("apply").disabled = this.editor.text === this.running && !this.error;
    for (const { name, edits } of model.breaks) {
      const button = $("breaks").querySelector(`[data-break="${name}"]`);
      const [intact, broken] = [false, true].map((undo) => applyBreak(model.source, this.running, edits, undo) !== null);
      button.textContent = t.breaks[name] ?? name;
      button.title = t.breakHelp[name] ?? "";
      button.setAttribute("aria-pressed", broken && !intact);
    }
    $("error").hidden = !this.error;
    const { line, message = "" } = this.error ?? {};
    $("error").textContent = line ? t.errorLine(line, message) : message;
    if (line) $("error").dataset.line = line;
    else delete $("error").dataset.line;
  }

  showLoss(edited) {  // loss: undefined until it is measured, null if it is not finite
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
      if (running === this.running) {  // it was not replaced in the meantime
        this.loss = loss;
        this.show();
      }
    }
  }

  // Runs the text in the editor.
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
        await Promise.all([page.refresh(), this.measure()]);
      })());
      page.announce(`${text === page.model.source ? page.t.runningOriginal : page.t.running} ${$("loss").textContent}`);
    } catch (error) {
      if (error.code === "python") this.showError(error.detail);
      else page.fail(error);
    }
    this.mark();
  }

  // Shows what a source prints, at most the last MAX_PRINTED characters.
  print(text) {
    this.printed = `${this.printed}${text}\n`.slice(-MAX_PRINTED);
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      $("printed").hidden = !this.printed;
      $("printed").lastElementChild.textContent = this.printed;
    });
  }

  reset() {
    Object.assign(this, { exercise: null, error: null });
    this.showFindings(null);
    this.editor.set(this.page.model.source);
    return this.apply();
  }

  toggle(edits) {
    const { model, t } = this.page, { text } = this.editor;
    const changed = applyBreak(model.source, text, edits, false) ?? applyBreak(model.source, text, edits, true);
    if (changed === null) return this.page.announce(t.breakGone);
    this.editor.set(changed);
    return this.apply();
  }

  // Shows an error of the source, or null; `transient` if it may not occur with another prompt.
  showError(error, transient = false) {
    this.error = error && { ...error, transient };
    this.mark();
    this.show();
    if (error?.line) this.editor.reveal(error.line);
  }

  clearTransientError() {
    if (this.error?.transient) this.showError(null);
  }

  restarted() {
    Object.assign(this, { running: this.page.model.source, loss: this.page.model.loss });
    this.show();
  }

  // "Write it yourself": keeps only the def line of a function; the user writes the rest.
  empty(name) {
    const { t } = this.page, { text } = this.editor, lines = linesOf(text, name);
    if (!lines) return this.page.announce(t.emptyGone(name));
    const all = text.split("\n"), start = all.slice(0, lines[0]).join("\n").length + 5;
    all.splice(lines[0], lines[1] - lines[0], "    ...");
    this.exercise = name;
    this.editor.set(all.join("\n"));
    this.highlight(name);
    this.editor.select(start, start + 3);
    this.showFindings(null, t.emptyDone(name));
  }

  async check(only) {
    const { page } = this, { t } = page;
    clearTimeout(this.timer);
    this.showFindings(null, t.checking);
    try {
      const found = [];
      const { findings } = await page.engine.check(this.editor.text, only, (finding) => {
        found.push(finding);
        if (!only) this.showFindings(found);
      }, page.language);
      this.showFindings(findings, only && findings[0]?.status === "right" ? t.writtenRight(only) : "");
    } catch (error) {
      if (error.code === "stopped") return;
      this.showFindings(null, page.explain(error));
    }
  }

  showFindings(findings, text = "") {
    const { t } = this.page;
    $("findings").replaceChildren();
    if (text) make("p", $("findings"), text);
    if (!findings) return;
    const list = make("ul", $("findings"));
    for (const { function: name, status, mistakes, text, line } of findings) {
      const item = make("li", list, undefined, { className: status.replace(" ", "-") });
      make("code", item, name);
      make("b", item, t.verdicts[status] ?? status);
      const names = (mistakes ?? []).filter((one) => one !== "unknown").join(", ");
      if (status === "wrong") make("span", item, [names, line && t.verdictLine(line)].filter(Boolean).join(", "));
      if (text && status !== "right") make("p", item, text);
    }
  }
}
