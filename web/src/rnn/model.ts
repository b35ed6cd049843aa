// The network and its task, shared by the WebGPU kernels and the CPU path.
//
// The task is the adding problem (Hochreiter and Schmidhuber 1997): a sequence of numbers in [0, 1), of which two are
// marked. After the last one, the network must return the sum of the two. The marks lie in different halves, so the
// gradient must survive many steps of time.

/** Hidden units: the workgroup size of the kernels. */
export const HIDDEN = 32;
/** Time steps in a sequence. */
export const LENGTH = 32;
/** Sequences in a batch. */
export const BATCH = 32;

/** The parameters, one after the other in one buffer of f32. */
export const TENSORS = [
  { name: "input weight", offset: 0, length: 2 * HIDDEN },
  { name: "recurrent weight", offset: 2 * HIDDEN, length: HIDDEN * HIDDEN },
  { name: "hidden bias", offset: (2 + HIDDEN) * HIDDEN, length: HIDDEN },
  { name: "output weight", offset: (3 + HIDDEN) * HIDDEN, length: HIDDEN },
  { name: "output bias", offset: (4 + HIDDEN) * HIDDEN, length: 1 },
] as const;

/** The number of parameters. */
export const PARAMETERS = (4 + HIDDEN) * HIDDEN + 1;

/** The mean squared error of a network that always answers 1, the mean of the sum. */
export const BASELINE = 1 / 6;

/**
 * Hashes 32 bits (Chris Wellons, "lowbias32"). sequence.wgsl has the same hash, so that both paths train on the same
 * numbers.
 */
export function hash(value: number): number {
  let x = value >>> 0;
  x = Math.imul(x ^ (x >>> 16), 0x21f0aaad);
  x = Math.imul(x ^ (x >>> 15), 0x735a2d97);
  return (x ^ (x >>> 15)) >>> 0;
}

/** A batch: values and marks of all sequences, and their targets. */
export interface Batch {
  /** `BATCH` sequences of `LENGTH` values. */
  values: Float32Array;
  /** 1 at the two marked values of a sequence, else 0. */
  marks: Float32Array;
  /** The sum of the two marked values. */
  targets: Float32Array;
}

/** Generates the batch of a step. */
export function batch(seed: number, step: number): Batch {
  const values = new Float32Array(BATCH * LENGTH);
  const marks = new Float32Array(BATCH * LENGTH);
  const targets = new Float32Array(BATCH);
  const half = LENGTH / 2;
  for (let sequence = 0; sequence < BATCH; sequence++) {
    const key = hash(seed ^ hash(step * BATCH + sequence));
    const start = sequence * LENGTH;
    for (let time = 0; time < LENGTH; time++) {
      values[start + time] = (hash(key + time) >>> 8) / 2 ** 24;
    }
    const first = start + (hash(key + LENGTH) % half);
    const second = start + half + (hash(key + LENGTH + 1) % half);
    marks[first] = 1;
    marks[second] = 1;
    targets[sequence] = values[first] + values[second];
  }
  return { values, marks, targets };
}

/**
 * Returns the initial parameters. The recurrent weight is `gain` times the identity (Le, Jaitly and Hinton 2015,
 * arXiv:1504.00941). A gain above 1 makes gradients explode through time.
 */
export function initialParameters(seed: number, gain: number): Float32Array {
  const key = hash(seed ^ 0x5eed);
  let counter = 0;
  const uniform = (): number => (hash(key + counter++) + 0.5) / 2 ** 32;
  const normal = (): number => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
  const parameters = new Float32Array(PARAMETERS);
  const [input, recurrent, , output] = TENSORS;
  for (let i = 0; i < input.length; i++) parameters[input.offset + i] = 0.1 * normal();
  for (let i = 0; i < HIDDEN; i++) parameters[recurrent.offset + i * (HIDDEN + 1)] = gain;
  for (let i = 0; i < output.length; i++) parameters[output.offset + i] = normal() / Math.sqrt(HIDDEN);
  return parameters;
}

/** Adam's decay rates and epsilon (Kingma and Ba 2015), as in adam.wgsl. */
export const ADAM = { first: 0.9, second: 0.99, epsilon: 1e-8 } as const;

/** The settings of a training run. */
export interface Settings {
  seed: number;
  /** The factor on the diagonal of the recurrent weight. */
  gain: number;
  learningRate: number;
  /** The largest norm of the gradient. Infinity does not clip. */
  maxNorm: number;
}

/**
 * Without clipping, the norm reaches 1e7 within a few steps. Adam's moments then shrink every later update, and the loss
 * stays above that of a constant answer for hundreds of steps.
 */
export const DEFAULTS: Settings = { seed: 3, gain: 1.2, learningRate: 0.01, maxNorm: 1 };

/** The outcome of one training step. */
export interface StepResult {
  /** The mean squared error of the batch. */
  loss: number;
  /** The norm of the gradient before clipping. */
  norm: number;
  /** The factor that clipped the gradient. */
  coefficient: number;
}

/** A network in training. */
export interface Run {
  /** Trains for `count` steps, at most `MAX_STEPS_AT_ONCE`, and returns their results. */
  train(count: number): Promise<StepResult[]>;
  setLearningRate(learningRate: number): void;
  setMaxNorm(maxNorm: number): void;
  destroy(): void;
}

/** The largest number of steps in one call of `Run.train`. */
export const MAX_STEPS_AT_ONCE = 64;
