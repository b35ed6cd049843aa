import { messageOf, type Context } from "./context.js";
import { GradclipError, deviceLost } from "./errors.js";
import { BufferUsage, READ_MODE } from "./flags.js";
import { Ticket } from "./ticket.js";

/** The mark at the end of a buffer of results: 0, "ran!", 0. It is copied with the results, and shows that the copy has run. */
const MARK = 0x216e_6172;
const MARK_BYTES = 12;

/** A staging buffer, and the offset of the next copy. */
interface Page {
  buffer: GPUBuffer;
  shift: 0 | 4;
}

/**
 * A buffer of the plan that the host can read, and its staging buffers.
 *
 * A staging buffer is one word longer than the results. Copies go to its first and to its second word in turn, so the
 * previous copy left a zero where the mark of the next one belongs. A mark there proves that the next copy has run. An
 * encoder that was dropped, or that WebGPU rejected, leaves no mark, so old results are never taken for new ones.
 */
export class ReadableBuffer {
  readonly #context: Context;
  readonly #buffer: GPUBuffer;
  readonly #bytes: number;
  #free: Page[] = [];

  constructor(context: Context, buffer: GPUBuffer, bytes: number) {
    this.#context = context;
    this.#buffer = buffer;
    this.#bytes = bytes;
  }

  /** Encodes a copy of the results. The ticket reads them after the submission. */
  readBack<T>(encoder: GPUCommandEncoder, read: (bytes: ArrayBuffer) => T): Ticket<T> {
    const page = this.#free.pop() ?? this.#newPage();
    encoder.copyBufferToBuffer(this.#buffer, 0, page.buffer, page.shift, this.#buffer.size);
    return new Ticket(async () => read(await this.#collect(page)));
  }

  /** Destroys the staging buffers that no ticket uses. */
  destroy(): void {
    for (const { buffer } of this.#free) buffer.destroy();
    this.#free = [];
  }

  #newPage(): Page {
    const buffer = this.#context.device.createBuffer({
      label: "gradclip.staging",
      size: this.#buffer.size + 4,
      usage: BufferUsage.MAP_READ | BufferUsage.COPY_DST,
    });
    return { buffer, shift: 0 };
  }

  async #collect({ buffer, shift }: Page): Promise<ArrayBuffer> {
    try {
      await buffer.mapAsync(READ_MODE);
    } catch (error) {
      await this.#context.checkDevice();
      // Nothing but the loss of the device unmaps this buffer. Browsers report it after they have rejected the mapping.
      if ((error as Error).name === "AbortError") throw deviceLost(messageOf(error));
      throw new GradclipError({ kind: "NotSubmitted", message: `${NEVER_RAN}: ${messageOf(error)}` });
    }
    const mapped = buffer.getMappedRange();
    const mark = new DataView(mapped).getUint32(this.#buffer.size - MARK_BYTES + shift + 4, true);
    const results = mapped.slice(shift, shift + this.#bytes);
    buffer.unmap();
    if (mark !== MARK) {
      await this.#context.checkDevice();
      // The encoder may still be submitted, so its staging buffer is left alone.
      throw new GradclipError({ kind: "NotSubmitted", message: NEVER_RAN });
    }
    this.#free.push({ buffer, shift: shift === 0 ? 4 : 0 });
    return results;
  }
}

const NEVER_RAN =
  "nothing to read back: the encoder that readBack recorded into had not been submitted when the ticket was awaited, " +
  "or WebGPU refused its commands";
