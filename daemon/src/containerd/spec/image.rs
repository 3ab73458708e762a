//! Run settings of an image config (OCI image spec, "Properties").

use crate::model::MountTarget;
use crate::model::image::Platform;

/// User, command, environment and stop signal that an image gives its processes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessDefaults {
    pub user: String,
    pub env: Vec<String>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub workdir: String,
    /// Signal number; SIGTERM if the image names none or an unknown one.
    pub stop_signal: i32,
    /// Paths of the image's `VOLUME`s.
    pub volumes: Vec<MountTarget>,
}

const SIGTERM: i32 = 15;
const SIGRTMIN: i32 = 34;
const SIGRTMAX: i32 = 64;

impl ProcessDefaults {
    pub fn from_config(config: hearth_oci::RunConfig) -> Result<Self, serde_json::Error> {
        let stop_signal = config.stop_signal()?.as_deref().and_then(signal).unwrap_or(SIGTERM);
        let volumes = config.volume_targets();
        Ok(Self {
            user: config.user.unwrap_or_default(),
            env: config.env,
            entrypoint: config.entrypoint.unwrap_or_default(),
            cmd: config.cmd.unwrap_or_default(),
            workdir: config.working_dir.unwrap_or_default(),
            stop_signal,
            volumes,
        })
    }
}

const SIGNALS: [(&str, i32); 31] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// Parses a signal such as `SIGQUIT`, `quit`, `3` or `SIGRTMIN+3`.
fn signal(text: &str) -> Option<i32> {
    let text = text.trim().to_ascii_uppercase();
    if let Ok(number) = text.parse() {
        return (1..=SIGRTMAX).contains(&number).then_some(number);
    }
    let name = text.strip_prefix("SIG").unwrap_or(&text);
    let real_time = |base: i32, offset: &str| {
        let offset = if offset.is_empty() { 0 } else { offset.parse::<i32>().ok()? };
        Some(base + offset).filter(|number| (SIGRTMIN..=SIGRTMAX).contains(number))
    };
    if let Some(offset) = name.strip_prefix("RTMIN") {
        return real_time(SIGRTMIN, offset);
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        return real_time(SIGRTMAX, offset);
    }
    SIGNALS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

/// Returns the reason why an image of this platform does not run on the host, or `None` if it does.
pub fn platform_mismatch(image: Option<&Platform>, host: &Platform) -> Option<String> {
    let image = image?;
    let same =
        image == host || image.as_str().strip_prefix(host.as_str()).is_some_and(|rest| rest.starts_with('/'));
    (!same).then(|| format!("it is for {}, and this machine is {}", image.as_str(), host.as_str()))
}

#[cfg(test)]
mod tests {
    use hearth_oci::ImageConfig;

    use super::*;

    fn defaults(text: &str) -> ProcessDefaults {
        ProcessDefaults::from_config(ImageConfig::parse(text.as_bytes()).unwrap().config).unwrap()
    }

    #[test]
    fn stop_signals_have_names_and_numbers() {
        let of = |text: &str| defaults(&format!(r#"{{"config":{{"StopSignal":"{text}"}}}}"#));
        for (text, number) in [
            ("SIGQUIT", 3),
            ("quit", 3),
            ("10", 10),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("", 15),
            ("SIGNO", 15),
            ("99", 15),
        ] {
            assert_eq!(of(text).stop_signal, number, "{text}");
        }
    }

    #[test]
    fn null_and_missing_are_the_same() {
        let nulls = r#"{"config":{"User":null,"Env":null,"Entrypoint":null,"Cmd":null,"WorkingDir":null}}"#;
        let plain = ProcessDefaults { stop_signal: 15, ..ProcessDefaults::default() };
        for text in [nulls, "{}", r#"{"config":null}"#] {
            assert_eq!(defaults(text), plain);
        }
    }

    #[test]
    fn an_image_runs_on_its_own_platform_only() {
        let platform = |text: &str| Platform::parse(text).unwrap();
        let host = platform("linux/arm64");
        for own in ["linux/arm64", "linux/arm64/v8"] {
            assert_eq!(platform_mismatch(Some(&platform(own)), &host), None);
        }
        assert_eq!(platform_mismatch(None, &host), None);
        assert!(platform_mismatch(Some(&platform("linux/amd64")), &host).unwrap().contains("linux/amd64"));
    }
}
