//! Images of the room run as its services: deployed, reached through the ingress, updated, rolled back, removed.

use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use integration_tests::daemon::Daemon;
use integration_tests::http::Request;
use integration_tests::runner::Group;
use integration_tests::service::{App, PORT, get, page};
use integration_tests::shared_cases;
use integration_tests::sources::Tree;
use integration_tests::wait::{self, seconds};

pub fn group() -> Group {
    Group::new(
        "services",
        shared_cases![
            a_deploy_returns_when_people_reach_the_service,
            files_of_the_room_become_a_service_that_people_reach,
            a_directory_is_built_and_deployed_by_one_command,
            an_update_shows_the_new_page_and_keeps_what_is_not_mentioned,
            a_first_deploy_that_failed_leaves_nothing_to_the_next,
            a_private_service_asks_for_a_token_and_never_sees_it,
            a_revision_that_fails_takes_no_traffic_and_says_why,
            rollback_restart_and_removal,
            the_environment_comes_from_flags_files_secrets_and_tokens,
            the_name_in_the_tokens_is_given_once_and_kept,
            storage_is_the_same_inside_and_outside,
            images_empty_directories_and_volumes_are_mounted,
            services_reach_each_other_by_name_and_no_port_of_the_daemon,
            the_log_can_be_read_in_parts,
            a_manifest_can_be_shown_and_applied,
            a_dry_run_changes_nothing,
            memory_that_runs_out_is_named,
            two_deploys_at_once_the_later_wins,
            a_service_that_may_not_run_twice_is_recreated,
            an_app_in_tcp_is_live_when_it_takes_connections,
            a_deploy_that_nobody_waits_for_becomes_live_by_itself,
        ],
    )
}

fn a_deploy_returns_when_people_reach_the_service(daemon: &Daemon) {
    App::page("first light\n").pack(daemon, "reach/web:1");
    let output =
        daemon.hearth_ok(&["deploy", "--tag", "reach/web:1", "--domain", "reach.test", "--public", "--json"]);
    assert_eq!(page(daemon, "reach.test"), "first light\n");
    let told = output.json();
    assert_eq!(told["name"], "reach-web", "the repository gives the name\n{output}");
    assert_eq!(told["revision"], 1, "{output}");
    assert_eq!(told["digest"].as_str(), daemon.tag_digest("reach/web", "1").as_deref(), "{output}");
    let list = daemon.hearth_ok(&["services", "list"]);
    let line = list.stdout.lines().find(|line| line.contains("reach-web")).unwrap_or_default();
    assert!(line.contains("live"), "{list}");
    let routes = daemon.hearth_ok(&["routes", "list"]);
    assert!(routes.stdout.contains("reach.test") && routes.stdout.contains("reach-web"), "{routes}");
    assert_eq!(get(daemon, "nobody.test", "/").status, 404);
}

/// Follows the workflow of the web page that the product is designed from.
fn files_of_the_room_become_a_service_that_people_reach(daemon: &Daemon) {
    let base = daemon.base_image();
    let dockerfile = format!(
        "FROM {base}\nCOPY site /site\nEXPOSE 8000\nCMD [\"httpd\", \"-f\", \"-p\", \"8000\", \"-h\", \"/site\"]\n"
    );
    daemon.put("seed", &Tree::new().dockerfile(&dockerfile).file("site/index.html", "from the room\n"));
    daemon.build_ok("room.meshagent.com/seed-app:dev", "seed", &[]);
    daemon.hearth_ok(&[
        "image",
        "deploy",
        "--room",
        "services",
        "--tag",
        "room.meshagent.com/seed-app:dev",
        "--env",
        "APP_ENV=dev",
        "--domain",
        "seed.test",
        "--public",
    ]);
    assert_eq!(page(daemon, "seed.test"), "from the room\n");
    assert!(inside(daemon, "seed-app", "env").contains("APP_ENV=dev\n"));
}

fn a_directory_is_built_and_deployed_by_one_command(daemon: &Daemon) {
    let base = daemon.base_image();
    let dockerfile = format!(
        "FROM {base}\nARG WORD\nRUN mkdir /site && echo $WORD > /site/index.html\nCOPY more /site/\nEXPOSE 8000\n\
         CMD [\"httpd\", \"-f\", \"-p\", \"8000\", \"-h\", \"/site\"]\n"
    );
    let local = tempfile::tempdir_in(daemon.directory()).unwrap();
    let work = local.path().join("work");
    Tree::new().dockerfile(&dockerfile).file("more/more.html", "sent along\n").write(&work);
    let pack = work.to_str().unwrap();
    let [id, told] = ["id", "told.json"].map(|name| local.path().join(name));
    let deploy = |word: &str, tag: &str| {
        let argument = format!("WORD={word}");
        let (id, told) = (id.to_str().unwrap(), told.to_str().unwrap());
        let built = ["--pack", pack, "--build-arg", &argument, "--also-tag", tag];
        let files = ["--iidfile", id, "--metadata-file", told];
        let service = ["deploy", "--tag", "sent/app:dev", "--domain", "sent.test", "--public"];
        daemon.hearth(&[&service[..], &built, &files].concat())
    };
    deploy("one", "sent/app:one").expect_code(0);
    assert_eq!(page(daemon, "sent.test"), "one\n");
    assert_eq!(get(daemon, "sent.test", "/more.html").text(), "sent along\n");
    let digest = fs::read_to_string(&id).unwrap();
    for tag in ["dev", "one"] {
        assert_eq!(daemon.tag_digest("sent/app", tag).as_deref(), Some(&*digest), "{tag}");
    }
    let told_json: serde_json::Value = serde_json::from_slice(&fs::read(&told).unwrap()).unwrap();
    assert_eq!(told_json["digest"].as_str(), Some(&*digest), "{told_json}");

    // A failed build is not deployed, and leaves the files of the last one.
    fs::write(work.join("Dockerfile"), dockerfile.replace("COPY more", "COPY nothing")).unwrap();
    let failed = deploy("two", "sent/app:two");
    assert_ne!(failed.code, 0, "{failed}");
    failed.says(&["/nothing"]);
    assert_eq!(page(daemon, "sent.test"), "one\n");
    assert_eq!((fs::read_to_string(&id).unwrap(), daemon.tag_digest("sent/app", "two")), (digest, None));
}

/// Runs a command inside of a service; returns its output.
#[track_caller]
fn inside(daemon: &Daemon, service: &str, command: &str) -> String {
    daemon.hearth_ok(&["services", "exec", service, "--", "sh", "-c", command]).stdout
}

#[track_caller]
fn deploy(daemon: &Daemon, arguments: &[&str]) {
    daemon.hearth_ok(&[&["deploy"], arguments].concat());
}

fn an_update_shows_the_new_page_and_keeps_what_is_not_mentioned(daemon: &Daemon) {
    App::page("one\n").pack(daemon, "update:1");
    App::page("two\n").pack(daemon, "update:2");
    deploy(
        daemon,
        &["--tag", "update:1", "--domain", "update.test", "--public", "--env", "A=1", "--env", "B=1"],
    );
    assert_eq!(page(daemon, "update.test"), "one\n");
    // Moving the tag alone changes nothing: the image is pinned.
    App::page("moved\n").pack(daemon, "update:1");
    assert_eq!(page(daemon, "update.test"), "one\n");
    deploy(daemon, &["--tag", "update:2", "--env", "B=2"]);
    assert_eq!(page(daemon, "update.test"), "two\n");
    let env = inside(daemon, "update", "env");
    assert!(env.contains("A=1\n") && env.contains("B=2\n"), "{env}");
    let show = daemon.hearth_ok(&["services", "show", "update", "--json"]).json();
    assert_eq!(show["revisions"].as_array().unwrap().len(), 2, "{show}");
    deploy(daemon, &["--tag", "update:2", "--unset-env", "B", "--no-domains"]);
    let env = inside(daemon, "update", "env");
    assert!(env.contains("A=1\n") && !env.contains("B="), "{env}");
    assert_eq!(get(daemon, "update.test", "/").status, 404);
}

fn a_first_deploy_that_failed_leaves_nothing_to_the_next(daemon: &Daemon) {
    App::page("first\n").pack(daemon, "first:1");
    let wrong = ["--liveness", "/nope", "--timeout", "2s", "--env", "A=1"];
    daemon.hearth(&[&["deploy", "--tag", "first:1"], &wrong[..]].concat()).expect_code(1).says(&["/nope"]);
    deploy(daemon, &["--tag", "first:1"]);
    assert!(!inside(daemon, "first", "env").contains("A="), "nothing is kept");
}

fn a_private_service_asks_for_a_token_and_never_sees_it(daemon: &Daemon) {
    App::page("inner\n").pack(daemon, "inner:1");
    deploy(daemon, &["--tag", "inner:1", "--domain", "inner.test"]);
    let headers = |request: Request| request.host("inner.test").send(&daemon.ingress());
    assert_eq!(get(daemon, "inner.test", "/").status, 401, "private is the default");
    assert_eq!(headers(Request::new("GET", "/").bearer("wrong")).status, 401);
    let token = daemon.mint(&["--name", "guest", "--scope", "userDefault"]);
    let answer = headers(Request::new("GET", "/cgi-bin/headers").bearer(&token));
    let seen = answer.expect(200).text();
    assert!(!seen.contains(&token) && seen.contains("HTTP_X_FORWARDED_HOST=inner.test"), "{seen}");
    deploy(daemon, &["--tag", "inner:1", "--public"]);
    assert_eq!(page(daemon, "inner.test"), "inner\n");
}

fn a_revision_that_fails_takes_no_traffic_and_says_why(daemon: &Daemon) {
    App::page("good\n").pack(daemon, "steady:1");
    deploy(daemon, &["--tag", "steady:1", "--domain", "steady.test", "--public"]);
    let fails = |tag: &str, app: App, more: &[&str], says: &[&str]| {
        app.pack(daemon, tag);
        let output = daemon.hearth(&[&["deploy", "--tag", tag], more].concat());
        assert_ne!(output.code, 0, "{tag}\n{output}");
        output.says(says);
        assert_eq!(page(daemon, "steady.test"), "good\n", "the previous revision continues to serve");
    };
    let exits = App::script("echo about to fail; echo the reason >&2; exit 3");
    fails("steady:exits", exits, &[], &["3", "the reason"]);
    let missing = App::script("").command(&["/no/such/program"]);
    fails("steady:missing", missing, &[], &["/no/such/program"]);
    let silent = App::script("echo I listen nowhere; sleep 100").with(&["--expose", PORT]);
    fails("steady:silent", silent, &["--timeout", "2s"], &["refused", "I listen nowhere"]);
    let sick = App::page("sick\n");
    let more = ["--timeout", "2s", "--liveness", "/healthz"];
    fails("steady:sick", sick, &more, &["404", "/healthz"]);
    let show = daemon.hearth_ok(&["services", "show", "steady", "--json"]).json();
    let outcomes: Vec<_> =
        show["revisions"].as_array().unwrap().iter().map(|one| one["state"].to_string()).collect();
    assert_eq!(outcomes.iter().filter(|outcome| outcome.contains("failed")).count(), 4, "{outcomes:?}");
}

fn rollback_restart_and_removal(daemon: &Daemon) {
    for version in ["1", "2", "3"] {
        App::page(&format!("version {version}\n")).pack(daemon, &format!("back:{version}"));
        deploy(daemon, &["--tag", &format!("back:{version}"), "--domain", "back.test", "--public"]);
    }
    daemon.hearth_ok(&["services", "rollback", "back"]);
    assert_eq!(page(daemon, "back.test"), "version 2\n");
    daemon.hearth_ok(&["services", "rollback", "back", "1"]);
    assert_eq!(page(daemon, "back.test"), "version 1\n");
    let output = daemon.hearth(&["services", "rollback", "back", "77"]);
    output.expect_code(1).says(&["77"]);
    let before =
        inside(daemon, "back", "cat /proc/sys/kernel/random/boot_id; cat /etc/hostname; hostname -i");
    daemon.hearth_ok(&["services", "restart", "back"]);
    let after = inside(daemon, "back", "cat /proc/sys/kernel/random/boot_id; cat /etc/hostname; hostname -i");
    assert_ne!(before, after, "another instance with an address of its own");
    assert_eq!(page(daemon, "back.test"), "version 1\n");
    daemon.hearth_ok(&["services", "rm", "back"]);
    assert_eq!(get(daemon, "back.test", "/").status, 404);
    daemon.hearth(&["services", "show", "back"]).expect_code(1).says(&["back"]);
    // The name and the domain are free again.
    deploy(daemon, &["--tag", "back:3", "--domain", "back.test", "--public"]);
    assert_eq!(page(daemon, "back.test"), "version 3\n");
    daemon.hearth_ok(&["routes", "rm", "back.test"]);
    assert_eq!(get(daemon, "back.test", "/").status, 404);
}

fn the_environment_comes_from_flags_files_secrets_and_tokens(daemon: &Daemon) {
    let directory = tempfile::tempdir_in(daemon.directory()).unwrap();
    let file = directory.path().join("app.env");
    fs::write(&file, "# settings\nFROM_FILE=a b\nOVER=file\n").unwrap();
    let secret = directory.path().join("secret");
    fs::write(&secret, "canary-5b1c").unwrap();
    daemon.hearth_ok(&["secrets", "set", "db_password", "--from-file", secret.to_str().unwrap()]);
    App::page("env\n").with(&["--env", "OF_IMAGE=1"]).pack(daemon, "env:1");
    let file = file.to_str().unwrap();
    let output = daemon.hearth_ok(&[
        "deploy",
        "--tag",
        "env:1",
        "--env-file",
        file,
        "--env",
        "OVER=flag",
        "--env-secret",
        "DB_PASSWORD=db_password",
        "--env-token",
        "agentDefault",
    ]);
    let env = inside(daemon, "env", "env");
    for line in
        ["FROM_FILE=a b", "OVER=flag", "DB_PASSWORD=canary-5b1c", "OF_IMAGE=1", "HEARTH_ROOM=services"]
    {
        assert!(env.lines().any(|given| given == line), "{line} in\n{env}");
    }
    let ask =
        "wget -q -O - --header \"Authorization: Bearer $MESHAGENT_TOKEN\" \"$HEARTH_ADDR/v2/\" && echo in";
    assert!(inside(daemon, "env", ask).ends_with("in\n"), "the token opens this very daemon");
    let refused = "wget -q -O - \"$HEARTH_ADDR/v2/\" 2>&1 || true";
    assert!(inside(daemon, "env", refused).contains("401"));
    let token = env.lines().find_map(|line| line.strip_prefix("MESHAGENT_TOKEN=")).unwrap();
    let shown = daemon.hearth_ok(&["services", "show", "env", "-o", "yaml"]);
    for hidden in [token, "canary-5b1c"] {
        assert!(!shown.stdout.contains(hidden) && !output.to_string().contains(hidden));
        assert!(!daemon.log().contains(hidden), "not in the daemon's log");
    }
    // The time in a token is in whole seconds.
    std::thread::sleep(seconds(1));
    daemon.hearth_ok(&["services", "restart", "env"]);
    assert!(!inside(daemon, "env", "env").contains(token), "each instance gets a token of its own");
    let ask = |status| Request::new("GET", "/v2/").bearer(token).send(&daemon.listen()).expect(status).status;
    ask(200);
    daemon.hearth_ok(&["services", "rm", "--now", "env"]);
    ask(401);
}

fn the_name_in_the_tokens_is_given_once_and_kept(daemon: &Daemon) {
    App::page("named\n").pack(daemon, "named:1");
    App::page("named too\n").pack(daemon, "named:2");
    let name = || {
        let token = inside(daemon, "named", "echo $MESHAGENT_TOKEN");
        let claims = token.split('.').nth(1).expect("claims");
        let claims = URL_SAFE_NO_PAD.decode(claims).expect("base64");
        let claims: serde_json::Value = serde_json::from_slice(&claims).expect("JSON");
        claims["name"].as_str().expect("a name").to_owned()
    };
    deploy(daemon, &["--tag", "named:1", "--env-token", "userDefault"]);
    assert_eq!(name(), "named", "the service's own name is the default");
    deploy(daemon, &["--tag", "named:1", "--identity", "front-desk"]);
    assert_eq!(name(), "front-desk");
    deploy(daemon, &["--tag", "named:2"]);
    assert_eq!(name(), "front-desk", "kept by a deploy that does not name it");
    daemon.hearth_ok(&["services", "restart", "named"]);
    assert_eq!(name(), "front-desk");
    daemon.hearth_ok(&["services", "rollback", "named", "1"]);
    assert_eq!(name(), "named", "the settings of revision 1");
    let output = daemon.hearth(&["deploy", "--tag", "named:1", "--identity", ""]);
    output.expect_code(2).says(&["identity"]);
}

fn storage_is_the_same_inside_and_outside(daemon: &Daemon) {
    daemon.put("shared", &Tree::new().file("given", "from the room\n"));
    fs::create_dir_all(daemon.project_files().join("assets")).unwrap();
    fs::write(daemon.project_files().join("assets/logo"), "logo\n").unwrap();
    App::page("files\n").pack(daemon, "files:1");
    deploy(
        daemon,
        &["--tag", "files:1", "--room-mount", "shared:/data", "--project-mount", "assets:/assets"],
    );
    assert_eq!(
        inside(daemon, "files", "cat /data/given; echo written > /data/made; cat /assets/logo"),
        "from the room\nlogo\n"
    );
    assert_eq!(fs::read_to_string(daemon.room_files().join("shared/made")).unwrap(), "written\n");
    fs::write(daemon.room_files().join("shared/given"), "changed outside\n").unwrap();
    assert_eq!(inside(daemon, "files", "cat /data/given"), "changed outside\n");
    let refused = inside(daemon, "files", "echo x > /assets/logo 2>&1 || echo refused");
    assert!(refused.contains("refused"), "project storage is read-only unless it is asked for: {refused}");
    assert_eq!(fs::read_to_string(daemon.project_files().join("assets/logo")).unwrap(), "logo\n");
}

fn images_empty_directories_and_volumes_are_mounted(daemon: &Daemon) {
    App::page("assets\n").file("share/font", "a font\n").pack(daemon, "assets:1");
    App::page("mounts\n").with(&["--volume", "/var/lib/app"]).pack(daemon, "mounts:1");
    let output = daemon.hearth_ok(&[
        "deploy",
        "--tag",
        "mounts:1",
        "--image-mount",
        "assets:1=/fonts,subpath=share",
        "--image-mount",
        "assets:1=/copy:rw",
        "--empty-dir-mount",
        "/scratch",
    ]);
    output.says(&["/var/lib/app"]);
    assert_eq!(inside(daemon, "mounts", "cat /fonts/font"), "a font\n");
    let refused = inside(daemon, "mounts", "echo x > /fonts/font 2>&1 || echo refused");
    assert!(refused.contains("refused"), "{refused}");
    let written = "echo mine > /copy/share/font && cat /copy/share/font /fonts/font";
    assert_eq!(inside(daemon, "mounts", written), "mine\na font\n", "a copy of its own");
    assert_eq!(
        inside(daemon, "mounts", "for d in /scratch /var/lib/app; do echo $d > $d/f && cat $d/f; done"),
        "/scratch\n/var/lib/app\n"
    );
    // The mode that Docker gives a volume that the image lacks.
    assert_eq!(inside(daemon, "mounts", "stat -c %a /scratch /var/lib/app"), "777\n755\n");
}

fn services_reach_each_other_by_name_and_no_port_of_the_daemon(daemon: &Daemon) {
    App::page("I am a\n").pack(daemon, "peer-a:1");
    App::page("I am b\n").pack(daemon, "peer-b:1");
    deploy(daemon, &["--tag", "peer-a:1"]);
    deploy(daemon, &["--tag", "peer-b:1"]);
    assert_eq!(inside(daemon, "peer-b", "wget -q -O - http://peer-a:8000/"), "I am a\n");
    assert_eq!(inside(daemon, "peer-a", "wget -q -O - http://peer-b:8000/"), "I am b\n");
    assert_eq!(inside(daemon, "peer-a", "hostname"), "peer-a\n");
    let port = daemon.ingress().rsplit(':').next().unwrap().to_owned();
    let ask = format!(
        "wget -q -O - $HEARTH_ADDR/healthz && timeout 2 wget -q -O - http://$(echo $HEARTH_ADDR | cut -d/ -f3 | cut -d: -f1):{port}/ 2>&1 || echo closed"
    );
    let seen = inside(daemon, "peer-a", &ask);
    assert!(seen.starts_with("ok\n") && seen.ends_with("closed\n"), "{seen}");
}

fn the_log_can_be_read_in_parts(daemon: &Daemon) {
    let script =
        "for n in 1 2 3 4 5; do echo line $n; done; echo trouble >&2; exec httpd -f -p 8000 -h /site";
    App::script(script).with(&["--expose", PORT]).pack(daemon, "talk:1");
    deploy(daemon, &["--tag", "talk:1"]);
    let logs = |more: &[&str]| daemon.hearth_ok(&[&["services", "logs", "talk"], more].concat()).stdout;
    wait::until(seconds(5), "all lines are there", || logs(&[]).contains("trouble"));
    assert!(logs(&[]).contains("line 1\n") && logs(&[]).contains("line 5\n"));
    let tail = logs(&["--tail", "2"]);
    assert!(tail.lines().count() == 2 && tail.contains("trouble"), "{tail}");
    let grep = logs(&["--grep", "line 3"]);
    assert!(grep.lines().count() == 1 && grep.contains("line 3"), "{grep}");
    assert_eq!(logs(&["--grep", "^line [24]$"]).lines().count(), 2);
    let refused = daemon.hearth(&["services", "logs", "talk", "--grep", "line ["]);
    refused.expect_code(2).says(&["--grep", "unclosed character class"]);
    assert_eq!(logs(&["--since", "2100-01-01T00:00:00Z"]), "");
}

fn a_manifest_can_be_shown_and_applied(daemon: &Daemon) {
    App::page("manifest\n").pack(daemon, "manifest:1");
    deploy(daemon, &["--tag", "manifest:1", "--domain", "manifest.test", "--public", "--env", "A=1"]);
    let yaml = daemon.hearth_ok(&["services", "show", "manifest", "-o", "yaml"]).stdout;
    assert!(yaml.contains("version: v1") && yaml.contains("kind: Service"), "{yaml}");
    let directory = tempfile::tempdir_in(daemon.directory()).unwrap();
    let path = directory.path().join("service.yaml");
    let file = path.to_str().unwrap();
    fs::write(&path, yaml.replace("value: '1'", "value: '2'").replace("value: \"1\"", "value: \"2\""))
        .unwrap();
    daemon.hearth_ok(&["services", "apply", "-f", file]);
    assert!(inside(daemon, "manifest", "env").contains("A=2\n"), "{yaml}");
    assert_eq!(page(daemon, "manifest.test"), "manifest\n");

    // An inline file is shown with the text with which it was given.
    let text = "# of the manifest\nlisten: 8000\n";
    let storage = format!(
        "  storage: {{files: [{{path: /etc/app/conf, text: {}}}, {{path: /etc/own, text: mine, read_only: false}}]}}\n",
        serde_json::json!(text)
    );
    fs::write(&path, yaml.replace("container:\n", &format!("container:\n{storage}"))).unwrap();
    daemon.hearth_ok(&["services", "apply", "-f", file]);
    assert_eq!(inside(daemon, "manifest", "cat /etc/app/conf"), text);
    let written = "echo changed > /etc/own && cat /etc/own; echo x > /etc/app/conf || echo refused";
    assert_eq!(inside(daemon, "manifest", written), "changed\nrefused\n");
    let shown = daemon.hearth_ok(&["services", "show", "manifest", "-o", "yaml"]).stdout;
    assert!(shown.contains("listen: 8000") && shown.contains("/etc/app/conf"), "{shown}");
    fs::write(&path, &shown).unwrap();
    daemon.hearth_ok(&["services", "apply", "-f", file]);
    assert_eq!(inside(daemon, "manifest", "cat /etc/app/conf /etc/own"), format!("{text}mine"));

    fs::write(&path, yaml.replace("kind: Service", "kind: Service\nkindness: much")).unwrap();
    daemon.hearth(&["services", "apply", "-f", file]).expect_code(2).says(&["kindness"]);
}

fn a_dry_run_changes_nothing(daemon: &Daemon) {
    App::page("dry\n").pack(daemon, "dry:1");
    let output = daemon.hearth_ok(&["deploy", "--tag", "dry:1", "--domain", "dry.test", "--dry-run"]);
    for step in ["start an instance of revision 1", "lead the traffic to revision 1"] {
        assert!(output.to_string().contains(step), "{output}");
    }
    daemon.hearth(&["services", "show", "dry"]).expect_code(1);
    assert_eq!(get(daemon, "dry.test", "/").status, 404);
}

fn memory_that_runs_out_is_named(daemon: &Daemon) {
    // tail keeps a line without an end in memory.
    let app = App::script("tail -n 1 /dev/zero").with(&["--expose", PORT]);
    app.pack(daemon, "hungry:1");
    let output = daemon.hearth(&["deploy", "--tag", "hungry:1", "--memory", "32m"]);
    assert_ne!(output.code, 0, "{output}");
    output.says(&["needs more memory than its limit"]);
}

fn two_deploys_at_once_the_later_wins(daemon: &Daemon) {
    let slow = "sleep 3; exec httpd -f -p 8000 -h /site";
    App::script(slow).with(&["--expose", PORT]).pack(daemon, "race:1");
    App::page("the later\n").pack(daemon, "race:2");
    let mut first = daemon.client();
    first.args(["deploy", "--tag", "race:1", "--domain", "race.test", "--public"]);
    let first = first.stderr(std::process::Stdio::piped()).spawn().unwrap();
    wait::until(seconds(20), "the first one is on its way", || {
        daemon.hearth(&["services", "show", "race"]).code == 0
    });
    // Nothing is kept from a deploy that is not live.
    deploy(daemon, &["--tag", "race:2", "--domain", "race.test", "--public"]);
    assert_eq!(page(daemon, "race.test"), "the later\n");
    let first = first.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&first.stderr).into_owned();
    assert!(!first.status.success() && told.contains("superseded"), "{told}");
}

fn a_service_that_may_not_run_twice_is_recreated(daemon: &Daemon) {
    daemon.put("alone", &Tree::new().directory("lock"));
    let script = "mkdir /data/lock/held || exit 9; trap 'rmdir /data/lock/held; exit 0' TERM; httpd -f -p 8000 -h /site & wait";
    App::script(script).with(&["--expose", PORT]).pack(daemon, "alone:1");
    let arguments = [
        "--tag",
        "alone:1",
        "--room-mount",
        "alone:/data",
        "--domain",
        "alone.test",
        "--public",
        "--strategy",
        "recreate",
    ];
    deploy(daemon, &arguments);
    deploy(daemon, &["--tag", "alone:1", "--env", "AGAIN=1"]);
    assert_eq!(page(daemon, "alone.test"), "script\n");
    daemon.hearth_ok(&["services", "rm", "alone"]);
    assert!(!daemon.room_files().join("alone/lock/held").exists(), "the app received its stop signal");
}

fn an_app_in_tcp_is_live_when_it_takes_connections(daemon: &Daemon) {
    App::script("sleep 1; exec nc -ll -p 5432 -e cat").pack(daemon, "plain-tcp:1");
    deploy(daemon, &["--tag", "plain-tcp:1", "--port", "5432/tcp"]);
    App::page("client\n").pack(daemon, "tcp-client:1");
    deploy(daemon, &["--tag", "tcp-client:1"]);
    assert_eq!(inside(daemon, "tcp-client", "echo through | nc -w 2 plain-tcp 5432"), "through\n");
    let output = daemon.hearth(&["deploy", "--tag", "plain-tcp:1", "--domain", "tcp.test"]);
    assert_ne!(output.code, 0, "a domain leads to http only");
}

fn a_deploy_that_nobody_waits_for_becomes_live_by_itself(daemon: &Daemon) {
    App::script("sleep 2; exec httpd -f -p 8000 -h /site").with(&["--expose", PORT]).pack(daemon, "left:1");
    let output =
        daemon.hearth_ok(&["deploy", "--tag", "left:1", "--domain", "left.test", "--public", "--no-wait"]);
    assert!(!output.stdout.is_empty(), "{output}");
    wait::until(seconds(30), "the service becomes live by itself", || {
        get(daemon, "left.test", "/").status == 200
    });
}
