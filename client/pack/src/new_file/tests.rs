use std::io::Write;

use super::*;

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_file_has_no_name_until_it_gets_one_and_replaces_another() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    for (content, hidden) in [("one", false), ("two", false), ("three", true)] {
        let new =
            if hidden { NewFile::hidden(dir.path(), 0o600) } else { NewFile::create(dir.path(), 0o600) };
        let new = new.unwrap();
        new.file().write_all(content.as_bytes()).unwrap();
        assert!(!names(dir.path()).contains(&"three".to_owned()));
        new.persist(&path).unwrap();
        drop(new);
        assert_eq!(names(dir.path()), ["out"]);
        assert_eq!(fs::read_to_string(&path).unwrap(), content);
    }
}

#[test]
fn nothing_is_left_of_a_file_that_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    drop(NewFile::create(dir.path(), 0o600).unwrap());
    drop(NewFile::hidden(dir.path(), 0o600).unwrap());
    let new = NewFile::hidden(dir.path(), 0o600).unwrap();
    assert!(new.persist(&dir.path().join("no/such/place")).is_err());
    drop(new);
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn what_a_killed_writer_left_is_removed_and_what_a_living_one_holds_is_not() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(format!("{PREFIX}dead")), "partial").unwrap();
    let living = NewFile::hidden(dir.path(), 0o600).unwrap();
    let _other = NewFile::create(dir.path(), 0o600).unwrap();
    assert_eq!(names(dir.path()).len(), 1);
    living.persist(&dir.path().join("out")).unwrap();
    assert_eq!(names(dir.path()), ["out"]);
}

#[test]
fn a_missing_directory_is_an_error_without_a_hidden_name() {
    let dir = tempfile::tempdir().unwrap();
    let error = NewFile::create(&dir.path().join("missing"), 0o644).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::NOENT.raw_os_error()), "{error}");
}
