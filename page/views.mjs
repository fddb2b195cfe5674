// What is drawn: attention maps, lines between tokens, tables of next tokens, numbers as colours. Nothing here knows of a
// model or of a page; beyond/attention.py puts this file into the page that it writes.
//
// A weight w comes as a byte, round(255 * sqrt(w)), so that small ones can be seen.

export function make(tag, parent, text, properties = {}) {
  const element = Object.assign(document.createElement(tag), properties);
  if (text !== undefined) element.textContent = text;
  parent?.append(element);
  return element;
}

// Gives a container as many children as there are items, and reuses those that it has.
export function fill(container, count, create, update) {
  while (container.childElementCount > count) container.lastElementChild.remove();
  for (let i = 0; i < count; i++) update(container.children[i] ?? container.appendChild(create(i)), i);
}

const rgb = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).split(",").map(Number);
const pixel = ([r, g, b], alpha) => ((alpha << 24) | (b << 16) | (g << 8) | r) >>> 0;  // as canvas has it: RGBA

// The 256 colours of a map, from the style's --rgb; once more after a change between dark and light.
export function shades() {
  const colour = rgb("--rgb");
  return Uint32Array.from({ length: 256 }, (_, byte) => pixel(colour, 30 + Math.round(225 * byte / 255)));
}

// weights: n * n bytes, a row for each query. Where none may look nothing is drawn; where one may, at least a tint.
export function drawMap(canvas, weights, n, shades) {
  if (canvas.width !== n || canvas.height !== n) canvas.width = canvas.height = n;
  const context = canvas.getContext("2d"), image = context.createImageData(n, n);
  const pixels = new Uint32Array(image.data.buffer);
  for (let query = 0; query < n; query++)
    for (let key = 0; key < n; key++) {
      const place = query * n + key, byte = weights[place];
      if (byte || key <= query) pixels[place] = shades[byte];
    }
  context.putImageData(image, 0, 0);
}

export const share = (weights, n, query, key) => (weights[query * n + key] / 255) ** 2;

// How much of its attention a token gives on average to itself, to the one before it, and to the first.
export function habits(weights, n) {
  const mean = (key) => {
    let sum = 0;
    for (let query = 2; query < n; query++) sum += share(weights, n, query, key(query));
    return sum / Math.max(1, n - 2);
  };
  return [mean((query) => query), mean((query) => query - 1), mean(() => 0)];
}

// The background of what has a share of something; the style may set --tint lower, so that text on it can be read.
export const tint = (share, colour = "--rgb") =>
  `rgba(var(${colour}), calc(var(--tint, .6) * ${Math.sqrt(share).toFixed(3)}))`;

// Lines above the text, from one of the elements to the others, as wide as its share in each. svg lies over them all.
export function drawLines(svg, elements, from, shares) {
  const place = (element) => [element.offsetLeft + element.offsetWidth / 2, element.offsetTop + 2];
  const paths = [];  // drawn together, as each change makes the browser measure the elements again
  for (let i = 0; i < elements.length && elements[from]; i++) {
    if (shares[i] < 0.02 || i === from) continue;
    const [x, y] = place(elements[from]), [x2, y2] = place(elements[i]);
    const lift = y === y2 ? Math.min(22, 6 + Math.abs(x - x2) / 5) : 18;
    const path = document.createElementNS(svg.namespaceURI, "path");
    path.setAttribute("d", `M${x} ${y}C${x} ${y - lift} ${x2} ${y2 - lift} ${x2} ${y2}`);
    path.setAttribute("stroke-width", (1 + 7 * shares[i]).toFixed(1));
    path.setAttribute("stroke-opacity", (0.35 + 0.5 * shares[i]).toFixed(2));
    paths.push(path);
  }
  svg.replaceChildren(...paths);
}

// Rows of next tokens. rows: [{ label, cells: [{ text, share, came, title, note }], chosen }]; came: it is what came next;
// note: a second line of the cell.
export function drawNext(body, rows) {
  body.replaceChildren(...rows.map(({ label, cells, chosen }) => {
    const row = make("tr", null, undefined, { className: chosen ? "chosen" : "" });
    make("th", row, label, { scope: "row" });
    for (const { text, share, came, title, note } of cells) {
      const cell = make("td", row, text, { className: came ? "came" : "", title: title ?? "" });
      if (note) make("small", cell, note);
      cell.style.background = tint(share);
    }
    return row;
  }));
}

// Numbers as colours, in `rows` rows: --rgb where they are positive, --minus where negative, full for the largest of all.
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

// A row of buttons of which one can be reached with Tab, and the others with the arrow keys; `columns` makes a grid.
export function rove(container, columns = () => 0) {
  const buttons = () => [...container.querySelectorAll("button")];
  container.addEventListener("focusin", ({ target }) => {
    for (const button of buttons()) button.tabIndex = button === target ? 0 : -1;
  });
  container.addEventListener("keydown", (event) => {
    const all = buttons(), here = all.indexOf(event.target), wide = columns();
    const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -(wide || 1), ArrowDown: wide || 1,
      Home: -here, End: all.length - 1 - here };
    const move = moves[event.key];
    if (here < 0 || move === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    all[here + move]?.focus();
  });
}

// Lets Tab come to the first button, where it can come to no other.
export function reachable(container) {
  if (!container.querySelector('button[tabindex="0"]')) container.querySelector("button")?.setAttribute("tabindex", "0");
}
