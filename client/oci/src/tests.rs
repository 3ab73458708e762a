use hearth_value::MountTarget;
use serde_json::json;

use super::*;

#[test]
fn a_platform_is_parsed_and_printed() {
    for (text, shown) in [
        ("amd64", "linux/amd64"),
        ("x86_64", "linux/amd64"),
        ("linux/arm/v7", "linux/arm/v7"),
        ("arm64/v8", "linux/arm64"),
        ("aarch64", "linux/arm64"),
    ] {
        assert_eq!(text.parse::<DeclaredPlatform>().unwrap().to_string(), shown);
    }
    for bad in ["", "linux", "windows/amd64", "AMD64", "arm/", "a/b/c"] {
        assert!(bad.parse::<DeclaredPlatform>().is_err(), "{bad}");
    }
}

#[test]
fn a_variant_counts_only_where_both_sides_name_one() {
    let serves =
        |have: &str, want: &str| have.parse::<DeclaredPlatform>().unwrap().satisfies(&want.parse().unwrap());
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

#[test]
fn udp_ports_and_what_is_no_port_are_not_exposed() {
    let config = json!({"os": "linux", "architecture": "amd64", "config": {
        "ExposedPorts": {"8080/tcp": {}, "53/udp": {}, "80": {}, "0/tcp": {}, "x/tcp": {}, "70000/tcp": {}},
        "Volumes": {"/data": {}, "relative": {}, "/a/../b": {}, "/var/lib/x/": {}}}});
    let config = ImageConfig::parse_unambiguous(config.to_string().as_bytes()).unwrap();
    assert_eq!(config.config.exposed_tcp_ports(), [80, 8080]);
    let volumes = config.config.volume_targets();
    let volumes: Vec<&str> = volumes.iter().map(MountTarget::as_str).collect();
    assert_eq!(volumes, ["/data", "/var/lib/x"]);
    for none in [json!({}), json!({"config": null}), json!({"config": {"ExposedPorts": null}})] {
        let config = ImageConfig::parse_unambiguous(none.to_string().as_bytes()).unwrap();
        assert!(config.config.exposed_tcp_ports().is_empty() && config.config.volume_targets().is_empty());
    }
}
