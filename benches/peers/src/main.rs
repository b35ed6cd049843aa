//! gradclip's norm of a buffer beside the sum of the same bytes by another crate, on the same device and in its encoder.
//!
//! The method is that of `gradclip bench`, by its own library: the same random elements, clock, turns and roofline.

mod contest;

use std::io::{self, Write as _};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use contest::{Contest, Way};
use gradclip::DType;
use gradclip::slices::DeviceChoice;
use gradclip_measure::device::Gpu;
use gradclip_measure::rows::{Path, Row, duration, significant};
use gradclip_measure::table::Table;
use gradclip_measure::timing::Timed;
use gradclip_measure::workloads::{Pristine, Set, sets};
use gradclip_measure::{bytes, timing};
use serde_json::{Value, json};

/// Without `--max-bytes`.
const MAX_BYTES: usize = 1 << 30;
/// More would take a software adapter minutes.
const MAX_BYTES_IN_SOFTWARE: usize = 4 << 20;
const LEGEND: &str = "
time      the median of repetitions, all rows of a set in turn: by the GPU's clock where it has one, else wall time
spread    half the distance of the quartiles, of the median
GB/s      the bytes of the buffer, over the time
roofline  what a kernel that only reads takes for as many bytes, over the time
wall      for a host that encodes, submits and waits
encode    of the host, to record the commands
ready     of the host, until they can be submitted: with an encoder of their own, and its end
";

/// Compare gradclip's norm with the sum of the same bytes by lampshade
///
/// On single tensors of 2^10, 2^12, .. elements, on one wgpu device, in turn. Every answer is checked before it is timed.
#[derive(Parser)]
struct Args {
    /// The GPU: gpu (a software adapter if there is no other), or part of a GPU's name
    #[arg(long, default_value = "gpu")]
    device: DeviceChoice,

    /// The longest buffer, as far as the device can bind it in one piece [default: 1GiB, 4MiB on a software adapter]
    #[arg(long, value_name = "BYTES", value_parser = bytes::parse)]
    max_bytes: Option<usize>,

    /// For about how long to repeat, all in all; a few repetitions of everything there are in any case
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    seconds: f64,

    /// Bytes that are read between two uses of a buffer, so that no cache holds it; 0 lets it
    /// [default: 256MiB, 0 on a software adapter]
    #[arg(long, value_name = "BYTES", value_parser = bytes::parse)]
    cold_bytes: Option<usize>,

    /// Print one JSON object a line, as `gradclip bench --json` does
    #[arg(long)]
    json: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let granted = Duration::try_from_secs_f64(args.seconds)?;
    let gpu = Gpu::open(&args.device, args.cold_bytes)?
        .context("this is about GPUs: `--device gpu` takes a software adapter, too")?;
    let limits = gpu.device.limits();
    // Lampshade binds what it sums in one piece.
    let longest = limits.max_buffer_size.min(limits.max_storage_buffer_binding_size);
    let max_bytes = args.max_bytes.unwrap_or(if gpu.software { MAX_BYTES_IN_SOFTWARE } else { MAX_BYTES });
    let mut sets = sets(max_bytes.min(usize::try_from(longest).unwrap_or(usize::MAX)))?;
    sets.retain(|set| set.of == 1 && set.dtype == DType::F32 && !set.cached);
    ensure!(!sets.is_empty(), "--max-bytes leaves nothing to measure");

    let share = granted / u32::try_from(sets.len())?;
    let mut measured = Vec::new();
    // What was measured before something fails, such as an allocation, is shown.
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

/// A set, and a row for each of [`Way::ALL`].
struct Measured {
    set: Set,
    rows: [Row; 3],
}

fn measure(gpu: &Gpu, set: Set, share: Duration) -> Result<Measured> {
    let mut contest = Contest::new(gpu, &Pristine::new(&set))?;
    let timed = timing::interleaved(Way::ALL.len(), share, |way| contest.time(Way::ALL[way]))?;
    let rows = Way::ALL.map(|way| Row {
        path: Path::Gpu,
        layout: "arena",
        work: way.work(),
        timed: timed[way as usize],
        roofline: timed[Way::Read as usize].seconds.median,
        clock: gpu.clock(),
        cached: gpu.cold == 0,
        cost: None,
    });
    Ok(Measured { set, rows })
}

impl Measured {
    const RATIOS: [&'static str; 3] = ["norm / sum", "norm / sum, wall", "norm / sum, ready"];

    /// How many times as long gradclip takes as lampshade.
    fn ratios(&self) -> [Option<f64>; 3] {
        let ratio = |time: fn(&Timed) -> Option<f64>| {
            let of = |way: Way| time(&self.rows[way as usize].timed);
            Some(of(Way::Gradclip)? / of(Way::Lampshade)?)
        };
        [
            ratio(|timed| Some(timed.seconds.median)),
            ratio(|timed| Some(timed.wall.median)),
            ratio(|timed| Some(timed.ready?.median)),
        ]
    }

    fn json(&self) -> Vec<Value> {
        let line = |(way, row): (Way, &Row)| {
            let mut line = row.json(&self.set);
            line["library"] = json!(way.library());
            line["dtype"] = json!(way.dtype());
            line["operation"] = json!(way.name());
            line
        };
        let mut lines: Vec<Value> = Way::ALL.into_iter().zip(&self.rows).map(line).collect();
        let (peer, path) = (Way::Lampshade.library(), Path::Gpu.name());
        let mut ratios = json!({ "kind": "ratios", "peer": peer, "path": path, "set": self.set.name });
        for (name, ratio) in Self::RATIOS.into_iter().zip(self.ratios()) {
            ratios[name] = json!(ratio);
        }
        lines.push(ratios);
        lines
    }
}

fn json(gpu: &Gpu, measured: &[Measured]) -> Vec<Value> {
    let machine = |library| {
        json!({
            "kind": "machine",
            "library": library,
            "version": locked_version(library),
            "optimized": !cfg!(debug_assertions),
            "gpu": gpu.name,
            "gpu_is_software": gpu.software,
            "gpu_cold_bytes": gpu.cold,
        })
    };
    let machines = [Way::Gradclip, Way::Lampshade].map(|way| machine(way.library()));
    machines.into_iter().chain(measured.iter().flat_map(Measured::json)).collect()
}

fn table(gpu: &Gpu, measured: &[Measured]) -> String {
    let heading =
        ["set", "library", "operation", "time", "spread", "GB/s", "roofline", "wall", "encode", "ready"];
    let mut times = Table::new(heading).numbers_from(3);
    let mut ratios = Table::new(["set"].into_iter().chain(Measured::RATIOS)).numbers_from(1);
    for one in measured {
        for (way, row) in Way::ALL.into_iter().zip(&one.rows) {
            let Timed { seconds, wall, encode, ready } = row.timed;
            let [encode, ready] =
                [encode, ready].map(|time| time.map_or("-".into(), |time| duration(time.median)));
            times.row([
                one.set.name.clone(),
                way.library().into(),
                way.name().into(),
                duration(seconds.median),
                format!("{:.0} %", 100.0 * seconds.relative()),
                significant(row.gb_per_s(&one.set)),
                format!("{:.0} %", row.percent()),
                duration(wall.median),
                encode,
                ready,
            ]);
        }
        let cells = one.ratios().map(|ratio| ratio.map_or("-".into(), |ratio| format!("{ratio:.2}")));
        ratios.row([one.set.name.clone()].into_iter().chain(cells));
    }
    format!("{}\n{times}{LEGEND}\n{ratios}", heading_of(gpu))
}

fn heading_of(gpu: &Gpu) -> String {
    let lampshade = locked_version(Way::Lampshade.library());
    let mut text = format!("lampshade {lampshade} on {}, timed by the {} clock\n", gpu.name, gpu.clock());
    if gpu.software {
        text += "A software adapter: what it shows says nothing about GPU speed.\n";
    }
    if cfg!(debug_assertions) {
        text += "Built without optimisation: these are not the times of a release build.\n";
    }
    text
}

/// Of a package, as the lock file has it.
fn locked_version(package: &str) -> &'static str {
    let name = format!("name = \"{package}\"");
    let mut lines = include_str!("../Cargo.lock").lines().skip_while(|line| *line != name);
    lines.nth(1).and_then(|line| line.split('"').nth(1)).expect("a version follows every name")
}
