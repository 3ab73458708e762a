//! Check of a graph: what a build may not use is refused, and what it fetches is listed.
//!
//! Everything is refused that is not known to be harmless: kinds of operations and mounts, schemes and attributes of
//! sources. What belongs to the daemon (sessions, worker constraints, resolve modes) is set by it.

use std::collections::{BTreeMap, BTreeSet};

use bollard_buildkit_proto::pb;
use hearth_value::Reference;
use pb::op::Op;

use crate::graph::{Graph, Operation};
use crate::read::LlbError;

/// Name of the only local source: the files of the build.
const CONTEXT: &str = "context";
const SESSION: &str = "local.session";
const FULL_URL: &str = "git.fullurl";
/// Attributes of a context. They only choose among its files.
const LOCAL_ATTRIBUTES: [&str; 4] =
    ["local.includepattern", "local.excludepatterns", "local.followpaths", "local.differ"];
const IMAGE_ATTRIBUTES: [&str; 1] = ["image.checksum"];
const HTTP_ATTRIBUTES: [&str; 5] = ["http.checksum", "http.filename", "http.perm", "http.uid", "http.gid"];
const GIT_ATTRIBUTES: [&str; 6] =
    [FULL_URL, "git.keepgitdir", "git.checksum", "git.skipsubmodules", "git.mtime", "git.fetchbycommit"];
/// Attributes that producers always set and that have no effect here, with the value that is ignored if they have one.
const IGNORED_ATTRIBUTES: [(&str, Option<&str>); 7] = [
    ("local.unique", None),
    ("local.sharedkeyhint", None),
    ("image.resolvemode", None),
    ("image.recordtype", None),
    // Names of secrets that BuildKit's client sets for every repository; without such secrets they mean nothing.
    ("git.authheadersecret", Some("GIT_AUTH_HEADER")),
    ("git.authtokensecret", Some("GIT_AUTH_TOKEN")),
    ("http.authheadersecret", Some("")),
];

/// What a definition may use, and how images are named.
pub struct Policy<'a> {
    /// Ids of the secrets and of the SSH agents that came with the build.
    pub secrets: &'a BTreeSet<String>,
    pub agents: &'a BTreeSet<String>,
    /// Returns the name of an image as the source policy of the solve has it.
    pub image_name: fn(&Reference) -> String,
}

/// A graph that passed the check.
#[derive(Clone, Debug)]
pub struct CheckedGraph {
    graph: Graph,
    pub sources: Vec<NamedSource>,
}

/// A source that an operation names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedSource {
    /// Number of the operation, from 1.
    pub number: usize,
    pub location: SourceLocation,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceLocation {
    /// The files of the build.
    Context,
    Image {
        reference: Reference,
        /// `os/arch[/variant]`, if the operation names one.
        platform: Option<String>,
    },
    Http {
        url: String,
        checksum: Option<String>,
    },
    Git {
        url: String,
        /// Name of the repository in the source policy, `host/path`.
        name: String,
    },
}

/// Settings of a solve that the definition does not decide.
#[derive(Clone, Copy, Debug, Default)]
pub struct SolveSettings<'a> {
    /// Id of the session that serves the context.
    pub context_session: &'a str,
    /// Commands have no network.
    pub without_network: bool,
    /// Every operation runs again.
    pub ignore_cache: bool,
    /// Prefix of the ids of cache mounts, for a builder that several trust domains share.
    pub cache_namespace: Option<&'a str>,
}

impl Graph {
    pub fn check(mut self, policy: &Policy<'_>) -> Result<CheckedGraph, LlbError> {
        let mut sources = Vec::new();
        for (index, operation) in self.operations.iter_mut().enumerate() {
            let checked = check_operation(operation, policy);
            let found = checked.map_err(|reason| LlbError::Refused {
                number: index + 1,
                name: shown(&operation_name(operation)),
                reason: shown(&reason),
            })?;
            sources.extend(found.map(|location| NamedSource { number: index + 1, location }));
        }
        Ok(CheckedGraph { graph: self, sources })
    }
}

impl CheckedGraph {
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Returns the image whose layers the result begins with, if operations only add to it.
    pub fn base(&self) -> Option<&SourceLocation> {
        let mut output = self.graph.result?;
        loop {
            let operation = &self.graph.operations[output.operation];
            let input = match operation.op.op.as_ref()? {
                Op::Source(_) => break,
                Op::Exec(exec) => exec.mounts.iter().find(|mount| mount.dest == "/")?.input,
                Op::File(file) => file.actions.first()?.input,
                Op::Merge(merge) => merge.inputs.first()?.input,
                Op::Build(_) | Op::Diff(_) => return None,
            };
            output = *operation.inputs.get(usize::try_from(input).ok()?)?;
        }
        let number = output.operation + 1;
        let source = self.sources.iter().find(|source| source.number == number)?;
        Some(&source.location).filter(|location| matches!(location, SourceLocation::Image { .. }))
    }

    /// Returns the encoded definition for one solve.
    pub fn encode_for(&self, settings: SolveSettings<'_>) -> Vec<u8> {
        let mut graph = self.graph.clone();
        for operation in &mut graph.operations {
            operation.metadata.ignore_cache |= settings.ignore_cache;
            match &mut operation.op.op {
                Some(Op::Exec(exec)) => {
                    if settings.without_network {
                        exec.network = pb::NetMode::None.into();
                    }
                    for cache in exec.mounts.iter_mut().filter_map(|mount| mount.cache_opt.as_mut()) {
                        if let Some(namespace) = settings.cache_namespace {
                            cache.id = format!("{namespace}/{}", cache.id);
                        }
                    }
                }
                Some(Op::Source(source)) if source.identifier.starts_with("local://") => {
                    source.attrs.insert(SESSION.to_owned(), settings.context_session.to_owned());
                }
                _ => {}
            }
        }
        graph.encode()
    }
}

/// Checks one operation and removes what the daemon decides.
fn check_operation(operation: &mut Operation, policy: &Policy<'_>) -> Result<Option<SourceLocation>, String> {
    operation.op.constraints = None;
    let inputs = operation.inputs.len();
    let platform = operation.op.platform.as_ref().map(platform_text);
    match operation.op.op.as_mut() {
        None => Err("it does nothing; only the last operation may".to_owned()),
        Some(Op::Build(_)) => Err("a build inside a build is not allowed".to_owned()),
        Some(Op::Exec(exec)) => check_exec(exec, inputs, policy).map(|()| None),
        Some(Op::Source(source)) => check_source(source, platform, policy).map(Some),
        Some(Op::File(file)) => {
            let known = file.actions.iter().all(|action| action.action.is_some());
            if known { Ok(None) } else { Err("it has an unknown file action".to_owned()) }
        }
        Some(Op::Merge(_) | Op::Diff(_)) => Ok(None),
    }
}

fn check_exec(exec: &mut pb::ExecOp, inputs: usize, policy: &Policy<'_>) -> Result<(), String> {
    let network = pb::NetMode::try_from(exec.network);
    if !matches!(network, Ok(pb::NetMode::Unset | pb::NetMode::None)) {
        return Err("its network must be the default one or none".to_owned());
    }
    if exec.security != i32::from(pb::SecurityMode::Sandbox) {
        return Err("it must run in the sandbox".to_owned());
    }
    if !exec.cdi_devices.is_empty() {
        return Err("devices are not allowed".to_owned());
    }
    let meta = exec.meta.as_mut().ok_or("it has no command")?;
    if meta.args.is_empty() {
        return Err("it has no command".to_owned());
    }
    if !meta.cgroup_parent.is_empty() || !meta.ulimit.is_empty() {
        return Err("control groups and limits of a command are set by the daemon".to_owned());
    }
    // The proxy of the machine that made the definition is not the one of this builder.
    meta.proxy_env = None;
    let mut texts = meta.args.iter().chain(&meta.env).chain([&meta.cwd, &meta.user, &meta.hostname]);
    if texts.any(|text| text.contains('\0')) {
        return Err("its command or environment contains a NUL byte".to_owned());
    }
    for secret in &exec.secretenv {
        given(&secret.id, secret.optional, policy.secrets, "secret")?;
    }
    for mount in &exec.mounts {
        check_mount(mount, inputs, policy)?;
    }
    Ok(())
}

fn check_mount(mount: &pb::Mount, inputs: usize, policy: &Policy<'_>) -> Result<(), String> {
    if !mount.result_id.is_empty() {
        return Err("a mount names the result of another solve".to_owned());
    }
    if usize::try_from(mount.input).is_ok_and(|input| input >= inputs) {
        return Err("a mount names an input that the operation does not have".to_owned());
    }
    match pb::MountType::try_from(mount.mount_type) {
        Ok(pb::MountType::Bind | pb::MountType::Tmpfs) => Ok(()),
        Ok(pb::MountType::Cache) => match &mount.cache_opt {
            Some(cache) if !cache.id.is_empty() => Ok(()),
            _ => Err("a cache mount has no id".to_owned()),
        },
        Ok(pb::MountType::Secret) => {
            let secret = mount.secret_opt.as_ref().ok_or("a secret mount has no id")?;
            given(&secret.id, secret.optional, policy.secrets, "secret")
        }
        Ok(pb::MountType::Ssh) => {
            let agent = mount.ssh_opt.as_ref().ok_or("an SSH mount has no id")?;
            given(&agent.id, agent.optional, policy.agents, "SSH agent")
        }
        Err(_) => Err("it has a mount of an unknown kind".to_owned()),
    }
}

/// Checks that a secret came with the build. An optional one that did not is absent for the command.
fn given(id: &str, optional: bool, known: &BTreeSet<String>, kind: &str) -> Result<(), String> {
    if optional || known.contains(id) {
        return Ok(());
    }
    Err(format!("the {kind} `{id}` did not come with the build"))
}

fn check_source(
    source: &mut pb::SourceOp,
    platform: Option<String>,
    policy: &Policy<'_>,
) -> Result<SourceLocation, String> {
    let identifier = source.identifier.clone();
    let (scheme, rest) = identifier.split_once("://").ok_or("its source has no scheme")?;
    match scheme {
        "docker-image" => {
            keep_attributes(&mut source.attrs, &IMAGE_ATTRIBUTES, policy)?;
            let reference = rest.parse::<Reference>().map_err(|error| format!("image: {error}"))?;
            source.identifier = format!("docker-image://{}", (policy.image_name)(&reference));
            Ok(SourceLocation::Image { reference, platform })
        }
        "local" if rest == CONTEXT => {
            keep_attributes(&mut source.attrs, &LOCAL_ATTRIBUTES, policy)?;
            Ok(SourceLocation::Context)
        }
        "local" => Err(format!("the only local source is `{CONTEXT}`, the files of the build")),
        "http" | "https" => {
            keep_attributes(&mut source.attrs, &HTTP_ATTRIBUTES, policy)?;
            let checksum = source.attrs.get("http.checksum").cloned();
            Ok(SourceLocation::Http { url: identifier, checksum })
        }
        "git" => {
            keep_attributes(&mut source.attrs, &GIT_ATTRIBUTES, policy)?;
            let name = rest.split('#').next().unwrap_or_default().to_owned();
            let url = source.attrs.entry(FULL_URL.to_owned()).or_insert_with(|| format!("https://{name}"));
            // BuildKit fetches from this address, and its source policy sees only the identifier.
            let address = ["https://", "http://"].iter().find_map(|scheme| url.strip_prefix(scheme));
            if address != Some(name.as_str()) {
                return Err(format!("`{FULL_URL}` must be `https://{name}` or `http://{name}`"));
            }
            Ok(SourceLocation::Git { url: url.clone(), name })
        }
        _ => Err(format!("sources with the scheme `{scheme}` are not allowed")),
    }
}

/// Removes attributes without effect, and refuses those that are not in the list.
fn keep_attributes(
    attributes: &mut BTreeMap<String, String>,
    allowed: &[&str],
    policy: &Policy<'_>,
) -> Result<(), String> {
    attributes.retain(|name, value| {
        let is_ignored = |(known, only): &(&str, Option<&str>)| {
            name == known && only.is_none_or(|only| only == value && !policy.secrets.contains(only))
        };
        !IGNORED_ATTRIBUTES.iter().any(is_ignored)
    });
    match attributes.keys().find(|name| !allowed.contains(&name.as_str())) {
        Some(name) => Err(format!("the attribute `{name}` of its source is not allowed")),
        None => Ok(()),
    }
}

fn platform_text(platform: &pb::Platform) -> String {
    let mut text = format!("{}/{}", platform.os, platform.architecture);
    if !platform.variant.is_empty() {
        text.push('/');
        text.push_str(&platform.variant);
    }
    text
}

/// Returns the name that BuildKit's progress has for the operation, or its kind.
fn operation_name(operation: &Operation) -> String {
    if let Some(name) = operation.metadata.description.get("llb.customname") {
        return name.clone();
    }
    match &operation.op.op {
        Some(Op::Exec(exec)) => exec.meta.as_ref().map(|meta| meta.args.join(" ")).unwrap_or_default(),
        Some(Op::Source(source)) => source.identifier.clone(),
        Some(Op::File(_)) => "file".to_owned(),
        Some(Op::Build(_)) => "build".to_owned(),
        Some(Op::Merge(_)) => "merge".to_owned(),
        Some(Op::Diff(_)) => "diff".to_owned(),
        None => "nothing".to_owned(),
    }
}

fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}
