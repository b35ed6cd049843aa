#!/usr/bin/env python3
"""Compares gradclip with PyTorch: runs both in turn, set by set, and prints the ratios of PyTorch's times to gradclip's.

    cargo build --release
    benches/pytorch/compare.py --python PATH_OF_A_PYTHON_WITH_TORCH

Needs only Python, the `gradclip` binary (--gradclip) and a Python with PyTorch (--python).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
SETS = ["2^12/f32", "2^16/f32", "2^20/f32", "2^26/f32", "1000x4096/f32", "resnet50/f32", "gpt2-small/f32", "bert-base/f32",
        "gpt2-small/bf16", "gpt2-small/f16"]
OPERATIONS = ["norm", "clip not exceeded", "clip exceeded", "clamp", "loss scale"]


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


class PyTorch:
    """A running bench.py that reads patterns from stdin."""

    def __init__(self, python, device, threads, max_bytes, seconds):
        threads = ["--threads", str(threads)] if threads else []
        arguments = [python, os.path.join(HERE, "bench.py"), "--serve", "--device", device,
                     "--max-bytes", str(max_bytes), "--seconds", str(seconds), *threads]
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.machine = self.read()

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"compare: bench.py ended with {self.process.wait()}")
        return json.loads(line)

    def measure(self, pattern):
        self.process.stdin.write(pattern + "\n")
        self.process.stdin.flush()
        rows = []
        while (row := self.read())["kind"] != "done":
            rows.append(row)
        return rows


def gradclip(binary, device, adapter, threads, max_bytes, seconds, pattern):
    where = ["--device", adapter if device == "cuda" else "cpu"]
    path = "gpu" if device == "cuda" else "cpu"
    arguments = [binary, "bench", "--json", "--max-bytes", str(max_bytes), "--seconds", str(seconds),
                 "--only", f"{path}/{pattern}", *where]
    environment = {"RAYON_NUM_THREADS": str(threads)} if threads else {}
    done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    if done.returncode:
        sys.exit(f"compare: {' '.join(arguments)} failed")
    return lines_of(done.stdout)


def duration(seconds):
    for unit, size in [("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)]:
        number = seconds / size
        if number < 1000 or unit == "s":
            return f"{number:.{2 if number < 10 else 1 if number < 100 else 0}f} {unit}"


def print_table(heading, rows):
    """Prints a Markdown table."""
    widths = [max(len(row[column]) for row in [heading, *rows]) for column in range(len(heading))]
    for index, row in enumerate([heading, *rows]):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |")
        if index == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    print()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--gradclip", default=os.path.join(HERE, "..", "..", "target", "release", "gradclip"),
                        help="the binary [target/release/gradclip]")
    parser.add_argument("--python", default=sys.executable, help="a Python with PyTorch [this one]")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--adapter", default="auto", help="with cuda: the adapter, as --device of gradclip bench [auto]")
    parser.add_argument("--sets", nargs="+", default=SETS, metavar="SET/DTYPE", help=f"[{' '.join(SETS)}]")
    parser.add_argument("--rounds", type=int, default=3, help="the number of times that both run in turn [3]")
    parser.add_argument("--seconds", type=float, default=2.0, help="per set, round and library [2]")
    parser.add_argument("--max-bytes", type=int, default=1 << 30)
    parser.add_argument("--threads", type=int, help="CPU threads of both libraries [their defaults]")
    parser.add_argument("--json", metavar="FILE", help="also write all JSON lines to FILE")
    parser.add_argument("--append", action="store_true", help="append to FILE")
    args = parser.parse_args()

    torch = PyTorch(args.python, args.device, args.threads, args.max_bytes, args.seconds)
    lines, seconds, host = [], {}, {}

    def keep(rows, mode="a"):
        """Saves rows at once, so that an interrupted run keeps them."""
        lines.extend(rows)
        if args.json:
            with open(args.json, mode) as file:
                file.writelines(json.dumps(line) + "\n" for line in rows)

    keep([torch.machine], "a" if args.append else "w")
    for number in range(args.rounds):
        for name in args.sets:
            print(f"round {number + 1} of {args.rounds}: {name}", file=sys.stderr, flush=True)
            rows = gradclip(args.gradclip, args.device, args.adapter, args.threads, args.max_bytes, args.seconds,
                            f"{name}/")
            machine = next(row for row in rows if row["kind"] == "machine")
            rows += torch.measure(f"/{name}/")
            keep(rows)
            for row in rows:
                if row["kind"] == "skipped":
                    print(f"{row['set']} was not measured: {row['why']}", file=sys.stderr)
                if row["kind"] not in ("operation", "roofline"):
                    continue
                key = (name, row["operation"], row["library"], row.get("foreach", row["layout"]))
                seconds.setdefault(key, []).append(row["seconds"])
                # gradclip's time includes its encoder; PyTorch has none.
                of_host = row.get("ready_seconds") or row["encode_seconds"]
                if of_host is not None:
                    host.setdefault(key, []).append(of_host)

    def median(table, *key):
        return statistics.median(table[key]) if key in table else None

    def cell(number, text):
        return "-" if number is None else text(number)

    def threads(machine):
        return f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"

    def over(one, other):
        return "-" if one is None or other is None else f"{one / other:.2f}"

    print(f"gradclip {machine['version']}: {machine['gpu'] or machine['cpu']}, {threads(machine)}; "
          f"PyTorch {torch.machine['version']}: {torch.machine['gpu'] or 'CPU'}, {threads(torch.machine)}; "
          f"medians of {args.rounds} round{'s' if args.rounds > 1 else ''} in turn\n")
    layouts = ["arena", "separate"] if args.device == "cuda" else ["slices"]
    heading = ["set", "operation", "gradclip", "foreach", "loop", "foreach / gradclip", "loop / gradclip", "of roofline"]
    if args.device == "cuda":
        heading = ["set", "layout", *heading[1:], "host: gradclip", "host: foreach", "host: foreach / gradclip"]
    rows = []
    for name in args.sets:
        for operation in OPERATIONS:
            for layout in layouts:
                gradclip_seconds = median(seconds, name, operation, "gradclip", layout)
                if gradclip_seconds is None:
                    continue
                foreach, loop = [median(seconds, name, operation, "pytorch", on) for on in (True, False)]
                row = [name, operation, duration(gradclip_seconds), cell(foreach, duration), cell(loop, duration),
                       over(foreach, gradclip_seconds), over(loop, gradclip_seconds)]
                shares = [line["percent_of_roofline"] for line in lines if line["kind"] == "operation"
                          and line["library"] == "gradclip" and f"{line['set']}/{line['dtype']}" == name
                          and line["operation"] == operation and line["layout"] == layout]
                row.append(f"{statistics.median(shares):.0f} %")
                if args.device == "cuda":
                    ours, theirs = [median(host, name, operation, library, key)
                                    for library, key in (("gradclip", layout), ("pytorch", True))]
                    row = [name, layout, *row[1:], cell(ours, duration), cell(theirs, duration), over(theirs, ours)]
                rows.append(row)
    print_table(heading, rows)


if __name__ == "__main__":
    main()
