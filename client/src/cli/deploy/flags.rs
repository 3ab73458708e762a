//! Converts the flags of `hearth deploy` to a request, with all checks that are possible without contacting a room.

use clap::Args;
use hearth_pack::image::parse_command;
use hearth_proto::v1::{CommandLine, DeploySpec, DeployStrategy, DomainNames, Mount, ServicePorts};
use hearth_proto::value::{MountTarget, Reference, ServiceMount, ServiceMountKind, check_distinct};

use super::{DeploySettings, DeployedImage, StrategyArg, network};
use crate::cli::build::{BuildArgs, BuildOptions};
use crate::duration;
use crate::error::Failure;

/// Mount flags of a service.
#[derive(Debug, Default, Args)]
pub(super) struct MountArgs {
    /// Files of room storage, `<source>:<mount>[:ro|rw][,create]`; the default is rw; `create` makes a
    /// missing directory
    #[arg(
        long,
        visible_alias = "mount-room-path",
        value_name = "MOUNT",
        help_heading = "Files of the service"
    )]
    room_mount: Vec<String>,
    /// Files of project storage, `<source>:<mount>[:ro|rw]`; the default is ro
    #[arg(
        long,
        visible_alias = "mount-project-path",
        value_name = "MOUNT",
        help_heading = "Files of the service"
    )]
    project_mount: Vec<String>,
    /// Files of an image, `<image>=<mount>[:ro|rw][,subpath=<path>]`; the default is ro
    #[arg(long, visible_alias = "mount-image", value_name = "MOUNT", help_heading = "Files of the service")]
    image_mount: Vec<String>,
    /// A private directory of each instance, which starts with the image's files at that path, `<mount>[:ro|rw]`
    #[arg(long, value_name = "MOUNT", help_heading = "Files of the service")]
    empty_dir_mount: Vec<String>,
}

impl MountArgs {
    fn read(&self) -> Result<Vec<Mount>, Failure> {
        let mut mounts = Vec::new();
        for (flag, kind, texts) in [
            ("--room-mount", ServiceMountKind::Room, &self.room_mount),
            ("--project-mount", ServiceMountKind::Project, &self.project_mount),
            ("--image-mount", ServiceMountKind::Image, &self.image_mount),
            ("--empty-dir-mount", ServiceMountKind::EmptyDir, &self.empty_dir_mount),
        ] {
            for text in texts {
                let parsed = ServiceMount::parse(kind, text);
                let parsed = parsed.map_err(|error| Failure::usage(format!("{flag}: {error}")))?;
                if parsed.target.as_str() == "/" {
                    return Err(Failure::usage(format!("{flag}: `{text}` would hide the whole image")));
                }
                mounts.push(parsed);
            }
        }
        check_distinct(&mounts).map_err(|error| Failure::usage(error.to_string()))?;
        Ok(mounts.into_iter().map(Into::into).collect())
    }
}

/// A checked deploy: the request, and the build that must run before it.
pub(super) struct DeployPlan {
    pub spec: DeploySpec,
    /// The build that runs before the deploy, if there is one.
    pub build: Option<BuildArgs>,
}

/// Checks the arguments and converts them. `variable` returns the value of an environment variable of
/// this process.
pub(super) fn plan(
    target: &DeployedImage,
    args: &mut DeploySettings,
    variable: impl Fn(&str) -> Result<String, std::env::VarError>,
) -> Result<DeployPlan, Failure> {
    let wrong = |flag: &str, error: &dyn std::fmt::Display| Failure::usage(format!("{flag}: {error}"));
    let image = match &target.built_from {
        Some(_) => Reference::parse_tag(&target.tag),
        None => target.tag.parse(),
    };
    let image: Reference = image.map_err(|error| wrong("--tag", &error))?;
    network::check_ports(&args.port).map_err(|error| wrong("--port", &error))?;
    let ports = Some(args.port.clone()).filter(|ports| !ports.is_empty());
    let domains = Some(args.domain.clone()).filter(|domains| !domains.is_empty());
    if domains.is_some() && ports.as_ref().is_some_and(|ports| ports.len() > 1) {
        return Err(Failure::usage(format!(
            "--domain: a domain needs exactly one published port, and {} are given",
            args.port.len()
        ))
        .hint("give the one that is to be reached with --port"));
    }
    let command = match args.command.as_deref().map(parse_command).transpose() {
        Ok(Some(words)) if words.first().is_none_or(String::is_empty) => {
            return Err(Failure::usage("--command: the command is empty"));
        }
        Ok(command) => command.map(|arguments| CommandLine { arguments }),
        Err(error) => return Err(wrong("--command", &error)),
    };
    let working_dir = args.workdir.as_ref().map(|text| {
        let parsed = text.parse::<MountTarget>();
        parsed
            .map(|path| path.to_string())
            .map_err(|_| Failure::usage(format!("--workdir: `{text}` is not an absolute path without `..`")))
    });
    let strategy = match args.strategy {
        None => DeployStrategy::Unspecified,
        Some(StrategyArg::Rolling) => DeployStrategy::Rolling,
        Some(StrategyArg::Recreate) => DeployStrategy::Recreate,
    };
    let env = args.environment.read(variable)?;
    if let Some(name) = args.unset.unset_env.iter().find(|name| env.contains_key(*name)) {
        return Err(Failure::usage(format!("--unset-env: variable `{name}` is both set and taken away")));
    }
    let spec = DeploySpec {
        image: image.to_string(),
        name: args.name.clone(),
        env,
        mounts: args.mounts.read()?,
        ports: ports.map(|ports| ServicePorts { ports }),
        command,
        working_dir: working_dir.transpose()?,
        identity: args.environment.identity.clone(),
        memory_bytes: args.memory,
        cpu_millis: args.cpus,
        liveness: args.liveness.clone(),
        start_limit: args.timeout.map(duration::to_wire),
        strategy: strategy.into(),
        domains: domains.map(|domains| DomainNames { domains }).or_else(|| args.unset.no_domains()),
        public: if args.public { Some(true) } else { args.private.then_some(false) },
        description: None,
        annotations: None,
        replace: false,
        isolated: args.confinement.isolated(),
        capabilities: args.confinement.capabilities().map_err(|error| wrong("--cap-add", &error))?,
        // A built image is in the room's registry, so the credentials are only for the build.
        credentials: if target.built_from.is_some() { Vec::new() } else { args.credentials.to_wire()? },
        unset_env: args.unset.unset_env.clone(),
        unset: args.unset.settings(),
    };
    Ok(DeployPlan { spec, build: build(target, args)? })
}

fn build(target: &DeployedImage, args: &mut DeploySettings) -> Result<Option<BuildArgs>, Failure> {
    let Some(files) = &target.built_from else {
        if args.build_options != BuildOptions::default() || args.build_timeout.is_some() {
            return Err(Failure::usage(
                "flags of a build need --pack: without it the image is deployed as it is",
            )
            .hint("give the directory to build with --pack, or build before with `hearth build`"));
        }
        return Ok(None);
    };
    let mut build = BuildArgs::from_files(&target.tag, files, std::mem::take(&mut args.build_options));
    build.credentials.clone_from(&args.credentials);
    build.progress = args.waiting.progress;
    build.brief = args.waiting.brief;
    build.timeout = args.build_timeout;
    Ok(Some(build))
}
