//! Turns a compiled wasm module into an ES module: what `wasm-bindgen --target web` does, without the crates that its
//! command line and its test runner need. `cargo install wasm-bindgen-cli` takes several times as long.

use std::env;

use anyhow::{Context, Result};
use wasm_bindgen_cli_support::Bindgen;

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [wasm, out_dir] = &arguments[..] else {
        anyhow::bail!("usage: gradclip-bindgen MODULE.wasm OUT_DIR");
    };
    Bindgen::new()
        .input_path(wasm)
        .web(true)?
        .typescript(true)
        // `init()` finds the wasm beside the module.
        .omit_default_module_path(false)
        .remove_name_section(true)
        .remove_producers_section(true)
        .generate(out_dir)
        .with_context(|| format!("{wasm} cannot be bound"))
}
