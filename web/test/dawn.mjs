// Dawn under Node, through the npm package `webgpu`. Needs a Vulkan driver that Dawn accepts, such as the SwiftShader
// that Chromium brings.

import { existsSync } from "node:fs";

const SWIFTSHADER = "/usr/lib/chromium/vk_swiftshader_icd.json";
if (!process.env.VK_DRIVER_FILES && existsSync(SWIFTSHADER)) process.env.VK_DRIVER_FILES = SWIFTSHADER;

const { create, globals } = await import("webgpu");
Object.assign(globalThis, globals);
// A global: the process aborts if it is collected.
globalThis.dawn = create([]);

/** Opens the first adapter. */
export async function openDevice() {
  const adapter = await globalThis.dawn.requestAdapter();
  if (!adapter) throw new Error("Dawn found no adapter; set VK_DRIVER_FILES to the ICD file of a Vulkan driver");
  const device = await adapter.requestDevice();
  device.addEventListener("uncapturederror", (event) => {
    throw new Error(event.error.message);
  });
  return device;
}
