use std::fmt;

use super::GrpcMethod;
use crate::model::Repository;
use crate::model::access::{ApiScope, StorageVerb};

/// Something that a caller wants to do, with the object concerned. Images of other registries are named
/// `registry/repository`; paths are normalised and relative to the storage; owners are names of callers
/// ([`Caller::name`]).
///
/// [`Caller::name`]: crate::model::access::Caller::name
#[derive(Clone, Copy, Debug)]
pub enum CallerAction<'a> {
    /// Calls a gRPC method, regardless of the objects in the request.
    CallMethod(&'static GrpcMethod),
    /// Sends files that builds of the same caller mount.
    SendPack,
    /// Sees, follows, cancels or removes a build.
    UseBuild {
        id: &'a str,
        owner: &'a str,
    },
    ListRepository(&'a Repository),
    PullRepository(&'a Repository),
    /// Checks whether something exists, without reading it. Callers who may push may also check.
    ProbeRepository(&'a Repository),
    WriteRepository(&'a Repository),
    PullRemoteImage(&'a str),
    PushRemoteImage(&'a str),
    RunRoomImage {
        repository: &'a Repository,
        name: &'a str,
    },
    RunRemoteImage(&'a str),
    ReadStorage(&'a str),
    WriteStorage(&'a str),
    /// Removes a directory with everything below it.
    RemoveTree(&'a str),
    /// Mounts a directory, with everything below it, into a container.
    MountStorage {
        verb: StorageVerb,
        path: &'a str,
    },
    /// Changes an existing service. `what` is a verb with its object; `run` is the action of running the
    /// service's image.
    ChangeService {
        what: &'a str,
        owner: &'a str,
        run: &'a CallerAction<'a>,
    },
    /// Runs a service with a secret of the room.
    UseSecret(&'a str),
    /// Sees which services use something.
    SeeSecretUsers,
    /// Runs a service with a token of this scope.
    DelegateToken(&'a ApiScope),
    /// Sees, compares or unmounts a context that somebody mounted.
    UseContextMount {
        owner: &'a str,
    },
    /// Continues an upload of a pack, or of a blob to the room's registry.
    UseUpload {
        id: &'a str,
        owner: &'a str,
    },
    /// Mounts a pack in a build, or reads it.
    UsePack {
        id: &'a str,
        owner: &'a str,
    },
}

impl fmt::Display for CallerAction<'_> {
    /// Formats the action so that it completes "this token may not".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CallMethod(method) => f.write_str(method.description),
            Self::SendPack => f.write_str("send packs for builds"),
            Self::UseBuild { id, .. } => write!(f, "use build `{id}` of another caller"),
            Self::ListRepository(name) => write!(f, "list repository `{name}`"),
            Self::PullRepository(name) => write!(f, "pull from repository `{name}`"),
            Self::ProbeRepository(name) => write!(f, "look into repository `{name}`"),
            Self::WriteRepository(name) => write!(f, "write to repository `{name}`"),
            Self::PullRemoteImage(name) => write!(f, "pull `{name}` from its registry"),
            Self::PushRemoteImage(name) => write!(f, "push to `{name}`"),
            Self::RunRoomImage { repository, .. } => write!(f, "run `{repository}`"),
            Self::RunRemoteImage(name) => write!(f, "run `{name}`"),
            Self::ReadStorage(path) => write!(f, "read `/{path}` in storage"),
            Self::WriteStorage(path) => write!(f, "write `/{path}` in storage"),
            Self::RemoveTree(path) => write!(f, "remove `/{path}` in storage with all that lies below it"),
            Self::MountStorage { verb: StorageVerb::Read, path } => {
                write!(f, "mount `/{path}` of storage to read it")
            }
            Self::MountStorage { verb: StorageVerb::Write, path } => {
                write!(f, "mount `/{path}` of storage to write it")
            }
            Self::ChangeService { what, .. } => write!(f, "{what}, which another caller deployed"),
            Self::UseSecret(name) => write!(f, "use a service that has the secret `{name}`"),
            Self::SeeSecretUsers => f.write_str("see services"),
            Self::DelegateToken(_) => f.write_str("use a service whose token may do more than this one"),
            Self::UseUpload { id, .. } => write!(f, "use upload `{id}` of another caller"),
            Self::UsePack { id, .. } => write!(f, "use pack `{id}` of another caller"),
            Self::UseContextMount { .. } => f.write_str("use a mounted context of another caller"),
        }
    }
}
