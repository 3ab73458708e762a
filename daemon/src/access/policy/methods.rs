//! Every gRPC method with what it takes to call it. `docs/access.md` is made of this table; a test compares it with the
//! descriptors that reflection serves, so that no method is without a row.

/// What is asked of a caller before a method's handler runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Served without a token.
    Public,
    /// Any token of the room.
    Participant,
    /// Any token of the room; each object that the request names is asked about.
    Objects,
    /// `containers.use_containers`.
    Build,
    /// `containers.use_containers` or `containers.logs`.
    SeeBuilds,
    /// `containers.logs`.
    ReadBuildLogs,
    /// `services`.
    Services,
    /// `services` or `containers.logs`.
    ReadServiceLogs,
    /// `secrets`.
    Secrets,
    /// `admin`.
    Admin,
}

/// A row of the table.
#[derive(Debug, PartialEq, Eq)]
pub struct Method {
    /// As it is in a request: `/package.Service/Method`.
    pub path: &'static str,
    /// As it goes on after "this token may not".
    pub what: &'static str,
    pub gate: Gate,
    /// Whether it changes something; then each call is in the audit trail, and otherwise only one that is denied.
    pub changes: bool,
    /// What is asked about the objects that a request names. Empty where nothing is.
    pub objects: &'static str,
}

impl Method {
    pub fn find(path: &str) -> Option<&'static Self> {
        METHODS.iter().find(|method| method.path == path)
    }
}

const fn reads(path: &'static str, what: &'static str, gate: Gate, objects: &'static str) -> Method {
    Method { path, what, gate, changes: false, objects }
}

const fn changes(path: &'static str, what: &'static str, gate: Gate, objects: &'static str) -> Method {
    Method { path, what, gate, changes: true, objects }
}

const OWN_BUILD: &str = "the build is the caller's own, or `admin`";
const MOUNTS: &str = "`storage.paths` covers each mounted path; `containers.registry.pull` or, for another registry, \
     `containers.pull` covers each mounted image; packs are the caller's own";
const SPEC: &str = "`containers.run` or `containers.registry.run` covers the image; `containers.pull` one of another \
     registry; the mounts, secrets and token scopes that the service has are the caller's own to use";
const OWN_SERVICE: &str =
    "the caller deployed the service first, or `containers.run` covers its image, or `admin`";
const OWN_PACK: &str = "the upload is the caller's own";
const PULL: &str = "`containers.registry.pull` covers the repository";
const WRITE: &str = "`containers.registry.write` covers the repository";
const READ_PATH: &str = "`storage.paths` covers the path";
const WRITE_PATH: &str = "`storage.paths` covers the path, and not as read-only";

pub const METHODS: &[Method] = &[
    changes(
        "/hearth.v1.Builds/Submit",
        "build images",
        Gate::Build,
        "`containers.registry.write` covers each tag, here and elsewhere; `storage.paths` covers each mounted path; \
         `containers.registry.pull` or, for another registry, `containers.pull` covers each image; packs are the \
         caller's own",
    ),
    reads("/hearth.v1.Builds/Get", "see builds", Gate::SeeBuilds, OWN_BUILD),
    reads(
        "/hearth.v1.Builds/List",
        "see builds",
        Gate::SeeBuilds,
        "the caller's own builds; with `admin` all",
    ),
    reads("/hearth.v1.Builds/Watch", "read build logs", Gate::ReadBuildLogs, OWN_BUILD),
    reads("/hearth.v1.Builds/ReadLog", "read build logs", Gate::ReadBuildLogs, OWN_BUILD),
    changes("/hearth.v1.Builds/Cancel", "cancel builds", Gate::SeeBuilds, OWN_BUILD),
    changes("/hearth.v1.Builds/Remove", "remove builds", Gate::SeeBuilds, OWN_BUILD),
    reads("/hearth.v1.Contexts/List", "read contexts", Gate::Objects, MOUNTS),
    reads("/hearth.v1.Contexts/Read", "read contexts", Gate::Objects, MOUNTS),
    reads("/hearth.v1.Contexts/Digest", "read contexts", Gate::Objects, MOUNTS),
    reads(
        "/hearth.v1.Contexts/Diff",
        "compare contexts",
        Gate::Objects,
        "as for List, on both sides; a mounted directory: root or the daemon's own user on the unix socket, and the \
         mount is the caller's own, or `admin`",
    ),
    changes(
        "/hearth.v1.Contexts/Mount",
        "mount contexts",
        Gate::Objects,
        "as for List; root or the daemon's own user on the unix socket",
    ),
    changes(
        "/hearth.v1.Contexts/Unmount",
        "unmount contexts",
        Gate::Objects,
        "root or the daemon's own user on the unix socket; the mount is the caller's own, or `admin`",
    ),
    reads(
        "/hearth.v1.Contexts/ListMounts",
        "see mounted contexts",
        Gate::Participant,
        "the caller's own mounts; with `admin` all",
    ),
    reads(
        "/hearth.v1.Images/List",
        "list images",
        Gate::Objects,
        "the repositories that `containers.registry.list` covers",
    ),
    reads(
        "/hearth.v1.Images/ListCached",
        "list cached images",
        Gate::Objects,
        "`containers.pull` covers the image, and no other participant's credential brought it; `admin` sees all",
    ),
    reads("/hearth.v1.Images/Inspect", "inspect images", Gate::Objects, PULL),
    changes(
        "/hearth.v1.Images/Tag",
        "tag images",
        Gate::Objects,
        "`containers.registry.pull` covers the source, `containers.registry.write` the tag's repository",
    ),
    changes("/hearth.v1.Images/Remove", "remove images", Gate::Objects, WRITE),
    changes(
        "/hearth.v1.Images/Load",
        "load images",
        Gate::Objects,
        "`containers.registry.write` covers the tag's repository, or `containers.use_containers` for a temporary \
         pack; a copy in storage: `storage.paths` covers the path, and not as read-only",
    ),
    reads("/hearth.v1.Images/ReadBlob", "read images", Gate::Objects, PULL),
    changes(
        "/hearth.v1.Images/Pull",
        "pull images",
        Gate::Objects,
        "`containers.pull` covers the image, `containers.registry.write` the tag's repository",
    ),
    changes(
        "/hearth.v1.Images/Push",
        "push images",
        Gate::Objects,
        "`containers.registry.pull` covers the image, `containers.registry.write` the name elsewhere",
    ),
    changes(
        "/hearth.v1.Packs/Begin",
        "send packs",
        Gate::Objects,
        "`containers.registry.write` covers the tag's repository, or `containers.use_containers` for a temporary \
         pack; a copy in storage: `storage.paths` covers the path, and not as read-only",
    ),
    reads("/hearth.v1.Packs/List", "send packs", Gate::Objects, OWN_PACK),
    reads("/hearth.v1.Packs/Chunks", "send packs", Gate::Objects, OWN_PACK),
    reads("/hearth.v1.Packs/Send", "send packs", Gate::Objects, OWN_PACK),
    changes(
        "/hearth.v1.Packs/Commit",
        "send packs",
        Gate::Objects,
        "the upload is the caller's own; a copy in storage as for Begin",
    ),
    changes("/hearth.v1.Secrets/Set", "set secrets", Gate::Secrets, ""),
    reads("/hearth.v1.Secrets/List", "see secrets", Gate::Secrets, ""),
    changes(
        "/hearth.v1.Secrets/Remove",
        "remove secrets",
        Gate::Secrets,
        "with `services`, the services that use it are named",
    ),
    changes("/hearth.v1.Services/Deploy", "deploy services", Gate::Services, SPEC),
    reads("/hearth.v1.Services/Watch", "watch deploys", Gate::ReadServiceLogs, OWN_SERVICE),
    reads("/hearth.v1.Services/Get", "see services", Gate::Services, ""),
    reads("/hearth.v1.Services/List", "see services", Gate::Services, ""),
    reads("/hearth.v1.Services/Logs", "read logs of services", Gate::ReadServiceLogs, OWN_SERVICE),
    changes("/hearth.v1.Services/Restart", "restart services", Gate::Services, SPEC),
    changes("/hearth.v1.Services/Rollback", "roll services back", Gate::Services, SPEC),
    changes("/hearth.v1.Services/Remove", "remove services", Gate::Services, OWN_SERVICE),
    changes("/hearth.v1.Services/Exec", "run processes in services", Gate::Services, SPEC),
    reads("/hearth.v1.Services/ListRoutes", "see routes", Gate::Services, ""),
    changes("/hearth.v1.Services/RemoveRoute", "remove routes", Gate::Services, OWN_SERVICE),
    reads("/hearth.v1.Storage/List", "read storage", Gate::Objects, READ_PATH),
    reads("/hearth.v1.Storage/Read", "read storage", Gate::Objects, READ_PATH),
    changes("/hearth.v1.Storage/Write", "write storage", Gate::Objects, WRITE_PATH),
    changes(
        "/hearth.v1.Storage/Remove",
        "remove from storage",
        Gate::Objects,
        "`storage.paths` covers the path, and not as read-only; recursively: nothing below it is read-only either",
    ),
    reads("/hearth.v1.System/GetInfo", "see the room", Gate::Participant, ""),
    reads(
        "/hearth.v1.System/GetDiskUsage",
        "see what callers hold of the disk",
        Gate::Participant,
        "admin: of all",
    ),
    reads(
        "/hearth.v1.System/ListBuilders",
        "see builders",
        Gate::Participant,
        "the builder of the caller's own trust domain; with `admin` all",
    ),
    changes("/hearth.v1.System/MintToken", "mint tokens", Gate::Admin, ""),
    reads("/grpc.health.v1.Health/Check", "ask for health", Gate::Public, ""),
    reads("/grpc.health.v1.Health/Watch", "ask for health", Gate::Public, ""),
    reads("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "read descriptors", Gate::Public, ""),
    reads(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "read descriptors",
        Gate::Public,
        "",
    ),
];
