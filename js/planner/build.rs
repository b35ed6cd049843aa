//! Options of the linker.

fn main() {
    if std::env::var("CARGO_CFG_TARGET_FAMILY").is_ok_and(|family| family == "wasm") {
        // Numbers in the code take no more bytes than they need.
        println!("cargo::rustc-link-arg-cdylib=--compress-relocations");
    }
}
