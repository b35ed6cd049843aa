// A WebGPU device, whose errors outside of error scopes fail the test that caused them.

/** SwiftShader, a software GPU, as Debian's Chromium brings it along. */
const SWIFTSHADER = "/usr/lib/chromium/vk_swiftshader_icd.json";

/** Where WebGPU is: the page's, or under Node that of Dawn, which npm's `webgpu` brings. */
async function findGpu() {
  if (globalThis.navigator?.gpu) return navigator.gpu;
  const { create, globals } = await import("webgpu");
  Object.assign(globalThis, globals);
  // Kept for good: Dawn aborts the process when this object is collected.
  globalThis.dawn = create([]);
  if (!(await dawn.requestAdapter()) && !process.env.VK_DRIVER_FILES) {
    process.env.VK_DRIVER_FILES = SWIFTSHADER;
    globalThis.dawn = [dawn, create([])].at(1);
  }
  return dawn;
}

const gpu = await findGpu();

export async function requestAdapter() {
  const adapter = await gpu.requestAdapter();
  if (adapter === null) throw new Error("no adapter: install a GPU driver, or Chromium for its software one");
  return adapter;
}

export async function requestDevice(descriptor) {
  const device = await (await requestAdapter()).requestDevice(descriptor);
  device.errors = [];
  device.onuncapturederror = ({ error }) => device.errors.push(error.message);
  return device;
}

/** A buffer with these values: floats, or the elements of a typed array. */
export function bufferOf(device, values, usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST) {
  const array = ArrayBuffer.isView(values) ? values : new Float32Array(values);
  const size = Math.max(4, Math.ceil(array.byteLength / 4) * 4);
  const buffer = device.createBuffer({ size, usage, mappedAtCreation: true });
  new Uint8Array(buffer.getMappedRange()).set(new Uint8Array(array.buffer, array.byteOffset, array.byteLength));
  buffer.unmap();
  return buffer;
}

/** The bytes of a buffer. */
export async function bytesOf(device, buffer) {
  const staging = device.createBuffer({ size: buffer.size, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
  const encoder = device.createCommandEncoder();
  encoder.copyBufferToBuffer(buffer, 0, staging, 0, buffer.size);
  device.queue.submit([encoder.finish()]);
  await staging.mapAsync(GPUMapMode.READ);
  const bytes = staging.getMappedRange().slice(0);
  staging.destroy();
  return bytes;
}

export async function floatsOf(device, buffer) {
  return [...new Float32Array(await bytesOf(device, buffer))];
}

/** Encodes commands and submits them; returns what `encode` returns. */
export function submit(device, encode) {
  const encoder = device.createCommandEncoder();
  const result = encode(encoder);
  device.queue.submit([encoder.finish()]);
  return result;
}
