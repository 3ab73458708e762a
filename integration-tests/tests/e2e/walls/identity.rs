//! Identity: nobody can act as another caller, and tokens end.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use integration_tests::daemon::{Daemon, Options, scratch};
use integration_tests::http::Request;
use integration_tests::process::{self, Output};
use integration_tests::runner::{Case, Group};
use integration_tests::service::App;
use integration_tests::shared_cases;
use integration_tests::sources::Tree;
use integration_tests::wait::seconds;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub fn group() -> Group {
    let mut cases = shared_cases![
        services_of_one_chosen_name_are_two_callers_and_neither_is_that_participant,
        no_token_is_minted_for_the_name_of_a_service_or_a_user,
        a_token_is_good_between_its_times_only,
        a_token_of_the_environment_that_is_of_no_use_leaves_root_its_own_right,
    ];
    cases.push(Case::alone(
        "tokens_of_configured_keys_are_taken_and_no_key_is_used_for_another_algorithm",
        tokens_of_configured_keys_are_taken_and_no_key_is_used_for_another_algorithm,
    ));
    cases.push(Case::alone(
        "a_replaced_secret_has_its_grace_time_and_revoked_names_stay_revoked",
        a_replaced_secret_has_its_grace_time_and_revoked_names_stay_revoked,
    ));
    Group::new("walls_identity", cases)
}

/// Runs the client of a remote user: with an address and a token.
pub fn as_bearer(daemon: &Daemon, token: &str, arguments: &[&str]) -> Output {
    let mut command = daemon.client();
    command
        .env("HEARTH_ADDR", format!("http://{}", daemon.listen()))
        .env("HEARTH_TOKEN", token)
        .args(arguments);
    process::run(&mut command, seconds(100))
}

/// Returns the status with which `/v2/` answers a token.
fn v2(daemon: &Daemon, token: &str) -> u16 {
    Request::new("GET", "/v2/").bearer(token).send(&daemon.listen()).status
}

fn services_of_one_chosen_name_are_two_callers_and_neither_is_that_participant(daemon: &Daemon) {
    daemon.put("identity", &Tree::new().dockerfile("FROM scratch\nCOPY a /\n").file("a", "a"));
    let victim = daemon.mint(&["--name", "ci-bot", "--scope", "agentDefault"]);
    let build = ["build", "--mount-room-path", "identity", "--json", "--tag"];
    as_bearer(daemon, &victim, &[&build[..], &["identity/victim:1"]].concat()).expect_code(0);
    let ids = |token: &str| -> Vec<String> {
        let listed = as_bearer(daemon, token, &["builds", "list", "--json"]).expect_code(0).json();
        listed
            .as_array()
            .unwrap()
            .iter()
            .map(|build| build["build_id"].as_str().unwrap().to_owned())
            .collect()
    };
    let theirs = ids(&victim);
    assert_eq!(theirs.len(), 1);

    App::page("x\n").pack(daemon, "identity:1");
    let token_of = |name: &str| {
        let identity = ["--identity", "ci-bot", "--env-token", "agentDefault"];
        daemon.hearth_ok(&[&["deploy", "--tag", "identity:1", "--name", name], &identity[..]].concat());
        let printed = ["services", "exec", name, "--", "sh", "-c", "echo $MESHAGENT_TOKEN"];
        daemon.hearth_ok(&printed).line().to_owned()
    };
    let (one, other) = (token_of("bot-one"), token_of("bot-two"));
    as_bearer(daemon, &one, &[&build[..], &["identity/one:1"]].concat()).expect_code(0);
    let of_one = ids(&one);
    assert_eq!((of_one.len(), ids(&other).len()), (1, 0), "each sees its own builds only");
    for (token, build) in
        [(&one, &theirs[0]), (&other, &theirs[0]), (&other, &of_one[0]), (&victim, &of_one[0])]
    {
        for verb in ["show", "logs", "cancel", "rm"] {
            let output = as_bearer(daemon, token, &["builds", verb, build]);
            assert_ne!(output.code, 0, "{verb}: {output}");
            output.says(&["there is no build"]);
        }
        // A prefix of the id does not help either: the answer is the same as for an unknown build.
        as_bearer(daemon, token, &["builds", "show", &build[..4]])
            .expect_code(1)
            .says(&["there is no build"]);
    }
    // A prefix is looked up among the caller's own builds.
    as_bearer(daemon, &one, &["builds", "show", &of_one[0][..1]]).expect_code(0);
}

fn no_token_is_minted_for_the_name_of_a_service_or_a_user(daemon: &Daemon) {
    for name in ["service:4f8e7k2m9x1c", "build:4f8e7k2m9x1c", "uid:0"] {
        let output = daemon.hearth(&["token", "mint", "--name", name]);
        assert_ne!(output.code, 0, "{output}");
        output.says(&["no participant has this name"]);
        // The daemon does not accept such a token either when a holder of the secret signs it.
        let token = signed_for(daemon, &json!({"alg": "HS256"}), |claims| claims["name"] = name.into());
        assert_eq!(v2(daemon, &token), 401, "{name}");
    }
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

fn claims(room: &str) -> Value {
    let api = json!({"name": "api", "scope": {"admin": {}, "containers": {"registry": {"list": ["*"]}}}});
    json!({"name": "ann", "exp": now() + 600, "grants": [{"name": "room", "scope": room}, api]})
}

fn unsigned(header: &Value, claims: &Value) -> String {
    let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
    format!("{}.{}", part(header), part(claims))
}

/// Computes HMAC (RFC 2104) with SHA-256.
fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    let mut block = [0u8; 64];
    match key.len() {
        0..=64 => block[..key.len()].copy_from_slice(key),
        _ => block[..32].copy_from_slice(&Sha256::digest(key)),
    }
    let with = |pad: u8, rest: &[u8]| {
        let mut hash = Sha256::new();
        hash.update(block.map(|byte| byte ^ pad));
        hash.update(rest);
        hash.finalize().to_vec()
    };
    with(0x5c, &with(0x36, text))
}

fn signed_with(secret: &[u8], header: &Value, claims: &Value) -> String {
    let text = unsigned(header, claims);
    let signature = URL_SAFE_NO_PAD.encode(hmac(secret, text.as_bytes()));
    format!("{text}.{signature}")
}

fn room_of(daemon: &Daemon) -> String {
    daemon.hearth_ok(&["doctor", "--json"]).json()["room"].as_str().unwrap().to_owned()
}

/// Returns a token with changed claims, signed with the room's own secret.
fn signed_for(daemon: &Daemon, header: &Value, change: impl FnOnce(&mut Value)) -> String {
    let secret = fs::read_to_string(daemon.state().join("room.secret")).unwrap();
    let mut claims = claims(&room_of(daemon));
    change(&mut claims);
    signed_with(secret.trim().as_bytes(), header, &claims)
}

fn a_token_is_good_between_its_times_only(daemon: &Daemon) {
    let header = || json!({"alg": "HS256", "typ": "JWT"});
    assert_eq!(v2(daemon, &signed_for(daemon, &header(), |_| {})), 200);
    assert_eq!(v2(daemon, &signed_for(daemon, &header(), |claims| claims["nbf"] = (now() - 5).into())), 200);
    let refused = [
        ("not yet", signed_for(daemon, &header(), |claims| claims["nbf"] = (now() + 600).into())),
        (
            "no end",
            signed_for(daemon, &header(), |claims| drop(claims.as_object_mut().unwrap().remove("exp"))),
        ),
        ("a far end", signed_for(daemon, &header(), |claims| claims["exp"] = (now() + 4_000_000_000).into())),
        ("an end that is none", signed_for(daemon, &header(), |claims| claims["exp"] = "never".into())),
        ("crit", signed_for(daemon, &json!({"alg": "HS256", "crit": ["exp"]}), |_| {})),
        ("another algorithm", signed_for(daemon, &json!({"alg": "HS512"}), |_| {})),
        ("none", signed_for(daemon, &json!({"alg": "none"}), |_| {})),
    ];
    for (what, token) in refused {
        assert_eq!(v2(daemon, &token), 401, "{what}");
        as_bearer(daemon, &token, &["builds", "list"]).expect_code(3);
    }
    // The error for an expired token says whose it was, and when it expired.
    let expired = signed_for(daemon, &header(), |claims| claims["exp"] = 1_700_000_000.into());
    as_bearer(daemon, &expired, &["builds", "list"]).expect_code(3).says(&["`ann` expired at 2023-11-14"]);
}

fn a_token_of_the_environment_that_is_of_no_use_leaves_root_its_own_right(daemon: &Daemon) {
    let expired = signed_for(daemon, &json!({"alg": "HS256"}), |claims| claims["exp"] = 1.into());
    let on_socket = |token: &str, arguments: &[&str]| {
        let mut command = daemon.client();
        process::run(command.env("HEARTH_TOKEN", token).args(arguments), seconds(60))
    };
    for token in [expired.as_str(), "nonsense", "not\u{e4}scii"] {
        on_socket(token, &["token", "mint"]).expect_code(0);
    }
    // A valid token is used, and a token that is given for this call takes precedence, whatever its grants.
    let poor = daemon.mint(&["--name", "poor", "--scope", "{}"]);
    on_socket(&poor, &["token", "mint"]).expect_code(3);
    let file = daemon.directory().join("expired.token");
    fs::write(&file, &expired).unwrap();
    daemon.hearth(&["--token-file", file.to_str().unwrap(), "token", "mint"]).expect_code(3);
    // Nobody else gains anything by it.
    as_bearer(daemon, &expired, &["token", "mint"]).expect_code(3);
}

fn openssl(arguments: &[&str]) {
    process::run(Command::new("openssl").args(arguments), seconds(60)).expect_code(0);
}

/// A key pair, as files.
struct Pair {
    private: PathBuf,
    public: PathBuf,
}

impl Pair {
    fn make(directory: &Path, name: &str, arguments: &[&str]) -> Self {
        let (private, public) =
            (directory.join(format!("{name}.pem")), directory.join(format!("{name}.pub")));
        let (key, shown) = (private.to_str().unwrap(), public.to_str().unwrap());
        openssl(&[&["genpkey", "-out", key], arguments].concat());
        openssl(&["pkey", "-in", key, "-pubout", "-out", shown]);
        Self { private, public }
    }

    fn sign(&self, algorithm: &str, claims: &Value) -> String {
        let text = unsigned(&json!({"alg": algorithm}), claims);
        let directory = self.private.parent().unwrap();
        let (given, made) = (directory.join("text"), directory.join("signature"));
        fs::write(&given, &text).unwrap();
        let (given, made_path) = (given.to_str().unwrap(), made.to_str().unwrap());
        let key = self.private.to_str().unwrap();
        if algorithm == "RS256" {
            openssl(&["dgst", "-sha256", "-sign", key, "-out", made_path, given]);
        } else {
            openssl(&["pkeyutl", "-sign", "-rawin", "-inkey", key, "-in", given, "-out", made_path]);
        }
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(fs::read(&made).unwrap()))
    }
}

fn tokens_of_configured_keys_are_taken_and_no_key_is_used_for_another_algorithm() {
    let directory = scratch().join("token-keys");
    fs::create_dir_all(&directory).unwrap();
    let rsa = Pair::make(&directory, "rsa", &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]);
    let edwards = Pair::make(&directory, "ed25519", &["-algorithm", "ED25519"]);
    let strange = Pair::make(&directory, "strange", &["-algorithm", "ED25519"]);
    let config = format!(
        "[[token_keys]]\nalgorithm = \"RS256\"\nfile = \"{}\"\n\n[[token_keys]]\nalgorithm = \"EdDSA\"\nfile = \"{}\"\ndomains = [\"ci\"]\n",
        rsa.public.display(),
        edwards.public.display()
    );
    let daemon = Daemon::start(Options::room("token-keys-room").config(&config));
    let room = "token-keys-room";
    for (pair, algorithm) in [(&rsa, "RS256"), (&edwards, "EdDSA")] {
        assert_eq!(v2(&daemon, &pair.sign(algorithm, &claims(room))), 200, "{algorithm}");
        assert_eq!(v2(&daemon, &pair.sign(algorithm, &claims("elsewhere"))), 401, "{algorithm}");
        let mut late = claims(room);
        late["exp"] = (now() - 5).into();
        assert_eq!(v2(&daemon, &pair.sign(algorithm, &late)), 401, "{algorithm}");
        // The owner of the key vouches for participants, and for nothing that the room itself vouches for.
        for grant in ["service", "build"] {
            let mut marked = claims(room);
            marked["grants"].as_array_mut().unwrap().push(json!({"name": grant, "scope": "4f8e7k2m9x1c"}));
            assert_eq!(v2(&daemon, &pair.sign(algorithm, &marked)), 401, "{algorithm} {grant}");
        }
        // The key does not put them into the domain of root or of another caller either.
        for (domain, status) in
            [("local", 401), ("caller:ann", 401), ("ci", if algorithm == "EdDSA" { 200 } else { 401 })]
        {
            let mut claimed = claims(room);
            claimed["grants"].as_array_mut().unwrap().push(json!({"name": "domain", "scope": domain}));
            assert_eq!(v2(&daemon, &pair.sign(algorithm, &claimed)), status, "{algorithm} {domain}");
        }
        // The public key is known to everybody, and is no secret that can sign a token.
        let public = fs::read(&pair.public).unwrap();
        for alg in ["HS256", "RS256", "EdDSA"] {
            let forged = signed_with(&public, &json!({"alg": alg}), &claims(room));
            assert_eq!(v2(&daemon, &forged), 401, "{algorithm} as {alg}");
        }
    }
    assert_eq!(v2(&daemon, &strange.sign("EdDSA", &claims(room))), 401);
    assert_eq!(v2(&daemon, &edwards.sign("RS256X", &claims(room))), 401);
    // The room's own tokens remain valid.
    assert_eq!(v2(&daemon, daemon.token()), 200);
    let report = daemon.retire();
    assert!(report.is_empty(), "{report:?}");
    fs::remove_dir_all(&directory).unwrap();
}

fn a_replaced_secret_has_its_grace_time_and_revoked_names_stay_revoked() {
    let daemon = Daemon::start(Options::room("rotation"));
    let agent = daemon.mint(&["--name", "agent", "--scope", "agentDefault"]);
    as_bearer(&daemon, &agent, &["token", "rotate"]).expect_code(3);
    as_bearer(&daemon, &agent, &["token", "revoke", "ann"]).expect_code(3);

    let old = daemon.mint(&["--name", "ann"]);
    let rotated = daemon.hearth_ok(&["token", "rotate", "--grace", "1h", "--json"]).json();
    assert!(rotated["accepted_until"].is_string(), "{rotated}");
    let new = daemon.mint(&["--name", "ann"]);
    assert_eq!((v2(&daemon, &old), v2(&daemon, &new)), (200, 200));
    daemon.kill9();
    daemon.restart();
    assert_eq!((v2(&daemon, &old), v2(&daemon, &new)), (200, 200), "the grace time outlives the daemon");
    daemon.hearth_ok(&["token", "rotate", "--grace", "2s"]);
    let newest = daemon.mint(&["--name", "ann"]);
    assert_eq!((v2(&daemon, &old), v2(&daemon, &new), v2(&daemon, &newest)), (200, 200, 200));
    std::thread::sleep(seconds(3));
    assert_eq!((v2(&daemon, &new), v2(&daemon, &newest)), (401, 200), "the end of the grace time");
    daemon.hearth_ok(&["token", "rotate", "--grace", "0s"]);
    assert_eq!((v2(&daemon, &old), v2(&daemon, &newest)), (401, 401), "no grace at all");

    daemon.hearth(&["token", "rotate", "--grace", "9999d"]).expect_code(2).says(&["`9999d`", "at most 30d"]);

    let bob = daemon.mint(&["--name", "bob"]);
    let ann = daemon.mint(&["--name", "ann"]);
    daemon.hearth_ok(&["token", "revoke", "ann"]);
    for (name, warned) in [("ann", false), ("agent", false), ("anne", true), ("service:4f8e7k2m9x1c", true)] {
        let revoked = daemon.hearth_ok(&["token", "revoke", name]);
        assert_eq!(revoked.stderr.contains("warning: "), warned, "{name}: {}", revoked.stderr);
    }
    let after = daemon.mint(&["--name", "ann"]);
    let stand = || (v2(&daemon, &ann), v2(&daemon, &after), v2(&daemon, &bob));
    assert_eq!(stand(), (401, 200, 200));
    as_bearer(&daemon, &ann, &["builds", "list"]).expect_code(3).says(&["`ann`", "revoked"]);
    daemon.kill9();
    daemon.restart();
    assert_eq!(stand(), (401, 200, 200));
    let listed = daemon.hearth_ok(&["token", "revoked", "--json"]).json();
    let of_ann = listed.as_array().unwrap().iter().find(|one| one["name"] == "ann").expect("Ann");
    assert_eq!(of_ann["revoked_by"], "uid:0", "{listed}");

    // The audit trail contains all of it, and no token.
    let trail = daemon.hearth_ok(&["audit", "--json", "--action", "system."]);
    let records = trail.json();
    let of = |action: &str| {
        let records = records.as_array().unwrap().iter();
        records.filter(|record| record["action"] == action).cloned().collect::<Vec<_>>()
    };
    assert_eq!(of("System.RotateTokenSecret").iter().filter(|one| one["outcome"] == "done").count(), 3);
    let revoked = of("System.RevokeTokens");
    assert!(revoked.iter().any(|one| one["caller"] == "agent" && one["outcome"] == "denied"), "{revoked:?}");
    let done = revoked.iter().find(|one| one["outcome"] == "done").unwrap();
    assert_eq!((&done["object"], &done["source"]), (&json!("tokens of ann"), &json!("unix:uid=0")));
    for token in [&agent, &old, &new, &ann, &after] {
        assert!(!trail.stdout.contains(token.as_str()));
    }
}
