// As much of `node:assert/strict` as the tests use.
function fail(message, otherwise) {
  throw new Error(message ?? otherwise);
}

function show(value) {
  return JSON.stringify(value, (_, field) => (typeof field === "number" && !Number.isFinite(field) ? String(field) : field));
}

function isDeepEqual(one, other) {
  if (Object.is(one, other)) return true;
  if (typeof one !== "object" || typeof other !== "object" || one === null || other === null) return false;
  if (Array.isArray(one) !== Array.isArray(other)) return false;
  const keys = Object.keys(one);
  return keys.length === Object.keys(other).length && keys.every((key) => key in other && isDeepEqual(one[key], other[key]));
}

const assert = {
  ok(value, message) {
    if (!value) fail(message, `${show(value)} is not true`);
  },
  equal(given, wanted, message) {
    if (!Object.is(given, wanted)) fail(message, `${show(given)} is not ${show(wanted)}`);
  },
  deepEqual(given, wanted, message) {
    if (!isDeepEqual(given, wanted)) fail(message && `${message}: ${show(given)} is not ${show(wanted)}`, `${show(given)} is not ${show(wanted)}`);
  },
  match(text, pattern, message) {
    if (!pattern.test(text)) fail(message, `${text} does not match ${pattern}`);
  },
  async rejects(call, expected) {
    let error;
    try {
      await (typeof call === "function" ? call() : call);
    } catch (thrown) {
      error = thrown;
    }
    if (error === undefined) fail(undefined, "nothing was thrown");
    if (typeof expected === "function") return assert.ok(expected(error));
    for (const [key, value] of Object.entries(expected)) assert.deepEqual(error[key], value, `${key} of ${error.message}`);
  },
};

export default assert;
