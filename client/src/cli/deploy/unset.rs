//! Flags that take away settings which a deploy would keep otherwise.

use clap::{Args, ValueEnum};
use hearth_proto::v1::{DomainNames, ServiceSetting};
use hearth_proto::value::Assignment;

#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Settings that are not kept")]
pub(super) struct UnsetArgs {
    /// Do not keep this variable
    #[arg(long, value_name = "NAME", value_parser = variable_name)]
    pub(super) unset_env: Vec<String>,
    /// Do not keep the mounts of this kind
    #[arg(long, value_name = "KIND", value_enum)]
    no_mounts: Vec<MountKindArg>,
    /// Do not keep the ports: they are those of the image's EXPOSE again
    #[arg(long, conflicts_with = "port")]
    no_ports: bool,
    /// Do not keep the domains
    #[arg(long, conflicts_with = "domain")]
    no_domains: bool,
    /// Do not keep the path of the health check
    #[arg(long, conflicts_with = "liveness")]
    no_liveness: bool,
    /// Do not keep the command: it is the image's own again
    #[arg(long, conflicts_with = "command")]
    no_command: bool,
    /// Do not keep the working directory: it is the image's own again
    #[arg(long, conflicts_with = "workdir")]
    no_workdir: bool,
    /// Do not keep the memory limit
    #[arg(long, conflicts_with = "memory")]
    no_memory: bool,
    /// Do not keep the processor limit
    #[arg(long, conflicts_with = "cpus")]
    no_cpus: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum MountKindArg {
    /// Mounts of room storage
    Room,
    /// Mounts of project storage
    Project,
    /// Mounts of images
    Image,
    /// Private directories, except those of the image's VOLUME
    EmptyDir,
    /// Files that a manifest gives by their text
    File,
}

impl UnsetArgs {
    pub(super) fn settings(&self) -> Vec<i32> {
        let mounts = self.no_mounts.iter().map(|kind| match kind {
            MountKindArg::Room => ServiceSetting::RoomMounts,
            MountKindArg::Project => ServiceSetting::ProjectMounts,
            MountKindArg::Image => ServiceSetting::ImageMounts,
            MountKindArg::EmptyDir => ServiceSetting::EmptyDirMounts,
            MountKindArg::File => ServiceSetting::FileMounts,
        });
        let others = [
            (self.no_ports, ServiceSetting::Ports),
            (self.no_liveness, ServiceSetting::Liveness),
            (self.no_command, ServiceSetting::Command),
            (self.no_workdir, ServiceSetting::WorkingDir),
            (self.no_memory, ServiceSetting::Memory),
            (self.no_cpus, ServiceSetting::Cpus),
        ];
        let others = others.into_iter().filter_map(|(given, setting)| given.then_some(setting));
        mounts.chain(others).map(i32::from).collect()
    }

    /// Returns an empty list of domains, which releases all of them, when the flag is given.
    pub(super) fn no_domains(&self) -> Option<DomainNames> {
        self.no_domains.then(DomainNames::default)
    }
}

fn variable_name(text: &str) -> Result<String, String> {
    match Assignment::parse_variable(text) {
        Ok(Assignment { name, value: None }) => Ok(name),
        Ok(_) => Err(format!("`{text}` has a value; expected the name alone")),
        Err(error) => Err(format!("`{text}`: {error}")),
    }
}
