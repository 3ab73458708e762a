//! Room and project storage through the client: streamed, atomic, and never outside.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use hearth_proto::v1::{WriteBegin, WriteFileRequest, write_file_request::Message};
use integration_tests::daemon::Daemon;
use integration_tests::grpc::{Api, block_on};
use integration_tests::runner::Group;
use integration_tests::shared_cases;
use integration_tests::sources::{Tree, fingerprint, noise};
use integration_tests::wait::seconds;

pub fn group() -> Group {
    Group::new(
        "storage",
        shared_cases![
            a_file_comes_back_as_it_went,
            a_directory_comes_back_as_it_went,
            a_put_replaces_a_file_as_a_whole,
            a_write_that_breaks_off_leaves_the_old_file,
            a_write_of_another_size_than_declared_is_refused,
            list_shows_what_is_there,
            a_directory_is_removed_only_with_recursive,
            project_storage_is_apart_from_room_storage,
            no_path_and_no_link_leads_out,
            links_inside_a_directory_stay_links_both_ways,
        ],
    )
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn a_file_comes_back_as_it_went(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    let content = noise(21, 9_000_000);
    let (from, back) = (work.path().join("from"), work.path().join("back"));
    fs::write(&from, &content).unwrap();
    daemon.hearth_ok(&["storage", "put", text(&from), "files/large"]);
    daemon.hearth_ok(&["storage", "get", "files/large", text(&back)]);
    assert!(fs::read(daemon.room_files().join("files/large")).unwrap() == content);
    assert!(fs::read(&back).unwrap() == content);
}

fn a_directory_comes_back_as_it_went(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    let (from, back) = (work.path().join("from"), work.path().join("back"));
    let tree = Tree::new().file("a", "1").file_with_mode("bin/run", "2", 0o755).file("sub/deep/b", "3");
    tree.write(&from);
    daemon.hearth_ok(&["storage", "put", text(&from), "/trees/one"]);
    daemon.hearth_ok(&["storage", "get", "/trees/one", text(&back)]);
    for (path, content) in [("a", "1"), ("bin/run", "2"), ("sub/deep/b", "3")] {
        assert_eq!(fs::read_to_string(back.join(path)).unwrap(), content, "{path}");
    }
    use std::os::unix::fs::PermissionsExt;
    let stored = daemon.room_files().join("trees/one/bin/run");
    assert_eq!(fs::metadata(stored).unwrap().permissions().mode() & 0o777, 0o755, "exec bits are kept");
    assert_eq!(fs::metadata(back.join("bin/run")).unwrap().permissions().mode() & 0o777, 0o755);
}

fn a_put_replaces_a_file_as_a_whole(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    let from = work.path().join("from");
    fs::write(&from, "a long first version").unwrap();
    daemon.hearth_ok(&["storage", "put", text(&from), "replaced/file"]);
    let stored = daemon.room_files().join("replaced/file");
    // A reader that has the old file open still reads all of it.
    let mut old = fs::File::open(&stored).unwrap();
    fs::write(&from, "second").unwrap();
    daemon.hearth_ok(&["storage", "put", text(&from), "replaced/file"]);
    let mut kept = String::new();
    std::io::Read::read_to_string(&mut old, &mut kept).unwrap();
    assert_eq!(kept, "a long first version");
    assert_eq!(fs::read_to_string(&stored).unwrap(), "second");
    assert_eq!(
        fs::read_dir(daemon.room_files().join("replaced")).unwrap().count(),
        1,
        "no temporary file stays"
    );
}

fn begin(path: &str, size_bytes: Option<u64>) -> WriteFileRequest {
    let begin = WriteBegin { path: path.to_owned(), size_bytes, ..Default::default() };
    WriteFileRequest { message: Some(Message::Begin(begin)) }
}

fn chunk(content: &[u8]) -> WriteFileRequest {
    WriteFileRequest { message: Some(Message::Chunk(content.to_vec().into())) }
}

fn a_write_that_breaks_off_leaves_the_old_file(daemon: &Daemon) {
    daemon.put("broken", &Tree::new().file("file", "old"));
    block_on(seconds(30), async {
        let api = Api::of(daemon).await;
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        let mut storage = api.storage();
        let write = storage.write(tokio_stream::wrappers::ReceiverStream::new(receiver));
        let feed = async {
            sender.send(begin("broken/file", None)).await.unwrap();
            sender.send(chunk(&noise(5, 500_000))).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        };
        // Dropping the call in the middle resets its stream, like the death of a client.
        tokio::select! {
            () = feed => {}
            answer = write => panic!("answered in the middle: {answer:?}"),
        }
    });
    std::thread::sleep(std::time::Duration::from_millis(500));
    let directory = daemon.room_files().join("broken");
    assert_eq!(fs::read_to_string(directory.join("file")).unwrap(), "old");
    assert_eq!(fs::read_dir(directory).unwrap().count(), 1, "nothing is left of the interrupted write");
}

fn a_write_of_another_size_than_declared_is_refused(daemon: &Daemon) {
    let status = block_on(seconds(30), async {
        let api = Api::of(daemon).await;
        let messages = vec![begin("short/file", Some(10)), chunk(b"only 4")];
        api.storage().write(tokio_stream::iter(messages)).await.unwrap_err()
    });
    assert!(!status.message().is_empty());
    assert!(!daemon.room_files().join("short/file").exists());
}

fn list_shows_what_is_there(daemon: &Daemon) {
    daemon.put("listed", &Tree::new().file("a.txt", "12345").file("sub/b", "").link("l", "a.txt"));
    let output = daemon.hearth_ok(&["storage", "ls", "listed"]);
    assert!(output.stdout.contains("a.txt") && output.stdout.contains("sub"), "{output}");
    assert!(output.stdout.contains('5'), "sizes are shown\n{output}");
    daemon.hearth(&["storage", "ls", "not/there"]).expect_code(1).says(&["not/there"]);
}

fn a_directory_is_removed_only_with_recursive(daemon: &Daemon) {
    daemon.put("removed", &Tree::new().file("sub/a", "").file("b", ""));
    daemon.hearth_ok(&["storage", "rm", "removed/b"]);
    daemon.hearth(&["storage", "rm", "removed/sub"]).expect_code(1).says(&["removed/sub"]);
    assert!(daemon.room_files().join("removed/sub/a").exists());
    daemon.hearth_ok(&["storage", "rm", "--recursive", "removed/sub"]);
    assert!(!daemon.room_files().join("removed/sub").exists());
    daemon.hearth(&["storage", "rm", "removed/sub"]).expect_code(1).says(&["removed/sub"]);
}

fn project_storage_is_apart_from_room_storage(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    let from = work.path().join("from");
    fs::write(&from, "p").unwrap();
    daemon.hearth_ok(&["storage", "put", "--project", text(&from), "only/project"]);
    assert_eq!(fs::read_to_string(daemon.project_files().join("only/project")).unwrap(), "p");
    assert!(!daemon.room_files().join("only").exists());
}

fn no_path_and_no_link_leads_out(daemon: &Daemon) {
    let outside = daemon.directory().join("storage-outside");
    Tree::new().file("canary", "canary-77aa").write(&outside);
    daemon.put("out", &Tree::new().file("x", ""));
    let inside = daemon.room_files().join("out");
    symlink(&outside, inside.join("abs")).unwrap();
    symlink("../../../../storage-outside", inside.join("rel")).unwrap();
    symlink("/proc/self/root", inside.join("magic")).unwrap();
    let before = fingerprint(&outside);
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    let (back, mine) = (work.path().join("back"), work.path().join("mine"));
    fs::write(&mine, "overwritten").unwrap();
    let magic = format!("out/magic{}/canary", outside.display());
    for path in [
        "out/abs/canary",
        "out/rel/canary",
        "../../../storage-outside/canary",
        "out/../../../x",
        magic.as_str(),
    ] {
        let output = daemon.hearth(&["storage", "get", path, text(&back)]);
        assert!(output.code != 0 && !back.exists(), "get {path}\n{output}");
        let output = daemon.hearth(&["storage", "put", text(&mine), path]);
        assert_ne!(output.code, 0, "put {path}\n{output}");
        let output = daemon.hearth(&["storage", "rm", path]);
        assert_ne!(output.code, 0, "rm {path}\n{output}");
    }
    let output = daemon.hearth(&["storage", "ls", "out/abs"]);
    assert!(!output.stdout.contains("canary"), "{output}");
    assert_eq!(fingerprint(&outside), before, "nothing outside was touched");
}

fn links_inside_a_directory_stay_links_both_ways(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    let (from, back) = (work.path().join("from"), work.path().join("back"));
    let tree = Tree::new()
        .file("node_modules/lint/lint.js", "lint")
        .link("node_modules/.bin/lint", "../lint/lint.js")
        .link("dangling", "no/such");
    tree.write(&from);
    for _ in 0..2 {
        daemon.hearth_ok(&["storage", "put", text(&from), "linked"]).says(&["1 file and 2 links"]);
        daemon.hearth_ok(&["storage", "get", "linked", text(&back)]);
    }
    for directory in [&daemon.room_files().join("linked"), &back] {
        let link = directory.join("node_modules/.bin/lint");
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("../lint/lint.js"));
        assert_eq!(fs::read_to_string(&link).unwrap(), "lint");
        assert_eq!(fs::read_link(directory.join("dangling")).unwrap(), Path::new("no/such"));
    }
    // One that leads out is named before anything is sent.
    symlink("../../outside", from.join("node_modules/out")).unwrap();
    let output = daemon.hearth(&["storage", "put", text(&from), "refused"]);
    output.expect_code(2).says(&["node_modules/out", "leads out of"]);
    assert!(!daemon.room_files().join("refused").exists());
    symlink("../../outside", daemon.room_files().join("linked/out")).unwrap();
    let partial = work.path().join("partial");
    let output = daemon.hearth(&["storage", "get", "linked", text(&partial)]);
    output.expect_code(1).says(&["linked/out", "leads out of"]);
    assert!(!partial.exists());
}
