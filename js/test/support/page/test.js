// `node:test` for a page: runs the tests of a file one after the other, once the module is evaluated.
const tests = [];
const afterwards = [];

export function test(name, run) {
  tests.push({ name, run });
}

export function after(run) {
  afterwards.push({ name: "afterwards", run });
}

/** Runs everything, and returns what failed. */
export async function runAll() {
  const failed = [];
  for (const { name, run } of [...tests, ...afterwards]) {
    try {
      await run();
    } catch (error) {
      failed.push(`${name}: ${error?.stack ?? error}`);
    }
  }
  return { ran: tests.length, failed };
}
