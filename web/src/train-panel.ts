// The second section of the page: trains a recurrent network with and without clipping.

import { HistoryChart } from "./chart/history.js";
import { number } from "./chart/svg.js";
import { clipGradient } from "./cpu.js";
import { type Gpu, isLost } from "./device.js";
import { byId, messageOf, readNumber, showError } from "./dom.js";
import { CpuRun } from "./rnn/cpu.js";
import { type GradientRange, GpuRun, RnnKernels } from "./rnn/gpu.js";
import { BASELINE, type Run, type Settings, type StepResult } from "./rnn/model.js";

/** Training stops here. */
const MAX_STEPS = 1000;
/** With more, training would be over before anyone sees it. */
const MAX_STEPS_PER_FRAME = 4;
/** The time between updates of the charts in milliseconds, if the user prefers reduced motion. */
const CALM_INTERVAL = 1500;

/** One of the two networks, and its charts. */
class Column {
  results: StepResult[] = [];
  run: Run | null = null;
  private readonly lossChart: HistoryChart;
  private readonly normChart: HistoryChart;

  constructor(readonly kind: "clipped" | "unclipped") {
    const how = kind === "clipped" ? "with clipping" : "without clipping";
    this.lossChart = new HistoryChart(byId(`${kind}-losses`), `Loss ${how}`, kind);
    this.normChart = new HistoryChart(byId(`${kind}-norms`), `Gradient norm ${how}`, kind);
  }

  show(steps: number, losses: readonly number[], norms: readonly number[], limit: number | null): void {
    const baseline = { value: BASELINE, label: "always answering 1" };
    this.lossChart.show({ values: this.results.map(({ loss }) => loss), steps, range: losses, reference: baseline });
    const reference = limit === null ? null : { value: limit, label: "limit" };
    this.normChart.show({ values: this.results.map(({ norm }) => norm), steps, range: norms, reference });
    const last = this.results.at(-1);
    byId(`${this.kind}-loss`).textContent = last ? number(last.loss, 3) : "–";
    byId(`${this.kind}-norm`).textContent = last ? number(last.norm, 3) : "–";
  }
}

/** The section and its form. */
export class TrainPanel {
  private readonly columns = [new Column("clipped"), new Column("unclipped")] as const;
  private readonly startButton = byId<HTMLButtonElement>("start");
  /** What the buttons ask for. `run` obeys between two steps. */
  private wantsTraining = false;
  private wantsReset = false;
  private isRunning = false;
  private kernels: Promise<RnnKernels> | null = null;
  private drawn = 0;

  /** `gpu` is null without a GPU, and once it is lost. */
  constructor(private gpu: Gpu | null) {
    this.startButton.addEventListener("click", () => this.toggle());
    byId("reset").addEventListener("click", () => this.reset());
    byId("train-form").addEventListener("submit", (event) => event.preventDefault());
    const onChange = (id: string, apply: (value: number) => void): void =>
      byId(id).addEventListener("change", () => this.guard(() => apply(readNumber(id))));
    onChange("learning-rate", (value) => this.columns.forEach(({ run }) => run?.setLearningRate(value)));
    onChange("train-limit", (value) => {
      this.columns[0].run?.setMaxNorm(value);
      this.draw();
    });
    for (const id of ["gain", "seed"]) onChange(id, () => this.reset());
    this.showPath();
    this.draw();
  }

  private showPath(): void {
    byId("train-path").textContent = this.gpu
      ? "WGSL kernels compute each step, and gradclip clips the gradient between the backward pass and the optimizer, without a host stall."
      : "Without a GPU, plain JavaScript computes each step, and gradclip's CPU path clips the gradient.";
  }

  /** Runs `action`, and shows the error that it throws. */
  private guard(action: () => void): void {
    try {
      showError("train-error", null);
      action();
    } catch (error) {
      showError("train-error", `${messageOf(error)}.`);
    }
  }

  private settings(): Settings {
    return {
      seed: readNumber("seed"),
      gain: readNumber("gain"),
      learningRate: readNumber("learning-rate"),
      maxNorm: readNumber("train-limit"),
    };
  }

  private async makeRun(settings: Settings): Promise<Run> {
    if (this.gpu === null) return new CpuRun(settings, clipGradient);
    const { device, clipper } = this.gpu;
    const source = async (name: string): Promise<string> => (await fetch(`rnn/${name}`)).text();
    this.kernels ??= RnnKernels.create(device, source);
    // The next start tries again.
    this.kernels.catch(() => (this.kernels = null));
    return GpuRun.create(await this.kernels, settings, async (gradients: GradientRange[], maxNorm) => {
      const plan = await clipper.prepare(gradients, { maxNorm });
      return {
        encodeInto: (pass) => plan.encodeInto(pass),
        recordBuffer: plan.recordBuffer!,
        setMaxNorms: (maxNorms) => plan.setMaxNorms(maxNorms),
        destroy: () => plan.destroy(),
      };
    });
  }

  /** Starts or continues, or pauses. */
  private toggle(): void {
    this.wantsTraining = !this.wantsTraining;
    void this.run();
  }

  /** Stops, and forgets both networks. */
  private reset(): void {
    this.wantsTraining = false;
    this.wantsReset = true;
    void this.run();
  }

  /** Does what the buttons ask for, until nothing is left to do. There is one such loop, however fast the clicks follow. */
  private async run(): Promise<void> {
    this.showButton();
    if (this.isRunning) return;
    this.isRunning = true;
    while (this.wantsReset || this.wantsTraining) {
      if (this.wantsReset || this.steps >= MAX_STEPS) this.clear();
      if (this.wantsTraining) await this.train();
    }
    this.isRunning = false;
  }

  private showButton(): void {
    const label = this.steps > 0 && this.steps < MAX_STEPS && !this.wantsReset ? "Continue" : "Start";
    this.startButton.textContent = this.wantsTraining ? "Pause" : label;
  }

  private clear(): void {
    this.wantsReset = false;
    for (const column of this.columns) {
      column.run?.destroy();
      column.run = null;
      column.results = [];
    }
    this.status("Ready.");
    this.showButton();
    this.draw();
  }

  private get steps(): number {
    return this.columns[0].results.length;
  }

  /** Trains until a button asks for something else, or until it is done. */
  private async train(): Promise<void> {
    try {
      showError("train-error", null);
      const settings = this.settings();
      if (this.columns[0].run === null) await this.makeRuns(settings);
      this.status("Training.");
      let count = 1;
      while (this.wantsTraining && !this.wantsReset && this.steps < MAX_STEPS) {
        // A hidden tab gets no frames, and so it does not train.
        await new Promise(requestAnimationFrame);
        const begin = performance.now();
        const steps = Math.min(count, MAX_STEPS - this.steps);
        const results = await Promise.all(this.columns.map(({ run }) => run!.train(steps)));
        results.forEach((more, index) => this.columns[index].results.push(...more));
        const milliseconds = performance.now() - begin;
        count = milliseconds > 20 ? Math.max(count >> 1, 1) : Math.min(count * 2, MAX_STEPS_PER_FRAME);
        this.drawCalmly();
      }
      const isDone = this.steps >= MAX_STEPS;
      if (isDone && !this.wantsReset) this.wantsTraining = false;
      const outcome = `${isDone ? "Finished" : "Paused"} after ${this.steps} steps. ${this.verdict()}`;
      this.status(this.steps > 0 ? outcome : "Ready.");
    } catch (error) {
      this.wantsTraining = false;
      await this.explain(error);
      this.status("Stopped.");
    }
    this.showButton();
    this.draw();
  }

  private async makeRuns(settings: Settings): Promise<void> {
    this.status("Compiling…");
    const clipped = await this.makeRun(settings);
    try {
      this.columns[1].run = await this.makeRun({ ...settings, maxNorm: Infinity });
    } catch (error) {
      clipped.destroy();
      throw error;
    }
    this.columns[0].run = clipped;
  }

  /** Shows why training stopped. What was on a lost GPU is gone. */
  private async explain(error: unknown): Promise<void> {
    let reason = messageOf(error);
    if (this.gpu !== null && (await isLost(this.gpu))) {
      this.gpu = null;
      this.wantsReset = true;
      reason = "the GPU was lost. Start again to train on the CPU path";
      this.showPath();
    }
    showError("train-error", `Training stopped: ${reason}.`);
  }

  private verdict(): string {
    const [clipped, unclipped] = this.columns.map(({ results }) => {
      const last = results.slice(-20);
      return last.reduce((sum, { loss }) => sum + loss, 0) / last.length;
    });
    const largest = this.columns[1].results.reduce((most, { norm }) => (norm > most || Number.isNaN(norm) ? norm : most), 0);
    return `The loss is ${number(clipped, 2)} with clipping and ${number(unclipped, 2)} without. Without clipping, the norm reached ${number(largest, 2)}.`;
  }

  private status(text: string): void {
    byId("train-status").textContent = text;
  }

  private drawCalmly(): void {
    const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (isCalm && performance.now() - this.drawn < CALM_INTERVAL) return;
    this.drawn = performance.now();
    this.draw();
  }

  private draw(): void {
    const results = this.columns.flatMap((column) => column.results);
    const steps = Math.min(Math.max(100, 2 ** Math.ceil(Math.log2(this.steps / 100 || 1)) * 100), MAX_STEPS);
    const losses = extremes(results.map(({ loss }) => loss));
    const norms = extremes(results.map(({ norm }) => norm));
    const limit = byId<HTMLInputElement>("train-limit").valueAsNumber;
    this.columns[0].show(steps, losses, norms, limit > 0 ? limit : null);
    this.columns[1].show(steps, losses, norms, null);
  }
}

/** The least positive and the largest finite value; a decade around 1 if there is none. */
function extremes(values: readonly number[]): number[] {
  let [least, most] = [Infinity, 0];
  for (const value of values) {
    if (value > 0 && value < least) least = value;
    if (value < Infinity && value > most) most = value;
  }
  return most > 0 ? [least, most] : [0.1, 10];
}
