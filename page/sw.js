// Keeps what the page has loaded, so that it opens without a network. A service worker sees every request of the pages
// in its scope, page/, wherever the request goes: to ../gpt2.py and the model, and to the CDN as well.
//
// Our own files are asked for first, so that a change is seen at once, and taken from the cache if nobody answers; those
// of the CDN have their version in their address and never change, so they are asked for once.

const NAME = "picogpt";

addEventListener("install", () => skipWaiting());
addEventListener("activate", (event) => event.waitUntil(clients.claim()));

async function answer(request) {
  const cache = await caches.open(NAME);
  const kept = await cache.match(request);
  if (kept && new URL(request.url).origin !== location.origin) return kept;
  try {
    const response = await fetch(request);
    if (response.ok || !kept) return response;
  } catch (error) {
    if (!kept) throw error;
  }
  return kept;
}

// What the page has loaded; most of it comes from the browser's own cache. What others than we served, and is in use no
// more, is an older version.
async function keep(urls) {
  const cache = await caches.open(NAME);
  for (const { url } of await cache.keys()) {
    if (new URL(url).origin !== location.origin && !urls.includes(url)) await cache.delete(url);
  }
  await Promise.all(urls.map(async (url) => {
    const response = await fetch(url);
    if (response.ok) await cache.put(url, response);
  }));
}

addEventListener("fetch", (event) => {
  if (event.request.method === "GET" && event.request.url.startsWith("http")) event.respondWith(answer(event.request));
});
addEventListener("message", (event) => event.waitUntil(keep(event.data.keep).then(() => true, () => false).then((kept) => event.ports[0].postMessage(kept))));
