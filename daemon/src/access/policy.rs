//! The access policy: decides whether a [`Caller`] may perform a [`CallerAction`]. Pure values: no lock, no I/O.
//!
//! gRPC, `/v2/`, deploys and the ingress all use it. A gRPC call is checked twice: first its method
//! ([`methods`]), before the handler runs, and then each object that it names ([`CallerAction`]). A method
//! without a row in the table cannot be called: its callers see it as unimplemented.
//!
//! Each decision comes from one [`PolicyRule`]. The unit tests turn off one rule after the other and fail for a
//! rule whose absence no test case notices.

mod action;
mod methods;
mod spec;

use std::fmt;

use crate::model::access::{Caller, RegistryVerb, StorageVerb};
use crate::model::image::is_cached_name;
use crate::model::trust::TrustDomain;

pub use action::CallerAction;
pub use methods::{METHODS, Method, MethodGate};
pub use spec::{may_build, may_change, may_mount_in_builds, may_mount_in_service, may_run, may_run_image};

/// A refused action, with the grant that is missing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {}", needed(.grant))]
pub struct Denied {
    pub what: String,
    /// Missing grant. Empty if no grant would be enough.
    pub grant: &'static str,
    pub rule: Rule,
}

fn needed(grant: &str) -> String {
    if grant.is_empty() { "only its owner may".to_owned() } else { format!("that takes the grant `{grant}`") }
}

/// Declares the rules, each with the grant that it requires (as written in tokens and in the documentation) and its id.
macro_rules! rules {
    ($($rule:ident: $grant:literal, $id:literal;)*) => {
        /// A rule of the policy. The audit trail and the tests call it by its id.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Rule { $($rule),* }

        impl Rule {
            pub const ALL: &'static [Self] = &[$(Self::$rule),*];

            /// Grant that is sufficient. Empty if only the owner may, whatever grants others have.
            pub const fn grant(self) -> &'static str {
                match self { $(Self::$rule => $grant),* }
            }

            pub const fn id(self) -> &'static str {
                match self { $(Self::$rule => $id),* }
            }
        }
    };
}

rules! {
    Build: "containers.use_containers", "build";
    SeeBuilds: "containers.use_containers", "see-builds";
    ReadBuildLogs: "containers.logs", "read-build-logs";
    BuildOwner: "admin", "build-owner";
    ListOwner: "admin", "list-owner";
    ListRepository: "containers.registry.list", "list-repository";
    PullRepository: "containers.registry.pull", "pull-repository";
    ProbeRepository: "containers.registry.pull", "probe-repository";
    WriteRepository: "containers.registry.write", "write-repository";
    PullElsewhere: "containers.pull", "pull-elsewhere";
    PushElsewhere: "containers.registry.write", "push-elsewhere";
    RunRoomImage: "containers.run", "run-room-image";
    RunElsewhereImage: "containers.run", "run-elsewhere-image";
    ReadStorage: "storage.paths", "read-storage";
    WriteStorage: "storage.paths", "write-storage";
    RemoveTree: "storage.paths", "remove-tree";
    MountToRead: "storage.paths", "mount-to-read";
    MountToWrite: "storage.paths", "mount-to-write";
    Services: "services", "services";
    ReadServiceLogs: "containers.logs", "read-service-logs";
    ServiceOwner: "containers.run", "service-owner";
    Secrets: "secrets", "secrets";
    UseSecret: "secrets", "use-secret";
    HandOnToken: "admin", "hand-on-token";
    ContextMountOwner: "admin", "context-mount-owner";
    UploadOwner: "", "upload-owner";
    PackOwner: "", "pack-owner";
    Admin: "admin", "admin";
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

/// Decides whether a caller may perform an action; the error names the missing grant.
pub fn decide(caller: &Caller, action: &CallerAction<'_>) -> Result<(), Denied> {
    let Some((rule, answer)) = question(caller, action) else { return Ok(()) };
    match answer {
        _ if turned_off(rule) => Ok(()),
        Ok(()) => Ok(()),
        Err(grant) => Err(Denied { what: action.to_string(), grant, rule }),
    }
}

/// Owner whose builds and mounts a list shows: the caller, or `None` for those of everybody.
pub fn listed_owner(caller: &Caller) -> Option<&str> {
    let all = caller.scope.admin.is_some() || turned_off(Rule::ListOwner);
    (!all).then_some(&caller.name)
}

/// Trust domain whose builder a list shows: that of the caller, or `None` for all builders.
pub fn listed_domain(caller: &Caller) -> Option<&TrustDomain> {
    listed_owner(caller).map(|_| &caller.domain)
}

/// Returns the rule that decides, and its decision. The missing grant in the error is usually the rule's own.
/// `None` if any token of the room is enough.
fn question(caller: &Caller, action: &CallerAction<'_>) -> Option<(Rule, Result<(), &'static str>)> {
    let containers = caller.scope.containers.as_ref();
    let (admin, may_build) =
        (caller.scope.admin.is_some(), containers.is_some_and(|grant| grant.use_containers));
    let (services, logs) = (caller.scope.services.is_some(), containers.is_some_and(|grant| grant.logs));
    let secrets = caller.scope.secrets.is_some();
    let storage =
        |verb, path: &str, tree: bool| {
            caller.scope.storage.as_ref().is_some_and(|grant| {
                if tree { grant.allows_tree(verb, path) } else { grant.allows(verb, path) }
            })
        };
    let repository = |verb: RegistryVerb, name: &str| {
        containers.map(|grant| &grant.registry).is_some_and(|grant| match verb {
            RegistryVerb::List => grant.list.allow(name),
            RegistryVerb::Pull => grant.pull.allow(name),
            RegistryVerb::Write => grant.write.allow(name),
        })
    };
    let is_own = |owner: &str| admin || owner == caller.name;
    let (rule, allowed) = match action {
        CallerAction::Enter(method) => match method.gate {
            MethodGate::Public | MethodGate::Participant | MethodGate::Objects => return None,
            MethodGate::Build => (Rule::Build, may_build),
            MethodGate::SeeBuilds => (Rule::SeeBuilds, may_build || logs),
            MethodGate::ReadBuildLogs => (Rule::ReadBuildLogs, logs),
            MethodGate::Services => (Rule::Services, services),
            MethodGate::ReadServiceLogs => (Rule::ReadServiceLogs, services || logs),
            MethodGate::Secrets => (Rule::Secrets, secrets),
            MethodGate::Admin => (Rule::Admin, admin),
        },
        CallerAction::SendPack => (Rule::Build, may_build),
        CallerAction::UseBuild { owner, .. } => (Rule::BuildOwner, is_own(owner)),
        CallerAction::ListRepository(name) => {
            (Rule::ListRepository, repository(RegistryVerb::List, name.as_str()))
        }
        CallerAction::PullRepository(name) => {
            (Rule::PullRepository, repository(RegistryVerb::Pull, name.as_str()))
        }
        CallerAction::ProbeRepository(name) => {
            let may = |verb| repository(verb, name.as_str());
            (Rule::ProbeRepository, may(RegistryVerb::Pull) || may(RegistryVerb::Write))
        }
        CallerAction::WriteRepository(name) => {
            (Rule::WriteRepository, repository(RegistryVerb::Write, name.as_str()))
        }
        CallerAction::PullElsewhere(name) => {
            (Rule::PullElsewhere, containers.is_some_and(|grant| grant.pull.allow(name)))
        }
        CallerAction::PushElsewhere(name) => (Rule::PushElsewhere, repository(RegistryVerb::Write, name)),
        CallerAction::RunRoomImage { repository, name } => {
            let repository = repository.as_str();
            // A caller who pulled a cached image runs it by the name that it has in its own registry.
            let allowed = !is_cached_name(repository)
                && containers.is_some_and(|grant| {
                    grant.registry.run.allow(repository)
                        || grant.run.allow(repository)
                        || grant.run.allow(name)
                });
            (Rule::RunRoomImage, allowed)
        }
        CallerAction::RunElsewhereImage(name) => {
            (Rule::RunElsewhereImage, containers.is_some_and(|grant| grant.run.allow(name)))
        }
        CallerAction::ReadStorage(path) => (Rule::ReadStorage, storage(StorageVerb::Read, path, false)),
        CallerAction::WriteStorage(path) => (Rule::WriteStorage, storage(StorageVerb::Write, path, false)),
        CallerAction::RemoveTree(path) => (Rule::RemoveTree, storage(StorageVerb::Write, path, true)),
        CallerAction::MountStorage { verb: StorageVerb::Read, path } => {
            (Rule::MountToRead, storage(StorageVerb::Read, path, true))
        }
        CallerAction::MountStorage { verb: StorageVerb::Write, path } => {
            (Rule::MountToWrite, storage(StorageVerb::Write, path, true))
        }
        CallerAction::ChangeService { owner, run, .. } => {
            let runs = || question(caller, run).is_none_or(|(_, answer)| answer.is_ok());
            (Rule::ServiceOwner, is_own(owner) || runs())
        }
        CallerAction::UseSecret(_) => (Rule::UseSecret, secrets),
        CallerAction::ShowUsers => (Rule::Services, services),
        CallerAction::HandOnToken(scope) => {
            let lacking = if admin { None } else { caller.scope.lacks(scope) };
            return Some((Rule::HandOnToken, lacking.map_or(Ok(()), Err)));
        }
        CallerAction::UseContextMount { owner } => (Rule::ContextMountOwner, is_own(owner)),
        CallerAction::UseUpload { owner, .. } => (Rule::UploadOwner, *owner == caller.name),
        CallerAction::UsePack { owner, .. } => (Rule::PackOwner, *owner == caller.name),
    };
    Some((rule, if allowed { Ok(()) } else { Err(rule.grant()) }))
}

#[cfg(not(test))]
const fn turned_off(_: Rule) -> bool {
    false
}

#[cfg(test)]
use tests::turned_off;

#[cfg(test)]
mod tests;
