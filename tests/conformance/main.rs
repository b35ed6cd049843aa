//! A table of cases, run on every path: the CPU path, and the GPU path on every adapter, with several sets of limits
//! and every layout of the buffers. A trial is one case on one path.

mod case;
mod cases;
#[path = "../common/mod.rs"]
mod common;
mod js_host;
mod paths;
mod reference_check;

use std::collections::HashSet;
use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};

use case::{Case, Expect};
use common::numbers::{bits, rounded};
use paths::Path;
use reference_check::Step;

/// Combinations of limits and layout without which each of them still runs, for `scripts/test` without `--all`.
const LEFT_OUT: [&str; 4] = ["/full/arena", "/full/packed", "/least/separate", "/least/arena"];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let cases: Vec<_> = cases::all().into_iter().map(Arc::new).collect();
    let mut names = HashSet::new();
    for case in &cases {
        assert!(names.insert(&case.name), "two cases have the name {}", case.name);
    }
    let trial = |path: &Arc<Path>, case: &Arc<Case>| {
        let (path, case) = (path.clone(), case.clone());
        Trial::test(format!("{}/{}", path.name, case.name), move || {
            run(&path, &case);
            Ok(())
        })
    };
    let mut paths = paths::all();
    if std::env::var_os("GRADCLIP_FEWER_PATHS").is_some() {
        paths.retain(|path| !LEFT_OUT.iter().any(|combination| path.name.ends_with(combination)));
    }
    let trials = paths.iter().flat_map(|path| cases.iter().map(|case| trial(path, case))).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
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
        let (records, after) = path.clip(&before, &roles, options);
        match (records, &case.expect) {
            (Err(failure), Expect::Error(expected)) => {
                failure.check(expected);
                assert_eq!(bits(&after), bits(&before));
            }
            (Ok(records), Expect::Error(expected)) => {
                panic!("{records:?}, but the case expects {expected:?}")
            }
            (Err(failure), _) => panic!("{failure}"),
            (Ok(records), expect) => {
                let step = Step { before: &before, roles: &roles, options, records: &records, after: &after };
                path.precision.check(&step);
                path.precision.compare(&step, expect);
                path.check_agreement(format!("{} {options:?}", case.name), &records, &after);
                before = after;
            }
        }
    }
}
