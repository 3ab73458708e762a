use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use super::*;
use crate::store::StateStore;

struct Room {
    directory: tempfile::TempDir,
    store: StateStore,
    secrets: RoomSecrets,
}

impl Room {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = StateStore::open(&directory.path().join("state.db")).unwrap();
        let secrets = RoomSecrets::open(&directory.path().join("secrets.key"), Arc::new(store.clone()));
        Self { directory, store, secrets }
    }

    fn key_file(&self) -> PathBuf {
        self.directory.path().join("secrets.key")
    }

    async fn set(&self, name: &str, value: &str) -> Result<SecretView, SecretsError> {
        self.secrets.set(&name.parse().unwrap(), Secret::new(value.to_owned())).await
    }

    async fn reveal(&self, name: &str) -> Result<Option<String>, SecretsError> {
        let found = self.secrets.reveal(&name.parse().unwrap()).await?;
        Ok(found.map(|value| value.reveal().clone()))
    }
}

#[tokio::test]
async fn what_is_set_is_revealed_until_it_is_removed() {
    let room = Room::new();
    assert_eq!(room.secrets.list().await.unwrap(), []);
    assert_eq!(room.reveal("DB").await.unwrap(), None);
    assert!(!room.key_file().exists(), "a key for nothing");
    let first = room.set("DB", "hunter2 ü\n").await.unwrap();
    room.set("a.b", "").await.unwrap();
    assert_eq!(fs::metadata(room.key_file()).unwrap().permissions().mode() & 0o777, 0o600);
    let again = RoomSecrets::open(&room.key_file(), Arc::new(room.store.clone()));
    assert_eq!(again.reveal(&first.name).await.unwrap(), Some(Secret::new("hunter2 ü\n".to_owned())));
    let second = room.set("DB", "other").await.unwrap();
    assert_eq!(second.created_at, first.created_at);
    assert!(second.changed_at > first.changed_at);
    assert_eq!(room.reveal("DB").await.unwrap().as_deref(), Some("other"));
    let listed = room.secrets.list().await.unwrap();
    assert_eq!((listed.len(), &listed[0], listed[1].name.as_str()), (2, &second, "a.b"));
    room.secrets.remove(&first.name).await.unwrap();
    assert_eq!(room.reveal("DB").await.unwrap(), None);
    let gone = room.secrets.remove(&first.name).await.unwrap_err();
    assert_eq!(gone.code(), "secret_not_found");
}

#[tokio::test]
async fn no_value_lies_on_disk_as_it_is() {
    let room = Room::new();
    let value = "correct horse battery staple";
    room.set("A", value).await.unwrap();
    room.set("B", value).await.unwrap();
    let mut files = 0;
    for entry in fs::read_dir(room.directory.path()).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(7).any(|window| window == &value.as_bytes()[..7]));
        files += 1;
    }
    assert!(files >= 2);
    let sealed =
        async |name: &str| SecretStore::get(&room.store, &name.parse().unwrap()).await.unwrap().unwrap();
    let (a, b) = (sealed("A").await, sealed("B").await);
    assert_ne!(a.sealed, b.sealed);
    assert_eq!(format!("{:?}", room.secrets.reveal(&a.name).await.unwrap()), "Some(<secret>)");
}

#[tokio::test]
async fn a_value_that_was_changed_or_moved_to_another_name_is_refused() {
    let room = Room::new();
    room.set("A", "a").await.unwrap();
    let sealed = SecretStore::get(&room.store, &"A".parse().unwrap()).await.unwrap().unwrap();
    let put = async |secret| SecretStore::put(&room.store, secret, 9).await.unwrap().unwrap();
    put(SealedSecret { name: "B".parse().unwrap(), ..sealed.clone() }).await;
    assert_eq!(room.reveal("B").await.unwrap_err().code(), "secret_damaged");
    let mut changed = sealed.clone();
    *changed.sealed.last_mut().unwrap() ^= 1;
    put(changed).await;
    assert_eq!(room.reveal("A").await.unwrap_err().code(), "secret_damaged");
    put(SealedSecret { sealed: vec![1, 2, 3], ..sealed }).await;
    assert_eq!(room.reveal("A").await.unwrap_err().code(), "secret_damaged");
}

#[tokio::test]
async fn a_missing_replaced_or_exposed_key_is_reported_and_one_put_back_works_at_once() {
    let room = Room::new();
    room.set("A", "a").await.unwrap();
    let aside = room.directory.path().join("aside");
    fs::rename(room.key_file(), &aside).unwrap();
    assert_eq!(room.reveal("A").await.unwrap_err().code(), "secret_key_missing");
    let set = room.set("B", "b").await.unwrap_err();
    assert_eq!(set.code(), "secret_key_missing");
    assert!(!room.key_file().exists(), "a new key would hide that the earlier one is gone");
    fs::write(room.key_file(), "x".repeat(64)).unwrap();
    assert!(matches!(room.reveal("A").await.unwrap_err(), SecretsError::KeyFile(_)), "others may read it");
    fs::set_permissions(room.key_file(), Permissions::from_mode(0o600)).unwrap();
    let replaced = room.reveal("A").await.unwrap_err();
    assert_eq!(replaced.code(), "secret_key_replaced");
    assert!(replaced.to_string().contains("secrets.key") && replaced.hint().is_some());
    fs::rename(&aside, room.key_file()).unwrap();
    assert_eq!(room.reveal("A").await.unwrap().as_deref(), Some("a"));
}

#[tokio::test]
async fn values_and_their_number_are_bounded() {
    let room = Room::new();
    room.set("A", &"x".repeat(MAX_VALUE_BYTES)).await.unwrap();
    assert_eq!(room.set("A", &"x".repeat(MAX_VALUE_BYTES + 1)).await.unwrap_err().code(), "secret_too_large");
    assert_eq!(room.set("A", "a\0b").await.unwrap_err().code(), "invalid_secret_value");
    let sealed = SecretStore::get(&room.store, &"A".parse().unwrap()).await.unwrap().unwrap();
    for number in 1..MAX_SECRETS {
        let name = format!("N{number}").parse().unwrap();
        SecretStore::put(&room.store, SealedSecret { name, ..sealed.clone() }, MAX_SECRETS).await.unwrap();
    }
    assert_eq!(room.set("MORE", "x").await.unwrap_err().code(), "too_many_secrets");
    room.set("A", "still").await.unwrap();
    assert_eq!(room.reveal("A").await.unwrap().as_deref(), Some("still"));
}
