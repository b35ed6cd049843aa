// A page downloads the package, so it must not grow unnoticed. Most of it is the planner's code.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

const root = fileURLToPath(new URL("..", import.meta.url));
const MOST = 80_000;

test(`what a page loads takes less than ${MOST} bytes gzipped`, (t) => {
  const [{ files }] = JSON.parse(execFileSync("npm", ["pack", "--dry-run", "--json"], { cwd: root, encoding: "utf8" }));
  const loaded = files.map(({ path }) => path).filter((path) => /\.(js|wasm)$/.test(path));
  assert.ok(loaded.some((path) => path.endsWith(".wasm")), `${loaded}`);
  const sizes = loaded.map((path) => [gzipSync(readFileSync(`${root}/${path}`)).length, path]);
  const total = sizes.reduce((sum, [size]) => sum + size, 0);
  for (const [size, path] of sizes.sort(([one], [other]) => other - one)) t.diagnostic(`${size}  ${path}`);
  t.diagnostic(`${total} bytes in all`);
  assert.ok(total < MOST, `${total} bytes`);
});
