import { choice, count, fields, flag, refuse, size, text, type Where } from "./checks.js";
import type { GradientId } from "./errors.js";
import type { Request } from "./message.js";
import type { DType } from "./options.js";

const DTYPES: readonly DType[] = ["f32", "f16", "bf16"];
const PLACE = ["buffer", "dtype", "byteOffset", "length"] as const;

/** The buffers of the caller, numbered in the order of their first appearance. */
export class Numbering {
  readonly buffers: GPUBuffer[] = [];
  readonly #indices = new Map<GPUBuffer, number>();

  /** Returns the index of a buffer. */
  of(where: Where, what: string, buffer: unknown): number {
    if (typeof (buffer as GPUBuffer | undefined)?.mapState !== "string") refuse(where, what, buffer, "a GPUBuffer", "NoBuffer");
    const known = this.#indices.get(buffer as GPUBuffer);
    if (known !== undefined) return known;
    const index = this.buffers.push(buffer as GPUBuffer) - 1;
    this.#indices.set(buffer as GPUBuffer, index);
    return index;
  }

  /** Writes what the planner needs to know of each: its size, its usage and whether it is mapped. */
  write(request: Request): void {
    request.list(this.buffers, ({ size, usage, mapState }) => request.number(size, usage).flag(mapState !== "unmapped"));
  }
}

const FIELDS = ["label", "group", "measured", "scaled", "rows", "columns", "part", "parameter", "partials"] as const;

/** Checks a gradient of the caller, which is the one with this index. Returns what writes it in the planner's order. */
export function buildGradient(given: unknown, index: number, numbering: Numbering): (request: Request) => void {
  const { label: name } = (given ?? {}) as { label?: unknown };
  const gradient: GradientId = { index, ...(typeof name === "string" && { label: name }) };
  const where = { gradient };
  const set = fields(where, "it", given, [...PLACE, ...FIELDS]);
  const place = placeOf(where, "buffer", set, numbering);
  const label = set.label === undefined ? undefined : text(where, "label", set.label);
  const group = count(where, "group", or(set.group, 0));
  const isMeasured = flag(where, "measured", or(set.measured, true));
  const isScaled = flag(where, "scaled", or(set.scaled, true));
  const rows = size(where, "rows", or(set.rows, 1));
  const columns = size(where, "columns", or(set.columns, 1));
  const part = set.part === undefined ? undefined : count(where, "part", set.part);
  const parameter =
    set.parameter === undefined
      ? undefined
      : placeOf(where, "parameter.buffer", fields(where, "parameter", set.parameter, PLACE), numbering);
  const partials = set.partials === undefined ? undefined : partialsOf(where, set.partials, numbering);
  return (request) => {
    place(request);
    request.flag(label !== undefined);
    if (label !== undefined) request.text(label);
    request.number(group).flag(isMeasured).flag(isScaled).number(rows, columns).optional(part);
    request.flag(parameter !== undefined);
    parameter?.(request);
    request.flag(partials !== undefined).number(...(partials ?? []));
  };
}

/** Checks a range of a buffer. */
function placeOf(
  where: Where,
  what: string,
  { buffer, dtype = "f32", byteOffset = 0, length }: Partial<Record<(typeof PLACE)[number], unknown>>,
  numbering: Numbering,
): (request: Request) => void {
  const index = numbering.of(where, what, buffer);
  const format = DTYPES.indexOf(choice(where, "dtype", dtype, DTYPES));
  const offset = size(where, "byteOffset", byteOffset);
  const elements = length === undefined ? undefined : size(where, "length", length);
  return (request) => request.number(index, format, offset).optional(elements);
}

function partialsOf(where: Where, given: unknown, numbering: Numbering): [number, number, number] {
  const set = fields(where, "partials", given, ["buffer", "elements", "byteOffset"]);
  const buffer = numbering.of(where, "partials.buffer", set.buffer);
  return [buffer, size(where, "elements", set.elements), size(where, "byteOffset", or(set.byteOffset, 0))];
}

/** Returns the default for what is absent. Null is not absent. */
function or(given: unknown, otherwise: unknown): unknown {
  return given === undefined ? otherwise : given;
}
