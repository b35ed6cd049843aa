// Runs the clips of the crate's conformance table through the package, on a WebGPU device: the process that
// tests/conformance/js_host.rs starts and talks to. Each side sends a line of JSON, followed by bytes.
import { Clipper } from "../../dist/index.js";
import { bufferOf, bytesOf, requestAdapter, requestDevice } from "./gpu.js";

const adapter = await requestAdapter();
const { architecture, description } = adapter.info;
const name = (architecture || description).split(/[ (]/)[0].toLowerCase();

const devices = new Map();
for (const [configuration, requiredLimits] of [["default", {}], ["recommended", Clipper.recommendedLimits(adapter)]]) {
  const device = await requestDevice({ requiredLimits });
  devices.set(configuration, { device, clipper: await Clipper.create(device) });
}

const read = bytesOfStdin();
await write(`${JSON.stringify({ name: `dawn-${name}` })}\n`);
for (;;) {
  const line = await read.line();
  if (line === undefined) break;
  const { configuration, bytes, gradients, clips } = JSON.parse(line);
  const contents = [];
  for (const count of bytes) contents.push(await read.bytes(count));
  await answer(devices.get(configuration), contents, gradients, clips);
}
process.exit(0);

/** Clips the gradients in these buffers, and writes the records, or the message of the error, and the buffers. */
async function answer({ device, clipper }, contents, gradients, clips) {
  const buffers = contents.map((bytes) => bufferOf(device, bytes));
  const placed = gradients.map(({ buffer, parameter, ...rest }) => ({
    ...rest,
    buffer: buffers[buffer],
    ...(parameter && { parameter: { ...parameter, buffer: buffers[parameter.buffer] } }),
  }));
  let [records, error] = [new Uint8Array(), undefined];
  try {
    const plan = await clipper.prepare(placed, clips.map(withNumbers));
    const encoder = device.createCommandEncoder();
    plan.encode(encoder);
    const ticket = plan.recordBuffer && plan.readBackAll(encoder);
    device.queue.submit([encoder.finish()]);
    await ticket;
    if (ticket) records = new Uint8Array(await bytesOf(device, plan.recordBuffer), 0, 40 * plan.records);
    plan.destroy();
  } catch (thrown) {
    error = thrown.message;
  }
  if (device.errors.length > 0) error = `outside of error scopes: ${device.errors.splice(0).join(" ")}`;
  await write(`${JSON.stringify({ error, records: records.length / 40 })}\n`);
  await write(records);
  for (const [index, buffer] of buffers.entries()) {
    await write(new Uint8Array(await bytesOf(device, buffer), 0, contents[index].length));
    buffer.destroy();
  }
}

/** Numbers come as text, since JSON has no infinity and no NaN. */
function withNumbers(value) {
  if (typeof value === "string") {
    const number = Number(value.replace("inf", "Infinity"));
    return Number.isNaN(number) && value !== "NaN" ? value : number;
  }
  if (Array.isArray(value)) return value.map(withNumbers);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, withNumbers(inner)]));
}

function bytesOfStdin() {
  const chunks = process.stdin[Symbol.asyncIterator]();
  let rest = Buffer.alloc(0);
  const more = async () => {
    const { value, done } = await chunks.next();
    if (!done) rest = Buffer.concat([rest, value]);
    return !done;
  };
  const take = (count) => {
    const taken = rest.subarray(0, count);
    rest = rest.subarray(count);
    return taken;
  };
  return {
    async line() {
      while (!rest.includes(10)) if (!(await more())) return undefined;
      return take(rest.indexOf(10) + 1).toString();
    },
    async bytes(count) {
      while (rest.length < count) if (!(await more())) throw new Error("the input ends within a request");
      return new Uint8Array(take(count));
    },
  };
}

function write(data) {
  return new Promise((resolve) => process.stdout.write(data, resolve));
}
