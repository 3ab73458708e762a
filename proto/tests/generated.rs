//! The generated code in `src/gen` is checked in, so that building Hearth needs no `protoc`.
//! To refresh it after a change of a `.proto` file: `HEARTH_REGENERATE=1 cargo test -p hearth-proto --test generated`.

use std::path::Path;

use anyhow::{Context, Result, ensure};

const FILES: [&str; 2] = ["hearth.v1.rs", "hearth.v1.bin"];

#[test]
fn generated_code_is_what_the_proto_files_say() -> Result<()> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let protos =
        ["builds", "contexts", "images", "packs", "secrets", "services", "storage", "system", "types"]
            .map(|name| package.join(format!("hearth/v1/{name}.proto")));
    let made = tempfile::tempdir()?;
    tonic_prost_build::configure()
        .out_dir(made.path())
        .file_descriptor_set_path(made.path().join("hearth.v1.bin"))
        .btree_map(".")
        .bytes(".")
        .compile_protos(&protos, &[package.to_path_buf()])
        .context("protoc failed; deploy/setup.sh installs it")?;
    let kept = package.join("src/gen");
    if std::env::var_os("HEARTH_REGENERATE").is_some() {
        for file in FILES {
            std::fs::copy(made.path().join(file), kept.join(file))?;
        }
    }
    for file in FILES {
        let same = std::fs::read(made.path().join(file))? == std::fs::read(kept.join(file))?;
        ensure!(
            same,
            "src/gen/{file} is stale: run HEARTH_REGENERATE=1 cargo test -p hearth-proto --test generated"
        );
    }
    Ok(())
}
