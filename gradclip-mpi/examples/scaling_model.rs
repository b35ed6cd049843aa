//! Prints the tables of `docs/scaling.md`, the cost of a sharded clip for up to 16,384 ranks: `cargo run --example scaling_model`
//!
//! It needs no `mpirun`. The measured constants come from `benches/results`. A test compares the page with the output.

/// What `benches/clip.rs` printed.
const RUNS: &str = include_str!("../benches/results/xeon-2-cores.jsonl");

/// GPUs of a machine, each with a rank. Neighbours in rank are on the same machine.
const RANKS_PER_NODE: usize = 8;

/// A network between machines. All numbers are assumed.
struct Network {
    name: &'static str,
    /// Seconds for a small message.
    latency: f64,
    /// Bytes per second, for each of the ranks of a machine.
    bandwidth: f64,
    /// What the two stand for.
    assumption: [&'static str; 2],
}

const NETWORKS: [Network; 3] = [
    Network {
        name: "InfiniBand",
        latency: 2e-6,
        bandwidth: 25e9,
        assumption: ["also RoCE, Slingshot", "200 Gb/s for a rank"],
    },
    Network {
        name: "LAN TCP",
        latency: 25e-6,
        bandwidth: 1.25e9 / RANKS_PER_NODE as f64,
        assumption: ["the kernel's TCP", "10 Gb/s for a machine"],
    },
    Network {
        name: "cloud TCP",
        latency: 60e-6,
        bandwidth: 12.5e9 / RANKS_PER_NODE as f64,
        assumption: ["virtual machines", "100 Gb/s for a machine"],
    },
];

/// Measured on an H100: `nvidia-h100-first-run.jsonl` of gradclip's benches.
mod h100 {
    /// Wall time less GPU time of the norm of 2^10 to 2^20 elements: the host submits, and learns of the end.
    pub(super) const ROUND_TRIP: f64 = 55e-6;
    /// GPU time of a clip of 2^10 elements that exceed the limit.
    pub(super) const SHORTEST_CLIP: f64 = 25e-6;
    /// Bytes per second of a clip of 2^28 elements that exceed the limit. It reads them twice and writes them once.
    pub(super) const BANDWIDTH: f64 = 2927e9;
}

/// From this size on, Open MPI's nonblocking all-reduce splits the vector among the ranks.
const SPLIT_BYTES: f64 = 65_536.0;
const BYTES_PER_TILE: f64 = 16.0;

/// One line of [`RUNS`].
#[derive(Clone, Copy)]
struct Line(&'static str);

impl Line {
    fn text(self, key: &str) -> &'static str {
        let (_, rest) =
            self.0.split_once(&format!("\"{key}\":")).unwrap_or_else(|| panic!("no {key} in {}", self.0));
        rest.split([',', '}']).next().unwrap_or_default().trim_matches('"')
    }

    fn number(self, key: &str) -> f64 {
        let text = self.text(key);
        text.parse().unwrap_or_else(|_| panic!("{key}: {text} is not a number"))
    }

    /// The ranks and the elements of each.
    fn job(self) -> (f64, f64) {
        (self.number("ranks"), self.number("elements"))
    }
}

fn lines() -> impl Iterator<Item = Line> {
    RUNS.lines().filter(|line| line.contains("\"kind\":\"mpi\"")).map(Line)
}

/// Returns the median over the runs of a job.
fn seconds(job: (f64, f64), mode: &str, operation: &str) -> f64 {
    // An operation may have a comma in its name.
    let name = format!("\"operation\":\"{operation}\"");
    let found =
        lines().filter(|line| line.job() == job && line.text("mode") == mode && line.0.contains(&name));
    let mut runs: Vec<_> = found.map(|line| line.number("seconds")).collect();
    runs.sort_by(f64::total_cmp);
    *runs.get(runs.len() / 2).unwrap_or_else(|| panic!("no {mode} {operation} of {job:?}"))
}

/// Measured constants of this repository's runs on a small machine.
struct Measured {
    /// Between two ranks of a machine: half of a collective with two ranks, which has two rounds.
    latency: f64,
    /// The host's work in a clip, without the collective.
    join: f64,
    /// And for each tile of a reproducible clip.
    join_per_tile: f64,
}

impl Measured {
    fn of_runs() -> Self {
        let jobs: Vec<_> = lines().map(Line::job).collect();
        let two = jobs.iter().copied().find(|job| job.0 == 2.0).expect("a run of two ranks");
        let one = jobs.iter().copied().filter(|job| job.0 == 1.0).max_by(|a, b| a.1.total_cmp(&b.1));
        let one = one.expect("a run of one rank");
        let join = seconds(one, "plain", "join, host");
        Self {
            latency: seconds(two, "plain", "collective alone") / 2.0,
            join,
            join_per_tile: (seconds(one, "reproducible", "join, host") - join) / tiles(one.1),
        }
    }
}

/// As `gradclip::kernels::tables::tile_elements`.
fn tile_elements(elements: f64) -> f64 {
    match elements {
        ..=8_388_608.0 => 4096.0,
        ..=1_073_741_824.0 => 16_384.0,
        _ => 65_536.0,
    }
}

/// Tiles of one large gradient.
fn tiles(elements: f64) -> f64 {
    (elements / tile_elements(elements)).ceil()
}

/// The rounds of a tree: within machines, and between them.
fn rounds(ranks: usize) -> (u32, u32) {
    let log2 = |count: usize| count.next_power_of_two().ilog2();
    (log2(ranks.min(RANKS_PER_NODE)), log2(ranks.div_ceil(RANKS_PER_NODE)))
}

struct Model {
    measured: Measured,
}

impl Model {
    /// One way through the tree.
    fn half(&self, network: &Network, ranks: usize) -> f64 {
        let (within, between) = rounds(ranks);
        f64::from(within) * self.measured.latency + f64::from(between) * network.latency
    }

    /// The collective of a plain clip: up the tree, and down.
    fn collective(&self, network: &Network, ranks: usize) -> f64 {
        2.0 * self.half(network, ranks)
    }

    /// What a step waits for beyond the passes over the gradients.
    fn exposed(&self, network: &Network, ranks: usize) -> f64 {
        let collective = self.collective(network, ranks);
        h100::ROUND_TRIP + self.measured.join + collective
    }

    /// Halving and doubling: each rank sends and receives its part of the vector twice.
    fn split(&self, network: &Network, ranks: usize, bytes: f64) -> f64 {
        self.collective(network, ranks) + moved(ranks, bytes) / network.bandwidth
    }
}

fn ring(network: &Network, ranks: usize, bytes: f64) -> f64 {
    2.0 * (ranks as f64 - 1.0) * network.latency + moved(ranks, bytes) / network.bandwidth
}

/// Bytes that each rank sends in an all-reduce that splits the vector.
fn moved(ranks: usize, bytes: f64) -> f64 {
    2.0 * bytes * (1.0 - 1.0 / ranks as f64)
}

/// A clip of f32 elements on one GPU.
fn local_clip(elements: f64) -> f64 {
    h100::SHORTEST_CLIP + 3.0 * 4.0 * elements / h100::BANDWIDTH
}

/// Formats with two digits, or all digits before the point.
fn digits(value: f64) -> String {
    match value {
        ..0.0095 => format!("{value:.4}"),
        ..0.095 => format!("{value:.3}"),
        ..0.95 => format!("{value:.2}"),
        ..9.5 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

fn time(seconds: f64) -> String {
    match seconds {
        ..1e-6 => format!("{} ns", digits(seconds * 1e9)),
        ..1e-3 => format!("{} µs", digits(seconds * 1e6)),
        ..1.0 => format!("{} ms", digits(seconds * 1e3)),
        _ => format!("{} s", digits(seconds)),
    }
}

fn size(bytes: f64) -> String {
    match bytes {
        ..1e6 => format!("{} KB", digits(bytes / 1e3)),
        ..1e9 => format!("{} MB", digits(bytes / 1e6)),
        _ => format!("{} GB", digits(bytes / 1e9)),
    }
}

fn rate(bandwidth: f64) -> String {
    format!("{}/s", size(bandwidth))
}

fn percent(fraction: f64) -> String {
    format!("{} %", digits(100.0 * fraction))
}

fn table(title: &str, heading: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let heading: Vec<_> = heading.iter().map(|&cell| cell.to_owned()).collect();
    let rows: String = rows.into_iter().map(|row| line(&row)).collect();
    format!("{title}\n\n{}|{}\n{rows}\n", line(&heading), "---|".repeat(heading.len()))
}

fn measured_runs() -> String {
    let mut jobs: Vec<_> = Vec::new();
    for job in lines().map(|line| (line.job(), line.text("mode"))) {
        if !jobs.contains(&job) {
            jobs.push(job);
        }
    }
    let operations = [
        "local clip",
        "measure and read back",
        "join, host",
        "join, collective",
        "sharded clip",
        "collective alone",
    ];
    let heading = [&["ranks", "elements of each", "mode", "numbers"], &operations[..]].concat();
    let rows = jobs.into_iter().map(|(job, mode)| {
        let line = lines().find(|line| line.job() == job && line.text("mode") == mode).expect("it has lines");
        let numbers = line.number("sums") + line.number("maxima");
        let cells = [job.0.to_string(), job.1.to_string(), mode.to_owned(), numbers.to_string()];
        cells.into_iter().chain(operations.map(|operation| time(seconds(job, mode, operation)))).collect()
    });
    table("Measured, medians", &heading, rows)
}

fn constants(model: &Model) -> String {
    let Measured { latency, join, join_per_tile } = model.measured;
    let (here, card) = ("measured: 2 busy cores", "measured: H100");
    let measured = [
        ("latency within a machine", time(latency), here),
        ("host's work in a join", time(join), here),
        ("… for each tile, reproducible", time(join_per_tile), here),
        ("submission and notification", time(h100::ROUND_TRIP), card),
        ("shortest clip", time(h100::SHORTEST_CLIP), card),
        ("memory, in a clip", rate(h100::BANDWIDTH), card),
    ];
    let measured = measured.map(|(name, value, source)| vec![name.to_owned(), value, source.to_owned()]);
    let assumed = NETWORKS.iter().flat_map(|network| {
        let values =
            [("latency", time(network.latency)), ("bandwidth for each rank", rate(network.bandwidth))];
        let rows = values.into_iter().zip(network.assumption);
        rows.map(|((what, value), text)| {
            vec![format!("{}, {what}", network.name), value, format!("assumed: {text}")]
        })
    });
    table("Constants", &["constant", "value", "source"], measured.into_iter().chain(assumed))
}

const RANKS: [usize; 7] = [2, 8, 64, 512, 1024, 4096, 16_384];

fn collectives(model: &Model) -> String {
    let heading = ["ranks", "rounds within + between machines", "InfiniBand", "LAN TCP", "cloud TCP"];
    let rows = RANKS.map(|ranks| {
        let (within, between) = rounds(ranks);
        let cell = |network: &Network| {
            let [tree, doubling] = [model.collective(network, ranks), model.half(network, ranks)].map(time);
            format!("{tree}; {doubling}")
        };
        let cells = [ranks.to_string(), format!("{} + {}", 2 * within, 2 * between)];
        cells.into_iter().chain(NETWORKS.each_ref().map(cell)).collect()
    });
    table("The collective: tree; recursive doubling", &heading, rows)
}

fn shares(model: &Model) -> String {
    let ranks = [8, 64, 1024, 16_384];
    let names = ranks.map(|ranks| format!("{ranks} ranks"));
    let heading = [&["network", "step"], &names.each_ref().map(String::as_str)[..]].concat();
    let rows = NETWORKS.iter().flat_map(|network| {
        [1.0, 0.1, 0.01].map(|step| {
            let share = |ranks| percent(model.exposed(network, ranks) / step);
            [network.name.to_owned(), time(step)].into_iter().chain(ranks.map(share)).collect()
        })
    });
    table("Share of a step", &heading, rows)
}

fn reproducible(model: &Model) -> String {
    let ranks = 1024;
    let heading = ["parameters", "tile", "tiles", "vector", "host", "InfiniBand", "LAN TCP", "cloud TCP"];
    let rows = [8, 9, 10, 11].map(|power| {
        let elements = 10.0_f64.powi(power);
        let (tiles, host) = (tiles(elements), tiles(elements) * model.measured.join_per_tile);
        let bytes = tiles * BYTES_PER_TILE;
        assert!(bytes > SPLIT_BYTES, "a smaller vector is not split");
        let cell = |network: &Network| {
            format!("{}; {}", time(model.split(network, ranks, bytes)), time(ring(network, ranks, bytes)))
        };
        let tile = tile_elements(elements).to_string();
        let cells = [format!("10^{power}"), tile, tiles.to_string(), size(bytes), time(host)];
        cells.into_iter().chain(NETWORKS.each_ref().map(cell)).collect()
    });
    table("The reproducible mode, 1024 ranks: halving and doubling; ring", &heading, rows)
}

/// Rows for `elements` on each rank, with the efficiency relative to the first row: the time that all ranks spend for each element.
fn scaling(model: &Model, title: &str, ranks: &[usize], elements: impl Fn(usize) -> f64) -> String {
    let heading = ["ranks", "shard", "local clip", "InfiniBand", "LAN TCP", "cloud TCP"];
    let total = |network: &Network, ranks| {
        let exposed = if ranks == 1 { 0.0 } else { model.exposed(network, ranks) };
        local_clip(elements(ranks)) + exposed
    };
    let rows = ranks.iter().map(|&count| {
        let cell = |network: &Network| {
            let cost = |ranks| total(network, ranks) / elements(ranks);
            format!("{}, {}", time(total(network, count)), percent(cost(ranks[0]) / cost(count)))
        };
        let cells = [count.to_string(), size(4.0 * elements(count)), time(local_clip(elements(count)))];
        cells.into_iter().chain(NETWORKS.each_ref().map(cell)).collect()
    });
    table(title, &heading, rows)
}

fn tables() -> String {
    let model = Model { measured: Measured::of_runs() };
    let strong = "Strong scaling, 7 · 10^10 f32 gradients: time of the clip, efficiency";
    let weak = "Weak scaling, 10^9 f32 gradients for each rank: time of the clip, efficiency";
    [
        measured_runs(),
        constants(&model),
        collectives(&model),
        shares(&model),
        reproducible(&model),
        scaling(&model, strong, &RANKS[1..], |ranks| 7e10 / ranks as f64),
        scaling(&model, weak, &[1, 8, 64, 512, 1024, 4096, 16_384], |_| 1e9),
    ]
    .concat()
}

fn main() {
    print!("{}", tables());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_these_tables_and_no_others() {
        let rows = |text: &str| -> Vec<String> {
            text.lines().filter(|line| line.starts_with('|')).map(str::to_owned).collect()
        };
        let (printed, page) = (rows(&tables()), rows(include_str!("../docs/scaling.md")));
        assert!(printed.len() > 30);
        for (printed, page) in printed.iter().zip(&page) {
            assert_eq!(
                printed, page,
                "run the example scaling_model, and copy its tables to docs/scaling.md"
            );
        }
        assert_eq!(printed.len(), page.len());
    }

    #[test]
    fn the_tiles_are_those_of_a_clip() {
        for elements in [1, 1 << 23, (1 << 23) + 1, 1 << 30, (1 << 30) + 1] {
            let clip = gradclip::distributed::ShardedClip::new(&[gradclip::Clip::by_global_norm(1.0)]);
            let clip = clip.and_then(|clip| clip.reproducible(&[elements])).unwrap();
            assert_eq!(clip.tile_elements().map(|tile| tile as f64), Some(tile_elements(elements as f64)));
        }
    }

    #[test]
    fn rounds_count_the_bits_of_ranks_and_machines() {
        let counts = [1, 2, 8, 9, 16, 17, 1024, 16_384].map(rounds);
        assert_eq!(counts, [(0, 0), (1, 0), (3, 0), (3, 1), (3, 1), (3, 2), (3, 7), (3, 11)]);
    }

    #[test]
    fn an_all_reduce_that_splits_moves_each_byte_twice() {
        assert_eq!(moved(1, 100.0), 0.0);
        assert_eq!(moved(2, 100.0), 100.0);
        assert_eq!(moved(4, 100.0), 150.0);
    }

    #[test]
    fn the_constants_of_the_h100_are_those_of_its_run() {
        let run = include_str!("../../benches/results/nvidia-h100-first-run.jsonl");
        let find = |operation: &str, power: i32| {
            let [operation, set] =
                [format!("\"operation\":\"{operation}\""), format!("\"set\":\"2^{power}\"")];
            let parts = [&operation, &set, "\"path\":\"gpu\"", "\"dtype\":\"f32\""];
            let line = run.lines().find(|line| parts.iter().all(|part| line.contains(*part)));
            Line(line.expect("a line of the operation and the set"))
        };
        let is_near = |value: f64, constant: f64| (value / constant - 1.0).abs() < 0.03;
        for power in [10, 12, 14, 16, 18, 20] {
            let norm = find("norm", power);
            assert!(is_near(norm.number("wall_seconds") - norm.number("seconds"), h100::ROUND_TRIP));
        }
        let clip = |power| find("clip exceeded", power).number("seconds");
        assert!(is_near(clip(10), h100::SHORTEST_CLIP));
        assert!(is_near(3.0 * 2.0_f64.powi(30) / clip(28), h100::BANDWIDTH));
    }
}
