//! All gRPC methods with the grants that they require. `docs/reference/access.md` is generated from this table; a test
//! compares the table with the descriptors that reflection serves, so that no method lacks a row.

/// Requirement that a caller must meet before a method's handler runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MethodGate {
    /// Served without a token.
    Public,
    /// Any token of the room.
    Participant,
    /// Any token of the room; the handler checks each object that the request names.
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

/// A row of the method table.
#[derive(Debug, PartialEq, Eq)]
pub struct GrpcMethod {
    /// Path of the request: `/package.Service/Method`.
    pub path: &'static str,
    /// Text that completes "this token may not".
    pub description: &'static str,
    pub gate: MethodGate,
    /// True if the method changes something: then every call is recorded in the audit trail, otherwise only
    /// denied calls are. A test expects true for every method whose name does not say that it only reads.
    pub changes: bool,
    /// Check of the objects that a request names, in words. Empty if there is none.
    pub objects: &'static str,
}

impl GrpcMethod {
    pub fn find(path: &str) -> Option<&'static Self> {
        GRPC_METHODS.iter().find(|method| method.path == path)
    }
}

const fn reads(
    path: &'static str,
    what: &'static str,
    gate: MethodGate,
    objects: &'static str,
) -> GrpcMethod {
    GrpcMethod { path, description: what, gate, changes: false, objects }
}

const fn changes(
    path: &'static str,
    what: &'static str,
    gate: MethodGate,
    objects: &'static str,
) -> GrpcMethod {
    GrpcMethod { path, description: what, gate, changes: true, objects }
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

pub const GRPC_METHODS: &[GrpcMethod] = &[
    changes(
        "/hearth.v1.Builds/Submit",
        "build images",
        MethodGate::Build,
        "`containers.registry.write` covers each tag, here and elsewhere; `storage.paths` covers each mounted path; \
         `containers.registry.pull` or, for another registry, `containers.pull` covers each image; packs are the \
         caller's own; `secrets` for secrets of the room",
    ),
    reads("/hearth.v1.Builds/Get", "see builds", MethodGate::SeeBuilds, OWN_BUILD),
    reads(
        "/hearth.v1.Builds/List",
        "see builds",
        MethodGate::SeeBuilds,
        "the caller's own builds; with `admin` all",
    ),
    reads("/hearth.v1.Builds/Watch", "read build logs", MethodGate::ReadBuildLogs, OWN_BUILD),
    reads("/hearth.v1.Builds/Why", "read build logs", MethodGate::ReadBuildLogs, OWN_BUILD),
    reads("/hearth.v1.Builds/ReadLog", "read build logs", MethodGate::ReadBuildLogs, OWN_BUILD),
    reads(
        "/hearth.v1.Builds/ReadStepHistory",
        "see builds",
        MethodGate::SeeBuilds,
        "the caller's own builds; with `admin` all",
    ),
    changes("/hearth.v1.Builds/Cancel", "cancel builds", MethodGate::SeeBuilds, OWN_BUILD),
    changes("/hearth.v1.Builds/Remove", "remove builds", MethodGate::SeeBuilds, OWN_BUILD),
    reads(
        "/hearth.v1.Builds/Inspect",
        "inspect Dockerfiles",
        MethodGate::Build,
        "`storage.paths` covers each mounted path; `containers.registry.pull` or, for another registry, \
         `containers.pull` covers each image; packs are the caller's own",
    ),
    changes("/hearth.v1.Builds/Pin", "pin builds", MethodGate::SeeBuilds, OWN_BUILD),
    changes(
        "/hearth.v1.Builds/Prune",
        "remove builds",
        MethodGate::SeeBuilds,
        "the caller's own builds; with `admin` all",
    ),
    reads("/hearth.v1.Contexts/List", "read contexts", MethodGate::Objects, MOUNTS),
    reads("/hearth.v1.Contexts/Read", "read contexts", MethodGate::Objects, MOUNTS),
    reads("/hearth.v1.Contexts/Digest", "read contexts", MethodGate::Objects, MOUNTS),
    reads(
        "/hearth.v1.Contexts/Diff",
        "compare contexts",
        MethodGate::Objects,
        "as for List, on both sides; a mounted directory: root or the daemon's own user on the unix socket, and the \
         mount is the caller's own, or `admin`",
    ),
    changes(
        "/hearth.v1.Contexts/Mount",
        "mount contexts",
        MethodGate::Objects,
        "as for List; root or the daemon's own user on the unix socket",
    ),
    changes(
        "/hearth.v1.Contexts/Unmount",
        "unmount contexts",
        MethodGate::Objects,
        "root or the daemon's own user on the unix socket; the mount is the caller's own, or `admin`",
    ),
    reads(
        "/hearth.v1.Contexts/ListMounts",
        "see mounted contexts",
        MethodGate::Participant,
        "the caller's own mounts; with `admin` all",
    ),
    reads(
        "/hearth.v1.Images/List",
        "list images",
        MethodGate::Objects,
        "the repositories that `containers.registry.list` covers",
    ),
    reads(
        "/hearth.v1.Images/ListCached",
        "list cached images",
        MethodGate::Objects,
        "`containers.pull` covers the image, and no other participant's credential brought it; `admin` sees all",
    ),
    reads("/hearth.v1.Images/Inspect", "inspect images", MethodGate::Objects, PULL),
    reads("/hearth.v1.Images/ListAttestations", "read images", MethodGate::Objects, PULL),
    changes(
        "/hearth.v1.Images/Tag",
        "tag images",
        MethodGate::Objects,
        "`containers.registry.pull` covers the source, `containers.registry.write` the tag's repository",
    ),
    changes("/hearth.v1.Images/Remove", "remove images", MethodGate::Objects, WRITE),
    changes(
        "/hearth.v1.Images/Load",
        "load images",
        MethodGate::Objects,
        "`containers.registry.write` covers the tag's repository, or `containers.use_containers` for a temporary \
         pack; a copy in storage: `storage.paths` covers the path, and not as read-only",
    ),
    reads("/hearth.v1.Images/ReadBlob", "read images", MethodGate::Objects, PULL),
    changes(
        "/hearth.v1.Images/Pull",
        "pull images",
        MethodGate::Objects,
        "`containers.pull` covers the image, `containers.registry.write` the tag's repository",
    ),
    changes(
        "/hearth.v1.Images/Push",
        "push images",
        MethodGate::Objects,
        "`containers.registry.pull` covers the image, `containers.registry.write` the name elsewhere",
    ),
    changes(
        "/hearth.v1.Packs/Begin",
        "send packs",
        MethodGate::Objects,
        "`containers.registry.write` covers the tag's repository, or `containers.use_containers` for a temporary \
         pack; a copy in storage: `storage.paths` covers the path, and not as read-only",
    ),
    changes("/hearth.v1.Packs/List", "send packs", MethodGate::Objects, OWN_PACK),
    changes("/hearth.v1.Packs/Chunks", "send packs", MethodGate::Objects, OWN_PACK),
    changes("/hearth.v1.Packs/Send", "send packs", MethodGate::Objects, OWN_PACK),
    changes(
        "/hearth.v1.Packs/Commit",
        "send packs",
        MethodGate::Objects,
        "the upload is the caller's own; a copy in storage as for Begin",
    ),
    changes("/hearth.v1.Secrets/Set", "set secrets", MethodGate::Secrets, ""),
    reads("/hearth.v1.Secrets/List", "see secrets", MethodGate::Secrets, ""),
    changes(
        "/hearth.v1.Secrets/Remove",
        "remove secrets",
        MethodGate::Secrets,
        "with `services`, the services that use it are named",
    ),
    changes("/hearth.v1.Services/Deploy", "deploy services", MethodGate::Services, SPEC),
    reads("/hearth.v1.Services/Watch", "watch deploys", MethodGate::ReadServiceLogs, OWN_SERVICE),
    reads("/hearth.v1.Services/Get", "see services", MethodGate::Services, ""),
    reads("/hearth.v1.Services/List", "see services", MethodGate::Services, ""),
    reads("/hearth.v1.Services/Logs", "read logs of services", MethodGate::ReadServiceLogs, OWN_SERVICE),
    changes("/hearth.v1.Services/Restart", "restart services", MethodGate::Services, SPEC),
    changes("/hearth.v1.Services/Rollback", "roll services back", MethodGate::Services, SPEC),
    changes("/hearth.v1.Services/Remove", "remove services", MethodGate::Services, OWN_SERVICE),
    changes("/hearth.v1.Services/Exec", "run processes in services", MethodGate::Services, SPEC),
    reads("/hearth.v1.Services/ListRoutes", "see routes", MethodGate::Services, ""),
    changes("/hearth.v1.Services/RemoveRoute", "remove routes", MethodGate::Services, OWN_SERVICE),
    reads("/hearth.v1.Storage/List", "read storage", MethodGate::Objects, READ_PATH),
    reads("/hearth.v1.Storage/Read", "read storage", MethodGate::Objects, READ_PATH),
    changes("/hearth.v1.Storage/Write", "write storage", MethodGate::Objects, WRITE_PATH),
    changes(
        "/hearth.v1.Storage/Remove",
        "remove from storage",
        MethodGate::Objects,
        "`storage.paths` covers the path, and not as read-only; recursively: nothing below it is read-only either",
    ),
    reads("/hearth.v1.System/GetInfo", "see the room", MethodGate::Participant, ""),
    reads(
        "/hearth.v1.System/GetDiskUsage",
        "see what callers hold of the disk",
        MethodGate::Participant,
        "admin: of all",
    ),
    reads(
        "/hearth.v1.System/ListBuilders",
        "see builders",
        MethodGate::Participant,
        "the builder of the caller's own trust domain; with `admin` all",
    ),
    changes("/hearth.v1.System/MintToken", "mint tokens", MethodGate::Admin, ""),
    changes("/hearth.v1.System/RotateTokenSecret", "replace the room's secret", MethodGate::Admin, ""),
    changes("/hearth.v1.System/RevokeTokens", "revoke tokens", MethodGate::Admin, ""),
    reads("/hearth.v1.System/ListTokenRevocations", "see revocations of tokens", MethodGate::Admin, ""),
    reads("/hearth.v1.System/ListAuditRecords", "read the audit trail", MethodGate::Admin, ""),
    changes("/hearth.v1.System/VerifyContent", "verify stored content", MethodGate::Admin, ""),
    reads("/grpc.health.v1.Health/Check", "ask for health", MethodGate::Public, ""),
    reads("/grpc.health.v1.Health/Watch", "ask for health", MethodGate::Public, ""),
    reads(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "read descriptors",
        MethodGate::Public,
        "",
    ),
    reads(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "read descriptors",
        MethodGate::Public,
        "",
    ),
];
