// Writes native.json: what the native command prints for each case of cases.mjs. Run it in web/, after scripts/web:
//
//   node test/native.mjs

import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

import { CASES, gradients, hashOf } from "./cases.mjs";
import { parse, serialize } from "../../target/web/safetensors.js";

const root = fileURLToPath(new URL("../..", import.meta.url));
const directory = mkdtempSync(join(tmpdir(), "gradclip-native-"));
const results = {};
for (const test of CASES) {
  const { name, file, method, limit, normType } = test;
  if (!file) writeFileSync(join(directory, `${name}.safetensors`), Buffer.concat(serialize(gradients(test))));
  const shown = file ?? `${name}.safetensors`;
  const options = method === "value" ? ["--value", `${limit}`] : ["--max-norm", `${limit}`, "--norm-type", normType === "Infinity" ? "inf" : normType];
  const command = (input, output) => ["run", "-q", "-p", "gradclip-cli", "--", "clip", input, ...options, "--device", "cpu", "--json", "-o", output];
  const output = join(directory, "clipped.safetensors");
  const printed = JSON.parse(execFileSync("cargo", command(file ?? join(directory, shown), output), { cwd: root, encoding: "utf8" }));
  const clipped = readFileSync(output);
  const tensors = parse(clipped.buffer.slice(clipped.byteOffset, clipped.byteOffset + clipped.length));
  results[name] = {
    command: ["cargo", ...command(shown, "clipped.safetensors")].join(" "),
    total_norm: printed.total_norm,
    total_norm_after: printed.total_norm_after,
    clip_coef: printed.clip_coef,
    norms: Object.fromEntries(printed.tensors.slice(0, 5).map((tensor) => [tensor.name, tensor.norm])),
    sha256: hashOf(tensors),
  };
}
writeFileSync(new URL("native.json", import.meta.url), `${JSON.stringify(results, null, 2)}\n`);
rmSync(directory, { recursive: true });
