//! Provenance of a built image: what went into it, as SLSA provenance 1.0 with BuildKit's build type.
//!
//! It names files by digest, and holds no secret: of secrets it has the ids, and of URLs neither credentials nor
//! queries.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hearth_oci::sha256;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::dockerfile::Dockerfile;
use super::port::{BuildStatements, FetchedCommit, SolveOutcome};
use crate::model::attestation::{Predicate, SLSA_PROVENANCE_TYPE};
use crate::model::build::{BuildRecord, BuildSource};
use crate::model::image::Platform;
use crate::model::{BuildMountSource, MountTarget, ProvenanceMode, Reference};

/// Build type of Dockerfile builds, as BuildKit documents it.
const BUILD_TYPE: &str = "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md";
const BUILDER_ID: &str = concat!("pkg:generic/hearthd@", env!("CARGO_PKG_VERSION"));

/// The Dockerfile of a build.
pub(super) struct DockerfileSource {
    pub(super) dockerfile: Arc<Dockerfile>,
    pub(super) path: MountTarget,
}

/// Returns the statements that the image of a solve gets.
pub(super) fn statements(
    record: &BuildRecord,
    source: &DockerfileSource,
    solved: &SolveOutcome,
) -> BuildStatements {
    let spec = &record.spec;
    let has_provenance = spec.provenance != ProvenanceMode::Off;
    BuildStatements {
        names: spec.tags.iter().map(image_name).collect(),
        provenance: has_provenance.then(|| provenance(record, source, solved, Timestamp::now())),
        sbom: spec.sbom,
        in_index: spec.sbom || matches!(spec.provenance, ProvenanceMode::Min | ProvenanceMode::Max),
    }
}

/// Returns the provenance of the image that a solve made.
fn provenance(
    record: &BuildRecord,
    source: &DockerfileSource,
    solved: &SolveOutcome,
    finished: Timestamp,
) -> Predicate {
    let spec = &record.spec;
    let mut request = json!({
        "frontend": "dockerfile.v0",
        "locals": [{"name": "context"}, {"name": "dockerfile"}],
    });
    if !spec.secret_ids.is_empty() || !spec.room_secrets.is_empty() {
        let ids = spec.secret_ids.iter().chain(spec.room_secrets.keys());
        request["secrets"] = ids.map(|id| json!({"id": id})).collect();
    }
    if let Some(target) = &spec.target {
        request["args"]["target"] = json!(target);
    }
    let platforms = spec.result_platforms();
    let platform = platforms.iter().map(Platform::as_str).collect::<Vec<_>>().join(",");
    // The digest of an image that several platforms use is that of its index.
    let only = platforms.first().filter(|_| platforms.len() == 1);
    let mut metadata = json!({
        "invocationId": record.id.as_str(),
        "startedOn": record.started_at.map(|time| time.to_string()),
        "finishedOn": finished.to_string(),
    });
    // What BuildKit tells with `mode=max` only.
    if spec.provenance == ProvenanceMode::Max {
        let arguments = spec.build_args.iter().filter(|(name, _)| !is_proxy(name));
        let given = arguments.map(|(name, value)| (format!("build-arg:{name}"), value));
        for (name, value) in
            given.chain(spec.labels.iter().map(|(name, value)| (format!("label:{name}"), value)))
        {
            request["args"][name] = json!(value);
        }
        let data = STANDARD.encode(source.dockerfile.bytes());
        let info = json!({"filename": source.path.as_str(), "language": "Dockerfile", "data": data});
        metadata["buildkit_metadata"] = json!({"source": {"infos": [info]}});
    }
    let content = json!({
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {
                "configSource": {
                    "path": source.path.as_str(),
                    "digest": {"sha256": sha256(source.dockerfile.bytes()).hex()},
                },
                "request": request,
            },
            "internalParameters": {
                "builderPlatform": Platform::host().as_str(),
                "platform": platform,
                "submittedBy": record.submitted_by,
            },
            "resolvedDependencies": dependencies(record, only, &solved.commits),
        },
        "runDetails": {
            "builder": {
                "id": BUILDER_ID,
                "version": {"buildkit": solved.builder_version},
            },
            "metadata": metadata,
        },
    });
    Predicate { kind: SLSA_PROVENANCE_TYPE, content }
}

/// Reports whether an argument is one that sets a proxy, whose address may have a password in it.
fn is_proxy(name: &str) -> bool {
    name.to_ascii_lowercase().ends_with("_proxy")
}

/// Returns the mounts of the context by tree digest, and the images, files and repositories by theirs.
fn dependencies(record: &BuildRecord, platform: Option<&Platform>, commits: &[FetchedCommit]) -> Vec<Value> {
    let identity = record.context.as_ref();
    let mounts = record.spec.mounts.iter().map(|mount| {
        let own = identity.and_then(|identity| {
            identity.mounts.iter().find(|own| own.target == mount.target).map(|own| own.digest)
        });
        let mut entry = json!({"name": mount.target.as_str(), "uri": mount_uri(&mount.source)});
        if let Some(digest) = own {
            let text = digest.to_string();
            entry["digest"] = json!({"hearthTreeBlake3": text.strip_prefix("blake3:").unwrap_or(&text)});
        }
        entry
    });
    mounts.chain(record.sources.iter().map(|source| source_entry(source, platform, commits))).collect()
}

fn mount_uri(source: &BuildMountSource) -> String {
    match source {
        BuildMountSource::Room(path) => format!("hearth:room-storage/{path}"),
        BuildMountSource::Project(path) => format!("hearth:project-storage/{path}"),
        BuildMountSource::Image { reference, subpath } if subpath.is_empty() => image_name(reference),
        BuildMountSource::Image { reference, subpath } => format!("{}#{subpath}", image_name(reference)),
        BuildMountSource::Pack(_) => "hearth:pack".to_owned(),
    }
}

fn source_entry(source: &BuildSource, platform: Option<&Platform>, commits: &[FetchedCommit]) -> Value {
    let repository = source.name.strip_prefix("git://");
    let uri = match repository {
        Some(repository) => format!("git+https://{repository}"),
        None if source.name.contains("://") => without_credentials(&source.name),
        None => match source.name.parse() {
            Ok(reference) => {
                let platform = platform.map(|own| format!("?platform={}", own.as_str().replace('/', "%2F")));
                format!("{}{}", image_name(&reference), platform.unwrap_or_default())
            }
            Err(_) => source.name.clone(),
        },
    };
    let mut entry = json!({"uri": uri});
    if let Some(digest) = &source.digest {
        entry["digest"] = json!({"sha256": digest.hex()});
    }
    if let Some(commit) = repository.and_then(|repository| only_commit(repository, commits)) {
        entry["digest"] = json!({"gitCommit": commit});
    }
    entry
}

/// Returns the commit that was fetched of a repository; `None` if there are several, since which one is meant is not known.
fn only_commit<'a>(repository: &str, commits: &'a [FetchedCommit]) -> Option<&'a str> {
    let mut found = commits.iter().filter(|fetched| names_repository(&fetched.step, repository));
    let first = found.next()?.commit.as_str();
    found.all(|other| other.commit == first).then_some(first)
}

/// Reports whether a step names this repository, and not one whose name begins or ends with it.
fn names_repository(step: &str, repository: &str) -> bool {
    step.match_indices(repository).any(|(at, _)| {
        let (before, after) = (&step[..at], &step[at + repository.len()..]);
        (before.ends_with("//") || before.ends_with('@'))
            && (after.is_empty() || after.starts_with(['#', '?', ' ', '\t']))
    })
}

/// Returns the package URL of an image, as BuildKit writes it.
fn image_name(reference: &Reference) -> String {
    let registry = match &reference.registry {
        Some(registry) if registry.as_str() != "docker.io" => format!("{registry}/"),
        _ => String::new(),
    };
    let repository = reference.repository.as_str();
    let repository = if registry.is_empty() {
        repository.strip_prefix("library/").unwrap_or(repository)
    } else {
        repository
    };
    let tag = reference.tag_or_latest().map(|tag| format!("@{tag}")).unwrap_or_default();
    format!("pkg:docker/{registry}{repository}{tag}")
}

/// Returns a URL without user and password, query and fragment.
fn without_credentials(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::super::tests::record;
    use super::*;
    use crate::model::build::BuildState;
    use crate::model::{BuildMount, Digest, MountAccess};

    fn source(name: &str, digest: Option<Digest>) -> BuildSource {
        BuildSource { name: name.to_owned(), digest }
    }

    #[test]
    fn a_commit_is_that_of_exactly_this_repository() {
        let fetched =
            |step: &str, commit: &str| FetchedCommit { step: step.to_owned(), commit: commit.to_owned() };
        let commits = [
            fetched("ADD https://e.example/o/ab.git#main /a", "1"),
            fetched("ADD https://me@e.example/o/a.git /a", "2"),
            fetched("ADD https://x.example/e.example/o/a.git /a", "3"),
        ];
        assert_eq!(only_commit("e.example/o/a.git", &commits), Some("2"));
        assert_eq!(only_commit("e.example/o/a", &commits), None);
        let two = [
            fetched("ADD https://e.example/a.git#v1 /", "1"),
            fetched("ADD https://e.example/a.git#v2 /", "2"),
        ];
        assert_eq!(only_commit("e.example/a.git", &two), None, "two commits of one repository");
    }

    #[test]
    fn everything_that_went_in_is_named_without_credentials() {
        let sum = sha256(b"content");
        let mut record = record("app:1", BuildState::Running);
        record.spec.build_args = [("PASSWORD".to_owned(), "canary".to_owned())].into();
        record.spec.mounts = vec![BuildMount {
            source: BuildMountSource::Room("app".to_owned()),
            target: "/context".parse().unwrap(),
            mode: MountAccess::ReadOnly,
            create: false,
        }];
        record.spec.secret_ids = vec!["token".to_owned()];
        record.sources = vec![
            source("docker.io/library/alpine:3", Some(sum)),
            source("ghcr.io/me/app:1", Some(sum)),
            source("https://me:canary@e.example/a.tgz?sign=canary#canary", Some(sum)),
            source("git://e.example/a.git", None),
        ];
        let dockerfile = DockerfileSource {
            dockerfile: Arc::new(Dockerfile::parse(b"FROM alpine".to_vec())),
            path: "/context/Dockerfile".parse().unwrap(),
        };
        let step = "[2/2] ADD https://me@e.example/a.git#main /a".to_owned();
        let commits = vec![FetchedCommit { step, commit: "c0ffee".to_owned() }];
        let solved =
            SolveOutcome { cache: None, digest: sum, builder_version: "v0.32.2".to_owned(), commits };
        let made = provenance(&record, &dockerfile, &solved, Timestamp::UNIX_EPOCH);
        let text = made.content.to_string();
        assert!(!text.contains("canary"), "{text}");
        let definition = &made.content["buildDefinition"];
        let uris: Vec<&str> = definition["resolvedDependencies"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| entry["uri"].as_str().unwrap())
            .collect();
        assert_eq!(
            uris,
            [
                "hearth:room-storage/app",
                "pkg:docker/alpine@3?platform=linux%2Famd64",
                "pkg:docker/ghcr.io/me/app@1?platform=linux%2Famd64",
                "https://e.example/a.tgz",
                "git+https://e.example/a.git",
            ]
        );
        assert_eq!(definition["resolvedDependencies"][4]["digest"]["gitCommit"], "c0ffee");
        let parameters = &definition["externalParameters"];
        assert_eq!(parameters["configSource"]["digest"]["sha256"], sha256(b"FROM alpine").hex());
        assert_eq!(parameters["request"]["secrets"][0]["id"], "token");
        assert_eq!(made.content["runDetails"]["builder"]["version"]["buildkit"], "v0.32.2");

        record.spec.provenance = ProvenanceMode::Max;
        record.spec.build_args = [
            ("WORD".to_owned(), "x".to_owned()),
            ("HTTP_PROXY".to_owned(), "http://me:canary@proxy".to_owned()),
        ]
        .into();
        let made = provenance(&record, &dockerfile, &solved, Timestamp::UNIX_EPOCH);
        let arguments = &made.content["buildDefinition"]["externalParameters"]["request"]["args"];
        assert_eq!(*arguments, json!({"build-arg:WORD": "x"}));
        let info = &made.content["runDetails"]["metadata"]["buildkit_metadata"]["source"]["infos"][0];
        assert_eq!(info["data"], STANDARD.encode("FROM alpine"));
    }
}
