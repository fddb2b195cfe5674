// Caches the files of the page, so that it works offline. A service worker sees every request of the pages in its
// scope, page/, including those for ../gpt2.py, the model and the CDN.
//
// Our own files come from the network, so that changes show at once, or from the cache if that fails. Files of the CDN
// have their version in the URL and never change, so they are fetched once.

const NAME = "picogpt";
const isOurs = (url) => new URL(url).origin === location.origin;

addEventListener("install", () => skipWaiting());
addEventListener("activate", (event) => event.waitUntil(clients.claim()));

async function answer(request) {
  const cache = await caches.open(NAME);
  const cached = await cache.match(request, { ignoreSearch: request.mode === "navigate" }); // ignores ?lang= and ?lib=
  if (cached && !isOurs(request.url)) return cached;
  try {
    const response = await fetch(request);
    if (response.ok || !cached) return response;
  } catch (error) {
    if (!cached) throw error;
  }
  return cached;
}

// Caches the URLs that the page has loaded, mostly from the browser's own cache. Other files from the CDN belong to an
// older version of the page and are deleted.
async function store(urls) {
  const cache = await caches.open(NAME), cached = (await cache.keys()).map(({ url }) => url);
  await Promise.all(cached.filter((url) => !isOurs(url) && !urls.includes(url)).map((url) => cache.delete(url)));
  await Promise.all(urls.filter((url) => isOurs(url) || !cached.includes(url)).map(async (url) => {
    const response = await fetch(url);
    if (response.ok) await cache.put(url, response);
  }));
}

addEventListener("fetch", (event) => {
  if (event.request.method === "GET" && event.request.url.startsWith("http")) event.respondWith(answer(event.request));
});
addEventListener("message", (event) => {
  const cached = store(event.data.keep).then(() => true, () => false);
  event.waitUntil(cached.then((done) => event.ports[0].postMessage(done)));
});
