//! The context that a build sees: exactly the room's files, never others, never changed by a build.

use std::fs;
use std::os::unix::fs::symlink;

use integration_tests::daemon::{BASE, Daemon};
use integration_tests::image::Kind;
use integration_tests::runner::Group;
use integration_tests::shared_cases;
use integration_tests::sources::{Tree, fingerprint, noise, set_time};

const COPY_ALL: &str = "FROM scratch\nCOPY . /all/\n";

pub fn group() -> Group {
    Group::new(
        "build_context",
        shared_cases![
            dockerignore_keeps_files_out,
            the_dockerfiles_own_ignore_file_comes_first,
            the_deeper_mount_wins,
            mounts_beside_the_context_path_stay_out,
            directories_that_look_alike_by_stat_never_mix,
            a_change_of_content_is_seen,
            a_change_with_equal_size_and_time_is_seen,
            a_removed_file_is_gone_from_the_next_build,
            links_that_leave_the_tree_are_passed_as_links_and_never_followed,
            modes_links_and_empty_directories_survive,
            odd_names_survive,
            hard_links_and_large_files_survive,
            a_context_of_forty_thousand_files_reaches_the_image,
            building_never_changes_the_rooms_files,
            an_unchanged_context_takes_every_step_from_the_cache,
            an_image_of_the_room_can_be_a_mount,
            a_subpath_of_an_image_can_be_a_mount,
        ],
    )
}

fn dockerignore_keeps_files_out(daemon: &Daemon) {
    let tree = Tree::new()
        .dockerfile(COPY_ALL)
        .file(".dockerignore", "# a comment\n*.log\n**/node_modules\n!keep.log\nsecret/\n")
        .file("a.txt", "a")
        .file("a.log", "")
        .file("keep.log", "kept")
        .file("sub/b.log", "deeper: `*.log` is for the top only")
        .file("sub/node_modules/x/index.js", "")
        .file("secret/key", "");
    daemon.put("ignore", &tree);
    daemon.build_ok("ignore:1", "ignore", &[]);
    let image = daemon.image("ignore:1");
    for (path, there) in [
        ("a.txt", true),
        ("keep.log", true),
        ("sub/b.log", true),
        ("a.log", false),
        ("sub/node_modules", false),
        ("secret/key", false),
    ] {
        assert_eq!(image.has(&format!("all/{path}")), there, "{path} in {:?}", image.names("all"));
    }
}

fn the_dockerfiles_own_ignore_file_comes_first(daemon: &Daemon) {
    let tree = Tree::new()
        .file("web.Dockerfile", COPY_ALL)
        .file("web.Dockerfile.dockerignore", "b\n")
        .file(".dockerignore", "a\n")
        .file("a", "a")
        .file("b", "b");
    daemon.put("own-ignore", &tree);
    daemon.build_ok("own-ignore:1", "own-ignore", &["-f", "web.Dockerfile"]);
    let image = daemon.image("own-ignore:1");
    assert!(image.has("all/a") && !image.has("all/b"), "{:?}", image.names("all"));
}

fn the_deeper_mount_wins(daemon: &Daemon) {
    daemon.put("nest/app", &Tree::new().dockerfile(COPY_ALL).file("own", "app").file("vendor/hidden", "app"));
    daemon.put("nest/vendor", &Tree::new().file("lib", "vendor"));
    daemon.put("nest/deep", &Tree::new().file("file", "deep"));
    daemon.hearth_ok(&[
        "build",
        "--tag",
        "nest:1",
        // The order on the command line has no effect.
        "--mount-room-path",
        "nest/deep:/context/made/up/deep",
        "--mount-room-path",
        "nest/vendor:/context/vendor:ro",
        "--mount-room-path",
        "nest/app:/context:ro",
        "--context-path",
        "/context",
    ]);
    let image = daemon.image("nest:1");
    assert_eq!(image.file("all/own"), "app");
    assert_eq!(image.file("all/vendor/lib"), "vendor");
    assert_eq!(image.file("all/made/up/deep/file"), "deep", "directories above a mount are made");
    assert!(!image.has("all/vendor/hidden"), "a mount hides what lies below it");
}

fn mounts_beside_the_context_path_stay_out(daemon: &Daemon) {
    daemon.put("beside/a", &Tree::new().dockerfile(COPY_ALL).file("a", "a"));
    daemon.put("beside/b", &Tree::new().file("b", "b"));
    daemon.hearth_ok(&[
        "build",
        "--tag",
        "beside:1",
        "--mount-room-path",
        "beside/a:/one",
        "--mount-room-path",
        "beside/b:/two",
        "--context-path",
        "/one",
    ]);
    let image = daemon.image("beside:1");
    assert!(image.has("all/a") && !image.has("all/b"), "{:?}", image.names(""));
}

/// File sync compares only path, mode, size and modification time, so it cannot tell these two directories apart.
fn directories_that_look_alike_by_stat_never_mix(daemon: &Daemon) {
    let twin = |content: &str| {
        Tree::new().dockerfile(COPY_ALL).file("value", content).file("same", "s").at(1_700_000_000)
    };
    daemon.put("twins/a", &twin("AAAA"));
    daemon.put("twins/b", &twin("BBBB"));
    for round in 1..=2 {
        for (path, content) in [("twins/a", "AAAA"), ("twins/b", "BBBB")] {
            daemon.build_ok("twins:1", path, &[]);
            assert_eq!(daemon.image("twins:1").file("all/value"), content, "{path}, round {round}");
        }
    }
    // The same through one target of one mount point whose source is replaced.
    let (a, other, b) =
        ["twins/a", "twins/other", "twins/b"].map(|path| daemon.room_files().join(path)).into();
    fs::rename(&a, &other).unwrap();
    fs::rename(&b, &a).unwrap();
    daemon.build_ok("twins:1", "twins/a", &[]);
    assert_eq!(daemon.image("twins:1").file("all/value"), "BBBB", "after the directories were exchanged");
}

fn a_change_of_content_is_seen(daemon: &Daemon) {
    daemon.put("change", &Tree::new().dockerfile(COPY_ALL).file("v", "one").file("big", noise(7, 300_000)));
    daemon.build_ok("change:1", "change", &[]);
    fs::write(daemon.room_files().join("change/v"), "two and longer").unwrap();
    daemon.build_ok("change:1", "change", &[]);
    assert_eq!(daemon.image("change:1").file("all/v"), "two and longer");
}

fn a_change_with_equal_size_and_time_is_seen(daemon: &Daemon) {
    daemon.put("quiet", &Tree::new().dockerfile(COPY_ALL).file("v", "one").at(1_700_000_000));
    for content in ["one", "two", "six", "one"] {
        let path = daemon.room_files().join("quiet/v");
        fs::write(&path, content).unwrap();
        set_time(&path, 1_700_000_000);
        daemon.build_ok("quiet:1", "quiet", &[]);
        assert_eq!(daemon.image("quiet:1").file("all/v"), content);
    }
}

fn a_removed_file_is_gone_from_the_next_build(daemon: &Daemon) {
    daemon.put(
        "removal",
        &Tree::new().dockerfile(COPY_ALL).file("stays", "").file("goes", "").file("sub/goes", ""),
    );
    daemon.build_ok("removal:1", "removal", &[]);
    fs::remove_file(daemon.room_files().join("removal/goes")).unwrap();
    fs::remove_dir_all(daemon.room_files().join("removal/sub")).unwrap();
    daemon.build_ok("removal:1", "removal", &[]);
    assert_eq!(daemon.image("removal:1").names("all/"), ["all/Dockerfile", "all/stays"]);
}

fn links_that_leave_the_tree_are_passed_as_links_and_never_followed(daemon: &Daemon) {
    let canary = "canary-4cb1-outside-the-tree";
    let outside = daemon.directory().join("outside");
    Tree::new().file("canary", canary).write(&outside);
    daemon.put("links-sibling", &Tree::new().file("canary", canary));
    daemon.put(
        "links",
        &Tree::new().dockerfile(COPY_ALL).file("in", "").link("rel", "../links-sibling/canary"),
    );
    let directory = daemon.room_files().join("links");
    symlink(outside.join("canary"), directory.join("abs")).unwrap();
    symlink(&outside, directory.join("abs-dir")).unwrap();
    symlink("../links-sibling", directory.join("rel-dir")).unwrap();
    symlink("/proc/self/root", directory.join("magic")).unwrap();
    daemon.build_ok("links:1", "links", &[]);
    let image = daemon.image("links:1");
    assert_eq!(image.link("all/rel"), "../links-sibling/canary");
    assert_eq!(image.link("all/abs"), outside.join("canary").to_str().unwrap());
    assert_eq!(image.link("all/rel-dir"), "../links-sibling");
    assert_eq!(image.link("all/magic"), "/proc/self/root");
    for (path, node) in &image.files {
        if let Kind::File(content) = &node.kind {
            assert!(!String::from_utf8_lossy(content).contains(canary), "the canary is in {path}");
        }
    }
    // COPY of the target of a link: the link is resolved inside the context, where its target does not exist.
    for source in ["abs", "abs-dir/canary", "rel-dir/canary", "magic/etc/passwd"] {
        let name = format!("links-{}", source.replace('/', "-"));
        daemon.put(&name, &Tree::new().dockerfile(&format!("FROM scratch\nCOPY {source} /out\n")));
        for link in ["abs", "abs-dir", "rel-dir", "magic"] {
            let target = fs::read_link(directory.join(link)).unwrap();
            symlink(target, daemon.room_files().join(&name).join(link)).unwrap();
        }
        let output = daemon.build(&format!("{name}:1"), &name, &[]);
        assert_ne!(output.code, 0, "COPY {source} succeeded\n{output}");
        assert!(!output.stderr.contains(canary) && !output.stderr.contains("root:x:0"), "{output}");
    }
}

fn modes_links_and_empty_directories_survive(daemon: &Daemon) {
    let tree = Tree::new()
        .dockerfile(COPY_ALL)
        .file_with_mode("run.sh", "#!/bin/sh\n", 0o755)
        .file_with_mode("private", "p", 0o600)
        .file_with_mode("setuid", "s", 0o4755)
        .directory("empty")
        .directory_with_mode("closed", 0o700)
        .directory("a/b/c")
        .link("dangling", "nowhere/at/all")
        .link("inside", "run.sh")
        .file("zero", "")
        .at(1_600_000_001);
    daemon.put("exact", &tree);
    daemon.build_ok("exact:1", "exact", &[]);
    let image = daemon.image("exact:1");
    for (path, mode) in [
        ("run.sh", 0o755),
        ("private", 0o600),
        ("setuid", 0o4755),
        ("empty", 0o755),
        ("closed", 0o700),
        ("zero", 0o644),
    ] {
        assert_eq!(image.mode(&format!("all/{path}")), mode, "{path}");
    }
    assert!(
        image.files["all/empty"].kind == Kind::Directory && image.files["all/a/b/c"].kind == Kind::Directory
    );
    assert_eq!(image.link("all/dangling"), "nowhere/at/all");
    assert_eq!(image.link("all/inside"), "run.sh");
    assert_eq!(image.files["all/run.sh"].owner, (0, 0));
    assert_eq!(image.files["all/run.sh"].time, 1_600_000_001, "modification times reach the image");
}

fn odd_names_survive(daemon: &Daemon) {
    use std::os::unix::ffi::OsStrExt;
    let long = "x".repeat(250);
    let tree = Tree::new()
        .dockerfile(COPY_ALL)
        .file("with blank", "1")
        .file("umlaut-ü-日本", "2")
        .file("new\nline", "3")
        .file("-dash", "4")
        .file("quote\"'$(x)", "5")
        .file(&long, "6")
        .file("a-b/x", "7")
        .file("a/x", "8")
        .file("a.b/x", "9");
    daemon.put("odd", &tree);
    fs::write(daemon.room_files().join("odd").join(std::ffi::OsStr::from_bytes(b"not-utf8-\xff")), "10")
        .unwrap();
    daemon.build_ok("odd:1", "odd", &[]);
    let image = daemon.image("odd:1");
    let names =
        ["with blank", "umlaut-ü-日本", "new\nline", "-dash", "quote\"'$(x)", &long, "a-b/x", "a/x", "a.b/x"];
    for (name, content) in names.iter().zip(1..) {
        assert_eq!(image.file(&format!("all/{name}")), content.to_string(), "{name:?}");
    }
    assert_eq!(image.file("all/not-utf8-\u{fffd}"), "10");
}

fn hard_links_and_large_files_survive(daemon: &Daemon) {
    let large = noise(11, 9_000_000);
    daemon.put("large", &Tree::new().dockerfile(COPY_ALL).file("large", large.clone()).file("one", "linked"));
    let directory = daemon.room_files().join("large");
    fs::hard_link(directory.join("one"), directory.join("two")).unwrap();
    daemon.build_ok("large:1", "large", &[]);
    let image = daemon.image("large:1");
    assert!(image.files["all/large"].kind == Kind::File(large));
    assert_eq!((image.file("all/one"), image.file("all/two")), ("linked".to_owned(), "linked".to_owned()));
}

/// BuildKit requests every file as soon as it is announced. A larger number of small requests than HTTP/2 lets wait
/// unread once ended the connection.
fn a_context_of_forty_thousand_files_reaches_the_image(daemon: &Daemon) {
    const FILES: usize = 40_000;
    daemon.put("many", &Tree::new().dockerfile("FROM scratch\nCOPY files /files/\n"));
    let files = daemon.room_files().join("many/files");
    for directory in 0..FILES / 1000 {
        let directory = files.join(directory.to_string());
        fs::create_dir_all(&directory).unwrap();
        for file in 0..1000 {
            fs::write(directory.join(file.to_string()), file.to_string()).unwrap();
        }
    }
    daemon.build_ok("many:1", "many", &[]);
    let image = daemon.image("many:1");
    let missing = |number: &usize| !image.has(&format!("files/{}/{}", number / 1000, number % 1000));
    assert_eq!((0..FILES).find(missing), None);
    assert_eq!(image.file("files/39/999"), "999");
}

fn building_never_changes_the_rooms_files(daemon: &Daemon) {
    daemon.base_image();
    let dockerfile = format!(
        "FROM {BASE}\n\
         RUN --mount=type=bind,target=/src,rw echo changed > /src/file && rm /src/other && touch /src/new\n\
         COPY . /all\nRUN echo changed > /all/file\n"
    );
    daemon.put(
        "untouched",
        &Tree::new().dockerfile(&dockerfile).file("file", "before").file("other", "o").link("l", "file"),
    );
    let before = fingerprint(&daemon.room_files().join("untouched"));
    daemon.hearth_ok(&["build", "--tag", "untouched:1", "--mount-room-path", "untouched:/context:rw"]);
    assert_eq!(fingerprint(&daemon.room_files().join("untouched")), before);
    let image = daemon.image("untouched:1");
    assert_eq!(image.file("all/file"), "changed\n");
    assert!(image.has("all/other"), "a write to a bind mount is not kept either");
}

fn an_unchanged_context_takes_every_step_from_the_cache(daemon: &Daemon) {
    let base = daemon.base_image();
    daemon.put(
        "cached",
        &Tree::new().dockerfile(&format!("FROM {base}\nCOPY . /all\nRUN head -c 9 /dev/urandom > /r\n")),
    );
    let first = daemon.build_ok("cached:1", "cached", &[]);
    // A different time is not different content: COPY's cache key contains no time.
    set_time(&daemon.room_files().join("cached/Dockerfile"), 1_500_000_000);
    let again = daemon.build_ok("cached:1", "cached", &[]);
    let layer = |digest: &str| {
        let pulled = daemon.image(&format!("cached@{digest}"));
        pulled.manifest["layers"].as_array().unwrap().last().unwrap()["digest"].clone()
    };
    assert_eq!(layer(&first), layer(&again), "the RUN step was not run again");
    let anew = daemon.build_ok("cached:1", "cached", &["--no-cache"]);
    assert_ne!(layer(&first), layer(&anew), "--no-cache runs it again");
}

fn an_image_of_the_room_can_be_a_mount(daemon: &Daemon) {
    daemon.put(
        "assets",
        &Tree::new()
            .dockerfile("FROM scratch\nCOPY deep /deep\n")
            .file("deep/Dockerfile", COPY_ALL)
            .file("deep/x", "x"),
    );
    daemon.build_ok("assets:2", "assets", &[]);
    daemon.hearth_ok(&[
        "build",
        "--tag",
        "from-assets:1",
        "--mount-image",
        "room.meshagent.com/assets:2=/context",
        "--context-path",
        "/context/deep",
    ]);
    assert_eq!(daemon.image("from-assets:1").file("all/x"), "x");
}

fn a_subpath_of_an_image_can_be_a_mount(daemon: &Daemon) {
    daemon.put(
        "assets-sub",
        &Tree::new().dockerfile("FROM scratch\nCOPY share /usr/share\n").file("share/x", "x"),
    );
    daemon.build_ok("assets-sub:1", "assets-sub", &[]);
    daemon.put("sub-user", &Tree::new().dockerfile(COPY_ALL));
    daemon.hearth_ok(&[
        "build",
        "--tag",
        "sub-user:1",
        "--mount-room-path",
        "sub-user:/context",
        "--mount-image",
        "assets-sub:1=/context/assets,subpath=usr/share",
        "--context-path",
        "/context",
    ]);
    assert_eq!(daemon.image("sub-user:1").file("all/assets/x"), "x");
}
