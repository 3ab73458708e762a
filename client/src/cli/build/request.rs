//! Converts the flags of `hearth build` to a request, with all checks that are possible without contacting a room.

use std::collections::BTreeMap;
use std::path::PathBuf;

use hearth_proto::v1::{BuildSecret, BuildSpec};
use hearth_proto::value::{
    BuildMount, BuildMountKind, BuildMountSource, MountTarget, Reference, check_distinct,
};

use super::super::registry::parse_credential;
use super::{BuildArgs, tag};
use crate::duration;
use crate::error::Failure;

/// Maximum size of one secret in bytes; BuildKit's own limit.
const MAX_SECRET_BYTES: u64 = 500 * 1024;

/// A checked build: the request, and the directory that is to be sent before it is submitted.
pub(super) struct BuildPlan {
    pub spec: BuildSpec,
    pub tags: Vec<Reference>,
    pub pack: Option<LocalPack>,
    /// File of room storage that keeps the pack.
    pub pack_room_path: Option<String>,
}

/// A directory to send before the build.
pub(super) struct LocalPack {
    pub path: PathBuf,
    pub target: String,
}

pub(super) fn plan(args: &BuildArgs) -> Result<BuildPlan, Failure> {
    let mut tags = vec![tag("--tag", &args.tag)?];
    for text in &args.options.also_tag {
        tags.push(tag("--also-tag", text)?);
    }
    let (mounts, pack) = mounts(args)?;
    if let Some(path) = &args.options.context_path {
        path.parse::<MountTarget>().map_err(|error| {
            Failure::usage(format!(
                "--context-path `{path}`: {}",
                error.to_string().replace("mount target", "it")
            ))
            .hint("it is absolute, such as /context")
        })?;
    } else if mounts.len() + usize::from(pack.is_some()) > 1 {
        return Err(Failure::usage("with more than one mount, --context-path says where COPY reads from")
            .hint("such as --context-path /context"));
    }
    let (stages, everything): (Vec<&String>, Vec<&String>) =
        args.options.no_cache.iter().partition(|stage| !stage.is_empty());
    let platform = match (&args.options.platform, &args.options.arch) {
        (Some(platform), _) => platform.clone(),
        (None, Some(arch)) => super::pack::platform(Some(arch))?.to_string(),
        (None, None) => String::new(),
    };
    let spec = BuildSpec {
        tag: tags[0].to_string(),
        also_tags: tags[1..].iter().map(Reference::to_string).collect(),
        mounts: mounts.into_iter().map(Into::into).collect(),
        context_path: args.options.context_path.clone().unwrap_or_default(),
        dockerfile_path: args.options.dockerfile_path.clone().unwrap_or_default(),
        build_args: build_args(&args.options.build_arg)?,
        target: args.options.target.clone().unwrap_or_default(),
        platform,
        labels: labels(&args.options.label)?,
        no_cache: !everything.is_empty(),
        no_cache_stages: stages.into_iter().cloned().collect(),
        pull: args.options.pull,
        network: args.options.network.clone().unwrap_or_default(),
        timeout: args.timeout.map(duration::to_wire),
        secrets: args.options.secret.iter().map(|text| secret(text)).collect::<Result<_, _>>()?,
        credentials: args.cred.iter().map(|text| parse_credential(text)).collect::<Result<_, _>>()?,
    };
    let pack_room_path = args.options.pack_room_path.as_deref();
    let pack_room_path =
        pack_room_path.map(|path| super::pack::room_file("--pack-room-path", path, &tags[0])).transpose()?;
    Ok(BuildPlan { spec, tags, pack, pack_room_path })
}

/// Parses the mounts. The pack is returned separately, because its source is a directory of this machine.
fn mounts(args: &BuildArgs) -> Result<(Vec<BuildMount>, Option<LocalPack>), Failure> {
    let flags = [
        ("--mount-room-path", BuildMountKind::Room, &args.mount_room_path),
        ("--mount-project-path", BuildMountKind::Project, &args.mount_project_path),
        ("--mount-image", BuildMountKind::Image, &args.mount_image),
    ];
    let mut mounts = Vec::new();
    for (flag, kind, texts) in flags {
        for text in texts {
            let parsed = BuildMount::parse(kind, text);
            mounts.push(parsed.map_err(|error| Failure::usage(format!("{flag}: {error}")))?);
        }
    }
    let packed = match (&args.path, &args.pack) {
        // A colon in a positional path is part of the name: this form has no mount target.
        (Some(path), _) => Some(BuildMount {
            source: BuildMountSource::Pack(path.clone()),
            ..BuildMount::parse(BuildMountKind::Pack, ".")
                .map_err(|error| Failure::usage(error.to_string()))?
        }),
        (None, Some(text)) => Some(
            BuildMount::parse(BuildMountKind::Pack, text)
                .map_err(|error| Failure::usage(format!("--pack: {error}")))?,
        ),
        (None, None) => None,
    };
    if mounts.is_empty() && packed.is_none() {
        return Err(Failure::usage("a build needs files: at least one mount, or a directory to send")
            .hint("hearth build --tag my-app:dev ./my-app, or --mount-room-path apps/my-app"));
    }
    let all: Vec<BuildMount> = mounts.iter().chain(&packed).cloned().collect();
    check_distinct(&all).map_err(|error| Failure::usage(error.to_string()))?;
    let pack = packed.and_then(|spec| match spec.source {
        BuildMountSource::Pack(path) => {
            Some(LocalPack { path: path.into(), target: spec.target.to_string() })
        }
        _ => None,
    });
    if args.options.pack_room_path.is_some() && pack.is_none() {
        return Err(Failure::usage("--pack-room-path needs a pack: give PATH or --pack"));
    }
    Ok((mounts, pack))
}

fn build_args(texts: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let mut pairs = BTreeMap::new();
    for text in texts {
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key, value.to_owned()),
            None => match std::env::var(text) {
                Ok(value) => (text.as_str(), value),
                // An unset variable leaves the default of the ARG in place, as in other builders.
                Err(std::env::VarError::NotPresent) => continue,
                Err(error) => return Err(Failure::usage(format!("--build-arg {text}: {error}"))),
            },
        };
        if key.is_empty() {
            return Err(Failure::usage(format!("--build-arg `{text}`: expected `KEY=VALUE` or `KEY`")));
        }
        pairs.insert(key.to_owned(), value);
    }
    Ok(pairs)
}

fn labels(texts: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let pair = |text: &String| match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(Failure::usage(format!("--label `{text}`: expected `KEY=VALUE`"))),
    };
    texts.iter().map(pair).collect()
}

fn secret(text: &str) -> Result<BuildSecret, Failure> {
    let wrong = |why: String| {
        Failure::usage(format!("--secret: {why}")).hint("expected `id=ID,src=FILE` or `id=ID,env=VARIABLE`")
    };
    let (mut id, mut src, mut env) = (None, None, None);
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("id", value)) if !value.is_empty() => id = Some(value),
            Some(("src" | "source", value)) => src = Some(value),
            Some(("env", value)) => env = Some(value),
            Some(("type", "file" | "env")) => {}
            _ => return Err(wrong(format!("`{part}` is not understood"))),
        }
    }
    let Some(id) = id else { return Err(wrong("the id is missing".to_owned())) };
    let value = match (src, env) {
        (Some(_), Some(_)) => return Err(wrong("`src` and `env` exclude one another".to_owned())),
        (Some(path), None) => {
            read_secret(path).map_err(|error| wrong(format!("cannot read `{path}`: {error}")))?
        }
        (None, source) => {
            let variable = source.unwrap_or(id);
            let value = std::env::var_os(variable);
            let value = value.ok_or_else(|| wrong(format!("the variable `{variable}` is not set")))?;
            std::os::unix::ffi::OsStringExt::into_vec(value)
        }
    };
    if value.len() as u64 > MAX_SECRET_BYTES {
        return Err(wrong(format!("secret `{id}` is over {} KiB", MAX_SECRET_BYTES / 1024)));
    }
    Ok(BuildSecret { id: id.to_owned(), value: value.into() })
}

fn read_secret(path: &str) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut value = Vec::new();
    std::fs::File::open(path)?.take(MAX_SECRET_BYTES + 1).read_to_end(&mut value)?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_name_an_id_and_one_source() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "value").unwrap();
        let read = secret(&format!("id=a,src={}", file.path().display())).unwrap();
        assert_eq!((read.id.as_str(), &read.value[..]), ("a", &b"value"[..]));
        for wrong in [
            "",
            "id=",
            "src=/x",
            "id=a,src=/no/such/file",
            "id=a,src=x,env=y",
            "id=a,nope=1",
            "id=NOT_SET_72A",
        ] {
            assert_eq!(secret(wrong).unwrap_err().kind, crate::error::FailureKind::Usage, "{wrong}");
        }
    }
}
