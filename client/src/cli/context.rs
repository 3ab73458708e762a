//! `hearth context`

use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use hearth_pack::walk::WalkOptions;
use hearth_proto::v1::begin_pack_request::Destination;
use hearth_proto::v1::diff_context_request::Left;
use hearth_proto::v1::mount::Source;
use hearth_proto::v1::{
    ContextEntry, ContextMount, ContextSources, DiffContextRequest, Difference, FileKind, ListContextRequest,
    Mount, MountContextRequest, ReadContextRequest, UnmountContextRequest,
};
use hearth_proto::value::{BuildMount, BuildMountKind, BuildMountSource, MountTarget, check_distinct};
use serde::Serialize;

use super::content::ContentOutput;
use super::views::file_kind_name;
use super::{GlobalArgs, connect, pack};
use crate::client::Client;
use crate::error::Failure;
use crate::output;
use crate::progress::TransferMeter;

#[derive(Debug, Subcommand)]
pub(super) enum ContextCommand {
    /// List a directory of a context, as a build would see it
    #[command(
        visible_alias = "list",
        after_help = "\
Examples:
  hearth context ls --mount-room-path apps/my-app
  hearth context ls --mount-room-path apps/my-app --mount-image assets:2=/context/assets -r /context/assets"
    )]
    Ls {
        #[command(flatten)]
        sources: ContextSourceArgs,
        /// Include everything below the directory
        #[arg(long, short)]
        recursive: bool,
        /// Path to list: absolute inside the mounts, or relative to the context's root
        path: Option<PathBuf>,
    },
    /// Print a file of a context
    Cat {
        #[command(flatten)]
        sources: ContextSourceArgs,
        /// Path to print: absolute inside the mounts, or relative to the context's root
        path: PathBuf,
    },
    /// Print the digest of a context: equal for equal files, whatever their source
    Digest {
        #[command(flatten)]
        sources: ContextSourceArgs,
    },
    /// Show the differences between two contexts, or the changes in a mounted one
    ///
    /// Each line is a letter and a path: `A` for a file that only the second context has (or a new file),
    /// `D` for one that only the first has (or a removed file), `M` for another kind, mode or content (or a
    /// changed file).
    #[command(after_help = "\
Examples:
  hearth context diff --mount-image my-app:1 --to-image my-app:2
  hearth context diff --mount-room-path apps/my-app --to-image my-app:2,subpath=srv/app
  hearth context diff /mnt/my-app
      The changes in a context that is mounted there with --rw")]
    Diff {
        #[command(flatten)]
        sources: ContextSourceArgs,
        #[command(flatten)]
        to: CompareSourceArgs,
        /// Directory that a context is mounted on
        directory: Option<PathBuf>,
    },
    /// Mount a context on an empty directory of the daemon's machine
    ///
    /// The mount stays until it is unmounted or the daemon ends. With --rw it is writable: changes go to a
    /// directory of the daemon, the room's files never change, and mounting the same files on the same
    /// directory shows the changes again.
    #[command(after_help = "\
Examples:
  hearth context mount /mnt/my-app --mount-room-path apps/my-app
  hearth context mount /mnt/work --rw --mount-image my-app:dev --mount-room-path data:/context/data --context-path /context")]
    Mount {
        /// Mount point: absolute, or relative to the current directory
        directory: PathBuf,
        #[command(flatten)]
        sources: ContextSourceArgs,
        /// Make the mount writable
        #[arg(long)]
        rw: bool,
    },
    /// Unmount a context; its changes are kept
    Unmount {
        /// Directory of the daemon's machine
        directory: PathBuf,
        /// Unmount even when it is in use; files that are open stay usable
        #[arg(long)]
        lazy: bool,
        /// Discard the changes
        #[arg(long)]
        discard: bool,
    },
    /// List the mounted contexts and the kept changes
    Mounts,
}

/// Source flags of a context, the same as those of `hearth build`.
#[derive(Debug, Args)]
pub(super) struct ContextSourceArgs {
    /// Files of room storage, `<source>[:<mount>]`
    #[arg(long, visible_alias = "room-mount", value_name = "MOUNT", help_heading = "Files")]
    mount_room_path: Vec<String>,
    /// Files of project storage, in the same form
    #[arg(long, visible_alias = "project-mount", value_name = "MOUNT", help_heading = "Files")]
    mount_project_path: Vec<String>,
    /// Files of an image of the room, `<image>[=<mount>][,subpath=<path>]`
    #[arg(long, visible_alias = "image-mount", value_name = "MOUNT", help_heading = "Files")]
    mount_image: Vec<String>,
    /// A directory of this machine, sent to the room for this command, `<path>[:<mount>]`
    #[arg(long, value_name = "PATH", help_heading = "Files")]
    pack: Option<String>,
    /// Directory inside the mounts that is the root [default: the target of the only mount, or `/`]
    #[arg(long, value_name = "PATH", help_heading = "Files")]
    context_path: Option<String>,
}

/// Flags of the second context of a comparison.
#[derive(Debug, Args)]
pub(super) struct CompareSourceArgs {
    /// Compare with files of room storage
    #[arg(long, value_name = "MOUNT", help_heading = "Compare with")]
    to_room_path: Vec<String>,
    /// Compare with files of project storage
    #[arg(long, value_name = "MOUNT", help_heading = "Compare with")]
    to_project_path: Vec<String>,
    /// Compare with files of an image
    #[arg(long, value_name = "MOUNT", help_heading = "Compare with")]
    to_image: Vec<String>,
    /// Root of the second context
    #[arg(long, value_name = "PATH", help_heading = "Compare with")]
    to_context_path: Option<String>,
}

/// Parsed source flags whose pack has not been sent yet.
struct ContextPlan {
    mounts: Vec<BuildMount>,
    pack: Option<(PathBuf, String)>,
    context_path: String,
}

fn plan(
    flags: [(&str, BuildMountKind, &[String]); 4],
    context_path: Option<&String>,
    needs: &str,
) -> Result<ContextPlan, Failure> {
    let mut mounts = Vec::new();
    for (flag, kind, texts) in flags {
        for text in texts {
            let parsed = BuildMount::parse(kind, text);
            mounts.push(parsed.map_err(|error| Failure::usage(format!("{flag}: {error}")))?);
        }
    }
    if mounts.is_empty() {
        return Err(Failure::usage(needs).hint("such as --mount-room-path apps/my-app"));
    }
    check_distinct(&mounts).map_err(|error| Failure::usage(error.to_string()))?;
    if let Some(path) = context_path {
        let absolute = path.parse::<MountTarget>();
        absolute.map_err(|_| Failure::usage(format!("the context path `{path}` is not absolute")))?;
    }
    let packed = mounts.iter().position(|mount| matches!(mount.source, BuildMountSource::Pack(_)));
    let pack = match packed.map(|index| mounts.remove(index)) {
        Some(BuildMount { source: BuildMountSource::Pack(path), target, .. }) => {
            Some((PathBuf::from(path), target.to_string()))
        }
        _ => None,
    };
    Ok(ContextPlan { mounts, pack, context_path: context_path.cloned().unwrap_or_default() })
}

impl ContextSourceArgs {
    const fn is_empty(&self) -> bool {
        self.mount_room_path.is_empty()
            && self.mount_project_path.is_empty()
            && self.mount_image.is_empty()
            && self.pack.is_none()
    }

    fn plan(&self) -> Result<ContextPlan, Failure> {
        let flags = [
            ("--mount-room-path", BuildMountKind::Room, &self.mount_room_path[..]),
            ("--mount-project-path", BuildMountKind::Project, &self.mount_project_path[..]),
            ("--mount-image", BuildMountKind::Image, &self.mount_image[..]),
            ("--pack", BuildMountKind::Pack, self.pack.as_slice()),
        ];
        let plan = plan(flags, self.context_path.as_ref(), "a context needs files: at least one mount")?;
        if let Some((path, _)) = &plan.pack {
            pack::check_directory(path)?;
        }
        Ok(plan)
    }
}

impl CompareSourceArgs {
    const fn is_empty(&self) -> bool {
        self.to_room_path.is_empty() && self.to_project_path.is_empty() && self.to_image.is_empty()
    }

    fn plan(&self) -> Result<ContextPlan, Failure> {
        let flags = [
            ("--to-room-path", BuildMountKind::Room, &self.to_room_path[..]),
            ("--to-project-path", BuildMountKind::Project, &self.to_project_path[..]),
            ("--to-image", BuildMountKind::Image, &self.to_image[..]),
            ("", BuildMountKind::Pack, &[][..]),
        ];
        plan(
            flags,
            self.to_context_path.as_ref(),
            "a comparison needs two sides: --to-room-path, --to-image ...",
        )
    }
}

impl ContextPlan {
    /// Sends the pack, if there is one, and returns the sources in their wire form.
    async fn into_sources(self, client: &Client) -> Result<ContextSources, Failure> {
        let mut mounts: Vec<Mount> = self.mounts.into_iter().map(Into::into).collect();
        if let Some((path, target)) = self.pack {
            let scanned = pack::send::scan(path, WalkOptions::default()).await?;
            let sent = pack::send::send(client, &scanned, Destination::Temporary(true), None, None).await?;
            let source = Some(Source::PackId(sent.result.pack_id));
            mounts.push(Mount { source, target, ..Mount::default() });
        }
        Ok(ContextSources { mounts, context_path: self.context_path })
    }
}

pub(super) async fn run(command: ContextCommand, globals: &GlobalArgs) -> Result<(), Failure> {
    match command {
        ContextCommand::Ls { sources, recursive, path } => {
            list(&sources, recursive, path.unwrap_or_default(), globals).await
        }
        ContextCommand::Cat { sources, path } => cat(&sources, path, globals).await,
        ContextCommand::Digest { sources } => digest(&sources, globals).await,
        ContextCommand::Diff { sources, to, directory } => diff(&sources, &to, directory, globals).await,
        ContextCommand::Mount { directory, sources, rw } => {
            let (plan, directory) = (sources.plan()?, absolute_path(&directory)?);
            let client = connect(globals).await?;
            let context = Some(plan.into_sources(&client).await?);
            let request = MountContextRequest { context, directory, writable: rw };
            let mounted = TransferMeter::wait_for("mounting", client.mount_context(request)).await?;
            if mounted.resumed {
                output::note("the mount continues with the changes of an earlier mount");
            }
            if globals.json {
                output::json(&ContextMountView::from(&mounted))
            } else {
                output::line(&mounted.directory)
            }
        }
        ContextCommand::Unmount { directory, lazy, discard } => {
            let directory = absolute_path(&directory)?;
            let client = connect(globals).await?;
            let request = UnmountContextRequest { directory: directory.clone(), lazy, discard };
            let kept = TransferMeter::wait_for("unmounting", client.unmount_context(request)).await?;
            output::note(&format!("unmounted {}", output::printable(&directory)));
            if kept {
                output::note(
                    "the changes are kept for the next mount of the same files; --discard removes them",
                );
            }
            if !globals.json {
                return Ok(());
            }
            output::json(&serde_json::json!({"unmounted": directory, "changes_kept": kept}))
        }
        ContextCommand::Mounts => mounts(globals).await,
    }
}

async fn list(
    sources: &ContextSourceArgs,
    recursive: bool,
    path: PathBuf,
    globals: &GlobalArgs,
) -> Result<(), Failure> {
    let plan = sources.plan()?;
    let client = connect(globals).await?;
    let context = Some(plan.into_sources(&client).await?);
    let path = path.into_os_string().into_vec().into();
    let mut listing = client.list_context(ListContextRequest { context, path, recursive }).await?;
    let mut views = Vec::new();
    while let Some(entry) = listing.next().await? {
        if globals.json {
            views.push(ContextEntryView::from(&entry));
        } else {
            output::line(&row(&entry))?;
        }
    }
    if globals.json { output::json(&views) } else { Ok(()) }
}

fn shown(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    if text.is_empty() { ".".to_owned() } else { output::printable(&text) }
}

fn row(entry: &ContextEntry) -> String {
    let kind = match entry.kind() {
        FileKind::Directory => 'd',
        FileKind::Symlink => 'l',
        FileKind::File => '-',
        FileKind::Other | FileKind::Unspecified => '?',
    };
    let size = if entry.kind() == FileKind::File { output::size(entry.size_bytes) } else { "-".to_owned() };
    let link = match entry.kind() {
        FileKind::Symlink => format!(" -> {}", shown(&entry.link_target)),
        _ => String::new(),
    };
    format!("{kind} {:04o} {size:>10}  {}{link}", entry.mode & 0o7777, shown(&entry.path))
}

async fn cat(sources: &ContextSourceArgs, path: PathBuf, globals: &GlobalArgs) -> Result<(), Failure> {
    let plan = sources.plan()?;
    let client = connect(globals).await?;
    let context = Some(plan.into_sources(&client).await?);
    let path = path.into_os_string().into_vec().into();
    let mut file = client.read_context(ReadContextRequest { context, path }).await?;
    let mut content = ContentOutput::new(globals);
    while let Some(chunk) = file.next().await? {
        content.write(&chunk)?;
    }
    content.finish()
}

async fn digest(sources: &ContextSourceArgs, globals: &GlobalArgs) -> Result<(), Failure> {
    let plan = sources.plan()?;
    let client = connect(globals).await?;
    let context = plan.into_sources(&client).await?;
    let found = TransferMeter::wait_for("reading the context", client.digest_context(context)).await?;
    if globals.json {
        return output::json(&serde_json::json!({
            "digest": found.digest, "files": found.files, "bytes": found.bytes,
        }));
    }
    output::note(&format!("{}, {}", output::count(found.files, "file"), output::size(found.bytes)));
    output::line(&found.digest)
}

async fn diff(
    sources: &ContextSourceArgs,
    to: &CompareSourceArgs,
    directory: Option<PathBuf>,
    globals: &GlobalArgs,
) -> Result<(), Failure> {
    let (client, request) = match directory {
        Some(_) if !sources.is_empty() || !to.is_empty() => {
            return Err(Failure::usage(
                "a mounted directory is compared with what is below it: give no mounts",
            ));
        }
        Some(directory) => {
            let left = Some(Left::Mounted(absolute_path(&directory)?));
            (connect(globals).await?, DiffContextRequest { left, right: None })
        }
        None => {
            let (left, right) = (sources.plan()?, to.plan()?);
            let client = connect(globals).await?;
            let left = Some(Left::Context(left.into_sources(&client).await?));
            let right = Some(right.into_sources(&client).await?);
            (client, DiffContextRequest { left, right })
        }
    };
    let comparing = client.diff_contexts(request);
    let mut differences = TransferMeter::wait_for("comparing", comparing).await?;
    let mut views = Vec::new();
    while let Some(found) = differences.next().await? {
        let (letter, word) = match found.difference() {
            Difference::Added => ('A', "added"),
            Difference::Removed => ('D', "removed"),
            Difference::Changed | Difference::Unspecified => ('M', "changed"),
        };
        let path = shown(&found.path);
        if globals.json {
            views.push(serde_json::json!({"difference": word, "path": path}));
        } else {
            output::line(&format!("{letter} {path}"))?;
        }
    }
    if globals.json { output::json(&views) } else { Ok(()) }
}

async fn mounts(globals: &GlobalArgs) -> Result<(), Failure> {
    let mounts = connect(globals).await?.context_mounts().await?;
    if globals.json {
        return output::json(&mounts.iter().map(ContextMountView::from).collect::<Vec<_>>());
    }
    let row = |mount: &ContextMount| {
        let state = if mount.mounted { "mounted" } else { "changes kept" };
        let mode = if mount.writable { "rw" } else { "ro" };
        let view = ContextMountView::from(mount);
        vec![output::printable(&mount.directory), mode.to_owned(), state.to_owned(), view.sources.join(" ")]
    };
    output::table(&["DIRECTORY", "MODE", "STATE", "FILES"], &mounts.iter().map(row).collect::<Vec<_>>())
}

/// Makes a path absolute: the daemon may run in another directory.
fn absolute_path(directory: &std::path::Path) -> Result<String, Failure> {
    let absolute = std::path::absolute(directory)
        .map_err(|error| Failure::usage(format!("`{}`: {error}", directory.display())))?;
    let text = std::str::from_utf8(absolute.as_os_str().as_bytes());
    Ok(text
        .map_err(|_| Failure::usage(format!("the path `{}` is not UTF-8", directory.display())))?
        .to_owned())
}

#[derive(Serialize)]
struct ContextEntryView {
    path: String,
    kind: &'static str,
    size_bytes: u64,
    /// Octal, such as "0644".
    mode: String,
    modified_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    link_target: Option<String>,
}

impl From<&ContextEntry> for ContextEntryView {
    fn from(entry: &ContextEntry) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            path: text(&entry.path),
            kind: file_kind_name(entry.kind()),
            size_bytes: entry.size_bytes,
            mode: format!("{:04o}", entry.mode & 0o7777),
            modified_at: output::timestamp(entry.modified_at.as_ref()).map(|time| time.to_string()),
            link_target: (entry.kind() == FileKind::Symlink).then(|| text(&entry.link_target)),
        }
    }
}

#[derive(Serialize)]
struct ContextMountView {
    directory: String,
    writable: bool,
    mounted: bool,
    resumed: bool,
    sources: Vec<String>,
    context_path: String,
    since: Option<String>,
    mounted_by: String,
}

impl From<&ContextMount> for ContextMountView {
    fn from(mount: &ContextMount) -> Self {
        let context = mount.context.clone().unwrap_or_default();
        let source = |mount: &Mount| {
            let source = match &mount.source {
                Some(Source::RoomPath(path)) => format!("room:{path}"),
                Some(Source::ProjectPath(path)) => format!("project:{path}"),
                Some(Source::Image(image)) if image.subpath.is_empty() => {
                    format!("image:{}", image.reference)
                }
                Some(Source::Image(image)) => format!("image:{}/{}", image.reference, image.subpath),
                Some(Source::PackId(id)) => format!("pack:{id}"),
                Some(Source::EmptyDir(_)) => "empty directory".to_owned(),
                Some(Source::File(_)) => "file".to_owned(),
                None => "empty".to_owned(),
            };
            format!("{source}={}", mount.target)
        };
        Self {
            directory: mount.directory.clone(),
            writable: mount.writable,
            mounted: mount.mounted,
            resumed: mount.resumed,
            sources: context.mounts.iter().map(source).collect(),
            context_path: context.context_path,
            since: output::timestamp(mount.since.as_ref()).map(|time| time.to_string()),
            mounted_by: mount.mounted_by.clone(),
        }
    }
}
