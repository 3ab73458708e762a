//! `hearth images load`: sends an image archive, decompressed and as an OCI archive.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use hearth_pack::archive::{copy_as_oci_archive, is_compressed};
use hearth_proto::value::Reference;

use super::super::views::LoadView;
use super::super::{GlobalArgs, connect};
use crate::client::{ArchiveDestination, ArchiveSource};
use crate::error::Failure;
use crate::output;
use crate::progress::TransferMeter;

pub(super) async fn run(file: &Path, tag: &str, globals: &GlobalArgs) -> Result<(), Failure> {
    let tag = Reference::parse_tag(tag).map_err(|error| Failure::usage(error.to_string()))?.to_string();
    let archive = open(file)?;
    let meter = TransferMeter::new("sending", plain_size(&archive));
    let counted = meter.clone();
    let source: ArchiveSource = Box::new(move |out| {
        copy_as_oci_archive(archive, &mut counted.metered(out)).map_err(io::Error::other)
    });
    let client = connect(globals).await?;
    let destination = ArchiveDestination { tag: Some(tag), room_path: None };
    let loaded = meter.during(Box::pin(client.load_image(destination, source))).await?;
    if globals.json {
        return output::json(&LoadView::from(&loaded));
    }
    if let Some(image) = &loaded.image {
        let reused = output::size(loaded.reused_bytes);
        output::note(&format!(
            "loaded {} ({}, {reused} of it already in the room)",
            image.reference,
            output::size(loaded.size_bytes)
        ));
    }
    output::line(&loaded.digest)
}

/// Returns the size of an archive that is sent as it is; 0 for a pipe and for a compressed one, whose size is not known.
fn plain_size(archive: &File) -> u64 {
    match is_compressed(archive) {
        Ok(false) => archive.metadata().map_or(0, |metadata| metadata.len()),
        Ok(true) | Err(_) => 0,
    }
}

/// Opens the archive before the client connects, so that a wrong path is a usage error.
fn open(file: &Path) -> Result<File, Failure> {
    let wrong = |error: &io::Error| Failure::usage(format!("cannot read `{}`: {error}", file.display()));
    let opened = match file == Path::new("-") {
        true => io::stdin().as_fd().try_clone_to_owned().map(File::from),
        false => File::open(file),
    };
    let opened = opened.map_err(|error| wrong(&error))?;
    if opened.metadata().map_err(|error| wrong(&error))?.is_dir() {
        return Err(Failure::usage(format!("`{}` is a directory, not an archive", file.display()))
            .hint(format!("`hearth pack {} --tag TAG` packs and sends it", file.display())));
    }
    Ok(opened)
}
