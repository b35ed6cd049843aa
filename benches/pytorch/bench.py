#!/usr/bin/env python3
"""Runs the workloads of `gradclip bench` in PyTorch: the same sets, the same method, the same JSON lines.

Every operation runs with foreach on and off. Repetitions use copies of the gradients in turn, from a pool that exceeds
the caches (on CUDA, other memory is read in between). Changed gradients are restored outside the measured time. All rows
take turns, and every result is checked first. On the CPU a row is the wall time of the call. On CUDA it is the time
between two device events, and `encode_seconds` is the time until the call returns.

    python bench.py --only gpt2-small/f32 --seconds 5
"""

import argparse
import ctypes
import fnmatch
import gc
import glob
import json
import math
import os
import random
import statistics
import sys
import time

import torch
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, get_total_norm

HERE = os.path.dirname(os.path.abspath(__file__))
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
ALIGNMENT = 256
LOSS_SCALE = 8.0
CLIP_VALUE = 0.5
# As in the Rust bench: the minimum repetitions, the minimum for slow rows, the budget overrun of those, the maximum.
MIN_REPETITIONS, MIN_REPETITIONS_OF_SLOW, MAX_OVERRUN, MAX_REPETITIONS = 5, 3, 3, 300
# Passes over the gradients: (read, read and write).
OPERATIONS = {
    "norm": (1, 0),
    "clip not exceeded": (1, 0),
    "clip exceeded": (1, 1),
    "clamp": (0, 1),
    "loss scale": (1, 1),
}


def sets(max_bytes):
    """Yields (name, dtype, lengths, tensors of the model) of all sets that fit, in the order of the Rust bench."""
    with open(os.path.join(HERE, "..", "model_shapes.json")) as file:
        models = json.load(file)
    found = [(f"2^{log2}", "f32", [1 << log2]) for log2 in range(10, 48, 2)]
    found += [("2^26", dtype, [1 << 26]) for dtype in ("f16", "bf16")]
    found += [("1000x4096", "f32", [4096] * 1000)]
    dtypes = {"resnet50": ["f32"], "gpt2-small": ["f32", "f16", "bf16"], "bert-base": ["f32"], "llama-7b": ["f32", "bf16"]}
    for name, of in dtypes.items():
        found += [(name, dtype, [math.prod(shape) for shape in models[name]]) for dtype in of]
    for name, dtype, lens in found:
        left, fitting = max_bytes // DTYPES[dtype].itemsize, []
        for length in lens:
            if length > left:
                break
            left -= length
            fitting.append(length)
        if fitting:
            yield name, dtype, fitting, len(lens)


def last_level_cache():
    """Returns the size of the CPU's last-level cache in bytes, or 128 MiB if unknown."""
    sizes = []
    for path in glob.glob("/sys/devices/system/cpu/cpu0/cache/index*/size"):
        with open(path) as file:
            text = file.read().strip()
        sizes.append(int(text[:-1]) << {"K": 10, "M": 20, "G": 30}[text[-1]])
    return max(sizes, default=128 << 20)


class Gradients:
    """A set on a device: the original arena, and the copies that repetitions use in turn."""

    def __init__(self, dtype, lens, device, cold):
        self.device, self.dtype = device, DTYPES[dtype]
        step = ALIGNMENT // self.dtype.itemsize
        starts, end = [], 0
        for length in lens:
            starts.append(end)
            end += -(-length // step) * step
        self.ranges = list(zip(starts, lens))
        generator = torch.Generator(device).manual_seed(1)
        self.original = torch.empty(end, dtype=self.dtype, device=device)
        for part in self.original.split(1 << 24):
            part.copy_(torch.rand(part.shape, generator=generator, device=device) * 2 - 1)
        self.norm = math.sqrt(sum(float(part.double().square().sum()) for start, length in self.ranges
                                  for part in self.original[start:start + length].split(1 << 24)))
        size = end * self.dtype.itemsize
        self.eviction = None
        if device == "cuda":
            copies = 1
            self.eviction = torch.zeros(cold // 4, dtype=torch.float32, device=device) if cold else None
        else:
            copies = max(2, -(-cold // size)) if cold else 1
        self.pool = torch.empty((copies, end), dtype=self.dtype, device=device)
        self.pool.copy_(self.original)
        self.index, self.stride = 0, next((s for s in range(copies * 5 // 8, copies) if math.gcd(s, copies) == 1), 1)

    def next(self):
        """Advances to the next copy and returns parameters with its gradients."""
        self.index = (self.index + self.stride) % len(self.pool)
        arena, parameters = self.pool[self.index], []
        for start, length in self.ranges:
            gradient = arena[start:start + length]
            parameter = gradient.detach()
            parameter.grad = gradient
            parameters.append(parameter)
        return parameters

    def evict(self):
        """Evicts the gradients from the device's caches."""
        if self.eviction is not None:
            self.eviction.sum()

    def restore(self):
        """Restores the current copy."""
        copy = self.pool[self.index]
        if self.device == "cuda":
            copy.copy_(self.original)
        else:
            # Not `copy_`: PyTorch's threads spin for milliseconds after it, during the next measurement.
            size = copy.numel() * copy.element_size()
            ctypes.memmove(copy.data_ptr(), self.original.data_ptr(), size)


def run(operation, parameters, norm, foreach, scale):
    """Runs the operation as a user calls it. Returns the norm, if there is one."""
    if operation == "norm":
        return get_total_norm([parameter.grad for parameter in parameters], foreach=foreach)
    if operation == "clip not exceeded":
        return clip_grad_norm_(parameters, norm * 2, foreach=foreach)
    if operation == "clip exceeded":
        return clip_grad_norm_(parameters, norm / 2, foreach=foreach)
    if operation == "clamp":
        return clip_grad_value_(parameters, CLIP_VALUE, foreach=foreach)
    # GradScaler.unscale_ without its bookkeeping in Python, then the clip, as its documentation recommends.
    found, inverse = scale
    gradients = [parameter.grad for parameter in parameters]
    for group in [gradients] if foreach else [[gradient] for gradient in gradients]:
        torch._amp_foreach_non_finite_check_and_unscale_(group, found, inverse)
    return clip_grad_norm_(parameters, norm / LOSS_SCALE / 2, foreach=foreach)


def check(operation, gradients, total):
    """Checks the result. PyTorch's norm of a long f32 tensor has an error of up to one percent."""
    norm, scale = gradients.norm, 1.0
    if operation == "loss scale":
        norm, scale = norm / LOSS_SCALE, 1 / LOSS_SCALE
    if total is not None:
        assert abs(float(total) - norm) <= 2e-2 * norm, f"{operation}: norm {float(total)}, but it is {norm}"
    arena = gradients.pool[gradients.index]
    for start, length in gradients.ranges:
        for before, after in zip(gradients.original[start:start + length].split(1 << 24),
                                 arena[start:start + length].split(1 << 24)):
            expected = before.float()
            if operation == "clamp":
                expected = expected.clamp(-CLIP_VALUE, CLIP_VALUE)
            elif operation in ("clip exceeded", "loss scale"):
                expected = expected * (scale * 0.5)
            torch.testing.assert_close(after.float(), expected, rtol=2e-2, atol=1e-6)


def timed(operation, gradients, foreach, scale):
    """Runs one repetition. Returns its time, its wall time and the time until the call returned, in seconds."""
    parameters = gradients.next()
    if gradients.device == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        gradients.evict()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        start.record()
        run(operation, parameters, gradients.norm, foreach, scale)
        end.record()
        returned = time.perf_counter()
        torch.cuda.synchronize()
        wall = time.perf_counter() - begin
        sample = (start.elapsed_time(end) / 1e3, wall, returned - begin)
    else:
        begin = time.perf_counter()
        run(operation, parameters, gradients.norm, foreach, scale)
        wall = time.perf_counter() - begin
        sample = (wall, wall, None)
    if OPERATIONS[operation][1]:
        gradients.restore()
    return sample


def measure(workload, device, cold, budget, selects):
    """Measures the rows of one set in turn and yields them."""
    name, dtype, lens, of = workload
    # PyTorch has no CUDA kernel that unscales bf16.
    has_kernel = {operation: (device, dtype, operation) != ("cuda", "bf16", "loss scale") for operation in OPERATIONS}
    variants = [(operation, foreach) for operation in OPERATIONS for foreach in (True, False)
                if has_kernel[operation] and selects(device, name, dtype, operation)]
    gradients = Gradients(dtype, lens, device, cold)
    scale = (torch.zeros(1, device=device), torch.full((1,), 1 / LOSS_SCALE, device=device))
    for operation, foreach in variants:
        total = run(operation, gradients.next(), gradients.norm, foreach, scale)
        check(operation, gradients, total)
        gradients.restore()
    samples = [[] for _ in variants]
    gc.collect()
    gc.disable()
    for variant in variants:
        timed(variant[0], gradients, variant[1], scale)
    # Each turn has its own order: a row that writes leaves pending writes behind, which would always slow down the next one.
    order, shuffle = list(zip(variants, samples)), random.Random(0).shuffle
    start, turns = time.perf_counter(), 0
    while True:
        spent = time.perf_counter() - start
        if turns >= MAX_REPETITIONS or (turns >= MIN_REPETITIONS and spent >= budget) or (
                turns >= MIN_REPETITIONS_OF_SLOW and spent >= MAX_OVERRUN * budget):
            break
        shuffle(order)
        for (operation, foreach), row_samples in order:
            row_samples.append(timed(operation, gradients, foreach, scale))
        turns += 1
    gc.enable()
    size = sum(lens) * DTYPES[dtype].itemsize
    for (operation, foreach), row_samples in zip(variants, samples):
        read, written = OPERATIONS[operation]
        needed = size * (read + 2 * written)
        low, median, high = statistics.quantiles([sample[0] for sample in row_samples], n=4, method="inclusive")
        yield {
            "kind": "operation",
            "library": "pytorch",
            "path": "gpu" if device == "cuda" else "cpu",
            "set": name,
            "dtype": dtype,
            "layout": "slices",
            "operation": operation,
            "foreach": foreach,
            "tensors": len(lens),
            "tensors_of_model": of,
            "elements": sum(lens),
            "cached": cold == 0,
            "clock": "gpu" if device == "cuda" else "wall",
            "seconds": median,
            "seconds_low": low,
            "seconds_high": high,
            "repetitions": len(row_samples),
            "wall_seconds": statistics.median(sample[1] for sample in row_samples),
            "encode_seconds": statistics.median(sample[2] for sample in row_samples) if row_samples[0][2] is not None else None,
            "bytes": needed,
            "gb_per_s": needed / median / 1e9,
        }


def print_line(line):
    print(json.dumps(line), flush=True)


def machine(device):
    return {
        "kind": "machine",
        "library": "pytorch",
        "version": torch.__version__,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--max-bytes", type=int, default=1 << 30)
    parser.add_argument("--seconds", type=float, default=60.0, help="the approximate time to measure in total")
    parser.add_argument("--cold-bytes", type=int, help="as in gradclip bench")
    parser.add_argument("--only", action="append", default=[], help="as in gradclip bench: a pattern for part of path/set/dtype/slices/operation")
    parser.add_argument("--serve", action="store_true", help="read patterns, as for --only, from stdin, and measure after each line")
    parser.add_argument("--threads", type=int, help="CPU threads [PyTorch's default: one per core]")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    cold = args.cold_bytes
    if cold is None:
        cold = 256 << 20 if args.device == "cuda" else 2 * last_level_cache()

    def measured(patterns, seconds):
        path = "gpu" if args.device == "cuda" else "cpu"

        def selects(_, name, dtype, operation):
            row = f"{path}/{name}/{dtype}/slices/{operation}"
            return not patterns or any(fnmatch.fnmatchcase(row, f"*{pattern}*") for pattern in patterns)

        chosen = [workload for workload in sets(args.max_bytes)
                  if any(selects(None, *workload[:2], operation) for operation in OPERATIONS)]
        for workload in chosen:
            try:
                for row in measure(workload, args.device, cold, seconds / len(chosen), selects):
                    print_line(row)
            except RuntimeError as error:
                # Out of memory, or no kernel for the dtype. The other sets are still measured.
                print_line({"kind": "skipped", "library": "pytorch", "set": workload[0], "dtype": workload[1], "why": str(error)})

    print_line(machine(args.device))
    if not args.serve:
        measured(args.only, args.seconds)
        return
    for line in sys.stdin:
        measured([line.strip()], args.seconds)
        print_line({"kind": "done"})


if __name__ == "__main__":
    main()
