//! The disk is full for one upload while others wait for their rows to become durable.

use super::*;

/// Lets the index grow by this number of pages.
fn allow_growth(store: &ContentStore, pages: u32) {
    let index = store.0.index();
    let used: u32 = index.database.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
    index.database.pragma_update(None, "max_page_count", used + pages).unwrap();
}

/// Appends content of `owner` until the index finds the disk full.
fn fill(store: &ContentStore, owner: &str) {
    allow_growth(store, 2);
    let full = (0..100_000u32).find_map(|n| put(store, owner, &[n.to_string().as_bytes()]).err());
    assert!(matches!(full, Some(AppendError::NoSpace)), "{full:?}");
    allow_growth(store, 10_000);
}

#[test]
fn a_sync_fails_when_the_rows_of_another_upload_were_lost() {
    let fixture = Fixture::new(LIMITS);
    let store = &fixture.store;
    put(store, "ann", &[b"lost"]).unwrap();
    let losses = store.losses().unwrap();
    fill(store, "bob");
    put(store, "ann", &[b"kept"]).unwrap();
    assert!(matches!(store.sync(), Err(AppendError::NoSpace)));
    store.sync().unwrap();
    assert!(matches!(store.sync_seen(losses), Err(AppendError::NoSpace)), "each upload is told");
    store.sync_seen(store.losses().unwrap()).unwrap();
    for store in [store, &fixture.reopened()] {
        assert_eq!(presence(store, "ann", b"lost"), ContentPresence::Missing);
        assert_eq!(presence(store, "ann", b"kept"), ContentPresence::Own);
    }
    assert_eq!(store.bytes_sent_by(&OwnerKey::of("bob")), 0, "what was lost is not charged");
}

#[test]
fn a_sweep_on_a_full_disk_loses_no_content() {
    let mut fixture = Fixture::new(LIMITS);
    let contents: Vec<Vec<u8>> = (0..500u32).map(|n| n.to_le_bytes().repeat(16)).collect();
    for content in &contents {
        put(&fixture.store, "ann", &[content]).unwrap();
    }
    fixture.store.sync().unwrap();
    fixture.wait(2 * HOUR);
    allow_growth(&fixture.store, 0);
    let live = HashSet::from([ContentHash::of(&contents[7])]);
    // Whether it can complete depends on the pages that it frees.
    let _ = fixture.store.sweep(&live, HOUR, None);
    for store in [&fixture.store, &fixture.reopened()] {
        assert_eq!(presence(store, "ann", &contents[7]), ContentPresence::Own);
        assert_eq!(store.reader().piece(&ContentHash::of(&contents[7])).unwrap().unwrap(), contents[7]);
    }
}
