//! `hearth pack --run`: the room runs commands on the packed files and their base.

use hearth_proto::v1::TreeImage;
use hearth_proto::value::BuildCompression;

use super::{CompressionArg, PackArgs, config_flags, send};
use crate::cli::build::{BuildArgs, LocalFiles};
use crate::error::Failure;

/// Returns the build that makes the image: its files are sent for it only.
pub(super) fn build_args(args: &PackArgs) -> Result<BuildArgs, Failure> {
    let base = args.base.clone().unwrap_or_default();
    if base.starts_with("oci-archive:") {
        return Err(Failure::usage("--run needs a base that the room can fetch, and a file is only here")
            .hint("send the file first: hearth images load FILE --tag NAME"));
    }
    let tag = args.tag.clone().unwrap_or_default();
    let compression = match args.compression {
        CompressionArg::Zstd => BuildCompression::Zstd,
        CompressionArg::Gzip => BuildCompression::Gzip,
        CompressionArg::None => BuildCompression::None,
    };
    let config = Some(send::wire_config(&config_flags(args)?));
    let image = TreeImage { base, commands: args.run.clone(), config };
    let files = LocalFiles::Directory(args.path.display().to_string());
    Ok(BuildArgs::from_tree(&tag, &files, image, compression).with_credentials(args.registries.credentials()))
}
