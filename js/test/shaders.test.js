// The tool that minifies the shaders for the planner. A test of the crate compares the kernels (src/kernels/tests/minified.rs).
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { minify, wordsInLiterals } from "../planner/minify-shaders.js";

const minified = (texts, kept = []) => minify(texts, new Set(kept));

test("all files have the same short name for a function, a constant or a member", () => {
  const point = "const LIMIT: u32 = 4u;\nstruct Point { left: u32, right: vec2<u32> }\n";
  const use = "fn area(point: Point) -> u32 { return min(LIMIT, point.left * point.right.x); }";
  const [one, other] = minified([point, use]);
  assert.equal(one, "const aa:u32=4u;struct ab{a:u32,b:vec2<u32>}\n");
  assert.equal(other, "fn ac(a:ab)->u32{return min(aa,a.a*a.b.x);}\n");
});

test("the names of locals begin anew in each function", () => {
  const [text] = minified(["fn first(lane: u32) { var sum = lane; let twice = sum + lane; }\nfn second(index: u32) { first(index); }"]);
  assert.equal(text, "fn aa(a:u32){var b=a;let c=b+a;}fn ab(a:u32){aa(a);}\n");
});

test("kept names stay, except as names of locals", () => {
  const text = "struct Part { sum: f32 }\nvar<workgroup> parts: array<Part, SIZE>;\nfn total(sum: f32) -> f32 { return sum + parts[0].sum; }";
  const short = "struct aa{sum:f32}var<workgroup>ab:array<aa,SIZE>;fn total(a:f32)->f32{return a+ab[0].sum;}\n";
  assert.equal(minified([text], ["total", "sum"])[0], short);
});

test("the entries that kernels are put together by stay, and no other comment", () => {
  const text = "// A tile.\n//\n// provides: size\n// requires: segment, tile\n// binds: tiles\n\nfn size() {} // nothing\n";
  assert.equal(minified([text])[0], "// requires: segment, tile\n// binds: tiles\nfn aa(){}\n");
});

test("a space stays between signs that would be read as one", () => {
  const text = "fn main(one: i32) { let difference = one - -2; let both = true && &other; }";
  assert.equal(minified([text], ["main"])[0], "fn main(a:i32){let b=a- -2;let c=true&& &other;}\n");
});

test("no short name is a kept name or a word of WGSL", () => {
  const names = Array.from({ length: 500 }, (_, index) => `function_${index}`);
  const [text] = minified([names.map((name) => `fn ${name}() {}`).join("\n")], ["ac"]);
  const short = text.match(/(?<=fn )\w+/g);
  assert.equal(new Set(short).size, names.length);
  assert.deepEqual(short.filter((name) => ["ac", "as", "do", "fn", "if", "of"].includes(name)), []);
  assert.throws(() => minified([Array.from({ length: 2700 }, (_, index) => `fn function_${index}() {}`).join("\n")]), /2700 names/);
});

test("the words of Rust's literals are kept, not those of comments and paths", () => {
  const code = `/// A "comment".\nlet path = "lib/reduce"; // "another"\npush("fn load_word(at: u32)\\n"); label = "case {slot}u";`;
  assert.deepEqual(wordsInLiterals(code), ["fn", "load_word", "at", "u32", "n", "case", "slot", "u"]);
});

test("the tool writes all files when its path has spaces and symbolic links", (t) => {
  const folder = mkdtempSync(join(tmpdir(), "gradclip shaders "));
  t.after(() => rmSync(folder, { recursive: true }));
  symlinkSync(fileURLToPath(new URL("..", import.meta.url)), join(folder, "js"));
  execFileSync(process.execPath, [join(folder, "js/planner/minify-shaders.js"), join(folder, "out")]);
  assert.ok(existsSync(join(folder, "out/stages/partials.wgsl")));
});
