// What a link carries, after its #: the prompt, the settings, what is looked at, and an edited source, compressed.

const LIMIT = 200_000;  // characters of a source: what is longer is no gpt2.py

async function through(stream, bytes, limit = Infinity) {
  const chunks = [], reader = new Blob([bytes]).stream().pipeThrough(stream).getReader();
  for (let size = 0, part; !(part = await reader.read()).done;) {
    chunks.push(part.value);
    if ((size += part.value.length) > limit) throw new RangeError("too long");
  }
  return new Uint8Array(await new Blob(chunks).arrayBuffer());
}

async function pack(text) {
  const bytes = await through(new CompressionStream("deflate-raw"), new TextEncoder().encode(text));
  const binary = Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
  return btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (char) => char.charCodeAt(0));
  const found = await through(new DecompressionStream("deflate-raw"), bytes, LIMIT);
  return new TextDecoder("utf-8", { fatal: true }).decode(found);
}

// The fragment for { text, temperature, ..., source }: absent is what is null.
export async function write({ source, ...rest }) {
  const found = Object.entries(rest).filter(([, value]) => value !== null && value !== undefined);
  if (source) found.push(["source", await pack(source)]);
  return `#${new URLSearchParams(found)}`;
}

// What a fragment carries; `damaged` where something in it could not be read.
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
