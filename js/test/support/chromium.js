// Opens a page of headless Chromium on which the package and the tests are modules.
import { createReadStream, existsSync } from "node:fs";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";

import { chromium } from "playwright-core";

const root = fileURLToPath(new URL("../..", import.meta.url));
const types = { ".html": "text/html", ".js": "text/javascript", ".wasm": "application/wasm" };

/** The modules of Node that the tests import, for a page. */
const html = `<!doctype html><meta charset="utf-8"><title>gradclip</title><script type="importmap">${JSON.stringify({
  imports: {
    gradclip: "/dist/index.js",
    "node:test": "/test/support/page/test.js",
    "node:assert/strict": "/test/support/page/assert.js",
  },
})}</script>`;

function serve() {
  const server = createServer((request, response) => {
    const path = normalize(decodeURIComponent(new URL(request.url, "http://localhost").pathname));
    const file = join(root, path);
    if (path === "/") {
      response.writeHead(200, { "content-type": "text/html" }).end(html);
    } else if (types[extname(file)] && existsSync(file)) {
      response.writeHead(200, { "content-type": types[extname(file)] });
      createReadStream(file).pipe(response);
    } else {
      response.writeHead(404).end();
    }
  });
  return new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(server)));
}

/** Returns `evaluate`, as playwright's, `version` and `close`. */
export async function openPage(executablePath) {
  const server = await serve();
  const browser = await chromium.launch({
    executablePath,
    // Without the last flag there is no adapter on a machine without a GPU.
    args: ["--no-sandbox", "--enable-unsafe-webgpu"],
  });
  const page = await browser.newPage();
  await page.goto(`http://127.0.0.1:${server.address().port}/`);
  return {
    evaluate: (...given) => page.evaluate(...given),
    version: () => `Chromium ${browser.version()}`,
    async close() {
      await browser.close();
      server.close();
    },
  };
}
