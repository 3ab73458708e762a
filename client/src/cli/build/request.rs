//! Converts the flags of `hearth build` to a request, with all checks that are possible without contacting a room.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use hearth_proto::v1::{BuildSecret, BuildSpec, ImageAnnotation};
use hearth_proto::value::{
    AnnotationFlag, BuildCompression, BuildMount, BuildMountKind, BuildMountSource, CacheExport, CacheImport,
    MountTarget, Reference, SecretFlag, SecretFlagSource, Tag, check_distinct,
};

use super::super::assignments::{labels, variables};
use super::options::NoCacheValue;
use super::{BuildArgs, paths, tag};
use crate::duration;
use crate::error::Failure;

/// Maximum size of one secret in bytes; BuildKit's own limit.
const MAX_SECRET_BYTES: u64 = 500 * 1024;
/// Maximum size of a definition in bytes, in any of its forms.
const MAX_DEFINITION_BYTES: u64 = 3 << 20;

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
    pub target: MountTarget,
}

pub(super) fn plan(args: &BuildArgs) -> Result<BuildPlan, Failure> {
    let mut tags = vec![tag("--tag", &args.tag)?];
    for text in &args.options.also_tag {
        tags.push(tag("--also-tag", text)?);
    }
    if args.options.latest {
        tags.push(Reference { tag: Some(Tag::latest()), ..tags[0].clone() });
    }
    let (mounts, pack) = mounts(args)?;
    if let Some(pack) = &pack {
        super::pack::check_directory(&pack.path)?;
    }
    if args.llb.is_none() && args.tree_image.is_none() {
        paths::check(&args.options, &mounts, pack.as_ref())?;
    }
    let no_cache = &args.options.no_cache;
    let stages = no_cache.iter().filter_map(NoCacheValue::stage).map(str::to_owned).collect();
    let everything = no_cache.iter().any(|value| value.stage().is_none());
    let platforms = match &args.options.arch {
        Some(arch) => vec![super::pack::platform(Some(arch))?.to_string()],
        None => args.options.platform.clone(),
    };
    // A daemon of an earlier version knows only the field for one platform.
    let (platform, platforms) = match <[String; 1]>::try_from(platforms) {
        Ok([platform]) => (platform, Vec::new()),
        Err(platforms) => (String::new(), platforms),
    };
    let spec = BuildSpec {
        tag: tags[0].to_string(),
        also_tags: tags[1..].iter().map(Reference::to_string).collect(),
        mounts: mounts.into_iter().map(Into::into).collect(),
        context_path: args.options.context_path.clone().unwrap_or_default(),
        dockerfile_path: args.options.dockerfile_path.clone().unwrap_or_default(),
        build_args: variables("--build-arg", &args.options.build_arg, |name| std::env::var(name))?
            .into_iter()
            .collect(),
        target: args.options.target.clone().unwrap_or_default(),
        platform,
        platforms,
        labels: labels("--label", &args.options.label)?,
        annotations: annotations(&args.options.annotation)?,
        no_cache: everything,
        no_cache_stages: stages,
        pull: args.options.pull,
        network: args.options.network.clone().unwrap_or_default(),
        compression: match args.options.optimize {
            true => BuildCompression::Zstd.to_string(),
            false => args.options.compression.to_string(),
        },
        provenance: args.options.provenance.unwrap_or_default().to_string(),
        sbom: args.options.sbom.unwrap_or_default(),
        timeout: args.timeout.map(duration::to_wire),
        secrets: args.options.secret.iter().map(|text| secret(text)).collect::<Result<_, _>>()?,
        credentials: args.credentials.to_wire()?,
        step_memory_bytes: args.memory,
        step_cpu_millis: args.cpus,
        secret_ids: Vec::new(),
        cache_from: caches::<CacheImport>("--cache-from", &args.options.cache_from)?,
        cache_to: caches::<CacheExport>("--cache-to", &args.options.cache_to)?,
        definition: args.llb.as_deref().map(read_definition).transpose()?.unwrap_or_default().into(),
        tree_image: args.tree_image.clone(),
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
    if mounts.is_empty() && packed.is_none() && args.llb.is_none() {
        return Err(Failure::usage("a build needs files: at least one mount, or a directory to send")
            .hint("hearth build --tag my-app:dev ./my-app, or --mount-room-path apps/my-app"));
    }
    let all: Vec<BuildMount> = mounts.iter().chain(&packed).cloned().collect();
    check_distinct(&all).map_err(|error| Failure::usage(error.to_string()))?;
    let pack = packed.and_then(|spec| match spec.source {
        BuildMountSource::Pack(path) => Some(LocalPack { path: path.into(), target: spec.target }),
        _ => None,
    });
    if args.options.pack_room_path.is_some() && pack.is_none() {
        return Err(Failure::usage("--pack-room-path needs a pack: give PATH or --pack"));
    }
    Ok((mounts, pack))
}

/// Checks the values of a flag that names caches, and returns them as they are sent.
fn caches<T: FromStr<Err: Display>>(flag: &str, texts: &[String]) -> Result<Vec<String>, Failure> {
    for text in texts {
        if let Err(error) = text.parse::<T>() {
            return Err(Failure::usage(format!("{flag}: {error}")));
        }
    }
    Ok(texts.to_vec())
}

/// Reads LLB from a file, or from standard input.
fn read_definition(path: &Path) -> Result<Vec<u8>, Failure> {
    use std::io::Read as _;
    let failed =
        |error: std::io::Error| Failure::usage(format!("--llb: cannot read `{}`: {error}", path.display()));
    let mut bytes = Vec::new();
    let read = match path.to_str() {
        Some("-") => std::io::stdin().take(MAX_DEFINITION_BYTES + 1).read_to_end(&mut bytes),
        _ => {
            std::fs::File::open(path).map_err(failed)?.take(MAX_DEFINITION_BYTES + 1).read_to_end(&mut bytes)
        }
    };
    read.map_err(failed)?;
    if bytes.is_empty() || bytes.len() as u64 > MAX_DEFINITION_BYTES {
        let message = format!("--llb: a definition has 1 to {MAX_DEFINITION_BYTES} bytes");
        return Err(Failure::usage(message));
    }
    Ok(bytes)
}

fn annotations(texts: &[String]) -> Result<Vec<ImageAnnotation>, Failure> {
    let mut annotations = Vec::new();
    for text in texts {
        let AnnotationFlag { scopes, key, value } = AnnotationFlag::parse(text).map_err(|error| {
            Failure::usage(format!("--annotation `{text}`: {error}"))
                .hint(format!("expected `{}`", AnnotationFlag::GRAMMAR))
        })?;
        annotations.extend(scopes.into_iter().map(|(scope, platform)| ImageAnnotation {
            scope: scope.to_string(),
            platform: platform.unwrap_or_default(),
            key: key.clone(),
            value: value.clone(),
        }));
    }
    Ok(annotations)
}

pub(super) fn secret(text: &str) -> Result<BuildSecret, Failure> {
    let wrong = |why: String| {
        Failure::usage(format!("--secret: {why}")).hint(format!("expected `{}`", SecretFlag::GRAMMAR))
    };
    let SecretFlag { id, source } = SecretFlag::parse(text).map_err(|error| wrong(error.to_string()))?;
    let from_file =
        |path: &str| read_secret(path).map_err(|error| wrong(format!("cannot read `{path}`: {error}")));
    let value = match &source {
        SecretFlagSource::File(path) => from_file(path)?,
        SecretFlagSource::Room(name) => {
            return Ok(BuildSecret { id, room_secret: name.clone(), ..BuildSecret::default() });
        }
        SecretFlagSource::Variable(name) => {
            secret_variable(name).ok_or_else(|| wrong(format!("the variable `{name}` is not set")))?
        }
        SecretFlagSource::Unnamed => match secret_variable(&id) {
            Some(value) => value,
            None if Path::new(&id).exists() => from_file(&id)?,
            None => return Err(wrong(format!("there is neither a variable nor a file `{id}`"))),
        },
    };
    if value.len() as u64 > MAX_SECRET_BYTES {
        return Err(wrong(format!("secret `{id}` is over {} KiB", MAX_SECRET_BYTES / 1024)));
    }
    Ok(BuildSecret { id, value: value.into(), ..BuildSecret::default() })
}

fn secret_variable(name: &str) -> Option<Vec<u8>> {
    std::env::var_os(name).map(std::os::unix::ffi::OsStringExt::into_vec)
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
    fn a_secret_is_read_where_the_flag_says() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "value").unwrap();
        let read = secret(&format!("id=a,src={}", file.path().display())).unwrap();
        assert_eq!((read.id.as_str(), &read.value[..]), ("a", &b"value"[..]));
        assert!(secret("id=PATH").unwrap().value == secret("id=a,env=PATH").unwrap().value);
        for wrong in ["src=/x", "id=a,src=/no/such/file", "id=a,env=NOT_SET_72A", "id=NOT_SET_72A"] {
            assert_eq!(secret(wrong).unwrap_err().kind, crate::error::FailureKind::Usage, "{wrong}");
        }
    }
}
