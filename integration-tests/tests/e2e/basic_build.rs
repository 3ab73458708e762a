//! The basic workflow: files of a room become an image in the room's registry.

use integration_tests::daemon::{BASE, Daemon};
use integration_tests::runner::Group;
use integration_tests::shared_cases;
use integration_tests::sources::Tree;

pub fn group() -> Group {
    Group::new(
        "basic_build",
        shared_cases![
            files_put_into_the_room_become_an_image_that_skopeo_pulls,
            hearth_image_build_is_the_same_verb,
            a_bare_tag_means_the_rooms_registry,
            the_whole_storage_can_be_the_context,
            the_context_path_chooses_a_directory_below_a_mount,
            project_files_are_mounted_like_room_files,
            from_copy_from_and_run_mount_from_name_images_of_the_room,
            an_image_name_may_come_from_a_build_argument,
            an_image_of_the_room_is_resolved_again_for_each_build,
            every_tag_that_was_asked_for_names_the_image,
            labels_arguments_and_target_reach_the_build,
            json_output_has_tags_digest_size_and_steps,
            an_images_tag_can_be_listed_inspected_added_and_removed,
        ],
    )
}

fn files_put_into_the_room_become_an_image_that_skopeo_pulls(daemon: &Daemon) {
    let base = daemon.base_image();
    let local = tempfile::tempdir().unwrap();
    let dockerfile = format!(
        "FROM {base}\nCOPY site /site\nRUN echo the-step-speaks && sha256sum /site/index.html > /site/sum\n\
         EXPOSE 8000\nCMD [\"httpd\", \"-f\"]\n"
    );
    Tree::new().dockerfile(&dockerfile).file("site/index.html", "<h1>hi</h1>\n").write(local.path());
    daemon.hearth_ok(&["storage", "put", local.path().to_str().unwrap(), "/apps/my-app"]);
    assert!(daemon.room_files().join("apps/my-app/site/index.html").is_file());

    let arguments = [
        "build",
        "--room",
        "basic_build",
        "--tag",
        "room.meshagent.com/my-app:dev",
        "--mount-room-path",
        "/apps/my-app:/context:ro",
        "--context-path",
        "/context",
    ];
    let output = daemon.hearth_ok(&arguments);
    let digest = output.line();
    assert!(digest.starts_with("sha256:"), "stdout carries the digest alone\n{output}");
    output.says(&["the-step-speaks", "COPY site /site"]);

    let list = daemon.hearth_ok(&["images", "list"]);
    assert!(list.stdout.contains("my-app") && list.stdout.contains("dev"), "{list}");
    let image = daemon.image("my-app:dev");
    assert_eq!(image.digest, digest);
    assert_eq!(image.file("site/index.html"), "<h1>hi</h1>\n");
    assert!(image.file("site/sum").ends_with("/site/index.html\n"));
    assert!(image.has("bin/busybox"), "the base image lies below");
    assert_eq!(image.config["config"]["Cmd"], serde_json::json!(["httpd", "-f"]));
    assert!(image.config["config"]["ExposedPorts"]["8000/tcp"].is_object());
}

fn hearth_image_build_is_the_same_verb(daemon: &Daemon) {
    daemon.put("spelling", &Tree::new().dockerfile("FROM scratch\nCOPY a /\n").file("a", "1"));
    let digest =
        daemon.hearth_ok(&["image", "build", "--tag", "spelling:1", "--room-mount", "spelling:/context"]);
    assert_eq!(daemon.tag_digest("spelling", "1").as_deref(), Some(digest.line()));
}

fn a_bare_tag_means_the_rooms_registry(daemon: &Daemon) {
    daemon.put("bare", &Tree::new().dockerfile("FROM scratch\nCOPY a /\n").file("a", "1"));
    let digest = daemon.build_ok("team/bare", "bare", &[]);
    assert_eq!(daemon.tag_digest("team/bare", "latest"), Some(digest), "no tag means latest");
}

fn the_whole_storage_can_be_the_context(daemon: &Daemon) {
    daemon.put("whole", &Tree::new().file("only-here", "1"));
    daemon.put("whole-docker", &Tree::new().file("Dockerfile", "FROM scratch\nCOPY whole /whole\n"));
    daemon.hearth_ok(&[
        "build",
        "--tag",
        "whole:1",
        "--mount-room-path",
        "/:/everything",
        "--dockerfile-path",
        "/everything/whole-docker/Dockerfile",
    ]);
    assert_eq!(daemon.image("whole:1").file("whole/only-here"), "1");
}

fn the_context_path_chooses_a_directory_below_a_mount(daemon: &Daemon) {
    let tree = Tree::new()
        .file("outer", "outer")
        .file("sub/Containerfile", "FROM scratch\nCOPY . /\n")
        .file("sub/Dockerfile", "FROM scratch\nCOPY missing /\n")
        .file("sub/inner", "inner");
    daemon.put("below", &tree);
    daemon.hearth_ok(&[
        "build",
        "--tag",
        "below:1",
        "--mount-room-path",
        "below:/src",
        "--context-path",
        "/src/sub",
    ]);
    let image = daemon.image("below:1");
    assert_eq!(image.file("inner"), "inner", "a Containerfile comes before a Dockerfile");
    assert!(!image.has("outer"));
}

fn project_files_are_mounted_like_room_files(daemon: &Daemon) {
    let tree = Tree::new().dockerfile("FROM scratch\nCOPY . /\n").file("from-project", "p");
    tree.write(&daemon.project_files().join("shared/assets"));
    daemon.hearth_ok(&["build", "--tag", "project:1", "--mount-project-path", "shared/assets:/context"]);
    assert_eq!(daemon.image("project:1").file("from-project"), "p");
}

fn from_copy_from_and_run_mount_from_name_images_of_the_room(daemon: &Daemon) {
    let base = daemon.base_image();
    daemon.put("parts", &Tree::new().dockerfile("FROM scratch\nCOPY part /\n").file("part", "a part\n"));
    daemon.build_ok("room.meshagent.com/parts/one:1", "parts", &[]);
    let dockerfile = format!(
        "FROM room.meshagent.com/parts/one:1 AS named\n\
         FROM {base}\n\
         COPY --from=room.meshagent.com/parts/one:1 /part /copied\n\
         COPY --from=named /part /from-stage\n\
         RUN --mount=from=room.meshagent.com/parts/one:1,target=/mnt cat /mnt/part > /mounted\n"
    );
    daemon.put("parts-user", &Tree::new().dockerfile(&dockerfile));
    daemon.build_ok("parts-user:1", "parts-user", &[]);
    let image = daemon.image("parts-user:1");
    for path in ["copied", "from-stage", "mounted"] {
        assert_eq!(image.file(path), "a part\n", "{path}");
    }
}

fn an_image_name_may_come_from_a_build_argument(daemon: &Daemon) {
    daemon.base_image();
    let dockerfile =
        "ARG REGISTRY=room.meshagent.com\nARG TAG=none\nFROM ${REGISTRY}/busybox:$TAG\nRUN echo built > /x\n";
    daemon.put("argument", &Tree::new().dockerfile(dockerfile));
    daemon.build_ok("argument:1", "argument", &["--build-arg", "TAG=test"]);
    assert_eq!(daemon.image("argument:1").file("x"), "built\n");
}

fn an_image_of_the_room_is_resolved_again_for_each_build(daemon: &Daemon) {
    let base = |content: &str| {
        let name = format!("moving-{content}");
        daemon.put(&name, &Tree::new().dockerfile("FROM scratch\nCOPY v /v\n").file("v", content));
        daemon.build_ok("moving:latest", &name, &[]);
    };
    daemon.put(
        "follower",
        &Tree::new().dockerfile("FROM room.meshagent.com/moving\nCOPY own /own\n").file("own", ""),
    );
    for content in ["one", "two"] {
        base(content);
        daemon.build_ok("follower:1", "follower", &[]);
        assert_eq!(daemon.image("follower:1").file("v"), content);
    }
}

fn every_tag_that_was_asked_for_names_the_image(daemon: &Daemon) {
    daemon.put("tags", &Tree::new().dockerfile("FROM scratch\nCOPY a /\n").file("a", "tags"));
    let digest = daemon.build_ok("tags:1", "tags", &["--also-tag", "tags:2", "--also-tag", "other/tags:3"]);
    for (repository, tag) in [("tags", "1"), ("tags", "2"), ("other/tags", "3")] {
        assert_eq!(
            daemon.tag_digest(repository, tag).as_deref(),
            Some(digest.as_str()),
            "{repository}:{tag}"
        );
    }
}

fn labels_arguments_and_target_reach_the_build(daemon: &Daemon) {
    let dockerfile = format!(
        "FROM {BASE} AS first\nARG WHO=nobody\nRUN echo \"hello $WHO\" > /who\nFROM first AS second\nRUN exit 1\n"
    );
    daemon.base_image();
    daemon.put("options", &Tree::new().file("docker/web.Dockerfile", dockerfile));
    let more = [
        "-f",
        "docker/web.Dockerfile",
        "--target",
        "first",
        "--build-arg",
        "WHO=room",
        "--label",
        "made.by=test",
    ];
    daemon.build_ok("options:1", "options", &more);
    let image = daemon.image("options:1");
    assert_eq!(image.file("who"), "hello room\n");
    assert_eq!(image.config["config"]["Labels"]["made.by"], "test");
}

fn json_output_has_tags_digest_size_and_steps(daemon: &Daemon) {
    daemon.put("json", &Tree::new().dockerfile("FROM scratch\nCOPY a /\n").file("a", "json"));
    let output = daemon.build("json:1", "json", &["--json"]);
    output.expect_code(0);
    let result = output.json();
    let digest = daemon.tag_digest("json", "1").unwrap();
    assert!(result.to_string().contains(&digest), "{result}");
    assert!(result.to_string().contains("json:1"), "{result}");
}

fn an_images_tag_can_be_listed_inspected_added_and_removed(daemon: &Daemon) {
    daemon.put("verbs", &Tree::new().dockerfile("FROM scratch\nCOPY a /\n").file("a", "verbs"));
    let digest = daemon.build_ok("verbs:1", "verbs", &[]);
    daemon.hearth_ok(&["images", "tag", "verbs:1", "verbs:stable"]);
    assert_eq!(daemon.tag_digest("verbs", "stable").as_deref(), Some(digest.as_str()));
    let inspected = daemon.hearth_ok(&["images", "inspect", "verbs:stable", "--json"]);
    assert!(inspected.json().to_string().contains(&digest), "{inspected}");
    let listed = daemon.hearth_ok(&["images", "list", "--json"]);
    assert!(listed.json().to_string().contains(&digest), "{listed}");
    daemon.hearth_ok(&["images", "rm", "verbs:1"]);
    assert_eq!(daemon.tag_digest("verbs", "1"), None);
    assert_eq!(daemon.tag_digest("verbs", "stable"), Some(digest), "the other tag stays");
    daemon.hearth(&["images", "rm", "verbs:1"]).expect_code(1).says(&["verbs:1"]);
}
