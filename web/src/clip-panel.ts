// The first section of the page: clips a set of gradients, and shows the result.

import { CpuClip, norms, totalNorm } from "./clip/cpu.js";
import { compare } from "./clip/compare.js";
import { GpuClip } from "./clip/gpu.js";
import type { ClipRequest, Clipped } from "./clip/request.js";
import type { Timing } from "./clip/timing.js";
import { MAX_ROWS, NormsChart, type NormPair } from "./chart/norms.js";
import { number } from "./chart/svg.js";
import { type Gpu, isLost } from "./device.js";
import { byId, checked, messageOf, readNumber, showError } from "./dom.js";
import { parse, readFile, serialize } from "./safetensors.js";
import { type DType, type Tensor, elements, generate, size } from "./tensors.js";

const EXAMPLE = "exploding_rnn.safetensors";
/** More rows than this make the table slow. */
const MAX_TABLE_ROWS = 1000;

/** The result of a clip, as the page draws it. */
interface Result {
  tensors: readonly Tensor[];
  request: ClipRequest;
  cpu: Clipped;
  /** Null without a GPU. */
  gpu: Clipped | null;
  total: NormPair;
  pairs: NormPair[];
}

/** The section and its form. */
export class ClipPanel {
  private readonly form = byId<HTMLFormElement>("clip-form");
  private readonly result = byId("clip-result");
  private readonly chart = new NormsChart(byId("norms"));
  private file: File | null = null;
  private isRunning = false;
  private runAgain = false;
  /** The gradients after the last clip. */
  private clipped: Tensor[] = [];

  /** `gpu` is null without a GPU, and once it is lost. */
  constructor(private gpu: Gpu | null) {
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      void this.run();
    });
    for (const name of ["source", "method"]) {
      for (const radio of this.form.elements.namedItem(name) as RadioNodeList) {
        radio.addEventListener("change", () => this.showFields());
      }
    }
    byId<HTMLInputElement>("file").addEventListener("change", (event) => {
      const { files } = event.target as HTMLInputElement;
      if (files?.length) this.choose(files[0]);
    });
    byId("save").addEventListener("click", () => this.save());
    this.acceptDrops();
    this.showFields();
  }

  /** Shows the fields of the chosen source and method. */
  private showFields(): void {
    const source = checked(this.form, "source");
    byId("generated").hidden = source !== "generated";
    byId("file-drop").hidden = source !== "file";
    byId<HTMLSelectElement>("norm-type").disabled = checked(this.form, "method") === "value";
  }

  private choose(file: File): void {
    this.file = file;
    const radio = this.form.querySelector<HTMLInputElement>('input[name="source"][value="file"]')!;
    radio.checked = true;
    this.showFields();
    byId("file-note").textContent = `${file.name}, ${size(file.size)}`;
    void this.run();
  }

  private save(): void {
    const url = URL.createObjectURL(new Blob(serialize(this.clipped), { type: "application/octet-stream" }));
    Object.assign(document.createElement("a"), { href: url, download: "clipped.safetensors" }).click();
    // The download has begun by then.
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  }

  /** The whole section takes files. A file that misses it must not replace the page. */
  private acceptDrops(): void {
    const section = byId("clip");
    const hasFiles = (event: DragEvent): boolean => event.dataTransfer?.types.includes("Files") ?? false;
    window.addEventListener("dragover", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      const isOver = section.contains(event.target as Node);
      section.classList.toggle("dropping", isOver);
      if (event.dataTransfer) event.dataTransfer.dropEffect = isOver ? "copy" : "none";
    });
    window.addEventListener("dragleave", (event) => {
      if (event.relatedTarget === null) section.classList.remove("dropping");
    });
    window.addEventListener("drop", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      section.classList.remove("dropping");
      const file = event.dataTransfer?.files[0];
      if (file && section.contains(event.target as Node)) this.choose(file);
    });
  }

  /** Clips what the form says. A call during a run starts another one afterwards. */
  async run(): Promise<void> {
    if (this.isRunning) {
      this.runAgain = true;
      return;
    }
    this.isRunning = true;
    this.result.setAttribute("aria-busy", "true");
    do {
      this.runAgain = false;
      try {
        showError("clip-error", null);
        await this.clip();
      } catch (error) {
        if (this.gpu !== null && (await isLost(this.gpu))) {
          // The same again, on the CPU path.
          this.gpu = null;
          this.runAgain = true;
          continue;
        }
        showError("clip-error", `Nothing was clipped: ${messageOf(error)}.`);
        this.clear();
      }
    } while (this.runAgain);
    this.result.setAttribute("aria-busy", "false");
    this.isRunning = false;
  }

  private clear(): void {
    this.clipped = [];
    this.result.hidden = true;
    for (const id of ["norm-before", "coefficient", "norm-after", "gpu-time", "cpu-time"]) setFigure(id, "–", null);
    for (const id of ["clip-summary", "paths", "timing-note"]) byId(id).textContent = "";
    byId("norms").replaceChildren();
    byId("norms-table").replaceChildren();
  }

  private async tensors(): Promise<Tensor[]> {
    switch (checked(this.form, "source")) {
      case "generated":
        return generate({
          tensors: readNumber("tensors"),
          elements: 2 ** Number(byId<HTMLSelectElement>("elements-each").value),
          dtype: byId<HTMLSelectElement>("dtype").value as DType,
          exploding: byId<HTMLSelectElement>("contents").value === "exploding",
        });
      case "file":
        if (this.file === null) throw new Error("no file was chosen");
        return readFile(this.file);
      default: {
        const response = await fetch(EXAMPLE);
        if (!response.ok) throw new Error(`${EXAMPLE} was not found (${response.status})`);
        return parse(await response.arrayBuffer());
      }
    }
  }

  private request(): ClipRequest {
    const limit = readNumber("limit");
    if (checked(this.form, "method") === "value") return { method: "value", limit };
    return { method: "norm", limit, normType: Number(byId<HTMLSelectElement>("norm-type").value) };
  }

  private async clip(): Promise<void> {
    const request = this.request();
    byId("clip-summary").textContent = "Clipping…";
    for (const id of ["gpu-time", "cpu-time"]) setFigure(id, "–", null);
    byId("timing-note").textContent = "";
    // Lets the browser paint that before the work begins.
    await new Promise((resolve) => setTimeout(resolve));
    const tensors = await this.tensors();
    const onCpu = new CpuClip(tensors, request);
    let onGpu: GpuClip | null = null;
    try {
      const cpu = onCpu.clip();
      onGpu = this.gpu && (await GpuClip.create(this.gpu, tensors, request));
      const gpu = onGpu && (await onGpu.clip());
      const normType = request.method === "norm" ? request.normType : 2;
      const outputs = (gpu ?? cpu).outputs;
      const clipped = tensors.map((tensor, index) => ({ ...tensor, bytes: outputs[index] }));
      const after = gpu ? norms(clipped, normType) : cpu.after;
      const total = {
        name: "all tensors",
        before: (gpu ?? cpu).outcome?.totalNorm ?? totalNorm(tensors, normType),
        after: totalNorm(clipped, normType),
      };
      const pairs = tensors.map(({ name }, index) => ({ name, before: cpu.before[index], after: after[index] }));
      this.show({ tensors, request, cpu, gpu, total, pairs });
      this.clipped = clipped;
      this.showTimes(onGpu && (await onGpu.time()), await onCpu.time());
    } finally {
      onCpu.destroy();
      onGpu?.destroy();
    }
  }

  private show({ tensors, request, cpu, gpu, total, pairs }: Result): void {
    const outcome = (gpu ?? cpu).outcome;
    const count = tensors.reduce((sum, tensor) => sum + elements(tensor), 0);
    const set = `${counted(tensors.length, "tensor")}, ${counted(count, "element")}`;
    setFigure("norm-before", number(total.before), total.before);
    setFigure("norm-after", number(total.after), total.after);
    setFigure("coefficient", outcome ? number(outcome.clipCoef) : "–", outcome?.clipCoef ?? null);
    byId("clip-summary").textContent = `${set}: ${sentence({ tensors, request, cpu, gpu, total, pairs })}`;
    byId("paths").textContent = gpu ? agreement(tensors, gpu, cpu) : "Clipped on the CPU. There is no GPU to compare with.";
    const limit = request.method === "norm" ? request.limit : null;
    byId("limit-key").hidden = limit === null || pairs.length > MAX_ROWS;
    this.result.hidden = false;
    this.chart.show({ tensors: pairs, total, limit });
    showTable(tensors, [...pairs]);
  }

  private showTimes(gpu: (Timing & { byGpu: boolean }) | null, cpu: Timing): void {
    setFigure("cpu-time", duration(cpu.milliseconds), cpu.milliseconds);
    setFigure("gpu-time", gpu ? duration(gpu.milliseconds) : "no GPU", gpu?.milliseconds ?? null);
    const batches = ({ batches, count }: Timing): string => `${batches === 1 ? "one batch" : `${batches} batches`} of ${count === 1 ? "one clip" : `${count} clips`}`;
    const clock = gpu?.byGpu ? "the GPU's timestamps" : "the page's clock, from submission to completion";
    byId("timing-note").textContent =
      "Every clip starts from the original gradients: a batch restores and clips them many times. The time of a batch that only "
      + "restores them is subtracted, and the median over the batches is shown. "
      + (gpu ? `GPU: ${clock}, ${batches(gpu)}; uploads are not included. ` : "")
      + `CPU: the Rust crate in WebAssembly, one thread with SIMD, ${batches(cpu)}.`
      + (this.gpu?.software ? " This GPU is software that runs on the CPU, so its time says nothing about a real GPU." : "");
  }
}

/** Describes what the clip did, in a sentence. */
function sentence({ tensors, request, cpu, gpu, total }: Result): string {
  const { outcome, outputs } = gpu ?? cpu;
  if (request.method === "value") {
    const originals = tensors.map(({ bytes }) => bytes);
    const { different } = compare(tensors, outputs, originals);
    if (different === 0) return `every element is within ±${number(request.limit)}; nothing was written.`;
    return `${different.toLocaleString("en")} ${different === 1 ? "element was" : "elements were"} clamped to ±${number(request.limit)}.`;
  }
  const { totalNorm, clipCoef } = outcome!;
  // Of finite gradients with a norm beyond f32, the coefficient is known.
  const isBeyond = totalNorm === Infinity && clipCoef > 0;
  if (!Number.isFinite(totalNorm) && !isBeyond) {
    return `the norm is ${number(totalNorm)}. As in PyTorch, that makes the coefficient ${number(clipCoef)}.`;
  }
  const norm = isBeyond ? "the norm, which is beyond the range of f32," : `the norm ${number(total.before)}`;
  if (clipCoef === 1) return `${norm} is within the limit; nothing was written.`;
  // The constant that is added to the norm clips gradients whose norm is the limit.
  const how = totalNorm > request.limit ? "exceeds the limit" : "is at the limit";
  const factor = number(clipCoef) === "1" ? number(clipCoef, 7) : number(clipCoef);
  return `${norm} ${how}; every element was multiplied by ${factor}.`;
}

function counted(count: number, what: string): string {
  return `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`;
}

/** Compares the two paths. */
function agreement(tensors: readonly Tensor[], gpu: Clipped, cpu: Clipped): string {
  const { different, largest, elements } = compare(tensors, gpu.outputs, cpu.outputs);
  if (different === 0) return "Clipped on the GPU, and again on the CPU: all elements have the same bits.";
  return `Clipped on the GPU, and again on the CPU: ${different.toLocaleString("en")} of ${elements.toLocaleString("en")} elements differ, `
    + `by at most ${number(largest, 2)} of their magnitude. The two paths add in different orders, so the last bits of the norm may differ.`;
}

/** Sets a figure. `value` is the number behind the text. */
function setFigure(id: string, text: string, value: number | null): void {
  const element = byId(id);
  element.textContent = text;
  element.dataset.value = value === null ? "" : String(value);
}

function duration(milliseconds: number): string {
  if (milliseconds <= 0) return "too short";
  return milliseconds < 1 ? `${number(milliseconds * 1000, 3)} µs` : `${number(milliseconds, 3)} ms`;
}

function showTable(tensors: readonly Tensor[], pairs: readonly NormPair[]): void {
  const cell = (text: string): HTMLTableCellElement => Object.assign(document.createElement("td"), { textContent: text });
  const rows = pairs.slice(0, MAX_TABLE_ROWS).map(({ name, before, after }, index) => {
    const row = document.createElement("tr");
    const { dtype } = tensors[index];
    row.append(...[name, dtype, elements(tensors[index]).toLocaleString("en"), number(before, 5), number(after, 5)].map(cell));
    return row;
  });
  if (pairs.length > rows.length) {
    const row = document.createElement("tr");
    row.append(cell(`and ${pairs.length - rows.length} more`));
    rows.push(row);
  }
  byId("norms-table").replaceChildren(...rows);
}
