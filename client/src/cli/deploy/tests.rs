use clap::{Parser, error::ErrorKind};
use hearth_proto::v1::env_value::Value;
use hearth_proto::v1::mount::Source;
use hearth_proto::v1::{DeploySpec, DeployStrategy, DomainNames, MountMode, PortKind, ServiceSetting};

use super::flags::{DeployPlan, plan};
use super::*;
use crate::error::FailureKind;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    args: DeployArgs,
}

fn parse(line: &str) -> Result<DeployArgs, clap::Error> {
    // In these command lines `_` represents a blank inside a word, and `~` an underscore.
    let words = line.split_whitespace().map(|word| word.replace('_', " ").replace('~', "_"));
    Line::try_parse_from(std::iter::once("deploy".to_owned()).chain(words)).map(|line| line.args)
}

fn planned(line: &str) -> Result<DeployPlan, Failure> {
    let DeployArgs { tag, pack, mut settings, .. } =
        parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    plan(&DeployedImage { tag, built_from: pack.map(LocalFiles::Pack) }, &mut settings, |name| {
        if name == "HOME" { Ok("/root".into()) } else { Err(std::env::VarError::NotPresent) }
    })
}

fn spec(line: &str) -> DeploySpec {
    planned(line).unwrap_or_else(|failure| panic!("{line}: {}", failure.detail.message)).spec
}

#[test]
fn what_is_not_said_is_not_mentioned() {
    let expected = DeploySpec { image: "room.meshagent.com/my-app:dev".into(), ..DeploySpec::default() };
    assert_eq!(spec("--tag room.meshagent.com/my-app:dev"), expected);
    // The tag of a deploy may have a digest; the tag of a build may not.
    let digest = format!("sha256:{}", "0".repeat(64));
    assert_eq!(spec(&format!("--tag a@{digest}")).image, format!("a@{digest}"));
    let failure = planned(&format!("--tag a@{digest} --pack /")).err().unwrap();
    assert!(failure.detail.message.contains("names a digest"), "{}", failure.detail.message);
}

#[test]
fn every_flag_is_in_the_request() {
    let got = spec(
        "--tag a/b:1 --name web --env A=1 -e HOME --env-secret S=db --meshagent-token full --identity bot \
         --room-mount data:/data --project-mount p:/p:rw --image-mount i:2=/i,subpath=x --empty-dir-mount /tmp:ro \
         --port 80 --port 5432/tcp --public --liveness /healthz --command [\"sh\",\"-c\",\"a_b\"] --workdir /srv/ \
         --memory 512m --cpus 1.5 --isolated --cap-add cap~net~raw --cap-add MKNOD --strategy recreate --timeout 90s --cred r.example,u,p --no-wait",
    );
    assert_eq!((got.image.as_str(), got.name.as_deref()), ("a/b:1", Some("web")));
    let env = |name: &str| got.env.get(name).and_then(|value| value.value.clone()).unwrap();
    assert_eq!((env("A"), env("HOME")), (Value::Plain("1".into()), Value::Plain("/root".into())));
    assert_eq!(env("S"), Value::Secret("db".into()));
    assert_eq!(env("MESHAGENT_TOKEN"), Value::TokenScope("full".into()));
    assert_eq!(got.identity.as_deref(), Some("bot"));
    assert_eq!(
        (got.isolated, got.capabilities.unwrap().names),
        (Some(true), vec!["NET_RAW".into(), "MKNOD".into()])
    );
    let mounts: Vec<_> = got.mounts.iter().map(|mount| (mount.target.as_str(), mount.mode())).collect();
    assert_eq!(
        mounts,
        [
            ("/data", MountMode::ReadWrite),
            ("/p", MountMode::ReadWrite),
            ("/i", MountMode::ReadOnly),
            ("/tmp", MountMode::ReadOnly)
        ]
    );
    assert!(matches!(&got.mounts[2].source, Some(Source::Image(image)) if image.subpath == "x"));
    assert!(matches!(&got.mounts[3].source, Some(Source::EmptyDir(_))));
    let ports: Vec<_> = got.ports.unwrap().ports.iter().map(|port| (port.number, port.kind())).collect();
    assert_eq!(ports, [(80, PortKind::Http), (5432, PortKind::Tcp)]);
    assert_eq!((got.public, got.liveness.as_deref()), (Some(true), Some("/healthz")));
    assert_eq!(got.command.unwrap().arguments, ["sh", "-c", "a b"]);
    assert_eq!((got.working_dir.as_deref(), got.memory_bytes), (Some("/srv"), Some(512 << 20)));
    assert_eq!((got.cpu_millis, got.start_limit.unwrap().seconds), (Some(1500), 90));
    assert_eq!(got.strategy, i32::from(DeployStrategy::Recreate));
    assert_eq!((got.domains, got.description, got.replace), (None, None, false));
    assert_eq!(got.credentials[0].registry, "r.example");
    // The daemon knows which registries are the room's, so it fills in the one that is left out.
    assert_eq!(spec("--tag ghcr.io/a/b:1 --cred u,p").credentials[0].registry, "");
}

#[test]
fn domains_may_be_several_and_access_may_be_taken_back() {
    let got = spec("--tag a --domain www.example.com --domain *.apps.example.com --port 80 --private");
    assert_eq!(got.domains.unwrap().domains, ["www.example.com", "*.apps.example.com"]);
    assert_eq!(got.public, Some(false));
}

#[test]
fn what_is_taken_away_is_named_in_the_request() {
    use ServiceSetting::{
        Command, Cpus, EmptyDirMounts, FileMounts, ImageMounts, Liveness, Memory, Ports, ProjectMounts,
        RoomMounts, WorkingDir,
    };
    let got = spec(
        "--tag a --unset-env A --unset-env B --no-mounts room --no-mounts project --no-mounts image \
         --no-mounts empty-dir --no-mounts file --no-ports --no-domains --no-liveness --no-command --no-workdir \
         --no-memory --no-cpus",
    );
    assert_eq!(
        (got.unset_env.as_slice(), got.domains.as_ref()),
        (&["A".to_owned(), "B".to_owned()][..], Some(&DomainNames::default()))
    );
    let expected = [
        RoomMounts,
        ProjectMounts,
        ImageMounts,
        EmptyDirMounts,
        FileMounts,
        Ports,
        Liveness,
        Command,
        WorkingDir,
        Memory,
        Cpus,
    ];
    assert_eq!(got.unset().collect::<Vec<_>>(), expected);
}

#[test]
fn the_other_spellings_of_mounts_mean_the_same() {
    let one = spec("--tag a --room-mount d:/d --project-mount p:/p --image-mount i=/i");
    let other = spec("--tag a --mount-room-path d:/d --mount-project-path p:/p --mount-image i=/i");
    assert_eq!(one, other);
}

#[test]
fn a_pack_is_built_first_under_the_tag() {
    let planned = planned(
        "--tag a:dev --pack / -f web.Dockerfile --build-arg V=1 --target web --cred u,p --build-timeout 5m",
    );
    let DeployPlan { spec, build } = planned.unwrap_or_else(|failure| panic!("{}", failure.detail.message));
    let build = build.unwrap();
    assert_eq!((spec.image.as_str(), build.timeout), ("a:dev", Some(Duration::from_secs(300))));
    assert_eq!((build.credentials.to_wire().unwrap().len(), spec.credentials.len()), (1, 0));
    assert!(self::planned("--tag a:dev").unwrap().build.is_none());
    let digest = format!("sha256:{}", "ab".repeat(32));
    assert_eq!(pinned("a:dev", &digest).unwrap(), format!("a:dev@{digest}"));
}

#[test]
fn what_is_wrong_in_itself_is_a_usage_error_that_says_what_is_right() {
    for (line, says) in [
        ("--tag A", "--tag: `A`: repository `A` is not valid"),
        ("--tag a --port 80 --port 80/tcp", "--port: port 80 is given twice"),
        ("--tag a --domain a.example --port 80 --port 81", "exactly one published port, and 2 are given"),
        ("--tag a --command [1]", "--command: `[1]` starts like a JSON list"),
        ("--tag a --command 'a", "--command: `'a`: a single quote is not closed"),
        ("--tag a --command []", "--command: the command is empty"),
        ("--tag a --workdir srv", "--workdir: `srv` is not an absolute path"),
        ("--tag a --env =1", "--env `=1`"),
        ("--tag a --env A=1 --unset-env A", "--unset-env: variable `A` is both set and taken away"),
        ("--tag a --env-file /no/such/file", "--env-file: cannot read `/no/such/file`"),
        ("--tag a --env-secret S", "--env-secret `S`: expected `NAME=SECRET`"),
        ("--tag a --env-token all", "--env-token: scope `all` is none of"),
        (
            "--tag a --room-mount data",
            "--room-mount: mount `data`: expected `<source>:<mount>[:ro|rw][,create]`",
        ),
        ("--tag a --room-mount d:/", "--room-mount: `d:/` would hide the whole image"),
        ("--tag a --project-mount d:/x:wo", "--project-mount: mount `d:/x:wo`: mode `wo`"),
        (
            "--tag a --image-mount i",
            "--image-mount: mount `i`: expected `<image>=<mount>[:ro|rw][,subpath=<path>]`",
        ),
        (
            "--tag a --empty-dir-mount tmp",
            "--empty-dir-mount: mount `tmp`: target `tmp` is not absolute; expected `<mount>[:ro|rw]`",
        ),
        ("--tag a --empty-dir-mount /x --room-mount d:/x", "mount target `/x` is used twice"),
        ("--tag a --cred p", "--cred: expected `username,password`"),
        ("--tag a --build-arg V=1", "flags of a build need --pack"),
        ("--tag a --build-timeout 5m", "flags of a build need --pack"),
        ("--tag a --no-cache", "flags of a build need --pack"),
        ("--tag a --iidfile id", "flags of a build need --pack"),
        ("--tag a --also-tag b", "flags of a build need --pack"),
    ] {
        let failure = planned(line).err().unwrap_or_else(|| panic!("{line} is taken"));
        assert_eq!(failure.kind, FailureKind::Usage, "{line}");
        assert!(failure.detail.message.contains(says), "{line}: {}", failure.detail.message);
    }
}

#[test]
fn what_the_command_line_cannot_take_is_said_by_the_flag() {
    use ErrorKind::{
        ArgumentConflict, InvalidValue, MissingRequiredArgument, UnknownArgument, ValueValidation,
    };
    for (line, kind, says) in [
        ("", MissingRequiredArgument, "--tag <TAG>"),
        ("--tag a --public --private", ArgumentConflict, "--private"),
        ("--tag a --wait --no-wait", ArgumentConflict, "--no-wait"),
        ("--tag a --pack / --dry-run", ArgumentConflict, "--dry-run"),
        ("--tag a --platform linux/arm64 --arch arm64", ArgumentConflict, "--arch"),
        ("--tag a ./dir", UnknownArgument, "./dir"),
        ("--tag a --port 8078", ValueValidation, "port 8078 is reserved"),
        ("--tag a --port 53/udp", ValueValidation, "udp reaches no service"),
        ("--tag a --port web", ValueValidation, "expected `N`, `N/h2c` or `N/tcp`"),
        ("--tag a --name Web", ValueValidation, "service name `Web`"),
        ("--tag a --domain http://a", ValueValidation, "domain `http://a`"),
        ("--tag a --liveness healthz", ValueValidation, "begins with `/`"),
        ("--tag a --memory lots", ValueValidation, "`lots` is not an amount of memory"),
        ("--tag a --cpus 0", ValueValidation, "`0` is not a number of processors"),
        ("--tag a --cap-add SYS_ADMIN", ValueValidation, "there are NET_RAW and MKNOD"),
        ("--tag a --isolated --not-isolated", ArgumentConflict, "--not-isolated"),
        ("--tag a --unset-env A=1", ValueValidation, "`A=1` has a value; expected the name alone"),
        ("--tag a --no-liveness --liveness /x", ArgumentConflict, "--liveness"),
        ("--tag a --no-ports --port 80", ArgumentConflict, "--port"),
        ("--tag a --no-domains --domain a.example", ArgumentConflict, "--domain"),
        ("--tag a --no-mounts disk", InvalidValue, "empty-dir"),
        ("--tag a --timeout soon", ValueValidation, "`soon` is not a length of time"),
        ("--tag a --strategy blue", InvalidValue, "rolling"),
        ("--tag a --progress loud", InvalidValue, "plain"),
    ] {
        let error = parse(line).err().unwrap_or_else(|| panic!("{line} is taken"));
        assert_eq!(error.kind(), kind, "{line}: {error}");
        assert!(error.to_string().contains(says), "{line}: {error}");
    }
}
