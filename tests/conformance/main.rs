//! One table of cases, and every path through it: the CPU path, and the GPU path on every adapter, with every
//! configuration of the device, in every layout of the buffers. A trial is one case on one path.

mod cases;
#[path = "../common/mod.rs"]
mod common;
mod golden;
mod peers;
mod relative;
mod verdict;
mod ways;

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use gradclip::{Clip, ClipRecord, wgpu};
use libtest_mimic::{Arguments, Trial};

use cases::{Case, Expect};
use common::clip::{Outcome, clip_groups_on_cpu};
use common::gpu::{Gpu, adapters, least_limits};
use common::numbers::{bits, rounded};
use common::placement::{Extent, Placement};
use common::role::Role;
use verdict::{Precision, Step};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let cases: Vec<_> = cases::all().into_iter().map(Arc::new).collect();
    let mut names = HashSet::new();
    for case in &cases {
        assert!(names.insert(&case.name), "two cases are named {}", case.name);
    }
    let trial = |path: &Arc<Path>, case: &Arc<Case>| {
        let (path, case) = (path.clone(), case.clone());
        Trial::test(format!("{}/{}", path.name, case.name), move || {
            run(&path, &case);
            Ok(())
        })
    };
    let trials = paths().iter().flat_map(|path| cases.iter().map(|case| trial(path, case))).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// One way to clip.
struct Path {
    name: String,
    means: Means,
}

enum Means {
    Cpu,
    Gpu { gpu: Arc<Gpu>, layout: Layout, agreement: Arc<Agreement> },
}

type Layout = fn(&[Extent]) -> Placement;

fn paths() -> Vec<Arc<Path>> {
    let layouts: [(_, Layout); 3] =
        [("separate", Placement::separate), ("arena", Placement::arena), ("packed", Placement::packed)];
    let mut paths = vec![Path { name: "cpu".into(), means: Means::Cpu }];
    for adapter in adapters() {
        let agreement = Arc::<Agreement>::default();
        let configurations =
            [("default", wgpu::Limits::default()), ("full", adapter.limits()), ("least", least_limits())];
        for (configuration, limits) in configurations {
            let gpu = Arc::new(Gpu::open(&adapter, limits));
            for (name, layout) in layouts {
                paths.push(Path {
                    name: format!("{}/{configuration}/{name}", short_name(&adapter.get_info())),
                    means: Means::Gpu { gpu: gpu.clone(), layout, agreement: agreement.clone() },
                });
            }
        }
    }
    paths.into_iter().map(Arc::new).collect()
}

/// `llvmpipe-vulkan` for "llvmpipe (LLVM 15.0.6, 256 bits)" on Vulkan.
fn short_name(info: &wgpu::AdapterInfo) -> String {
    let name = info.name.split(" (").next().unwrap_or_default().replace(' ', "-");
    format!("{name}-{}", info.backend).to_lowercase()
}

impl Path {
    fn precision(&self) -> &'static Precision {
        match self.means {
            Means::Cpu => &verdict::CPU,
            Means::Gpu { .. } => &verdict::GPU,
        }
    }

    fn clip(&self, gradients: &[Vec<f32>], roles: &[Role], clips: &[Clip]) -> Outcome {
        match &self.means {
            Means::Cpu => clip_groups_on_cpu(gradients, roles, clips),
            Means::Gpu { gpu, layout, .. } => {
                let extents =
                    roles.iter().zip(gradients).map(|(role, gradient)| (role.dtype, gradient.len()));
                gpu.clip_groups(&layout(&extents.collect::<Vec<_>>()), gradients, roles, clips)
            }
        }
    }
}

/// What each clip came to on one adapter: the same bits, however its device is configured and the gradients lie.
#[derive(Default)]
struct Agreement(Mutex<HashMap<String, (String, u64)>>);

impl Agreement {
    fn check(&self, path: &Path, clip: String, records: &[ClipRecord], after: &[Vec<f32>]) {
        let mut hasher = DefaultHasher::new();
        bytemuck::cast_slice::<_, u8>(records).hash(&mut hasher);
        bits(after).hash(&mut hasher);
        let hash = hasher.finish();
        let (first, expected) = {
            let mut outcomes = self.0.lock().expect("no trial panics while it holds this");
            outcomes.entry(clip).or_insert_with(|| (path.name.clone(), hash)).clone()
        };
        assert_eq!(hash, expected, "the bits differ from those of {first}: {records:?}");
    }
}

fn run(path: &Path, case: &Case) {
    let mut before = (case.gradients)();
    let roles: Vec<_> = (0..before.len()).map(|gradient| case.role(gradient)).collect();
    for (gradient, role) in before.iter_mut().zip(&roles) {
        for g in gradient {
            *g = rounded(role.dtype, *g);
        }
    }
    for options in &case.clips {
        let Outcome { records, gradients: after } = path.clip(&before, &roles, &options.clips());
        match (records, &case.expect) {
            (Err(error), Expect::Error(expected)) => {
                // As text: NaN is not equal to itself.
                assert_eq!(format!("{error:?}"), format!("{expected:?}"));
                assert_eq!(bits(&after), bits(&before));
            }
            (Ok(records), Expect::Error(expected)) => {
                panic!("{records:?}, but expected was {expected:?}")
            }
            (Err(error), _) => panic!("{error}"),
            (Ok(records), expect) => {
                let step = Step { before: &before, roles: &roles, options, records: &records, after: &after };
                path.precision().check(&step);
                path.precision().compare(&step, expect);
                if let Means::Gpu { agreement, .. } = &path.means {
                    agreement.check(path, format!("{} {options:?}", case.name), &records, &after);
                }
                before = after;
            }
        }
    }
}
