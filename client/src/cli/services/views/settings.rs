//! The settings of a service's revision on its page: command, limits, environment and mounts.

use hearth_proto::v1::mount::Source;
use hearth_proto::v1::{EnvValue, Mount, MountMode, Service, ServiceSpec, env_value};

use super::LabeledLines;
use crate::cli::deploy::quantity;
use crate::cli::services::manifest::without_digest;

/// Maximum length of a value that is shown, in characters.
const MAX_VALUE: usize = 120;

/// Returns the spec of the revision that takes the traffic, or is about to run.
pub(super) fn shown_spec(service: &Service) -> Option<&ServiceSpec> {
    let number = service.live_revision.unwrap_or(service.desired_revision);
    service.revisions.iter().find(|revision| revision.number == number)?.spec.as_ref()
}

pub(super) fn write(page: &mut LabeledLines, spec: &ServiceSpec) {
    let command = spec.command.as_ref().map(|command| words(&command.arguments));
    page.line("command", command.as_deref().unwrap_or("of the image"));
    page.line("workdir", &spec.working_dir);
    page.line("identity", &spec.identity);
    let memory = spec.memory_bytes.map(binary_size);
    let cpus = spec.cpu_millis.map(quantity::format_cpus);
    page.line("memory", memory.as_deref().unwrap_or("unlimited"));
    page.line("cpus", cpus.as_deref().unwrap_or("unlimited"));
    if let Some(health) = spec.health.as_ref().filter(|health| !health.path.is_empty()) {
        page.line("liveness", &health.path);
    }
    page.list("env", spec.env.iter().map(|(name, value)| variable(name, value)));
    page.list("mounts", spec.mounts.iter().map(mount));
}

/// Formats a variable: a plain one with its value, others with where their value comes from.
fn variable(name: &str, value: &EnvValue) -> String {
    match &value.value {
        Some(env_value::Value::Plain(value)) => {
            let mut shown: String = value.chars().take(MAX_VALUE).collect();
            if shown.len() < value.len() {
                shown += "...";
            }
            format!("{name}={}", shown.escape_debug())
        }
        Some(env_value::Value::Secret(secret)) => format!("{name} (secret {secret})"),
        Some(env_value::Value::TokenScope(scope)) => format!("{name} (token, scope {scope})"),
        None => name.to_owned(),
    }
}

fn mount(mount: &Mount) -> String {
    let storage = |area: &str, path: &str| match path {
        "" => format!("{area} storage"),
        path => format!("{area} {path}"),
    };
    let source = match &mount.source {
        Some(Source::RoomPath(path)) => storage("room", path),
        Some(Source::ProjectPath(path)) => storage("project", path),
        Some(Source::Image(image)) => {
            let below = if image.subpath.is_empty() { String::new() } else { format!(" /{}", image.subpath) };
            format!("image {}{below}", without_digest(&image.reference))
        }
        Some(Source::File(file)) => format!("a file of {} bytes", file.text.len()),
        Some(Source::EmptyDir(_)) => "empty directory".to_owned(),
        Some(Source::PackId(_)) | None => "unknown".to_owned(),
    };
    let mode = match mount.mode() {
        MountMode::ReadOnly => " (ro)",
        MountMode::ReadWrite => " (rw)",
        MountMode::Unspecified => "",
    };
    format!("{} from {source}{mode}", mount.target)
}

/// Formats a command so that its words can be told apart.
fn words(arguments: &[String]) -> String {
    let word = |argument: &String| {
        let is_plain = !argument.is_empty() && !argument.contains(|c: char| c.is_whitespace() || c == '"');
        if is_plain { argument.clone() } else { format!("{argument:?}") }
    };
    arguments.iter().map(word).collect::<Vec<_>>().join(" ")
}

/// Formats a limit in the units in which it is given: `512m` is `512 MiB`.
fn binary_size(bytes: u64) -> String {
    for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes > 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{} {unit}", bytes >> shift);
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use hearth_proto::v1::{CommandLine, HealthCheck, ImageSource, Revision};

    use super::*;

    #[test]
    fn settings_are_shown_and_secrets_by_their_names_only() {
        let env = |value| EnvValue { value: Some(value) };
        let mount = |source, target: &str, mode: MountMode| Mount {
            source: Some(source),
            target: target.into(),
            mode: mode.into(),
            create: false,
        };
        let image = ImageSource { reference: "assets:2".into(), subpath: "usr/share".into() };
        let spec = ServiceSpec {
            command: Some(CommandLine { arguments: vec!["sh".into(), "-c".into(), "exec a b".into()] }),
            memory_bytes: Some(512 << 20),
            cpu_millis: Some(1500),
            health: Some(HealthCheck { path: "/healthz".into(), ..HealthCheck::default() }),
            env: [
                ("A".to_owned(), env(env_value::Value::Plain("x\ny".into()))),
                ("B".to_owned(), env(env_value::Value::Secret("db".into()))),
                ("C".to_owned(), env(env_value::Value::TokenScope("full".into()))),
            ]
            .into(),
            mounts: vec![
                mount(Source::RoomPath("data".into()), "/data", MountMode::ReadWrite),
                mount(Source::Image(image), "/assets", MountMode::ReadOnly),
            ],
            ..ServiceSpec::default()
        };
        let revision = |number, spec| Revision { number, spec: Some(spec), ..Revision::default() };
        let service = Service {
            desired_revision: 3,
            live_revision: Some(2),
            revisions: vec![revision(2, spec), revision(3, ServiceSpec::default())],
            ..Service::default()
        };
        let mut page = LabeledLines(String::new());
        write(&mut page, shown_spec(&service).unwrap());
        assert_eq!(
            page.0,
            "command      sh -c \"exec a b\"\n\
             memory       512 MiB\n\
             cpus         1.5\n\
             liveness     /healthz\n\
             env          A=x\\ny\n\
             \u{20}            B (secret db)\n\
             \u{20}            C (token, scope full)\n\
             mounts       /data from room data (rw)\n\
             \u{20}            /assets from image assets:2 /usr/share (ro)\n"
        );
        assert!(shown_spec(&Service::default()).is_none());
    }
}
