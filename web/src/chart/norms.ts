// The picture of the norms of the tensors before and after a clip, on a logarithmic axis.

import { LogScale, number, onWidth, powerOfTen, svg } from "./svg.js";

/** A tensor's norms. */
export interface NormPair {
  name: string;
  before: number;
  after: number;
}

/** What the chart shows. */
export interface NormsData {
  tensors: NormPair[];
  /** The norm over all tensors. */
  total: NormPair;
  /** The limit of the total norm, or null for a clip by value. */
  limit: number | null;
}

/** More tensors than this are columns instead of rows, without names, the total and the limit. */
export const MAX_ROWS = 28;
const ROW = 24;
const MARGIN = { top: 30, right: 18, bottom: 8 };
const COLUMNS_HEIGHT = 300;

/** Draws the norms into an element. */
export class NormsChart {
  private data: NormsData | null = null;
  private width = 0;

  constructor(private readonly container: HTMLElement) {
    onWidth(container, (width) => {
      this.width = width;
      this.draw();
    });
  }

  show(data: NormsData): void {
    this.data = data;
    this.width ||= Math.floor(this.container.clientWidth);
    this.draw();
  }

  private draw(): void {
    if (this.data === null || this.width === 0) return;
    const chart = this.data.tensors.length <= MAX_ROWS ? rows(this.data, this.width) : columns(this.data, this.width);
    this.container.replaceChildren(chart);
  }
}

function values({ tensors, total, limit }: NormsData): number[] {
  return [...tensors, total].flatMap(({ before, after }) => [before, after]).concat(limit ?? []);
}

function description({ tensors, total }: NormsData): string {
  return `Norms of ${tensors.length} tensors before and after clipping, on a logarithmic axis. All tensors: `
    + `${number(total.before)} before, ${number(total.after)} after. The table below has the numbers.`;
}

/** One row per tensor, and the total on top. */
function rows(data: NormsData, width: number): SVGElement {
  const { tensors, total, limit } = data;
  const characters = Math.max(...tensors.map(({ name }) => name.length), total.name.length);
  const label = Math.min(characters * 7.2 + 14, width * 0.38);
  const height = MARGIN.top + (tensors.length + 1) * ROW + 10 + MARGIN.bottom;
  const x = new LogScale(values(data), label + 8, width - MARGIN.right);
  const chart = svg("svg", { width, height, role: "img", "aria-label": description(data) });

  for (const exponent of x.ticks(Math.max(2, Math.floor((width - label) / 64)))) {
    const at = x.at(10 ** exponent);
    chart.append(
      svg("line", { class: "grid", x1: at, x2: at, y1: MARGIN.top - 6, y2: height - MARGIN.bottom }),
      svg("text", { class: "tick", x: at, y: MARGIN.top - 12, "text-anchor": "middle" }, powerOfTen(exponent)),
    );
  }
  if (limit !== null && Number.isFinite(limit) && limit > 0) {
    const at = x.at(limit);
    chart.append(svg("line", { class: "limit", x1: at, x2: at, y1: MARGIN.top - 6, y2: height - MARGIN.bottom }));
  }
  const row = (pair: NormPair, y: number, kind: string): void => {
    const [before, after] = [x.at(pair.before), x.at(pair.after)];
    const shown = Math.floor(label / 7.2);
    const name = pair.name.length > shown ? `…${pair.name.slice(1 - shown)}` : pair.name;
    chart.append(
      svg("g", { class: `pair ${kind}` },
        svg("title", {}, `${pair.name}: ${number(pair.before)} before, ${number(pair.after)} after`),
        svg("text", { class: "name", x: label, y: y + 4, "text-anchor": "end" }, name),
        svg("line", { class: "move", x1: before, x2: after, y1: y, y2: y, "stroke-width": 2 }),
        svg("circle", { class: "before", "stroke-width": 2, cx: before, cy: y, r: kind === "total" ? 6 : 5 }),
        svg("circle", { class: "after", cx: after, cy: y, r: kind === "total" ? 6 : 5 }),
      ),
    );
  };
  row(total, MARGIN.top + ROW / 2, "total");
  const rule = MARGIN.top + ROW + 4;
  chart.append(svg("line", { class: "rule", x1: 0, x2: width, y1: rule, y2: rule }));
  tensors.forEach((pair, i) => row(pair, MARGIN.top + 10 + (i + 1.5) * ROW, "tensor"));
  return chart;
}

/** One column per tensor, in the order of the set. */
function columns(data: NormsData, width: number): SVGElement {
  const { tensors } = data;
  const [left, right, top, bottom] = [48, width - 10, 12, COLUMNS_HEIGHT - 28];
  const y = new LogScale(values({ ...data, limit: null }), bottom, top);
  const chart = svg("svg", { width, height: COLUMNS_HEIGHT, role: "img", "aria-label": description(data) });
  for (const exponent of y.ticks(7)) {
    const at = y.at(10 ** exponent);
    chart.append(
      svg("line", { class: "grid", x1: left, x2: right, y1: at, y2: at }),
      svg("text", { class: "tick", x: left - 8, y: at + 4, "text-anchor": "end" }, powerOfTen(exponent)),
    );
  }
  const step = (right - left) / tensors.length;
  const radius = Math.min(Math.max(step / 3, 1.2), 4);
  tensors.forEach((pair, i) => {
    const x = left + (i + 0.5) * step;
    const [before, after] = [y.at(pair.before), y.at(pair.after)];
    chart.append(
      svg("g", { class: "pair tensor" },
        svg("title", {}, `${pair.name}: ${number(pair.before)} before, ${number(pair.after)} after`),
        svg("line", { class: "move", x1: x, x2: x, y1: before, y2: after, "stroke-width": Math.min(step / 3, 2) }),
        svg("circle", { class: "before", cx: x, cy: before, r: radius, "stroke-width": radius / 2 }),
        svg("circle", { class: "after", cx: x, cy: after, r: radius }),
      ),
    );
  });
  chart.append(
    svg("text", { class: "tick", x: left, y: COLUMNS_HEIGHT - 8 }, "tensor 0"),
    svg("text", { class: "tick", x: right, y: COLUMNS_HEIGHT - 8, "text-anchor": "end" }, `tensor ${tensors.length - 1}`),
  );
  return chart;
}
