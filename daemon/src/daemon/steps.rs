//! Network of build steps, for managed builders.

use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::config::Config;
use crate::deploy::port::NetworkError;
use crate::network::steps::{StepNetwork, StepNetworkOptions};

const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// Opens the network of steps. Without it nothing is built, and `/readyz` reports what is missing.
pub(super) async fn open(config: &Config) -> Result<Result<StepNetwork, NetworkError>> {
    let plugin = std::env::current_exe().context("path of hearthd")?;
    let options = StepNetworkOptions {
        policy: config.egress(),
        resolvers: config.builds.egress.resolvers.clone(),
        ..StepNetworkOptions::new(config.state_dir.clone(), plugin)
    };
    let opened = StepNetwork::open(options).await;
    if let Err(error) = &opened {
        tracing::error!(%error, "failed to open the step network; builds cannot run");
    }
    Ok(opened)
}

/// Removes the network of steps; called after all builders have ended.
pub(super) async fn close(network: StepNetwork) {
    match tokio::time::timeout(CLOSE_LIMIT, network.close()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(%error, "failed to remove the step network; the next start removes it");
        }
        Err(_) => tracing::warn!("failed to remove the step network in time; the next start removes it"),
    }
}
