//! Skopeo, a client that is not ours.

use std::path::Path;
use std::process::Command;

use crate::room::{Room, room};

/// Archive of a small tree, with skopeo's name for it.
fn archive(directory: &Path) -> String {
    let (tree, file) = (directory.join("tree"), directory.join("app.tar"));
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("file"), "content").unwrap();
    let packed = hearth_pack::pack(&tree, &hearth_pack::PackOptions::default(), &mut |_| {}).unwrap();
    packed.write_archive(&mut std::fs::File::create(&file).unwrap()).unwrap();
    format!("oci-archive:{}", file.display())
}

async fn skopeo(arguments: &[&str]) -> Result<String, String> {
    let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
    let run = move || {
        let policy = ["--insecure-policy", "--command-timeout", "60s"];
        Command::new("skopeo").args(policy).args(arguments).output().expect("skopeo is installed")
    };
    let output = hearthd::task::blocking("skopeo", run).await.unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

fn url(room: &Room, name: &str) -> String {
    format!("docker://{}/{name}", room.address)
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_pushes_lists_pulls_and_deletes() {
    let room = room().await;
    let work = tempfile::tempdir().unwrap();
    let source = archive(work.path());
    let (image, copy) = (url(&room, "team/app:1"), url(&room, "elsewhere/app:2"));
    let (to, from) = (
        ["--dest-creds", "all:x", "--dest-tls-verify=false"],
        ["--src-creds", "all:x", "--src-tls-verify=false"],
    );
    let run = async |verb: &[&str], names: &[&str]| skopeo(&[verb, names].concat()).await;

    run(&[&["copy"], &to[..]].concat(), &[&source, &image]).await.unwrap();
    // Copies between repositories: skopeo may mount or resend existing content.
    run(&[&["copy"], &from[..], &to[..]].concat(), &[&image, &copy]).await.unwrap();
    let listed =
        run(&["list-tags", "--creds", "all:x", "--tls-verify=false"], &[&url(&room, "elsewhere/app")]).await;
    assert!(listed.unwrap().contains("\"2\""));

    let layout = format!("oci:{}:back", work.path().join("layout").display());
    run(&[&["copy"], &from[..]].concat(), &[&copy, &layout]).await.unwrap();
    let digest_of = async |arguments: &[&str]| {
        skopeo(&[&["inspect", "--format", "{{.Digest}}"], arguments].concat()).await.unwrap()
    };
    let pushed = digest_of(&["--creds", "all:x", "--tls-verify=false", &image]).await;
    assert_eq!(pushed, digest_of(&[&source]).await);
    assert_eq!(pushed, digest_of(&[&layout]).await);

    run(&["delete", "--creds", "all:x", "--tls-verify=false"], &[&copy]).await.unwrap();
    run(&[&["copy"], &from[..]].concat(), &[&copy, &layout]).await.unwrap_err();
    run(&[&["copy"], &from[..]].concat(), &[&image, &layout]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_gets_the_reason_of_a_denial() {
    let room = room().await;
    let work = tempfile::tempdir().unwrap();
    let source = archive(work.path());
    let image = url(&room, "team/app:1");
    for (caller, succeeds) in [("nobody:x", false), ("reader:x", false), ("writer:x", true)] {
        let copied =
            skopeo(&["copy", "--dest-creds", caller, "--dest-tls-verify=false", &source, &image]).await;
        assert_eq!(copied.is_ok(), succeeds, "{caller}: {copied:?}");
        if let Err(error) = copied {
            assert!(error.contains("denied") || error.contains("Forbidden"), "{error}");
        }
    }
    let anonymous = skopeo(&["inspect", "--no-creds", "--tls-verify=false", &image]).await.unwrap_err();
    assert!(anonymous.contains("unauthorized") || anonymous.contains("token is needed"), "{anonymous}");
}
