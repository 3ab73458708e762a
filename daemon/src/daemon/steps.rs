//! The network of build steps, for a builder that is ours.

use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::config::Config;
use crate::deploy::port::NetworkError;
use crate::network::steps::{StepNetwork, StepNetworkOptions};

const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// Without it nothing is built, and `/readyz` says what is missing.
pub(super) async fn open(config: &Config) -> Result<Result<StepNetwork, NetworkError>> {
    let plugin = std::env::current_exe().context("path of hearthd")?;
    let options = StepNetworkOptions {
        policy: config.egress(),
        resolvers: config.builds.egress.resolvers.clone(),
        ..StepNetworkOptions::new(config.state_dir.clone(), plugin)
    };
    let opened = StepNetwork::open(options).await;
    if let Err(error) = &opened {
        tracing::error!(%error, "steps of builds cannot have a network; nothing is built");
    }
    Ok(opened)
}

/// After the end of all builders.
pub(super) async fn close(network: StepNetwork) {
    match tokio::time::timeout(CLOSE_LIMIT, network.close()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(%error, "the network of steps is left; the next start takes it away");
        }
        Err(_) => tracing::warn!("the network of steps is left: its end takes too long"),
    }
}
