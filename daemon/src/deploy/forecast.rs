//! Dry run of a deploy: repeats the plan as if every action succeeded.

use jiff::Timestamp;

use super::plan::{ActualInstance, ActualService, DesiredService, InstanceHealth, InstanceStage, plan};
use crate::model::deploy::DeployAction;
use crate::model::id::InstanceId;

/// Limit for the number of actions, above that of any real plan; stops a plan that does not terminate.
const MAX_STEPS: usize = 100;

/// Returns the actions of a deploy in order, assuming that each succeeds.
pub fn forecast(
    mut desired: DesiredService,
    mut actual: ActualService,
    mut now: Timestamp,
) -> Vec<DeployAction> {
    let mut steps: Vec<DeployAction> = Vec::new();
    while steps.len() < MAX_STEPS {
        let actions = plan(&desired, &actual, now);
        if actions.is_empty() {
            // Operations in progress complete.
            let before = actual.instances.len();
            actual.instances.retain(|instance| instance.stage != InstanceStage::Stopping);
            if actual.instances.len() == before {
                break;
            }
            continue;
        }
        for action in actions {
            apply_action(&action, &mut desired, &mut actual, &mut now);
            steps.push(action);
        }
    }
    steps
}

fn apply_action(
    action: &DeployAction,
    desired: &mut DesiredService,
    actual: &mut ActualService,
    now: &mut Timestamp,
) {
    let set = |actual: &mut ActualService, id: &InstanceId, stage| {
        for instance in actual.instances.iter_mut().filter(|instance| instance.id == *id) {
            instance.stage = stage;
        }
    };
    match action {
        DeployAction::Start { revision, generation } => actual.instances.push(ActualInstance {
            id: InstanceId::random(),
            revision: *revision,
            generation: *generation,
            stage: InstanceStage::Running(InstanceHealth::Unproven { since: *now }),
        }),
        DeployAction::AwaitHealthy { instance, .. } => {
            set(actual, instance, InstanceStage::Running(InstanceHealth::Healthy { since: *now }));
        }
        DeployAction::Settle { until, .. } | DeployAction::Backoff { until } => {
            *now = *until;
        }
        DeployAction::Route { instance, .. } => actual.routed = Some(instance.clone()),
        DeployAction::Unroute => actual.routed = None,
        DeployAction::Abort { instance, .. }
        | DeployAction::Retire { instance, .. }
        | DeployAction::Remove { instance, .. } => {
            set(actual, instance, InstanceStage::Stopping);
        }
        DeployAction::MarkLive { .. } => {
            if let Some(want) = &mut desired.want {
                want.pending = false;
            }
            desired.serving = desired.want.clone();
        }
        DeployAction::MarkFailed { .. } => desired.want = None,
        DeployAction::Forget => *desired = DesiredService { removing: false, want: None, serving: None },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::deploy::plan::RevisionTarget;
    use crate::model::service::DeployStrategy;

    fn lines(desired: DesiredService, actual: ActualService) -> Vec<String> {
        let steps = forecast(desired, actual, Timestamp::UNIX_EPOCH);
        steps.iter().map(ToString::to_string).collect()
    }

    fn running(revision: u32, strategy: DeployStrategy) -> (DesiredService, ActualService) {
        let id = InstanceId::random();
        let old = ActualInstance {
            id: id.clone(),
            revision,
            generation: 0,
            stage: InstanceStage::Running(InstanceHealth::Healthy { since: Timestamp::UNIX_EPOCH }),
        };
        let serving = RevisionTarget {
            revision,
            generation: 0,
            pending: false,
            strategy,
            settle: Duration::from_secs(2),
            start_limit: Duration::from_secs(60),
        };
        let want = RevisionTarget { revision: revision + 1, pending: true, ..serving.clone() };
        let desired = DesiredService { removing: false, want: Some(want), serving: Some(serving) };
        (desired, ActualService { instances: vec![old], routed: Some(id), ..ActualService::default() })
    }

    #[test]
    fn a_rolling_update_switches_before_the_old_one_goes() {
        let (desired, actual) = running(1, DeployStrategy::Rolling);
        assert_eq!(
            lines(desired, actual),
            [
                "start an instance of revision 2",
                "wait until revision 2 is healthy",
                "watch that revision 2 stays healthy",
                "lead the traffic to revision 2",
                "revision 2 is live",
                "drain and stop the instance of revision 1",
            ]
        );
    }

    #[test]
    fn recreate_stops_the_old_one_first() {
        let (desired, actual) = running(1, DeployStrategy::Recreate);
        assert_eq!(
            lines(desired, actual),
            [
                "lead the traffic nowhere",
                "drain and stop the instance of revision 1",
                "start an instance of revision 2",
                "wait until revision 2 is healthy",
                "lead the traffic to revision 2",
                "revision 2 is live",
            ]
        );
    }

    #[test]
    fn a_removal_leaves_nothing() {
        let (mut desired, actual) = running(1, DeployStrategy::Rolling);
        desired.removing = true;
        let expected =
            ["lead the traffic nowhere", "remove the instance of revision 1", "forget the service"];
        assert_eq!(lines(desired, actual), expected);
    }
}
