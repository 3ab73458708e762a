//! `hearth build`

mod follow;
mod inspect;
mod options;
mod paths;
mod queue;
mod request;
mod retry;

use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use clap::Args;
use hearth_pack::walk::{DOCKERFILE_NAMES, IgnoreRules, WalkOptions};
use hearth_proto::v1::begin_pack_request::Destination;
use hearth_proto::v1::{Mount, StorageArea, SubmitBuildRequest, TreeImage, mount::Source};
use hearth_proto::value::{BuildCompression, Reference};

pub(super) use options::{BuildOptions, mark_attached_stages};
pub(super) use retry::{RetryArgs, WaitArgs, retry, wait};

use super::builds::note_first_cause;
use follow::Followed;

use super::deploy::quantity;
use super::pack::check_room_tag;
use super::registry::CredentialArgs;
use super::{GlobalArgs, complete, connect, pack};
use crate::client::Client;
use crate::duration;
use crate::error::Failure;
use crate::interrupt::InterruptListener;
use crate::output;
use crate::progress::ProgressMode;

/// Build an image inside the room
///
/// The files come from the room's storage, its project, images, or a directory that is sent for this
/// build only. The log streams to standard error while the build runs; standard output receives the
/// digest. The build continues when this command is interrupted: `hearth builds logs ID --follow`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth build --tag my-app:dev ./my-app
  hearth build --room myroom --tag room.meshagent.com/my-app:dev --pack ./my-app
  hearth build --tag my-app:dev --mount-room-path /apps/my-app:/context:ro --context-path /context
  hearth build --tag my-app:dev --mount-room-path apps/my-app --mount-project-path libs:/context/libs \\
      --context-path /context --build-arg VERSION=1.2 --secret id=npm,src=$HOME/.npmrc")]
pub(super) struct BuildArgs {
    /// Directory to send and build, the same as --pack PATH
    #[arg(value_name = "PATH", conflicts_with = "pack")]
    pub(super) path: Option<String>,
    /// Name of the result, in the room's registry
    #[arg(
        long,
        short,
        allow_hyphen_values = true,
        required_unless_present_any = ["check", "outline", "targets"],
        default_value = "",
        hide_default_value = true
    )]
    tag: String,

    /// Files of room storage, `<source>[:<mount>[:ro|rw]]`
    #[arg(long, visible_alias = "room-mount", value_name = "MOUNT", help_heading = "Files", add = complete::paths_in(StorageArea::Room))]
    mount_room_path: Vec<String>,
    /// Files of project storage, in the same form
    #[arg(long, visible_alias = "project-mount", value_name = "MOUNT", help_heading = "Files", add = complete::paths_in(StorageArea::Project))]
    mount_project_path: Vec<String>,
    /// Files of an image of the room, `<image>[=<mount>[:ro|rw]][,subpath=<path>]`
    #[arg(long, visible_alias = "image-mount", value_name = "MOUNT", help_heading = "Files", add = complete::images())]
    mount_image: Vec<String>,
    /// A directory of this machine, sent for this build, `<path>[:<mount>]`
    #[arg(long, value_name = "PATH", help_heading = "Files")]
    pack: Option<String>,
    /// LLB to build instead of a Dockerfile, as BuildKit's clients write it or as JSON; `-` is standard input
    #[arg(long, value_name = "FILE", help_heading = "Files", conflicts_with_all = LLB_CONFLICTS)]
    llb: Option<PathBuf>,
    #[command(flatten)]
    pub(super) options: BuildOptions,
    #[command(flatten)]
    inspect: inspect::InspectArgs,
    #[command(flatten)]
    pub(super) credentials: CredentialArgs,
    /// Time limit of the build, such as `90s` or `1h30m`
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, help_heading = "Build")]
    pub(super) timeout: Option<std::time::Duration>,
    /// Memory limit of each step, such as `512m`
    #[arg(long, value_name = "SIZE", value_parser = quantity::memory, help_heading = "Build")]
    memory: Option<u64>,
    /// Number of processors that each step may use, such as `0.5`
    #[arg(long, value_name = "N", value_parser = quantity::cpus, help_heading = "Build")]
    cpus: Option<u32>,

    /// Display mode of progress
    #[arg(long, value_enum, default_value_t = ProgressMode::Auto, help_heading = "Output")]
    pub(super) progress: ProgressMode,
    /// Print the build's id and do not wait for the build
    #[arg(long, help_heading = "Output")]
    detach: bool,
    /// Key that makes a repeated command return the first build instead of building again
    #[arg(long, value_name = "KEY", help_heading = "Output")]
    idempotency_key: Option<String>,
    /// Show the build in a few lines, as `hearth up` does.
    #[arg(skip)]
    pub(super) brief: bool,
    /// What runs on the files instead of a Dockerfile, for `hearth pack --run`.
    #[arg(skip)]
    pub(super) tree_image: Option<TreeImage>,
}

/// Options that only a Dockerfile gives a meaning.
const LLB_CONFLICTS: [&str; 8] =
    ["dockerfile_path", "build_arg", "target", "platform", "arch", "label", "memory", "cpus"];

pub(super) async fn run(
    mut args: BuildArgs,
    globals: &GlobalArgs,
    interrupts: &mut InterruptListener,
) -> Result<(), Failure> {
    args.progress.begin();
    args.take_path_from_no_cache();
    if let Some(question) = args.inspect.question() {
        return interrupts.run_interruptible(Box::pin(inspect::run(args, question, globals))).await;
    }
    let plan = checked_plan(&args)?;
    let (client, build_id) = interrupts.run_interruptible(Box::pin(submit(&args, plan, globals))).await?;
    finish(&client, &build_id, &args, globals, interrupts).await
}

/// Follows a submitted build to its end and reports it, unless it is to run detached.
async fn finish(
    client: &Client,
    build_id: &str,
    args: &BuildArgs,
    globals: &GlobalArgs,
    interrupts: &mut InterruptListener,
) -> Result<(), Failure> {
    if args.detach {
        return if globals.json {
            output::json(&serde_json::json!({"build_id": build_id}))
        } else {
            output::line(build_id)
        };
    }
    match follow(client, build_id, args, interrupts).await? {
        Followed::Ended(ended) => {
            let reported = follow::report(args, &ended, globals.json);
            if reported.is_ok() && args.progress != ProgressMode::Json {
                note_first_cause(client, ended.build()).await;
            }
            reported
        }
        Followed::Left => {
            output::note(&follow::left_text(build_id));
            if globals.json { output::json(&serde_json::json!({"build_id": build_id})) } else { Ok(()) }
        }
    }
}

/// Builds a directory that is to be deployed. Returns the image's digest and leaves standard output to
/// the deploy.
pub(super) async fn build_for_deploy(
    args: &BuildArgs,
    globals: &GlobalArgs,
    interrupts: &mut InterruptListener,
) -> Result<(Client, String), Failure> {
    let plan = checked_plan(args)?;
    let (client, build_id) = interrupts.run_interruptible(Box::pin(submit(args, plan, globals))).await?;
    let Followed::Ended(ended) = follow(&client, &build_id, args, interrupts).await? else {
        let message = format!("{}; its image is not deployed", follow::left_text(&build_id));
        return Err(
            Failure::interrupted(message).hint(format!("when it is built: hearth deploy --tag {}", args.tag))
        );
    };
    let digest = follow::result(args, &ended)?.digest.clone();
    Ok((client, digest))
}

impl BuildArgs {
    /// `--no-cache` takes the word behind it as its stage. In `hearth build --no-cache ./my-app` the word is PATH: it
    /// is no name of a stage, or the build would have no files without it.
    pub(super) fn take_path_from_no_cache(&mut self) {
        if self.path.is_some() || self.pack.is_some() {
            return;
        }
        let has_mounts = [&self.mount_room_path, &self.mount_project_path, &self.mount_image]
            .iter()
            .any(|mounts| !mounts.is_empty());
        let path = self.options.take_path(|word| !is_stage_name(word));
        self.path = path.or_else(|| self.options.take_path(|_| !has_mounts));
    }

    /// Arguments of a build whose result is to be deployed.
    pub(super) fn from_files(tag: &str, files: &LocalFiles, options: BuildOptions) -> Self {
        let (path, pack) = match files {
            LocalFiles::Directory(path) => (Some(path.clone()), None),
            LocalFiles::Pack(pack) => (None, Some(pack.clone())),
        };
        Self {
            path,
            tag: tag.to_owned(),
            mount_room_path: Vec::new(),
            mount_project_path: Vec::new(),
            mount_image: Vec::new(),
            pack,
            options,
            inspect: inspect::InspectArgs::default(),
            credentials: CredentialArgs::default(),
            timeout: None,
            memory: None,
            cpus: None,
            progress: ProgressMode::Auto,
            detach: false,
            idempotency_key: None,
            brief: false,
            llb: None,
            tree_image: None,
        }
    }
}

impl BuildArgs {
    /// Arguments of a build that runs commands on a tree instead of a Dockerfile.
    pub(super) fn from_tree(
        tag: &str,
        files: &LocalFiles,
        image: TreeImage,
        compression: BuildCompression,
    ) -> Self {
        let options = BuildOptions { compression, ..BuildOptions::default() };
        Self { tree_image: Some(image), ..Self::from_files(tag, files, options) }
    }

    pub(super) fn with_credentials(self, credentials: CredentialArgs) -> Self {
        Self { credentials, ..self }
    }
}

/// Files of this machine that are sent and built.
#[derive(Debug)]
pub(super) enum LocalFiles {
    /// A directory, whatever its name contains.
    Directory(String),
    /// The value of `--pack`, `<path>[:<mount>]`.
    Pack(String),
}

/// Checks the arguments as far as possible without a room, so that mistakes are reported before the
/// client connects.
fn checked_plan(args: &BuildArgs) -> Result<request::BuildPlan, Failure> {
    let plan = request::plan(args)?;
    let files = [("--metadata-file", &args.options.metadata_file), ("--iidfile", &args.options.iidfile)];
    for (flag, file) in files {
        file.iter().try_for_each(|file| output::check_new_file(flag, file))?;
    }
    Ok(plan)
}

async fn follow(
    client: &Client,
    build_id: &str,
    args: &BuildArgs,
    interrupts: &mut InterruptListener,
) -> Result<Followed, Failure> {
    if args.progress != ProgressMode::Json {
        output::note(&format!("build {build_id}"));
    }
    follow::follow_to_end(client, build_id, args, interrupts).await
}

async fn submit(
    args: &BuildArgs,
    mut plan: request::BuildPlan,
    globals: &GlobalArgs,
) -> Result<(Client, String), Failure> {
    let client = connect(globals).await?;
    if let Some(local) = plan.pack.take() {
        for tag in &plan.tags {
            check_room_tag(&client, "--tag", tag).await?;
        }
        let mut walk = walk_options(&args.options, local.target.as_str());
        walk.written.extend(pack::send::kept_archive(&client, plan.pack_room_path.as_deref()).await?);
        let scanned = pack::send::scan(local.path, walk).await?;
        pack::print_summary(&scanned.summary, args.brief);
        let temporary = Destination::Temporary(true);
        let sent = pack::send::send(&client, &scanned, temporary, None, plan.pack_room_path.take()).await?;
        let source = Some(Source::PackId(sent.result.pack_id));
        plan.spec.mounts.push(Mount { source, target: local.target.to_string(), ..Mount::default() });
    }
    let idempotency_key = args.idempotency_key.clone().unwrap_or_default();
    let submitted =
        client.submit_build(SubmitBuildRequest { spec: Some(plan.spec), idempotency_key }).await?;
    if !submitted.created {
        output::note("an earlier command with this key had started the build");
    }
    Ok((client, submitted.build_id))
}

/// Walk options of a pack that is mounted at `target`: they keep the files which the build itself reads, even when the
/// ignore file excludes them.
fn walk_options(options: &BuildOptions, target: &str) -> WalkOptions {
    let context = options.context_path.as_deref().unwrap_or(target);
    let in_pack = |path: &str| path_below(target, &Path::new(context).join(path));
    let dockerfile = options.dockerfile_path.as_deref().and_then(in_pack);
    let mut keep: Vec<PathBuf> = in_pack(".dockerignore").into_iter().collect();
    for name in DOCKERFILE_NAMES {
        keep.extend([name, &format!("{name}.dockerignore")].into_iter().filter_map(in_pack));
    }
    if let Some(path) = &dockerfile {
        let mut ignore_file = path.clone().into_os_string();
        ignore_file.push(".dockerignore");
        keep.extend([path.clone(), ignore_file.into()]);
    }
    let bytes = |path: PathBuf| path.into_os_string().into_vec();
    // The rules of a pack are those at its root, which are those of the Dockerfile if the context is there too.
    let is_root = path_below(target, Path::new(context)).is_some_and(|path| path.as_os_str().is_empty());
    let rules = IgnoreRules::IgnoreFile { dockerfile: dockerfile.filter(|_| is_root).map(bytes) };
    WalkOptions { rules, keep: keep.into_iter().map(bytes).collect(), ..WalkOptions::default() }
}

/// Returns `path` relative to the directory `target`. Returns `None` for a path outside of it.
fn path_below(target: &str, path: &Path) -> Option<PathBuf> {
    let path = path.strip_prefix(target).ok()?;
    let is_plain = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    is_plain.then(|| path.components().filter(|part| *part != Component::CurDir).collect())
}

/// Reports whether a word can be the name of a stage: a letter, then letters, digits, `-`, `_` and `.`.
pub(super) fn is_stage_name(word: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    word.starts_with(|c: char| c.is_ascii_alphabetic()) && word.chars().all(inner)
}

fn tag(flag: &str, text: &str) -> Result<Reference, Failure> {
    Reference::parse_tag(text).map_err(|error| Failure::usage(format!("{flag}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(options: &BuildOptions, target: &str) -> (Vec<String>, Option<String>) {
        let WalkOptions { rules, keep, .. } = walk_options(options, target);
        let IgnoreRules::IgnoreFile { dockerfile } = rules else { panic!("{rules:?}") };
        let text = |path: Vec<u8>| String::from_utf8(path).unwrap();
        let extra = keep.into_iter().skip(5).map(text).collect();
        (extra, dockerfile.map(text))
    }

    #[test]
    fn a_pack_keeps_the_dockerfile_however_it_is_named() {
        for (path, context) in [
            ("docker/prod", None),
            ("./docker//prod", None),
            ("/context/docker/prod", None),
            ("docker/prod", Some("/context/")),
            ("/context/docker/./prod", Some("/context")),
        ] {
            let options = BuildOptions {
                dockerfile_path: Some(path.to_owned()),
                context_path: context.map(str::to_owned),
                ..BuildOptions::default()
            };
            let (extra, rules) = kept(&options, "/context");
            assert_eq!(extra, ["docker/prod", "docker/prod.dockerignore"], "{path}");
            assert_eq!(rules.as_deref(), Some("docker/prod"), "{path}");
        }
    }

    #[test]
    fn a_context_below_the_pack_keeps_its_own_dockerfile() {
        let options = BuildOptions {
            dockerfile_path: Some("prod".to_owned()),
            context_path: Some("/src/app".to_owned()),
            ..BuildOptions::default()
        };
        assert_eq!(
            kept(&options, "/src"),
            (vec!["app/prod".to_owned(), "app/prod.dockerignore".to_owned()], None)
        );
        let keep = walk_options(&options, "/src").keep;
        assert!(keep.contains(&b"app/Dockerfile".to_vec()) && !keep.contains(&b"Dockerfile".to_vec()));
        // A Dockerfile in another mount.
        let elsewhere =
            BuildOptions { dockerfile_path: Some("/other/Dockerfile".to_owned()), ..BuildOptions::default() };
        assert_eq!(kept(&elsewhere, "/src"), (Vec::new(), None));
    }
}
