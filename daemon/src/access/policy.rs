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
pub use methods::{GRPC_METHODS, GrpcMethod, MethodGate};
pub use spec::{may_build, may_change, may_mount_in_builds, may_mount_in_service, may_run, may_run_image};

/// A refused action, with the grant that is missing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {}", required_grant_text(.grant))]
pub struct AccessDenied {
    pub what: String,
    /// Missing grant. Empty if no grant would be enough.
    pub grant: &'static str,
    pub rule: PolicyRule,
}

fn required_grant_text(grant: &str) -> String {
    if grant.is_empty() { "only its owner may".to_owned() } else { format!("that takes the grant `{grant}`") }
}

/// Declares the rules, each with the grant that it requires (as written in tokens and in the documentation) and its id.
macro_rules! rules {
    ($($rule:ident: $grant:literal, $id:literal;)*) => {
        /// A rule of the policy. The audit trail and the tests call it by its id.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum PolicyRule { $($rule),* }

        impl PolicyRule {
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
    PullRemoteImage: "containers.pull", "pull-elsewhere";
    PushRemoteImage: "containers.registry.write", "push-elsewhere";
    RunRoomImage: "containers.run", "run-room-image";
    RunRemoteImage: "containers.run", "run-elsewhere-image";
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
    DelegateToken: "admin", "hand-on-token";
    ContextMountOwner: "admin", "context-mount-owner";
    UploadOwner: "", "upload-owner";
    PackOwner: "", "pack-owner";
    Admin: "admin", "admin";
}

impl fmt::Display for PolicyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

/// Decides whether a caller may perform an action; the error names the missing grant.
pub fn decide(caller: &Caller, action: &CallerAction<'_>) -> Result<(), AccessDenied> {
    let Some((rule, answer)) = evaluate(caller, action) else { return Ok(()) };
    match answer {
        _ if turned_off(rule) => Ok(()),
        Ok(()) => Ok(()),
        Err(grant) => Err(AccessDenied { what: action.to_string(), grant, rule }),
    }
}

/// Owner whose builds and mounts a list shows: the caller, or `None` for those of everybody.
pub fn listed_owner(caller: &Caller) -> Option<&str> {
    let all = caller.scope.admin.is_some() || turned_off(PolicyRule::ListOwner);
    (!all).then_some(&caller.name)
}

/// Trust domain whose builder a list shows: that of the caller, or `None` for all builders.
pub fn listed_domain(caller: &Caller) -> Option<&TrustDomain> {
    listed_owner(caller).map(|_| &caller.domain)
}

/// Returns the rule that decides, and its decision. The missing grant in the error is usually the rule's own.
/// `None` if any token of the room is enough.
fn evaluate(caller: &Caller, action: &CallerAction<'_>) -> Option<(PolicyRule, Result<(), &'static str>)> {
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
            RegistryVerb::List => grant.list.allows(name),
            RegistryVerb::Pull => grant.pull.allows(name),
            RegistryVerb::Write => grant.write.allows(name),
        })
    };
    let is_own = |owner: &str| admin || owner == caller.name;
    let (rule, allowed) = match action {
        CallerAction::CallMethod(method) => match method.gate {
            MethodGate::Public | MethodGate::Participant | MethodGate::Objects => return None,
            MethodGate::Build => (PolicyRule::Build, may_build),
            MethodGate::SeeBuilds => (PolicyRule::SeeBuilds, may_build || logs),
            MethodGate::ReadBuildLogs => (PolicyRule::ReadBuildLogs, logs),
            MethodGate::Services => (PolicyRule::Services, services),
            MethodGate::ReadServiceLogs => (PolicyRule::ReadServiceLogs, services || logs),
            MethodGate::Secrets => (PolicyRule::Secrets, secrets),
            MethodGate::Admin => (PolicyRule::Admin, admin),
        },
        CallerAction::SendPack => (PolicyRule::Build, may_build),
        CallerAction::UseBuild { owner, .. } => (PolicyRule::BuildOwner, is_own(owner)),
        CallerAction::ListRepository(name) => {
            (PolicyRule::ListRepository, repository(RegistryVerb::List, name.as_str()))
        }
        CallerAction::PullRepository(name) => {
            (PolicyRule::PullRepository, repository(RegistryVerb::Pull, name.as_str()))
        }
        CallerAction::ProbeRepository(name) => {
            let may = |verb| repository(verb, name.as_str());
            (PolicyRule::ProbeRepository, may(RegistryVerb::Pull) || may(RegistryVerb::Write))
        }
        CallerAction::WriteRepository(name) => {
            (PolicyRule::WriteRepository, repository(RegistryVerb::Write, name.as_str()))
        }
        CallerAction::PullRemoteImage(name) => {
            (PolicyRule::PullRemoteImage, containers.is_some_and(|grant| grant.pull.allows(name)))
        }
        CallerAction::PushRemoteImage(name) => {
            (PolicyRule::PushRemoteImage, repository(RegistryVerb::Write, name))
        }
        CallerAction::RunRoomImage { repository, name } => {
            let repository = repository.as_str();
            // A caller who pulled a cached image runs it by the name that it has in its own registry.
            let allowed = !is_cached_name(repository)
                && containers.is_some_and(|grant| {
                    grant.registry.run.allows(repository)
                        || grant.run.allows(repository)
                        || grant.run.allows(name)
                });
            (PolicyRule::RunRoomImage, allowed)
        }
        CallerAction::RunRemoteImage(name) => {
            (PolicyRule::RunRemoteImage, containers.is_some_and(|grant| grant.run.allows(name)))
        }
        CallerAction::ReadStorage(path) => (PolicyRule::ReadStorage, storage(StorageVerb::Read, path, false)),
        CallerAction::WriteStorage(path) => {
            (PolicyRule::WriteStorage, storage(StorageVerb::Write, path, false))
        }
        CallerAction::RemoveTree(path) => (PolicyRule::RemoveTree, storage(StorageVerb::Write, path, true)),
        CallerAction::MountStorage { verb: StorageVerb::Read, path } => {
            (PolicyRule::MountToRead, storage(StorageVerb::Read, path, true))
        }
        CallerAction::MountStorage { verb: StorageVerb::Write, path } => {
            (PolicyRule::MountToWrite, storage(StorageVerb::Write, path, true))
        }
        CallerAction::ChangeService { owner, run, .. } => {
            let runs = || evaluate(caller, run).is_none_or(|(_, answer)| answer.is_ok());
            (PolicyRule::ServiceOwner, is_own(owner) || runs())
        }
        CallerAction::UseSecret(_) => (PolicyRule::UseSecret, secrets),
        CallerAction::SeeSecretUsers => (PolicyRule::Services, services),
        CallerAction::DelegateToken(scope) => {
            let lacking = if admin { None } else { caller.scope.missing_grant(scope) };
            return Some((PolicyRule::DelegateToken, lacking.map_or(Ok(()), Err)));
        }
        CallerAction::UseContextMount { owner } => (PolicyRule::ContextMountOwner, is_own(owner)),
        CallerAction::UseUpload { owner, .. } => (PolicyRule::UploadOwner, *owner == caller.name),
        CallerAction::UsePack { owner, .. } => (PolicyRule::PackOwner, *owner == caller.name),
    };
    Some((rule, if allowed { Ok(()) } else { Err(rule.grant()) }))
}

#[cfg(not(test))]
const fn turned_off(_: PolicyRule) -> bool {
    false
}

#[cfg(test)]
use tests::turned_off;

#[cfg(test)]
mod tests;
