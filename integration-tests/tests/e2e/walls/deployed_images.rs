//! Images that a participant's deploy fetched with a credential of their own: their service runs them, and nobody else
//! can read them.

use std::process::Command;

use integration_tests::daemon::{Daemon, Options};
use integration_tests::http::Request;
use integration_tests::lone_cases;
use integration_tests::process::{self, Output};
use integration_tests::runner::Group;
use integration_tests::service::{App, page};
use integration_tests::sources::Tree;
use integration_tests::wait::seconds;

pub fn group() -> Group {
    Group::new("walls_deployed_images", lone_cases![what_a_deploy_fetched_is_read_by_nobody_else])
        .in_sequence()
}

fn by(daemon: &Daemon, token: &str, arguments: &[&str]) -> Output {
    let mut command: Command = daemon.client();
    command.env("HEARTH_ADDR", format!("http://{}", daemon.listen())).env("HEARTH_TOKEN", token);
    process::run(command.args(arguments), seconds(120))
}

fn what_a_deploy_fetched_is_read_by_nobody_else() {
    // A real registry that requires a password.
    let other = Daemon::start(Options::room("wd-o"));
    let room = Daemon::start(Options::room("wd").registries(&[&other.listen()]));
    App::page("one\n").pack(&other, "team/web:1");
    App::page("two\n").pack(&other, "team/web:2");
    App::page("files\n").pack(&other, "team/files:1");
    let (ann, bob) = (room.mint(&["--name", "ann"]), room.mint(&["--name", "bob"]));
    let there = |name: &str| format!("{}/{name}", other.listen());
    let cred = format!("{},any,{}", other.listen(), other.token());
    let mount = format!("{}=/files", there("team/files:1"));
    let deploy = |token: &str, tag: &str, more: &[&str]| {
        let image = there(tag);
        let arguments = ["deploy", "--tag", &image, "--domain", "web.test", "--public"];
        by(&room, token, &[&arguments, more].concat())
    };
    deploy(&ann, "team/web:1", &["--cred", &cred, "--image-mount", &mount]).expect_code(0);
    assert_eq!(page(&room, "web.test"), "one\n");
    let shown = room.hearth_ok(&["services", "show", "team-web", "--json"]).json();
    assert!(!shown.to_string().contains("cached.hearth"), "{shown}");
    assert!(shown.to_string().contains(&there("team/web:1")), "the name that was typed: {shown}");

    // The images are not among those that bob may read in the room, by tag or by digest.
    let catalog = Request::new("GET", "/v2/_catalog").bearer(&bob).send(&room.listen()).text();
    assert!(!catalog.contains("team"), "{catalog}");
    let host = other.listen().replace(':', "---");
    let cached = by(&room, &bob, &["images", "list", "--cached", "--json"]).json();
    assert_eq!(cached.as_array().map(Vec::len), Some(0), "{cached}");
    let kept = room.hearth_ok(&["images", "list", "--cached", "--json"]).json();
    let kept = kept.as_array().unwrap().iter().map(|image| image["repository"].as_str().unwrap().to_owned());
    let kept: Vec<String> = kept.collect();
    assert_eq!(kept.len(), 2, "{kept:?}");
    for name in ["team/web", "team/files"] {
        let digest = other.tag_digest(name, "1").unwrap();
        let places = kept.iter().cloned().chain([format!("{host}/{name}")]);
        for repository in places {
            for path in [
                format!("/v2/{repository}/manifests/{digest}"),
                format!("/v2/{repository}/manifests/1"),
                format!("/v2/{repository}/blobs/{digest}"),
            ] {
                let answer = Request::new("GET", &path).bearer(&bob).send(&room.listen());
                assert!(matches!(answer.status, 403 | 404), "{path}: {}", answer.status);
            }
            let image = format!("room.meshagent.com/{repository}@{digest}");
            let from = format!("FROM {image}\n");
            room.put("stolen", &Tree::new().dockerfile(&from));
            for arguments in [
                &["images", "inspect", &image][..],
                &["images", "tag", &image, "stolen:1"],
                &["deploy", "--tag", &image, "--name", "stolen", "--port", "8000"],
                &["build", "--tag", "stolen:1", "--mount-image", &format!("{image}=/context")],
                &["build", "--tag", "stolen:1", "--mount-room-path", "stolen:/context"],
            ] {
                let output = by(&room, &bob, arguments);
                assert_ne!(output.code, 0, "{arguments:?}: {output}");
            }
        }
        // By the registry's own name, bob's deploys, mounts and builds authenticate with bob's own credentials.
        let image = there(&format!("{name}:1"));
        room.put("from", &Tree::new().dockerfile(&format!("FROM {image}\n")));
        for arguments in [
            &["deploy", "--tag", &image, "--name", "stolen", "--port", "8000"][..],
            &["deploy", "--tag", &image, "--name", "team-web"],
            &["build", "--tag", "stolen:1", "--mount-image", &format!("{image}=/context")],
            &["build", "--tag", "stolen:1", "--mount-room-path", "from:/context"],
        ] {
            let output = by(&room, &bob, arguments);
            assert_ne!(output.code, 0, "{arguments:?}: {output}");
            output.says(&["401"]);
        }
    }
    room.hearth(&["services", "show", "stolen"]).expect_code(1);

    // The owner can still use the image, and the service continues.
    deploy(&ann, "team/web:2", &["--cred", &cred]).expect_code(0);
    assert_eq!(page(&room, "web.test"), "two\n");
    by(&room, &ann, &["services", "rollback", "team-web"]).expect_code(0);
    assert_eq!(page(&room, "web.test"), "one\n");
    room.terminate();
    room.restart();
    by(&room, &ann, &["services", "restart", "team-web"]).expect_code(0);
    assert_eq!(page(&room, "web.test"), "one\n");
    let files = by(&room, &ann, &["services", "exec", "team-web", "--", "cat", "/files/site/index.html"]);
    assert_eq!(files.stdout, "files\n", "{files}");
    // A credential of bob's own opens the same image for bob, and the service has the same name.
    deploy(&bob, "team/web:2", &["--cred", &cred]).expect_code(0);
    assert_eq!(page(&room, "web.test"), "two\n");
    room.hearth_ok(&["services", "rm", "--now", "team-web"]);
}
