//! Adds to the fault of a failed step which of its connections were refused.
//!
//! A builder records refusals by network namespace, and not by step. The bundles of the steps that still run tell
//! which namespaces other steps had at that moment. The remaining refusals belong to the failed step, or to a step of
//! the same builder that has ended since. When another step ran beside the failed one, or refusals came from several
//! namespaces, the message says so instead of naming the failed step alone.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use serde::Deserialize;

use crate::git_proxy::GitRefusal;
use crate::model::fault::{ErrorCode, Fault};
use crate::network::steps::{BuilderNetwork, RefusedConnection};

/// Maximum number of hosts that a message names.
const MAX_NAMED_HOSTS: usize = 5;
/// Time limit for reading the refusals of a failed build.
const LIMIT: Duration = Duration::from_secs(3);

/// A network namespace that a running step uses, and its start time.
#[derive(Debug, PartialEq, Eq)]
struct NamespaceInUse {
    container: String,
    since: SystemTime,
}

/// Adds the refusals since the step began to its fault, which then has the code `egress_refused`. `shared` means that
/// another step of the build ran at the same time.
pub(super) async fn explain_refused_connections(
    fault: &mut Fault,
    network: &BuilderNetwork,
    executor: Option<&Path>,
    started_at: Instant,
    shared: bool,
) {
    let refused = match tokio::time::timeout(LIMIT, network.refused_since(started_at)).await {
        Ok(Ok(refused)) if refused.is_empty() => return,
        Ok(Ok(refused)) => refused,
        Ok(Err(error)) => {
            return tracing::warn!(%error, "failed to read the refused connections of a failed step");
        }
        Err(_) => return tracing::warn!("failed to read the refused connections of a failed step in time"),
    };
    let executor = executor.map(Path::to_owned);
    let looked = crate::task::blocking("bundles", move || {
        executor.map(|dir| namespaces_in_use(&dir)).unwrap_or_default()
    });
    let busy = looked.await.unwrap_or_default();
    add_refusals_of_step(fault, &refused, &busy, shared);
}

fn add_refusals_of_step(
    fault: &mut Fault,
    refused: &[RefusedConnection],
    busy: &[NamespaceInUse],
    shared: bool,
) {
    let of_step = |refused: &&RefusedConnection| {
        let Some(container) = &refused.container else {
            // A refusal of the builder itself, such as for a repository: only the message tells which step it belongs
            // to.
            return fault.message.contains(&refused.host)
                || refused.to.is_some_and(|(address, _)| fault.message.contains(&address.to_string()));
        };
        let at = SystemTime::now() - refused.at.elapsed();
        !busy.iter().any(|other| other.container == *container && other.since < at)
    };
    let of_step: Vec<_> = refused.iter().filter(of_step).collect();
    let mut namespaces: Vec<&str> = of_step.iter().filter_map(|one| one.container.as_deref()).collect();
    namespaces.sort_unstable();
    namespaces.dedup();
    let or_another = match namespaces.len() {
        0 => "",
        1 if !shared => "",
        _ => ", or another step that ran at that time,",
    };
    let shown: Vec<_> = of_step.into_iter().map(|one| (shown(one), one.to.is_some())).collect();
    name_refused_hosts(fault, shown.into_iter(), or_another);
}

/// Does the same for a repository that git could not fetch, with the refusals of the proxy to this builder since the
/// solve began. They may include refusals of a concurrent build of the same trust domain.
pub(super) fn explain_refused_git(fault: &mut Fault, refused: &[GitRefusal]) {
    name_refused_hosts(
        fault,
        refused.iter().map(|GitRefusal { host, port, address, .. }| {
            let host = match address {
                None => host.clone(),
                Some(address) if *host == address.to_string() => format!("{address} port {port}"),
                Some(address) => format!("{host} ({address} port {port})"),
            };
            (host, address.is_some())
        }),
        "",
    );
}

/// Names the refused connections in the fault. Each item is the display text and whether the address was refused (not
/// the name). `or_another` follows the step when the refusals may belong to another step.
fn name_refused_hosts(fault: &mut Fault, refused: impl Iterator<Item = (String, bool)>, or_another: &str) {
    let mut hosts: Vec<String> = Vec::new();
    let (mut by_name, mut by_address) = (false, false);
    for (host, for_address) in refused {
        by_name |= !for_address;
        by_address |= for_address;
        if !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    if hosts.is_empty() {
        return;
    }
    let more = hosts.len().saturating_sub(MAX_NAMED_HOSTS);
    hosts.truncate(MAX_NAMED_HOSTS);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let step = fault.step.as_deref().unwrap_or("this step");
    fault.message = format!(
        "`{step}`{or_another} was refused a connection to {}{more}: {}",
        hosts.join(", "),
        fault.message
    );
    fault.code = ErrorCode::EgressRefused.into();
    fault.hint = Some(match (by_name, by_address) {
        (true, false) => {
            "the daemon's operator lists in `[builds.egress] allow` which hosts builds reach, and this is none of them"
        }
        _ => {
            "a step reaches nothing of the daemon's machine and no link-local address; private networks and other hosts \
             are reached as far as the daemon's operator lists them in `[builds.egress] allow`"
        }
    }
    .to_owned());
}

fn shown(refused: &RefusedConnection) -> String {
    match refused.to {
        None => refused.host.clone(),
        Some((address, port)) if refused.host == address.to_string() => format!("{address} port {port}"),
        Some((address, port)) => format!("{} ({address} port {port})", refused.host),
    }
}

/// Returns the namespaces of all running steps. A bundle that cannot be read belongs to a step that has ended
/// meanwhile.
fn namespaces_in_use(executor: &Path) -> Vec<NamespaceInUse> {
    let bundles = fs::read_dir(executor).into_iter().flatten().flatten();
    let namespace = |bundle: &fs::DirEntry| {
        let config: BundleConfig =
            serde_json::from_slice(&fs::read(bundle.path().join("config.json")).ok()?).ok()?;
        let path = config.linux.namespaces.into_iter().find(|one| one.kind == "network")?.path?;
        let container = Path::new(&path).file_name()?.to_str()?.to_owned();
        Some(NamespaceInUse { container, since: bundle.metadata().ok()?.modified().ok()? })
    };
    bundles.filter_map(|bundle| namespace(&bundle)).collect()
}

#[derive(Deserialize)]
struct BundleConfig {
    linux: BundleLinux,
}

#[derive(Deserialize)]
struct BundleLinux {
    namespaces: Vec<BundleNamespace>,
}

#[derive(Deserialize)]
struct BundleNamespace {
    #[serde(rename = "type")]
    kind: String,
    path: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fault::FaultStage;

    fn refused(container: Option<&str>, host: &str, to: Option<([u8; 4], u16)>) -> RefusedConnection {
        RefusedConnection {
            container: container.map(str::to_owned),
            host: host.to_owned(),
            to: to.map(|(address, port)| (address.into(), port)),
            at: Instant::now(),
        }
    }

    fn failed() -> Fault {
        let mut fault = Fault::new(FaultStage::Solve, ErrorCode::StepFailed, "exit code: 1");
        fault.step = Some("[2/2] RUN wget x".to_owned());
        fault.exit_code = Some(1);
        fault
    }

    #[test]
    fn hosts_and_step_are_named_and_the_exit_code_stays() {
        let all = [
            refused(Some("a"), "evil.example", None),
            refused(Some("a"), "db.example", Some(([10, 0, 0, 5], 5432))),
            refused(Some("a"), "10.0.0.6", Some(([10, 0, 0, 6], 80))),
        ];
        let mut fault = failed();
        add_refusals_of_step(&mut fault, &all, &[], false);
        assert_eq!(fault.code, "egress_refused");
        assert_eq!(
            fault.message,
            "`[2/2] RUN wget x` was refused a connection to evil.example, db.example (10.0.0.5 port 5432), 10.0.0.6 port \
             80: exit code: 1"
        );
        assert_eq!(fault.exit_code, Some(1));
    }

    #[test]
    fn a_refusal_that_may_be_another_steps_is_not_put_to_the_failed_one_alone() {
        let said = |all: &[RefusedConnection], shared| {
            let mut fault = failed();
            add_refusals_of_step(&mut fault, all, &[], shared);
            fault.message
        };
        let one = refused(Some("a"), "evil.example", None);
        let other = refused(Some("b"), "db.example", None);
        let or_another =
            "`[2/2] RUN wget x`, or another step that ran at that time, was refused a connection to";
        assert!(said(std::slice::from_ref(&one), true).starts_with(or_another));
        assert!(said(&[one, other], false).starts_with(or_another));
    }

    #[test]
    fn what_was_refused_to_a_step_that_runs_is_none_of_the_failed_ones() {
        let all = [refused(Some("a"), "evil.example", None), refused(None, "git.example", None)];
        let long_ago = SystemTime::now() - Duration::from_secs(60);
        let mut fault = failed();
        add_refusals_of_step(
            &mut fault,
            &all,
            &[NamespaceInUse { container: "a".to_owned(), since: long_ago }],
            false,
        );
        assert_eq!(fault, failed());
        // The namespace was reused by the next step after the refusal.
        let later = SystemTime::now() + Duration::from_secs(60);
        add_refusals_of_step(
            &mut fault,
            &all,
            &[NamespaceInUse { container: "a".to_owned(), since: later }],
            false,
        );
        assert!(fault.message.contains("evil.example") && !fault.message.contains("git.example"));
    }

    #[test]
    fn what_the_proxy_refused_to_git_is_named_with_its_address() {
        let refusal = |host: &str, address: Option<&str>| GitRefusal {
            host: host.to_owned(),
            port: 443,
            address: address.map(|address| address.parse().unwrap()),
            at: Instant::now(),
        };
        let mut fault = Fault::new(FaultStage::Solve, ErrorCode::RepositoryNotFetched, "git stderr");
        explain_refused_git(&mut fault, &[]);
        assert_eq!(fault.code, "repository_not_fetched");
        let all =
            [refusal("a.example", None), refusal("b.example", Some("::1")), refusal("::1", Some("::1"))];
        explain_refused_git(&mut fault, &all);
        assert_eq!(fault.code, "egress_refused");
        assert!(fault.message.contains("to a.example, b.example (::1 port 443), ::1 port 443:"), "{fault:?}");
    }

    #[test]
    fn the_namespace_of_a_bundle_is_read_from_its_configuration() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("one")).unwrap();
        fs::create_dir_all(dir.path().join("ended")).unwrap();
        let config =
            r#"{"linux": {"namespaces": [{"type": "pid"}, {"type": "network", "path": "/s/net/cni/abc"}]}}"#;
        fs::write(dir.path().join("one/config.json"), config).unwrap();
        let containers: Vec<_> =
            namespaces_in_use(dir.path()).into_iter().map(|busy| busy.container).collect();
        assert_eq!(containers, ["abc"]);
    }
}
