//! The files that js/planner/minify-shaders.js writes for the planner of the npm package.

use std::fs;
use std::process::Command;

use super::compilers::{for_each, is_installed, most, nameless_spirv, tint_accepts};
use super::*;

/// The kernels differ only in names, and Tint accepts the short ones, too.
#[test]
fn minified_kernels_are_the_same_programs() {
    let tool = concat!(env!("CARGO_MANIFEST_DIR"), "/js/planner/minify-shaders.js");
    // The published crate comes without the npm package.
    if !fs::exists(tool).unwrap() || !is_installed("node") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    assert!(Command::new("node").arg(tool).arg(folder.path()).status().unwrap().success());
    let minified = |path: &str| fs::read_to_string(folder.path().join(path).with_extension("wgsl")).unwrap();
    for_each(most(), |kernel| {
        let source = kernel.source(Dialect::WebGpu);
        let mut short = source.clone();
        for snippet in kernel.snippets() {
            short = short.replace(snippet.text, &minified(snippet.path));
        }
        assert!(short.len() < source.len() * 2 / 3, "{kernel:?}");
        assert!(nameless_spirv(kernel, &short) == nameless_spirv(kernel, &source), "{kernel:?}: {short}");
        tint_accepts(&format!("{kernel:?}"), &short);
    });
}
