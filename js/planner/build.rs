//! Options of the linker.

fn main() {
    // Numbers in the code take no more bytes than they need.
    println!("cargo::rustc-link-arg-cdylib=--compress-relocations");
}
