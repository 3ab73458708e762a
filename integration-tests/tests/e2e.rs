//! End-to-end tests: real daemons, with a real buildkitd for each; skopeo, umoci, containerd and Python as clients that
//! are independent of Hearth.
//!
//! `cargo test -p integration-tests --test e2e [TEXT]`. A missing component (buildkitd, runc, skopeo, umoci,
//! containerd, the Python environment) is a failure that says so, never a skip: `deploy/setup.sh --tests` installs them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, and clippy does not see that this binary is a test"
)]

use std::process::ExitCode;

use integration_tests::daemon::sweep_scratch;
use integration_tests::runner;

#[path = "e2e/access.rs"]
mod access;
#[path = "e2e/bad_input.rs"]
mod bad_input;
#[path = "e2e/basic_build.rs"]
mod basic_build;
#[path = "e2e/build_checks.rs"]
mod build_checks;
#[path = "e2e/build_context.rs"]
mod build_context;
#[path = "e2e/build_control.rs"]
mod build_control;
#[path = "e2e/build_errors.rs"]
mod build_errors;
#[path = "e2e/build_options.rs"]
mod build_options;
#[path = "e2e/builds.rs"]
mod builds;
#[path = "e2e/caches.rs"]
mod caches;
#[path = "e2e/changing_files.rs"]
mod changing_files;
#[path = "e2e/compare.rs"]
mod compare;
#[path = "e2e/containerd_2.rs"]
mod containerd_2;
#[path = "e2e/context_command.rs"]
mod context_command;
#[path = "e2e/faults.rs"]
mod faults;
#[path = "e2e/first_hour.rs"]
mod first_hour;
#[path = "e2e/full_disk.rs"]
mod full_disk;
#[path = "e2e/layer_forms.rs"]
mod layer_forms;
#[path = "e2e/llb.rs"]
mod llb;
#[path = "e2e/missing_sources.rs"]
mod missing_sources;
#[path = "e2e/observability.rs"]
mod observability;
#[path = "e2e/options.rs"]
mod options;
#[path = "e2e/other_registries.rs"]
mod other_registries;
#[path = "e2e/pack.rs"]
mod pack;
#[path = "e2e/pack_faults.rs"]
mod pack_faults;
#[path = "e2e/pack_readers.rs"]
mod pack_readers;
#[path = "e2e/platforms.rs"]
mod platforms;
#[path = "e2e/provenance.rs"]
mod provenance;
#[path = "e2e/python.rs"]
mod python;
#[path = "e2e/readme.rs"]
mod readme;
#[path = "e2e/registry.rs"]
mod registry;
#[path = "e2e/screens.rs"]
mod screens;
#[path = "e2e/secrets.rs"]
mod secrets;
#[path = "e2e/service_apps.rs"]
mod service_apps;
#[path = "e2e/service_errors.rs"]
mod service_errors;
#[path = "e2e/service_exec.rs"]
mod service_exec;
#[path = "e2e/service_faults.rs"]
mod service_faults;
#[path = "e2e/service_kills.rs"]
mod service_kills;
#[path = "e2e/service_mounts.rs"]
mod service_mounts;
#[path = "e2e/services.rs"]
mod services;
#[path = "e2e/silent_children.rs"]
mod silent_children;
#[path = "e2e/storage.rs"]
mod storage;
#[path = "e2e/upload.rs"]
mod upload;
#[path = "e2e/walls.rs"]
mod walls;
#[path = "e2e/why.rs"]
mod why;

fn main() -> ExitCode {
    let mut groups = vec![
        basic_build::group(),
        build_context::group(),
        compare::group(),
        context_command::group(),
        pack::group(),
        upload::group(),
        pack_readers::group(),
        pack_faults::group(),
        storage::group(),
        first_hour::group(),
        options::group(),
        readme::group(),
        screens::group(),
        registry::group(),
        other_registries::group(),
        access::group(),
        build_options::group(),
        builds::group(),
        build_control::group(),
        why::group(),
        provenance::group(),
        build_errors::group(),
        bad_input::group(),
        layer_forms::group(),
        llb::group(),
        missing_sources::group(),
        changing_files::group(),
        caches::group(),
        build_checks::group(),
        secrets::group(),
        observability::group(),
        platforms::group(),
        python::group(),
        services::group(),
        service_errors::group(),
        service_exec::group(),
        service_apps::group(),
        service_mounts::group(),
        faults::group(),
        full_disk::group(),
        silent_children::group(),
        service_faults::group(),
        service_kills::group(),
        containerd_2::group(),
    ];
    groups.extend(walls::groups());
    runner::main(&groups, sweep_scratch)
}
