//! Compares gradclip's norm with lampshade's sum of the same bytes, on the same device and in the same encoder.
//!
//! The method is that of `gradclip bench` and uses the same library: same elements, clock, interleaving and roofline.

mod comparison;

use std::io::{self, Write as _};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use comparison::{Comparison, Competitor};
use gradclip::DType;
use gradclip::slices::DeviceChoice;
use gradclip_measure::data::SetData;
use gradclip_measure::device::GpuDevice;
use gradclip_measure::report::{Path, Row, duration, significant};
use gradclip_measure::sets::{GradientSet, sets};
use gradclip_measure::table::Table;
use gradclip_measure::timing::Timing;
use gradclip_measure::{bytes, timing};
use serde_json::{Value, json};

/// The default of `--max-bytes`.
const MAX_BYTES: usize = 1 << 30;
/// The default on a software adapter, which would take minutes for more.
const MAX_BYTES_IN_SOFTWARE: usize = 4 << 20;
const LEGEND: &str = "
time      median of the repetitions, on the GPU's clock if it has one, else wall time
spread    half the interquartile range, in percent of the median
GB/s      bytes of the buffer, divided by time
roofline  time of a kernel that only reads the same bytes, in percent of time
wall      wall time of a host that encodes, submits and waits
encode    host time to record the commands
ready     host time to record them in an encoder of their own and finish it, ready to submit
";

/// Compare gradclip's norm with the sum of the same bytes by lampshade
///
/// Times both on single tensors of 2^10, 2^12, ... elements, in turn on one wgpu device. Every result is checked before
/// it is timed.
#[derive(Parser)]
struct Args {
    /// The GPU: gpu (a software adapter if there is no other), or part of a GPU's name
    #[arg(long, default_value = "gpu")]
    device: DeviceChoice,

    /// The largest buffer, limited to the device's maximum binding size [default: 1GiB, 4MiB on a software adapter]
    #[arg(long, value_name = "BYTES", value_parser = bytes::parse)]
    max_bytes: Option<usize>,

    /// The approximate time to measure in total; every row is repeated a few times in any case
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    seconds: f64,

    /// Bytes to read between two uses of a buffer, to evict it from all caches; 0 for warm caches
    /// [default: 256MiB, 0 on a software adapter]
    #[arg(long, value_name = "BYTES", value_parser = bytes::parse)]
    cold_bytes: Option<usize>,

    /// Print JSON, one object per line, as `gradclip bench --json` does
    #[arg(long)]
    json: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let budget = Duration::try_from_secs_f64(args.seconds)?;
    let gpu = GpuDevice::open(&args.device, args.cold_bytes)?
        .context("the benchmark needs a GPU; `--device gpu` also accepts a software adapter")?;
    let limits = gpu.device.limits();
    // lampshade sums one binding.
    let longest = limits.max_buffer_size.min(limits.max_storage_buffer_binding_size);
    let max_bytes = args.max_bytes.unwrap_or(if gpu.software { MAX_BYTES_IN_SOFTWARE } else { MAX_BYTES });
    let mut sets = sets(max_bytes.min(usize::try_from(longest).unwrap_or(usize::MAX)))?;
    sets.retain(|set| set.model_tensors == 1 && set.dtype == DType::F32 && !set.cached);
    ensure!(!sets.is_empty(), "--max-bytes excludes every set");

    let share = budget / u32::try_from(sets.len())?;
    let mut measured = Vec::new();
    // Results measured before a failure, such as a failed allocation, are printed.
    let outcome = sets.into_iter().try_for_each(|set| {
        let name = set.name.clone();
        measured.push(measure(&gpu, set, share).context(name)?);
        Ok(())
    });
    let mut out = io::stdout().lock();
    if args.json {
        json(&gpu, &measured).iter().try_for_each(|line| writeln!(out, "{line}"))?;
    } else {
        write!(out, "{}", table(&gpu, &measured))?;
    }
    outcome
}

/// The results of one set: a row for each of [`Competitor::ALL`].
struct SetReport {
    set: GradientSet,
    rows: [Row; 3],
}

fn measure(gpu: &GpuDevice, set: GradientSet, share: Duration) -> Result<SetReport> {
    let mut comparison = Comparison::new(gpu, &SetData::new(&set))?;
    let timings = timing::time_interleaved(Competitor::ALL.len(), share, |competitor| {
        comparison.time(Competitor::ALL[competitor])
    })?;
    let rows = Competitor::ALL.map(|competitor| Row {
        path: Path::Gpu,
        layout: "arena",
        workload: competitor.workload(),
        timing: timings[competitor as usize],
        roofline_seconds: timings[Competitor::Read as usize].seconds.median,
        clock: gpu.clock(),
        cached: gpu.cold_bytes == 0,
        cost: None,
    });
    Ok(SetReport { set, rows })
}

impl SetReport {
    const RATIOS: [&'static str; 3] = ["norm / sum", "norm / sum, wall", "norm / sum, ready"];

    /// Returns gradclip's times over lampshade's.
    fn ratios(&self) -> [Option<f64>; 3] {
        let ratio = |time: fn(&Timing) -> Option<f64>| {
            let of = |competitor: Competitor| time(&self.rows[competitor as usize].timing);
            Some(of(Competitor::Gradclip)? / of(Competitor::Lampshade)?)
        };
        [
            ratio(|timing| Some(timing.seconds.median)),
            ratio(|timing| Some(timing.wall.median)),
            ratio(|timing| Some(timing.ready?.median)),
        ]
    }

    fn json(&self) -> Vec<Value> {
        let line = |(competitor, row): (Competitor, &Row)| {
            let mut line = row.json(&self.set);
            line["library"] = json!(competitor.library());
            line["dtype"] = json!(competitor.dtype());
            line["operation"] = json!(competitor.name());
            line
        };
        let mut lines: Vec<Value> = Competitor::ALL.into_iter().zip(&self.rows).map(line).collect();
        let (peer, path) = (Competitor::Lampshade.library(), Path::Gpu.name());
        let mut ratios = json!({ "kind": "ratios", "peer": peer, "path": path, "set": self.set.name });
        for (name, ratio) in Self::RATIOS.into_iter().zip(self.ratios()) {
            ratios[name] = json!(ratio);
        }
        lines.push(ratios);
        lines
    }
}

fn json(gpu: &GpuDevice, measured: &[SetReport]) -> Vec<Value> {
    let machine = |library| {
        json!({
            "kind": "machine",
            "library": library,
            "version": locked_version(library),
            "optimized": !cfg!(debug_assertions),
            "gpu": gpu.name,
            "gpu_is_software": gpu.software,
            "gpu_cold_bytes": gpu.cold_bytes,
        })
    };
    let machines =
        [Competitor::Gradclip, Competitor::Lampshade].map(|competitor| machine(competitor.library()));
    machines.into_iter().chain(measured.iter().flat_map(SetReport::json)).collect()
}

fn table(gpu: &GpuDevice, measured: &[SetReport]) -> String {
    let heading =
        ["set", "library", "operation", "time", "spread", "GB/s", "roofline", "wall", "encode", "ready"];
    let mut times = Table::new(heading).numbers_from(3);
    let mut ratios = Table::new(["set"].into_iter().chain(SetReport::RATIOS)).numbers_from(1);
    for set_report in measured {
        for (competitor, row) in Competitor::ALL.into_iter().zip(&set_report.rows) {
            let Timing { seconds, wall, encode, ready } = row.timing;
            let [encode, ready] =
                [encode, ready].map(|time| time.map_or("-".into(), |time| duration(time.median)));
            times.row([
                set_report.set.name.clone(),
                competitor.library().into(),
                competitor.name().into(),
                duration(seconds.median),
                format!("{:.0} %", 100.0 * seconds.relative_spread()),
                significant(row.gb_per_s(&set_report.set)),
                format!("{:.0} %", row.percent_of_roofline()),
                duration(wall.median),
                encode,
                ready,
            ]);
        }
        let cells = set_report.ratios().map(|ratio| ratio.map_or("-".into(), |ratio| format!("{ratio:.2}")));
        ratios.row([set_report.set.name.clone()].into_iter().chain(cells));
    }
    format!("{}\n{times}{LEGEND}\n{ratios}", adapter_heading(gpu))
}

fn adapter_heading(gpu: &GpuDevice) -> String {
    let lampshade = locked_version(Competitor::Lampshade.library());
    let mut text = format!("lampshade {lampshade} on {}, timed by the {} clock\n", gpu.name, gpu.clock());
    if gpu.software {
        text += "This is a software adapter. Its times say nothing about GPU speed.\n";
    }
    if cfg!(debug_assertions) {
        text += "Built without optimisation. A release build is faster.\n";
    }
    text
}

/// Returns the version of `package` in the lock file.
fn locked_version(package: &str) -> &'static str {
    let name = format!("name = \"{package}\"");
    let mut lines = include_str!("../Cargo.lock").lines().skip_while(|line| *line != name);
    lines
        .nth(1)
        .and_then(|line| line.split('"').nth(1))
        .expect("the lock file has a version after every name")
}
