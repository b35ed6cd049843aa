/**
 * A result that arrives after a submission. Await it once the encoder was submitted: at once, or some steps later.
 *
 * It is lazy. The staging buffer is mapped when the ticket is first awaited, and not before, since commands that use a
 * mapped buffer cannot be submitted. A ticket that is never awaited costs nothing more.
 */
export class Ticket<T> implements PromiseLike<T> {
  readonly #redeem: () => Promise<T>;
  #result: Promise<T> | undefined;

  /** Tickets come from the `readBack` methods of a plan. */
  constructor(redeem: () => Promise<T>) {
    this.#redeem = redeem;
  }

  then<A = T, B = never>(
    fulfilled?: ((value: T) => A | PromiseLike<A>) | null,
    rejected?: ((reason: unknown) => B | PromiseLike<B>) | null,
  ): Promise<A | B> {
    this.#result ??= this.#redeem();
    return this.#result.then(fulfilled, rejected);
  }
}
