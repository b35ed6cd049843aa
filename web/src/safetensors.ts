// Reads and writes .safetensors files. Every error says what is wrong with which tensor.

import { type DType, type Tensor, MAX_BYTES, size } from "./tensors.js";

/** The bytes of the header's length field. */
const LENGTH_BYTES = 8;
/** The format's maximum header length. */
const MAX_HEADER = 100_000_000;
const METADATA = "__metadata__";
const DTYPES: Record<string, DType> = { F32: "f32", F16: "f16", BF16: "bf16" };

/** An entry of the header. */
interface Entry {
  name: string;
  dtype: string;
  shape: number[];
  start: number;
  end: number;
}

/** Reads a file that a user chose. */
export async function readFile(file: File): Promise<Tensor[]> {
  if (file.size > MAX_BYTES + MAX_HEADER) {
    throw new Error(`the file has ${size(file.size)}; the page clips at most ${size(MAX_BYTES)}. The gradclip command has no such limit`);
  }
  return parse(await file.arrayBuffer());
}

/** Parses a file. Throws an `Error` that names the tensor and the numbers. */
export function parse(file: ArrayBuffer): Tensor[] {
  const bytes = new Uint8Array(file);
  const format = otherFormat(bytes);
  if (format !== null) throw new Error(`this is not a .safetensors file but ${format}`);
  if (bytes.length < LENGTH_BYTES) {
    throw new Error(`not a .safetensors file: it has ${bytes.length} bytes, but the header's length alone takes ${LENGTH_BYTES}`);
  }
  const length = Number(new DataView(file).getBigUint64(0, true));
  const follows = bytes.length - LENGTH_BYTES;
  if (length > Math.min(follows, MAX_HEADER)) {
    throw new Error(`damaged, or not a .safetensors file: its first ${LENGTH_BYTES} bytes announce a header of ${length} bytes, but ${follows} bytes follow`);
  }
  const data = bytes.subarray(LENGTH_BYTES + length);
  const entries = parseHeader(bytes.subarray(LENGTH_BYTES, LENGTH_BYTES + length));
  checkLayout(entries, data.length);
  if (data.length > MAX_BYTES) {
    const [bytes, most] = [data.length, MAX_BYTES].map((count) => count.toLocaleString("en"));
    throw new Error(`the tensors take ${bytes} bytes; the page clips at most ${most}. The gradclip command has no such limit`);
  }
  return entries.map(({ name, dtype, shape, start, end }) => ({ name, dtype: DTYPES[dtype], shape, bytes: data.subarray(start, end) }));
}

/** Returns the parts of a file with these tensors. */
export function serialize(tensors: readonly Tensor[]): Uint8Array<ArrayBuffer>[] {
  let end = 0;
  const entries = tensors.map(({ name, dtype, shape, bytes }) => {
    const start = end;
    end += bytes.length;
    return [name, { dtype: dtype.toUpperCase(), shape, data_offsets: [start, end] }];
  });
  const json = JSON.stringify(Object.fromEntries(entries));
  const header = new TextEncoder().encode(json);
  // Spaces keep the data aligned.
  const padding = new Uint8Array(-header.length & 7).fill(0x20);
  const length = new Uint8Array(LENGTH_BYTES);
  new DataView(length.buffer).setBigUint64(0, BigInt(header.length + padding.length), true);
  return [length, header, padding, ...tensors.map(({ bytes }) => bytes as Uint8Array<ArrayBuffer>)];
}

/** Returns the entries in the order of the data. */
function parseHeader(bytes: Uint8Array): Entry[] {
  let header: unknown;
  try {
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (error) {
    throw new Error(`the header is not valid JSON: ${error instanceof Error ? error.message : String(error)}`);
  }
  if (!isObject(header)) throw new Error("the header is damaged: it is not a JSON object");
  const entries = Object.entries(header).filter(([name]) => name !== METADATA).map(([name, value]) => parseEntry(name, value));
  if (entries.length === 0) throw new Error("the file has no tensors");
  return entries.sort((a, b) => a.start - b.start || a.end - b.end);
}

function parseEntry(name: string, value: unknown): Entry {
  const tensor = quoted(name);
  if (!isObject(value)) throw new Error(`the header is damaged: tensor ${tensor} is not an object`);
  const { dtype, shape, data_offsets: offsets } = value;
  if (typeof dtype !== "string") throw new Error(`the header is damaged: tensor ${tensor} has no dtype`);
  if (!isSizes(shape)) throw new Error(`the header is damaged: the shape of tensor ${tensor} is not a list of sizes`);
  if (!isSizes(offsets) || offsets.length !== 2) {
    throw new Error(`the header is damaged: the data_offsets of tensor ${tensor} are not two offsets`);
  }
  const [start, end] = offsets;
  if (start > end) throw new Error(`tensor ${tensor} ends before it begins: its data_offsets are [${start}, ${end}]`);
  if (!Object.hasOwn(DTYPES, dtype)) {
    throw new Error(`tensor ${tensor} holds ${quoted(dtype)}; gradients are F32, F16 or BF16`);
  }
  // Not a product of infinity and 0.
  const required = shape.includes(0) ? 0 : shape.reduce((product, dimension) => product * dimension, dtype === "F32" ? 4 : 2);
  if (required !== end - start) {
    const shown = shape.length > 8 ? `[${shape.slice(0, 8).join(", ")}, …]` : `[${shape.join(", ")}]`;
    throw new Error(`tensor ${tensor}: shape ${shown} of ${dtype} requires ${required} bytes, but data_offsets [${start}, ${end}] span ${end - start} bytes`);
  }
  return { name, dtype, shape, start, end };
}

/** Checks that the tensors cover every byte of the data exactly once. */
function checkLayout(entries: Entry[], length: number): void {
  let end = 0;
  let before = "";
  for (const entry of entries) {
    const name = quoted(entry.name);
    if (entry.start > end) throw new Error(`bytes ${end} to ${entry.start} of the data, before tensor ${name}, belong to no tensor`);
    if (entry.start < end) throw new Error(`tensors ${before} and ${name} overlap: ${name} begins at byte ${entry.start}, before byte ${end}`);
    end = entry.end;
    before = name;
  }
  if (end !== length) throw new Error(`the header describes ${end} bytes of tensors, but ${length} bytes follow`);
}

/** Names a format that is often mistaken for .safetensors. */
function otherFormat(bytes: Uint8Array): string | null {
  const starts = (...prefix: number[]): boolean => prefix.every((byte, i) => bytes[i] === byte);
  // A header's length can begin with any bytes. Its high bytes are 0, and `{` follows.
  if ([0, 0, 0, 0x7b].every((byte, i) => bytes[5 + i] === byte)) return null;
  if (starts(0x50, 0x4b, 3, 4)) return "a zip archive, as torch.save and numpy.savez write";
  if (starts(0x80) && bytes[1] >= 2 && bytes[1] <= 5) return "a Python pickle, as older versions of torch.save write";
  if (starts(0x93, 0x4e, 0x55, 0x4d)) return "a NumPy array";
  if (starts(0x47, 0x47, 0x55, 0x46)) return "a GGUF file";
  if (starts(0x89, 0x48, 0x44, 0x46)) return "an HDF5 file";
  if (starts(0x1f, 0x8b)) return "compressed by gzip";
  const text = new TextDecoder().decode(bytes.subarray(0, 64)).trimStart().toLowerCase();
  if (text.startsWith("version https://git-lfs")) return "a Git LFS pointer; git lfs pull fetches the file";
  if (text.startsWith("<!doctype html") || text.startsWith("<html")) return "an HTML page, as a failed download leaves behind";
  if (text.startsWith("{") && !bytes.subarray(0, 64).includes(0)) return "JSON";
  return null;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isSizes(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((size) => Number.isSafeInteger(size) && size >= 0);
}

/** Quotes a name. Long names are shortened, and control characters escaped. */
function quoted(name: string): string {
  return JSON.stringify(name.length > 80 ? `${name.slice(0, 79)}…` : name);
}
