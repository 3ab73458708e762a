//! The authenticated caller and the grants of its token. `access::policy` decides what the grants permit.

use serde::{Deserialize, Serialize};

use super::image::is_cached_name;
use super::trust::TrustDomain;

/// Prefixes of stored names that belong to no participant: services, builds, users of the machine, and owners of what
/// the daemon keeps on behalf of a caller. No token makes a participant with such a name, so that where only a name is
/// stored it cannot be mistaken for another kind of caller.
pub const RESERVED_NAMES: [&str; 5] = [SERVICE_NAME, BUILD_NAME, USER_NAME, "caller:", BUILD_MOUNTS_OWNER];
pub const SERVICE_NAME: &str = "service:";
pub(crate) const BUILD_NAME: &str = "build:";
pub const USER_NAME: &str = "uid:";
/// Owner prefix of the packs that hold the mounts of a caller's builds; the caller's name follows.
pub const BUILD_MOUNTS_OWNER: &str = "image mounts of ";

/// An authenticated caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Owner name of everything that this caller creates. It is unique: no two callers have the same name, and no
    /// caller can choose the name of another. A participant has the name in its token; a service has `service:` and its
    /// id, whatever it calls itself; a caller on the unix socket has `uid:` and its user id.
    pub name: String,
    pub scope: ApiScope,
    /// Trust domain whose builder runs the caller's builds.
    pub domain: TrustDomain,
}

impl Caller {
    /// Reports whether the caller is the builder of one build.
    pub fn is_build(&self) -> bool {
        self.name.starts_with(BUILD_NAME)
    }
}

/// The `api` grant of a participant token: what its bearer may do through the API.
///
/// Unknown fields are ignored and are no error: other programs issue tokens too.
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

/// Deserializes a grant; `false` grants nothing.
fn granted<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<serde_json::Value>, D::Error> {
    let value = Option::<serde_json::Value>::deserialize(from)?;
    Ok(value.filter(|value| *value != serde_json::Value::Bool(false)))
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainersGrant {
    pub use_containers: bool,
    pub logs: bool,
    pub pull: NamePatterns,
    pub run: NamePatterns,
    pub registry: RegistryGrant,
}

/// Permitted operations on the repositories of the room's registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RegistryGrant {
    pub list: NamePatterns,
    pub pull: NamePatterns,
    pub run: NamePatterns,
    pub write: NamePatterns,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StorageGrant {
    pub paths: Vec<StoragePath>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoragePath {
    /// Path, with everything below it; `/` is the whole storage.
    pub path: String,
    #[serde(default)]
    pub read_only: bool,
}

/// Name patterns, each an exact name or a prefix with a trailing `*`. An empty list allows nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NamePatterns(pub Vec<String>);

/// Operation on a repository of the room's registry.
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

/// Treatment of symbolic links in a storage path: a caller with access to one part of the storage could otherwise
/// create a link that leads to another part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SymlinkPolicy {
    /// Links are followed as long as they stay inside the storage.
    #[default]
    Followed,
    Refused,
}

impl NamePatterns {
    pub fn all() -> Self {
        Self(vec!["*".to_owned()])
    }

    /// Reports whether every name that `others` allow is allowed here.
    pub fn covers(&self, others: &Self) -> bool {
        others.0.iter().all(|other| match other.strip_suffix('*') {
            Some(prefix) => {
                self.0.iter().filter_map(|own| own.strip_suffix('*')).any(|own| prefix.starts_with(own))
            }
            None => self.allows(other),
        })
    }

    /// Reports whether the name is allowed. A repository of cached images matches only its exact name: the token of a
    /// build lists the ones that the build uses, and no participant's pattern matches them.
    pub fn allows(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix) && !is_cached_name(name),
            None => name == pattern,
        })
    }
}

impl StorageGrant {
    /// Reports whether a path may be used. The longest entry that covers the path decides, so that a read-only folder
    /// can lie in a writable one.
    pub fn allows(&self, verb: StorageVerb, path: &str) -> bool {
        let covering = self.paths.iter().filter(|allowed| covers(&allowed.path, path));
        covering
            .max_by_key(|allowed| allowed.path.trim_matches('/').len())
            .is_some_and(|allowed| verb == StorageVerb::Read || !allowed.read_only)
    }

    /// Reports whether a path and everything below it may be used.
    pub fn allows_tree(&self, verb: StorageVerb, path: &str) -> bool {
        let below =
            self.paths.iter().map(|named| named.path.trim_matches('/')).filter(|named| covers(path, named));
        self.allows(verb, path) && below.into_iter().all(|named| self.allows(verb, named))
    }

    /// Reports whether everything that `other` allows is allowed here. It checks only the listed paths: access changes
    /// nowhere else.
    fn covers(&self, other: &Self) -> bool {
        let named = self.paths.iter().chain(&other.paths).map(|named| named.path.trim_matches('/'));
        named
            .flat_map(|path| [(StorageVerb::Read, path), (StorageVerb::Write, path)])
            .all(|(verb, path)| !other.allows(verb, path) || self.allows(verb, path))
    }
}

impl ApiScope {
    /// Returns the first grant that `wanted` has and this scope lacks, or has in a narrower form. `None` if this scope
    /// covers all of them.
    pub fn missing_grant(&self, wanted: &Self) -> Option<&'static str> {
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
            ("containers.pull", containers.pull.covers(&wanted_containers.pull)),
            ("containers.run", containers.run.covers(&wanted_containers.run)),
            ("containers.registry.list", registry.list.covers(&wanted_registry.list)),
            ("containers.registry.pull", registry.pull.covers(&wanted_registry.pull)),
            ("containers.registry.run", registry.run.covers(&wanted_registry.run)),
            ("containers.registry.write", registry.write.covers(&wanted_registry.write)),
        ];
        covered.into_iter().find(|(_, covered)| !covered).map(|(grant, _)| grant)
    }

    /// Returns every grant, `admin` included.
    pub fn full() -> Self {
        Self { admin: Some(serde_json::json!({})), ..Self::agent_default() }
    }

    /// Returns the default grants of an agent: everything except `admin`.
    pub fn agent_default() -> Self {
        Self { secrets: Some(serde_json::json!({})), ..Self::user_default() }
    }

    /// Returns the default grants of a person: build, run and read logs, but not read secrets.
    pub fn user_default() -> Self {
        let all = NamePatterns::all;
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
    /// Creates a participant, in the trust domain of its own name.
    pub fn new(name: impl Into<String>, scope: ApiScope) -> Self {
        let name = name.into();
        let domain = TrustDomain::of_caller(&name);
        Self { name, scope, domain }
    }

    /// Creates the caller on the unix socket: root or the daemon's own user.
    pub fn local(uid: u32) -> Self {
        Self { domain: TrustDomain::local(), ..Self::new(format!("{USER_NAME}{uid}"), ApiScope::full()) }
    }

    /// Returns the link policy for this caller: links are followed only for callers with access to the whole storage.
    pub fn symlink_policy(&self, verb: StorageVerb) -> SymlinkPolicy {
        let whole = self.scope.storage.as_ref().is_some_and(|grant| grant.allows_tree(verb, ""));
        if whole { SymlinkPolicy::Followed } else { SymlinkPolicy::Refused }
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
    fn no_pattern_reaches_cached_images_and_no_participant_hands_on_a_name_of_one() {
        let name = "cached.hearth/public/docker.io/library/alpine";
        for pattern in ["*", "cached.hearth/*", "c*", &format!("{name}*")] {
            let patterns = NamePatterns(vec![pattern.to_owned()]);
            assert!(!patterns.allows(name), "{pattern}");
            assert!(!patterns.covers(&NamePatterns(vec![name.to_owned()])), "{pattern}");
        }
        assert!(
            NamePatterns(vec![name.to_owned()]).allows(name)
                && NamePatterns::all().allows("cached.hearth2/a")
        );
    }

    #[test]
    fn false_is_no_grant() {
        let scope = |json| caller(json).scope;
        let refused = scope(serde_json::json!({"services": false, "secrets": false, "admin": null}));
        assert_eq!(refused, ApiScope::default());
        let given = scope(serde_json::json!({"services": true, "secrets": {}, "admin": {}}));
        assert!(given.services.is_some() && given.secrets.is_some() && given.admin.is_some());
    }

    #[test]
    fn a_tree_with_a_read_only_part_is_not_mounted_to_be_written() {
        let paths = serde_json::json!([{"path": "/apps"}, {"path": "/apps/locked", "read_only": true}]);
        let grant = caller(serde_json::json!({"storage": {"paths": paths}})).scope.storage.unwrap();
        for (verb, path, may) in [
            (StorageVerb::Write, "apps", false),
            (StorageVerb::Read, "apps", true),
            (StorageVerb::Write, "apps/mine", true),
            (StorageVerb::Write, "apps/locked/x", false),
            (StorageVerb::Read, "", false),
        ] {
            assert_eq!(grant.allows_tree(verb, path), may, "{verb:?} {path}");
        }
    }

    #[test]
    fn names_are_exact_or_have_a_trailing_star() {
        let patterns = NamePatterns(vec!["a/b".to_owned(), "team/*".to_owned()]);
        for (name, allowed) in
            [("a/b", true), ("a/bc", false), ("a", false), ("team/x/y", true), ("team", false)]
        {
            assert_eq!(patterns.allows(name), allowed, "{name}");
        }
    }

    #[test]
    fn only_who_may_use_the_whole_storage_has_links_followed() {
        use SymlinkPolicy::{Followed, Refused};
        let whole = serde_json::json!([{"path": "/"}]);
        let part = serde_json::json!([{"path": "a"}, {"path": "b"}]);
        let locked = serde_json::json!([{"path": "/"}, {"path": "a", "read_only": true}]);
        for (paths, read, write) in
            [(whole, Followed, Followed), (part, Refused, Refused), (locked, Followed, Refused)]
        {
            let caller = caller(serde_json::json!({"storage": {"paths": paths}}));
            assert_eq!(caller.symlink_policy(StorageVerb::Read), read, "{paths}");
            assert_eq!(caller.symlink_policy(StorageVerb::Write), write, "{paths}");
        }
        assert_eq!(Caller::local(0).symlink_policy(StorageVerb::Write), Followed);
    }

    #[test]
    fn the_deepest_storage_path_decides() {
        let caller = caller(serde_json::json!({"storage": {"paths": [
            {"path": "/apps"}, {"path": "apps/locked/", "read_only": true}
        ]}}));
        let grant = caller.scope.storage.unwrap();
        for (path, read, write) in [
            ("apps", true, true),
            ("apps/x/y", true, true),
            ("apps/locked", true, false),
            ("apps/locked/x", true, false),
            ("appsx", false, false),
            ("", false, false),
        ] {
            assert_eq!(grant.allows(StorageVerb::Read, path), read, "{path}");
            assert_eq!(grant.allows(StorageVerb::Write, path), write, "{path}");
        }
    }

    #[test]
    fn a_scope_that_is_handed_on_is_no_wider_than_the_callers_own() {
        let lacks = |own: serde_json::Value, wanted: serde_json::Value| {
            caller(own).scope.missing_grant(&caller(wanted).scope)
        };
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
            // The locked folder would become writable.
            (&[("/apps", false)], false),
            (&[("/apps/locked/deep", false)], false),
            (&[("/apps/locked/deep", true)], true),
            (&[("/", true)], false),
        ] {
            let lacks = caller(storage(&own)).scope.missing_grant(&caller(storage(wanted)).scope);
            assert_eq!(lacks, (!covered).then_some("storage"), "{wanted:?}");
        }
    }
}
