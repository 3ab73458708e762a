//! Loading of the configuration: merges its layers and validates the result.

use std::io;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::{Config, DaemonFlags};

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration file {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("configuration file {path}: {source}")]
    Parse { path: PathBuf, source: Box<toml::de::Error> },
    #[error("configuration: {0}")]
    Value(Box<toml::de::Error>),
    #[error("{key}: {reason}")]
    Invalid { key: &'static str, reason: String },
    #[error("{flag} must be UTF-8")]
    NotUtf8 { flag: &'static str },
    #[error("cannot print the configuration: {source}")]
    Print { source: toml::ser::Error },
}

/// Merges the layers and validates the result.
pub fn load(flags: &DaemonFlags) -> Result<Config, ConfigError> {
    let mut merged = Table::try_from(Config::default()).map_err(|source| ConfigError::Print { source })?;
    if let Some(path) = &flags.config {
        merge(&mut merged, read(path)?);
    }
    merge(&mut merged, flags.layer()?);
    let config: Config = merged.try_into().map_err(|source| ConfigError::Value(Box::new(source)))?;
    validate(&config)?;
    Ok(config)
}

fn read(path: &Path) -> Result<Table, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let parse_error = |source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) };
    let table: Table = text.parse().map_err(parse_error)?;
    // Validated separately first, so that an unknown key is reported with the name of this file.
    let mut alone = Table::try_from(Config::default()).map_err(|source| ConfigError::Print { source })?;
    merge(&mut alone, table.clone());
    alone.try_into::<Config>().map_err(parse_error)?;
    Ok(table)
}

/// Merges `over` into `base`: tables recursively; other values are replaced.
fn merge(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(base)), Value::Table(over)) => merge(base, over),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// Minimum of `receive_bytes`: a single caller may use half of it, twice the largest message of any method.
const MIN_RECEIVE_BYTES: u64 = 32 << 20;

fn validate(config: &Config) -> Result<(), ConfigError> {
    let invalid = |key, reason: &str| Err(ConfigError::Invalid { key, reason: reason.to_owned() });
    if config.room.is_empty() || config.room.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return invalid("room", "a room's name is not empty and has no white space");
    }
    if !config.state_dir.is_absolute() {
        return invalid("state_dir", "must be an absolute path");
    }
    if config.room_registries.is_empty() {
        return invalid("room_registries", "at least one name is needed");
    }
    if let Err(error) = config.mirrors() {
        return invalid("mirrors", &error.to_string());
    }
    if config.registry_credentials.as_ref().is_some_and(|path| !path.is_absolute()) {
        return invalid("registry_credentials", "must be an absolute path");
    }
    if config.token_keys.iter().any(|key| !key.file.is_absolute()) {
        return invalid("token_keys", "`file` must be an absolute path");
    }
    if config.token_keys.iter().any(|key| key.names.0.is_empty()) {
        return invalid("token_keys", "`names` lists nobody whom the key's tokens may name");
    }
    if config.containerd.as_ref().is_some_and(|path| !path.is_absolute()) {
        return invalid("containerd", "must be the absolute path of a socket");
    }
    let files = config.services.certificates.iter().flat_map(|pair| [&pair.certificate, &pair.key]);
    if files.into_iter().any(|path| !path.is_absolute()) {
        return invalid("services.certificates", "must be absolute paths");
    }
    if let Some((one, other)) = config.trust.overlapping_domains() {
        return invalid("trust.domains", &format!("a caller could be in `{one}` and in `{other}`"));
    }
    let connections = &config.connections;
    let counts = [
        connections.api,
        connections.api_per_peer,
        connections.socket,
        connections.socket_per_user,
        connections.ingress,
        connections.ingress_per_peer,
        connections.requests_per_caller,
    ];
    if counts.contains(&0) || connections.idle_seconds == 0 || connections.stall_seconds == 0 {
        return invalid("connections", "every number must be at least 1");
    }
    if connections.receive_bytes < MIN_RECEIVE_BYTES {
        return invalid(
            "connections.receive_bytes",
            "must be at least 33554432, for two of the largest messages",
        );
    }
    if config.audit.max_bytes < 1 << 20 || !(1..=3650).contains(&config.audit.keep_days) {
        return invalid("audit", "`max_bytes` must be 1048576 at least, `keep_days` 1 to 3650");
    }
    if config.builds.concurrency == 0 {
        return invalid("builds.concurrency", "must be at least 1");
    }
    if config.builds.default_timeout_seconds > config.builds.max_timeout_seconds {
        return invalid("builds.default_timeout_seconds", "is above builds.max_timeout_seconds");
    }
    if config
        .buildkit
        .iter()
        .any(|address| !(address.starts_with("unix:///") || address.starts_with("tcp://")))
    {
        return invalid("buildkit", "must be unix:///PATH or tcp://HOST:PORT");
    }
    if config.builder.max_running == Some(0) {
        return invalid("builder.max_running", "must be at least 1");
    }
    if config.builder.step_processes == 0 {
        return invalid("builder.step_processes", "must be at least 1");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn load_with(file: &str, arguments: &[&str]) -> Result<Config, ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hearthd.toml");
        std::fs::write(&path, file).unwrap();
        let mut all = vec!["hearthd", "--config", path.to_str().unwrap()];
        all.extend_from_slice(arguments);
        load(&DaemonFlags::try_parse_from(all).unwrap())
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let config = load_with("room = 'a'\n[builds]\nconcurrency = 9\n", &["--room", "b"]).unwrap();
        assert_eq!(config.room, "b");
        assert_eq!(config.builds.concurrency, 9);
        assert_eq!(config.builds.queue_length, Config::default().builds.queue_length);
    }

    #[test]
    fn mirrors_come_from_the_file_and_from_flags_in_one_spelling_of_the_registry() {
        let file = "[mirrors]\n'docker.io' = ['http://127.0.0.1:1']\n'ghcr.io' = ['https://m.example']\n";
        let flag = ["--registry-mirror", "index.docker.io=http://127.0.0.1:2"];
        let mirrors = load_with(file, &flag).unwrap().mirrors().unwrap();
        let all: Vec<String> = mirrors.iter().map(ToString::to_string).collect();
        assert_eq!(all, ["docker.io=http://127.0.0.1:2", "ghcr.io=https://m.example"]);
    }

    #[test]
    fn an_entry_of_the_list_of_egress_that_is_none_fails_and_is_named() {
        let rules = load_with("[builds.egress]\nallow = ['*.pypi.org', '10.0.0.0/8']\n", &[]).unwrap();
        assert!(rules.egress().allows_name("files.pypi.org") && !rules.egress().is_open());
        let error = load_with("[builds.egress]\nallow = ['https://pypi.org']\n", &[]).unwrap_err();
        assert!(error.to_string().contains("https://pypi.org"), "{error}");
    }

    #[test]
    fn a_typo_in_the_file_fails_and_names_file_and_key() {
        let error = load_with("statedir = '/x'\n", &[]).unwrap_err().to_string();
        assert!(error.contains("hearthd.toml") && error.contains("statedir"), "{error}");
        let error = load_with("[builds]\nconcurency = 1\n", &[]).unwrap_err().to_string();
        assert!(error.contains("concurency"), "{error}");
    }

    #[test]
    fn what_is_dumped_loads_to_the_same() {
        let config = load_with("room = 'x'\n", &["--buildkit", "unix:///b.sock"]).unwrap();
        assert_eq!(load_with(&config.to_toml().unwrap(), &[]).unwrap(), config);
        let several =
            load_with("", &["--buildkit", "tcp://a:1", "--buildkit", "tcp://b:1,tcp://c:1"]).unwrap();
        assert_eq!(several.buildkit, ["tcp://a:1", "tcp://b:1", "tcp://c:1"]);
        assert_eq!(load_with(&several.to_toml().unwrap(), &[]).unwrap(), several);
        assert_eq!(load_with("buildkit = 'tcp://a:1'", &[]).unwrap().buildkit, ["tcp://a:1"]);
    }

    /// Counts the settings that are not tables.
    fn leaves(value: &Value) -> usize {
        match value {
            Value::Table(table) => table.values().map(leaves).sum(),
            _ => 1,
        }
    }

    #[test]
    fn the_example_file_shows_the_defaults() {
        let example = include_str!("../../../deploy/config/hearthd.toml");
        assert_eq!(load_with(example, &[]).unwrap(), Config::default());
        assert_eq!(load_with(&example.replace("#: ", ""), &[]).unwrap(), Config::default());
        let shown = example.matches("#: ").count();
        let mut defaults = Table::try_from(Config::default()).unwrap();
        // In the file these are tables with keys of their own.
        defaults.remove("token_keys");
        let defaults = leaves(&Value::Table(defaults));
        assert_eq!(shown, defaults, "every setting with a default is shown");
    }

    #[test]
    fn values_that_cannot_work_are_refused() {
        for (file, key) in [
            ("room = ''", "room"),
            ("state_dir = 'relative'", "state_dir"),
            ("buildkit = 'localhost:1234'", "buildkit"),
            ("buildkit = ['tcp://a:1', 'b:1']", "buildkit"),
            ("[builder]\nmax_running = 0", "max_running"),
            ("[builder]\nstep_processes = 0", "step_processes"),
            ("room_registries = []", "room_registries"),
            ("registry_credentials = 'relative'", "registry_credentials"),
            ("[mirrors]\n'docker.io' = ['ftp://x']", "mirrors"),
            ("[builds]\nconcurrency = 0", "concurrency"),
            ("[trust]\ndomains = { a = ['x*'], b = ['xy'] }", "trust.domains"),
            ("[trust]\ndomains = { 'a b' = ['x'] }", "trust domain"),
            ("[connections]\napi_per_peer = 0", "connections"),
            ("[connections]\nreceive_bytes = 1000", "receive_bytes"),
            ("containerd = 'relative.sock'", "containerd"),
            ("[services]\nsubnet = '10.0.0.0'", "subnet"),
            ("[services]\nallow_capabilities = ['SYS_ADMIN']", "SYS_ADMIN"),
            ("[services]\ntrusted_proxies = ['10.0.0.0/40']", "10.0.0.0/40"),
            ("[services]\ncertificates = [{ certificate = 'a.pem', key = '/b.pem' }]", "certificates"),
        ] {
            let error = load_with(file, &[]).unwrap_err().to_string();
            assert!(error.contains(key), "{file}: {error}");
        }
    }
}
