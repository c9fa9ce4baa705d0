//! Reads the model at build time, as firmware does.

use std::path::Path;

#[path = "../../examples/bare-metal/embed.rs"]
mod embed;

fn main() {
    for argument in ["-nostdlib", "-nostartfiles", "-static", "-no-pie", "-Wl,--no-undefined", "-Wl,-z,noexecstack"] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
    embed::embed(Path::new("../golden/bitnet_offline"));
}
