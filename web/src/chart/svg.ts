// SVG elements and number formats that the charts share.

const NAMESPACE = "http://www.w3.org/2000/svg";

type Attributes = Record<string, string | number>;

/** Creates an SVG element. */
export function svg<Name extends keyof SVGElementTagNameMap>(
  name: Name, attributes: Attributes = {}, ...children: (Node | string)[]
): SVGElementTagNameMap[Name] {
  const element = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) {
    element.setAttribute(key, typeof value === "number" ? String(Math.round(value * 100) / 100) : value);
  }
  element.append(...children);
  return element;
}

/** Formats a number on one line with `digits` significant digits, in scientific notation if it is very large or small. */
export function number(value: number, digits = 4): string {
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (value === 0) return "0";
  const magnitude = Math.abs(value);
  if (magnitude >= 1e5 || magnitude < 1e-4) {
    const [significand, exponent] = value.toExponential(digits - 1).split("e");
    return `${significand.replace(/\.?0+$/, "").replace("-", "−")}\u00a0×\u00a010${superscript(Number(exponent))}`;
  }
  return String(Number(value.toPrecision(digits))).replace("-", "−");
}

/** Formats a power of ten for an axis. */
export function powerOfTen(exponent: number): string {
  return exponent >= -2 && exponent <= 3 ? String(Number((10 ** exponent).toPrecision(1))) : `10${superscript(exponent)}`;
}

function superscript(value: number): string {
  return String(value).replace(/./g, (digit) => (digit === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[Number(digit)]));
}

/** A logarithmic scale over whole decades. */
export class LogScale {
  readonly low: number;
  readonly high: number;

  /** Covers the positive finite values among `values` with whole decades. */
  constructor(values: Iterable<number>, private readonly from: number, private readonly to: number) {
    let least = Infinity;
    let most = 0;
    for (const value of values) {
      if (value > 0 && value < Infinity) {
        least = Math.min(least, value);
        most = Math.max(most, value);
      }
    }
    if (most === 0) [least, most] = [1, 1];
    this.low = Math.floor(Math.log10(least));
    this.high = Math.max(Math.ceil(Math.log10(most)), this.low + 1);
  }

  /** The position of a value. Zero and less lie at the low end, infinity and NaN at the high end. */
  at(value: number): number {
    if (!(value < Infinity)) return this.to;
    const fraction = (Math.log10(Math.max(value, Number.MIN_VALUE)) - this.low) / (this.high - this.low);
    return this.from + Math.min(Math.max(fraction, 0), 1) * (this.to - this.from);
  }

  /** The exponents of the decades to label, at most `count`. */
  ticks(count: number): number[] {
    const every = Math.ceil((this.high - this.low) / Math.max(count - 1, 1));
    const ticks = [];
    for (let exponent = this.low; exponent <= this.high; exponent += every) ticks.push(exponent);
    return ticks;
  }
}

/** Calls `draw` with the width of `container`, now and whenever it changes. */
export function onWidth(container: HTMLElement, draw: (width: number) => void): void {
  let drawn = 0;
  new ResizeObserver(() => {
    const width = Math.floor(container.clientWidth);
    if (width > 0 && width !== drawn) draw((drawn = width));
  }).observe(container);
}
