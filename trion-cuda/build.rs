//! Compresses the PTX, text of which a fifth is left: it goes into every program that can use a GPU.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use miniz_oxide::deflate::compress_to_vec_zlib;

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=ptx");
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    for set in ["sm_61", "sm_90"] {
        fs::create_dir_all(out.join(set))?;
        for entry in fs::read_dir(Path::new("ptx").join(set))? {
            let entry = entry?;
            let compressed = compress_to_vec_zlib(&fs::read(entry.path())?, 9);
            fs::write(out.join(set).join(entry.file_name()), compressed)?;
        }
    }
    Ok(())
}
