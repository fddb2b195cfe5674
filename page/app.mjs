// The page: the text, what comes next, and who is told when something changes. What is drawn is in views.mjs, the views
// of the inside in inside.mjs, the source in code.mjs; the numbers come from engine.mjs.

import { Code } from "./code.mjs";
import { Engine } from "./engine.mjs";
import { Inside } from "./inside.mjs";
import * as links from "./link.mjs";
import { texts } from "./texts.mjs";
import { fill, make, rove, reachable } from "./views.mjs";

const $ = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search), lib = query.get("lib");
const PROMPT = "JULIET:\nO Romeo", FIRST = { n: 32, seed: 2 };  // what is there before anything is clicked
const HEAD = { layer: 5, head: 4 };  // one that looks at the token before, which is easily seen
const N_BARS = 12, ALL_K = 101, END = "<|endoftext|>";
const WAIT = 400;  // milliseconds until a stop is offered
const BETWEEN = 100, PART = 3;  // from one picture of a run to the next: milliseconds, and times what a picture takes

const language = query.get("lang") ?? (navigator.language.startsWith("zh") ? "zh" : "en");

const page = {
  engine: new Engine({ lib, onPrint: (text) => code.print(text) }),
  model: null,
  t: texts[language] ?? texts.en,
  language: language in texts ? language : "en",
  ids: null,  // of the text, where it is known how it was made; else the text is encoded anew
  written: { ids: [], made: [] },  // for each token of the last text, whether the model wrote it
  chosen: null,  // the token that the views look at; null: the last
  result: null,  // of the last analysis
  run: null,  // the promise of a run that goes on

  get token() {
    return Math.min(this.chosen ?? Infinity, (this.result?.n ?? 1) - 1);
  },
  prompt: () => page.ids ?? $("prompt").value,
  name: (i) => page.model.vocabulary[page.result.ids[i]].text,
  number: (x, digits = 2, options = {}) =>
    x.toLocaleString(page.language, { minimumFractionDigits: digits, maximumFractionDigits: digits, ...options }),
  percent: (x) => x > 0 && x < 0.001 ? `<${page.percent(0.001)}` : page.number(x, x < 0.1 ? 1 : 0, { style: "percent" }),
  point: (name, pattern) => code.point(name, pattern),
  say: (text) => { $("status").textContent = text; },
  rerun: () => look(),

  explain({ code, detail, message }) {
    const said = this.t.failures[code] ?? this.t.failures.broken;
    return typeof said === "string" ? said : said(detail ?? message);
  },

  // What went wrong, where it belongs: at its line in the source, in the status line, or, if all is over, above all.
  fail(error) {
    if (error.code === "stopped") return;
    if (error.code === "python") return code.failed(error.detail, true);
    if (error.code === "too-long") {
      page.tooLong = true;
      return page.say(page.explain(error));
    }
    console.warn(error);
    $("trouble").textContent = page.explain(error);
  },

  // While something takes long, it can be stopped.
  async busy(promise) {
    this.waits = (this.waits ?? 0) + 1;
    const timer = setTimeout(() => { $("stop").hidden = false; }, WAIT);
    try {
      return await promise;
    } finally {
      clearTimeout(timer);
      if (!--this.waits) $("stop").hidden = true;
    }
  },

  async halt() {  // ends a run, and comes back when it has ended
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

// --- a picture of the text as it is now; of several wishes in the meantime only the last counts ---

let wanted = false, looking = null, looked = { at: 0, took: 0 };

function look() {
  wanted = true;
  looking ??= lookAgain().finally(() => { looking = null; });
  return looking;
}

async function lookAgain() {
  while (wanted) {
    wanted = false;
    const since = performance.now();
    try {
      const result = await page.busy(page.engine.analyse(page.prompt(), settings()));
      if (wanted && !page.run) continue;
      take(result);
      code.works();
      looked = { at: performance.now(), took: performance.now() - since };
      page.timing = [result.n, Math.round(looked.took)];
      $("timing").textContent = page.t.timing(...page.timing);
    } catch (error) {
      page.fail(error);
    }
  }
}

// Keeps of each token whether the model wrote it, as far as the text is still the same; the last one may be new.
function note(ids, made = false) {
  const { written } = page, differs = ids.findIndex((id, i) => id !== written.ids[i]);
  const end = differs < 0 ? ids.length : differs;
  page.written = { ids, made: ids.map((_, i) => i < end ? written.made[i] : made && i === ids.length - 1) };
}

function take(result) {
  if (page.tooLong) page.tooLong = false, page.say("");
  if (!page.run) {
    note(result.ids);
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
    button.classList.toggle("made", Boolean(page.written.made[i]));
    button.setAttribute("aria-pressed", i === page.token);
  });
  reachable($("tokens"));
  if (page.run) $("tokens").scrollTop = $("tokens").scrollHeight;
  detail(ids[page.token]);
}

const escape = (text) => make("i", null, text).innerHTML;

function detail(id) {
  const { t, model } = page, { text, bytes, parts, rank } = model.vocabulary[id];
  const steps = [];
  const tell = (id) => {  // the merges that made it, the first ones first
    const { text, parts } = model.vocabulary[id];
    if (!parts) return;
    parts.forEach(tell);
    steps.push(`${parts.map((part) => `<b class="token">${escape(model.vocabulary[part].text)}</b>`).join(" + ")}`
      + ` → <b class="token">${escape(text)}</b>`);
  };
  tell(id);
  const origin = text === END ? t.detailSpecial : parts ? t.detailMerges(rank + 1, [...new Set(steps)].join(t.comma))
    : t.detailByte;
  $("detail").innerHTML = t.detail(escape(text), id, bytes) + origin;
}

function listenToTokens() {
  const place = (target) => target.closest("button");
  rove($("tokens"));
  const show = ({ target }) => {
    const button = place(target);
    if (button) detail(Number(button.dataset.id)), inside.hover([...$("tokens").children].indexOf(button));
  };
  $("tokens").addEventListener("pointerover", show);
  $("tokens").addEventListener("focusin", show);
  const leave = () => { inside.hover(null); detail(page.result.ids[page.token]); };
  $("tokens").addEventListener("pointerleave", leave);
  $("tokens").addEventListener("focusout", leave);
  $("tokens").onclick = ({ target }) => place(target) && page.choose([...$("tokens").children].indexOf(place(target)));
}

// --- what comes next ---

function drawBars() {
  const { t, model, percent, result: { before, tempered, after } } = page;
  const order = Array.from(before.keys()).sort((a, b) => before[b] - before[a]).slice(0, N_BARS);
  const most = Math.max(...order.map((id) => Math.max(before[id], after[id])));
  const full = [0.1, 0.2, 0.3, 0.5, 0.75, 1].find((limit) => limit >= most) ?? 1;  // so that bars do not jump
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
  reachable($("bars"));
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

// --- the text goes on ---

async function textOf(ids) {
  const special = page.model.vocabulary[ids[0]]?.text === END;  // from which an empty text begins
  return page.engine.decode(special ? ids.slice(1) : ids);
}

let streams = false;

function goOn(n, seed) {
  streams = true;
  const run = page.busy(page.engine.generate(page.prompt(), { ...settings(), seed, n }, onToken));
  page.run = run.then(async ({ reason }) => {
    page.run = null;
    if (reason in page.t.ends) {
      const said = page.t.ends[reason];
      page.say(typeof said === "string" ? said : said(page.model.hparams.n_ctx));
    } else if (n > 1) page.say(reason === "stopped" ? page.t.stopped : "");
  }, (error) => {
    page.run = null;
    page.fail(error);
  }).then(async () => {
    drawRun();
    await stopping;  // which waits until nothing is asked for
    return look();
  });
  drawRun(n > 1);
  return page.run;
}

function onToken({ text, ids }) {
  if (!streams) return;  // the reader has written something else in the meantime
  page.ids = ids;
  note(ids, true);
  $("prompt").value += text;
  $("prompt").scrollTop = $("prompt").scrollHeight;
  page.chosen = null;
  if (!looking && performance.now() - looked.at > Math.max(BETWEEN, PART * looked.took)) look();
}

function drawRun(on = false) {
  $("run").setAttribute("aria-pressed", on);
  $("run").setAttribute("aria-label", page.t.runLabel);
  $("run").textContent = on ? page.t.stop : page.t.run;
}

let stopping = null;

async function stop() {
  const timer = setTimeout(() => page.say(page.t.stopping), WAIT);
  stopping ??= page.engine.stop().finally(() => { stopping = null; });
  const { restarted } = await stopping;
  clearTimeout(timer);
  if (!restarted) return;
  page.say(page.t.restarted);
  code.restarted();
  look();
}

async function takeToken(id) {
  await page.halt();
  page.ids = [...page.result.ids, id];
  page.chosen = null;
  $("prompt").value = await textOf(page.ids);
  look();
}

function listenToText() {
  $("prompt").oninput = async () => {
    streams = false;
    Object.assign(page, { ids: null, chosen: null });
    await page.halt();
    look();
  };
  $("run").onclick = () => page.run ? stop() : goOn(page.model.hparams.n_ctx);
  let steps = Promise.resolve();  // one after the other, however quick the clicks
  $("step").onclick = () => { steps = steps.then(() => page.halt()).then(() => goOn(1)); };
  $("stop").onclick = stop;
  for (const id of ["temperature", "top_k", "top_p"]) {
    $(id).oninput = () => { drawSliders(); look(); };
    $(id).onfocus = () => page.point("sample");
    $(id).onblur = () => inside.point();
  }
  rove($("bars"));
  $("bars").onclick = ({ target }) => {
    const button = target.closest("button");
    if (button) takeToken(Number(button.dataset.id));
  };
}

// --- the language, and the link ---

function speak(language) {
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

async function share() {
  const { temperature, top_k, top_p } = settings(), { view, layer, head } = inside;
  const token = page.chosen === null ? null : page.chosen + 1, source = code.edited ? code.editor.text : null;
  const hash = await links.write({ text: $("prompt").value, temperature, top_k, top_p, view, layer: layer + 1,
    head: head + 1, token, source });
  history.replaceState(null, "", hash);
  const copied = await navigator.clipboard?.writeText(location.href).then(() => true, () => false);
  page.say(copied ? page.t.linkDone : page.t.linkShown);
}

// Sets the page as a link says; what is out of range stays within it.
function follow(link) {
  const { n_layer, n_head } = page.model.hparams;
  const whole = (value, limit) => Math.min(limit, Math.max(1, Math.floor(Number(value)) || 1)) - 1;
  if (link.text !== undefined) $("prompt").value = link.text;
  for (const id of ["temperature", "top_k", "top_p"])
    if (link[id] !== undefined && !Number.isNaN(Number(link[id]))) $(id).value = link[id];
    else if (link.text !== undefined && id !== "temperature") $(id).value = $(id).max;
  inside.layer = whole(link.layer ?? HEAD.layer, n_layer), inside.head = whole(link.head ?? HEAD.head, n_head);
  page.chosen = link.token === undefined ? null : whole(link.token, page.model.hparams.n_ctx);
  page.ids = null;
  drawSliders();
}

async function start() {
  $("language").hidden = false;
  $("language").onclick = () => {
    const url = new URL(location.href);
    speak(page.language === "zh" ? "en" : "zh");
    url.searchParams.set("lang", page.language);
    history.replaceState(null, "", url);
  };
  speak(page.language);
  $("prompt").value = PROMPT;
  $("progress").hidden = false;
  try {
    let stage;
    page.model = await page.engine.load((done, total, now) => {
      if ($("progress").hidden) return;  // another worker starts
      $("progress").max = total, $("progress").value = done;
      $("amount").textContent = page.t.megabytes(page.number(done, 1), page.number(total, 1));
      if (stage !== now) page.say(page.t.stages[stage = now]);
    });
  } catch (error) {
    page.say("");
    $("trouble").textContent ||= page.explain(error);
    return;
  } finally {
    $("progress").hidden = true;
    $("amount").textContent = "";
  }
  const link = await links.read(location.hash);
  code.start(link.source);
  follow(link);
  listenToText();
  listenToTokens();
  inside.open(link.view);
  page.say(link.damaged ? page.t.linkBad : page.t.ready);
  $("link").hidden = false;
  $("link").onclick = share;
  document.querySelector("main").removeAttribute("aria-busy");
  onhashchange = () => location.reload();
  matchMedia("(prefers-color-scheme: dark)").onchange = () => inside.show();
  await look();
  performance.mark("text");
  code.upgrade();
  if (link.text === undefined && !link.source) await goOn(FIRST.n, FIRST.seed);
  code.measure().catch((error) => page.fail(error));
  page.engine.keepOffline().catch((error) => console.warn(error));
}

window.engine = page.engine;
start();
