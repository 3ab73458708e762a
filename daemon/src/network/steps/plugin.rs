//! hearthd as a CNI plugin (CNI specification 1.0.0): BuildKit runs it for each namespace of a step.
//!
//! The plugin itself configures nothing: it passes the namespace to the daemon, which alone knows all addresses.
//! BuildKit also requires a plugin named `loopback`; the loopback interface is configured together with the rest, so
//! that plugin only answers.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::plugin_protocol::{PluginAnswer, PluginCall, StepInterface, code, send_call};

/// Value of `type` for our plugin in BuildKit's CNI configuration, and name of the program in the plugin directory.
pub(super) const STEP_PLUGIN: &str = "hearth-step";
pub(super) const LOOPBACK_PLUGIN: &str = "loopback";
pub(super) const CNI_VERSION: &str = "1.0.0";
/// Supported versions; their results differ in one field only.
const SUPPORTED: [&str; 4] = ["0.3.0", "0.3.1", "0.4.0", CNI_VERSION];
const MAX_CONFIG: u64 = 1 << 20;

/// Network configuration that BuildKit passes on standard input: our own settings with the keys of CNI.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct PluginConfig {
    #[serde(rename = "cniVersion", default)]
    pub(super) cni_version: String,
    #[serde(default)]
    pub(super) name: String,
    #[serde(rename = "type", default)]
    pub(super) kind: String,
    /// Socket of the daemon; `loopback` has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) socket: Option<PathBuf>,
}

/// CNI error, printed on standard output.
#[derive(Debug, PartialEq, Eq)]
struct PluginError {
    code: u32,
    message: String,
}

impl PluginError {
    fn new(code: u32, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// Answers a CNI call if the process was started for one, and returns its exit code. Must be called before flags are
/// parsed.
pub fn run_plugin() -> Option<ExitCode> {
    let command = std::env::var_os("CNI_COMMAND")?;
    let program = std::env::args_os().next()?;
    let name = Path::new(&program).file_name()?.to_str()?.to_owned();
    if name != STEP_PLUGIN && name != LOOPBACK_PLUGIN {
        return None;
    }
    let mut stdin = Vec::new();
    let read = io::stdin().take(MAX_CONFIG).read_to_end(&mut stdin);
    let outcome = match read {
        Ok(_) => run(&name, &command.to_string_lossy(), &stdin, |name| std::env::var(name).ok()),
        Err(error) => Err(PluginError::new(code::IO, format!("standard input: {error}"))),
    };
    let (text, code) = match outcome {
        Ok(None) => return Some(ExitCode::SUCCESS),
        Ok(Some(result)) => (result, ExitCode::SUCCESS),
        Err(error) => {
            let version = serde_json::from_slice::<PluginConfig>(&stdin).map(|config| config.cni_version);
            let version = version.ok().filter(|version| !version.is_empty());
            let shown = json!({
                "cniVersion": version.as_deref().unwrap_or(CNI_VERSION),
                "code": error.code,
                "msg": error.message,
            });
            (shown, ExitCode::FAILURE)
        }
    };
    // BuildKit reads standard output; if it is closed, nobody is left to report to.
    let _ = writeln!(io::stdout(), "{text}");
    Some(code)
}

fn run(
    name: &str,
    command: &str,
    stdin: &[u8],
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Option<Value>, PluginError> {
    if command == "VERSION" {
        return Ok(Some(json!({ "cniVersion": CNI_VERSION, "supportedVersions": SUPPORTED })));
    }
    let config: PluginConfig = serde_json::from_slice(stdin)
        .map_err(|error| PluginError::new(code::DECODING, format!("network configuration: {error}")))?;
    if !SUPPORTED.contains(&config.cni_version.as_str()) {
        let version = &config.cni_version;
        let message =
            format!("CNI version `{version}` is not supported; supported are {}", SUPPORTED.join(", "));
        return Err(PluginError::new(code::INCOMPATIBLE_VERSION, message));
    }
    let needed = |name: &str| {
        variable(name)
            .filter(|value| !value.is_empty())
            .ok_or_else(|| PluginError::new(code::INVALID_ENVIRONMENT, format!("{name} is not set")))
    };
    let container = needed("CNI_CONTAINERID")?;
    if !matches!(command, "ADD" | "DEL" | "CHECK") {
        let message = format!("CNI_COMMAND `{}` is not known", command.chars().take(50).collect::<String>());
        return Err(PluginError::new(code::INVALID_ENVIRONMENT, message));
    }
    if name == LOOPBACK_PLUGIN {
        return Ok((command == "ADD").then(|| loopback(&config.cni_version)));
    }
    let socket = config.socket.as_deref().ok_or_else(|| {
        PluginError::new(code::INVALID_CONFIG, "the network configuration has no `socket` of the daemon")
    })?;
    let (call, namespace) = match command {
        "ADD" => {
            let path = needed("CNI_NETNS")?;
            let namespace = File::open(&path).map_err(|error| {
                PluginError::new(code::IO, format!("network namespace `{path}`: {error}"))
            })?;
            (PluginCall::Add { container, interface: needed("CNI_IFNAME")? }, Some(namespace))
        }
        "CHECK" => (PluginCall::Check { container }, None),
        _ => (PluginCall::Del { container }, None),
    };
    let answer = send_call(socket, &call, namespace.as_ref().map(|file| file.as_fd()));
    match answer {
        Ok(PluginAnswer::Wired(interface_result)) if command == "ADD" => {
            let interface = needed("CNI_IFNAME")?;
            Ok(Some(result(&config.cni_version, &interface, &needed("CNI_NETNS")?, &interface_result)))
        }
        Ok(PluginAnswer::Wired(_) | PluginAnswer::Done) => Ok(None),
        Ok(PluginAnswer::Failed { code, message }) => Err(PluginError::new(code, message)),
        Err(error) => {
            let message = format!("hearthd at `{}` does not answer: {error}", socket.display());
            Err(PluginError::new(code::TRY_AGAIN, message))
        }
    }
}

fn result(version: &str, interface: &str, namespace: &str, interface_result: &StepInterface) -> Value {
    let mut address = json!({
        "address": format!("{}/32", interface_result.address),
        "gateway": interface_result.gateway,
        "interface": 1,
    });
    if version != CNI_VERSION {
        address["version"] = json!("4");
    }
    json!({
        "cniVersion": version,
        "interfaces": [{ "name": interface_result.outside }, { "name": interface, "sandbox": namespace }],
        "ips": [address],
        "routes": [{ "dst": "0.0.0.0/0", "gw": interface_result.gateway }],
        "dns": {},
    })
}

fn loopback(version: &str) -> Value {
    json!({ "cniVersion": version, "interfaces": [], "ips": [], "dns": {} })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(
        name: &str,
        command: &str,
        stdin: &str,
        environment: &[(&str, &str)],
    ) -> Result<Option<Value>, PluginError> {
        run(name, command, stdin.as_bytes(), |wanted| {
            environment.iter().find(|(name, _)| *name == wanted).map(|(_, value)| (*value).to_owned())
        })
    }

    const CONFIG: &str =
        r#"{"cniVersion":"1.0.0","name":"hearth","type":"hearth-step","socket":"/nowhere/s"}"#;
    const CONTAINER: (&str, &str) = ("CNI_CONTAINERID", "abc");

    #[test]
    fn every_call_that_cannot_be_answered_has_the_code_of_the_specification() {
        let code = |command, stdin: &str, environment: &[(&str, &str)]| {
            outcome(STEP_PLUGIN, command, stdin, environment).unwrap_err().code
        };
        assert_eq!(code("ADD", "no json", &[CONTAINER]), code::DECODING);
        assert_eq!(code("ADD", r#"{"cniVersion":"9.0.0"}"#, &[CONTAINER]), code::INCOMPATIBLE_VERSION);
        assert_eq!(code("ADD", CONFIG, &[]), code::INVALID_ENVIRONMENT);
        assert_eq!(code("ADD", CONFIG, &[CONTAINER]), code::INVALID_ENVIRONMENT);
        assert_eq!(code("GC", CONFIG, &[CONTAINER]), code::INVALID_ENVIRONMENT);
        assert_eq!(code("ADD", CONFIG, &[CONTAINER, ("CNI_NETNS", "/nowhere/n")]), code::IO);
        assert_eq!(code("DEL", r#"{"cniVersion":"1.0.0"}"#, &[CONTAINER]), code::INVALID_CONFIG);
        assert_eq!(code("DEL", CONFIG, &[CONTAINER]), code::TRY_AGAIN);
    }

    #[test]
    fn versions_are_printed_and_loopback_needs_no_daemon() {
        let versions = outcome(STEP_PLUGIN, "VERSION", "", &[]).unwrap().unwrap();
        assert_eq!(versions["supportedVersions"][3], CNI_VERSION);
        let config = r#"{"cniVersion":"0.3.1","name":"cni-loopback","type":"loopback"}"#;
        let added = outcome(LOOPBACK_PLUGIN, "ADD", config, &[CONTAINER]).unwrap().unwrap();
        assert_eq!(added["cniVersion"], "0.3.1");
        assert_eq!(outcome(LOOPBACK_PLUGIN, "DEL", config, &[CONTAINER]).unwrap(), None);
    }

    #[test]
    fn a_result_has_the_address_on_the_inner_end() {
        let interface_result = StepInterface {
            address: "10.1.2.3".parse().unwrap(),
            gateway: "10.1.0.1".parse().unwrap(),
            outside: "hst1".to_owned(),
        };
        let new = result(CNI_VERSION, "eth1", "/n", &interface_result);
        assert_eq!(new["interfaces"][new["ips"][0]["interface"].as_u64().unwrap() as usize]["name"], "eth1");
        assert_eq!(new["ips"][0]["address"], "10.1.2.3/32");
        assert!(new["ips"][0].get("version").is_none());
        assert_eq!(result("0.4.0", "eth1", "/n", &interface_result)["ips"][0]["version"], "4");
    }
}
