// The three views of the model: attention, the predictions after each block, one token through one block.

import { drawLines, drawMap, drawNext, ensureTabStop, fill, habits, make, rove, shades, share, tint } from "./views.mjs";
import { drawSteps, line } from "./views-block.mjs";

const $ = (id) => document.getElementById(id);
const VIEWS = ["attention", "layers", "block"];
const N_STEPS = 17, N_LENS = 6;  // in a complete block; next tokens shown per block
const FUNCTIONS = { attention: "attention", layers: "hidden_states", block: "transformer_block" };

export class Inside {
  // page: { engine, model, t, result, token, run, name(i), percent(x), choose(i), highlight, announce, fail }
  constructor(page) {
    Object.assign(this, { page, view: "attention", layer: 0, head: 0, query: null, key: null });
    Object.assign(this, { wanted: false, requesting: false });
    [this.row, this.svg] = $("lines").children;
    this.listen();
  }

  listen() {
    const tabs = VIEWS.map((view) => $(`tab-${view}`));
    tabs.forEach((tab, i) => {
      tab.onclick = () => this.open(VIEWS[i]);
      tab.onkeydown = ({ key }) => {
        const step = { ArrowLeft: -1, ArrowRight: 1 }[key];
        if (step) this.open(VIEWS[(i + step + 3) % 3]), $(`tab-${this.view}`).focus();
      };
    });
    const large = $("large");
    large.onpointermove = large.onpointerdown = (event) => {
      const index = (offset) => Math.min(this.n - 1, Math.max(0, Math.floor(offset * this.n / large.clientWidth)));
      this.pointAt(index(event.offsetY), index(event.offsetX));
    };
    large.onpointerleave = () => this.pointAt(null, null);
    large.onkeydown = (event) => {
      const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
      const [rows, columns] = moves[event.key] ?? [];
      if (rows === undefined || !this.n) return;
      event.preventDefault();
      const clamp = (value) => Math.min(this.n - 1, Math.max(0, value));
      this.pointAt(clamp((this.query ?? this.page.token) + rows), clamp((this.key ?? 0) + columns));
    };
    rove($("heads"), () => this.heads);
    $("heads").onclick = ({ target }) => {
      const button = target.closest("button");
      if (button) this.set({ layer: Number(button.dataset.layer), head: Number(button.dataset.head) });
    };
    rove($("lines"));
    this.row.onpointerover = ({ target }) => this.hover(this.indexOf(target));
    this.row.addEventListener("focusin", ({ target }) => this.hover(this.indexOf(target)));
    this.row.addEventListener("focusout", () => this.hover(null));
    this.row.onpointerleave = () => this.hover(null);
    this.row.onclick = ({ target }) => this.indexOf(target) >= 0 && this.page.choose(this.indexOf(target));
    $("block-token").onchange = ({ target }) => this.page.choose(Number(target.value));
    $("block-layer").onchange = ({ target }) => this.set({ layer: Number(target.value) });
    $("block-head").onchange = ({ target }) => this.set({ head: Number(target.value) });
    new ResizeObserver(() => this.lines()).observe(this.row);
  }

  indexOf(target) {
    return [...this.row.children].indexOf(target.closest("button"));
  }

  get n() {
    return this.page.result?.n ?? 0;
  }

  get head() {  // the chosen head, or the last one if the source has fewer
    return Math.min(this.chosenHead, this.page.result?.weights ? this.heads - 1 : Infinity);
  }

  set head(head) {
    this.chosenHead = head;
  }

  get heads() {  // an edited source may have a different number
    return this.page.result.heads;
  }

  // The weights of one head, n * n bytes.
  weights(layer = this.layer, head = this.head) {
    const size = this.n ** 2, start = (layer * this.heads + head) * size;
    return this.page.result.weights.subarray(start, start + size);
  }

  set(changes) {
    Object.assign(this, changes);
    this.show();
  }

  open(view) {
    this.view = VIEWS.includes(view) ? view : VIEWS[0];
    for (const name of VIEWS) {
      const on = name === this.view, tab = $(`tab-${name}`);
      tab.setAttribute("aria-selected", on);
      tab.tabIndex = on ? 0 : -1;
      $(`view-${name}`).hidden = !on;
    }
    this.highlight();
    this.show();
  }

  highlight() {  // the part of the source that computes the view
    this.page.highlight(FUNCTIONS[this.view]);
  }

  // Selects a cell of the large map: the query's row (null: the chosen token's) and the key's column (null: none).
  pointAt(query, key) {
    Object.assign(this, { query, key });
    this.readout();
    this.lines();
  }

  hover(token) {
    Object.assign(this, { query: token >= 0 ? token : null, key: null });
    this.lines();
  }

  // Redraws the current view. During a run only the chosen head is drawn: drawing all of them would slow it down.
  show(streaming = false) {
    if (!this.n) return;
    this[this.view](streaming);
  }

  attention(streaming) {
    const { page, n } = this, { t, model, result } = page, { n_layer } = model.hparams;
    $("no-weights").hidden = Boolean(result.weights);
    $("seen").hidden = !result.weights;
    if (!result.weights) return;
    const n_head = this.heads, colors = shades();
    $("heads").style.setProperty("--columns", n_head);
    fill($("heads"), n_layer * n_head, () => {
      const button = make("button", null, undefined, { type: "button", tabIndex: -1 });
      make("canvas", button);
      return button;
    }, (button, i) => {
      const layer = Math.floor(i / n_head), head = i % n_head, chosen = layer === this.layer && head === this.head;
      Object.assign(button.dataset, { layer, head });
      button.setAttribute("aria-pressed", chosen);
      if (streaming && !chosen) return;
      const title = t.headTitle(layer + 1, head + 1), weights = this.weights(layer, head);
      const habit = n < 3 ? "" : t.habit(...habits(weights, n).map(page.percent));
      drawMap(button.firstChild, weights, n, colors);
      button.title = title;
      button.setAttribute("aria-label", `${title}. ${habit}`);
      if (chosen) $("habit").textContent = habit;
    });
    ensureTabStop($("heads"));
    $("head-title").textContent = t.headTitle(this.layer + 1, this.head + 1);
    drawMap($("large"), this.weights(), n, colors);
    if (this.query >= n || this.key >= n) Object.assign(this, { query: null, key: null });
    this.readout();
    if (streaming) return;
    fill(this.row, n, () => make("button", null, "", { type: "button", tabIndex: -1 }), (button, i) => {
      button.textContent = page.name(i);
      button.setAttribute("aria-pressed", i === page.token);
    });
    ensureTabStop(this.row);
    this.lines();
  }

  readout() {
    const { page, key } = this, { t } = page, query = this.query ?? page.token;
    if (!page.result?.weights) return;
    const part = share(this.weights(), this.n, query, key ?? 0);
    $("readout").textContent = key === null ? t.readoutHelp
      : key > query && !part ? t.readoutFuture(page.name(query), page.name(key))
        : t.readout(page.name(query), page.name(key), page.percent(part));
  }

  lines() {
    const { page, n } = this, from = this.query ?? page.token;
    if (this.view !== "attention" || !page.result?.weights || this.row.childElementCount !== n) return;
    const shares = Array.from({ length: n }, (_, key) => share(this.weights(), n, from, key));
    this.svg.setAttribute("width", this.row.offsetWidth), this.svg.setAttribute("height", this.row.offsetHeight);
    drawLines(this.svg, this.row.children, from, shares);
    [...this.row.children].forEach((button, i) => {
      button.style.background = shares[i] > 0.004 ? tint(shares[i]) : "";
      button.classList.toggle("from", i === from);
    });
    const best = shares.map((part, i) => [part, i]).filter(([part]) => part > 0.02).sort((a, b) => b[0] - a[0]);
    const list = best.slice(0, 4).map(([part, i]) => `${page.name(i)} ${page.percent(part)}`);
    $("attends").textContent = page.t.attends(page.name(from), list.join(page.t.comma));
  }

  layers(streaming) {
    const { page, n } = this, { t, model: { hparams: { n_layer } } } = page;
    if (streaming) return;
    $("lens-title").textContent = t.lensTitle(page.name(page.token));
    const head = make("tr", null);
    make("th", head, t.wholeToken, { scope: "col" });
    for (let layer = 0; layer < n_layer; layer++)
      make("th", head, layer + 1, { scope: "col", title: this.blockName(layer) });
    $("whole").tHead?.remove();
    $("whole").createTHead().append(head);
    this.lenses = Array.from({ length: n }, (_, i) => this.lenses?.[i] ?? null);  // shown until they are updated
    this.request();
  }

  blockName(layer) {
    return layer === this.page.model.hparams.n_layer - 1 ? this.page.t.lensLast : this.page.t.lensRow(layer + 1);
  }

  async askLens() {
    const { page, n } = this, { token, result } = page, order = [token, ...Array(n).keys()];
    for (const i of order) {
      if (this.wanted || page.run) return;
      if (this.lenses[i]?.of === result) {
        if (i === token) this.drawLens(this.lenses[i], token);
        continue;
      }
      const rows = i === n - 1 && result.lens ? result.lens : await page.engine.lens(result.ids, i);
      if (page.result !== result || this.wanted) return;
      if (!rows) return this.drawLens(null);
      this.lenses[i] = Object.assign(rows, { of: result });
      if (i === token) this.drawLens(rows, token);
    }
    this.drawWhole();
  }

  lensCell(rows, layer, rank, next) {
    const { page } = this, { id, p } = rows[layer][rank], { text } = page.model.vocabulary[id];
    return { text, share: p, title: page.percent(p), correct: id === next };
  }

  drawLens(rows, token) {
    $("no-lens").hidden = Boolean(rows);
    const next = this.page.result.ids[token + 1], body = $("lens").tBodies[0] ?? $("lens").createTBody();
    drawNext(body, (rows ?? []).map((row, layer) => {
      const cells = row.slice(0, N_LENS).map((_, rank) => this.lensCell(rows, layer, rank, next));
      return { label: this.blockName(layer), cells: cells.map((cell) => ({ ...cell, note: cell.title })) };
    }));
  }

  drawWhole() {
    const { page } = this, { ids } = page.result;
    drawNext($("whole").tBodies[0] ?? $("whole").createTBody(), this.lenses.map((rows, i) => ({ label: page.name(i),
      chosen: i === page.token, cells: rows.map((_, layer) => this.lensCell(rows, layer, 0, ids[i + 1])) })));
  }

  block(streaming) {
    const { page, n } = this, { n_layer } = page.model.hparams;
    const n_head = page.result.weights ? this.heads : page.model.hparams.n_head;
    if (streaming) return;
    const options = (select, count, text, chosen) => {
      fill(select, count, () => make("option", null), (option, i) => {
        option.value = i, option.textContent = text(i), option.selected = i === chosen;
      });
    };
    options($("block-token"), n, (i) => `${i + 1} ${page.name(i)}`, page.token);
    options($("block-layer"), n_layer, (i) => i + 1, this.layer);
    options($("block-head"), n_head, (i) => i + 1, this.head);
    this.request();
  }

  // Requests the numbers of the current view; while it is busy, only the latest request is kept.
  async request() {
    this.wanted = true;
    if (this.requesting) return;
    this.requesting = true;
    while (this.wanted) {
      this.wanted = false;
      try {
        if (this.view === "layers") await this.askLens();
        if (this.view === "block") await this.askSteps();
      } catch (error) {
        this.page.fail(error);
      }
    }
    this.requesting = false;
  }

  async askSteps() {
    const { page, layer, head } = this, { token, t, result } = page;
    const steps = await page.engine.steps(result.ids, { layer, head, token });
    if (this.wanted || page.result !== result) return;
    drawSteps($("steps"), steps, result.ids.map((_, i) => page.name(i)), token, t, (step) => {
      page.highlight(step.in, line(step.name));
      page.announce(t.blockShown(step.name));
    });
    $("no-steps").hidden = steps.length === N_STEPS;
  }
}
