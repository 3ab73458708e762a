//! Options of commands that share their meaning with another command, and options of output and waiting: each has the
//! effect that its help names.

use std::fs;
use std::process::Command;

use integration_tests::binaries::binaries;
use integration_tests::daemon::{Daemon, Options};
use integration_tests::runner::Group;
use integration_tests::scripted::Scripted;
use integration_tests::service::{App, get};
use integration_tests::small_image::SmallRegistry;
use integration_tests::sources::Tree;
use integration_tests::wait::{self, seconds};
use integration_tests::{lone_cases, process, shared_cases};

pub fn group() -> Group {
    Group::new(
        "options",
        shared_cases![
            the_build_options_of_deploy_reach_its_build,
            a_command_that_changes_a_service_waits_or_returns_at_once,
            a_manifest_is_applied_in_every_way,
            a_log_is_narrowed_to_a_step_an_event_or_a_revision,
            a_context_of_every_source_is_compared_with_every_other,
            the_client_tells_what_it_does,
            settings_of_a_service_are_given_and_taken_away,
            a_deploy_chooses_its_dockerfile_and_how_it_builds,
            a_context_of_every_source_is_mounted,
            project_storage_is_listed_read_and_removed,
            a_base_image_comes_from_a_mirror_that_is_named,
        ]
        .into_iter()
        .chain(lone_cases![the_daemon_takes_its_settings_from_flags])
        .collect(),
    )
}

fn the_build_options_of_deploy_reach_its_build(daemon: &Daemon) {
    let base = daemon.base_image();
    let dockerfile = format!(
        "FROM {base} AS app\nRUN --mount=type=secret,id=key mkdir /site && wc -c < /run/secrets/key > /site/index.html\n\
         RUN ip -o link show | grep -cv ' lo:' > /site/links || true\nEXPOSE 8000\nWORKDIR /site\n\
         CMD [\"httpd\", \"-f\", \"-p\", \"8000\", \"-h\", \"/site\"]\nFROM app AS other\nRUN exit 9\n"
    );
    let local = tempfile::tempdir_in(daemon.directory()).unwrap();
    Tree::new().dockerfile(&dockerfile).write(&local.path().join("app"));
    fs::write(local.path().join("key"), "12345").unwrap();
    let pack = local.path().join("app").display().to_string();
    let secret = format!("id=key,src={}", local.path().join("key").display());
    let service = ["deploy", "--tag", "given:1", "--pack", &pack, "--workdir", "/tmp", "--progress", "plain"];
    let build = ["--target", "app", "--platform", "linux/amd64", "--label", "team=one", "--pull"];
    let more = [
        "--network",
        "none",
        "--secret",
        &secret,
        "--build-timeout",
        "1m",
        "--pack-room-path",
        "packs/given.tar",
    ];
    let attached = ["--provenance", "true", "--sbom"];
    let caches =
        ["--cache-from", "type=registry,ref=given:none", "--cache-to", "type=registry,ref=given:cache"];
    let output = daemon.hearth_ok(&[&service[..], &build, &more, &attached, &caches].concat());
    output.says(&["#1 ", "exporting to image", "given:none` is not used", "revision 1 is live"]);
    assert!(daemon.tag_digest("given", "cache").is_some(), "the cache is named with the image");
    let packages = daemon.hearth_ok(&["images", "sbom", "given:1"]).json();
    assert_eq!(packages["spdxVersion"], "SPDX-2.3", "{packages}");
    assert!(!output.stderr.contains('\u{1b}'), "plain progress has no control sequences\n{output}");
    let inside =
        |command: &str| daemon.hearth_ok(&["services", "exec", "given", "--", "sh", "-c", command]).stdout;
    assert_eq!(inside("pwd; cat /site/index.html /site/links"), "/tmp\n5\n0\n");
    let image = daemon.hearth_ok(&["images", "inspect", "given:1", "--json"]).json();
    assert_eq!(image["config"]["config"]["Labels"]["team"], "one", "{image}");
    assert!(daemon.room_files().join("packs/given.tar").is_file(), "the archive is kept");
}

fn a_command_that_changes_a_service_waits_or_returns_at_once(daemon: &Daemon) {
    App::page("slow\n").pack(daemon, "waits:1");
    let deploy = ["deploy", "--tag", "waits:1", "--domain", "waits.test", "--public"];
    let output = daemon.hearth_ok(&[&deploy[..], &["--wait", "--env", "N=1"]].concat());
    output.says(&["revision 1 is live"]);
    daemon.hearth_ok(&[&deploy[..], &["--env", "N=2"]].concat());
    let serves = |revision: u64| {
        wait::until(seconds(60), &format!("revision {revision} serves"), || {
            let shown = daemon.hearth_ok(&["services", "show", "waits", "--json"]).json();
            shown["status"] == "live" && shown["live_revision"] == revision
        });
    };
    let instance = || {
        let shown = daemon.hearth_ok(&["services", "show", "waits", "--json"]).json();
        shown["instances"][0]["instance"].as_str().map(str::to_owned)
    };
    for (verb, revision) in [("rollback", 3), ("restart", 3)] {
        let before = instance();
        let output = daemon.hearth_ok(&["services", verb, "waits", "--no-wait"]);
        assert!(!output.stderr.contains("is live after"), "{verb}\n{output}");
        wait::until(seconds(60), &format!("{verb} replaces the instance"), || instance() != before);
        serves(revision);
    }
    for (verb, revision) in [("restart", 3), ("rollback", 4)] {
        let output = daemon.hearth_ok(&[
            "services",
            verb,
            "waits",
            "--wait",
            "--progress",
            "json",
            "--timeout",
            "90s",
        ]);
        let lines: Vec<serde_json::Value> = output
            .stderr
            .lines()
            .map(|line| serde_json::from_str(line).expect("one object a line"))
            .collect();
        assert!(!lines.is_empty(), "{verb}\n{output}");
        serves(revision);
    }
}

fn a_manifest_is_applied_in_every_way(daemon: &Daemon) {
    App::page("manifest\n").pack(daemon, "applied:1");
    let file = daemon.directory().join("applied.yaml");
    let write = |text: &str| {
        let manifest = format!(
            "version: v1\nkind: Service\nmetadata:\n  name: applied\ncontainer:\n  image: applied:1\n  environment:\n  - name: WORD\n    \
             value: {text}\nports:\n- num: 8000\n  type: http\n  published: true\n"
        );
        fs::write(&file, manifest).unwrap();
    };
    let path = file.to_str().unwrap();
    let word = || daemon.hearth(&["services", "exec", "applied", "--", "sh", "-c", "echo $WORD"]).stdout;
    write("one");
    daemon.hearth_ok(&["services", "apply", "-f", path, "--dry-run"]);
    daemon.hearth(&["services", "show", "applied"]).expect_code(1);
    daemon
        .hearth_ok(&["services", "apply", "-f", path, "--wait", "--timeout", "90s", "--progress", "plain"])
        .says(&["is live"]);
    assert_eq!(word(), "one\n");
    write("two");
    daemon.hearth_ok(&["services", "apply", "--file", path, "--no-wait"]);
    wait::until(seconds(60), "the second revision serves", || word() == "two\n");
}

fn a_log_is_narrowed_to_a_step_an_event_or_a_revision(daemon: &Daemon) {
    let base = daemon.base_image();
    let dockerfile = format!("FROM {base}\nRUN echo first line; echo second line\nRUN echo third line\n");
    daemon.put("narrow", &Tree::new().dockerfile(&dockerfile));
    let id = daemon.hearth_ok(&["build", "--tag", "narrow:1", "--mount-room-path", "narrow", "--detach"]);
    let id = id.line();
    daemon.hearth_ok(&["builds", "logs", id, "--follow"]);
    let all = daemon.hearth_ok(&["builds", "logs", id, "--from", "1"]).stdout;
    let step = all.lines().find(|line| line.ends_with("| third line")).expect("the third line");
    let number = step.split([' ', '#']).nth(1).expect("a number of a step");
    let narrowed = daemon.hearth_ok(&["builds", "logs", id, "--step", number]).stdout;
    assert!(narrowed.contains("third line") && !narrowed.contains("first line"), "{narrowed}");
    let events = daemon.hearth_ok(&["builds", "logs", id, "--from", "1", "--json"]).json();
    let last =
        events.as_array().and_then(|all| all.last()?["sequence"].as_u64()).expect("events with numbers");
    let rest = daemon.hearth_ok(&["builds", "logs", id, "--from", &last.to_string(), "--json"]).json();
    assert_eq!(rest.as_array().map(Vec::len), Some(1), "{rest}");

    let script = "echo word $WORD; trap 'exit 0' TERM; httpd -f -p 8000 -h /site & wait";
    App::script(script).with(&["--expose", "8000"]).pack(daemon, "narrowed:1");
    for word in ["one", "two"] {
        let variable = format!("WORD={word}");
        daemon.hearth_ok(&["deploy", "--tag", "narrowed:1", "--env", &variable]);
    }
    let output =
        daemon.hearth_ok(&["services", "logs", "narrowed", "--revision", "2", "--timestamps"]).stdout;
    assert!(output.contains("word two") && !output.contains("word one"), "{output}");
    let shown = daemon.hearth_ok(&["services", "show", "narrowed", "--json"]).json();
    let instance = shown["instances"][0]["instance"].as_str().expect("an instance");
    let prefixed =
        daemon.hearth_ok(&["services", "logs", "narrowed", "--instance", instance, "--prefix"]).stdout;
    assert!(prefixed.lines().all(|line| line.contains(instance)) && prefixed.contains("word "), "{prefixed}");
    let time = output.lines().find(|line| line.contains("word two")).unwrap_or_default();
    assert!(time.starts_with("20") && time.contains(':'), "each line begins with its time: {time}");
}

fn a_context_of_every_source_is_compared_with_every_other(daemon: &Daemon) {
    let one = Tree::new().file("sub/same", "1").file("sub/changed", "1");
    let two = Tree::new().file("sub/same", "1").file("sub/changed", "2");
    one.write(&daemon.project_files().join("compared/one"));
    two.write(&daemon.project_files().join("compared/two"));
    let local = tempfile::tempdir_in(daemon.directory()).unwrap();
    two.write(&local.path().join("two"));
    let pack = local.path().join("two").display().to_string();
    daemon.hearth_ok(&["pack", &pack, "--tag", "compared:2"]);
    let first = ["context", "diff", "--mount-project-path", "compared/one"];
    for second in [["--to-project-path", "compared/two"], ["--to-image", "compared:2"]] {
        assert_eq!(daemon.hearth_ok(&[&first[..], &second].concat()).stdout, "M sub/changed\n", "{second:?}");
    }
    let roots = [
        "--context-path",
        "/context/sub",
        "--to-project-path",
        "compared/two",
        "--to-context-path",
        "/context/sub",
    ];
    assert_eq!(daemon.hearth_ok(&[&first[..], &roots].concat()).stdout, "M changed\n");
    let sent = ["context", "diff", "--pack", &pack, "--to-project-path", "compared/one"];
    assert_eq!(daemon.hearth_ok(&sent).stdout, "M sub/changed\n");
    for source in
        [["--pack", &pack], ["--mount-project-path", "compared/two"], ["--mount-image", "compared:2"]]
    {
        let listed = daemon.hearth_ok(&[&["context", "ls", "sub", "--json"], &source[..]].concat()).json();
        let paths: Vec<&str> =
            listed.as_array().unwrap().iter().filter_map(|entry| entry["path"].as_str()).collect();
        assert_eq!(paths, ["changed", "same"], "{source:?}");
        let read = daemon.hearth_ok(&[&["context", "cat", "sub/changed"], &source[..]].concat());
        assert_eq!(read.stdout, "2", "{source:?}");
    }
}

fn the_client_tells_what_it_does(daemon: &Daemon) {
    let output = daemon.hearth_ok(&["images", "list", "--verbose"]);
    output.says(&["connecting"]);
    let quiet = daemon.hearth_ok(&["images", "list"]);
    assert!(!quiet.stderr.contains("connecting"), "{quiet}");
}

fn settings_of_a_service_are_given_and_taken_away(daemon: &Daemon) {
    App::page("settings\n").pack(daemon, "settings:1");
    fs::create_dir_all(daemon.room_files().join("kept")).unwrap();
    let deploy = ["deploy", "--tag", "settings:1"];
    let given = ["--workdir", "/tmp", "--memory", "64M", "--cpus", "0.5", "--liveness", "/index.html"];
    let command = "sh -c \"exec httpd -f -p 8000 -h /site\"";
    let more =
        ["--command", command, "--port", "8000", "--room-mount", "kept:/kept", "--env", "A=1", "--private"];
    daemon.hearth_ok(&[&deploy[..], &given, &more].concat());
    let manifest = || daemon.hearth_ok(&["services", "show", "settings", "-o", "yaml"]).stdout;
    let words = ["working_dir: /tmp", "memory:", "cpus:", "/index.html", "exec httpd", "/kept", "name: A"];
    for word in words {
        assert!(manifest().contains(word), "{word}: {}", manifest());
    }
    let taken = ["--no-workdir", "--no-memory", "--no-cpus", "--no-liveness", "--no-command", "--no-ports"];
    daemon.hearth_ok(&[&deploy[..], &taken, &["--no-mounts", "room", "--unset-env", "A"]].concat());
    for word in words {
        assert!(!manifest().contains(word), "{word}: {}", manifest());
    }
}

fn a_deploy_chooses_its_dockerfile_and_how_it_builds(daemon: &Daemon) {
    let base = daemon.base_image();
    let dockerfile = format!(
        "FROM {base}\nCOPY page /site/index.html\nEXPOSE 8000\nCMD [\"httpd\", \"-f\", \"-p\", \"8000\", \"-h\", \"/site\"]\n"
    );
    let local = tempfile::tempdir_in(daemon.directory()).unwrap();
    Tree::new()
        .file("app/web.Dockerfile", dockerfile)
        .file("app/page", "chosen\n")
        .write(&local.path().join("work"));
    let pack = local.path().join("work").display().to_string();
    let service = ["deploy", "--tag", "chosen:1", "--pack", &pack, "--domain", "chosen.test", "--private"];
    let build = [
        "--context-path",
        "/context/app",
        "-f",
        "web.Dockerfile",
        "--arch",
        "amd64",
        "--no-cache",
        "--compression",
        "zstd",
    ];
    daemon.hearth_ok(&[&service[..], &build].concat());
    assert_eq!(get(daemon, "chosen.test", "/").status, 401);
    let image = daemon.image("chosen:1");
    let layers = image.manifest["layers"].as_array().expect("layers").clone();
    let forms: Vec<&str> =
        layers.iter().filter_map(|layer| layer["mediaType"].as_str()?.rsplit('+').next()).collect();
    assert_eq!(forms.last(), Some(&"zstd"), "{forms:?}");
    let up = [
        "up",
        &local.path().join("work/app").display().to_string(),
        "-f",
        "web.Dockerfile",
        "--tag",
        "raised:1",
    ];
    daemon.hearth_ok(&up).says(&["live"]);
    assert!(daemon.tag_digest("raised", "1").is_some());
}

fn a_context_of_every_source_is_mounted(daemon: &Daemon) {
    let tree = Tree::new().file("sub/f", "content");
    tree.write(&daemon.project_files().join("mounted"));
    let local = tempfile::tempdir_in(daemon.directory()).unwrap();
    tree.write(&local.path().join("app"));
    let pack = local.path().join("app").display().to_string();
    daemon.hearth_ok(&["pack", &pack, "--tag", "mounted:1"]);
    let same = ["context", "diff", "--mount-image", "mounted:1", "--to-project-path", "mounted"];
    assert_eq!(daemon.hearth_ok(&same).stdout, "");
    let point = daemon.directory().join("points/options");
    fs::create_dir_all(&point).unwrap();
    let at = point.display().to_string();
    let root = ["--context-path", "/context/sub"];
    for source in [["--pack", &pack], ["--mount-project-path", "mounted"], ["--mount-image", "mounted:1"]] {
        daemon.hearth_ok(&[&["context", "mount", &at], &source[..], &root].concat());
        assert_eq!(fs::read_to_string(point.join("f")).unwrap(), "content", "{source:?}");
        // An open file keeps the mount in use, so only a lazy unmount succeeds.
        let open = fs::File::open(point.join("f")).unwrap();
        daemon.hearth_ok(&["context", "unmount", &at, "--lazy"]);
        assert!(!point.join("f").exists(), "{source:?}");
        drop(open);
    }
}

fn project_storage_is_listed_read_and_removed(daemon: &Daemon) {
    Tree::new().file("deep/f", "of the project").write(&daemon.project_files().join("listed"));
    let listed = daemon.hearth_ok(&["storage", "ls", "--project", "--recursive", "listed"]).stdout;
    assert!(listed.contains("listed/deep/f"), "{listed}");
    let copy = daemon.directory().join("listed-copy");
    daemon.hearth_ok(&["storage", "get", "--project", "listed/deep/f", copy.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(copy).unwrap(), "of the project");
    daemon.hearth_ok(&["storage", "rm", "--project", "--recursive", "listed"]);
    assert!(!daemon.project_files().join("listed").exists());
}

fn a_base_image_comes_from_a_mirror_that_is_named(daemon: &Daemon) {
    let mut registry = SmallRegistry::default();
    let image = registry.image("amd64", ("etc/name", "mirrored\n"), &serde_json::json!({}));
    registry.tag("library/tiny:1", &image);
    let hub = Scripted::start(move |asked| registry.answer(asked));
    let mirror = format!("docker.io=http://{}", hub.host());
    let local = tempfile::tempdir_in(daemon.directory()).unwrap();
    Tree::new().file("f", "f").write(&local.path().join("app"));
    let [app, out] = ["app", "out.tar"].map(|name| local.path().join(name).display().to_string());
    daemon.hearth_ok(&["pack", &app, "-o", &out, "--base", "tiny:1", "--registry-mirror", &mirror]);
    assert_eq!(integration_tests::image::Image::from_archive(out.as_ref()).file("etc/name"), "mirrored\n");
}

fn the_daemon_takes_its_settings_from_flags() {
    let hearthd =
        |arguments: &[&str]| process::run(Command::new(&binaries().hearthd).args(arguments), seconds(20));
    for program in [&binaries().hearthd, &binaries().hearth] {
        let version = process::run(Command::new(program).arg("--version"), seconds(20));
        assert!(version.expect_code(0).stdout.contains(char::is_numeric), "{version}");
    }
    let dumped = hearthd(&["--dump-config", "--log", "debug", "--log-format", "json", "--room", "dumped"]);
    dumped.expect_code(0);
    assert!(dumped.stdout.contains("room = \"dumped\"") && dumped.stdout.contains("json"), "{dumped}");
    let storage = tempfile::tempdir().unwrap();
    let [room, project] = ["room", "project"].map(|name| storage.path().join(name).display().to_string());
    for directory in [&room, &project] {
        fs::create_dir(directory).unwrap();
    }
    let flags =
        ["--room-storage", &room, "--project-storage", &project, "--log-format", "json", "--log", "debug"];
    hearthd(&[&["--check-config"], &flags[..]].concat()).expect_code(0);
    hearthd(&["--check-config", "--listen", "nowhere"]).expect_code(2);

    let daemon = Daemon::start(Options::room("flagged").arguments(&flags));
    fs::write(format!("{room}/r"), "room").unwrap();
    fs::write(format!("{project}/p"), "project").unwrap();
    assert!(daemon.hearth_ok(&["storage", "ls"]).stdout.ends_with(" r\n"));
    assert!(daemon.hearth_ok(&["storage", "ls", "--project"]).stdout.ends_with(" p\n"));
    let log = daemon.log();
    let lines: Vec<serde_json::Value> =
        log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert!(lines.iter().any(|line| line["level"] == "DEBUG"), "{log}");
}
