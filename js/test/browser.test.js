// Runs the other tests in a page of headless Chromium.
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { test } from "node:test";

import { openPage } from "./support/chromium.js";

const chromium = process.env.CHROMIUM ?? "/usr/bin/chromium";
const skip = !existsSync(chromium) && `Chromium is not installed (${chromium}); CHROMIUM names another`;

for (const file of ["clip", "errors", "misuse"]) {
  test(`${file}.test.js in Chromium`, { skip, timeout: 600_000 }, async (t) => {
    const page = await openPage(chromium);
    t.after(() => page.close());
    const { ran, failed } = await page.evaluate(async (path) => {
      await import(path);
      const { runAll } = await import("node:test");
      return runAll();
    }, `/test/${file}.test.js`);
    assert.deepEqual(failed, []);
    assert.ok(ran > 5, `${ran} tests ran`);
    t.diagnostic(`${ran} tests passed in ${await page.version()}`);
  });
}
