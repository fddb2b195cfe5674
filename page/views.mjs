// Drawing: attention maps, lines between tokens, tables of next tokens, numbers as colors. Nothing here depends on the
// model or the page; beyond/attention.py includes this file in the pages that it writes.
//
// A weight w is stored as a byte, round(255 * sqrt(w)), so that small weights are visible.

export function make(tag, parent, text, properties = {}) {
  const element = Object.assign(document.createElement(tag), properties);
  if (text !== undefined) element.textContent = text;
  parent?.append(element);
  return element;
}

// Gives a container `count` children, reusing existing ones: create(i) makes one, update(child, i) fills it.
export function fill(container, count, create, update) {
  while (container.childElementCount > count) container.lastElementChild.remove();
  for (let i = 0; i < count; i++) update(container.children[i] ?? container.appendChild(create(i)), i);
}

const rgb = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).split(",").map(Number);
const pixel = ([r, g, b], alpha) => ((alpha << 24) | (b << 16) | (g << 8) | r) >>> 0;  // RGBA in memory

// The 256 colors of a map, from the style's --rgb, which depends on the dark or light theme.
export function shades() {
  const color = rgb("--rgb");
  return Uint32Array.from({ length: 256 }, (_, byte) => pixel(color, 30 + Math.round(225 * byte / 255)));
}

// weights: n * n bytes, one row per query. Masked cells stay blank; all others have at least a tint.
export function drawMap(canvas, weights, n, shades) {
  if (canvas.width !== n || canvas.height !== n) canvas.width = canvas.height = n;
  const context = canvas.getContext("2d"), image = context.createImageData(n, n);
  const pixels = new Uint32Array(image.data.buffer);
  for (let query = 0; query < n; query++)
    for (let key = 0; key < n; key++) {
      const i = query * n + key, byte = weights[i];
      if (byte || key <= query) pixels[i] = shades[byte];
    }
  context.putImageData(image, 0, 0);
}

export const share = (weights, n, query, key) => (weights[query * n + key] / 255) ** 2;

// The average attention of a token to itself, to the previous token and to the first.
export function habits(weights, n) {
  const mean = (key) => {
    let sum = 0;
    for (let query = 2; query < n; query++) sum += share(weights, n, query, key(query));
    return sum / Math.max(1, n - 2);
  };
  return [mean((query) => query), mean((query) => query - 1), mean(() => 0)];
}

// A background color for a share; the style may lower --tint to keep the text readable.
export const tint = (share, color = "--rgb") =>
  `rgba(var(${color}), calc(var(--tint, .6) * ${Math.sqrt(share).toFixed(3)}))`;

// Draws lines above the text from one element to the others, as wide as their shares. The svg overlays the elements.
export function drawLines(svg, elements, from, shares) {
  const anchor = (element) => [element.offsetLeft + element.offsetWidth / 2, element.offsetTop + 2];
  const paths = [];  // inserted together, as each insertion would force a new layout
  for (let i = 0; i < elements.length && elements[from]; i++) {
    if (shares[i] < 0.02 || i === from) continue;
    const [x, y] = anchor(elements[from]), [x2, y2] = anchor(elements[i]);
    const lift = y === y2 ? Math.min(22, 6 + Math.abs(x - x2) / 5) : 18;
    const path = document.createElementNS(svg.namespaceURI, "path");
    path.setAttribute("d", `M${x} ${y}C${x} ${y - lift} ${x2} ${y2 - lift} ${x2} ${y2}`);
    path.setAttribute("stroke-width", (1 + 7 * shares[i]).toFixed(1));
    path.setAttribute("stroke-opacity", (0.35 + 0.5 * shares[i]).toFixed(2));
    paths.push(path);
  }
  svg.replaceChildren(...paths);
}

// Fills a table with next tokens. rows: [{ label, cells: [{ text, share, correct, title, note }], chosen }]; correct:
// the token is the next one in the text; note: the second line of the cell.
export function drawNext(body, rows) {
  body.replaceChildren(...rows.map(({ label, cells, chosen }) => {
    const row = make("tr", null, undefined, { className: chosen ? "chosen" : "" });
    make("th", row, label, { scope: "row" });
    for (const { text, share, correct, title, note } of cells) {
      const cell = make("td", row, text, { className: correct ? "correct" : "", title: title ?? "" });
      if (note) make("small", cell, note);
      cell.style.background = tint(share);
    }
    return row;
  }));
}

// Draws numbers as colors in `rows` rows: --rgb if positive, --minus if negative, strongest for the largest magnitude.
export function drawNumbers(canvas, numbers, rows = 1) {
  const plus = rgb("--rgb"), minus = rgb("--minus"), width = Math.max(1, numbers.length / rows);
  let most = 1e-9;
  for (const number of numbers) if (Number.isFinite(number)) most = Math.max(most, Math.abs(number));
  canvas.width = width, canvas.height = rows;
  const context = canvas.getContext("2d"), image = context.createImageData(width, rows);
  const pixels = new Uint32Array(image.data.buffer);
  numbers.forEach((number, i) => {
    const strength = Math.min(1, Math.sqrt(Math.abs(number) / most));
    pixels[i] = pixel(number < 0 ? minus : plus, Math.round(12 + 243 * strength));
  });
  context.putImageData(image, 0, 0);
}

// Roving tabindex: Tab reaches one button of the container, arrow keys the others; columns() > 0 makes a grid.
export function rove(container, columns = () => 0) {
  const buttons = () => [...container.querySelectorAll("button")];
  container.addEventListener("focusin", ({ target }) => {
    for (const button of buttons()) button.tabIndex = button === target ? 0 : -1;
  });
  container.addEventListener("keydown", (event) => {
    const all = buttons(), here = all.indexOf(event.target), width = columns();
    const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -(width || 1), ArrowDown: width || 1,
      Home: -here, End: all.length - 1 - here };
    const move = moves[event.key];
    if (here < 0 || move === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    all[here + move]?.focus();
  });
}

// Makes the first button reachable by Tab if no button is.
export function ensureTabStop(container) {
  if (!container.querySelector('button[tabindex="0"]')) container.querySelector("button")?.setAttribute("tabindex", "0");
}
