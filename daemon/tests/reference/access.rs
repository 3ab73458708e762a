//! `docs/reference/access.md` is generated from the tables that decide about access, and lists every method and every
//! route. To regenerate it: `HEARTH_REGENERATE=1 cargo test -p hearthd --test reference`.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use hearthd::access::policy::{GRPC_METHODS, MethodGate, PolicyRule};
use hearthd::api::http::PUBLIC_PATHS;
use hearthd::registry::{RouteKind, RouteMethod};
use prost::Message as _;

const HEAD: &str = "\
# Who may do what

<!-- Made by a test from the tables that decide: `daemon/src/access/policy/methods.rs`, `daemon/src/registry/http/route.rs`
and `daemon/src/api/http.rs`. Write it again with `HEARTH_REGENERATE=1 cargo test -p hearthd --test reference`. -->

A caller is a participant with a token of the room, a service or a build with a token that the daemon made for it, or root
and the daemon's own user on the unix socket, who may do everything. A grant is part of a token's `api` scope. What is
missing denies, and a method without a row is not there for anybody.

`registry` lists and `pull` and `run` hold names, exact or with a trailing `*`: `repository` for an image of the room,
`registry/repository` for one of another registry. `storage.paths` holds paths, of which the longest that covers a path
decides. Builds, packs, uploads, mounts and services belong to the caller that made them: a participant is its name, a
service its id, whatever `--identity` calls it.
";

fn methods_of(descriptors: &[u8]) -> Vec<String> {
    let set = prost_types::FileDescriptorSet::decode(descriptors).unwrap();
    let services = set.file.iter().flat_map(|file| file.service.iter().map(move |service| (file, service)));
    services
        .flat_map(|(file, service)| {
            let path = format!("/{}.{}/", file.package(), service.name());
            service.method.iter().map(move |method| format!("{path}{}", method.name()))
        })
        .collect()
}

#[test]
fn the_table_has_each_method_that_is_served_and_no_other() {
    let served: BTreeSet<String> = [
        hearth_proto::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ]
    .into_iter()
    .flat_map(methods_of)
    .collect();
    let listed: BTreeSet<String> = GRPC_METHODS.iter().map(|method| method.path.to_owned()).collect();
    assert_eq!(served, listed);
}

/// Prefixes of the names of read-only methods.
const READING: [&str; 8] = ["Get", "List", "Read", "Watch", "Inspect", "Logs", "Digest", "Diff"];

#[test]
fn a_method_is_recorded_unless_its_name_says_that_it_only_reads() {
    let set = prost_types::FileDescriptorSet::decode(hearth_proto::FILE_DESCRIPTOR_SET).unwrap();
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                let row = GRPC_METHODS.iter().find(|row| row.path == path).unwrap();
                // A stream of messages from the client uploads content.
                let reads =
                    READING.iter().any(|word| method.name().starts_with(word)) && !method.client_streaming();
                assert_eq!(row.changes, !reads, "{path}: is each call in the audit trail?");
            }
        }
    }
}

fn gate(gate: MethodGate) -> &'static str {
    match gate {
        MethodGate::Public => "none, not even a token",
        MethodGate::Participant | MethodGate::Objects => "any token of the room",
        MethodGate::Build => "`containers.use_containers`",
        MethodGate::SeeBuilds => "`containers.use_containers` or `containers.logs`",
        MethodGate::ReadBuildLogs => "`containers.logs`",
        MethodGate::Services => "`services`",
        MethodGate::ReadServiceLogs => "`services` or `containers.logs`",
        MethodGate::Secrets => "`secrets`",
        MethodGate::Admin => "`admin`",
    }
}

fn route(kind: RouteKind, verb: RouteMethod) -> String {
    match kind.rule(verb) {
        None if kind == RouteKind::Catalog => {
            "any token of the room; it lists what `containers.registry.list` covers".to_owned()
        }
        None => "any token of the room".to_owned(),
        Some(PolicyRule::ProbeRepository) => {
            "`containers.registry.pull` or `containers.registry.write` covers the repository".to_owned()
        }
        Some(rule) => format!("`{}` covers the repository", rule.grant()),
    }
}

fn table() -> String {
    let mut text = HEAD.to_owned();
    text.push_str("\n## gRPC\n\n| method | takes | of what it names | recorded |\n|---|---|---|---|\n");
    for method in GRPC_METHODS {
        let recorded = match (method.gate, method.changes) {
            (_, true) => "each call",
            (MethodGate::Public, _) => "no",
            _ => "denials",
        };
        let objects = if method.objects.is_empty() { "-" } else { method.objects };
        writeln!(text, "| `{}` | {} | {objects} | {recorded} |", method.path, gate(method.gate)).unwrap();
    }
    text.push_str("\n## HTTP\n\n| route | method | takes |\n|---|---|---|\n");
    for path in PUBLIC_PATHS {
        writeln!(text, "| `{path}` | GET | none, not even a token |").unwrap();
    }
    for kind in RouteKind::ALL {
        for verb in kind.methods() {
            let takes = route(*kind, *verb);
            writeln!(text, "| `{}` | {} | {takes} |", kind.pattern(), verb.as_str()).unwrap();
        }
    }
    text.push_str(
        "\nAn upload belongs to the caller that began it. What changes something is recorded, and so is each denial:\n\
         `hearth audit` shows it. The ingress asks for any token of the room on routes that are private, and records\n\
         what it denies.\n",
    );
    text
}

#[test]
fn the_documentation_is_what_the_tables_say() {
    super::assert_current("access.md", &table());
}
