// One token through one block: a list of steps with their shapes and numbers.

import { drawNumbers, fill, make, tint } from "./views.mjs";

// Finds the line of a step in its function. If the user has rewritten that line, the whole function is highlighted.
const LINES = {
  ln_1: /layer_norm\(x, \*\*ln_1\)/, q: /linear\(x, \*\*c_attn\)/, k: /linear\(x, \*\*c_attn\)/,
  v: /linear\(x, \*\*c_attn\)/, scores: /scores = /, mask: /mask = |\+= mask/, weights: /softmax\(/, mixed: /softmax\(/,
  heads: /np\.concatenate/, mha: /\*\*c_proj\)/, residual: /x = x \+ mha/, ln_2: /layer_norm\(x, \*\*ln_2\)/,
  c_fc: /c_fc\)/, gelu: /gelu\(/, ffn: /c_proj\)/, out: /return x \+ ffn/,
};
const PER_TOKEN = new Set(["scores", "mask", "weights"]);  // one number per token; the other steps have d or n_embd
const PER_HEAD = new Set(["q", "k", "v", "scores", "mask", "weights", "mixed"]);  // computed separately by each head

export const line = (name) => LINES[name];

// Two digits are enough; the mask is shown as −1e10.
export function number(value) {
  if (!Number.isFinite(value)) return String(value);
  if (Math.abs(value) >= 1e5) return value.toExponential(0).replace("e+", "e").replace("-", "−");
  return value.toFixed(Math.abs(value) >= 100 ? 0 : 2).replace("-", "−");
}

// names: the text of each token, in order; t: the page's texts; onStep(step): called when a step's name is clicked.
export function drawSteps(list, steps, names, token, t, onStep) {
  fill(list, steps.length, () => {
    const item = make("li", null);
    const head = make("p", item, undefined, { className: "step" });
    make("button", head, "", { type: "button" });
    make("b", head);
    make("span", head, "", { className: "shape" });
    make("p", item, "", { className: "help" });
    make("div", item, "", { className: "numbers" });
    return item;
  }, (item, i) => {
    const step = steps[i], [button, title, shape] = item.firstChild.children, numbers = item.lastChild;
    const [label, help] = t.steps[step.name] ?? [step.name, ""];
    item.dataset.step = step.name;
    item.className = PER_HEAD.has(step.name) ? "inside" : "";
    button.textContent = step.name;
    button.onclick = () => onStep(step);
    title.textContent = label;
    shape.textContent = `[${step.shape.join(", ")}]`;
    item.children[1].textContent = help;
    numbers.replaceChildren();
    numbers.removeAttribute("tabindex");
    if (PER_TOKEN.has(step.name)) drawTokens(numbers, step, names, token, label);
    else drawVector(numbers, step, t);
  });
}

function drawVector(parent, { row, all }, t) {
  strip(parent, row, 1);
  const first = Array.from(row.subarray(0, 6), number).join("  ");
  make("p", parent, `${first}${row.length > 6 ? "  …" : ""}`, { className: "figures" });
  if (!all) return;
  const rows = all.length / row.length;
  make("p", parent, t.rows(rows), { className: "help" });
  const canvas = strip(parent, all, rows);
  canvas.classList.add("matrix");
  canvas.style.setProperty("--rows", rows);
}

function strip(parent, numbers, rows) {
  const canvas = make("canvas", parent, undefined, { className: "strip" });
  canvas.setAttribute("aria-hidden", "true");  // the numbers are also shown as text
  drawNumbers(canvas, numbers, rows);
  return canvas;
}

function drawTokens(parent, { row }, names, token, label) {
  Object.assign(parent, { tabIndex: 0, role: "group", ariaLabel: label });  // it scrolls
  const finite = Array.from(row).filter((value) => Math.abs(value) < 1e9);
  const most = Math.max(1e-9, ...finite.map(Math.abs));
  row.forEach((value, i) => {
    const cell = make("span", parent, undefined, { className: "cell" });
    make("span", cell, names[i], { className: "token" });
    make("small", cell, number(value));
    cell.style.background = tint(Math.min(1, Math.abs(value) / most), value < 0 ? "--minus" : "--rgb");
    if (i === token) cell.classList.add("chosen");
  });
}
