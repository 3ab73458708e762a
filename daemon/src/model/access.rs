//! Who calls, and what they may do. A missing grant denies.

use hearth_proto::value::Repository;
use serde::{Deserialize, Serialize};

/// An authenticated caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub name: String,
    pub scope: ApiScope,
}

/// The `api` grant of a participant token: what its bearer may do through the API.
///
/// Fields that this daemon does not know are kept out of its decisions and are no error: tokens are
/// made by others too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ApiScope {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub containers: Option<ContainersGrant>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage: Option<StorageGrant>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub services: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secrets: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin: Option<serde_json::Value>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainersGrant {
    pub use_containers: bool,
    pub logs: bool,
    pub pull: Patterns,
    pub run: Patterns,
    pub registry: RegistryGrant,
}

/// What may be done with the repositories of the room's registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RegistryGrant {
    pub list: Patterns,
    pub pull: Patterns,
    pub run: Patterns,
    pub write: Patterns,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StorageGrant {
    pub paths: Vec<StoragePath>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoragePath {
    /// This path and all below it; `/` is the whole storage.
    pub path: String,
    #[serde(default)]
    pub read_only: bool,
}

/// Names, each exact or with a trailing `*`. Empty allows nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Patterns(pub Vec<String>);

/// What a caller wants to do with a repository of the room's registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegistryVerb {
    List,
    Pull,
    Write,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageVerb {
    Read,
    Write,
}

impl Patterns {
    pub fn all() -> Self {
        Self(vec!["*".to_owned()])
    }

    pub fn allow(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == pattern,
        })
    }
}

impl ApiScope {
    /// Everything, `admin` included.
    pub fn full() -> Self {
        Self { admin: Some(serde_json::json!({})), ..Self::agent_default() }
    }

    /// What an agent of the room may do: everything but `admin`.
    pub fn agent_default() -> Self {
        Self { secrets: Some(serde_json::json!({})), ..Self::user_default() }
    }

    /// What a person in the room may do: build, run and read logs, but not read secrets.
    pub fn user_default() -> Self {
        let all = Patterns::all;
        Self {
            containers: Some(ContainersGrant {
                use_containers: true,
                logs: true,
                pull: all(),
                run: all(),
                registry: RegistryGrant { list: all(), pull: all(), run: all(), write: all() },
            }),
            storage: Some(StorageGrant {
                paths: vec![StoragePath { path: "/".to_owned(), read_only: false }],
            }),
            services: Some(serde_json::json!({})),
            secrets: None,
            admin: None,
        }
    }
}

impl Caller {
    /// The one behind the unix socket: root or the daemon's own user.
    pub fn local(uid: u32) -> Self {
        Self { name: format!("uid:{uid}"), scope: ApiScope::full() }
    }

    pub fn is_admin(&self) -> bool {
        self.scope.admin.is_some()
    }

    /// Whether the names of the room's secrets may be listed, and secrets be set and removed. Nobody reads one back.
    pub fn may_use_secrets(&self) -> bool {
        self.scope.secrets.is_some()
    }

    pub fn may_build(&self) -> bool {
        self.scope.containers.as_ref().is_some_and(|grant| grant.use_containers)
    }

    pub fn may_read_logs(&self) -> bool {
        self.scope.containers.as_ref().is_some_and(|grant| grant.logs)
    }

    pub fn may_use_repository(&self, verb: RegistryVerb, repository: &Repository) -> bool {
        let Some(grant) = self.scope.containers.as_ref().map(|containers| &containers.registry) else {
            return false;
        };
        let patterns = match verb {
            RegistryVerb::List => &grant.list,
            RegistryVerb::Pull => &grant.pull,
            RegistryVerb::Write => &grant.write,
        };
        patterns.allow(repository.as_str())
    }

    /// Whether an image of another registry may be read here; `name` is `registry/repository`.
    pub fn may_pull_from(&self, name: &str) -> bool {
        self.scope.containers.as_ref().is_some_and(|containers| containers.pull.allow(name))
    }

    /// Whether images may be sent to another registry; `name` is `registry/repository`.
    pub fn may_push_to(&self, name: &str) -> bool {
        self.scope.containers.as_ref().is_some_and(|containers| containers.registry.write.allow(name))
    }

    /// Whether a path of room or project storage may be used. `path` is normalised and relative.
    pub fn may_use_storage(&self, verb: StorageVerb, path: &str) -> bool {
        self.scope.storage.as_ref().is_some_and(|grant| {
            // The longest path that covers this one decides, so that a read-only folder can lie in a writable one.
            grant
                .paths
                .iter()
                .filter(|allowed| covers(&allowed.path, path))
                .max_by_key(|allowed| allowed.path.trim_matches('/').len())
                .is_some_and(|allowed| verb == StorageVerb::Read || !allowed.read_only)
        })
    }
}

fn covers(allowed: &str, path: &str) -> bool {
    let allowed = allowed.trim_matches('/');
    allowed.is_empty()
        || path.strip_prefix(allowed).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(scope: serde_json::Value) -> Caller {
        Caller { name: "x".to_owned(), scope: serde_json::from_value(scope).unwrap() }
    }

    #[test]
    fn a_missing_grant_denies() {
        let nobody = caller(serde_json::json!({}));
        let repository = "a/b".parse().unwrap();
        assert!(!nobody.may_build() && !nobody.is_admin() && !nobody.may_read_logs());
        assert!(!nobody.may_use_secrets());
        assert!(!nobody.may_use_repository(RegistryVerb::Pull, &repository));
        assert!(!nobody.may_use_storage(StorageVerb::Read, "a"));
        let builder = caller(serde_json::json!({"containers": {"use_containers": true}}));
        assert!(builder.may_build());
        assert!(!builder.may_use_repository(RegistryVerb::Write, &repository));
    }

    #[test]
    fn agents_of_the_room_use_its_secrets_and_people_are_asked_for_a_grant() {
        let may = |scope| Caller { name: "x".to_owned(), scope }.may_use_secrets();
        assert!(may(ApiScope::full()) && may(ApiScope::agent_default()));
        assert!(!may(ApiScope::user_default()));
        assert!(caller(serde_json::json!({"secrets": {}})).may_use_secrets());
    }

    #[test]
    fn names_are_exact_or_have_a_trailing_star() {
        let caller = caller(serde_json::json!({"containers": {"registry": {"pull": ["a/b", "team/*"]}}}));
        for (name, allowed) in
            [("a/b", true), ("a/bc", false), ("a", false), ("team/x/y", true), ("team", false)]
        {
            let repository = name.parse().unwrap();
            assert_eq!(caller.may_use_repository(RegistryVerb::Pull, &repository), allowed, "{name}");
            assert!(!caller.may_use_repository(RegistryVerb::Write, &repository), "{name}");
        }
    }

    #[test]
    fn the_deepest_storage_path_decides() {
        let caller = caller(serde_json::json!({"storage": {"paths": [
            {"path": "/apps"}, {"path": "apps/locked/", "read_only": true}
        ]}}));
        for (path, read, write) in [
            ("apps", true, true),
            ("apps/x/y", true, true),
            ("apps/locked", true, false),
            ("apps/locked/x", true, false),
            ("appsx", false, false),
            ("", false, false),
        ] {
            assert_eq!(caller.may_use_storage(StorageVerb::Read, path), read, "{path}");
            assert_eq!(caller.may_use_storage(StorageVerb::Write, path), write, "{path}");
        }
        assert!(Caller::local(0).may_use_storage(StorageVerb::Write, "anything"));
    }
}
