// Finds the GPU, or the reason why there is none.

import type { Clipper } from "gradclip";

import { messageOf } from "./dom.js";

/** A GPU that the page may use. */
export interface Gpu {
  device: GPUDevice;
  clipper: Clipper;
  /** The name to show. */
  name: string;
  /** Whether the GPU is software that runs on the CPU. */
  software: boolean;
  /** Whether the device has timestamp queries. */
  timestamps: boolean;
}

/** How long the news of a loss may take, in milliseconds. */
const NEWS = 200;

/** Returns whether the GPU is lost. What it ran fails a moment before that is known. */
export async function isLost({ device }: Gpu): Promise<boolean> {
  const later = new Promise<boolean>((resolve) => setTimeout(resolve, NEWS, false));
  return Promise.race([device.lost.then(() => true), later]);
}

/** Opens the GPU. Returns the reason as text if there is none. */
export async function openGpu(): Promise<Gpu | string> {
  if (new URLSearchParams(location.search).has("cpu")) return "The address of the page has ?cpu.";
  if (!isSecureContext) return "Browsers offer WebGPU only to pages from https or localhost.";
  if (!("gpu" in navigator)) return "This browser has no WebGPU.";
  try {
    const adapter = await navigator.gpu.requestAdapter({ powerPreference: "high-performance" });
    if (adapter === null) return "This browser has WebGPU, but found no GPU that it can use.";
    // Without a GPU, the page does not load the package.
    const { Clipper } = await import("gradclip");
    const timestamps = adapter.features.has("timestamp-query");
    const device = await adapter.requestDevice({
      requiredLimits: Clipper.recommendedLimits(adapter),
      requiredFeatures: timestamps ? ["timestamp-query"] : [],
    });
    const { description, vendor, architecture, isFallbackAdapter } = adapter.info;
    const name = description || [vendor, architecture].filter(Boolean).join(" ") || "GPU";
    const software = isFallbackAdapter || /swiftshader|llvmpipe/i.test(name);
    return { device, clipper: await Clipper.create(device), name, software, timestamps };
  } catch (error) {
    return `WebGPU failed to start: ${messageOf(error)}.`;
  }
}
