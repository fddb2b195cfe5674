// The state in a link, after its #: the prompt, the settings, the current view, and an edited source, compressed.

const LIMIT = 200_000;  // characters of a source; no version of gpt2.py is longer

async function pipe(stream, bytes, limit = Infinity) {
  const chunks = [], reader = new Blob([bytes]).stream().pipeThrough(stream).getReader();
  for (let size = 0, part; !(part = await reader.read()).done;) {
    chunks.push(part.value);
    if ((size += part.value.length) > limit) throw new RangeError("too long");
  }
  return new Uint8Array(await new Blob(chunks).arrayBuffer());
}

async function pack(text) {
  const bytes = await pipe(new CompressionStream("deflate-raw"), new TextEncoder().encode(text));
  const binary = Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
  return btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (char) => char.charCodeAt(0));
  const found = await pipe(new DecompressionStream("deflate-raw"), bytes, LIMIT);
  return new TextDecoder("utf-8", { fatal: true }).decode(found);
}

// The URL fragment for { text, temperature, ..., source }, without the values that are null.
export async function write({ source, ...rest }) {
  const found = Object.entries(rest).filter(([, value]) => value !== null && value !== undefined);
  if (source) found.push(["source", await pack(source)]);
  return `#${new URLSearchParams(found)}`;
}

// The values in a URL fragment; `damaged` is true if the source could not be read.
export async function read(hash) {
  const found = Object.fromEntries(new URLSearchParams(hash.slice(1)));
  try {
    if (found.source) found.source = await unpack(found.source);
  } catch {
    delete found.source;
    found.damaged = true;
  }
  return found;
}
