// The page: the text, the next token, and the updates after each change. views.mjs draws, inside.mjs has the views of
// the model, code.mjs the source; engine.mjs computes the numbers.

import { Code } from "./code.mjs";
import { Engine } from "./engine.mjs";
import { Inside } from "./inside.mjs";
import * as links from "./link.mjs";
import { texts } from "./texts.mjs";
import { ensureTabStop, fill, make, rove } from "./views.mjs";

const $ = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search), lib = query.get("lib");
const PROMPT = "JULIET:\nO Romeo", FIRST_RUN = { n: 32, seed: 2 };  // shown before anything is clicked
const FIRST_HEAD = { layer: 5, head: 4 };  // attends to the previous token, which is easy to see
const N_BARS = 12, ALL_K = 101, END = "<|endoftext|>";
const WAIT = 400;  // milliseconds until the stop button appears
const INTERVAL = 100, FACTOR = 3;  // between redraws during a run: milliseconds, and a multiple of one redraw's time

const language = query.get("lang") ?? (navigator.language.startsWith("zh") ? "zh" : "en");

const page = {
  engine: new Engine({ lib, onPrint: (text) => code.print(text) }),
  model: null,
  t: texts[language] ?? texts.en,
  language: language in texts ? language : "en",
  ids: null,  // the tokens of the text; null: it was typed and has to be encoded
  written: { ids: [], generated: [] },  // the tokens of the last text, and whether each was generated
  chosen: null,  // the token shown in the views; null: the last one
  result: null,  // of the last analysis
  run: null,  // the promise of the current run

  get token() {
    return Math.min(this.chosen ?? Infinity, (this.result?.n ?? 1) - 1);
  },
  prompt: () => page.ids ?? $("prompt").value,
  name: (i) => page.model.vocabulary[page.result.ids[i]].text,
  number: (x, digits = 2, options = {}) =>
    x.toLocaleString(page.language, { minimumFractionDigits: digits, maximumFractionDigits: digits, ...options }),
  percent: (x) => x > 0 && x < 0.001 ? `<${page.percent(0.001)}` : page.number(x, x < 0.1 ? 1 : 0, { style: "percent" }),
  highlight: (name, pattern) => code.highlight(name, pattern),
  announce: (text) => { $("status").textContent = text; },
  refresh: () => refresh(),

  explain({ code, detail, message }) {
    const text = this.t.failures[code] ?? this.t.failures.broken;
    return typeof text === "string" ? text : text(detail ?? message);
  },

  // Shows an error where it belongs: at its line of the source, in the status line, or, if fatal, above everything.
  fail(error) {
    if (error.code === "stopped") return;
    if (error.code === "python") return code.showError(error.detail, true);
    if (error.code === "too-long") {
      page.tooLong = true;
      return page.announce(page.explain(error));
    }
    console.warn(error);
    $("trouble").textContent = page.explain(error);
  },

  // Offers a stop button when something takes long.
  async busy(promise) {
    this.pending = (this.pending ?? 0) + 1;
    const timer = setTimeout(() => { $("stop").hidden = false; }, WAIT);
    try {
      return await promise;
    } finally {
      clearTimeout(timer);
      if (!--this.pending) $("stop").hidden = true;
    }
  },

  async halt() {  // stops a run and waits for its end
    if (this.run) await Promise.all([stop(), this.run]);
  },

  choose(token) {
    this.chosen = token === this.result.n - 1 ? null : token;
    drawTokens();
    inside.show();
  },
};

const code = new Code(page, lib), inside = new Inside(page);

function settings() {
  const [temperature, k, p] = ["temperature", "top_k", "top_p"].map((id) => Number($(id).value));
  return { temperature, top_k: k >= ALL_K ? null : k, top_p: p >= 1 ? null : p };
}

// --- analysis and drawing of the current text; while it is busy, only the latest request is kept ---

let wanted = false, refreshing = null, last = { at: 0, took: 0 };

function refresh() {
  wanted = true;
  refreshing ??= refreshWhileWanted().finally(() => { refreshing = null; });
  return refreshing;
}

async function refreshWhileWanted() {
  while (wanted) {
    wanted = false;
    const began = performance.now();
    try {
      const result = await page.busy(page.engine.analyse(page.prompt(), settings()));
      if (wanted && !page.run) continue;
      show(result);
      code.clearTransientError();
      last = { at: performance.now(), took: performance.now() - began };
      page.timing = [result.n, Math.round(last.took)];
      $("timing").textContent = page.t.timing(...page.timing);
    } catch (error) {
      page.fail(error);
    }
  }
}

// Remembers which tokens were generated, up to where the text changes; isGenerated: whether a new last token was.
function track(ids, isGenerated = false) {
  const { written } = page, change = ids.findIndex((id, i) => id !== written.ids[i]);
  const end = change < 0 ? ids.length : change, known = written.generated;
  page.written = { ids, generated: ids.map((_, i) => i < end ? known[i] : isGenerated && i === ids.length - 1) };
}

function show(result) {
  if (page.tooLong) page.tooLong = false, page.announce("");
  if (!page.run) {
    track(result.ids);
    page.ids ??= [...result.ids];
  }
  page.result = result;
  drawTokens();
  drawBars();
  inside.show(Boolean(page.run));
}

// --- the tokens ---

function drawTokens() {
  const { ids } = page.result;
  fill($("tokens"), ids.length, () => {
    const button = make("button", null, undefined, { type: "button", tabIndex: -1 });
    make("span", button), make("small", button);
    return button;
  }, (button, i) => {
    const id = ids[i], { text } = page.model.vocabulary[id];
    if (button.dataset.id !== String(id)) {
      button.dataset.id = id;
      button.firstChild.textContent = text, button.lastChild.textContent = id;
    }
    button.classList.toggle("generated", Boolean(page.written.generated[i]));
    button.setAttribute("aria-pressed", i === page.token);
  });
  ensureTabStop($("tokens"));
  if (page.run) $("tokens").scrollTop = $("tokens").scrollHeight;
  showDetail(ids[page.token]);
}

const escape = (text) => make("i", null, text).innerHTML;

function showDetail(id) {
  const { t, model } = page, { text, bytes, parts, rank } = model.vocabulary[id];
  const steps = [];
  const addSteps = (id) => {  // the merges that created it, in their order
    const { text, parts } = model.vocabulary[id];
    if (!parts) return;
    parts.forEach(addSteps);
    steps.push(`${parts.map((part) => `<b class="token">${escape(model.vocabulary[part].text)}</b>`).join(" + ")}`
      + ` → <b class="token">${escape(text)}</b>`);
  };
  addSteps(id);
  const origin = text === END ? t.detailSpecial : parts ? t.detailMerges(rank + 1, [...new Set(steps)].join(t.comma))
    : t.detailByte;
  $("detail").innerHTML = t.detail(escape(text), id, bytes) + origin;
}

function listenToTokens() {
  const indexOf = (target) => [...$("tokens").children].indexOf(target.closest("button"));
  rove($("tokens"));
  const enter = ({ target }) => {
    const i = indexOf(target);
    if (i >= 0) showDetail(page.result.ids[i]), inside.hover(i);
  };
  $("tokens").addEventListener("pointerover", enter);
  $("tokens").addEventListener("focusin", enter);
  const leave = () => { inside.hover(null); showDetail(page.result.ids[page.token]); };
  $("tokens").addEventListener("pointerleave", leave);
  $("tokens").addEventListener("focusout", leave);
  $("tokens").onclick = ({ target }) => indexOf(target) >= 0 && page.choose(indexOf(target));
}

// --- the next token ---

function drawBars() {
  const { t, model, percent, result: { before, tempered, after } } = page;
  const order = Array.from(before.keys()).sort((a, b) => before[b] - before[a]).slice(0, N_BARS);
  const most = Math.max(...order.map((id) => Math.max(before[id], after[id])));
  const full = [0.1, 0.2, 0.3, 0.5, 0.75, 1].find((limit) => limit >= most) ?? 1;  // so that the bars do not jump
  fill($("bars"), order.length, () => {
    const button = make("button", null, undefined, { type: "button", tabIndex: -1 });
    make("span", button, "", { className: "token" });
    const track = make("span", button, undefined, { className: "track" });
    make("i", track), make("b", track);
    make("span", button, "", { className: "share" });
    return button;
  }, (button, i) => {
    const id = order[i], { text } = model.vocabulary[id], out = after[id] === 0, [name, track, share] = button.children;
    Object.assign(button.dataset, { id, before: before[id], after: after[id] });
    button.classList.toggle("cut", out);
    button.title = t.bar(text, percent(before[id]), out ? null : percent(after[id]));
    name.textContent = text;
    track.firstChild.style.width = `${100 * before[id] / full}%`;
    track.lastChild.style.width = `${100 * after[id] / full}%`;
    share.textContent = out ? t.cut : percent(after[id]);
  });
  ensureTabStop($("bars"));
  let kept = 0, cut = 0, rest = 1;
  after.forEach((part, id) => { part > 0 ? kept++ : cut += tempered[id]; });
  for (const id of order) rest -= after[id];
  $("kept").textContent = settings().temperature === 0 ? t.temperatureZero : t.kept(kept, after.length, percent(cut));
  const others = kept - order.filter((id) => after[id] > 0).length;
  $("others").textContent = others > 0 ? t.others(others, percent(Math.max(0, rest))) : "";
}

function drawSliders() {
  const { temperature, top_k, top_p } = settings(), { t, number } = page;
  const shown = { temperature: number(temperature), top_k: top_k ?? t.all, top_p: t.all };
  if (top_p !== null) shown.top_p = number(top_p);
  for (const [id, text] of Object.entries(shown)) {
    document.querySelector(`output[for=${id}]`).textContent = text;
    $(id).setAttribute("aria-valuetext", text);
  }
}

// --- generation ---

async function decode(ids) {
  const special = page.model.vocabulary[ids[0]]?.text === END;  // stands for an empty prompt
  return page.engine.decode(special ? ids.slice(1) : ids);
}

let streaming = false;

function generate(n, seed) {
  streaming = true;
  const run = page.busy(page.engine.generate(page.prompt(), { ...settings(), seed, n }, onToken));
  page.run = run.then(async ({ reason }) => {
    page.run = null;
    if (reason in page.t.ends) {
      const text = page.t.ends[reason];
      page.announce(typeof text === "string" ? text : text(page.model.hparams.n_ctx));
    } else if (n > 1) page.announce(reason === "stopped" ? page.t.stopped : "");
  }, (error) => {
    page.run = null;
    page.fail(error);
  }).then(async () => {
    drawRun();
    await stopping;  // no new request joins those that are being stopped
    return refresh();
  });
  drawRun(n > 1);
  return page.run;
}

function onToken({ text, ids }) {
  if (!streaming) return;  // the user has typed something else in the meantime
  page.ids = ids;
  track(ids, true);
  $("prompt").value += text;
  $("prompt").scrollTop = $("prompt").scrollHeight;
  page.chosen = null;
  if (!refreshing && performance.now() - last.at > Math.max(INTERVAL, FACTOR * last.took)) refresh();
}

function drawRun(on = false) {
  $("run").setAttribute("aria-pressed", on);
  $("run").setAttribute("aria-label", page.t.runLabel);
  $("run").textContent = on ? page.t.stop : page.t.run;
}

let stopping = null;

async function stop() {
  const timer = setTimeout(() => page.announce(page.t.stopping), WAIT);
  stopping ??= page.engine.stop().finally(() => { stopping = null; });
  const { restarted } = await stopping;
  clearTimeout(timer);
  if (!restarted) return;
  page.announce(page.t.restarted);
  code.restarted();
  refresh();
}

async function append(id) {
  await page.halt();
  page.ids = [...page.result.ids, id];
  page.chosen = null;
  $("prompt").value = await decode(page.ids);
  refresh();
}

function listenToText() {
  $("prompt").oninput = async () => {
    streaming = false;
    Object.assign(page, { ids: null, chosen: null });
    await page.halt();
    refresh();
  };
  $("run").onclick = () => page.run ? stop() : generate(page.model.hparams.n_ctx);
  let steps = Promise.resolve();  // one at a time, however fast the clicks
  $("step").onclick = () => { steps = steps.then(() => page.halt()).then(() => generate(1)); };
  $("stop").onclick = stop;
  for (const id of ["temperature", "top_k", "top_p"]) {
    $(id).oninput = () => { drawSliders(); refresh(); };
    $(id).onfocus = () => page.highlight("sample");
    $(id).onblur = () => inside.highlight();
  }
  rove($("bars"));
  $("bars").onclick = ({ target }) => {
    const button = target.closest("button");
    if (button) append(Number(button.dataset.id));
  };
}

// --- the language and the link ---

function setLanguage(language) {
  Object.assign(page, { language, t: texts[language] });
  document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
  document.title = page.t.title;
  const set = (name, put) => {
    for (const element of document.querySelectorAll(`[data-${name}]`)) put(element, page.t[element.dataset[name]]);
  };
  set("text", (element, text) => { element.textContent = text; });
  set("html", (element, text) => { element.innerHTML = text; });
  set("label", (element, text) => { element.ariaLabel = text; });
  Object.assign($("language"), { textContent: page.t.other, title: page.t.otherLabel });
  $("language").lang = language === "zh" ? "en" : "zh-Hans";
  code.editor.relabel(page.t.editorLabel);
  drawSliders();
  drawRun(Boolean(page.run));
  if (!page.result) return;
  $("timing").textContent = page.t.timing(...page.timing);
  drawTokens();
  drawBars();
  inside.show();
  code.show();
}

async function copyLink() {
  const { temperature, top_k, top_p } = settings(), { view, layer, head } = inside;
  const token = page.chosen === null ? null : page.chosen + 1, source = code.edited ? code.editor.text : null;
  const hash = await links.write({ text: $("prompt").value, temperature, top_k, top_p, view, layer: layer + 1,
    head: head + 1, token, source });
  history.replaceState(null, "", hash);
  const copied = await navigator.clipboard?.writeText(location.href).then(() => true, () => false);
  page.announce(copied ? page.t.linkDone : page.t.linkShown);
}

// Restores the state that a link describes; values out of range are clamped.
function restore(link) {
  const { n_layer, n_head } = page.model.hparams;
  const index = (value, limit) => Math.min(limit, Math.max(1, Math.floor(Number(value)) || 1)) - 1;
  if (link.text !== undefined) $("prompt").value = link.text;
  for (const id of ["temperature", "top_k", "top_p"])
    if (link[id] !== undefined && !Number.isNaN(Number(link[id]))) $(id).value = link[id];
    else if (link.text !== undefined && id !== "temperature") $(id).value = $(id).max;
  inside.layer = index(link.layer ?? FIRST_HEAD.layer, n_layer);
  inside.head = index(link.head ?? FIRST_HEAD.head, n_head);
  page.chosen = link.token === undefined ? null : index(link.token, page.model.hparams.n_ctx);
  page.ids = null;
  drawSliders();
}

async function start() {
  $("language").hidden = false;
  $("language").onclick = () => {
    const url = new URL(location.href);
    setLanguage(page.language === "zh" ? "en" : "zh");
    url.searchParams.set("lang", page.language);
    history.replaceState(null, "", url);
  };
  setLanguage(page.language);
  $("prompt").value = PROMPT;
  $("progress").hidden = false;
  try {
    let stage;
    page.model = await page.engine.load((done, total, newStage) => {
      if ($("progress").hidden) return;  // another worker is starting
      $("progress").max = total, $("progress").value = done;
      $("amount").textContent = page.t.megabytes(page.number(done, 1), page.number(total, 1));
      if (stage !== newStage) page.announce(page.t.stages[stage = newStage]);
    });
  } catch (error) {
    page.announce("");
    $("trouble").textContent ||= page.explain(error);
    return;
  } finally {
    $("progress").hidden = true;
    $("amount").textContent = "";
  }
  const link = await links.read(location.hash);
  code.start(link.source);
  restore(link);
  listenToText();
  listenToTokens();
  inside.open(link.view);
  page.announce(link.damaged ? page.t.linkBad : page.t.ready);
  $("link").hidden = false;
  $("link").onclick = copyLink;
  document.querySelector("main").removeAttribute("aria-busy");
  onhashchange = () => location.reload();
  matchMedia("(prefers-color-scheme: dark)").onchange = () => inside.show();
  await refresh();
  performance.mark("text");
  code.upgrade();
  if (link.text === undefined && !link.source) await generate(FIRST_RUN.n, FIRST_RUN.seed);
  code.measure().catch((error) => page.fail(error));
  page.engine.keepOffline().catch((error) => console.warn(error));
}

window.engine = page.engine;
start();
