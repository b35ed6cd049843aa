//! The WGSL files, and how a kernel is put together from them.
//!
//! Every file opens with comments, among them lines that state its interface:
//!
//! - `provides:` the names that it declares for others, for readers and tests;
//! - `requires:` the snippets whose names it uses;
//! - `binds:` the buffers that it uses;
//! - `constants:` the constants that it uses.
//!
//! An entry is one line, except that `provides:` may continue on indented lines.
//!
//! A required snippet is `lib/<name>.wgsl`, or the file that the kernel chooses in the folder `<name>/`: all files of a folder
//! provide the same names. `stage` is the stage itself, which provides what a `maps/` file calls. `slots` are generated
//! (`slots.rs`), and so are `banks`, unless the kernel chooses a file. WGSL allows any order of declarations, so there is no other rule.

use std::str::SplitTerminator;

/// A WGSL file of `shaders/`.
#[derive(Debug)]
pub(super) struct Snippet {
    /// The path in `shaders/`, without the extension.
    pub(super) path: &'static str,
    pub(super) text: &'static str,
}

// A page downloads a module for wasm, so its texts have no comments.
#[cfg(target_family = "wasm")]
use super::compact::compact_str as text_of;
#[cfg(not(target_family = "wasm"))]
use std::include_str as text_of;

#[cfg(not(gradclip_planner))]
macro_rules! folder {
    () => {
        "../../shaders"
    };
}
// scripts/web builds the planner of the npm package with the files that js/planner/minify-shaders.js has written.
#[cfg(gradclip_planner)]
macro_rules! folder {
    () => {
        env!("GRADCLIP_SHADERS")
    };
}

macro_rules! snippet {
    ($path:literal) => {
        Snippet { path: $path, text: text_of!(concat!(folder!(), "/", $path, ".wgsl")) }
    };
}

macro_rules! snippets {
    ($($path:literal)+) => {
        &[$(snippet!($path)),+]
    };
}

/// The code of a producer, which is part of no kernel. It is not in the table, so a program without producers does not contain it.
pub(super) static PRODUCER: Snippet = snippet!("lib/producer");

pub(super) static SNIPPETS: &[Snippet] = snippets! {
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
    "lib/conclude" "lib/step_counts" "lib/loss_scale" "lib/accumulate"
    "lib/tile_partial" "lib/finalize" "lib/scale" "banks/workgroup"
};

impl Snippet {
    pub(super) fn at(path: &str) -> &'static Self {
        SNIPPETS.iter().find(|snippet| snippet.path == path).expect("tests resolve every kernel")
    }

    fn in_lib(name: &str) -> Option<&'static Self> {
        SNIPPETS.iter().find(|snippet| snippet.path.strip_prefix("lib/") == Some(name))
    }

    /// The snippets that it requires.
    pub(super) fn requires(&self) -> Names {
        self.entry("// requires: ")
    }

    /// The buffers that it binds.
    pub(super) fn binds(&self) -> Names {
        self.entry("// binds: ")
    }

    /// The constants that it uses.
    pub(super) fn constants(&self) -> Names {
        self.entry("// constants: ")
    }

    /// The names in one entry of the header.
    fn entry(&self, key: &str) -> Names {
        let mut header = self.text.lines().take_while(|line| line.starts_with("//"));
        let names = header.find_map(|line| line.strip_prefix(key));
        names.unwrap_or_default().split_terminator(", ")
    }
}

type Names = SplitTerminator<'static, &'static str>;

/// The names in one entry of the headers of several snippets.
pub(super) fn names(snippets: &[&Snippet], entry: fn(&Snippet) -> Names) -> Vec<&'static str> {
    snippets.iter().flat_map(|snippet| entry(snippet)).collect()
}

/// Returns a snippet and all those that it requires, directly or not. `chosen` returns the file that a kernel chooses in a folder
/// of alternatives.
pub(super) fn resolve(
    first: &'static Snippet,
    chosen: impl Fn(&str) -> Option<&'static str>,
) -> Vec<&'static Snippet> {
    let mut resolved = vec![first];
    let mut next = 0;
    while let Some(snippet) = resolved.get(next) {
        for name in snippet.requires() {
            // `stage` and `slots` have no file to add, and `banks` may have none.
            let Some(required) = chosen(name).map(Snippet::at).or_else(|| Snippet::in_lib(name)) else {
                continue;
            };
            if !resolved.iter().any(|known| known.path == required.path) {
                resolved.push(required);
            }
        }
        next += 1;
    }
    resolved
}
