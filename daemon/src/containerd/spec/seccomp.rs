//! Seccomp profile: system calls that no instance may make.
//!
//! The profile is a deny list, not an allow list: without CAP_SYS_ADMIN and similar capabilities the kernel itself
//! refuses most dangerous calls. The list has the remaining calls that need no capability and reach deep into the
//! kernel, and those that a capability in a user namespace would open.

use super::types::{SeccompProfile, SyscallArgument, SyscallRule};

const EPERM: i32 = 1;
const ENOSYS: i32 = 38;
const CLONE_NEWUSER: u64 = 0x1000_0000;

const REFUSED: [&str; 58] = [
    // Kernel keyrings are not namespaced.
    "add_key",
    "keyctl",
    "request_key",
    // BPF programs, performance counters and io_uring.
    "bpf",
    "perf_event_open",
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "userfaultfd",
    // Kernel modules, kexec, clocks and power.
    "create_module",
    "delete_module",
    "finit_module",
    "init_module",
    "query_module",
    "get_kernel_syms",
    "kexec_load",
    "kexec_file_load",
    "reboot",
    "clock_settime",
    "clock_settime64",
    "clock_adjtime",
    "clock_adjtime64",
    "settimeofday",
    "stime",
    "adjtimex",
    "syslog",
    "acct",
    "swapon",
    "swapoff",
    "vhangup",
    // Mounts, and file handles that may lead outside.
    "mount",
    "umount",
    "umount2",
    "pivot_root",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "fsopen",
    "fsconfig",
    "fsmount",
    "fspick",
    "open_by_handle_at",
    "quotactl",
    "quotactl_fd",
    "setns",
    // Memory of other processes, and memory placement.
    "kcmp",
    "process_madvise",
    "move_pages",
    "migrate_pages",
    // I/O ports, and obsolete calls.
    "ioperm",
    "iopl",
    "lookup_dcookie",
    "nfsservctl",
    "sysfs",
    "_sysctl",
    "uselib",
    "ustat",
    "vm86",
];

pub(super) fn profile() -> SeccompProfile {
    let refuse = |names: &[&'static str], errno_ret, args| SyscallRule {
        names: names.to_vec(),
        action: "SCMP_ACT_ERRNO",
        errno_ret,
        args,
    };
    // A new user namespace would restore every capability.
    let new_user = |index| SyscallArgument {
        index,
        value: CLONE_NEWUSER,
        value_two: CLONE_NEWUSER,
        op: "SCMP_CMP_MASKED_EQ",
    };
    SeccompProfile {
        default_action: "SCMP_ACT_ALLOW",
        architectures: if cfg!(target_arch = "x86_64") {
            vec!["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
        } else {
            vec!["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
        },
        syscalls: vec![
            refuse(&REFUSED, EPERM, Vec::new()),
            refuse(&["clone", "unshare"], EPERM, vec![new_user(0)]),
            // The flags of clone3 are in memory, where no filter sees them; C libraries fall back to `clone`.
            refuse(&["clone3"], ENOSYS, Vec::new()),
        ],
    }
}
