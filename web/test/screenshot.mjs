// Writes screenshot.png, the picture of the page in the README: node test/screenshot.mjs

import { fileURLToPath } from "node:url";

import { launch, open, serve } from "./browser.mjs";

const STEPS = 500;
const site = await serve();
const browser = await launch({ webgpu: true });
const { page } = await open(browser, site.url, { width: 1000, height: 1000, colorScheme: "light" });
await page.click("#start");
await page.waitForFunction(
  (steps) => Number(/\d+$/.exec(document.querySelector("#clipped-losses svg").getAttribute("aria-label"))) >= steps,
  STEPS,
  { timeout: 300_000 },
);
await page.click("#start");
await page.waitForFunction(() => document.querySelector("#start").textContent === "Continue");
await page.evaluate(() => {
  document.activeElement.blur();
  // The picture needs no notes.
  document.querySelectorAll("details, footer").forEach((element) => element.remove());
});
await page.mouse.move(0, 0);
await page.screenshot({ path: fileURLToPath(new URL("../screenshot.png", import.meta.url)), fullPage: true });
await browser.close();
site.stop();
