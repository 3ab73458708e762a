//! `hearth images`

mod attestations;
mod load;
mod save;
mod transfer;

use std::path::PathBuf;

use clap::Subcommand;
use hearth_proto::value::Reference;
use jiff::Timestamp;

use super::changes::change_each;
use super::registry::CredentialArgs;
use super::views::{CachedImageView, ImageView, InspectView};
use super::{GlobalArgs, complete, connect};
use crate::error::Failure;
use crate::output;

#[derive(Debug, Subcommand)]
pub(super) enum ImagesCommand {
    /// Show the tagged images
    #[command(visible_alias = "ls")]
    List {
        /// Show only this repository
        repository: Option<String>,
        /// Show the images of other registries that builds and deploys fetched and the room keeps for later ones
        #[arg(long, conflicts_with = "repository")]
        cached: bool,
    },
    /// Show an image's manifest, config and layers
    Inspect {
        /// Image of the room
        #[arg(add = complete::images())]
        image: String,
    },
    /// Print what went into an image: files, base images and downloads by digest, as SLSA provenance
    Provenance {
        /// Image of the room
        #[arg(add = complete::images())]
        image: String,
    },
    /// Print the packages in an image as an SPDX document, if one is attached
    Sbom {
        /// Image of the room
        #[arg(add = complete::images())]
        image: String,
    },
    /// Add a tag to an image, or move a tag to it
    #[command(after_help = "Example:\n  hearth images tag my-app:dev my-app:stable")]
    Tag {
        /// Image of the room
        #[arg(add = complete::images())]
        image: String,
        /// Tag to add or to move
        #[arg(value_name = "NEW_TAG")]
        tag: String,
    },
    /// Remove tags; content that nothing else uses is freed later
    Rm {
        /// Tags to remove
        #[arg(required = true, add = complete::images())]
        images: Vec<String>,
    },
    /// Write an image of the room to an OCI archive
    ///
    /// The same image gives the same bytes; loading the archive gives the same digest. An index is saved
    /// with every manifest that it lists.
    #[command(after_help = "Example:\n  hearth images save my-app:dev -o my-app.oci.tar")]
    Save {
        /// Image of the room
        #[arg(add = complete::images())]
        image: String,
        /// OCI archive to write, `-` for standard output
        #[arg(long, short, value_name = "FILE")]
        output: PathBuf,
    },
    /// Send an image of the room to another registry
    ///
    /// Without TARGET, IMAGE is the name there, and the room's image of the same repository and tag is sent.
    /// The daemon sends the image, with --cred or its own credentials.
    #[command(after_help = "\
Examples:
  hearth images push my-app:dev ghcr.io/me/my-app:1 --cred me,TOKEN
  hearth images push ghcr.io/me/my-app:1")]
    Push {
        /// Image of the room, or the name in the other registry
        #[arg(add = complete::images())]
        image: String,
        /// Name in the other registry
        target: Option<String>,
        #[command(flatten)]
        cred: CredentialArgs,
    },
    /// Copy an image of another registry into the room
    #[command(after_help = "\
Examples:
  hearth images pull python:3.13
  hearth images pull ghcr.io/me/app:1 --tag app:1 --cred me,TOKEN")]
    Pull {
        /// Image of another registry
        image: String,
        /// Tag in the room [default: the image's own repository and tag]
        #[arg(long, short)]
        tag: Option<String>,
        /// Architecture, such as `arm64` or `arm/v7` [default: the daemon's own]
        #[arg(long, conflicts_with = "all_platforms")]
        arch: Option<String>,
        /// Copy all platforms, and the index that lists them
        #[arg(long)]
        all_platforms: bool,
        #[command(flatten)]
        cred: CredentialArgs,
    },
    /// Load an image archive into the room
    ///
    /// The archive is an OCI archive or one of `docker save`, with one image; it may be compressed with gzip
    /// or zstd.
    #[command(after_help = "\
Examples:
  hearth images load my-app.oci.tar --tag my-app:dev
  docker save my-app:dev | hearth images load - --tag my-app:dev
  skopeo copy docker://busybox oci-archive:/dev/stdout | hearth images load - --tag busybox:1")]
    Load {
        /// Image archive, `-` for standard input
        file: PathBuf,
        /// Tag in the room
        #[arg(long, short)]
        tag: String,
    },
}

pub(super) async fn run(command: ImagesCommand, globals: &GlobalArgs) -> Result<(), Failure> {
    match command {
        ImagesCommand::List { cached: true, .. } => list_cached(globals).await,
        ImagesCommand::List { repository, .. } => list(repository.as_deref(), globals).await,
        ImagesCommand::Inspect { image } => inspect(&image, globals).await,
        ImagesCommand::Provenance { image } => {
            attestations::print(&reference(&image)?, &attestations::PROVENANCE, globals).await
        }
        ImagesCommand::Sbom { image } => {
            attestations::print(&reference(&image)?, &attestations::PACKAGES, globals).await
        }
        ImagesCommand::Tag { image, tag } => {
            let image = reference(&image)?.to_string();
            let tag =
                Reference::parse_tag(&tag).map_err(|error| Failure::usage(error.to_string()))?.to_string();
            let image = connect(globals).await?.tag_image(&image, &tag).await?;
            if globals.json {
                return output::json(&ImageView::from(&image));
            }
            output::note(&format!("{} now names", image.reference));
            output::line(&image.digest)
        }
        ImagesCommand::Rm { images } => {
            let images = images.iter().map(|image| reference(image)).collect::<Result<Vec<_>, _>>()?;
            let client = connect(globals).await?;
            change_each("removed", &images, globals, async |image| {
                client.remove_image(&image.to_string()).await?;
                Ok((image.to_string(), format!("removed {image}")))
            })
            .await
        }
        ImagesCommand::Load { file, tag } => load::run(&file, &tag, globals).await,
        ImagesCommand::Save { image, output } => {
            Box::pin(save::run(&reference(&image)?, &output, globals)).await
        }
        ImagesCommand::Push { image, target, cred } => {
            transfer::push(&image, target.as_deref(), &cred, globals).await
        }
        ImagesCommand::Pull { image, tag, arch, all_platforms, cred } => {
            let wanted = transfer::PullOptions { tag, arch, all_platforms };
            transfer::pull(&image, wanted, &cred, globals).await
        }
    }
}

fn reference(text: &str) -> Result<Reference, Failure> {
    text.parse().map_err(|error: hearth_proto::value::ReferenceError| Failure::usage(error.to_string()))
}

async fn list(repository: Option<&str>, globals: &GlobalArgs) -> Result<(), Failure> {
    let images = connect(globals).await?.list_images(repository.unwrap_or_default()).await?;
    if globals.json {
        return output::json(&images.iter().map(ImageView::from).collect::<Vec<_>>());
    }
    let now = Timestamp::now();
    let mut columns = vec!["REPOSITORY", "TAG", "DIGEST", "SIZE", "UPDATED"];
    let is_any_unusable = images.iter().any(|image| !image.unusable.is_empty());
    columns.extend(is_any_unusable.then_some("UNUSABLE"));
    let row = |image: &hearth_proto::v1::Image| {
        let mut row = vec![
            image.repository.clone(),
            image.tag.clone(),
            short(&image.digest),
            output::size(image.size_bytes),
            output::age(image.updated_at.as_ref(), now),
        ];
        row.extend(is_any_unusable.then(|| image.unusable.clone()));
        row
    };
    output::table(&columns, &images.iter().map(row).collect::<Vec<_>>())
}

async fn list_cached(globals: &GlobalArgs) -> Result<(), Failure> {
    let images = connect(globals).await?.list_cached_images().await?;
    if globals.json {
        return output::json(&images.iter().map(CachedImageView::from).collect::<Vec<_>>());
    }
    let now = Timestamp::now();
    let row = |image: &hearth_proto::v1::CachedImage| {
        vec![
            image.name.clone(),
            image.platform.clone(),
            short(&image.digest),
            output::size(image.size_bytes),
            output::age(image.last_used_at.as_ref(), now),
        ]
    };
    output::table(
        &["NAME", "PLATFORM", "DIGEST", "SIZE", "LAST USED"],
        &images.iter().map(row).collect::<Vec<_>>(),
    )
}

/// Shortens a digest to its algorithm and 12 hexadecimal digits, for tables.
fn short(digest: &str) -> String {
    digest.chars().take("sha256:".len() + 12).collect()
}

async fn inspect(image: &str, globals: &GlobalArgs) -> Result<(), Failure> {
    let image = reference(image)?;
    let found = connect(globals).await?.inspect_image(&image.to_string()).await?;
    let view = InspectView::new(&found);
    if globals.json {
        return output::json(&view);
    }
    output::line(&view.to_text())
}
