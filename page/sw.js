// Keeps what the page has loaded, so that it opens without a network. A service worker sees every request of the pages
// in its scope, page/, wherever the request goes: to ../gpt2.py and the model, and to the CDN as well.
//
// Our own files are asked for first, so that a change is seen at once, and taken from the cache if nobody answers. Those
// of the CDN have their version in their address and never change, so they are asked for once.

const NAME = "picogpt";
const isOurs = (url) => new URL(url).origin === location.origin;

addEventListener("install", () => skipWaiting());
addEventListener("activate", (event) => event.waitUntil(clients.claim()));

async function answer(request) {
  const cache = await caches.open(NAME);
  const kept = await cache.match(request, { ignoreSearch: request.mode === "navigate" }); // ?lang= and ?lib= are ours
  if (kept && !isOurs(request.url)) return kept;
  try {
    const response = await fetch(request);
    if (response.ok || !kept) return response;
  } catch (error) {
    if (!kept) throw error;
  }
  return kept;
}

// What the page has loaded; most of it comes from the browser's own cache. What is the CDN's, and was not loaded, is an
// older version.
async function keep(urls) {
  const cache = await caches.open(NAME), kept = (await cache.keys()).map(({ url }) => url);
  await Promise.all(kept.filter((url) => !isOurs(url) && !urls.includes(url)).map((url) => cache.delete(url)));
  await Promise.all(urls.filter((url) => isOurs(url) || !kept.includes(url)).map(async (url) => {
    const response = await fetch(url);
    if (response.ok) await cache.put(url, response);
  }));
}

addEventListener("fetch", (event) => {
  if (event.request.method === "GET" && event.request.url.startsWith("http")) event.respondWith(answer(event.request));
});
addEventListener("message", (event) => {
  const kept = keep(event.data.keep).then(() => true, () => false);
  event.waitUntil(kept.then((whether) => event.ports[0].postMessage(whether)));
});
