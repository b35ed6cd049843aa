// The network on the CPU: the fallback without WebGPU, and the reference that the kernels are tested against.

import {
  ADAM, BATCH, HIDDEN, LENGTH, PARAMETERS, TENSORS, batch, initialParameters,
  type Batch, type Run, type Settings, type StepResult,
} from "./model.js";

const [INPUT, RECURRENT, BIAS, OUTPUT, OUTPUT_BIAS] = TENSORS;

/** An array of numbers of either precision. */
type Floats = Float32Array | Float64Array;

/**
 * Computes the loss of a batch, and adds its gradient to `gradient` unless that is null. Intermediate values are f64.
 */
export function lossAndGradient(parameters: Floats, { values, marks, targets }: Batch, gradient: Floats | null): number {
  const p = parameters;
  // Row `time + 1` holds the hidden state after `time`; row 0 is the initial state, zero.
  const hidden = new Float64Array((LENGTH + 1) * HIDDEN);
  let delta = new Float64Array(HIDDEN);
  let previous = new Float64Array(HIDDEN);
  let loss = 0;
  for (let sequence = 0; sequence < BATCH; sequence++) {
    const start = sequence * LENGTH;
    for (let time = 0; time < LENGTH; time++) {
      const before = time * HIDDEN;
      for (let i = 0; i < HIDDEN; i++) {
        let sum = p[BIAS.offset + i] + p[INPUT.offset + i] * values[start + time]
          + p[INPUT.offset + HIDDEN + i] * marks[start + time];
        const row = RECURRENT.offset + i * HIDDEN;
        for (let j = 0; j < HIDDEN; j++) sum += p[row + j] * hidden[before + j];
        // Not Math.max: a NaN must stay one.
        hidden[before + HIDDEN + i] = sum < 0 ? 0 : sum;
      }
    }
    const last = LENGTH * HIDDEN;
    let output = p[OUTPUT_BIAS.offset];
    for (let i = 0; i < HIDDEN; i++) output += p[OUTPUT.offset + i] * hidden[last + i];
    const error = output - targets[sequence];
    loss += error * error / BATCH;
    if (gradient === null) continue;

    const slope = 2 * error / BATCH;
    gradient[OUTPUT_BIAS.offset] += slope;
    for (let i = 0; i < HIDDEN; i++) {
      gradient[OUTPUT.offset + i] += slope * hidden[last + i];
      delta[i] = slope * p[OUTPUT.offset + i];
    }
    for (let time = LENGTH - 1; time >= 0; time--) {
      const before = time * HIDDEN;
      previous.fill(0);
      for (let i = 0; i < HIDDEN; i++) {
        if (hidden[before + HIDDEN + i] === 0) continue;
        const d = delta[i];
        gradient[BIAS.offset + i] += d;
        gradient[INPUT.offset + i] += d * values[start + time];
        gradient[INPUT.offset + HIDDEN + i] += d * marks[start + time];
        const row = RECURRENT.offset + i * HIDDEN;
        for (let j = 0; j < HIDDEN; j++) {
          gradient[row + j] += d * hidden[before + j];
          previous[j] += d * p[row + j];
        }
      }
      [delta, previous] = [previous, delta];
    }
  }
  return loss;
}

/** Clips a gradient in place by its global L2 norm. */
export type ClipGradient = (gradient: Float32Array, maxNorm: number) => { totalNorm: number; clipCoef: number };

/** A network that trains on the CPU. `clip` is gradclip's CPU path. */
export class CpuRun implements Run {
  readonly parameters: Float32Array;
  private readonly gradient = new Float64Array(PARAMETERS);
  private readonly first = new Float32Array(PARAMETERS);
  private readonly second = new Float32Array(PARAMETERS);
  private readonly settings: Settings;
  private step = 0;

  constructor(settings: Settings, private readonly clip: ClipGradient) {
    this.settings = { ...settings };
    this.parameters = initialParameters(settings.seed, settings.gain);
  }

  async train(count: number): Promise<StepResult[]> {
    return Array.from({ length: count }, () => this.trainStep());
  }

  private trainStep(): StepResult {
    const { seed, learningRate, maxNorm } = this.settings;
    this.gradient.fill(0);
    const loss = lossAndGradient(this.parameters, batch(seed, this.step), this.gradient);
    this.step++;
    const gradient = Float32Array.from(this.gradient);
    const { totalNorm, clipCoef } = this.clip(gradient, maxNorm);
    const rate = learningRate / (1 - ADAM.first ** this.step);
    const correction = 1 / (1 - ADAM.second ** this.step);
    for (let i = 0; i < PARAMETERS; i++) {
      this.first[i] += (1 - ADAM.first) * (gradient[i] - this.first[i]);
      this.second[i] += (1 - ADAM.second) * (gradient[i] * gradient[i] - this.second[i]);
      this.parameters[i] -= rate * this.first[i] / (Math.sqrt(correction * this.second[i]) + ADAM.epsilon);
    }
    return { loss, norm: totalNorm, coefficient: clipCoef };
  }

  setLearningRate(learningRate: number): void {
    this.settings.learningRate = learningRate;
  }

  setMaxNorm(maxNorm: number): void {
    this.settings.maxNorm = maxNorm;
  }

  destroy(): void {}
}
