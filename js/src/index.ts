export { Clipper } from "./clipper.js";
export { GradclipError, type GradientId } from "./errors.js";
export type { Clip, DType, DynamicLossScale, Gradient, Method, Options, Parameter, Partials } from "./options.js";
export type { ClipPlan } from "./plan.js";
export type { ClipRecord, NormHistory, StepCounts, TensorStats } from "./records.js";
export type { Ticket } from "./ticket.js";
