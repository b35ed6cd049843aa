//! `gradclip bench`: times the GPU path and the CPU path, and compares both with rooflines of memory bandwidth.

mod check;
mod plot;

use std::env;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::mem;
use std::path::{Path as FilePath, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use gradclip::adapters::{self, is_software};
use gradclip::slices::DeviceChoice;
use gradclip_measure::cpu_bench::CpuBench;
use gradclip_measure::data::{AlignedBytes, SetData};
use gradclip_measure::device::GpuDevice;
use gradclip_measure::gpu_bench::{GpuBench, Layout};
use gradclip_measure::ops::Op;
use gradclip_measure::report::{self, Path, Row, SetReport};
use gradclip_measure::roofline::Roofline;
use gradclip_measure::sets::{GradientSet, sets};
use gradclip_measure::step::bench::StepBench;
use gradclip_measure::step::{self, StepReport, StepRow, Way};
use gradclip_measure::timing::{Timing, Workload, time_interleaved};
use gradclip_measure::{bytes, machine, text};
use serde_json::{Value, json};

use crate::glob::matches;
use crate::progress::Progress;
use crate::{file, stdout};

const LEGEND: &str = "
time      median of the repetitions, on the GPU's clock if it has one, else wall time
spread    half the interquartile range, in percent of the median
GB/s      bytes that must move at least, divided by time
roofline  time of kernels or loops that only move the same bytes in the same passes, in percent of time
";
const GPU_LEGEND: &str = "\
wall      wall time of a host that encodes, submits and waits
encode    host time to record the commands
ready     host time to record them in an encoder of their own and finish it, ready to submit
";
/// The default of `--max-bytes`.
const MAX_BYTES: usize = 1 << 30;
/// The default on a software adapter, where larger sets would take minutes.
const MAX_BYTES_IN_SOFTWARE: usize = 4 << 20;
/// The name of the CPU path's layout.
const SLICES: &str = "slices";

/// Measure how fast this machine clips
///
/// Times every operation on the GPU and on the CPU: on single tensors of 2^10 elements and more, on the tensor shapes
/// of four models, and on 1000 small tensors. Compares each time with a roofline, which only moves the same bytes. On the
/// GPU, also times a training step that clips in each way. Every result is checked before it is timed.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The GPU: auto (a hardware GPU if present), gpu (also a software adapter), cpu (none), or part of a GPU's name
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,

    /// The largest set of gradients; models are cut to fit [default: 1GiB, 4MiB on a software adapter]
    #[arg(long, value_name = "BYTES", value_parser = bytes::parse)]
    max_bytes: Option<usize>,

    /// The approximate time to measure in total; every row is repeated a few times in any case
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "30")]
    seconds: Duration,

    /// Measure only rows whose ID contains PATTERN, such as 'cpu/gpt2-small/f32', '/norm', 'gpu/*/arena' or 'gpu/step/';
    /// may be repeated
    #[arg(long, value_name = "PATTERN")]
    only: Vec<String>,

    /// Bytes to touch between two uses of the same gradients, to evict them from all caches; 0 for warm caches
    /// [default: twice the CPU's last-level cache, 256MiB on a GPU]
    #[arg(long, value_name = "BYTES", value_parser = bytes::parse)]
    cold_bytes: Option<usize>,

    /// Print JSON, one object per line, instead of tables
    #[arg(long)]
    json: bool,

    /// Also write the JSON lines to a file, after each measured set
    #[arg(long, value_name = "FILE.jsonl")]
    save: Option<PathBuf>,

    /// Plot time and percent of the roofline against size, for single f32 tensors
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,

    /// Read saved JSON lines instead of measuring, and report each GPU target as met or missed, in Markdown
    ///
    /// Accepts the lines of `gradclip bench` (--save or --json), of `benches/pytorch/compare.py` and of the host bench
    /// (--json). A missed target is not an error.
    #[arg(
        long,
        value_name = "FILE.jsonl",
        num_args = 1..,
        conflicts_with_all = ["device", "max_bytes", "seconds", "only", "cold_bytes", "json", "save", "plot"]
    )]
    check: Vec<PathBuf>,

    /// With --check: the rated memory bandwidth of a card that gradclip does not know
    #[arg(long, value_name = "GB/S", value_parser = rated_bandwidth, requires = "check")]
    rated: Option<f64>,
}

pub(crate) fn run(args: &Args, out: &mut dyn io::Write) -> Result<()> {
    let mut print = |text: &str| out.write_all(text.as_bytes()).context(stdout::PRINT_FAILED);
    if !args.check.is_empty() {
        return print(&text::lines(&check::report(&args.check, args.rated)?));
    }
    // Checked now, not after minutes of measuring.
    if let Some(path) = &args.save {
        file::Target::check(path)?;
    }
    let save = args.save.as_deref();
    let plot = args.plot.as_deref().map(|path| crate::plot::Output::check(path, save)).transpose()?;
    // Rayon's default pool panics if it cannot start its threads.
    rayon::ThreadPoolBuilder::new().build_global().context("cannot start the threads of the CPU path")?;
    let bench = Bench {
        gpu: GpuDevice::open(&args.device, args.cold_bytes)?,
        cold_bytes: args.cold_bytes.unwrap_or_else(machine::cold_bytes),
        args,
    };
    let sets: Vec<GradientSet> = sets(args.max_bytes.unwrap_or(MAX_BYTES))?
        .into_iter()
        .filter(|set| !bench.cases(set).is_empty())
        .collect();
    let steps = bench.step_sets();
    let no_gpu = if bench.gpu.is_some() {
        ""
    } else {
        "; the GPU path is not measured without a GPU (--device gpu also takes a software adapter)"
    };
    ensure!(!sets.is_empty() || !steps.is_empty(), "--only and --max-bytes exclude every row{no_gpu}");
    ensure!(plot.is_none() || sets.iter().any(|set| bench.has_plot_point(set)), "--plot: {}", plot::NOTHING);

    let machine = bench.machine();
    let mut saved = save.map(|path| SaveFile::create(path, &machine)).transpose()?;
    let (mut all, mut all_steps) = (Vec::new(), Vec::new());
    // From here on, measured rows are printed even after a failure.
    let measured = bench.measure_all(sets, steps, |measured| {
        if let Some(saved) = &mut saved {
            saved.append(measured.json());
        }
        match measured {
            Measured::Set(report) => all.push(report),
            Measured::Step(report) => all_steps.push(report),
        }
    });
    let printed = if all.is_empty() && all_steps.is_empty() {
        Ok(())
    } else if args.json {
        print(&json_lines([machine].into_iter().chain(report::json(&all)).chain(step::json(&all_steps))))
    } else {
        print(&text::lines(&bench.table(&all, &all_steps)))
    };
    let drawn = match plot {
        Some(plot) if measured.is_ok() => plot::svg(&all).and_then(|svg| plot.write(&svg)),
        _ => Ok(()),
    };
    measured.and(saved.map_or(Ok(()), |saved| saved.appended)).and(printed).and(drawn)
}

fn seconds(text: &str) -> Result<Duration, String> {
    let is_valid = |seconds: &f64| *seconds >= 0.0 && *seconds < 1e9;
    let seconds =
        text.parse().ok().filter(is_valid).ok_or("it must be a number of at least 0 and less than 1e9")?;
    Ok(Duration::from_secs_f64(seconds))
}

fn rated_bandwidth(text: &str) -> Result<f64, String> {
    let is_valid = |rated: &f64| *rated > 0.0 && rated.is_finite();
    text.parse().ok().filter(is_valid).ok_or_else(|| "it must be a positive, finite number".into())
}

fn cannot_write(path: &FilePath) -> String {
    format!("cannot write {}", text::path(path))
}

/// Formats values as JSON lines.
fn json_lines(lines: impl IntoIterator<Item = Value>) -> String {
    let text = lines.into_iter().fold(Vec::new(), |mut text, line| {
        text::write_json(&mut text, &line).expect("writing to memory does not fail");
        text
    });
    String::from_utf8(text).expect("JSON is UTF-8")
}

/// The file of `--save`. Each measured set is appended at once, so that an interrupted run keeps its results.
struct SaveFile<'a> {
    path: &'a FilePath,
    file: File,
    /// The first failure. Nothing is appended after it.
    appended: Result<()>,
}

impl<'a> SaveFile<'a> {
    /// Creates or truncates the file and writes the machine line.
    fn create(path: &'a FilePath, machine: &Value) -> Result<Self> {
        let file = File::create(path).with_context(|| cannot_write(path))?;
        let mut saved = Self { path, file, appended: Ok(()) };
        saved.append([machine.clone()]);
        mem::replace(&mut saved.appended, Ok(())).map(|()| saved)
    }

    /// Appends the lines in one write.
    fn append(&mut self, lines: impl IntoIterator<Item = Value>) {
        if self.appended.is_ok() {
            let written = self.file.write_all(json_lines(lines).as_bytes());
            self.appended = written.with_context(|| cannot_write(self.path));
        }
    }
}

struct Bench<'a> {
    args: &'a Args,
    gpu: Option<GpuDevice>,
    /// The minimum total size of the copies that the CPU path cycles through.
    cold_bytes: usize,
}

/// The results of a set, or of the training step on a set.
enum Measured {
    Set(SetReport),
    Step(StepReport),
}

impl Measured {
    fn json(&self) -> Vec<Value> {
        match self {
            Self::Set(report) => report::json(std::slice::from_ref(report)),
            Self::Step(report) => step::json(std::slice::from_ref(report)),
        }
    }
}

/// A row to measure.
#[derive(Clone, Copy)]
struct Case {
    path: Path,
    /// `None` on the CPU path.
    layout: Option<Layout>,
    workload: Workload,
}

impl Case {
    fn layout(self) -> &'static str {
        self.layout.map_or(SLICES, Layout::name)
    }
}

impl Bench<'_> {
    /// Returns the selected rows of a set. A path with a selected operation also has its rooflines.
    fn cases(&self, set: &GradientSet) -> Vec<Case> {
        let mut cases = Vec::new();
        let gpu = self.gpu.as_ref().filter(|gpu| {
            self.args.max_bytes.is_some() || !gpu.software || set.bytes() <= MAX_BYTES_IN_SOFTWARE
        });
        // A single tensor has one buffer in every layout, and up to 64 buffers are not bound as an array.
        let has_arrays = gpu.is_some_and(|gpu| gpu.with_arrays.is_some());
        let layouts = match set.lens.len() {
            1 => &[Layout::Arena][..],
            65.. if has_arrays => &[Layout::Arena, Layout::Separate, Layout::Array],
            _ => &[Layout::Arena, Layout::Separate],
        };
        for path in [Path::Gpu, Path::Cpu] {
            let layouts: Vec<Option<Layout>> = match (path, gpu) {
                (Path::Gpu, None) => continue,
                (Path::Gpu, Some(_)) => layouts.iter().copied().map(Some).collect(),
                (Path::Cpu, _) => vec![None],
            };
            let case = |layout, workload| Case { path, layout, workload };
            let selected =
                |case: &Case| self.is_selected(&report::id(path, set, case.layout(), case.workload));
            let ops = layouts.iter().flat_map(|&layout| Op::ALL.map(|op| case(layout, Workload::Op(op))));
            let ops: Vec<Case> = ops.filter(selected).collect();
            let rooflines = Roofline::ALL.map(|roofline| case(layouts[0], Workload::Roofline(roofline)));
            cases.extend(rooflines.into_iter().filter(|case| !ops.is_empty() || selected(case)));
            cases.extend(ops);
        }
        cases
    }

    /// Returns the sets with selected rows of the training step. The step needs a GPU.
    fn step_sets(&self) -> Vec<GradientSet> {
        let Some(gpu) = &self.gpu else { return Vec::new() };
        let default = if gpu.software { MAX_BYTES_IN_SOFTWARE } else { MAX_BYTES };
        let mut sets = step::sets(self.args.max_bytes.unwrap_or(default));
        sets.retain(|set| !self.ways(set).is_empty());
        sets
    }

    /// Returns the selected ways of a set. With any of them, the step without a clip is measured too.
    fn ways(&self, set: &GradientSet) -> Vec<Way> {
        let selected = |way: &Way| self.is_selected(&step::id(set, *way));
        let any = Way::ALL.iter().any(selected);
        Way::ALL.into_iter().filter(|way| selected(way) || any && *way == Way::WithoutClip).collect()
    }

    fn is_selected(&self, id: &str) -> bool {
        let patterns = &self.args.only;
        patterns.is_empty() || patterns.iter().any(|pattern| matches(&format!("*{pattern}*"), id))
    }

    /// Whether the set adds a point to the plot.
    fn has_plot_point(&self, set: &GradientSet) -> bool {
        let exceeded = |case: &Case| case.workload == Workload::Op(Op::Exceeded);
        plot::is_single(set) && self.cases(set).iter().any(exceeded)
    }

    fn measure_all(
        &self,
        sets: Vec<GradientSet>,
        steps: Vec<GradientSet>,
        mut on_set: impl FnMut(Measured),
    ) -> Result<()> {
        let count = sets.len() + steps.len();
        let progress = Progress::steps(self.args.json, count);
        let mut pool = AlignedBytes::default();
        let share = self.args.seconds / u32::try_from(count)?;
        for set in sets {
            progress.stage(format!("{} {}", set.name, report::dtype(&set)));
            on_set(Measured::Set(self.measure(set, &mut pool, share)?));
            progress.advance(1);
        }
        drop(pool);
        for set in steps {
            progress.stage(format!("step of {}", set.name));
            on_set(Measured::Step(self.measure_step(set, share)?));
            progress.advance(1);
        }
        Ok(())
    }

    fn measure_step(&self, set: GradientSet, share: Duration) -> Result<StepReport> {
        let gpu = self.gpu.as_ref().expect("a step is selected only with a GPU");
        let ways = self.ways(&set);
        let (clock, software) = (gpu.clock(), gpu.software);
        let bench = match StepBench::new(gpu, &set) {
            Ok(bench) => bench,
            Err(error) => {
                let skipped = Some(format!("{error:#}"));
                return Ok(StepReport { set, rows: Vec::new(), clock, software, skipped });
            }
        };
        for &way in &ways {
            bench.check(way).with_context(|| step::id(&set, way))?;
        }
        let timings = time_interleaved(ways.len(), share, |index| bench.time(ways[index]))?;
        let row = |(&way, timing): (&Way, Timing)| StepRow {
            way,
            timing,
            dispatches: bench.dispatches(way),
            bytes: bench.bytes(way),
        };
        let rows = ways.iter().zip(timings).map(row).collect();
        Ok(StepReport { set, rows, clock, software, skipped: None })
    }

    fn measure(&self, set: GradientSet, pool: &mut AlignedBytes, share: Duration) -> Result<SetReport> {
        let mut cases = self.cases(&set);
        let mut skipped = Vec::new();
        let mut skip = |cases: &mut Vec<Case>, path, error: anyhow::Error| {
            cases.retain(|case| case.path != path);
            skipped.push((path, format!("{error:#}")));
        };
        if let Err(error) = machine::ensure_memory(set.bytes()) {
            skip(&mut cases, Path::Cpu, error);
            return Ok(SetReport { set, rows: Vec::new(), skipped });
        }
        let data = SetData::new(&set);
        let mut cpu = None;
        if cases.iter().any(|case| case.path == Path::Cpu) {
            match CpuBench::new(&data, pool, if set.cached { 0 } else { self.cold_bytes }) {
                Ok(bench) => cpu = Some(bench),
                Err(error) => skip(&mut cases, Path::Cpu, error),
            }
        }
        let mut gpu = None;
        if let Some(device) = self.gpu.as_ref().filter(|_| cases.iter().any(|case| case.path == Path::Gpu)) {
            let mut layouts: Vec<Layout> = cases.iter().filter_map(|case| case.layout).collect();
            layouts.sort_by_key(|layout| layout.name());
            layouts.dedup();
            match GpuBench::new(device, &data, set.cached, &layouts) {
                Ok(bench) => gpu = Some(bench),
                Err(error) => skip(&mut cases, Path::Gpu, error),
            }
        }

        for case in &cases {
            let Workload::Op(op) = case.workload else { continue };
            let checked = match (case.layout, &mut cpu, &gpu) {
                (Some(layout), _, Some(gpu)) => gpu.check(layout, op),
                (None, Some(cpu), _) => cpu.check(op),
                _ => unreachable!("a path that failed to open has no cases"),
            };
            checked.with_context(|| report::id(case.path, &set, case.layout(), case.workload))?;
        }
        // One path after the other: a GPU that idles during the CPU's turns lowers its clocks.
        let paths: Vec<&[Case]> = cases.chunk_by(|one, next| one.path == next.path).collect();
        let mut timings = Vec::with_capacity(cases.len());
        for cases in &paths {
            let share = share / u32::try_from(paths.len())?;
            timings.extend(time_interleaved(cases.len(), share, |index| {
                match (cases[index], &mut cpu, &gpu) {
                    (Case { layout: Some(layout), workload, .. }, _, Some(gpu)) => gpu.time(layout, workload),
                    (Case { layout: None, workload, .. }, Some(cpu), _) => cpu.time(workload),
                    _ => unreachable!("a path that failed to open has no cases"),
                }
            })?);
        }
        let rows = cases.iter().zip(&timings).map(|(&case, &timing)| Row {
            path: case.path,
            layout: case.layout(),
            workload: case.workload,
            timing,
            roofline_seconds: roofline(case, &cases, &timings),
            clock: self.gpu.as_ref().filter(|_| case.path == Path::Gpu).map_or("wall", GpuDevice::clock),
            cached: set.cached || self.cold_bytes(case.path) == 0,
            cost: match (case, &gpu) {
                (Case { layout: Some(layout), workload: Workload::Op(op), .. }, Some(gpu)) => {
                    Some(gpu.cost(layout, op))
                }
                _ => None,
            },
        });
        let rows = rows.collect();
        Ok(SetReport { set, rows, skipped })
    }

    fn cold_bytes(&self, path: Path) -> usize {
        match (path, &self.gpu) {
            (Path::Gpu, Some(gpu)) => gpu.cold_bytes,
            _ => self.cold_bytes,
        }
    }

    /// Returns the machine line: the command, the machine and the start time.
    fn machine(&self) -> Value {
        // The path of the program is omitted, because these lines are published.
        let command: Vec<_> = ["gradclip".to_owned()].into_iter().chain(env::args().skip(1)).collect();
        json!({
            "kind": "machine",
            "library": "gradclip",
            "version": env!("CARGO_PKG_VERSION"),
            "optimized": !cfg!(debug_assertions),
            "command": command,
            "unix_time": SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs()),
            "cpu": machine::cpu_model(),
            "threads": gradclip::cpu::threads(),
            "cold_bytes": self.cold_bytes,
            "gpu": self.gpu.as_ref().map(|gpu| &gpu.name),
            "gpu_is_software": self.gpu.as_ref().map(|gpu| gpu.software),
            "gpu_cold_bytes": self.gpu.as_ref().map(|gpu| gpu.cold_bytes),
        })
    }

    fn table(&self, all: &[SetReport], steps: &[StepReport]) -> String {
        let mut parts = Vec::new();
        if !all.is_empty() {
            parts.push(report::table(all));
        }
        if !steps.is_empty() {
            parts.push(step::table(steps));
        }
        let legend = [LEGEND, if self.gpu.is_some() { GPU_LEGEND } else { "" }].concat();
        format!("{}{}{legend}{}", self.heading(), parts.join("\n"), summary(all))
    }

    fn heading(&self) -> String {
        let mut lines =
            vec![format!("CPU path: {}, {} threads", machine::cpu_model(), gradclip::cpu::threads())];
        match &self.gpu {
            Some(gpu) => lines.push(format!("GPU path: {}, timed by the {} clock", gpu.name, gpu.clock())),
            None if self.args.device == DeviceChoice::Auto && has_software() => lines.push(
                "GPU path: only a software adapter, whose times say nothing about GPU speed (--device gpu measures it)".into(),
            ),
            None => lines.push("GPU path: none".into()),
        }
        if self.gpu.as_ref().is_some_and(|gpu| gpu.software) {
            lines.push("This is a software adapter. Its times say nothing about GPU speed.".into());
        }
        if cfg!(debug_assertions) {
            lines.push("Built without optimisation. A release build is faster.".into());
        }
        lines.join("\n") + "\n\n"
    }
}

fn has_software() -> bool {
    adapters::enumerate().iter().any(|adapter| is_software(&adapter.get_info()))
}

/// Returns the median time in seconds of the rooflines for the case's path and passes.
fn roofline(case: Case, cases: &[Case], timings: &[Timing]) -> f64 {
    let of = |roofline| {
        let is = |(other, _): &(&Case, &Timing)| {
            other.path == case.path && other.workload == Workload::Roofline(roofline)
        };
        cases.iter().zip(timings).find(is).map_or(f64::NAN, |(_, timing)| timing.seconds.median)
    };
    match case.workload {
        Workload::Roofline(roofline) => of(roofline),
        Workload::Op(op) => match op.passes() {
            (0, _) => of(Roofline::InPlace),
            (_, 0) => of(Roofline::Read),
            _ => of(Roofline::Read) + of(Roofline::InPlace),
        },
    }
}

/// Summarises the size from which the GPU is faster, and the fixed and marginal costs.
fn summary(all: &[SetReport]) -> String {
    let singles: Vec<&SetReport> = all.iter().filter(|measured| plot::is_single(&measured.set)).collect();
    let mut text = String::new();
    let exceeded = |measured: &SetReport, path, layout| {
        Some(measured.find(path, layout, Workload::Op(Op::Exceeded))?.timing.wall.median)
    };
    let both = singles.iter().filter_map(|measured| {
        let gpu = exceeded(measured, Path::Gpu, Layout::Arena.name())?;
        Some((measured.set.name.clone(), gpu < exceeded(measured, Path::Cpu, SLICES)?))
    });
    let both: Vec<_> = both.collect();
    if !both.is_empty() {
        let from = both.iter().rposition(|(_, wins)| !wins).map_or(0, |last| last + 1);
        let text_of = |(name, _): &(String, bool)| format!("the GPU wins from {name} elements on");
        let wins = both.get(from).map_or_else(|| "the CPU wins at every size".into(), text_of);
        let _ = writeln!(text, "\nExceeded clip, wall time: {wins}.");
    }
    for (path, layout) in [(Path::Gpu, Layout::Arena.name()), (Path::Cpu, SLICES)] {
        for op in [Op::Norm, Op::Exceeded] {
            let point = |measured: &&SetReport| {
                let row = measured.find(path, layout, Workload::Op(op))?;
                Some((measured.set.bytes() as f64, row.seconds()))
            };
            let points: Vec<(f64, f64)> = singles.iter().filter_map(point).collect();
            let [(_, fixed), .., (few, short), (many, long)] = points[..] else { continue };
            let per_mib = (long - short) / (many - few) * f64::from(1 << 20);
            let _ = writeln!(
                text,
                "{} of one tensor on the {}: {} for the smallest, {} per additional MiB near the largest",
                op.name(),
                path.name(),
                report::duration(fixed),
                report::duration(per_mib)
            );
        }
    }
    text
}
