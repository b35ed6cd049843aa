// Serves the built page under a sub-path, and opens it in headless Chromium.

import { createReadStream, existsSync, mkdtempSync, rmSync, statSync } from "node:fs";
import http from "node:http";
import { tmpdir } from "node:os";
import { extname, join, resolve, sep } from "node:path";
import { fileURLToPath } from "node:url";

import { chromium } from "playwright-core";

/** The built page. */
export const SITE = resolve(fileURLToPath(new URL("../../target/web", import.meta.url)));
/** The page must work under a sub-path, as on a project site. */
const PREFIX = "/some/path/";
const TYPES = {
  ".css": "text/css",
  ".html": "text/html",
  ".js": "text/javascript",
  ".safetensors": "application/octet-stream",
  ".svg": "image/svg+xml",
  ".wasm": "application/wasm",
  ".wgsl": "text/plain",
};

/** Serves the page. Returns its address and a function that stops it. */
export async function serve() {
  const server = http.createServer((request, response) => {
    const { pathname } = new URL(request.url, "http://localhost");
    const file = join(SITE, pathname.startsWith(PREFIX) ? pathname.slice(PREFIX.length) || "index.html" : "\0");
    if (!file.startsWith(SITE + sep) || file.includes("\0") || !existsSync(file) || statSync(file).isDirectory()) {
      response.writeHead(404).end();
      return;
    }
    response.writeHead(200, { "content-type": TYPES[extname(file)] ?? "application/octet-stream" });
    createReadStream(file).pipe(response);
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  return { url: `http://127.0.0.1:${server.address().port}${PREFIX}`, stop: () => server.close() };
}

/** The flag with which Chromium offers its software GPU. */
const WEBGPU = "--enable-unsafe-webgpu";

/** Starts Chromium, with WebGPU or without. CHROMIUM names the program. */
export async function launch({ webgpu }) {
  const profile = mkdtempSync(join(tmpdir(), "gradclip-chromium-"));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    headless: true,
    // Playwright turns the GPU off.
    ignoreDefaultArgs: ["--disable-gpu", "--headless", "--enable-unsafe-swiftshader"],
    args: ["--headless=new", "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking",
      "--disable-component-update", "--disable-sync", ...(webgpu ? [WEBGPU] : [])],
  });
  return {
    context,
    async close() {
      await context.close();
      rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
    },
  };
}

/** Opens the page and waits until its first clip is done. Every error of the page fails the test that asks for `problems`. */
export async function open(browser, url, { path = "", width = 1100, height = 900, ...media } = {}) {
  const page = await browser.context.newPage();
  const problems = [];
  page.on("pageerror", (error) => problems.push(String(error)));
  page.on("console", (message) => {
    if (message.type() === "error" || message.type() === "warning") problems.push(message.text());
  });
  page.on("requestfailed", (request) => problems.push(`${request.url()} failed`));
  page.on("response", (response) => {
    if (response.status() >= 400) problems.push(`${response.url()}: ${response.status()}`);
  });
  await page.setViewportSize({ width, height });
  await page.emulateMedia(media);
  await page.goto(url + path);
  await settled(page);
  return { page, problems };
}

/** Waits until the page has clipped. */
export async function settled(page) {
  await page.waitForSelector('#clip-result[aria-busy="false"]', { state: "attached", timeout: 120_000 });
}
