//! Mounts of an instance, created as the daemon creates them and checked from inside.

use std::fs;
use std::io;
use std::sync::Arc;

use hearth_pack::image::ConfigFlags;
use hearthd::context::{
    ContextOptions, ContextPreparer, LayerInspection, LayerLimits, StorageRoot, StorageRoots,
    mount_points_below,
};
use hearthd::deploy::mounts::{InstanceMounts, MountedImages, Options};
use hearthd::deploy::port::InstanceMounter as _;
use hearthd::image::{ImageDestination, ImageStore};
use hearthd::model::image::PinnedImage;
use hearthd::model::{MountAccess, Reference, RoomRegistries, ServiceMount, ServiceMountSource};
use hearthd::store::StateStore;

use crate::fixture::Fixture;

/// Room storage, and an image `assets:1` to mount.
async fn room(fixture: &Fixture) -> (InstanceMounts, PinnedImage) {
    let path = fixture.dir.path();
    let root = |name: &str| StorageRoot::open_or_create(&path.join("storage").join(name)).unwrap();
    let storage = StorageRoots { room: root("room"), project: root("project") };
    let store = StateStore::open(&path.join("state.db")).unwrap();
    let inspection = LayerInspection::new(LayerLimits::default());
    let images = ImageStore::new(
        RoomRegistries::default(),
        Arc::clone(&fixture.blobs) as _,
        Arc::new(store),
        Arc::new(inspection),
    );
    let tree = tempfile::tempdir().unwrap();
    fs::create_dir(tree.path().join("inner")).unwrap();
    fs::write(tree.path().join("inner/file"), "of the image\n").unwrap();
    let packed = hearth_pack::pack(tree.path(), &hearth_pack::PackOptions::default(), &mut |_| {}).unwrap();
    let mut archive = Vec::new();
    packed.write_archive(&mut archive).unwrap();
    let tag = ImageDestination::Tag(Reference::parse_tag("assets:1").unwrap());
    let loaded = images.load(io::Cursor::new(archive), tag, "ann").await.unwrap();
    let assets = PinnedImage { repository: "assets".parse().unwrap(), digest: loaded.manifest.digest };
    let contexts = ContextPreparer::new(ContextOptions {
        room: "r".to_owned(),
        storage: storage.clone(),
        state_dir: path.to_owned(),
        limits: LayerLimits::default(),
    })
    .unwrap();
    let options = Options { directory: path.join("instances"), storage };
    (InstanceMounts::open(options, MountedImages { images, contexts }).unwrap(), assets)
}

fn mount(source: ServiceMountSource, target: &str, mode: MountAccess) -> ServiceMount {
    ServiceMount { source, target: target.parse().unwrap(), mode, create: false }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_uses_storage_images_and_volumes_and_leaves_none_of_their_mounts() {
    Fixture::run(async |fixture| {
        let (mounts, pinned) = room(fixture).await;
        let storage = fixture.dir.path().join("storage/room");
        fs::write(storage.join("file"), "of the room\n").unwrap();
        let assets = |subpath: &str| ServiceMountSource::Image {
            reference: "room.meshagent.com/assets:1".parse().unwrap(),
            subpath: subpath.to_owned(),
        };
        let specs = [
            mount(ServiceMountSource::Room(String::new()), "/room", MountAccess::ReadWrite),
            mount(ServiceMountSource::Room("file".to_owned()), "/etc/one", MountAccess::ReadOnly),
            mount(assets(""), "/assets", MountAccess::ReadOnly),
            mount(assets("inner/file"), "/work/file", MountAccess::ReadWrite),
            mount(ServiceMountSource::EmptyDir, "/var/data", MountAccess::ReadWrite),
        ];
        let image = fixture.image(ConfigFlags::default(), &[("var/data/seed", 0o644, "of the volume\n")]);
        let mut spec = fixture.spec(&image, &[]);
        let instance = spec.label.instance.clone();
        let pinned = ["/assets", "/work/file"].map(|target| (target.parse().unwrap(), pinned.clone())).into();
        spec.mounts = mounts.open(&spec.label, &specs, &pinned).await.unwrap();
        // Written to one stream, because the order of two is undefined.
        let script = "exec 2>&1; cat /room/file /etc/one /assets/inner/file /work/file /var/data/seed; \
             echo from the service > /room/new; echo changed > /work/file; cat /work/file; \
             echo no > /etc/one; echo no > /assets/new; echo yes > /var/data/new && ls /var/data";
        let (exit, lines) = fixture.script(spec, script).await;
        println!("{lines:#?}");
        mounts.close(&instance).await.unwrap();
        mounts.release_storage().await.unwrap();
        assert_eq!(exit.code, Some(0));
        let read = ["of the room", "of the room", "of the image", "of the image", "of the volume", "changed"];
        assert_eq!(lines[..6], read);
        assert!(lines[6].contains("/etc/one: Read-only file system"));
        assert!(lines[7].contains("/assets/new: Read-only file system"));
        assert_eq!(lines[8..], ["new", "seed"]);
        assert_eq!(fs::read_to_string(storage.join("new")).unwrap(), "from the service\n");
        let instances = fixture.dir.path().canonicalize().unwrap().join("instances");
        assert_eq!(mount_points_below(&instances).unwrap().len(), 0);
        assert_eq!(fs::read_dir(&instances).unwrap().count(), 0);
        assert_eq!(fs::read_to_string(storage.join("file")).unwrap(), "of the room\n");
    })
    .await;
}
