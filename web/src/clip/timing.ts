// Times a clip. Clocks in a page are coarse, and a clip must begin with fresh gradients: a batch restores and clips the
// gradients many times, and the time of a batch that only restores them is subtracted.

export interface Timing {
  /** The median time of a clip. Not positive if it is below the clock's resolution. */
  milliseconds: number;
  /** Clips in a batch. */
  count: number;
  /** Batches. */
  batches: number;
}

const MAX_COUNT = 1024;
/** A batch should take this long, for a clock of 0.1 ms. */
const BATCH_MILLISECONDS = 10;
/** No further batch begins after this time. */
const TOTAL_MILLISECONDS = 1500;
const MAX_BATCHES = 9;

/** Times batches. `batch` runs `count` restores, each followed by a clip if `clips`, and returns its milliseconds. */
export async function timeBatches(batch: (count: number, clips: boolean) => Promise<number>): Promise<Timing> {
  // The first run warms the caches and lets the engine compile.
  await batch(1, true);
  let count = 1;
  let time = await batch(1, true);
  while (time < BATCH_MILLISECONDS && count < MAX_COUNT) {
    count = Math.min(count * 4, MAX_COUNT);
    time = await batch(count, true);
  }
  const times: number[] = [];
  const begin = performance.now();
  do {
    const clips = await batch(count, true);
    times.push((clips - (await batch(count, false))) / count);
  } while (times.length < MAX_BATCHES && performance.now() - begin < TOTAL_MILLISECONDS);
  times.sort((a, b) => a - b);
  const middle = times.length >> 1;
  const milliseconds = times.length % 2 ? times[middle] : (times[middle - 1] + times[middle]) / 2;
  return { milliseconds, count, batches: times.length };
}
