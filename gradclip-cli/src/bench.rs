//! `gradclip bench`: the GPU path beside the CPU path, and both beside what the machine can move at most.

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
use gradclip_measure::cpu::{self, Cpu};
use gradclip_measure::device::Gpu;
use gradclip_measure::gpu::{GpuSet, Layout};
use gradclip_measure::rows::{self, Measured, Path, Row};
use gradclip_measure::timing::{Roofline, Timed, Work, interleaved};
use gradclip_measure::workloads::{Memory, Op, Pristine, Set, sets};
use gradclip_measure::{bytes, text};
use serde_json::{Value, json};

use crate::manner::matches;
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
/// Of gradients, without `--max-bytes`.
const MAX_BYTES: usize = 1 << 30;
/// More would take a software adapter minutes.
const MAX_BYTES_IN_SOFTWARE: usize = 4 << 20;
/// How the CPU path takes its gradients.
const SLICES: &str = "slices";

/// Measure how fast this machine clips
///
/// Times every operation on single tensors of 2^10 elements and more, on the tensor shapes of four models, and on 1000 small
/// tensors, on the GPU and the CPU, beside rooflines that only move the same bytes. Every result is checked before it is
/// timed.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The GPU: auto (if there is one), gpu (even a software adapter), cpu (none), or part of a GPU's name
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,

    /// The largest set of gradients; of a model, as many tensors as fit [default: 1GiB, 4MiB on a software adapter]
    #[arg(long, value_name = "BYTES", value_parser = bytes::parse)]
    max_bytes: Option<usize>,

    /// The approximate time to measure in total; every row is repeated a few times in any case
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "30")]
    seconds: Duration,

    /// Measure only rows whose name contains PATTERN, such as 'cpu/gpt2-small/f32', '/norm' or 'gpu/*/arena'; may be repeated
    #[arg(long, value_name = "PATTERN")]
    only: Vec<String>,

    /// Bytes to touch between two uses of the same gradients, to evict them from all caches; 0 for warm caches
    /// [default: twice the CPU's last-level cache, 256MiB on a GPU]
    #[arg(long, value_name = "BYTES", value_parser = bytes::parse)]
    cold_bytes: Option<usize>,

    /// Print JSON, one object per line, instead of tables
    #[arg(long)]
    json: bool,

    /// Also write the JSON lines to a file, each set as soon as it is measured
    #[arg(long, value_name = "FILE.jsonl")]
    save: Option<PathBuf>,

    /// Draw time and percent of the roofline against size, for single f32 tensors
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,

    /// Measure nothing; read saved JSON lines, and report each GPU target as met or missed, as Markdown
    ///
    /// Takes the lines of `gradclip bench` with --save or --json, and those of `benches/pytorch/compare.py` and the host bench
    /// with --json. A missed target is not an error.
    #[arg(
        long,
        value_name = "FILE.jsonl",
        num_args = 1..,
        conflicts_with_all = ["device", "max_bytes", "seconds", "only", "cold_bytes", "json", "save", "plot"]
    )]
    check: Vec<PathBuf>,

    /// With --check: the card's rated memory bandwidth, if gradclip does not know the card
    #[arg(long, value_name = "GB/S", value_parser = rated, requires = "check")]
    rated: Option<f64>,
}

pub(crate) fn run(args: &Args, out: &mut dyn io::Write) -> Result<()> {
    let mut print = |text: &str| out.write_all(text.as_bytes()).context(stdout::FAILED);
    if !args.check.is_empty() {
        return print(&text::lines(&check::report(&args.check, args.rated)?));
    }
    // Now, and not only after minutes.
    if let Some(path) = &args.save {
        file::Target::check(path)?;
    }
    let save = args.save.as_deref();
    let plot = args.plot.as_deref().map(|path| crate::plot::Output::check(path, save)).transpose()?;
    // Rayon itself panics where it cannot have them.
    rayon::ThreadPoolBuilder::new().build_global().context("cannot start the threads to measure with")?;
    let bench = Bench {
        gpu: Gpu::open(&args.device, args.cold_bytes)?,
        cold: args.cold_bytes.unwrap_or_else(cpu::cold_bytes),
        args,
    };
    let sets: Vec<Set> = sets(args.max_bytes.unwrap_or(MAX_BYTES))?
        .into_iter()
        .filter(|set| !bench.wanted(set).is_empty())
        .collect();
    ensure!(!sets.is_empty(), "--only and --max-bytes leave nothing to measure");
    ensure!(plot.is_none() || sets.iter().any(|set| bench.plots(set)), "--plot: {}", plot::NOTHING);

    let machine = bench.machine();
    let mut saved = save.map(|path| Saved::create(path, &machine)).transpose()?;
    let mut all = Vec::new();
    // Whatever fails from here on, what has been measured is printed.
    let measured = bench.measure_all(sets, |measured| {
        if let Some(saved) = &mut saved {
            saved.append(rows::json(std::slice::from_ref(&measured)));
        }
        all.push(measured);
    });
    let printed = if all.is_empty() {
        Ok(())
    } else if args.json {
        print(&json_lines([machine].into_iter().chain(rows::json(&all))))
    } else {
        print(&text::lines(&bench.table(&all)))
    };
    let drawn = match plot {
        Some(plot) if measured.is_ok() => plot::svg(&all).and_then(|svg| plot.write(&svg)),
        _ => Ok(()),
    };
    measured.and(saved.map_or(Ok(()), |saved| saved.appended)).and(printed).and(drawn)
}

fn seconds(text: &str) -> Result<Duration, String> {
    let possible = |seconds: &f64| *seconds >= 0.0 && *seconds < 1e9;
    let seconds =
        text.parse().ok().filter(possible).ok_or("it must be a number of at least 0 and less than 1e9")?;
    Ok(Duration::from_secs_f64(seconds))
}

fn rated(text: &str) -> Result<f64, String> {
    let possible = |rated: &f64| *rated > 0.0 && rated.is_finite();
    text.parse().ok().filter(possible).ok_or_else(|| "it must be a positive, finite number".into())
}

fn cannot_write(path: &FilePath) -> String {
    format!("cannot write {}", text::path(path))
}

/// JSON lines, one value a line.
fn json_lines(lines: impl IntoIterator<Item = Value>) -> String {
    let text = lines.into_iter().fold(Vec::new(), |mut text, line| {
        text::write_json(&mut text, &line).expect("memory takes everything");
        text
    });
    String::from_utf8(text).expect("JSON is UTF-8")
}

/// The file of `--save`. It grows set by set, so that an interrupted run keeps what it has measured.
struct Saved<'a> {
    path: &'a FilePath,
    file: File,
    /// What became of it. After the first failure nothing is appended.
    appended: Result<()>,
}

impl<'a> Saved<'a> {
    /// Replaces the file by one that holds the machine line alone.
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
    gpu: Option<Gpu>,
    /// For the CPU.
    cold: usize,
}

/// One row to be.
#[derive(Clone, Copy)]
struct Task {
    path: Path,
    /// None on the CPU.
    layout: Option<Layout>,
    work: Work,
}

impl Task {
    fn layout(self) -> &'static str {
        self.layout.map_or(SLICES, Layout::name)
    }
}

impl Bench<'_> {
    /// The rows that are asked for. Rooflines come with the first row of a path.
    fn wanted(&self, set: &Set) -> Vec<Task> {
        let mut tasks = Vec::new();
        let gpu = self.gpu.as_ref().filter(|gpu| {
            self.args.max_bytes.is_some() || !gpu.software || set.bytes() <= MAX_BYTES_IN_SOFTWARE
        });
        // One tensor is one buffer either way.
        let layouts =
            if set.lens.len() == 1 { &[Layout::Arena][..] } else { &[Layout::Arena, Layout::Separate] };
        for path in [Path::Gpu, Path::Cpu] {
            let layouts: Vec<Option<Layout>> = match (path, gpu) {
                (Path::Gpu, None) => continue,
                (Path::Gpu, Some(_)) => layouts.iter().copied().map(Some).collect(),
                (Path::Cpu, _) => vec![None],
            };
            let task = |layout, work| Task { path, layout, work };
            let selected = |task: &Task| self.selects(&rows::id(path, set, task.layout(), task.work));
            let ops = layouts.iter().flat_map(|&layout| Op::ALL.map(|op| task(layout, Work::Op(op))));
            let ops: Vec<Task> = ops.filter(selected).collect();
            let rooflines = Roofline::ALL.map(|roofline| task(layouts[0], Work::Roofline(roofline)));
            tasks.extend(rooflines.into_iter().filter(|task| !ops.is_empty() || selected(task)));
            tasks.extend(ops);
        }
        tasks
    }

    fn selects(&self, id: &str) -> bool {
        let patterns = &self.args.only;
        patterns.is_empty() || patterns.iter().any(|pattern| matches(&format!("*{pattern}*"), id))
    }

    /// Whether a point of the plot comes of the set.
    fn plots(&self, set: &Set) -> bool {
        let exceeded = |task: &Task| task.work == Work::Op(Op::Exceeded);
        plot::is_single(set) && self.wanted(set).iter().any(exceeded)
    }

    fn measure_all(&self, sets: Vec<Set>, mut done: impl FnMut(Measured)) -> Result<()> {
        let progress = Progress::steps(self.args.json, sets.len());
        let mut pool = Memory::default();
        let share = self.args.seconds / u32::try_from(sets.len())?;
        for set in sets {
            progress.stage(format!("{} {}", set.name, rows::dtype(&set)));
            done(self.measure(set, &mut pool, share)?);
            progress.advance(1);
        }
        Ok(())
    }

    fn measure(&self, set: Set, pool: &mut Memory, share: Duration) -> Result<Measured> {
        let mut tasks = self.wanted(&set);
        let mut skipped = Vec::new();
        let mut skip = |tasks: &mut Vec<Task>, path, error: anyhow::Error| {
            tasks.retain(|task| task.path != path);
            skipped.push((path, format!("{error:#}")));
        };
        if let Err(error) = cpu::ensure_memory(set.bytes()) {
            skip(&mut tasks, Path::Cpu, error);
            return Ok(Measured { set, rows: Vec::new(), skipped });
        }
        let pristine = Pristine::new(&set);
        let mut cpu = None;
        if tasks.iter().any(|task| task.path == Path::Cpu) {
            match Cpu::new(&pristine, pool, if set.cached { 0 } else { self.cold }) {
                Ok(found) => cpu = Some(found),
                Err(error) => skip(&mut tasks, Path::Cpu, error),
            }
        }
        let mut gpu = None;
        if let Some(device) = self.gpu.as_ref().filter(|_| tasks.iter().any(|task| task.path == Path::Gpu)) {
            let mut layouts: Vec<Layout> = tasks.iter().filter_map(|task| task.layout).collect();
            layouts.sort_by_key(|layout| layout.name());
            layouts.dedup();
            match GpuSet::new(device, &pristine, set.cached, &layouts) {
                Ok(found) => gpu = Some(found),
                Err(error) => skip(&mut tasks, Path::Gpu, error),
            }
        }

        for task in &tasks {
            let Work::Op(op) = task.work else { continue };
            let checked = match (task.layout, &mut cpu, &gpu) {
                (Some(layout), _, Some(gpu)) => gpu.check(layout, op),
                (None, Some(cpu), _) => cpu.check(op),
                _ => unreachable!("what was not opened has no tasks"),
            };
            checked.with_context(|| rows::id(task.path, &set, task.layout(), task.work))?;
        }
        // One path after the other. A GPU that waits while the CPU has its turn lowers its clocks, and is measured slow.
        let paths: Vec<&[Task]> = tasks.chunk_by(|one, next| one.path == next.path).collect();
        let mut timed = Vec::with_capacity(tasks.len());
        for tasks in &paths {
            let share = share / u32::try_from(paths.len())?;
            timed.extend(interleaved(tasks.len(), share, |index| match (tasks[index], &mut cpu, &gpu) {
                (Task { layout: Some(layout), work, .. }, _, Some(gpu)) => gpu.time(layout, work),
                (Task { layout: None, work, .. }, Some(cpu), _) => cpu.time(work),
                _ => unreachable!("what was not opened has no tasks"),
            })?);
        }
        let rows = tasks.iter().zip(&timed).map(|(&task, &one)| Row {
            path: task.path,
            layout: task.layout(),
            work: task.work,
            timed: one,
            roofline: roofline(task, &tasks, &timed),
            clock: self.gpu.as_ref().filter(|_| task.path == Path::Gpu).map_or("wall", Gpu::clock),
            cached: set.cached || self.cold_of(task.path) == 0,
            cost: match (task, &gpu) {
                (Task { layout: Some(layout), work: Work::Op(op), .. }, Some(gpu)) => {
                    Some(gpu.cost(layout, op))
                }
                _ => None,
            },
        });
        let rows = rows.collect();
        Ok(Measured { set, rows, skipped })
    }

    fn cold_of(&self, path: Path) -> usize {
        match (path, &self.gpu) {
            (Path::Gpu, Some(gpu)) => gpu.cold,
            _ => self.cold,
        }
    }

    /// The line that says which command measured on which machine, and when it began.
    fn machine(&self) -> Value {
        // Without where the program lies: these lines are shown to others.
        let command: Vec<_> = ["gradclip".to_owned()].into_iter().chain(env::args().skip(1)).collect();
        json!({
            "kind": "machine",
            "library": "gradclip",
            "version": env!("CARGO_PKG_VERSION"),
            "optimized": !cfg!(debug_assertions),
            "command": command,
            "unix_time": SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs()),
            "cpu": cpu::model(),
            "threads": gradclip::cpu::threads(),
            "cold_bytes": self.cold,
            "gpu": self.gpu.as_ref().map(|gpu| &gpu.name),
            "gpu_is_software": self.gpu.as_ref().map(|gpu| gpu.software),
            "gpu_cold_bytes": self.gpu.as_ref().map(|gpu| gpu.cold),
        })
    }

    fn table(&self, all: &[Measured]) -> String {
        let legend = [LEGEND, if self.gpu.is_some() { GPU_LEGEND } else { "" }].concat();
        format!("{}{}{legend}{}", self.heading(), rows::table(all), summary(all))
    }

    fn heading(&self) -> String {
        let mut lines = vec![format!("CPU path: {}, {} threads", cpu::model(), gradclip::cpu::threads())];
        match &self.gpu {
            Some(gpu) => lines.push(format!("GPU path: {}, timed by the {} clock", gpu.name, gpu.clock())),
            None if self.args.device == DeviceChoice::Auto && has_software() => lines.push(
                "GPU path: none but a software adapter, which says nothing about GPU speed (--device gpu measures it)".into(),
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

/// What the rooflines of its path take for the passes of a task.
fn roofline(task: Task, tasks: &[Task], timed: &[Timed]) -> f64 {
    let of = |roofline| {
        let is =
            |(other, _): &(&Task, &Timed)| other.path == task.path && other.work == Work::Roofline(roofline);
        tasks.iter().zip(timed).find(is).map_or(f64::NAN, |(_, timed)| timed.seconds.median)
    };
    match task.work {
        Work::Roofline(roofline) => of(roofline),
        Work::Op(op) => match op.passes() {
            (0, _) => of(Roofline::InPlace),
            (_, 0) => of(Roofline::Read),
            _ => of(Roofline::Read) + of(Roofline::InPlace),
        },
    }
}

/// From which size on the GPU wins, and how the cost grows.
fn summary(all: &[Measured]) -> String {
    let singles: Vec<&Measured> = all.iter().filter(|measured| plot::is_single(&measured.set)).collect();
    let mut text = String::new();
    let exceeded = |measured: &Measured, path, layout| {
        Some(measured.find(path, layout, Work::Op(Op::Exceeded))?.timed.wall.median)
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
        let _ = writeln!(text, "\nA clip that is exceeded, waited for: {wins}.");
    }
    for (path, layout) in [(Path::Gpu, Layout::Arena.name()), (Path::Cpu, SLICES)] {
        for op in [Op::Norm, Op::Exceeded] {
            let point = |measured: &&Measured| {
                let row = measured.find(path, layout, Work::Op(op))?;
                Some((measured.set.bytes() as f64, row.seconds()))
            };
            let points: Vec<(f64, f64)> = singles.iter().filter_map(point).collect();
            let [(_, fixed), .., (few, short), (many, long)] = points[..] else { continue };
            let per_mib = (long - short) / (many - few) * f64::from(1 << 20);
            let _ = writeln!(
                text,
                "{} of one tensor on the {}: {} for the smallest, {} for another MiB of the largest",
                op.name(),
                path.name(),
                rows::duration(fixed),
                rows::duration(per_mib)
            );
        }
    }
    text
}
