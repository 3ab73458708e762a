//! Options of builds that need no group of their own: further tags, the form of the layers, and secrets of the room.

use std::process::Command;

use integration_tests::daemon::{BASE, Daemon};
use integration_tests::process;
use integration_tests::runner::Group;
use integration_tests::shared_cases;
use integration_tests::sources::Tree;
use integration_tests::wait::seconds;

pub fn group() -> Group {
    Group::new(
        "build_options",
        shared_cases![
            the_tag_latest_moves_along_when_it_is_asked_for,
            an_optimized_image_has_zstd_layers,
            options_of_the_image_reach_the_build_of_a_deploy,
            a_secret_of_the_room_is_used_and_never_shown,
            a_secret_of_the_room_needs_its_grant,
        ],
    )
}

fn the_tag_latest_moves_along_when_it_is_asked_for(daemon: &Daemon) {
    daemon.put("latest", &Tree::new().dockerfile("FROM scratch\nCOPY a /a\n").file("a", "1"));
    let one = daemon.build_ok("latest/app:1", "latest", &["--latest"]);
    assert_eq!(daemon.tag_digest("latest/app", "latest").as_ref(), Some(&one));
    daemon.put("latest", &Tree::new().file("a", "2"));
    let two = daemon.build_ok("latest/app:2", "latest", &[]);
    assert_ne!(one, two);
    assert_eq!(daemon.tag_digest("latest/app", "latest"), Some(one));
}

fn an_optimized_image_has_zstd_layers(daemon: &Daemon) {
    daemon.put(
        "optimize",
        &Tree::new().dockerfile("FROM scratch\nCOPY a /a\n").file("a", "text ".repeat(5000)),
    );
    for (flag, form) in [("--optimize", "+zstd"), ("--no-optimize", "+gzip")] {
        daemon.build_ok("optimize:1", "optimize", &[flag]);
        let image = daemon.image("optimize:1");
        assert!(image.manifest["layers"][0]["mediaType"].as_str().unwrap().ends_with(form), "{flag}");
    }
    daemon.build("optimize:1", "optimize", &["--optimize", "--compression", "gzip"]).expect_code(2);
}

fn options_of_the_image_reach_the_build_of_a_deploy(daemon: &Daemon) {
    let base = daemon.base_image();
    let dockerfile = format!(
        "FROM {base}\nCOPY index.html /site/index.html\nEXPOSE 8000\n\
         CMD [\"httpd\", \"-f\", \"-p\", \"8000\", \"-h\", \"/site\"]\n"
    );
    let local = tempfile::tempdir_in(daemon.directory()).unwrap();
    Tree::new().dockerfile(&dockerfile).file("index.html", "given\n").write(&local.path().join("app"));
    let pack = local.path().join("app").display().to_string();
    let deploy = ["deploy", "--tag", "handed/app:1", "--pack", &pack, "--annotation", "note=1", "--latest"];
    daemon.hearth_ok(&[&deploy[..], &["--optimize"]].concat());
    let image = daemon.image("handed/app:latest");
    assert_eq!(image.manifest["annotations"]["note"], "1");
    let last = image.manifest["layers"].as_array().unwrap().last().unwrap()["mediaType"].clone();
    assert!(last.as_str().unwrap().ends_with("+zstd"), "{last}");
    daemon.hearth_ok(&[&deploy[..], &["--no-optimize"]].concat());
    daemon.hearth_ok(&["services", "rm", "handed-app"]);
}

fn a_secret_of_the_room_is_used_and_never_shown(daemon: &Daemon) {
    daemon.base_image();
    let canary = "canary-of-the-room-77aa12";
    let mut command = daemon.client();
    process::run_with_input(command.args(["secrets", "set", "npm-token"]), canary.as_bytes(), seconds(30))
        .expect_code(0);
    let dockerfile = format!(
        "FROM {BASE}\nRUN --mount=type=secret,id=npm sha256sum /run/secrets/npm | cut -c 1-64 > /sum; \
         cat /run/secrets/npm; echo; echo shown\n"
    );
    daemon.put("roomsecret", &Tree::new().dockerfile(&dockerfile));
    let secret = ["--secret", "id=npm,room=npm-token", "--progress", "plain"];
    let output = daemon.build("roomsecret:1", "roomsecret", &secret);
    output.expect_code(0).says(&["shown", "***"]);
    assert!(!output.stderr.contains(canary), "{output}");
    let sum = integration_tests::sources::sha256(canary.as_bytes());
    assert_eq!(daemon.image("roomsecret:1").file("sum"), format!("{}\n", &sum["sha256:".len()..]));
    let mut grep = Command::new("grep");
    grep.args(["-rlaF", "--", canary]).arg(daemon.state());
    assert_eq!(process::run(&mut grep, seconds(60)).stdout, "", "the value is in no file in plain");
    let missing = ["--secret", "id=npm,room=not-there"];
    daemon.build("roomsecret:2", "roomsecret", &missing).expect_code(1).says(&["no secret `not-there`"]);
}

fn a_secret_of_the_room_needs_its_grant(daemon: &Daemon) {
    daemon.put("granted", &Tree::new().dockerfile("FROM scratch\nCOPY a /a\n").file("a", "1"));
    let scope = r#"{"containers":{"use_containers":true,"logs":true,"registry":{"list":["*"],"pull":["*"],"run":[],"write":["*"]}},"storage":{"paths":[{"path":"/"}]}}"#;
    let token = daemon.mint(&["--name", "builder", "--scope", scope]);
    let build = |more: &[&str]| {
        let mut command = daemon.client();
        command.env("HEARTH_ADDR", format!("http://{}", daemon.listen())).env("HEARTH_TOKEN", &token);
        command.args(daemon.build_arguments("granted:1", "granted:/context:ro", more));
        process::run(&mut command, seconds(120))
    };
    build(&[]).expect_code(0);
    build(&["--secret", "id=a,room=npm-token"]).expect_code(3).says(&["secrets"]);
}
