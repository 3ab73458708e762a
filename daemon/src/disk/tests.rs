use super::*;

struct LedgerFixture {
    directory: tempfile::TempDir,
    limits: DiskLimits,
}

fn scene(per_caller: u64) -> LedgerFixture {
    LedgerFixture {
        directory: tempfile::tempdir().unwrap(),
        limits: DiskLimits { per_caller, per_image: u64::MAX, min_free: 0 },
    }
}

impl LedgerFixture {
    fn open(&self) -> DiskLedger {
        DiskLedger::open(&self.directory.path().join("ledger"), self.limits).unwrap()
    }

    fn claim(&self, shares: &DiskLedger, caller: &str) -> Result<DiskClaim, DiskError> {
        shares.begin(caller, UploadKind::File, "x", self.directory.path())
    }
}

fn file(name: &str) -> KeptContent {
    KeptContent::RoomFile(name.into())
}

#[test]
fn a_caller_holds_its_quota_and_others_have_theirs() {
    let scene = scene(100);
    let shares = scene.open();
    let first = scene.claim(&shares, "a").unwrap();
    first.grow(60).unwrap();
    let second = scene.claim(&shares, "a").unwrap();
    assert!(matches!(second.grow(41), Err(DiskError::Quota { limit: 100, .. })));
    second.grow(40).unwrap();
    assert!(matches!(scene.claim(&shares, "a"), Err(DiskError::Quota { .. })));
    scene.claim(&shares, "b").unwrap().grow(100).unwrap();
    drop(first);
    second.grow(60).unwrap();
    assert_eq!(shares.unfinished().len(), 1);
}

#[test]
fn what_is_kept_counts_after_a_restart_until_it_is_gone() {
    let scene = scene(100);
    let shares = scene.open();
    let claim = scene.claim(&shares, "a").unwrap();
    claim.grow(70).unwrap();
    claim.keep(vec![(file("x"), 70)]);
    assert!(shares.unfinished().is_empty());
    drop(shares);
    let shares = scene.open();
    assert_eq!(shares.kept()["a"], KeptBytes { images: 0, files: 70 });
    assert!(scene.claim(&shares, "a").unwrap().grow(31).is_err());
    // Another caller writes the same file and is charged for it.
    let claim = scene.claim(&shares, "b").unwrap();
    claim.grow(20).unwrap();
    claim.keep(vec![(file("x"), 20)]);
    assert_eq!(shares.kept().keys().collect::<Vec<_>>(), ["b"]);
    scene.claim(&shares, "a").unwrap().grow(100).unwrap();
    shares.compare(|_| Ok(Some(5))).unwrap();
    assert_eq!(shares.kept()["b"].files, 5);
    shares.compare(|_| Ok(None)).unwrap();
    assert!(scene.open().kept().is_empty());
}

#[test]
fn nothing_is_taken_of_the_space_that_stays_free() {
    let mut scene = scene(u64::MAX);
    scene.limits.min_free = u64::MAX / 2;
    let shares = scene.open();
    assert!(matches!(scene.claim(&shares, "a"), Err(DiskError::NoSpace { .. })));
}

#[test]
fn half_a_line_of_a_killed_daemon_is_passed_over() {
    let scene = scene(100);
    let shares = scene.open();
    let claim = scene.claim(&shares, "a").unwrap();
    claim.keep(vec![(file("x"), 7)]);
    let path = scene.directory.path().join("ledger");
    let mut text = std::fs::read(&path).unwrap();
    text.extend(b"{\"content\":{\"room_fi");
    std::fs::write(&path, text).unwrap();
    assert_eq!(scene.open().kept()["a"].files, 7);
}

#[test]
fn one_image_has_a_limit_of_its_own_and_files_have_none() {
    let mut scene = scene(1000);
    scene.limits.per_image = 100;
    let shares = scene.open();
    for kind in [UploadKind::Blob, UploadKind::Archive] {
        let claim = shares.begin("a", kind, "x", scene.directory.path()).unwrap();
        claim.grow(60).unwrap();
        assert!(matches!(claim.grow(41), Err(DiskError::ImageTooLarge { limit: 100 })));
        claim.grow(40).unwrap();
    }
    scene.claim(&shares, "a").unwrap().grow(500).unwrap();
}
