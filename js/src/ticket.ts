/**
 * A result that arrives after a submission. Await it after the submission of its encoder: at once, or some steps later.
 *
 * It is lazy: the staging buffer is mapped when the ticket is first awaited. So do not await it before the submission, nor
 * return it from an async function, which awaits it too: commands that use a mapped buffer cannot be submitted. A ticket that
 * is never awaited costs only its copy.
 */
export class Ticket<T> implements PromiseLike<T> {
  readonly #redeem: () => Promise<T>;
  #result: Promise<T> | undefined;

  /** Callers get tickets from the `readBack` methods of a plan. */
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
