// Curves that grow while a network trains, on a logarithmic axis.

import { LogScale, number, onWidth, powerOfTen, svg } from "./svg.js";

const HEIGHT = 200;
const LEFT = 44;
const RIGHT = 12;
const TOP = 12;
const BOTTOM = 26;

/** A line across the chart. */
export interface Reference {
  value: number;
  label: string;
}

/** What a chart shows. */
export interface HistoryData {
  /** The value of every step. */
  values: readonly number[];
  /** The steps that the axis covers. */
  steps: number;
  /** Values that the vertical axis covers too, so that neighbours share it. */
  range: readonly number[];
  reference: Reference | null;
}

/** A chart of one quantity over the steps. */
export class HistoryChart {
  private data: HistoryData = { values: [], steps: 100, range: [0.1, 10], reference: null };
  private width = 0;

  /** `name` is what the chart shows, and `kind` the class of the curve. */
  constructor(private readonly container: HTMLElement, private readonly name: string, private readonly kind: string) {
    onWidth(container, (width) => {
      this.width = width;
      this.draw();
    });
  }

  show(data: HistoryData): void {
    this.data = data;
    this.draw();
  }

  private draw(): void {
    if (this.width === 0) return;
    const { values, steps, range, reference } = this.data;
    const [left, right, top, bottom] = [LEFT, this.width - RIGHT, TOP, HEIGHT - BOTTOM];
    const y = new LogScale([...range, ...(reference ? [reference.value] : [])], bottom, top);
    const x = (step: number): number => left + (step / steps) * (right - left);
    const latest = values.length > 0 ? `, ${number(values[values.length - 1], 3)} at step ${values.length}` : ", no step yet";
    const chart = svg("svg", { width: this.width, height: HEIGHT, role: "img", "aria-label": `${this.name}${latest}` });
    for (const exponent of y.ticks(6)) {
      const at = y.at(10 ** exponent);
      chart.append(
        svg("line", { class: "grid", x1: left, x2: right, y1: at, y2: at }),
        svg("text", { class: "tick", x: left - 8, y: at + 4, "text-anchor": "end" }, powerOfTen(exponent)),
      );
    }
    for (const fraction of [0, 0.5, 1]) {
      const anchor = fraction === 0 ? "start" : fraction === 1 ? "end" : "middle";
      const label = fraction === 1 ? `step ${steps}` : String(fraction * steps);
      chart.append(svg("text", { class: "tick", x: x(fraction * steps), y: HEIGHT - 8, "text-anchor": anchor }, label));
    }
    if (reference !== null && Number.isFinite(reference.value) && reference.value > 0) {
      const at = y.at(reference.value);
      chart.append(svg("line", { class: "limit", x1: left, x2: right, y1: at, y2: at }));
    }
    if (values.length > 0) chart.append(svg("path", { class: `curve ${this.kind}`, d: path(values, x, y) }));
    if (reference !== null && Number.isFinite(reference.value) && reference.value > 0) {
      // After the curve, which would strike it out.
      const at = y.at(reference.value) - 5;
      chart.append(svg("text", { class: "tick reference", x: right, y: at, "text-anchor": "end" }, reference.label));
    }
    const lost = values.findIndex((value) => !Number.isFinite(value));
    if (lost >= 0) {
      chart.append(svg("text", { class: "lost", x: Math.min(x(lost) + 4, right - 30), y: top + 12 }, number(values[lost])));
    }
    this.container.replaceChildren(chart);
  }
}

/** Draws the least and the largest value of every pixel, so that no spike is lost. It ends at the first NaN or infinity. */
function path(values: readonly number[], x: (step: number) => number, y: LogScale): string {
  const points: string[] = [];
  const point = (step: number, value: number): void => {
    points.push(`${x(step).toFixed(1)} ${y.at(value).toFixed(1)}`);
  };
  for (let i = 0; i < values.length;) {
    const pixel = Math.floor(x(i));
    let [least, most] = [i, i];
    let end = i;
    for (; end < values.length && Math.floor(x(end)) === pixel; end++) {
      if (!Number.isFinite(values[end])) break;
      if (values[end] < values[least]) least = end;
      if (values[end] > values[most]) most = end;
    }
    if (end === i) break;
    for (const step of least < most ? [least, most] : most < least ? [most, least] : [least]) point(step, values[step]);
    i = end;
  }
  if (points.length === 0) return "";
  return points.length === 1 ? `M${points[0]}h0.1` : `M${points.join("L")}`;
}
