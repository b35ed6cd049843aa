// The messages of the host and of the planner: numbers, and bytes for texts and buffers. `js/planner/src/message.rs` is the other
// side. Nothing in a message has a name: both sides know its order. The length of a text is a number.

/** The type of a number in a struct of the crate, as `DataView` names it. */
export type NumberType = "Float32" | "Uint32";

/** The fields of a struct of the crate, in their order. */
export type Layout<K extends string> = Record<K, NumberType>;

/** A message for the planner. Each method returns the message. */
export class Request {
  readonly #numbers: number[] = [];
  readonly #bytes: Uint8Array[] = [];

  number(...numbers: number[]): this {
    this.#numbers.push(...numbers);
    return this;
  }

  flag(flag: boolean): this {
    return this.number(flag ? 1 : 0);
  }

  /** Writes a number that may be absent: a flag, and the number if it is set. */
  optional(number: number | undefined): this {
    return number === undefined ? this.flag(false) : this.flag(true).number(number);
  }

  /** Writes a list: its length, and the values. */
  list<T>(values: readonly T[], write: (value: T, index: number) => void): this {
    this.number(values.length);
    values.forEach(write);
    return this;
  }

  bytes(bytes: Uint8Array): this {
    this.#bytes.push(bytes);
    return this.number(bytes.length);
  }

  /** Writes structs, as they are in memory. */
  structs<K extends string>(layout: Layout<K>, structs: readonly Record<K, number>[]): this {
    const types = Object.entries(layout) as [K, NumberType][];
    const view = new DataView(new ArrayBuffer(4 * types.length * structs.length));
    structs.forEach((struct, index) =>
      types.forEach(([name, type], field) => view[`set${type}`](4 * (index * types.length + field), struct[name], true)),
    );
    return this.bytes(new Uint8Array(view.buffer));
  }

  text(text: string): this {
    return this.bytes(new TextEncoder().encode(text));
  }

  /** Puts the message into memory that `reserve` returns for a number of words. Returns its place, its words and its numbers. */
  into(memory: WebAssembly.Memory, reserve: (words: number) => number): [place: number, words: number, numbers: number] {
    const numbers = this.#numbers.length;
    const bytes = this.#bytes.reduce((sum, { length }) => sum + length, 0);
    const words = numbers + Math.ceil(bytes / 8);
    const place = reserve(words) >>> 0;
    new Float64Array(memory.buffer, place, numbers).set(this.#numbers);
    let at = place + 8 * numbers;
    for (const part of this.#bytes) {
      new Uint8Array(memory.buffer, at, part.length).set(part);
      at += part.length;
    }
    return [place, words, numbers];
  }
}

/** A message of the planner, which is read in its order. */
export class Answer {
  readonly #numbers: Float64Array;
  readonly #bytes: Uint8Array<ArrayBuffer>;
  #number = 0;
  #byte = 0;

  constructor(numbers: Float64Array, bytes: Uint8Array<ArrayBuffer>) {
    this.#numbers = numbers;
    this.#bytes = bytes;
  }

  number(): number {
    return this.#numbers[this.#number++]!;
  }

  flag(): boolean {
    return this.number() !== 0;
  }

  /** Reads an index that may be absent. */
  optional(): number | undefined {
    const number = this.number();
    return number < 0 ? undefined : number;
  }

  /** Reads a list: its length, and the values. */
  list<T>(read: () => T): T[] {
    return Array.from({ length: this.number() }, read);
  }

  indices(): number[] {
    return this.list(() => this.number());
  }

  bytes(): Uint8Array<ArrayBuffer> {
    const length = this.number();
    return this.#bytes.subarray(this.#byte, (this.#byte += length));
  }

  /** Reads structs, as they are in memory. */
  structs<K extends string>(layout: Layout<K>): Record<K, number>[] {
    const types = Object.entries(layout) as [K, NumberType][];
    const bytes = this.bytes();
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    return Array.from({ length: bytes.length / 4 / types.length }, (_, index) => {
      const entries = types.map(([name, type], field) => [name, view[`get${type}`](4 * (index * types.length + field), true)]);
      return Object.fromEntries(entries) as Record<K, number>;
    });
  }

  text(): string {
    // A byte order mark is a character like others.
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(this.bytes());
  }
}
