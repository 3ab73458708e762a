use std::os::unix::fs::PermissionsExt as _;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::*;
use crate::model::access::NamePatterns;

/// A room whose secret the test knows.
struct Room {
    directory: tempfile::TempDir,
    access: TokenAuthority,
}

impl std::ops::Deref for Room {
    type Target = TokenAuthority;
    fn deref(&self) -> &TokenAuthority {
        &self.access
    }
}

impl Room {
    fn open_again(&self) -> TokenAuthority {
        TokenAuthority::open(&self.access.room, &self.directory.path().join("room.secret")).unwrap()
    }
}

fn access(room: &str, secret: &str) -> Room {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("room.secret");
    std::fs::write(&path, secret_of(secret)).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let access = TokenAuthority::open(room, &path).unwrap();
    Room { directory, access }
}

fn secret_of(word: &str) -> String {
    word.repeat(64)
}

/// Returns a token with any claims, signed with the secret `s`.
fn signed(claims: &serde_json::Value) -> String {
    signed_as(&serde_json::json!({"alg": "HS256", "typ": "JWT"}), claims, secret_of("s").as_bytes())
}

fn signed_as(header: &serde_json::Value, claims: &serde_json::Value, secret: &[u8]) -> String {
    let part = |json: &serde_json::Value| URL_SAFE_NO_PAD.encode(json.to_string());
    let text = format!("{}.{}", part(header), part(claims));
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(ring::hmac::sign(&key, text.as_bytes())))
}

/// Returns the claims of a valid token of room `r`, with a lifetime of one minute, after a change.
fn claims(change: impl FnOnce(&mut serde_json::Value)) -> serde_json::Value {
    let mut claims =
        serde_json::json!({"name": "a", "exp": now() + 60, "grants": [{"name": "room", "scope": "r"}]});
    change(&mut claims);
    claims
}

fn now() -> i64 {
    Timestamp::now().as_second()
}

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn a_minted_token_names_its_caller_and_scope() {
    let access = access("r", "s");
    let (token, expires) = access.mint("ann", "full", HOUR).unwrap();
    assert!(expires > Timestamp::now());
    assert_eq!(access.verify(&token), Ok(Caller::new("ann", ApiScope::full())));
}

#[test]
fn a_token_of_a_service_is_not_taken_for_a_participants() {
    let access = access("r", "s");
    let id = ServiceId::random();
    let token = access.mint_for_service(&id, "ann", "full", HOUR).unwrap();
    assert_eq!(access.verify(&token).unwrap().name, format!("service:{id}"));
    let there = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let (asked, wanted) = (std::sync::Arc::clone(&there), id.to_string());
    let origin = ServiceOrigin { by: "ann".to_owned(), at: Timestamp::now() };
    access.set_service_origins(move |id| {
        (id == wanted && asked.load(std::sync::atomic::Ordering::Relaxed)).then(|| origin.clone())
    });
    assert_eq!(access.verify(&token).unwrap().name, format!("service:{id}"));
    there.store(false, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(access.verify(&token), Err(AccessError::Invalid("its service is gone")));
}

#[test]
fn the_domain_of_a_caller_comes_from_its_token_and_never_from_its_scope() {
    let access = access("r", "s");
    let domain = |token: &str| access.verify(token).unwrap().domain.to_string();
    let (token, _) = access.mint("ann", r#"{"domain": "ci"}"#, HOUR).unwrap();
    assert_eq!(domain(&token), "caller:ann");
    let (token, _) = access.mint_into(Some("ci"), "ann", "full", HOUR).unwrap();
    assert_eq!(domain(&token), "ci");
    let refused = access.mint_into(Some("c i"), "ann", "full", HOUR);
    assert!(matches!(refused, Err(MintError::Domain(_))), "{refused:?}");
    let id = ServiceId::random();
    let token = access.mint_for_service(&id, "web", r#"{"domain": "ci"}"#, HOUR).unwrap();
    assert_eq!(domain(&token), format!("service:{id}"));
    let odd = claims(|claims| {
        let domain = serde_json::json!({"name": "domain", "scope": 7});
        claims["grants"].as_array_mut().unwrap().push(domain);
    });
    assert!(matches!(access.verify(&signed(&odd)), Err(AccessError::Invalid(_))));
}

#[test]
fn the_operator_puts_callers_together() {
    let trust = TrustPolicy {
        domains: [("ci".parse().unwrap(), crate::model::access::NamePatterns(vec!["ci-*".to_owned()]))]
            .into(),
        ..TrustPolicy::default()
    };
    let access = access("r", "s").open_again().with_trust(trust);
    let (token, _) = access.mint("ci-1", "full", HOUR).unwrap();
    assert_eq!(access.verify(&token).unwrap().domain.to_string(), "ci");
    assert_eq!(access.local_caller(0).domain, TrustDomain::local());
}

#[test]
fn tokens_of_another_secret_room_algorithm_or_time_are_refused() {
    let here = access("r", "s");
    let (other_secret, _) = access("r", "x").mint("a", "full", HOUR).unwrap();
    assert!(matches!(here.verify(&other_secret), Err(AccessError::Invalid(_))));
    let (other_room, _) = access("q", "s").mint("a", "full", HOUR).unwrap();
    assert_eq!(here.verify(&other_room), Err(AccessError::OtherRoom { room: "r".to_owned() }));
    let roomless = claims(|claims| claims["grants"] = serde_json::json!([]));
    assert!(matches!(here.verify(&signed(&roomless)), Err(AccessError::OtherRoom { .. })));
    // {"alg":"none"} and {"name":"a","grants":[{"name":"room","scope":"r"}]}, unsigned.
    let unsigned =
        "eyJhbGciOiJub25lIn0.eyJuYW1lIjoiYSIsImdyYW50cyI6W3sibmFtZSI6InJvb20iLCJzY29wZSI6InIifV19.";
    assert!(matches!(here.verify(unsigned), Err(AccessError::Invalid(_))));
    for garbage in ["", "x", "a.b.c", &"x".repeat(100_000)] {
        assert!(matches!(here.verify(garbage), Err(AccessError::Invalid(_))));
    }
}

#[test]
fn a_token_without_an_api_grant_may_do_nothing() {
    let here = access("r", "s");
    let caller = here.verify(&signed(&claims(|_| {}))).unwrap();
    assert_eq!(caller.scope, ApiScope::default());
}

#[test]
fn a_scope_is_a_word_or_json() {
    assert_eq!(parse_scope("agentDefault"), Ok(ApiScope::agent_default()));
    assert_eq!(parse_scope(""), Ok(ApiScope::user_default()));
    let scope = parse_scope(r#"{"containers": {"use_containers": true}}"#).unwrap();
    assert!(scope.containers.unwrap().use_containers);
    assert!(matches!(parse_scope("fulll"), Err(MintError::Scope { .. })));
}

#[test]
fn a_token_is_good_between_its_times_and_must_have_an_end() {
    let here = access("r", "s");
    let refused = |change: &dyn Fn(&mut serde_json::Value)| {
        here.verify(&signed(&claims(|claims| change(claims)))).unwrap_err().to_string()
    };
    assert!(here.verify(&signed(&claims(|claims| claims["nbf"] = (now() - 1).into()))).is_ok());
    assert!(here.verify(&signed(&claims(|claims| claims["exp"] = (now() as f64 + 60.5).into()))).is_ok());
    for (word, change) in [
        (
            "expired",
            &(|claims: &mut serde_json::Value| claims["exp"] = (now() - 1).into()) as &dyn Fn(&mut _),
        ),
        ("nbf", &|claims: &mut serde_json::Value| claims["nbf"] = (now() + 30).into()),
        ("iat", &|claims: &mut serde_json::Value| claims["iat"] = (now() + 3600).into()),
        ("exp", &|claims: &mut serde_json::Value| drop(claims.as_object_mut().unwrap().remove("exp"))),
        ("exp", &|claims: &mut serde_json::Value| claims["exp"] = serde_json::Value::Null),
        ("exp", &|claims: &mut serde_json::Value| claims["exp"] = (now() + 400 * 86400).into()),
        ("exp", &|claims: &mut serde_json::Value| claims["exp"] = i64::MAX.into()),
        ("read", &|claims: &mut serde_json::Value| claims["exp"] = "soon".into()),
    ] {
        let message = refused(change);
        assert!(message.contains(word), "{word}: {message}");
    }
    let at = Timestamp::from_second(1_700_000_000).unwrap();
    let expired = signed(&claims(|claims| claims["exp"] = at.as_second().into()));
    assert_eq!(here.verify(&expired), Err(AccessError::Expired { name: "a".to_owned(), at }));
    // Only a bearer of a correctly signed token learns whose token it was.
    let forged = signed_as(
        &serde_json::json!({"alg": "HS256"}),
        &claims(|claims| claims["exp"] = 1.into()),
        secret_of("x").as_bytes(),
    );
    assert_eq!(here.verify(&forged), Err(AccessError::Invalid("its signature does not match")));
}

#[test]
fn a_header_with_extensions_is_refused() {
    let here = access("r", "s");
    for crit in [serde_json::json!(["exp"]), serde_json::json!([]), serde_json::Value::Null] {
        let header = serde_json::json!({"alg": "HS256", "crit": crit});
        let token = signed_as(&header, &claims(|_| {}), secret_of("s").as_bytes());
        let message = here.verify(&token).unwrap_err().to_string();
        assert!(message.contains("crit"), "{message}");
    }
}

#[test]
fn no_participant_has_the_name_of_a_service_a_build_or_a_user_of_the_machine() {
    let here = access("r", "s");
    let long = "x".repeat(201);
    let reserved =
        ["service:4f8e7k2m9x1c", "build:4f8e7k2m9x1c", "uid:0", "caller:ann", "image mounts of ann"];
    for name in reserved.into_iter().chain(["", "a\nb", &long]) {
        assert!(here.mint(name, "full", HOUR).is_err(), "{name}");
        let token = signed(&claims(|claims| claims["name"] = name.into()));
        assert!(matches!(here.verify(&token), Err(AccessError::Invalid(_))), "{name}");
    }
    // Two services with the same chosen name are two callers, and neither is the participant of that name.
    let [one, other] = [ServiceId::random(), ServiceId::random()]
        .map(|id| here.verify(&here.mint_for_service(&id, "ci-bot", "full", HOUR).unwrap()).unwrap().name);
    assert!(one != other && one != "ci-bot" && one != "service:ci-bot");
    let build = BuildId::random();
    let token = here.sign_for_build(&build, &ApiScope::default(), HOUR).unwrap();
    assert_eq!(here.verify(&token).unwrap().name, format!("build:{build}"));
    // The grant of a service or build must contain a valid id.
    for grant in ["service", "build"] {
        let marked = |scope: serde_json::Value| {
            let grants = serde_json::json!([{"name": "room", "scope": "r"}, {"name": grant, "scope": scope}]);
            here.verify(&signed(&claims(|claims| claims["grants"] = grants)))
        };
        assert!(marked(serde_json::Value::Null).is_err() && marked("x".into()).is_err());
    }
}

#[test]
fn a_secret_that_was_replaced_is_good_for_its_grace_time_across_restarts() {
    let here = access("r", "s");
    let (old, _) = here.mint("ann", "full", HOUR).unwrap();
    here.rotate(HOUR).unwrap();
    let (new, _) = here.mint("ann", "full", HOUR).unwrap();
    for access in [&here.access, &here.open_again()] {
        assert!(access.verify(&old).is_ok() && access.verify(&new).is_ok());
    }
    assert!(matches!(access("r", "s").verify(&new), Err(AccessError::Invalid(_))));
    // Without a grace time, earlier tokens are invalid at once.
    here.rotate(Duration::ZERO).unwrap();
    for access in [&here.access, &here.open_again()] {
        assert!(access.verify(&old).is_err() && access.verify(&new).is_err());
    }
    // After the grace time.
    let (old, _) = here.mint("ann", "full", HOUR).unwrap();
    here.rotate(Duration::from_millis(1)).unwrap();
    std::thread::sleep(Duration::from_millis(5));
    assert!(here.verify(&old).is_err() && here.open_again().verify(&old).is_err());
    assert!(matches!(here.rotate(MAX_GRACE + HOUR), Err(KeyChangeError::Grace)));
    for _ in 0..MAX_EARLIER {
        here.rotate(HOUR).unwrap();
    }
    assert!(matches!(here.rotate(HOUR), Err(KeyChangeError::TooManySecrets)));
    for entry in std::fs::read_dir(here.directory.path()).unwrap() {
        let mode = entry.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[test]
fn tokens_of_a_name_are_revoked_and_those_made_afterwards_are_good() {
    let here = access("r", "s");
    let (old, _) = here.mint("ann", "full", HOUR).unwrap();
    let (other, _) = here.mint("bob", "full", HOUR).unwrap();
    let undated = signed(&claims(|claims| claims["name"] = "ann".into()));
    assert!(here.verify(&undated).is_ok());
    here.revoke("ann", "uid:0").unwrap();
    let (new, _) = here.mint("ann", "full", HOUR).unwrap();
    for access in [&here.access, &here.open_again()] {
        for token in [&old, &undated] {
            assert_eq!(access.verify(token), Err(AccessError::Revoked { name: "ann".to_owned() }));
        }
        assert!(access.verify(&new).is_ok() && access.verify(&other).is_ok());
        let [(name, revocation)] = access.revocations().try_into().unwrap();
        assert_eq!((name.as_str(), revocation.by.as_str()), ("ann", "uid:0"));
    }
    // A rotation keeps all revocations.
    here.rotate(HOUR).unwrap();
    assert!(here.verify(&old).is_err());
    assert!(matches!(here.revoke("", "uid:0"), Err(KeyChangeError::Name)));
}

#[test]
fn a_state_that_cannot_be_read_is_not_taken_for_an_empty_one() {
    let here = access("r", "s");
    here.revoke("ann", "uid:0").unwrap();
    std::fs::write(here.directory.path().join("tokens.json"), "{").unwrap();
    assert!(TokenAuthority::open("r", &here.directory.path().join("room.secret")).is_err());
}

#[test]
fn a_configured_public_key_is_for_its_own_algorithm_and_for_participants_only() {
    use crate::model::TokenAlgorithm::{EdDsa, Rs256};
    use ring::signature::{Ed25519KeyPair, KeyPair as _};
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new()).unwrap();
    let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
    // RFC 8410: bytes before the 32 bytes of a public key.
    let mut der = vec![0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    der.extend_from_slice(pair.public_key().as_ref());
    let text = base64::engine::general_purpose::STANDARD.encode(&der);
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n");
    let here = access("r", "s");
    let file = here.directory.path().join("key.pem");
    std::fs::write(&file, &pem).unwrap();
    let key = |algorithm| {
        let (names, domains) =
            (NamePatterns(vec!["a".to_owned(), "ci-*".to_owned()]), NamePatterns(vec!["ci".to_owned()]));
        [TokenKeyFile { algorithm, file: file.clone(), names, domains }]
    };
    let with_key = here.open_again().with_public_keys(&key(EdDsa)).unwrap();

    let part = |json: &serde_json::Value| URL_SAFE_NO_PAD.encode(json.to_string());
    let sign = |claims: &serde_json::Value| {
        let text = format!("{}.{}", part(&serde_json::json!({"alg": "EdDSA"})), part(claims));
        let signature = URL_SAFE_NO_PAD.encode(pair.sign(text.as_bytes()));
        format!("{text}.{signature}")
    };
    let token = sign(&claims(|_| {}));
    assert_eq!(with_key.verify(&token).unwrap().name, "a");
    assert!(here.verify(&token).is_err(), "a key that is not configured");
    // The public key is public, so it must not be accepted as an HMAC secret.
    for secret in [pem.as_bytes(), &der, pair.public_key().as_ref()] {
        for alg in ["HS256", "EdDSA", "RS256", "HS512", "none"] {
            let forged = signed_as(&serde_json::json!({"alg": alg}), &claims(|_| {}), secret);
            assert!(matches!(with_key.verify(&forged), Err(AccessError::Invalid(_))), "{alg}");
        }
    }
    // The key's owner cannot make tokens of services and builds, nor tokens with their names.
    let id = ServiceId::random();
    for grant in ["service", "build"] {
        let grants = serde_json::json!([
            {"name": "room", "scope": "r"}, {"name": grant, "scope": id.to_string()}
        ]);
        let token = sign(&claims(|claims| claims["grants"] = grants));
        assert!(matches!(with_key.verify(&token), Err(AccessError::Invalid(_))), "{grant}");
    }
    assert!(with_key.verify(&sign(&claims(|claims| claims["name"] = "uid:0".into()))).is_err());
    // The key's owner may only use the participant names, and claim the trust domains, that are listed for it.
    let in_domain = |domain: &str| {
        let grants = serde_json::json!([{"name": "room", "scope": "r"}, {"name": "domain", "scope": domain}]);
        with_key.verify(&sign(&claims(|claims| claims["grants"] = grants)))
    };
    assert_eq!(in_domain("ci").unwrap().domain.to_string(), "ci");
    for domain in ["local", "caller:ann", "service:4f8e7k2m9x1c", "ci2"] {
        let refused = AccessError::ForeignDomain { domain: domain.parse().unwrap() };
        assert_eq!(in_domain(domain), Err(refused));
    }
    let named = |name: &str| with_key.verify(&sign(&claims(|claims| claims["name"] = name.into())));
    assert_eq!(named("ci-1").unwrap().domain, TrustDomain::of_caller("ci-1"));
    assert_eq!(named("ann"), Err(AccessError::ForeignName { name: "ann".to_owned() }));
    // The checks of times are the same.
    assert!(with_key.verify(&sign(&claims(|claims| claims["nbf"] = (now() + 30).into()))).is_err());
    // A file with other content is an error at start.
    let wrong = here.open_again().with_public_keys(&key(Rs256));
    assert!(matches!(wrong, Err(TokenKeyError::Malformed { .. })));
    std::fs::write(&file, "no key").unwrap();
    let wrong = here.open_again().with_public_keys(&key(EdDsa));
    assert!(matches!(wrong, Err(TokenKeyError::Malformed { .. })));
}

#[test]
fn a_revoked_participant_takes_the_services_it_deployed_along_and_a_new_deploy_is_good() {
    let access = access("r", "s");
    let ids: Vec<ServiceId> = (0..4).map(|_| ServiceId::random()).collect();
    let [own, nested, later, others] = ids.clone().try_into().unwrap();
    let at = |seconds: i64| Timestamp::from_second(now() + seconds).unwrap();
    let by = |by: &str, seconds| ServiceOrigin { by: by.to_owned(), at: at(seconds) };
    let origins = std::collections::BTreeMap::from([
        (own.to_string(), by("eve", -60)),
        (nested.to_string(), by(&format!("service:{own}"), -30)),
        (later.to_string(), by("eve", 60)),
        (others.to_string(), by("ann", -60)),
    ]);
    access.set_service_origins(move |id| origins.get(id).cloned());
    let tokens: Vec<String> =
        ids.iter().map(|id| access.mint_for_service(id, "x", "full", HOUR).unwrap()).collect();
    let good = |tokens: &[String]| -> Vec<bool> {
        tokens.iter().map(|token| access.verify(token).is_ok()).collect()
    };
    assert_eq!(good(&tokens), [true; 4]);
    access.revoke("eve", "op").unwrap();
    assert_eq!(good(&tokens), [false, false, true, true]);
    // A restarted instance gets a token that is no more valid.
    let again = access.mint_for_service(&own, "x", "full", HOUR).unwrap();
    let refused = access.verify(&again).unwrap_err();
    assert!(matches!(&refused, AccessError::CreatorRevoked { creator, .. } if creator == "eve"), "{refused}");
}

#[test]
fn a_kind_of_caller_without_an_id_is_not_revoked() {
    let access = access("r", "s");
    for name in ["service:", "build:", "uid:"] {
        assert!(matches!(access.revoke(name, "op"), Err(KeyChangeError::Name)), "{name}");
    }
    assert!(access.revocations().is_empty());
}

#[tokio::test]
async fn a_call_lasts_as_long_as_its_token_is_good() {
    let access = access("r", "s");
    let begin = |name: &str, ttl| access.track_call(access.mint(name, "full", ttl).unwrap().0);
    let (eve, ann, over) = (begin("eve", HOUR), begin("ann", HOUR), begin("bob", HOUR));
    assert_eq!(access.end_invalid_calls(), 0);
    drop(over);
    access.revoke("eve", "op").unwrap();
    access.revoke("bob", "op").unwrap();
    access.keys_changed().await;
    assert_eq!(access.end_invalid_calls(), 1);
    assert_eq!(eve.ended().await, AccessError::Revoked { name: "eve".to_owned() });
    let short = begin("cat", Duration::ZERO);
    assert_eq!(access.end_invalid_calls(), 1);
    assert!(matches!(short.ended().await, AccessError::Expired { .. }));
    let running = tokio::time::timeout(Duration::from_millis(20), ann.ended()).await;
    assert!(running.is_err(), "{running:?}");
}
