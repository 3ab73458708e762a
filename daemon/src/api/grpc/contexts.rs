use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use axum::extract::connect_info::ConnectInfo;
use hearth_proto::v1;
use tonic::{Extensions, Request, Response, Status};

use super::super::audit;
use super::super::convert;
use super::super::error::ApiError;
use super::super::serve::PeerIdentity;
use super::response_stream::{CHUNK, ResponseStream, WalkSender, WalkThreads, stream_batches};
use super::{caller, check_access, check_packs, share_owner};
use crate::access::policy::{self, CallerAction};
use crate::build::RoomContexts;
use crate::context::{
    ContextError, ContextTree, EntryStat, FileReader, LocatedEntry, MountRequest, MountState,
    MountedContexts, TreeDifference, WalkedEntry, compare_trees,
};
use crate::image::ImageStore;
use crate::model::access::{Caller, StorageVerb};
use crate::model::fault::ErrorCode;
use crate::model::share_owner::ShareOwner;
use crate::model::{BuildMount, Digest, MountTarget, RoomRegistries};
use crate::task;

pub struct ContextsService {
    pub contexts: RoomContexts,
    pub mounts: MountedContexts,
    pub rooms: RoomRegistries,
    /// Looks up the owners of packs.
    pub images: ImageStore,
    pub walks: WalkThreads,
}

/// An opened context that the caller may read.
struct OpenContext {
    tree: ContextTree,
    mounts: Vec<BuildMount>,
    manifests: Vec<Digest>,
    root: MountTarget,
}

#[tonic::async_trait]
impl v1::contexts_server::Contexts for ContextsService {
    type ListStream = ResponseStream<v1::ContextEntry>;
    type ReadStream = ResponseStream<v1::ReadContextResponse>;
    type DiffStream = ResponseStream<v1::ContextDifference>;

    async fn list(
        &self,
        request: Request<v1::ListContextRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let (caller, owner) = (caller(request.extensions())?, share_owner(request.extensions())?);
        let request = request.into_inner();
        let open = self.open(&caller, request.context, "context").await?;
        let path = convert::path_in(&open.root, &request.path)?;
        let (tree, found) = find(open.tree, path).await?;
        let recursive = request.recursive;
        let listed = self.walks.start(&owner, move |sender| {
            send_error(sender, listing(&tree, found, recursive, sender));
        });
        Ok(Response::new(listed?))
    }

    async fn read(
        &self,
        request: Request<v1::ReadContextRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        use v1::read_context_response::Message;
        let caller = caller(request.extensions())?;
        let request = request.into_inner();
        let open = self.open(&caller, request.context, "context").await?;
        let path = convert::path_in(&open.root, &request.path)?;
        let (tree, (path, seen)) = find(open.tree, path).await?;
        let reader = blocking(move || tree.reader(&path)).await?;
        let first = Some(entry(b"", &seen, None));
        Ok(Response::new(stream_batches((first, reader), |(first, reader)| {
            let next = match first.take() {
                Some(entry) => Some(Message::Entry(entry)),
                None => next_chunk(reader).map_err(ApiError::from)?.map(|chunk| Message::Chunk(chunk.into())),
            };
            Ok(next.map(|message| v1::ReadContextResponse { message: Some(message) }).into_iter().collect())
        })))
    }

    async fn digest(
        &self,
        request: Request<v1::DigestContextRequest>,
    ) -> Result<Response<v1::DigestContextResponse>, Status> {
        let caller = caller(request.extensions())?;
        let open = self.open(&caller, request.into_inner().context, "context").await?;
        let identified = self.contexts.contexts.identity(open.tree, open.root).await;
        let (identity, files, bytes) = identified.map_err(ApiError::from)?;
        let digest = identity.digest.to_string();
        Ok(Response::new(v1::DigestContextResponse { digest, files: files as u64, bytes }))
    }

    async fn diff(
        &self,
        request: Request<v1::DiffContextRequest>,
    ) -> Result<Response<Self::DiffStream>, Status> {
        use v1::diff_context_request::Left;
        let extensions = request.extensions();
        let (caller, owner) = (caller(extensions)?, share_owner(extensions)?);
        let local = is_local_admin(extensions);
        let request = request.into_inner();
        let left = match request.left {
            None => {
                let message = "what is to be compared is missing";
                return Err(ApiError::invalid("left", ErrorCode::NothingToCompare, message).into());
            }
            Some(Left::Mounted(directory)) => {
                let directory = PathBuf::from(directory);
                require_local_admin(local, "look at what was changed in a mounted directory")?;
                self.own_mount(&caller, &directory).await?;
                return self.changes(&owner, directory).await;
            }
            Some(Left::Context(context)) => self.open(&caller, Some(context), "left.context").await?,
        };
        let right = self.open(&caller, request.right, "right").await?;
        let tops = move || {
            let tops = (left.tree.directory_at(&left.root)?, right.tree.directory_at(&right.root)?);
            Ok((left.tree, right.tree, tops))
        };
        let (left, right, tops) = blocking(tops).await?;
        let compared = self.walks.start(&owner, move |sender| {
            let compared = compare_trees((&left, &tops.0), (&right, &tops.1), |difference, path| {
                sender.send(Ok(difference_to_wire(difference, path)))
            });
            send_error(sender, compared);
        });
        Ok(Response::new(compared?))
    }

    async fn mount(
        &self,
        request: Request<v1::MountContextRequest>,
    ) -> Result<Response<v1::ContextMount>, Status> {
        let caller = caller(request.extensions())?;
        require_local_admin(is_local_admin(request.extensions()), "mount contexts")?;
        let v1::MountContextRequest { context, directory, writable } = request.into_inner();
        let directory = PathBuf::from(directory);
        audit::record_object(directory.display());
        self.own_mount(&caller, &directory).await?;
        let OpenContext { tree, mounts, manifests, root } = self.open(&caller, context, "context").await?;
        let request = MountRequest {
            directory,
            mounts,
            manifests,
            context_path: root,
            writable,
            caller: caller.name,
            tree,
        };
        Ok(Response::new(mount_to_wire(self.mounts.mount(request).await.map_err(ApiError::from)?)))
    }

    async fn unmount(
        &self,
        request: Request<v1::UnmountContextRequest>,
    ) -> Result<Response<v1::UnmountContextResponse>, Status> {
        let caller = caller(request.extensions())?;
        require_local_admin(is_local_admin(request.extensions()), "unmount contexts")?;
        let v1::UnmountContextRequest { directory, lazy, discard } = request.into_inner();
        let directory = PathBuf::from(directory);
        audit::record_object(directory.display());
        self.own_mount(&caller, &directory).await?;
        let kept = self.mounts.unmount(directory, lazy, discard).await.map_err(ApiError::from)?;
        Ok(Response::new(v1::UnmountContextResponse { kept }))
    }

    async fn list_mounts(
        &self,
        request: Request<v1::ListContextMountsRequest>,
    ) -> Result<Response<v1::ListContextMountsResponse>, Status> {
        let caller = caller(request.extensions())?;
        let mounts = self.mounts.list().await.map_err(ApiError::from)?;
        let owner = policy::listed_owner(&caller);
        let own = |state: &MountState| owner.is_none_or(|owner| state.record.caller == owner);
        let mounts = mounts.into_iter().filter(own).map(mount_to_wire).collect();
        Ok(Response::new(v1::ListContextMountsResponse { mounts }))
    }
}

impl ContextsService {
    async fn open(
        &self,
        caller: &Caller,
        context: Option<v1::ContextSources>,
        field: &str,
    ) -> Result<OpenContext, Status> {
        let (mounts, root) = convert::context(context, field)?;
        policy::may_mount_in_builds(caller, &mounts, &self.rooms).map_err(ApiError::from)?;
        check_packs(&self.images, caller, &mounts).await?;
        let links = caller.symlink_policy(StorageVerb::Read);
        let opened = self.contexts.open_mounts(&mounts, links, &caller.name, &BTreeMap::new()).await;
        let opened = opened.map_err(ApiError::from_mount_fault)?;
        let manifests =
            opened.iter().filter_map(|mount| mount.image.as_ref().map(|image| image.manifest)).collect();
        let tree = self.contexts.contexts.open_tree(opened).await.map_err(ApiError::from)?;
        Ok(OpenContext { tree, mounts, manifests, root })
    }

    /// Denies access to a directory that another caller mounted, or has kept changes of. If there is no mount,
    /// the next step reports that.
    async fn own_mount(&self, caller: &Caller, directory: &Path) -> Result<(), Status> {
        let owners = self.mounts.owners(directory.to_owned()).await.map_err(ApiError::from)?;
        owners.iter().try_for_each(|owner| check_access(caller, &CallerAction::UseContextMount { owner }))
    }

    async fn changes(
        &self,
        owner: &ShareOwner,
        directory: PathBuf,
    ) -> Result<Response<ResponseStream<v1::ContextDifference>>, Status> {
        let union = self.mounts.overlay(directory.clone()).await.map_err(ApiError::from)?;
        let changes = self.walks.start(owner, move |sender| {
            let changes =
                union.changes(&mut |difference, path| sender.send(Ok(difference_to_wire(difference, path))));
            send_error(
                sender,
                changes.map_err(|errno| ContextError::Io {
                    path: directory.display().to_string(),
                    source: errno.into(),
                }),
            );
        });
        Ok(Response::new(changes?))
    }
}

/// Reports whether the caller is root or the daemon's own user, on the unix socket.
fn is_local_admin(extensions: &Extensions) -> bool {
    match extensions.get::<ConnectInfo<PeerIdentity>>() {
        Some(ConnectInfo(PeerIdentity::Unix { uid })) => {
            *uid == 0 || *uid == rustix::process::geteuid().as_raw()
        }
        Some(ConnectInfo(PeerIdentity::Tcp(_))) | None => false,
    }
}

fn require_local_admin(local: bool, what: &str) -> Result<(), Status> {
    if local {
        return Ok(());
    }
    let message = format!("only root and the daemon's own user may {what}, on the daemon's machine");
    Err(ApiError::new(ErrorCode::NotOnThisMachine, message).into())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ContextError> + Send + 'static,
) -> Result<T, Status> {
    match task::blocking("context", work).await {
        Ok(result) => Ok(result.map_err(ApiError::from)?),
        Err(error) => Err(ApiError::internal("the context could not be read", error).into()),
    }
}

/// Looks up a path, and returns the tree with the result.
async fn find(tree: ContextTree, path: Vec<u8>) -> Result<(ContextTree, LocatedEntry), Status> {
    let path_text = String::from_utf8_lossy(&path).into_owned();
    let (tree, found) = blocking(move || tree.resolve(&path).map(|found| (tree, found))).await?;
    match found {
        Some(found) => Ok((tree, found)),
        None => {
            let message = format!("there is no `/{}` in the context", path_text.trim_start_matches('/'));
            Err(ApiError::new(ErrorCode::NotFound, message)
                .hint("`hearth context ls` shows what is there")
                .into())
        }
    }
}

/// Sends the entries of a directory, or the entry of a single file.
fn listing(
    tree: &ContextTree,
    (path, seen): LocatedEntry,
    recursive: bool,
    sender: &WalkSender<v1::ContextEntry>,
) -> Result<(), ContextError> {
    let send_entry =
        |walked: &WalkedEntry| sender.send(Ok(entry(&walked.path, &walked.stat, walked.target.as_deref())));
    if seen.attr.kind != rustix::fs::FileType::Directory {
        let walked = tree.walked_entry(&path.clone(), path, seen)?;
        walked.iter().all(send_entry);
        return Ok(());
    }
    for walked in tree.walk_below(&path, recursive)? {
        if !send_entry(&walked?) {
            break;
        }
    }
    Ok(())
}

/// Ends a stream with the error of the work, if it failed.
fn send_error<T>(sender: &WalkSender<T>, result: Result<(), ContextError>) {
    if let Err(error) = result {
        sender.send(Err(ApiError::from(error).into()));
    }
}

fn next_chunk(reader: &mut FileReader) -> Result<Option<Vec<u8>>, ContextError> {
    let mut chunk = vec![0; CHUNK];
    let count = reader.read(&mut chunk)?;
    chunk.truncate(count);
    Ok(Some(chunk).filter(|chunk| !chunk.is_empty()))
}

fn entry(path: &[u8], seen: &EntryStat, target: Option<&[u8]>) -> v1::ContextEntry {
    use rustix::fs::FileType;
    let kind = match seen.attr.kind {
        FileType::RegularFile => v1::FileKind::File,
        FileType::Directory => v1::FileKind::Directory,
        FileType::Symlink => v1::FileKind::Symlink,
        _ => v1::FileKind::Other,
    };
    v1::ContextEntry {
        path: path.to_vec().into(),
        kind: kind.into(),
        size_bytes: if kind == v1::FileKind::File { seen.attr.size } else { 0 },
        mode: seen.attr.mode,
        modified_at: Some(prost_types::Timestamp {
            seconds: seen.attr.modified.seconds,
            nanos: i32::try_from(seen.attr.modified.nanos).unwrap_or_default(),
        }),
        link_target: target.unwrap_or_default().to_vec().into(),
    }
}

fn difference_to_wire(difference: TreeDifference, path: &[u8]) -> v1::ContextDifference {
    let difference = match difference {
        TreeDifference::Added => v1::Difference::Added,
        TreeDifference::Removed => v1::Difference::Removed,
        TreeDifference::Changed => v1::Difference::Changed,
    };
    v1::ContextDifference { difference: difference.into(), path: path.to_vec().into() }
}

fn mount_to_wire(state: MountState) -> v1::ContextMount {
    let MountState { record, mounted, resumed } = state;
    v1::ContextMount {
        directory: record.directory.to_string_lossy().into_owned(),
        context: Some(v1::ContextSources {
            mounts: record.mounts.into_iter().map(Into::into).collect(),
            context_path: record.context_path.to_string(),
        }),
        writable: record.writable,
        mounted,
        resumed,
        since: Some(convert::timestamp(record.since)),
        mounted_by: record.caller,
    }
}
