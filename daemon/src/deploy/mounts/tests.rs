//! Tests on the real kernel, as root: each test verifies that it leaves nothing in the mount table.

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::time::Duration;

use super::*;
use crate::context::{
    ContextOptions, ContextPreparer, LayerInspection, LayerLimits, StorageRoot, mount_points_below,
};
use crate::deploy::port::MountFaultKind;
use crate::image::{ImageDestination, ImageStore};
use crate::model::fault::ErrorCode;
use crate::model::id::ServiceId;
use crate::model::{MountAccess, Reference, RoomRegistries};
use crate::registry::blobs::BlobStore;
use crate::store::StateStore;

struct MountTestRoom {
    directory: tempfile::TempDir,
    images: ImageStore,
    contexts: ContextPreparer,
    mounts: InstanceMounts,
}

impl MountTestRoom {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let blobs = BlobStore::open(&path.join("registry")).unwrap();
        let store = StateStore::open(&path.join("state.db")).unwrap();
        let inspection = LayerInspection::new(LayerLimits::default());
        let images = ImageStore::new(
            RoomRegistries::default(),
            Arc::new(blobs),
            Arc::new(store),
            Arc::new(inspection),
        );
        let contexts = ContextPreparer::new(ContextOptions {
            room: "r".to_owned(),
            storage: storage(path),
            state_dir: path.to_owned(),
            limits: LayerLimits::default(),
        })
        .unwrap();
        let mounts = open(path, &images, &contexts);
        let room = Self { directory, images, contexts, mounts };
        room.load().await;
        room
    }

    /// The mounter of a daemon that starts after another ended.
    fn again(&self) -> InstanceMounts {
        open(self.directory.path(), &self.images, &self.contexts)
    }

    /// Loads `assets:1`, with a file and a directory that contains another file.
    async fn load(&self) {
        self.load_with("of the image").await;
    }

    async fn load_with(&self, text: &str) {
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("top"), "top of the image").unwrap();
        fs::create_dir(tree.path().join("inner")).unwrap();
        fs::write(tree.path().join("inner/file"), text).unwrap();
        let options = hearth_pack::PackOptions::default();
        let packed = hearth_pack::pack(tree.path(), &options, &mut |_| {}).unwrap();
        let mut archive = Vec::new();
        packed.write_archive(&mut archive).unwrap();
        let tag = ImageDestination::Tag(Reference::parse_tag("assets:1").unwrap());
        self.images.load(io::Cursor::new(archive), tag, "ann").await.unwrap();
    }

    fn room_path(&self, path: &str) -> PathBuf {
        self.directory.path().join("room").join(path)
    }

    fn instances(&self) -> PathBuf {
        self.directory.path().join("instances")
    }

    async fn open(&self, mounts: &[ServiceMount]) -> (InstanceId, Vec<BindMount>) {
        let label = label();
        let opened = self.mounts.open(&label, mounts, &self.pinned(mounts).await).await.unwrap();
        (label.instance, opened)
    }

    /// Resolves the images among the mounts to their current digests.
    async fn pinned(&self, mounts: &[ServiceMount]) -> BTreeMap<MountTarget, PinnedImage> {
        let mut pinned = BTreeMap::new();
        for ServiceMount { source, target, .. } in mounts {
            let crate::model::ServiceMountSource::Image { reference, .. } = source else { continue };
            let digest = self.images.resolve(reference).await.unwrap().digest;
            pinned.insert(target.clone(), PinnedImage { repository: reference.repository.clone(), digest });
        }
        pinned
    }

    async fn refused(&self, mount: ServiceMount) -> MountFault {
        // A valid mount comes first: all mounts are created, or none.
        let good = room("", "/good", MountAccess::ReadWrite);
        let mounts = [good, mount];
        let fault = self.mounts.open(&label(), &mounts, &self.pinned(&mounts).await).await.unwrap_err();
        self.is_clean();
        fault
    }

    /// Asserts that no instance has mounts. The storage's own mount stays until the daemon has no service left.
    fn is_clean(&self) {
        self.mounts.0.shields.lock().release().unwrap();
        let directory = self.directory.path().canonicalize().unwrap();
        assert_eq!(mount_points_below(&directory).unwrap(), Vec::<PathBuf>::new());
        assert_eq!(fs::read_dir(self.instances()).unwrap().count(), 0);
    }
}

impl Drop for MountTestRoom {
    /// Removes the mounts of a failed test.
    fn drop(&mut self) {
        let Ok(directory) = self.directory.path().canonicalize() else { return };
        for point in mount_points_below(&directory).unwrap_or_default().iter().rev() {
            let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

fn storage(path: &Path) -> StorageRoots {
    let root = |name: &str| StorageRoot::open_or_create(&path.join(name)).unwrap();
    StorageRoots { room: root("room"), project: root("project") }
}

fn open(path: &Path, images: &ImageStore, contexts: &ContextPreparer) -> InstanceMounts {
    let options = Options { directory: path.join("instances"), storage: storage(path) };
    let images = MountedImages { images: images.clone(), contexts: contexts.clone() };
    InstanceMounts::open(options, images).unwrap()
}

fn label() -> InstanceLabel {
    InstanceLabel {
        instance: InstanceId::random(),
        service: ServiceId::random(),
        name: "web".parse().unwrap(),
        revision: 1,
        generation: 1,
    }
}

fn mount(source: crate::model::ServiceMountSource, target: &str, mode: MountAccess) -> ServiceMount {
    ServiceMount { source, target: target.parse().unwrap(), mode, create: false }
}

fn room(path: &str, target: &str, mode: MountAccess) -> ServiceMount {
    mount(crate::model::ServiceMountSource::Room(path.to_owned()), target, mode)
}

fn image(subpath: &str, target: &str, mode: MountAccess) -> ServiceMount {
    let reference = "room.meshagent.com/assets:1".parse().unwrap();
    mount(crate::model::ServiceMountSource::Image { reference, subpath: subpath.to_owned() }, target, mode)
}

fn empty(target: &str) -> ServiceMount {
    mount(crate::model::ServiceMountSource::EmptyDir, target, MountAccess::ReadWrite)
}

use MountAccess::{ReadOnly, ReadWrite};

#[tokio::test]
async fn storage_is_seen_both_ways_and_stays_when_the_instance_goes() {
    let at = MountTestRoom::new().await;
    fs::create_dir(at.room_path("data")).unwrap();
    fs::write(at.room_path("data/file"), "from the room").unwrap();
    let mounts = [room("/data", "/data", ReadWrite), room("data/file", "/etc/file", ReadOnly)];
    let (id, opened) = at.open(&mounts).await;
    assert_eq!(opened[0].target.as_str(), "/data");
    assert_eq!((opened[0].read_only, opened[1].read_only), (false, true));
    assert_eq!(fs::read_to_string(opened[0].source.join("file")).unwrap(), "from the room");
    fs::write(opened[0].source.join("new"), "from the service").unwrap();
    assert_eq!(fs::read_to_string(at.room_path("data/new")).unwrap(), "from the service");
    fs::write(at.room_path("data/file"), "changed").unwrap();
    assert_eq!(fs::read_to_string(&opened[1].source).unwrap(), "changed", "a file as source");
    let refused = fs::write(&opened[1].source, "x").unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
    // The mount shows the directory that was opened, even if its name changes.
    fs::rename(at.room_path("data"), at.room_path("moved")).unwrap();
    fs::create_dir(at.room_path("data")).unwrap();
    assert!(opened[0].source.join("new").exists());
    at.mounts.close(&id).await.unwrap();
    at.is_clean();
    at.mounts.close(&id).await.unwrap();
    assert_eq!(fs::read_to_string(at.room_path("moved/new")).unwrap(), "from the service");
}

#[tokio::test]
async fn a_file_has_its_text_and_each_instance_one_of_its_own() {
    let at = MountTestRoom::new().await;
    let file =
        |mode| mount(crate::model::ServiceMountSource::File("listen: 8000\n".to_owned()), "/etc/app", mode);
    for (mode, bits) in [(ReadOnly, 0o444), (ReadWrite, 0o666)] {
        let (id, opened) = at.open(&[file(mode)]).await;
        assert_eq!(fs::read_to_string(&opened[0].source).unwrap(), "listen: 8000\n");
        assert_eq!(fs::metadata(&opened[0].source).unwrap().permissions().mode() & 0o7777, bits);
        assert_eq!((opened[0].read_only, opened[0].fill), (mode == ReadOnly, false));
        fs::write(&opened[0].source, "changed").unwrap();
        let (other, opened) = at.open(&[file(mode)]).await;
        assert_eq!(fs::read_to_string(&opened[0].source).unwrap(), "listen: 8000\n");
        at.mounts.close(&id).await.unwrap();
        at.mounts.close(&other).await.unwrap();
        at.is_clean();
    }
}

#[tokio::test]
async fn project_storage_is_its_own() {
    let at = MountTestRoom::new().await;
    fs::write(at.directory.path().join("project/file"), "of the project").unwrap();
    let source = crate::model::ServiceMountSource::Project(String::new());
    let (id, opened) = at.open(&[mount(source, "/project", ReadOnly)]).await;
    assert_eq!(fs::read_to_string(opened[0].source.join("file")).unwrap(), "of the project");
    assert!(fs::write(opened[0].source.join("new"), "").is_err());
    at.mounts.close(&id).await.unwrap();
    at.is_clean();
}

#[tokio::test]
async fn a_missing_source_is_an_error_unless_it_is_asked_for() {
    let at = MountTestRoom::new().await;
    for mode in [ReadOnly, ReadWrite] {
        let missing = [room("a/b", "/data", mode)];
        let checked = at.mounts.check_sources(&missing).await.unwrap_err();
        let made = at.mounts.make_sources(&missing).await.unwrap_err();
        assert_eq!([checked.code, made.code], [ErrorCode::MountSourceMissing; 2], "{mode:?}");
        assert!(!at.room_path("a").exists());
    }
    let fault = at.refused(room("a/b", "/data", ReadWrite)).await;
    assert_eq!((fault.code.as_str(), fault.target.as_str()), ("mount_source_missing", "/data"));
    assert!(fault.reason.contains("room storage: `a/b`"), "{fault}");
    let asked = [ServiceMount { create: true, ..room("a/b", "/data", ReadWrite) }];
    at.mounts.check_sources(&asked).await.unwrap();
    assert!(!at.room_path("a").exists(), "a check changes nothing");
    at.mounts.make_sources(&asked).await.unwrap();
    at.mounts.make_sources(&asked).await.unwrap();
    let (id, opened) = at.open(&asked).await;
    fs::write(opened[0].source.join("file"), "x").unwrap();
    assert!(at.room_path("a/b/file").exists());
    at.mounts.close(&id).await.unwrap();
    at.is_clean();
}

#[tokio::test]
async fn a_link_is_not_followed_wherever_it_leads() {
    let at = MountTestRoom::new().await;
    fs::create_dir(at.room_path("real")).unwrap();
    symlink("real", at.room_path("inside")).unwrap();
    symlink("/etc", at.room_path("absolute")).unwrap();
    symlink("../project", at.room_path("up")).unwrap();
    for (path, code) in [
        ("absolute", "mount_source_is_link"),
        ("up", "mount_source_is_link"),
        ("up/deeper", "mount_source_is_link"),
        // A user with access to one of the paths may have no access to the other.
        ("inside", "mount_source_is_link"),
        ("inside/new", "mount_source_is_link"),
        ("../project", "mount_source_outside_storage"),
    ] {
        for mode in [ReadOnly, ReadWrite] {
            let fault = at.refused(room(path, "/data", mode)).await;
            assert_eq!(fault.code, code, "{path}: {fault}");
        }
    }
    assert!(!at.room_path("real/new").exists());
    let fifo = at.room_path("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    assert_eq!(at.refused(room("fifo", "/data", ReadOnly)).await.code, "mount_source_unusable");
    at.is_clean();
}

#[tokio::test]
async fn an_image_is_read_and_its_copy_on_write_is_the_instances_own() {
    let at = MountTestRoom::new().await;
    let mounts = [image("", "/ro", ReadOnly), image("", "/rw", ReadWrite)];
    let (id, opened) = at.open(&mounts).await;
    let (read, written) = (opened[0].source.clone(), opened[1].source.clone());
    let looked = task::blocking("test", move || {
        assert_eq!(fs::read_to_string(read.join("inner/file")).unwrap(), "of the image");
        let refused = fs::write(read.join("inner/file"), "x").unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
        fs::write(written.join("inner/file"), "mine").unwrap();
        fs::remove_file(written.join("top")).unwrap();
        assert_eq!(fs::read_to_string(written.join("inner/file")).unwrap(), "mine");
        assert_eq!(fs::read_to_string(read.join("inner/file")).unwrap(), "of the image");
    });
    looked.await.unwrap();
    let (other, others) = at.open(&mounts[1..]).await;
    let source = others[0].source.clone();
    let looked = task::blocking("test", move || {
        assert_eq!(fs::read_to_string(source.join("inner/file")).unwrap(), "of the image");
        assert!(source.join("top").exists());
    });
    looked.await.unwrap();
    at.mounts.close(&id).await.unwrap();
    at.mounts.close(&other).await.unwrap();
    at.is_clean();
}

#[tokio::test]
async fn a_subpath_is_a_directory_or_a_file_of_the_image() {
    let at = MountTestRoom::new().await;
    let (id, opened) = at.open(&[image("inner", "/a", ReadOnly), image("inner/file", "/b", ReadWrite)]).await;
    let (directory, file) = (opened[0].source.clone(), opened[1].source.clone());
    let looked = task::blocking("test", move || {
        assert_eq!(fs::read_to_string(directory.join("file")).unwrap(), "of the image");
        assert_eq!(fs::read_to_string(&file).unwrap(), "of the image");
        fs::write(&file, "mine").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    });
    looked.await.unwrap();
    at.mounts.close(&id).await.unwrap();
    let fault = at.refused(image("nope", "/a", ReadOnly)).await;
    assert_eq!(
        (fault.code.as_str(), fault.reason.as_str()),
        ("mount_source_missing", "`nope` is not in the image")
    );
}

#[tokio::test]
async fn an_image_is_what_it_was_when_it_was_pinned() {
    let at = MountTestRoom::new().await;
    let mounts = [image("", "/a", ReadOnly)];
    let images = at.pinned(&mounts).await;
    at.load_with("moved").await;
    let label = label();
    let opened = at.mounts.open(&label, &mounts, &images).await.unwrap();
    let file = opened[0].source.join("inner/file");
    let read = task::blocking("test", move || fs::read_to_string(file).unwrap()).await.unwrap();
    assert_eq!(read, "of the image");
    at.mounts.close(&label.instance).await.unwrap();
    at.is_clean();
    let none = at.mounts.open(&label, &mounts, &BTreeMap::new()).await.unwrap_err();
    assert_eq!((none.code.as_str(), none.kind), ("image_not_pinned", MountFaultKind::Permanent));
    let pinned = PinnedImage {
        digest: crate::model::Digest::from_sha256([1; 32]),
        ..images[&mounts[0].target].clone()
    };
    let lost = [(mounts[0].target.clone(), pinned)].into();
    assert_eq!(at.mounts.open(&label, &mounts, &lost).await.unwrap_err().code, "image_not_found");
    at.is_clean();
}

#[tokio::test]
async fn any_user_of_the_container_reads_an_image() {
    let at = MountTestRoom::new().await;
    let (id, opened) = at.open(&[image("", "/a", ReadOnly)]).await;
    let source = opened[0].source.clone();
    let thread = task::blocking("test", move || {
        // Only the daemon has access to the instances' directory: a container gets its contents through mounts.
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY;
        let held = rustix::fs::open(&source, flags, rustix::fs::Mode::empty()).unwrap();
        task::on_own_thread("nobody", move || {
            let nobody = rustix::thread::Uid::from_raw(65534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            let flags = rustix::fs::OFlags::RDONLY;
            let file = rustix::fs::openat(&held, "inner/file", flags, rustix::fs::Mode::empty()).unwrap();
            io::read_to_string(fs::File::from(file)).unwrap()
        })
        .unwrap()
    });
    assert_eq!(thread.await.unwrap(), "of the image");
    at.mounts.close(&id).await.unwrap();
    at.is_clean();
}

#[tokio::test]
async fn an_empty_directory_is_anybodys_and_goes_with_the_instance() {
    let at = MountTestRoom::new().await;
    let (id, opened) = at.open(&[empty("/tmp"), room("", "/data", ReadOnly)]).await;
    assert_eq!((opened[0].fill, opened[1].fill), (true, false));
    let made = fs::metadata(&opened[0].source).unwrap();
    assert_eq!((made.mode() & 0o7777, made.uid()), (0o777, 0));
    fs::create_dir(opened[0].source.join("inner")).unwrap();
    symlink(at.room_path(""), opened[0].source.join("link")).unwrap();
    fs::write(at.room_path("kept"), "").unwrap();
    at.mounts.close(&id).await.unwrap();
    at.is_clean();
    assert!(at.room_path("kept").exists());
}

#[tokio::test]
async fn after_a_crash_lost_views_are_reported_until_closed_and_unknown_ones_are_removed() {
    let at = MountTestRoom::new().await;
    fs::write(at.room_path("kept"), "").unwrap();
    let both = [image("", "/image", ReadWrite), room("", "/data", ReadWrite)];
    let (viewing, opened) = at.open(&both).await;
    let (binding, bound) = at.open(&both[1..]).await;
    let (stranger, _) = at.open(&both).await;
    fs::create_dir(at.instances().join("not-an-id")).unwrap();
    // The end of a daemon has this effect on the views that it served.
    let device = fs::metadata(&opened[0].source).unwrap().dev();
    view::abort_connection(rustix::fs::minor(device)).unwrap();
    assert!(fs::read(opened[0].source.join("top")).is_err());
    let kept = BTreeSet::from([viewing.clone(), binding.clone(), InstanceId::random()]);
    for _ in 0..2 {
        let after = at.again();
        assert_eq!(after.reconcile(&kept).await.unwrap(), BTreeSet::from([viewing.clone()]));
        assert!(!at.instances().join(stranger.as_str()).exists());
        assert!(bound[0].source.join("kept").exists(), "a bind needs nobody to serve it");
    }
    let after = at.again();
    after.close(&viewing).await.unwrap();
    after.close(&binding).await.unwrap();
    fs::remove_dir(at.instances().join("not-an-id")).unwrap();
    at.is_clean();
    assert!(at.room_path("kept").exists());
    // Views served by this process are alive.
    let (id, _) = at.open(&both).await;
    let lives = BTreeSet::from([id.clone()]);
    assert_eq!(at.mounts.reconcile(&lives).await.unwrap(), BTreeSet::new());
    assert_eq!(at.mounts.reconcile(&BTreeSet::new()).await.unwrap(), BTreeSet::new());
    at.is_clean();
}

#[tokio::test]
async fn a_view_that_somebody_still_uses_is_cut_off() {
    let at = MountTestRoom::new().await;
    let (id, opened) = at.open(&[image("", "/image", ReadWrite)]).await;
    let source = opened[0].source.join("top");
    let held = task::blocking("test", move || fs::File::open(source).unwrap()).await.unwrap();
    let closed = tokio::time::timeout(Duration::from_secs(20), at.mounts.close(&id)).await;
    closed.unwrap().unwrap();
    at.is_clean();
    let read = task::blocking("test", move || io::read_to_string(held)).await.unwrap();
    assert!(read.is_err());
}

#[tokio::test]
async fn a_try_that_was_cut_short_is_begun_again_and_one_given_up_makes_nothing() {
    let at = MountTestRoom::new().await;
    let label = label();
    let mounts = [room("", "/data", ReadWrite), image("", "/image", ReadWrite), empty("/tmp")];
    let images = at.pinned(&mounts).await;
    at.mounts.open(&label, &mounts, &images).await.unwrap();
    // Another process, without knowledge of the first attempt.
    let after = at.again();
    let opened = after.open(&label, &mounts, &images).await.unwrap();
    assert_eq!(opened.len(), 3);
    after.close(&label.instance).await.unwrap();
    at.mounts.close(&label.instance).await.unwrap();
    at.is_clean();
    let given_up = CancellationToken::new();
    given_up.cancel();
    let late = vec![(mounts[0].clone(), None)];
    let shared = Arc::clone(&at.mounts.0);
    let fault = task::blocking("test", move || shared.make_mounts(&InstanceId::random(), late, &given_up));
    assert_eq!(fault.await.unwrap().unwrap_err().code, "draining");
    at.is_clean();
}
