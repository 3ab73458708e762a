//! Checks before a solve that the builder can run the steps of other platforms than its own.
//!
//! BuildKit finds out which platforms the kernel can run by running a small program of each, at most every 20 s. It
//! builds without such a handler too, and then each step fails with `exec format error`. A managed builder also finds
//! emulators named `buildkit-qemu-ARCH` in its `PATH`, which it mounts into the steps. An external BuildKit is not
//! checked, since its `PATH` is not known.

use bollard_buildkit_proto::moby::buildkit::v1::ListWorkersRequest;
use hearth_oci::DeclaredPlatform;
use tokio::time::timeout;

use super::{BuildKitClient, unavailable};
use crate::build::port::{PlatformRun, SolveError, SolveRequest};
use crate::buildkit::CALL_LIMIT;
use crate::model::fault::{ErrorCode, Fault, FaultStage};

impl BuildKitClient {
    /// Returns the fault of the first step that this builder cannot run.
    pub(super) async fn emulation_fault(&self, request: &SolveRequest) -> Result<Option<Fault>, SolveError> {
        let runs = &request.foreign_runs;
        // A cache that the build reads may hold the steps that the builder could not run.
        let may_be_cached = !request.spec.cache_from.is_empty();
        if runs.is_empty() || may_be_cached || self.bundles_dir.is_none() {
            return Ok(None);
        }
        let platforms = self.runnable_platforms().await?;
        let search_path = std::env::var_os("PATH").unwrap_or_default();
        let has_emulator = |architecture: &str| {
            let name = format!("buildkit-qemu-{}", qemu_name(architecture));
            std::env::split_paths(&search_path).any(|directory| directory.join(&name).exists())
        };
        let missing = runs.iter().find(|run| !can_run(run, &platforms, has_emulator));
        Ok(missing.map(|run| fault(run, &request.files.dockerfile_name)))
    }

    /// Returns the platforms whose programs the kernel of the builder runs, by itself or with a registered emulator.
    async fn runnable_platforms(&self) -> Result<Vec<DeclaredPlatform>, SolveError> {
        let mut control = self.control.clone();
        let asked = timeout(CALL_LIMIT, control.list_workers(ListWorkersRequest::default())).await;
        let answer = asked
            .map_err(|_| SolveError::Unavailable("BuildKit does not list its workers in time".to_owned()))?
            .map_err(|status| unavailable(&status))?;
        let platforms = answer.into_inner().record.into_iter().flat_map(|worker| worker.platforms);
        let declared = platforms.map(|platform| DeclaredPlatform {
            os: platform.os,
            architecture: platform.architecture,
            variant: Some(platform.variant).filter(|variant| !variant.is_empty()),
        });
        Ok(declared.collect())
    }
}

fn can_run(run: &PlatformRun, platforms: &[DeclaredPlatform], has_emulator: impl Fn(&str) -> bool) -> bool {
    let wanted = run.platform.to_declared();
    platforms.iter().any(|platform| platform.satisfies(&wanted)) || has_emulator(&wanted.architecture)
}

/// Name of an architecture in the names of QEMU's emulators.
fn qemu_name(architecture: &str) -> &str {
    match architecture {
        "arm64" => "aarch64",
        "amd64" => "x86_64",
        "386" => "i386",
        other => other,
    }
}

fn fault(run: &PlatformRun, dockerfile: &str) -> Fault {
    let PlatformRun { platform, excerpt } = run;
    let (line, platform) = (excerpt.start_line, platform.as_str());
    let message =
        format!("line {line}: this step runs programs of {platform}, which this machine cannot run");
    let mut fault = Fault::new(FaultStage::Solve, ErrorCode::EmulationMissing, message);
    fault.dockerfile = format!("/{dockerfile}").parse().ok().map(|path| excerpt.range(&path));
    fault
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::image::Platform;

    #[test]
    fn a_step_needs_the_kernel_or_an_emulator_of_the_builder() {
        let excerpt =
            crate::build::port::DockerfileExcerpt { start_line: 4, end_line: 4, text: "RUN make".to_owned() };
        let run =
            |platform| PlatformRun { platform: Platform::parse(platform).unwrap(), excerpt: excerpt.clone() };
        let kernel = ["linux/amd64", "linux/386", "linux/arm"]
            .map(|text| Platform::parse(text).unwrap().to_declared());
        for (platform, expected) in
            [("linux/386", true), ("linux/arm/v7", true), ("linux/arm64", false), ("linux/s390x", true)]
        {
            let found = can_run(&run(platform), &kernel, |name| name == "s390x");
            assert_eq!(found, expected, "{platform}");
        }
        let fault = fault(&run("linux/arm64"), "Dockerfile");
        assert_eq!(fault.code, ErrorCode::EmulationMissing);
        assert!(fault.message.contains("line 4") && fault.message.contains("linux/arm64"));
        assert_eq!(fault.dockerfile.unwrap().start_line, 4);
    }
}
