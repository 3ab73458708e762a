//! Tests of sweeps while uploads are open: regular sweeps, and sweeps that another participant's pack triggers.

use std::fs::{self, File, FileTimes};
use std::sync::mpsc;
use std::time::{Instant, SystemTime};

use super::*;

const HOUR: Duration = Duration::from_secs(3600);
/// Time for which a thread that must be blocked is watched.
const WATCHED: Duration = Duration::from_millis(200);

impl Room {
    /// Drops all open uploads, as when their clients have disconnected and become idle.
    fn forget_uploads(&self) {
        self.packs.0.uploads().clear();
    }

    /// Stores a tree that no build uses, kept only for the next pack.
    async fn keep_tree(&self, local: &Local, owner: &str) {
        let (committed, _) = local.upload(&self.packs, destination(owner, None)).await.unwrap();
        let id = committed.pack.unwrap();
        self.images.hold_pack(&id, owner).await.unwrap();
        self.images.release_pack(&id).await.unwrap();
    }

    fn age_trees(&self, owner: &str, age: Duration) {
        let used = FileTimes::new().set_modified(SystemTime::now() - age);
        for tree in
            fs::read_dir(self.directory.path().join("packs/trees").join(OwnerKey::of(owner).hex())).unwrap()
        {
            File::open(tree.unwrap().path()).unwrap().set_times(used).unwrap();
        }
    }

    /// Sends two of three files and then stops.
    async fn send_half(&self, local: &Local, owner: &str) {
        let id = upload_id(local.begin(&self.packs, owner).await);
        let list = local.list(&self.packs, owner, &id).await;
        local.send(&self.packs, owner, &id, &list.missing[..2]).await.unwrap();
    }
}

/// Runs an upload that the owner quota refuses after two of its files were received.
async fn find_no_room(room: &Room, owner: &str) {
    let large: Vec<Vec<u8>> = (100..104).map(|seed| noise(seed, 1_000_000)).collect();
    let files: Vec<(&str, &[u8])> =
        ["a", "b", "c", "d"].into_iter().zip(large.iter().map(Vec::as_slice)).collect();
    let error = local(&files).upload(&room.packs, destination(owner, None)).await.unwrap_err();
    assert!(matches!(error, PackError::Store(AppendError::OwnerQuota { .. })), "{error}");
}

#[tokio::test]
async fn an_open_upload_keeps_the_content_that_it_relies_on() {
    let room = room();
    let local = sample();
    let id = upload_id(local.begin(&room.packs, "ann").await);
    let list = local.list(&room.packs, "ann", &id).await;
    local.send(&room.packs, "ann", &id, &list.missing).await.unwrap();
    room.forget_uploads();
    // The next upload sends nothing: its content is present, although no tree references it.
    let id = upload_id(local.begin(&room.packs, "ann").await);
    let list = local.list(&room.packs, "ann", &id).await;
    let sent = local.send(&room.packs, "ann", &id, &list.missing).await.unwrap();
    assert_eq!((list.missing.len(), sent), (1, (0, 0)), "the large file's pieces are there");
    assert_eq!(room.packs.run_sweep(EVERYTHING_OLD).await.unwrap().contents, 0);
    room.packs.commit("ann", &id, None).await.unwrap();
    assert_eq!(content_of(&tree_of(&room.packs, "ann", &local).await, "large"), noise(1, 6_000_000));
}

#[tokio::test]
async fn a_pack_that_finds_no_room_takes_nothing_from_what_others_have_sent() {
    let room = room_with(StoreLimits { per_owner: 3_000_000, ..LIMITS });
    let contents = [noise(1, 100_000), noise(2, 100_000), noise(3, 100_000)];
    let of_ann = local(&[("a", &contents[0]), ("b", &contents[1]), ("c", &contents[2])]);
    room.send_half(&of_ann, "ann").await;
    room.forget_uploads();
    let of_bob = local(&[("x", b"1"), ("y", b"2"), ("z", b"3")]);
    let open = upload_id(of_bob.begin(&room.packs, "bob").await);
    let list = of_bob.list(&room.packs, "bob", &open).await;
    of_bob.send(&room.packs, "bob", &open, &list.missing).await.unwrap();
    let before = room.packs.0.store.used_bytes();

    find_no_room(&room, "eve").await;

    assert!(room.packs.0.store.used_bytes() <= before, "what came of the refused pack stays");
    room.packs.commit("bob", &open, None).await.unwrap();
    assert_eq!(content_of(&tree_of(&room.packs, "bob", &of_bob).await, "z"), b"3");
    let again = upload_id(of_ann.begin(&room.packs, "ann").await);
    assert_eq!(
        of_ann.list(&room.packs, "ann", &again).await.missing.len(),
        1,
        "ann sends again what had arrived"
    );
}

#[tokio::test]
async fn a_pack_over_its_participants_quota_drops_no_trees_of_others() {
    let room = room_with(StoreLimits { per_owner: 3_000_000, ..LIMITS });
    let local = sample_of(500_000);
    for owner in ["bob", "eve"] {
        room.keep_tree(&local, owner).await;
        room.age_trees(owner, 2 * HOUR);
    }
    find_no_room(&room, "eve").await;
    assert!(room.packs.tree("eve", local.hashed.digest).await.is_err(), "her own made room");
    assert_eq!(content_of(&tree_of(&room.packs, "bob", &local).await, "a"), noise(1, 500_000));
}

fn sample_of(length: usize) -> Local {
    local(&[("a", &noise(1, length)), ("b", b"2")])
}

/// A thread that holds the tree lock until it is told to end.
struct Held {
    end: mpsc::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Held {
    /// Starts a thread that stands for a sweep before `act`, or for a commit after its presence check.
    fn new(packs: &PackStore, is_sweep: bool, act: impl FnOnce(&PackStoreInner) + Send + 'static) -> Self {
        let shared = Arc::clone(&packs.0);
        let ((held, is_held), (end, ends)) = (mpsc::channel(), mpsc::channel());
        let thread = std::thread::spawn(move || {
            let (sweep, commit) = match is_sweep {
                true => (Some(shared.tree_lock.write()), None),
                false => (None, Some(shared.tree_lock.read())),
            };
            held.send(()).unwrap();
            ends.recv().unwrap();
            act(&shared);
            drop((sweep, commit));
        });
        is_held.recv().unwrap();
        Self { end, thread }
    }

    fn end(self) {
        self.end.send(()).unwrap();
        self.thread.join().unwrap();
    }
}

/// Reports whether the thread has ended after [`WATCHED`].
async fn ends_soon<T>(task: &tokio::task::JoinHandle<T>) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < WATCHED && !task.is_finished() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    task.is_finished()
}

#[tokio::test]
async fn no_sweep_comes_between_the_last_look_of_a_commit_and_its_tree() {
    let room = room();
    let local = sample();
    let id = upload_id(local.begin(&room.packs, "ann").await);
    let list = local.list(&room.packs, "ann", &id).await;
    local.send(&room.packs, "ann", &id, &list.missing).await.unwrap();
    // A sweep that has seen neither the upload nor its tree is about to remove the contents.
    let sweep = Held::new(&room.packs, true, |shared| {
        shared.store.sweep(&HashSet::new(), Duration::ZERO, None).unwrap();
    });
    let packs = room.packs.clone();
    let commit = task::spawn("commit", async move { packs.commit("ann", &id, None).await });
    assert!(!ends_soon(&commit).await, "the commit does not wait");
    sweep.end();
    let error = commit.await.unwrap().map(|_| ()).unwrap_err();
    assert!(matches!(error, PackError::ContentGone { .. }) && error.retryable(), "{error}");
    assert!(room.packs.tree("ann", local.hashed.digest).await.is_err(), "a tree without its content is kept");

    let commit = Held::new(&room.packs, false, |_| {});
    let packs = room.packs.clone();
    let sweep = task::spawn("sweep", async move { packs.sweep().await });
    assert!(!ends_soon(&sweep).await, "the sweep does not wait");
    commit.end();
    sweep.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_upload_is_idle_only_while_nobody_speaks_to_it() {
    let room = room();
    let tree = |number: u8| TreeDigest::from_bytes([number; 32]);
    let begin = async |number| {
        let begun = room.packs.begin(tree(number), destination("ann", None)).await;
        begun.map(upload_id)
    };
    let sit = |id: &str, time| {
        let uploads = room.packs.0.uploads();
        *uploads[id].last_used.lock() = Instant::now() - time;
    };
    let (idle, busy, recent) = (begin(1).await.unwrap(), begin(2).await.unwrap(), begin(3).await.unwrap());
    let call = room.packs.listing_receiver("ann", &busy).unwrap();
    sit(&idle, UPLOAD_IDLE_LIMIT + Duration::from_secs(1));
    sit(&busy, UPLOAD_IDLE_LIMIT + Duration::from_secs(1));
    sit(&recent, UPLOAD_IDLE_LIMIT - Duration::from_secs(5));
    room.packs.sweep().await.unwrap();
    let is_there = |id: &str| room.packs.0.uploads().contains_key(id);
    assert_eq!([&idle, &busy, &recent].map(|id| is_there(id)), [false, true, true]);
    drop(call);

    // A new upload replaces a stale one of the same participant, the longest idle first.
    sit(&recent, Duration::ZERO);
    for number in 3..=MAX_UPLOADS_PER_OWNER {
        begin(number as u8 + 1).await.unwrap();
    }
    assert!(matches!(begin(90).await, Err(PackError::TooManyUploads { .. })));
    sit(&recent, UPLOAD_STALE_AFTER * 3);
    sit(&busy, UPLOAD_STALE_AFTER * 2);
    begin(90).await.unwrap();
    assert_eq!([&busy, &recent].map(|id| is_there(id)), [true, false]);
}
