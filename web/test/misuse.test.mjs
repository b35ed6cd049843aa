// What hurried and unlucky users do: wild clicks, files in the middle of a clip, and a GPU that is lost.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { launch, open, serve, settled } from "./browser.mjs";
import { serialize } from "../../target/web/safetensors.js";

let site;
before(async () => (site = await serve()));
after(() => site.stop());

const text = (page, id) => page.textContent(`#${id}`);

/** Waits until an element has this text. */
async function waitFor(page, id, pattern) {
  const has = ([id, source]) => new RegExp(source).test(document.getElementById(id).textContent);
  try {
    await page.waitForFunction(has, [id, pattern.source], { timeout: 60_000 });
  } catch {
    assert.match(await text(page, id), pattern);
  }
}

const tensor = (...values) => ({ name: "w", dtype: "f32", shape: [values.length], bytes: new Uint8Array(Float32Array.from(values).buffer) });

/** Drops a file with these elements, or with these bytes. */
async function drop(page, values, bytes) {
  const contents = bytes ?? (await new Blob(serialize([tensor(...values)])).bytes());
  await page.evaluate((bytes) => {
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([Uint8Array.from(bytes)], "dropped.safetensors"));
    document.querySelector("#clip-form").dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
  }, [...contents]);
}

describe("on the CPU path", () => {
  let browser;
  before(async () => (browser = await launch({ webgpu: false })));
  after(() => browser.close());

  test("however fast the clicks follow, one loop trains, and the last click decides", async () => {
    const { page, problems } = await open(browser, site.url, { path: "?cpu" });
    // `s` is a click on Start, Continue or Pause; `r` one on Reset.
    const click = (keys) =>
      page.evaluate((keys) => {
        for (const key of keys) document.getElementById(key === "s" ? "start" : "reset").click();
      }, keys);
    const paused = [/^Paused after \d+ steps\./, "Continue"];
    const [ready, training] = [[/^Ready\.$/, "Start"], [/^Training\.$/, "Pause"]];
    const outcomes = [
      ["ss", ready], ["sr", ready], ["sssr", ready], ["rs", training], ["ssr", ready], ["srs", training], ["r", ready],
      ["s", training], ["sss", paused], ["s", training], ["s", paused], ["ssssr", ready],
    ];
    for (const [keys, [status, button]] of outcomes) {
      await click(keys);
      await waitFor(page, "train-status", status);
      assert.equal(await text(page, "start"), button, keys);
      // A network has trained by the next clicks.
      if (button === "Pause") await waitFor(page, "clipped-loss", /\d/);
    }
    assert.equal(await text(page, "train-error"), "");
    assert.deepEqual(problems, []);
    await page.close();
  });

  test("of files that are dropped during a clip, the last one is shown", async () => {
    const { page, problems } = await open(browser, site.url, { path: "?cpu" });
    for (const [values, bytes] of [[[3, 4]], [[], [1, 2, 3]], [[9, 12]]]) await drop(page, values, bytes);
    await waitFor(page, "clip-summary", /the norm 15 exceeds/);
    await settled(page);
    assert.equal(await text(page, "clip-error"), "");
    await drop(page, [3, 4]);
    await drop(page, [], [1, 2, 3]);
    await waitFor(page, "clip-error", /it has 3 bytes/);
    await settled(page);
    assert.equal(await text(page, "clip-summary"), "");
    assert.deepEqual(problems, []);
    await page.close();
  });

  test("norms at the limit, and beyond the range of f32", async () => {
    const { page } = await open(browser, site.url, { path: "?cpu" });
    const summary = async (...values) => {
      await drop(page, values);
      await settled(page);
      return text(page, "clip-summary");
    };
    assert.equal(await summary(1), "1 tensor, 1 element: the norm 1 is at the limit; every element was multiplied by 0.999999.");
    assert.equal(await summary(3, 4), "1 tensor, 2 elements: the norm 5 exceeds the limit; every element was multiplied by 0.2.");
    assert.match(await summary(3e38, 3e38), /the norm, which is beyond the range of f32, exceeds the limit; every element was multiplied by 2\.357\u00a0×\u00a010⁻³⁹\./);
    assert.match(await summary(1, Infinity), /the norm is ∞\. As in PyTorch, that makes the coefficient 0\./);
    await page.close();
  });
});

describe("a GPU that is lost", () => {
  let browser;
  before(async () => (browser = await launch({ webgpu: true })));
  after(() => browser.close());

  /** Opens the page, whose device is then `lost`. */
  async function openWithDevice() {
    await browser.context.addInitScript(() => {
      const { requestDevice } = GPUAdapter.prototype;
      GPUAdapter.prototype.requestDevice = async function (...given) {
        return (globalThis.device = await requestDevice.apply(this, given));
      };
    });
    const opened = await open(browser, site.url);
    assert.match(await text(opened.page, "device"), /^WebGPU: /);
    return opened;
  }

  test("in the middle of a clip: the CPU path clips instead", async () => {
    for (const milliseconds of [0, 80]) {
      const { page, problems } = await openWithDevice();
      await page.evaluate((milliseconds) => {
        document.querySelector('button[type="submit"]').click();
        setTimeout(() => device.destroy(), milliseconds);
      }, milliseconds);
      await waitFor(page, "device", /^The GPU was lost: [^.]+\. Everything here now runs on the CPU path\./);
      await settled(page);
      await page.click('button[type="submit"]');
      await settled(page);
      assert.equal(await text(page, "clip-error"), "");
      assert.match(await text(page, "clip-summary"), /^5 tensors, 4,353 elements: the norm/);
      assert.equal(await text(page, "gpu-time"), "no GPU");
      assert.deepEqual(problems, []);
      await page.close();
    }
  });

  test("in the middle of training: the next start trains on the CPU path", async () => {
    const { page, problems } = await openWithDevice();
    await page.click("#start");
    await waitFor(page, "clipped-loss", /\d/);
    await page.evaluate(() => device.destroy());
    await waitFor(page, "train-error", /^Training stopped: the GPU was lost\. Start again to train on the CPU path\.$/);
    await waitFor(page, "train-status", /^Ready\.$/);
    await page.click("#start");
    await waitFor(page, "clipped-loss", /\d/);
    assert.equal(await text(page, "train-error"), "");
    assert.match(await text(page, "train-path"), /^Without a GPU/);
    assert.deepEqual(problems, []);
    await page.close();
  });
});
