//! Interpretation of error messages of containerd and runc. Their texts are matched here and nowhere else, since shims and
//! runc give no codes; behind this border only types and error codes decide.

use hearth_proto::status::root_cause_message;

use crate::deploy::port::RuntimeError;
use crate::model::fault::ErrorCode;
use crate::model::id::InstanceId;

/// Reason of a failed call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ContainerdFault {
    /// containerd did not answer; the same call may succeed later.
    #[error("{0}")]
    Unavailable(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    AlreadyExists(String),
    /// The object is in the wrong state, such as a task that is still running.
    #[error("{0}")]
    Precondition(String),
    /// The shim was killed, and containerd has not removed its task yet.
    #[error("{0}")]
    ShimGone(String),
    #[error("no space left on device")]
    DiskFull,
    #[error("{0}")]
    Other(String),
}

/// Error texts of shims, which have no status code, for a task in the wrong state.
const WRONG_STATE: [&str; 2] = ["cannot delete a ", "cannot exec in a "];

impl From<tonic::Status> for ContainerdFault {
    fn from(status: tonic::Status) -> Self {
        let text = root_cause_message(&status);
        let transport = std::error::Error::source(&status).is_some();
        match status.code() {
            _ if text.contains("no space left on device") => Self::DiskFull,
            _ if text.contains("ttrpc: closed") => Self::ShimGone(text),
            _ if WRONG_STATE.iter().any(|words| text.contains(words)) => Self::Precondition(text),
            _ if transport => Self::Unavailable(text),
            tonic::Code::Unavailable | tonic::Code::DeadlineExceeded | tonic::Code::Cancelled => {
                Self::Unavailable(text)
            }
            tonic::Code::NotFound => Self::NotFound(text),
            tonic::Code::AlreadyExists => Self::AlreadyExists(text),
            tonic::Code::FailedPrecondition => Self::Precondition(text),
            _ => Self::Other(text),
        }
    }
}

impl ContainerdFault {
    /// Converts the fault of a call that is not about a specific instance.
    pub fn into_runtime_error(self) -> RuntimeError {
        match self {
            Self::Unavailable(text) | Self::ShimGone(text) => RuntimeError::Unavailable(text),
            Self::DiskFull => RuntimeError::DiskFull,
            Self::NotFound(text)
            | Self::AlreadyExists(text)
            | Self::Precondition(text)
            | Self::Other(text) => RuntimeError::Other(text),
        }
    }

    /// Converts the fault of a call about an instance.
    pub fn into_instance_error(self, instance: &InstanceId) -> RuntimeError {
        match self {
            Self::NotFound(_) => RuntimeError::NotFound(instance.clone()),
            other => other.into_runtime_error(),
        }
    }

    /// Converts the fault of a call that starts a process.
    pub fn into_start_error(self) -> RuntimeError {
        match self {
            Self::Other(text) | Self::NotFound(text) | Self::Precondition(text) => start_error(&text),
            other => other.into_runtime_error(),
        }
    }
}

/// Turns a not-found fault into `None`.
pub(super) fn unless_missing<T>(result: Result<T, ContainerdFault>) -> Result<Option<T>, ContainerdFault> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(ContainerdFault::NotFound(_)) => Ok(None),
        Err(fault) => Err(fault),
    }
}

/// Texts of runc with their error code and meaning; the first match counts.
const KNOWN: [(&str, ErrorCode, &str); 12] = [
    (
        "executable file not found in $PATH",
        ErrorCode::CommandNotFound,
        "the image has no such program in its PATH",
    ),
    ("is a directory", ErrorCode::NotExecutable, "the program is a directory"),
    (
        "exec format error",
        ErrorCode::ExecFormat,
        "the program is for another kind of machine, or is no program",
    ),
    ("chdir to cwd", ErrorCode::WorkdirInvalid, "the working directory cannot be entered"),
    ("error mounting", ErrorCode::MountFailed, "a mount cannot be made"),
    ("unable to start unit", ErrorCode::Cgroup, "a control group cannot be made"),
    ("cgroup configuration", ErrorCode::Cgroup, "a control group cannot be made"),
    // Other causes of a failed mkdir match an earlier entry.
    ("mkdir /", ErrorCode::WorkdirInvalid, "the working directory cannot be made"),
    ("memory.limit_in_bytes", ErrorCode::MemoryLimit, "the memory limit is too small to start in"),
    ("container init was OOM-killed", ErrorCode::MemoryLimit, "the memory limit is too small to start in"),
    ("permission denied", ErrorCode::NotExecutable, "the program is not executable"),
    ("no such file or directory", ErrorCode::CommandNotFound, "the image has no such program"),
];

/// Texts of runc for a process that was killed before it could execute the program. (Lack of memory has its own texts.)
/// Collected from runc 1.1.5 and its shim by killing the process at any time of a start.
const KILLED: [&str; 10] = [
    "error during container init: %!w(<nil>)",
    "init-p: connection reset by peer",
    "init-p: broken pipe",
    "error getting pipe fds for pid",
    "can't get final child's PID from pipe",
    "error waiting for our first child to exit",
    "cannot start a container that has stopped",
    "cannot start an already running container",
    "cannot start a stopped process",
    "cannot start a deleted process",
];

/// Determines why a process could not be started.
fn start_error(text: &str) -> RuntimeError {
    let excerpt = shortened(text);
    if KILLED.iter().any(|words| text.contains(words)) {
        return RuntimeError::Other(format!("the process was killed while it was started: {excerpt}"));
    }
    let known = KNOWN.iter().find(|(words, ..)| text.contains(words));
    match known {
        Some((_, code, meaning)) => {
            RuntimeError::StartFailed { code: *code, message: format!("{meaning}: {excerpt}") }
        }
        None => RuntimeError::StartFailed { code: ErrorCode::StartFailed, message: excerpt },
    }
}

/// Removes the prefixes of runc and the shim from a message.
fn shortened(text: &str) -> String {
    let mut text = text;
    for noise in [
        "failed to create shim task: ",
        "failed to start shim: ",
        "OCI runtime create failed: ",
        "OCI runtime exec failed: ",
        "OCI runtime start failed: ",
        "runc create failed: ",
        "runc did not terminate successfully: exit status 1: ",
        "unable to start container process: ",
        "unable to retrieve OCI runtime error: ",
        "exec failed: ",
    ] {
        if let Some(at) = text.find(noise) {
            text = &text[at + noise.len()..];
        }
    }
    text.trim_end_matches(": unknown").chars().take(1000).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_a_start_failed_has_a_code() {
        let prefix = "failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: ";
        for (said, code) in [
            ("exec: \"nope\": executable file not found in $PATH: unknown", "command_not_found"),
            ("exec: \"/nope\": stat /nope: no such file or directory: unknown", "command_not_found"),
            ("exec: \"/etc/passwd\": permission denied: unknown", "not_executable"),
            ("exec: \"/etc\": is a directory: unknown", "not_executable"),
            ("exec /x: exec format error: unknown", "exec_format"),
            ("chdir to cwd (\"/x\") set in config.json failed: not a directory: unknown", "workdir_invalid"),
            ("error during container init: mkdir /bin/busybox: not a directory: unknown", "workdir_invalid"),
            ("unable to apply cgroup configuration: mkdir /sys/fs/cgroup/x: device busy: unknown", "cgroup"),
            (
                "error during container init: error mounting \"/a\" to rootfs at \"/b\": no such file or directory",
                "mount_failed",
            ),
            ("something new", "start_failed"),
        ] {
            let RuntimeError::StartFailed { code: found, message } = start_error(&format!("{prefix}{said}"))
            else {
                panic!("{said}")
            };
            assert_eq!(found, code, "{said}");
            assert!(!message.contains("shim task") && !message.contains(": unknown"), "{message}");
        }
    }

    #[test]
    fn a_process_that_is_killed_in_its_start_is_no_fault_of_its_image() {
        let prefix = "failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: ";
        for said in [
            "error during container init: %!w(<nil>): unknown",
            "error during container init: read init-p: connection reset by peer: unknown",
            "error during container init: writing syncT \"procRun\": write init-p: broken pipe: unknown",
            "error getting pipe fds for pid 7: readlink /proc/7/fd/0: no such file or directory: unknown",
            "can't get final child's PID from pipe: EOF: unknown",
            "error waiting for our first child to exit: exit status 1: unknown",
        ] {
            let fault = start_error(&format!("{prefix}{said}"));
            let RuntimeError::Other(message) = fault else { panic!("{said}: {fault:?}") };
            assert!(
                message.starts_with("the process was killed") && !message.contains(": unknown"),
                "{message}"
            );
        }
        for said in
            ["cannot start a container that has stopped: unknown", "cannot start a stopped process: unknown"]
        {
            assert!(matches!(start_error(said), RuntimeError::Other(_)), "{said}");
        }
    }

    #[test]
    fn a_task_in_another_state_is_recognised_by_its_text() {
        let fault = |text: &str| ContainerdFault::from(tonic::Status::unknown(text));
        let running = fault("failed to delete task: cannot delete a running process: unknown");
        assert!(matches!(running, ContainerdFault::Precondition(_)));
        let stopped = fault("cannot exec in a stopped state: unknown");
        assert!(matches!(stopped, ContainerdFault::Precondition(_)));
        assert!(matches!(fault("failed to delete task: ttrpc: closed"), ContainerdFault::ShimGone(_)));
    }

    #[test]
    fn a_full_disk_is_recognised_by_its_text() {
        let status = tonic::Status::unknown("failed to copy: write /x: no space left on device");
        assert_eq!(ContainerdFault::from(status), ContainerdFault::DiskFull);
        assert!(matches!(
            ContainerdFault::from(tonic::Status::unavailable("x")),
            ContainerdFault::Unavailable(_)
        ));
    }
}
