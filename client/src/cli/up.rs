//! `hearth up`

use std::path::Path;

use clap::Args;

use super::GlobalArgs;
use super::build::{LocalFiles, is_stage_name};
use super::deploy::{self, DeploySettings, DeployedImage};
use crate::error::Failure;
use crate::interrupt::InterruptListener;

/// Build a directory and run it as a service of the room
///
/// The same as `hearth deploy --pack PATH`, with an image that is named after the directory and less to read: on a
/// terminal, steps show while they run and when they fail. Standard output receives name, revision and digest of the
/// service, and the URLs of its domains.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth up ./my-app --domain my-app.example.com --public
  hearth up --port 8000 --env APP_ENV=dev
      The current directory")]
pub(super) struct UpArgs {
    /// Directory to send, build and run [default: the current directory]
    #[arg(value_name = "PATH")]
    path: Option<String>,
    /// Name of the image, in the room's registry [default: the name of the directory]
    #[arg(long, short, allow_hyphen_values = true)]
    tag: Option<String>,
    #[command(flatten)]
    settings: DeploySettings,
}

pub(super) async fn run(
    args: UpArgs,
    globals: &GlobalArgs,
    interrupts: &mut InterruptListener,
) -> Result<(), Failure> {
    let UpArgs { path, tag, mut settings } = args;
    settings.waiting.brief = true;
    let path = path.or_else(|| settings.build_options.take_path(|word| !is_stage_name(word)));
    let path = path.unwrap_or_else(|| ".".to_owned());
    let tag = match tag {
        Some(tag) => tag,
        None => directory_tag(Path::new(&path))?,
    };
    let image = DeployedImage { tag, built_from: Some(LocalFiles::Directory(path)) };
    Box::pin(deploy::deploy(&image, settings, false, globals, interrupts)).await
}

/// Returns the name of the directory as the name of a repository.
fn directory_tag(path: &Path) -> Result<String, Failure> {
    let full = std::fs::canonicalize(path)
        .map_err(|error| Failure::usage(format!("cannot read `{}`: {error}", path.display())))?;
    let name = full.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let words = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let tag = words.collect::<Vec<_>>().join("-");
    if tag.is_empty() {
        let message = format!("the directory `{}` has no name for an image", full.display());
        return Err(Failure::usage(message).hint("give one with --tag, such as --tag my-app"));
    }
    Ok(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_the_name_of_its_directory() {
        let parent = tempfile::tempdir().unwrap();
        for (name, tag) in [("my-app", "my-app"), ("My App_2.0", "my-app-2-0"), ("-x-", "x")] {
            let path = parent.path().join(name);
            std::fs::create_dir(&path).unwrap();
            assert_eq!(directory_tag(&path).unwrap(), tag);
            hearth_proto::value::Reference::parse_tag(tag).unwrap();
            assert_eq!(directory_tag(&path.join("../").join(name)).unwrap(), tag);
        }
        let unnamed = parent.path().join("äö");
        std::fs::create_dir(&unnamed).unwrap();
        for path in [&unnamed, Path::new("/"), &parent.path().join("none")] {
            assert_eq!(directory_tag(path).unwrap_err().kind, crate::error::FailureKind::Usage);
        }
    }
}
