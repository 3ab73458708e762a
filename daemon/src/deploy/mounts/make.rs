//! Creation of an instance's mounts: all of them, or none.

use std::fs::{File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tokio_util::sync::CancellationToken;

use super::{
    EMPTY, FILES, InstanceViews, MountContext, STORAGE, UPPER, VIEWS, clear, fault, images, make_directory,
    storage, view,
};
use crate::context::{ContextTree, StorageRoot};
use crate::deploy::port::{BindMount, MountFault};
use crate::model::fault::ErrorCode;
use crate::model::id::InstanceId;
use crate::model::{MountAccess, ServiceMount, ServiceMountSource};

impl MountContext {
    /// Creates all mounts of an instance, or removes the partial result and returns the fault. Blocking.
    pub(super) fn make_mounts(
        &self,
        instance: &InstanceId,
        mounts: Vec<(ServiceMount, Option<ContextTree>)>,
        given_up: &CancellationToken,
    ) -> Result<Vec<BindMount>, MountFault> {
        let views = self.views_of(instance);
        let mut views = views.lock();
        if given_up.is_cancelled() {
            return Err(fault::ending());
        }
        let directory = self.directory_of(instance);
        let clear = |views: &mut InstanceViews| {
            clear::clear(&directory, views).map_err(|error| fault::of_io(&directory.display(), &error))
        };
        // Remove the leftovers of an earlier attempt.
        clear(&mut views)?;
        let mut made = Vec::with_capacity(mounts.len());
        for (number, (mount, tree)) in mounts.into_iter().enumerate() {
            match self.make_one(&directory, instance, number, &mount, tree, &mut views) {
                Ok(bind) => made.push(bind),
                Err(fault) => {
                    if let Err(error) = clear(&mut views) {
                        tracing::warn!(%error, instance.id = %instance, "failed to remove mounts of a failed start");
                    }
                    return Err(fault);
                }
            }
        }
        Ok(made)
    }

    fn make_one(
        &self,
        directory: &Path,
        instance: &InstanceId,
        number: usize,
        mount: &ServiceMount,
        tree: Option<ContextTree>,
        views: &mut InstanceViews,
    ) -> Result<BindMount, MountFault> {
        let target = &mount.target;
        let failed = |error: std::io::Error| fault::of_io(target, &error);
        let place = |kind: &str| {
            make_directory(&directory.join(kind), 0o700).map_err(failed)?;
            Ok::<_, MountFault>(directory.join(kind).join(number.to_string()))
        };
        let read_only = mount.mode == MountAccess::ReadOnly;
        let bind = |root: &StorageRoot, name: &str, path: &str| {
            let held = root.open_mount_source(Path::new(path));
            let (held, is_directory) = held.map_err(|error| fault::of_storage(target, name, &error))?;
            if !read_only {
                self.shields.lock().ensure(root).map_err(failed)?;
            }
            let point = place(STORAGE)?;
            storage::bind(&held, is_directory, &point, read_only).map_err(failed)?;
            Ok(point)
        };
        let source = match (&mount.source, tree) {
            (ServiceMountSource::Room(path), _) => bind(&self.storage.room, "room", path)?,
            (ServiceMountSource::Project(path), _) => bind(&self.storage.project, "project", path)?,
            (ServiceMountSource::EmptyDir, _) => {
                let empty = place(EMPTY)?;
                make_directory(&empty, 0o777).map_err(failed)?;
                empty
            }
            (ServiceMountSource::File(text), _) => {
                let file = place(FILES)?;
                write_file(&file, text, if read_only { 0o444 } else { 0o666 }).map_err(failed)?;
                file
            }
            (ServiceMountSource::Image { .. }, Some(tree)) => {
                let point = place(VIEWS)?;
                let upper = if read_only { None } else { Some(place(UPPER)?) };
                let name = format!("hearth:{instance}:{number}");
                views.push(view::mount(tree, &point, upper.as_deref(), &name).map_err(failed)?);
                point.join(images::SOURCE)
            }
            (ServiceMountSource::Image { .. }, None) => {
                return Err(fault::permanent(target, ErrorCode::Internal, "its image was not opened"));
            }
        };
        let fill = mount.source == ServiceMountSource::EmptyDir;
        Ok(BindMount { source, target: target.clone(), read_only, fill })
    }
}

/// Creates a file with exactly this mode, regardless of the daemon's umask: the app may run as any user.
fn write_file(path: &Path, text: &str, mode: u32) -> std::io::Result<()> {
    let mut file = File::options().write(true).create_new(true).open(path)?;
    file.write_all(text.as_bytes())?;
    file.set_permissions(Permissions::from_mode(mode))
}
