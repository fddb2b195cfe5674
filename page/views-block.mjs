// One token through one block: a list of steps, each with its shape and its numbers.

import { drawNumbers, fill, make, tint } from "./views.mjs";

// Where in the step's function its line is; the reader may have rewritten it, and then the function is shown.
const LINES = {
  ln_1: /layer_norm\(x, \*\*ln_1\)/, q: /linear\(x, \*\*c_attn\)/, k: /linear\(x, \*\*c_attn\)/,
  v: /linear\(x, \*\*c_attn\)/, scores: /scores = /, mask: /mask = |\+= mask/, weights: /softmax\(/, mixed: /softmax\(/,
  heads: /np\.concatenate/, mha: /\*\*c_proj\)/, residual: /x = x \+ mha/, ln_2: /layer_norm\(x, \*\*ln_2\)/,
  c_fc: /c_fc\)/, gelu: /gelu\(/, ffn: /c_proj\)/, out: /return x \+ ffn/,
};
const OF_TOKENS = new Set(["scores", "mask", "weights"]);  // a number for each token, where the others have d or n_embd
const INSIDE = new Set(["q", "k", "v", "scores", "mask", "weights", "mixed"]);  // what is done by each head for itself

export const line = (name) => LINES[name];

// Many digits would be noise; -1e10 has to be seen as what it is.
export function number(value) {
  if (!Number.isFinite(value)) return String(value);
  if (Math.abs(value) >= 1e5) return value.toExponential(0).replace("e+", "e").replace("-", "−");
  return value.toFixed(Math.abs(value) >= 100 ? 0 : 2).replace("-", "−");
}

// names: what each token looks like, in its order; t: the page's texts; onStep(step): its name was clicked.
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
    const [named, told] = t.steps[step.name] ?? [step.name, ""];
    item.dataset.step = step.name;
    item.className = INSIDE.has(step.name) ? "inside" : "";
    button.textContent = step.name;
    button.onclick = () => onStep(step);
    title.textContent = named;
    shape.textContent = `[${step.shape.join(", ")}]`;
    item.children[1].textContent = told;
    numbers.replaceChildren();
    numbers.removeAttribute("tabindex");
    if (OF_TOKENS.has(step.name)) drawTokens(numbers, step, names, token, named);
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
  canvas.setAttribute("aria-hidden", "true");  // the numbers are given as text, too
  drawNumbers(canvas, numbers, rows);
  return canvas;
}

function drawTokens(parent, { row }, names, token, label) {
  Object.assign(parent, { tabIndex: 0, role: "group", ariaLabel: label });  // it scrolls
  const finite = Array.from(row).filter((value) => Math.abs(value) < 1e9);
  const most = Math.max(1e-9, ...finite.map(Math.abs));
  row.forEach((value, i) => {
    const place = make("span", parent, undefined, { className: "place" });
    make("span", place, names[i], { className: "token" });
    make("small", place, number(value));
    place.style.background = tint(Math.min(1, Math.abs(value) / most), value < 0 ? "--minus" : "--rgb");
    if (i === token) place.classList.add("chosen");
  });
}
