//! Images that services mount: the image is resolved when the mount is given, and is kept as long as it is needed. Tags
//! move and disappear, the daemon is killed, and the service reads the same content as before.

use integration_tests::daemon::{Daemon, Options};
use integration_tests::http::Request;
use integration_tests::lone_cases;
use integration_tests::runner::Group;
use integration_tests::service::{App, page};
use integration_tests::sources::Tree;
use integration_tests::wait::{self, seconds};

pub fn group() -> Group {
    let cases = lone_cases![
        a_moved_tag_of_a_mounted_image_changes_nothing_until_the_mount_is_given_again,
        a_mounted_image_outlives_its_tag_and_cannot_be_deleted,
        after_the_death_of_the_daemon_a_service_is_replaced_and_reads_its_mounted_images,
        a_mount_of_an_unknown_image_is_refused_before_anything_changes,
        an_image_of_another_registry_is_fetched_once_and_then_served_from_the_room,
    ];
    Group::new("service_mounts", cases).in_sequence()
}

/// Packs an image with this text as `assets:1`.
#[track_caller]
fn assets(daemon: &Daemon, text: &str) {
    pack(daemon, "assets:1", text);
}

#[track_caller]
fn pack(daemon: &Daemon, tag: &str, text: &str) {
    let directory = tempfile::tempdir_in(daemon.directory()).unwrap();
    Tree::new().file("share/font", text).write(directory.path());
    daemon.hearth_ok(&["pack", directory.path().to_str().unwrap(), "--tag", tag]);
}

/// Starts a daemon with a service `web` at `web.test` that mounts `assets:1` at `/assets`.
fn with_assets(name: &str, more: &[&str]) -> Daemon {
    with_assets_in(Options::room(name), more)
}

fn with_assets_in(options: Options, more: &[&str]) -> Daemon {
    let daemon = Daemon::start(options);
    assets(&daemon, "first\n");
    App::page("one\n").pack(&daemon, "web:1");
    App::page("two\n").pack(&daemon, "web:2");
    let deploy = ["deploy", "--tag", "web:1", "--domain", "web.test", "--public"];
    daemon.hearth_ok(&[&deploy[..], &["--image-mount", "assets:1=/assets"], more].concat());
    assert_eq!(font(&daemon, "/assets"), "first\n");
    daemon
}

#[track_caller]
fn font(daemon: &Daemon, target: &str) -> String {
    inside(daemon, &format!("cat {target}/share/font"))
}

/// Runs a command inside of the service; returns its output.
#[track_caller]
fn inside(daemon: &Daemon, command: &str) -> String {
    daemon.hearth_ok(&["services", "exec", "web", "--", "sh", "-c", command]).stdout
}

fn a_moved_tag_of_a_mounted_image_changes_nothing_until_the_mount_is_given_again() {
    let daemon = with_assets("pinned", &[]);
    assets(&daemon, "moved\n");
    let before = inside(&daemon, "hostname -i");
    daemon.hearth_ok(&["services", "restart", "web"]);
    assert_ne!(inside(&daemon, "hostname -i"), before, "another instance");
    assert_eq!(font(&daemon, "/assets"), "first\n");
    // Settings that the deploy does not mention are kept.
    daemon.hearth_ok(&["deploy", "--tag", "web:2"]);
    assert_eq!((page(&daemon, "web.test").as_str(), font(&daemon, "/assets").as_str()), ("two\n", "first\n"));
    let yaml = daemon.hearth_ok(&["services", "show", "web", "-o", "yaml"]).stdout;
    assert!(
        yaml.contains("assets:1") && !yaml.contains("assets:1@"),
        "the mount is shown as it was given: {yaml}"
    );
    daemon.hearth_ok(&["deploy", "--tag", "web:2", "--image-mount", "assets:1=/assets"]);
    assert_eq!(font(&daemon, "/assets"), "moved\n");
    // A rollback restores all settings of the revision.
    daemon.hearth_ok(&["services", "rollback", "web", "1"]);
    assert_eq!((page(&daemon, "web.test").as_str(), font(&daemon, "/assets").as_str()), ("one\n", "first\n"));
}

fn a_mounted_image_outlives_its_tag_and_cannot_be_deleted() {
    let daemon = with_assets("needed", &[]);
    let digest = daemon.tag_digest("assets", "1").unwrap();
    daemon.hearth_ok(&["images", "rm", "assets:1"]);
    assert_eq!(daemon.tag_digest("assets", "1"), None);
    let delete = || {
        let request = Request::new("DELETE", &format!("/v2/assets/manifests/{digest}"));
        request.bearer(daemon.token()).send(&daemon.listen())
    };
    let refused = delete();
    assert!((400..500).contains(&refused.status) && refused.text().contains("web"), "{refused:?}");
    daemon.hearth_ok(&["services", "restart", "web"]);
    assert_eq!(font(&daemon, "/assets"), "first\n");
    // Nothing needs the image any more.
    daemon.hearth_ok(&["services", "rm", "web"]);
    assert_eq!(delete().status, 202);
}

fn after_the_death_of_the_daemon_a_service_is_replaced_and_reads_its_mounted_images() {
    let daemon = with_assets("widowed", &["--image-mount", "assets:1=/copy:rw"]);
    let written = "echo mine > /copy/share/font && cat /copy/share/font";
    assert_eq!(inside(&daemon, written), "mine\n");
    // Changes of the tag meanwhile have no effect.
    assets(&daemon, "moved\n");
    daemon.kill9();
    daemon.restart();
    assert_eq!(page(&daemon, "web.test"), "one\n", "the old instance serves until another does");
    let reads = || {
        let seen = daemon.hearth(&[
            "services",
            "exec",
            "web",
            "--",
            "cat",
            "/assets/share/font",
            "/copy/share/font",
        ]);
        seen.code == 0 && seen.stdout == "first\nfirst\n"
    };
    wait::until(seconds(40), "another instance has the images, its copy as new", reads);
    assert_eq!(page(&daemon, "web.test"), "one\n");
    assert_eq!(inside(&daemon, written), "mine\n", "the copy can be written");
    let refused = inside(&daemon, "echo x > /assets/share/font 2>&1 || echo refused");
    assert!(refused.contains("refused"), "{refused}");
}

fn a_mount_of_an_unknown_image_is_refused_before_anything_changes() {
    let daemon = with_assets("unknown", &[]);
    let before = daemon.hearth_ok(&["services", "show", "web", "-o", "json"]).json();
    let refused = |tag: &str| {
        let mount = "nothing:1=/fonts";
        let output = daemon.hearth(&["deploy", "--tag", tag, "--image-mount", mount, "--json"]);
        output.expect_code(1).says(&["nothing:1", "/fonts"]);
        assert!(output.to_string().contains("image_not_found"), "{output}");
    };
    refused("web:2");
    let after = daemon.hearth_ok(&["services", "show", "web", "-o", "json"]).json();
    assert_eq!(after["revisions"], before["revisions"]);
    assert_eq!((page(&daemon, "web.test").as_str(), font(&daemon, "/assets").as_str()), ("one\n", "first\n"));
    App::page("new\n").pack(&daemon, "other:1");
    refused("other:1");
    daemon.hearth(&["services", "show", "other"]).expect_code(1);
}

fn an_image_of_another_registry_is_fetched_once_and_then_served_from_the_room() {
    let other = Daemon::start(Options::room("shop"));
    pack(&other, "fonts:1", "from afar\n");
    let registry = other.listen();
    let daemon = with_assets_in(Options::room("buyer").registries(&[&registry]), &[]);
    let mount = format!("{registry}/fonts:1=/fonts");
    let denied = daemon.hearth(&["deploy", "--tag", "web:2", "--image-mount", &mount]);
    assert_ne!(denied.code, 0, "{denied}");
    denied.says(&["/fonts"]);
    let credentials = format!("{registry},any,{}", other.token());
    daemon.hearth_ok(&["deploy", "--tag", "web:2", "--image-mount", &mount, "--cred", &credentials]);
    assert_eq!(font(&daemon, "/fonts"), "from afar\n");
    assert_eq!(other.retire(), Vec::<String>::new());
    daemon.hearth_ok(&["services", "restart", "web"]);
    assert_eq!(font(&daemon, "/fonts"), "from afar\n");
    daemon.hearth_ok(&["deploy", "--tag", "web:1"]);
    assert_eq!(font(&daemon, "/fonts"), "from afar\n");
}
