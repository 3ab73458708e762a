use super::*;

#[test]
fn a_command_is_a_json_list_or_words() {
    let words = |text: &str| parse_command(text).unwrap();
    assert_eq!(words(r#"["/bin/sh", "-c", "a b"]"#), ["/bin/sh", "-c", "a b"]);
    assert_eq!(words("python -m  http.server 80"), ["python", "-m", "http.server", "80"]);
    assert_eq!(
        words(r#"sh -c 'echo "$HOME" && x' "a\"b" c\ d '' e"f"g"#),
        ["sh", "-c", r#"echo "$HOME" && x"#, "a\"b", "c d", "", "efg"]
    );
    assert_eq!(words(""), [""; 0]);
    assert_eq!(words("[]"), [""; 0]);
    for bad in ["[1]", "[\"a\"", "a 'b", "\"", "[ -f x ]"] {
        assert!(parse_command(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_platform_is_parsed_and_printed() {
    for (text, shown) in [
        ("amd64", "linux/amd64"),
        ("x86_64", "linux/amd64"),
        ("linux/arm/v7", "linux/arm/v7"),
        ("arm64/v8", "linux/arm64"),
        ("aarch64", "linux/arm64"),
    ] {
        assert_eq!(text.parse::<Platform>().unwrap().to_string(), shown);
    }
    for bad in ["", "linux", "windows/amd64", "AMD64", "arm/", "a/b/c"] {
        assert!(bad.parse::<Platform>().is_err(), "{bad}");
    }
}

#[test]
fn a_variant_counts_only_where_both_sides_name_one() {
    let serves = |have: &str, want: &str| have.parse::<Platform>().unwrap().satisfies(&want.parse().unwrap());
    assert!(serves("arm/v7", "arm/v7") && serves("arm/v7", "arm") && serves("arm64/v8", "arm64"));
    assert!(!serves("arm/v6", "arm/v7") && !serves("amd64", "arm64"));
}

#[test]
fn an_image_without_layers_as_go_writes_it_is_read() {
    let manifest: Manifest = serde_json::from_str(concat!(
        r#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"#,
        r#""sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":2},"layers":null}"#
    ))
    .unwrap();
    assert!(manifest.layers.is_empty());
    let config: ImageConfig = serde_json::from_str(
        r#"{"architecture":"amd64","os":"linux","config":null,"rootfs":{"type":"layers","diff_ids":null},"history":null}"#,
    )
    .unwrap();
    assert!(config.rootfs.diff_ids.is_empty() && config.history.is_empty());
}

#[test]
fn what_a_config_declares_beyond_our_fields_is_kept() {
    let text = concat!(
        r#"{"architecture":"arm","os":"linux","variant":"v7","config":{"Env":["A=1"],"#,
        r#""Healthcheck":{"Test":["CMD","x"]},"StopSignal":"SIGINT"},"#,
        r#""rootfs":{"type":"layers","diff_ids":[]},"history":[],"author":"someone"}"#
    );
    let config: ImageConfig = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::to_string(&config).unwrap(), text);
}
