// The page in headless Chromium, with WebGPU (SwiftShader) and without, against the figures of the native command.

import assert from "node:assert/strict";
import { readFile, readdir } from "node:fs/promises";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { gzipSync } from "node:zlib";

import { SITE, launch, open, serve, settled } from "./browser.mjs";
import { CASES, hashOf } from "./cases.mjs";
import { parse, serialize } from "../../target/web/safetensors.js";

const native = JSON.parse(await readFile(new URL("native.json", import.meta.url), "utf8"));
const example = await readFile(new URL("../../examples/data/exploding_rnn.safetensors", import.meta.url));

let site;
before(async () => (site = await serve()));
after(() => site.stop());

/** The figures that the page shows, as numbers; NaN where there is none. */
async function figures(page) {
  const read = (id) => page.locator(`#${id}`).evaluate(({ dataset }) => Number.parseFloat(dataset.value));
  return { before: await read("norm-before"), coefficient: await read("coefficient"), after: await read("norm-after") };
}

/** Clips a case through the form. */
async function clip(page, { file, recipe, method, limit, normType }) {
  if (file) {
    await page.check('input[name="source"][value="example"]');
  } else {
    await page.check('input[name="source"][value="generated"]');
    await page.fill("#tensors", String(recipe.tensors));
    await page.selectOption("#elements-each", String(Math.log2(recipe.elements)));
    await page.selectOption("#dtype", recipe.dtype);
    await page.selectOption("#contents", recipe.exploding ? "exploding" : "normal");
  }
  await page.check(`input[name="method"][value="${method}"]`);
  await page.fill("#limit", String(limit));
  if (normType) await page.selectOption("#norm-type", normType);
  await page.click('button[type="submit"]');
  await settled(page);
}

/** The hash of the elements in the file that the page saves. */
async function savedHash(page) {
  const [download] = await Promise.all([page.waitForEvent("download"), page.click("#save")]);
  assert.equal(download.suggestedFilename(), "clipped.safetensors");
  const bytes = await readFile(await download.path());
  return hashOf(parse(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length)));
}

/** Asserts that two numbers agree to `tolerance`. */
function assertClose(given, expected, tolerance, what) {
  assert.ok(Math.abs(given - expected) <= tolerance * Math.abs(expected), `${what} is ${given}, not ${expected}`);
}

/** Trains until both networks have taken `steps` steps, and pauses. Returns the last losses. */
async function train(page, steps) {
  await page.click("#start");
  await page.waitForFunction(
    (steps) => ["clipped", "unclipped"].every((kind) => {
      const label = document.querySelector(`#${kind}-losses svg`).getAttribute("aria-label");
      return Number(/step (\d+)$/.exec(label)?.[1]) >= steps || document.querySelector("#train-error").textContent;
    }),
    steps,
    { timeout: 240_000 },
  );
  await page.click("#start");
  await page.waitForFunction(() => /^(Paused|Finished|Stopped)/.test(document.querySelector("#train-status").textContent));
  assert.equal(await page.textContent("#train-error"), "");
  const status = await page.textContent("#train-status");
  const [, clipped, unclipped] = /The loss is (\S+) with clipping and (\S+) without\./.exec(status) ?? [];
  const value = (text) => Number.parseFloat(text.replace("∞", "Infinity"));
  return { clipped: value(clipped), unclipped: value(unclipped), status };
}

describe("with WebGPU", () => {
  let browser;
  before(async () => (browser = await launch({ webgpu: true })));
  after(() => browser.close());

  test("every case agrees with the native command, and the two paths with each other", async () => {
    const { page, problems } = await open(browser, site.url);
    assert.match(await page.textContent("#device"), /^WebGPU: .+software GPU/);
    for (const testCase of CASES) {
      const { name, method, file } = testCase;
      await clip(page, testCase);
      assert.equal(await page.textContent("#clip-error"), "", name);
      const expected = native[name];
      const given = await figures(page);
      assertClose(given.before, expected.total_norm, 1e-6, `${name}: the norm`);
      assertClose(given.after, expected.total_norm_after, 1e-6, `${name}: the norm afterwards`);
      if (method === "norm") assertClose(given.coefficient, expected.clip_coef, 1e-6, `${name}: the coefficient`);
      else assert.equal(await page.textContent("#coefficient"), "–");
      const paths = await page.textContent("#paths");
      // Sums of many elements may differ in the last bits. These have none, or few elements.
      if (method === "value" || testCase.normType === "Infinity" || file) assert.match(paths, /all elements have the same bits/, name);
      const difference = /by at most (\S+)(?:\u00a0×\u00a010(\S+))? of/.exec(paths);
      const isSame = /all elements have the same bits/.test(paths);
      assert.ok(isSame || difference, paths);
      if (isSame) assert.equal(await savedHash(page), expected.sha256, name);
      for (const id of ["gpu-time", "cpu-time"]) assert.match(await page.textContent(`#${id}`), /^(\d.* (µs|ms)|too short)$/);
      const drawn = await page.locator("#norms .pair").count();
      const tensors = testCase.recipe?.tensors ?? 5;
      assert.equal(drawn, tensors > 28 ? tensors : tensors + 1);
      assert.equal(await page.locator("#norms-table tr").count(), Math.min(tensors, 1001));
    }
    assert.deepEqual(problems, []);
    await page.close();
  });

  test("a dropped file is clipped, and so is a chosen one", async () => {
    const { page, problems } = await open(browser, site.url);
    await page.evaluate((bytes) => {
      const dataTransfer = new DataTransfer();
      dataTransfer.items.add(new File([Uint8Array.from(bytes)], "dropped.safetensors"));
      const target = document.querySelector("#norms");
      for (const type of ["dragover", "drop"]) {
        target.dispatchEvent(new DragEvent(type, { dataTransfer, bubbles: true, cancelable: true }));
      }
    }, [...example]);
    await settled(page);
    assert.match(await page.textContent("#file-note"), /^dropped\.safetensors, /);
    assert.equal(await page.isChecked('input[name="source"][value="file"]'), true);
    assert.equal((await figures(page)).before, native.example.total_norm);
    assert.equal(await savedHash(page), native.example.sha256);

    await page.selectOption("#norm-type", "1");
    await page.fill("#limit", "5");
    await page.setInputFiles("#file", { name: "chosen.safetensors", mimeType: "", buffer: example });
    await settled(page);
    assert.match(await page.textContent("#file-note"), /^chosen\.safetensors, /);
    assertClose((await figures(page)).before, native["example-l1"].total_norm, 1e-6, "the L1 norm");
    assert.deepEqual(problems, []);
    await page.close();
  });

  test("tensors of odd lengths, without elements, and with infinities and NaNs", async () => {
    const { page, problems } = await open(browser, site.url);
    const f32 = (...values) => new Uint8Array(Float32Array.from(values).buffer);
    const tensor = (name, dtype, shape, bytes) => ({ name, dtype, shape, bytes });
    // f16 and bf16 bits: 3, 4 and 12.
    const odd = tensor("odd", "f16", [3], Uint8Array.of(0x00, 0x42, 0x00, 0x44, 0x00, 0x4a));
    const scalar = tensor("scalar", "bf16", [], Uint8Array.of(0x40, 0x41));
    const empty = tensor("empty", "f32", [0], new Uint8Array(0));
    const load = async (...tensors) => {
      const buffer = Buffer.from(await new Blob(serialize(tensors)).arrayBuffer());
      await page.setInputFiles("#file", { name: "odd.safetensors", mimeType: "", buffer });
      await settled(page);
      assert.equal(await page.textContent("#clip-error"), "");
      return { ...(await figures(page)), summary: await page.textContent("#clip-summary"), paths: await page.textContent("#paths") };
    };
    const finite = await load(empty, odd, scalar, tensor("w", "f32", [1, 1], f32(84)));
    assert.equal(finite.before, Math.fround(Math.sqrt(9 + 16 + 144 + 144 + 84 * 84)));
    assert.match(finite.summary, /^4 tensors, 5 elements: the norm 85\.84 exceeds the limit/);
    assert.match(finite.paths, /all elements have the same bits/);
    const nan = await load(odd, tensor("w", "f32", [2], f32(1, NaN)));
    assert.match(nan.summary, /the norm is NaN\. As in PyTorch, that makes the coefficient NaN\./);
    assert.match(nan.paths, /all elements have the same bits/);
    const infinite = await load(tensor("w", "f32", [2], f32(1, -Infinity)));
    assert.match(infinite.summary, /the norm is ∞\. As in PyTorch, that makes the coefficient 0\./);
    const zero = await load(tensor("w", "f32", [2], f32(0, -0)));
    assert.match(zero.summary, /the norm 0 is within the limit; nothing was written/);
    const none = await load(empty);
    assert.match(none.summary, /^1 tensor, 0 elements: the norm 0 is within the limit/);
    assert.deepEqual(problems, []);
    await page.close();
  });

  test("broken files and fields are errors that say what is wrong, and the next clip works", async () => {
    const { page, problems } = await open(browser, site.url);
    await page.check('input[name="source"][value="file"]');
    const errors = [
      [Buffer.alloc(3), /Nothing was clipped: not a \.safetensors file: it has 3 bytes/],
      [example.subarray(0, 1000), /bytes of tensors, but \d+ bytes follow|announce a header/],
      [Buffer.from("PK\x03\x04 etc"), /a zip archive, as torch\.save/],
      [Buffer.from(Array.from(example, (byte, i) => (i === 9 ? 0xff : byte))), /the header is not valid JSON/],
    ];
    for (const [buffer, error] of errors) {
      await page.setInputFiles("#file", { name: "broken.safetensors", mimeType: "", buffer });
      await settled(page);
      await page.waitForSelector("#clip-error:visible");
      assert.match(await page.textContent("#clip-error"), error);
      assert.equal(await page.textContent("#norm-before"), "–");
      assert.equal(await page.locator("#norms svg").count(), 0);
      assert.equal(await page.isVisible("#save"), false);
    }
    await page.check('input[name="source"][value="example"]');
    for (const [limit, error] of [["-1", /Limit must be a number at least 0; -1 was entered/], ["", /Limit must be a number at least 0; nothing/]]) {
      await page.fill("#limit", limit);
      await page.click('button[type="submit"]');
      await settled(page);
      assert.match(await page.textContent("#clip-error"), error);
    }
    await page.fill("#limit", "1");
    await page.click('button[type="submit"]');
    await settled(page);
    assert.equal(await page.isVisible("#clip-error"), false);
    assert.equal((await figures(page)).coefficient, native.example.clip_coef);

    await page.fill("#gain", "9");
    await page.click("#start");
    await page.waitForSelector("#train-error:visible");
    assert.match(await page.textContent("#train-error"), /Recurrent weight must be a number from 0 to 3; 9 was entered/);
    assert.deepEqual(problems, []);
    await page.close();
  });

  test("the network learns with clipping, and explodes without", async () => {
    const { page, problems } = await open(browser, site.url);
    const half = await train(page, 40);
    assert.match(half.status, /^Paused after \d+ steps/);
    assert.equal(await page.textContent("#start"), "Continue");
    // It continues where it was.
    const { clipped, unclipped, status } = await train(page, 250);
    assert.ok(clipped < 0.13, `with clipping: ${status}`);
    assert.ok(unclipped > 0.3, `without clipping: ${status}`);
    assert.match(status, /the norm reached \S+\u00a0×\u00a010⁷/);
    assert.equal(await page.locator("#clipped-norms .limit").count(), 1);
    await page.click("#reset");
    await page.waitForFunction(() => document.querySelector("#train-status").textContent === "Ready.");
    assert.equal(await page.textContent("#clipped-loss"), "–");
    // At a recurrent weight of 1 and a low rate nothing explodes.
    await page.fill("#gain", "1");
    await page.fill("#learning-rate", "0.001");
    const calm = await train(page, 10);
    assert.ok(calm.unclipped < 5, calm.status);
    assert.deepEqual(problems, []);
    await page.close();
  });

  test("everything works from the keyboard, in the order of the page, with a visible focus", async () => {
    const { page } = await open(browser, site.url);
    const seen = [];
    for (let i = 0; i < 40; i++) {
      await page.keyboard.press("Tab");
      const focus = await page.evaluate(() => {
        const element = document.activeElement;
        if (element === document.body) return null;
        const { outlineStyle, outlineWidth } = getComputedStyle(element);
        const box = element.getBoundingClientRect();
        return {
          name: element.id || element.value || element.textContent.trim(),
          top: box.top + scrollY,
          isVisible: outlineStyle !== "none" && outlineWidth !== "0px" && box.width > 0,
        };
      });
      if (focus === null) break;
      assert.ok(focus.isVisible, `the focus on ${focus.name} is not visible`);
      seen.push(focus.name);
    }
    const order = ["Skip to the clip", "example", "norm", "limit", "norm-type", "Clip", "Norms as a table",
      "How the time is measured", "save", "start", "reset", "learning-rate", "train-limit", "gain", "seed", "The network and its training"];
    assert.deepEqual(seen.filter((name) => order.includes(name)), order);

    // Radio buttons by arrow, a field by typing, and Enter to clip.
    await page.focus('input[name="source"][value="example"]');
    await page.keyboard.press("ArrowRight");
    assert.equal(await page.isVisible("#tensors"), true);
    await page.keyboard.press("Tab");
    assert.equal(await page.evaluate(() => document.activeElement.id), "tensors");
    await page.keyboard.press("Control+A");
    await page.keyboard.type("3");
    await page.keyboard.press("Enter");
    await settled(page);
    assert.match(await page.textContent("#clip-summary"), /^3 tensors, 196,608 elements: the norm/);
    await page.focus("#start");
    await page.keyboard.press("Space");
    await page.waitForFunction(() => document.querySelector("#start").textContent === "Pause");
    await page.waitForFunction(() => document.querySelector("#clipped-loss").textContent !== "–", null, { timeout: 60_000 });
    await page.keyboard.press("Space");
    await page.waitForFunction(() => document.querySelector("#start").textContent === "Continue");
    assert.equal(await page.evaluate(() => document.activeElement.id), "start");
    await page.close();
  });
});

describe("without WebGPU", () => {
  let browser;
  before(async () => (browser = await launch({ webgpu: false })));
  after(() => browser.close());

  test("the page says so, and clips and trains on the CPU path", async () => {
    const { page, problems } = await open(browser, site.url);
    assert.match(await page.textContent("#device"), /^No GPU: .+ Everything here runs on the CPU path\.$/);
    for (const testCase of CASES) {
      await clip(page, testCase);
      const expected = native[testCase.name];
      const given = await figures(page);
      assert.equal(given.before, expected.total_norm);
      assert.equal(given.after, expected.total_norm_after);
      if (expected.clip_coef !== null) assert.equal(given.coefficient, expected.clip_coef);
      assert.equal(await savedHash(page), expected.sha256);
    }
    assert.equal(await page.textContent("#gpu-time"), "no GPU");
    const { clipped, unclipped, status } = await train(page, 250);
    assert.ok(clipped < 0.13 && unclipped > 0.3, status);
    // The console says that there is no adapter.
    assert.deepEqual(problems.filter((problem) => !/adapter/i.test(problem)), []);
    await page.close();
  });

  test("a browser without navigator.gpu is named as such", async () => {
    const page = await browser.context.newPage();
    await page.addInitScript(() => delete Navigator.prototype.gpu);
    await page.goto(site.url);
    await settled(page);
    assert.match(await page.textContent("#device"), /^No GPU: This browser has no WebGPU\./);
    assert.equal((await figures(page)).coefficient, native.example.clip_coef);
    await page.close();
  });

  for (const colorScheme of ["light", "dark"]) {
    test(`no horizontal scroll from 320 pixels up, and readable text, in the ${colorScheme} scheme`, async () => {
      const { page } = await open(browser, site.url, { path: "?cpu", width: 360, height: 740, colorScheme });
      await page.evaluate(() => document.querySelectorAll("details").forEach((details) => (details.open = true)));
      for (const source of ["example", "generated", "file"]) {
        await page.check(`input[name="source"][value="${source}"]`);
        for (const width of [320, 360, 414, 768, 1400]) {
          await page.setViewportSize({ width, height: 740 });
          // The charts follow in the next frame.
          await page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
          const scrolled = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
          assert.ok(scrolled <= 0, `${source}: ${scrolled} pixels too wide at ${width}`);
          const cut = await page.evaluate(() => [...document.querySelectorAll("input, select, button, dd, svg")]
            .filter((element) => element.getBoundingClientRect().right > innerWidth + 0.5).map(({ id, nodeName }) => id || nodeName));
          assert.deepEqual(cut, [], `cut off at ${width}`);
        }
      }
      const contrasts = await page.evaluate(() => {
        const channels = (color) => color.match(/[\d.]+/g).map(Number);
        const luminance = (color) => {
          const [r, g, b] = channels(color).slice(0, 3).map((c) => c / 255)
            .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const background = (element) => {
          for (let e = element; e; e = e.parentElement) {
            const color = getComputedStyle(e).backgroundColor;
            if ((channels(color)[3] ?? 1) > 0) return color;
          }
          return "rgb(255, 255, 255)";
        };
        document.querySelector("#clip-error").hidden = false;
        document.querySelector("#clip-error").textContent = "an error";
        const selectors = ["h1", ".lead", "#device", "legend", "label", ".field", "button.primary", "#reset", "#clip-summary",
          "dt", "dd", ".note", ".legend li", "summary", "td", "#clip-error", "a", ".reading", "#limit"];
        const texts = selectors.map((selector) => {
          const element = document.querySelector(selector);
          return [selector, getComputedStyle(element).color, background(element)];
        });
        const chart = [".chart .tick", ".chart .name"].map((selector) => {
          const element = document.querySelector(selector);
          return [selector, getComputedStyle(element).fill, background(element)];
        });
        return [...texts, ...chart].map(([selector, front, back]) => {
          const [low, high] = [front, back].map(luminance).sort((a, b) => a - b);
          return [selector, (high + 0.05) / (low + 0.05)];
        });
      });
      for (const [selector, contrast] of contrasts) assert.ok(contrast >= 4.5, `${selector} has a contrast of ${contrast.toFixed(2)}`);
      const pageColor = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
      const [red] = pageColor.match(/\d+/g).map(Number);
      assert.ok(colorScheme === "dark" ? red < 60 : red > 200, pageColor);
      await page.close();
    });
  }

  test("with reduced motion, the charts change rarely", async () => {
    const changes = async (reducedMotion) => {
      const { page } = await open(browser, site.url, { path: "?cpu", reducedMotion });
      await page.click("#start");
      await page.waitForFunction(() => document.querySelector("#clipped-loss").textContent !== "–", null, { timeout: 60_000 });
      const count = await page.evaluate(async () => {
        let count = 0;
        new MutationObserver(() => count++).observe(document.querySelector("#clipped-losses"), { childList: true });
        await new Promise((resolve) => setTimeout(resolve, 3000));
        return count;
      });
      await page.close();
      return count;
    };
    assert.ok((await changes("reduce")) <= 3);
    assert.ok((await changes("no-preference")) > 6);
  });

  test("controls have names, charts have descriptions, results are announced, headings are in order", async () => {
    const { page } = await open(browser, site.url, { path: "?cpu" });
    const nameless = await page.evaluate(() => [...document.querySelectorAll("input, select, button")]
      .filter((control) => !(control.labels?.length || control.textContent.trim())).map(({ outerHTML }) => outerHTML));
    assert.deepEqual(nameless, []);
    const charts = await page.evaluate(() => [...document.querySelectorAll(".chart svg")]
      .map((svg) => [svg.getAttribute("role"), svg.getAttribute("aria-label")]));
    assert.equal(charts.length, 5);
    for (const [role, label] of charts) assert.ok(role === "img" && label.length > 10, label);
    for (const id of ["device", "clip-summary", "train-status"]) assert.equal(await page.getAttribute(`#${id}`, "role"), "status");
    for (const id of ["clip-error", "train-error"]) assert.equal(await page.getAttribute(`#${id}`, "role"), "alert");
    const levels = await page.evaluate(() => [...document.querySelectorAll("h1, h2, h3, h4")].map(({ nodeName }) => Number(nodeName[1])));
    levels.forEach((level, i) => assert.ok(i === 0 ? level === 1 : level <= levels[i - 1] + 1, String(levels)));
    await page.close();
  });
});

test("the page takes less than 400 kB gzipped, and names no other site", async () => {
  let total = 0;
  for (const entry of await readdir(SITE, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue;
    const path = join(entry.parentPath ?? entry.path, entry.name);
    const bytes = await readFile(path);
    total += gzipSync(bytes, { level: 9 }).length;
    if (!/\.(html|css|js|svg)$/.test(entry.name)) continue;
    const loaded = bytes.toString().match(/(?:src|href|import|from|url)\s*[=(]?\s*["']https?:\/\/[^"']*/g) ?? [];
    assert.deepEqual(loaded.filter((address) => !address.includes("https://wgpu.rs")), [], path);
  }
  assert.ok(total < 400_000, `${total} bytes`);
  console.log(`${total} bytes gzipped`);
});
