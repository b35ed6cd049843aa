//! The WGSL files, and how a kernel is put together from them.
//!
//! Every file opens with comments, among them lines that state its interface:
//!
//! - `provides:` the names that it declares for others;
//! - `requires:` the snippets whose names it uses;
//! - `binds:` the buffers that it uses;
//! - `constants:` the constants that it uses.
//!
//! A required snippet is `lib/<name>.wgsl`, or the file that the kernel chooses in the folder `<name>/`: all files of a folder
//! provide the same names. `stage` is the stage itself, which provides what a `maps/` file calls. `slots` are generated
//! (`slots.rs`), and so are `banks`, unless the kernel chooses a file. WGSL allows any order of declarations, so there is no other rule.

use std::sync::LazyLock;

/// A WGSL file of `shaders/`, with its interface.
#[derive(Debug)]
pub(super) struct Snippet {
    /// The path in `shaders/`, without the extension.
    pub(super) path: &'static str,
    pub(super) text: &'static str,
    #[cfg_attr(not(test), expect(dead_code, reason = "for readers, and for the tests of the interfaces"))]
    pub(super) provides: Vec<&'static str>,
    pub(super) requires: Vec<&'static str>,
    pub(super) binds: Vec<&'static str>,
    pub(super) constants: Vec<&'static str>,
}

// A page downloads the module that plans for it, so that there the texts have no comments.
#[cfg(target_family = "wasm")]
use super::compact::compact_str as text_of;
#[cfg(not(target_family = "wasm"))]
use std::include_str as text_of;

macro_rules! snippets {
    ($($path:literal)+) => {
        [$(($path, text_of!(concat!("../../shaders/", $path, ".wgsl")))),+]
    };
}

pub(super) static SNIPPETS: LazyLock<Vec<Snippet>> = LazyLock::new(|| {
    const TEXTS: &[(&str, &str)] = &snippets! {
        "stages/partials" "stages/partials_power" "stages/finalize" "stages/finalize_power"
        "stages/supplied_norm" "stages/agc" "stages/z_clip" "stages/auto_clip" "stages/conclude"
        "stages/norms_and_factors"
        "stages/partials_columns" "stages/partials_columns_power" "stages/scale_columns"
        "stages/scale" "stages/clamp" "stages/unscale_clamp" "stages/small_clip"
        "norms/l1" "norms/l2" "norms/inf" "norms/power"
        "elements/f32" "elements/f16" "elements/bf16"
        "partials/plain" "partials/counted" "partials/power"
        "loads/aligned" "loads/unaligned"
        "maps/aligned" "maps/unaligned_words" "maps/unaligned_halves"
        "column_maps/aligned" "column_maps/unaligned_words" "column_maps/unaligned_halves"
        "outputs/record" "outputs/record_and_factor" "outputs/record_and_state" "outputs/tensor_stats"
        "lib/workgroup" "lib/tile" "lib/column_tile" "lib/reduce" "lib/counts"
        "lib/float_bits" "lib/extended" "lib/correctly_rounded" "lib/ieee_product" "lib/clamp_bits"
        "lib/segment" "lib/new_record" "lib/clip_coef" "lib/clip_record" "lib/tensor_stats"
        "lib/conclude" "lib/step_counts" "lib/loss_scale" "lib/accumulate" "lib/producer"
        "lib/tile_partial" "lib/finalize" "lib/scale" "banks/workgroup"
    };
    TEXTS.iter().map(|&(path, text)| Snippet::parse(path, text)).collect()
});

impl Snippet {
    pub(super) fn parse(path: &'static str, text: &'static str) -> Self {
        let [provides, requires, binds, constants] =
            ["provides:", "requires:", "binds:", "constants:"].map(|key| header(text, key));
        Self { path, text, provides, requires, binds, constants }
    }

    fn at(path: &str) -> Option<&'static Self> {
        SNIPPETS.iter().find(|snippet| snippet.path == path)
    }

    fn in_lib(name: &str) -> Option<&'static Self> {
        SNIPPETS.iter().find(|snippet| snippet.path.strip_prefix("lib/") == Some(name))
    }
}

/// The names in one entry of a header. An entry may continue on indented lines.
fn header(text: &'static str, key: &str) -> Vec<&'static str> {
    let mut lines = text.lines().map_while(|line| line.strip_prefix("//"));
    let Some(first) = lines.find_map(|line| line.trim_start().strip_prefix(key)) else { return Vec::new() };
    let more = lines.take_while(|line| line.starts_with("   "));
    let names = std::iter::once(first).chain(more).flat_map(|line| line.split(','));
    names.map(str::trim).filter(|name| !name.is_empty()).collect()
}

/// Returns the stage and all the snippets that it requires, directly or not. `choices` has one file for each folder of
/// alternatives.
pub(super) fn resolve(stage: &str, choices: &[&str]) -> Vec<&'static Snippet> {
    let mut resolved: Vec<_> = Snippet::at(stage).into_iter().collect();
    let mut next = 0;
    while let Some(snippet) = resolved.get(next) {
        for &name in &snippet.requires {
            let chosen =
                choices.iter().find(|path| path.split_once('/').is_some_and(|(folder, _)| folder == name));
            let required = chosen.map_or_else(|| Snippet::in_lib(name), |path| Snippet::at(path));
            // `stage` and `slots` have no file to add, and `banks` may have none.
            let Some(required) = required else { continue };
            if !resolved.iter().any(|known| known.path == required.path) {
                resolved.push(required);
            }
        }
        next += 1;
    }
    resolved
}
