//! Deploys that cannot succeed: each is refused before anything changes, and the error says what is wrong and what to
//! do.

use std::fs;
use std::os::unix::fs::symlink;

use integration_tests::daemon::Daemon;
use integration_tests::runner::Group;
use integration_tests::service::{App, get, page};
use integration_tests::shared_cases;
use integration_tests::sources::Tree;

pub fn group() -> Group {
    Group::new(
        "service_errors",
        shared_cases![
            what_cannot_be_deployed_is_refused_and_named,
            a_domain_belongs_to_one_service,
            two_repositories_of_one_name_are_distinguished,
            mounts_that_are_not_there_or_lead_out_are_refused,
            a_denial_names_the_missing_grant,
            an_image_of_another_platform_is_named,
            a_restart_that_cannot_succeed_ends_with_its_reason,
        ],
    )
}

fn what_cannot_be_deployed_is_refused_and_named(daemon: &Daemon) {
    App::page("x\n").pack(daemon, "wrong:1");
    App::page("x\n").with(&["--expose", "9000"]).pack(daemon, "wrong-two:1");
    let file = daemon.directory().join("wrong.env");
    fs::write(&file, "GOOD=1\n=no name\n").unwrap();
    let file = file.to_str().unwrap();
    let long = "n".repeat(64);
    for (arguments, code, says) in [
        (vec!["--tag", "wrong:none"], 1, "wrong:none"),
        (vec!["--tag", "wrong:1", "--port", "8078"], 2, "8078"),
        (vec!["--tag", "wrong:1", "--port", "0"], 2, "0"),
        (vec!["--tag", "wrong-two:1", "--domain", "wrong.test"], 2, "port"),
        (vec!["--tag", "wrong:1", "--domain", "not a domain"], 2, "not a domain"),
        (vec!["--tag", "wrong:1", "--env-secret", "A=no-such-secret"], 1, "no-such-secret"),
        (vec!["--tag", "wrong:1", "--env-token", "everything"], 2, "everything"),
        (vec!["--tag", "wrong:1", "--env-file", file], 2, "wrong.env:2"),
        (vec!["--tag", "wrong:1", "--env", "=x"], 2, "=x"),
        (vec!["--tag", "wrong:1", "--name", &long], 2, "63"),
        (vec!["--tag", "wrong:1", "--memory", "much"], 2, "much"),
        (vec!["--tag", "wrong:1", "--room-mount", "a:relative"], 2, "relative"),
        (vec!["--tag", "wrong:1", "--empty-dir-mount", "/a", "--room-mount", ".:/a"], 2, "/a"),
    ] {
        let output = daemon.hearth(&[&["deploy"], arguments.as_slice()].concat());
        assert_eq!(output.code, code, "{arguments:?}: {output}");
        assert!(output.stderr.contains(says), "{arguments:?} says `{says}`: {output}");
        daemon.hearth(&["services", "show", "wrong"]).expect_code(1);
    }
    assert_eq!(get(daemon, "wrong.test", "/").status, 404);
}

fn a_domain_belongs_to_one_service(daemon: &Daemon) {
    App::page("holder\n").pack(daemon, "holder:1");
    App::page("thief\n").pack(daemon, "thief:1");
    daemon.hearth_ok(&["deploy", "--tag", "holder:1", "--domain", "held.test", "--public"]);
    let output = daemon.hearth(&["deploy", "--tag", "thief:1", "--domain", "held.test"]);
    output.expect_code(1).says(&["held.test", "holder"]);
    daemon.hearth(&["services", "show", "thief"]).expect_code(1);
    assert_eq!(page(daemon, "held.test"), "holder\n");
}

fn two_repositories_of_one_name_are_distinguished(daemon: &Daemon) {
    App::page("a\n").pack(daemon, "same/name:1");
    App::page("b\n").pack(daemon, "same-name:1");
    daemon.hearth_ok(&["deploy", "--tag", "same/name:1"]);
    daemon.hearth(&["deploy", "--tag", "same-name:1"]).expect_code(1).says(&["--name"]);
    daemon.hearth_ok(&["deploy", "--tag", "same-name:1", "--name", "other-name"]);
}

fn mounts_that_are_not_there_or_lead_out_are_refused(daemon: &Daemon) {
    App::page("m\n").pack(daemon, "mounting:1");
    let outside = daemon.directory().join("outside");
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("canary"), "canary-91").unwrap();
    symlink(&outside, daemon.room_files().join("way-out")).unwrap();
    for (mount, says) in
        [("missing:/m", "`,create`"), ("way-out:/m,create", "way-out"), ("../outside:/m", "outside")]
    {
        let output = daemon.hearth(&["deploy", "--tag", "mounting:1", "--room-mount", mount]);
        assert_ne!(output.code, 0, "{mount}: {output}");
        assert!(
            output.stderr.contains(says) && !output.to_string().contains("canary-91"),
            "{mount}: {output}"
        );
    }
    let services = daemon.hearth_ok(&["services", "list"]).stdout;
    assert!(!services.contains("mounting") && !daemon.room_files().join("missing").exists(), "{services}");
    let asked = ["deploy", "--tag", "mounting:1", "--room-mount", "missing:/m,create"];
    daemon.hearth_ok(&[&asked[..], &["--dry-run"]].concat());
    assert!(!daemon.room_files().join("missing").exists(), "a dry run changes nothing");
    daemon.hearth_ok(&asked);
    assert!(daemon.room_files().join("missing").is_dir());
    let manifest = daemon.hearth_ok(&["services", "show", "mounting", "-o", "yaml"]).stdout;
    assert!(manifest.contains("create: true"), "{manifest}");
    let output = daemon.hearth(&["deploy", "--tag", "mounting:1", "--image-mount", "none:1=/m"]);
    assert_ne!(output.code, 0, "{output}");
    output.says(&["none:1"]);
    assert_eq!(fs::read_to_string(outside.join("canary")).unwrap(), "canary-91");
}

fn a_denial_names_the_missing_grant(daemon: &Daemon) {
    App::page("granted\n").pack(daemon, "granted:1");
    let with = |scope: &str, arguments: &[&str]| {
        let token = daemon.mint(&["--name", "guest", "--scope", scope]);
        let mut client = daemon.client();
        client
            .env("HEARTH_ADDR", format!("http://{}", daemon.listen()))
            .env("HEARTH_TOKEN", token)
            .args(arguments);
        integration_tests::process::run(&mut client, integration_tests::wait::seconds(60))
    };
    let nothing = r#"{"storage": {"paths": []}}"#;
    with(nothing, &["deploy", "--tag", "granted:1"]).expect_code(3).says(&["services"]);
    with(nothing, &["services", "list"]).expect_code(3);
    with(nothing, &["secrets", "ls"]).expect_code(3).says(&["secrets"]);
    let other = r#"{"services": {}, "containers": {"registry": {"run": ["other"]}}}"#;
    with(other, &["deploy", "--tag", "granted:1"]).expect_code(3).says(&["granted"]);
    let may = r#"{"services": {}, "containers": {"registry": {"run": ["granted"]}}}"#;
    with(may, &["deploy", "--tag", "granted:1", "--env-token", "full"]).expect_code(3);
    with(may, &["deploy", "--tag", "granted:1", "--env-secret", "A=b"]).expect_code(3).says(&["secrets"]);
    with(may, &["deploy", "--tag", "granted:1", "--room-mount", ".:/data"]).expect_code(3).says(&["storage"]);
    with(may, &["deploy", "--tag", "granted:1"]).expect_code(0);
}

fn an_image_of_another_platform_is_named(daemon: &Daemon) {
    let other = if cfg!(target_arch = "aarch64") { "amd64" } else { "arm64" };
    let directory = tempfile::tempdir_in(daemon.directory()).unwrap();
    fs::write(directory.path().join("a"), "1").unwrap();
    let path = directory.path().to_str().unwrap();
    daemon.hearth_ok(&["pack", path, "--tag", "foreign:1", "--arch", other, "--cmd", "[\"/a\"]"]);
    let output = daemon.hearth(&["deploy", "--tag", "foreign:1"]);
    output.expect_code(1).says(&[other]);
    // A build on it fails as well, instead of giving it the platform that was asked for.
    let base = "FROM room.meshagent.com/foreign:1\nCOPY a /b\n";
    daemon.put("foreign-base", &Tree::new().dockerfile(base).file("a", ""));
    let copied = "FROM scratch\nCOPY --from=room.meshagent.com/foreign:1 /a /a\n";
    daemon.put("foreign-copy", &Tree::new().dockerfile(copied));
    let own = if other == "amd64" { "arm64" } else { "amd64" };
    for source in ["foreign-base", "foreign-copy"] {
        let build = |arch: &str| daemon.build("on-foreign:1", source, &["--arch", arch]);
        let refused = build(own);
        refused.expect_code(1).says(&[&format!("not for linux/{own}; it has: linux/{other}")]);
        assert_eq!(daemon.tag_digest("on-foreign", "1"), None);
        build(other).expect_code(0);
        daemon.hearth_ok(&["images", "rm", "on-foreign:1"]);
    }
    let unknown: [&[&str]; 3] = [
        &["build", "--tag", "x:1", "--room-mount", "foreign-base:/context", "--arch", "sparc"],
        &["pack", path, "--tag", "x:1", "--arch", "sparc"],
        &["images", "pull", "docker.io/library/busybox", "--arch", "sparc"],
    ];
    for arguments in unknown {
        daemon.hearth(arguments).expect_code(2).says(&["sparc"]);
    }
}

fn a_restart_that_cannot_succeed_ends_with_its_reason(daemon: &Daemon) {
    let script = "if [ -e /data/sick ]; then echo I am sick; exit 6; fi; \
                  if [ -e /data/deaf ]; then exec sleep 600; fi; exec httpd -f -p 8000 -h /site";
    App::script(script).with(&["--expose", "8000"]).pack(daemon, "ailing:1");
    daemon.put("ailing", &Tree::new().file("well", ""));
    daemon.hearth_ok(&["deploy", "--tag", "ailing:1", "--room-mount", "ailing:/data"]);
    daemon.put("ailing", &Tree::new().file("sick", ""));
    let output = daemon.hearth(&["services", "restart", "ailing", "--timeout", "50s"]);
    output.expect_code(1).says(&["exit code 6", "I am sick"]);
    // The app runs, but never listens: nothing fails, so the limit of the wait ends it.
    daemon.put("ailing", &Tree::new().file("deaf", ""));
    fs::remove_file(daemon.room_files().join("ailing/sick")).unwrap();
    let output = daemon.hearth(&["services", "restart", "ailing", "--timeout", "4s", "--json"]);
    output.expect_code(1);
    let error = &output.json()["error"];
    assert_eq!((&error["code"], &error["service"]), (&"wait_timed_out".into(), &"ailing".into()), "{output}");
    let message = error["message"].as_str().unwrap();
    assert!(message.starts_with("waited 4.0s for revision 1 of ailing to be live"), "{message}");
    assert!(message.contains("refused"), "{message}");
    daemon.hearth_ok(&["services", "rm", "ailing", "--now", "--timeout", "80s"]);
}
