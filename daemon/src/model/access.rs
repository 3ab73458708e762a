//! Who calls, and what they may do. A missing grant denies.

use hearth_proto::value::Repository;
use serde::{Deserialize, Serialize};

use super::trust::TrustDomain;

/// A grant that is missing, and what it was wanted for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: that takes the grant `{grant}`")]
pub struct Denied {
    pub what: String,
    pub grant: String,
}

/// An authenticated caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub name: String,
    pub scope: ApiScope,
    /// Whose builder the caller's builds use.
    pub domain: TrustDomain,
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
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "granted")]
    pub services: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "granted")]
    pub secrets: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "granted")]
    pub admin: Option<serde_json::Value>,
}

/// `false` grants nothing.
fn granted<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<serde_json::Value>, D::Error> {
    let value = Option::<serde_json::Value>::deserialize(from)?;
    Ok(value.filter(|value| *value != serde_json::Value::Bool(false)))
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

/// Links on the way to a path of storage: whoever may use one part of it could make one that leads to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PathLinks {
    /// As long as they stay inside the storage.
    #[default]
    Followed,
    Refused,
}

impl Patterns {
    pub fn all() -> Self {
        Self(vec!["*".to_owned()])
    }

    /// Whether every name that `others` allow is allowed here.
    pub fn cover(&self, others: &Self) -> bool {
        others.0.iter().all(|other| match other.strip_suffix('*') {
            Some(prefix) => {
                self.0.iter().filter_map(|own| own.strip_suffix('*')).any(|own| prefix.starts_with(own))
            }
            None => self.allow(other),
        })
    }

    pub fn allow(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == pattern,
        })
    }
}

impl StorageGrant {
    /// Whether a path may be used. The longest path that covers it decides, so that a read-only folder can lie in a
    /// writable one.
    pub fn allows(&self, verb: StorageVerb, path: &str) -> bool {
        let covering = self.paths.iter().filter(|allowed| covers(&allowed.path, path));
        covering
            .max_by_key(|allowed| allowed.path.trim_matches('/').len())
            .is_some_and(|allowed| verb == StorageVerb::Read || !allowed.read_only)
    }

    /// Whether a path may be used with all that lies below it.
    fn allows_tree(&self, verb: StorageVerb, path: &str) -> bool {
        let below =
            self.paths.iter().map(|named| named.path.trim_matches('/')).filter(|named| covers(path, named));
        self.allows(verb, path) && below.into_iter().all(|named| self.allows(verb, named))
    }

    /// Whether everything that another allows is allowed here. Both change only at the paths that they name.
    fn covers(&self, other: &Self) -> bool {
        let named = self.paths.iter().chain(&other.paths).map(|named| named.path.trim_matches('/'));
        named
            .flat_map(|path| [(StorageVerb::Read, path), (StorageVerb::Write, path)])
            .all(|(verb, path)| !other.allows(verb, path) || self.allows(verb, path))
    }
}

impl ApiScope {
    /// A grant that `wanted` has and this scope has not, or not as far. None where it has all of them.
    pub fn lacks(&self, wanted: &Self) -> Option<&'static str> {
        let containers = self.containers.clone().unwrap_or_default();
        let storage = self.storage.clone().unwrap_or_default();
        let wanted_containers = wanted.containers.clone().unwrap_or_default();
        let (registry, wanted_registry) = (&containers.registry, &wanted_containers.registry);
        let covered = [
            ("admin", self.admin.is_some() || wanted.admin.is_none()),
            ("services", self.services.is_some() || wanted.services.is_none()),
            ("secrets", self.secrets.is_some() || wanted.secrets.is_none()),
            ("storage", storage.covers(&wanted.storage.clone().unwrap_or_default())),
            ("containers.use_containers", containers.use_containers || !wanted_containers.use_containers),
            ("containers.logs", containers.logs || !wanted_containers.logs),
            ("containers.pull", containers.pull.cover(&wanted_containers.pull)),
            ("containers.run", containers.run.cover(&wanted_containers.run)),
            ("containers.registry.list", registry.list.cover(&wanted_registry.list)),
            ("containers.registry.pull", registry.pull.cover(&wanted_registry.pull)),
            ("containers.registry.run", registry.run.cover(&wanted_registry.run)),
            ("containers.registry.write", registry.write.cover(&wanted_registry.write)),
        ];
        covered.into_iter().find(|(_, covered)| !covered).map(|(grant, _)| grant)
    }

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
    /// A participant, in the trust domain of its own name.
    pub fn new(name: impl Into<String>, scope: ApiScope) -> Self {
        let name = name.into();
        let domain = TrustDomain::of_caller(&name);
        Self { name, scope, domain }
    }

    /// The one behind the unix socket: root or the daemon's own user.
    pub fn local(uid: u32) -> Self {
        Self { domain: TrustDomain::local(), ..Self::new(format!("uid:{uid}"), ApiScope::full()) }
    }

    pub fn is_admin(&self) -> bool {
        self.scope.admin.is_some()
    }

    /// Whether the names of the room's secrets may be listed, and secrets be set and removed. Nobody reads one back.
    pub fn may_use_secrets(&self) -> bool {
        self.scope.secrets.is_some()
    }

    /// Whether services may be seen, deployed and changed.
    pub fn may_use_services(&self) -> bool {
        self.scope.services.is_some()
    }

    /// Whether an image of the room's registry may run. `name` is `registry/repository`.
    pub fn may_run(&self, repository: &Repository, name: &str) -> bool {
        self.scope.containers.as_ref().is_some_and(|grant| {
            grant.registry.run.allow(repository.as_str()) || grant.run.allow(repository.as_str())
        }) || self.may_run_from(name)
    }

    /// Whether an image of another registry may run; `name` is `registry/repository`.
    pub fn may_run_from(&self, name: &str) -> bool {
        self.scope.containers.as_ref().is_some_and(|grant| grant.run.allow(name))
    }

    /// A grant that keeps the caller from handing on this scope. An admin may make any.
    pub fn lacks(&self, scope: &ApiScope) -> Option<&'static str> {
        if self.is_admin() { None } else { self.scope.lacks(scope) }
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

    /// Whether a path of room or project storage may be mounted: what is written to it may lie anywhere below.
    pub fn may_mount(&self, verb: StorageVerb, path: &str) -> bool {
        self.scope.storage.as_ref().is_some_and(|grant| grant.allows_tree(verb, path))
    }

    /// Whether links in paths are followed: for callers who may use the whole storage.
    pub fn path_links(&self, verb: StorageVerb) -> PathLinks {
        if self.may_mount(verb, "") { PathLinks::Followed } else { PathLinks::Refused }
    }

    /// Whether a path of room or project storage may be used. `path` is normalised and relative.
    pub fn may_use_storage(&self, verb: StorageVerb, path: &str) -> bool {
        self.scope.storage.as_ref().is_some_and(|grant| grant.allows(verb, path))
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
        Caller::new("x", serde_json::from_value(scope).unwrap())
    }

    #[test]
    fn a_missing_grant_denies() {
        let nobody = caller(serde_json::json!({}));
        let repository = "a/b".parse().unwrap();
        assert!(!nobody.may_build() && !nobody.is_admin() && !nobody.may_read_logs());
        assert!(!nobody.may_use_secrets() && !nobody.may_use_services());
        assert!(!nobody.may_run(&repository, "room/a/b") && !nobody.may_run_from("room/a/b"));
        assert!(!nobody.may_use_repository(RegistryVerb::Pull, &repository));
        assert!(!nobody.may_use_storage(StorageVerb::Read, "a"));
        let builder = caller(serde_json::json!({"containers": {"use_containers": true}}));
        assert!(builder.may_build());
        assert!(!builder.may_use_repository(RegistryVerb::Write, &repository));
    }

    #[test]
    fn false_is_no_grant() {
        let refused = caller(serde_json::json!({"services": false, "secrets": false, "admin": null}));
        assert!(!refused.may_use_services() && !refused.may_use_secrets() && !refused.is_admin());
        let given = caller(serde_json::json!({"services": true, "secrets": {}, "admin": {}}));
        assert!(given.may_use_services() && given.may_use_secrets() && given.is_admin());
    }

    #[test]
    fn a_tree_with_a_read_only_part_is_not_mounted_to_be_written() {
        let paths = serde_json::json!([{"path": "/apps"}, {"path": "/apps/locked", "read_only": true}]);
        let caller = caller(serde_json::json!({"storage": {"paths": paths}}));
        for (verb, path, may) in [
            (StorageVerb::Write, "apps", false),
            (StorageVerb::Read, "apps", true),
            (StorageVerb::Write, "apps/mine", true),
            (StorageVerb::Write, "apps/locked/x", false),
            (StorageVerb::Read, "", false),
        ] {
            assert_eq!(caller.may_mount(verb, path), may, "{verb:?} {path}");
        }
    }

    #[test]
    fn agents_of_the_room_use_its_secrets_and_people_are_asked_for_a_grant() {
        let may = |scope| Caller::new("x", scope).may_use_secrets();
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
    fn only_who_may_use_the_whole_storage_has_links_followed() {
        use PathLinks::{Followed, Refused};
        let whole = serde_json::json!([{"path": "/"}]);
        let part = serde_json::json!([{"path": "a"}, {"path": "b"}]);
        let locked = serde_json::json!([{"path": "/"}, {"path": "a", "read_only": true}]);
        for (paths, read, write) in
            [(whole, Followed, Followed), (part, Refused, Refused), (locked, Followed, Refused)]
        {
            let caller = caller(serde_json::json!({"storage": {"paths": paths}}));
            assert_eq!(caller.path_links(StorageVerb::Read), read, "{paths}");
            assert_eq!(caller.path_links(StorageVerb::Write), write, "{paths}");
        }
        assert_eq!(Caller::local(0).path_links(StorageVerb::Write), Followed);
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

    #[test]
    fn an_image_of_the_room_runs_by_its_repository_or_its_whole_name() {
        let (repository, name) = ("team/web".parse().unwrap(), "room.meshagent.com/team/web");
        for (containers, allowed) in [
            (serde_json::json!({"registry": {"run": ["team/*"]}}), true),
            (serde_json::json!({"run": ["team/web"]}), true),
            (serde_json::json!({"run": ["room.meshagent.com/*"]}), true),
            (serde_json::json!({"run": ["web"], "registry": {"pull": ["*"], "write": ["*"]}}), false),
        ] {
            let caller = caller(serde_json::json!({"containers": containers}));
            assert_eq!(caller.may_run(&repository, name), allowed, "{containers}");
        }
        let room_only = caller(serde_json::json!({"containers": {"registry": {"run": ["*"]}}}));
        assert!(!room_only.may_run_from("docker.io/library/nginx"));
    }

    #[test]
    fn a_scope_that_is_handed_on_is_no_wider_than_the_callers_own() {
        let lacks =
            |own: serde_json::Value, wanted: serde_json::Value| caller(own).lacks(&caller(wanted).scope);
        let user = serde_json::to_value(ApiScope::user_default()).unwrap();
        let agent = serde_json::to_value(ApiScope::agent_default()).unwrap();
        let full = serde_json::to_value(ApiScope::full()).unwrap();
        for scope in [&user, &agent, &full] {
            assert_eq!(lacks(scope.clone(), scope.clone()), None);
            assert_eq!(lacks(full.clone(), scope.clone()), None);
            assert_eq!(lacks(scope.clone(), serde_json::json!({})), None);
        }
        assert_eq!(lacks(user.clone(), agent.clone()), Some("secrets"));
        assert_eq!(lacks(agent, full.clone()), Some("admin"));
        assert_eq!(lacks(serde_json::json!({"containers": {}}), user), Some("services"));
        // An admin may make what it has not itself.
        assert_eq!(lacks(serde_json::json!({"admin": {}}), full), None);
        let run = |names: &[&str]| serde_json::json!({"containers": {"run": names}});
        for (own, wanted, covered) in [
            (&["a/*"][..], &["a/b", "a/b/*", "a/*"][..], true),
            (&["a/*"], &["a*"], false),
            (&["a"], &["a*"], false),
            (&["a", "b"], &["b"], true),
            (&[], &["a"], false),
        ] {
            assert_eq!(lacks(run(own), run(wanted)).is_none(), covered, "{own:?} {wanted:?}");
        }
    }

    #[test]
    fn storage_that_is_handed_on_keeps_its_locked_folders() {
        let storage = |paths: &[(&str, bool)]| {
            let path =
                |(path, read_only): &(&str, bool)| serde_json::json!({"path": path, "read_only": read_only});
            serde_json::json!({"storage": {"paths": paths.iter().map(path).collect::<Vec<_>>()}})
        };
        let own = [("/apps", false), ("/apps/locked", true)];
        for (wanted, covered) in [
            (&[("apps/x", false)][..], true),
            (&[("/apps", true)], true),
            (&own[..], true),
            // Its locked folder would be writable.
            (&[("/apps", false)], false),
            (&[("/apps/locked/deep", false)], false),
            (&[("/apps/locked/deep", true)], true),
            (&[("/", true)], false),
        ] {
            let lacks = caller(storage(&own)).lacks(&caller(storage(wanted)).scope);
            assert_eq!(lacks, (!covered).then_some("storage"), "{wanted:?}");
        }
    }
}
