//! Requests that change the desired state of services. Each is validated completely before anything changes, and is
//! durable when it is answered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tracing::Span;
use tracing::field::Empty;

use super::context::DeployContext;
use super::entry::ServiceEntry;
use super::forecast::forecast;
use super::merge::{self, MergedSpec};
use super::plan::{ActualService, DesiredService};
use super::reconcile::start_loop;
use super::service::{Actor, DeployError, Handle};
use super::share::ServiceBounds;
use crate::access::policy::AccessDenied;
use crate::model::deploy::{AcceptedDeploy, DeployPreview, DeployRequest};
use crate::model::id::ServiceId;
use crate::model::image::PinnedImage;
use crate::model::secret::RegistryCredential;
use crate::model::service::{
    EnvValue, RevisionOutcome, ServiceDomain, ServiceName, ServiceRecord, ServiceRevision, ServiceSpec,
};
use crate::model::share_owner::ShareOwner;
use crate::model::{MountOrigin, MountSource as _, MountTarget, Reference, ServiceMount};

/// Maximum time that a deploy waits for the removal of an earlier service of the same name.
const REMOVAL_LIMIT: Duration = Duration::from_secs(15);

impl Handle {
    /// Creates a new revision of a service, or the service with its first one, and returns at once; [`Handle::watch`]
    /// reports the progress. `given` are credentials for the registries of the images.
    #[tracing::instrument(name = "deploy", skip_all, fields(service.name = Empty, revision = Empty))]
    pub async fn deploy(
        &self,
        request: DeployRequest,
        by: &Actor,
        given: &BTreeMap<String, RegistryCredential>,
    ) -> Result<AcceptedDeploy, DeployError> {
        let prepared = self.prepare_deploy(&request, by, given).await?;
        let PreparedDeploy { entry, mut service, notes, _submitting } = prepared;
        if let Some(next) = service.revision(service.desired) {
            self.shared.ports.mounts.make_sources(&next.spec.mounts).await?;
        }
        let Some(entry) = entry else {
            self.shared.ports.store.put(&service).await?;
            let entry = Arc::new(ServiceEntry::new(service.clone()));
            self.shared.entries.add(Arc::clone(&entry));
            start_loop(&self.shared, entry);
            record_accepted(service.desired);
            return Ok(AcceptedDeploy { revision: service.desired, service, created: true, notes });
        };
        let next = service.revisions.pop();
        let changed = entry.change(&*self.shared.ports.store, |stored| {
            if stored.removing {
                return None;
            }
            push_revision(stored, next?);
            Some(stored.clone())
        });
        let Some(stored) = changed.await? else {
            return Err(DeployError::Removing { name: service.name });
        };
        service = stored;
        self.begin_rollout(&entry, service.desired);
        Ok(AcceptedDeploy { revision: service.desired, service, created: false, notes })
    }

    /// Computes what a deploy would do. Nothing changes, except that an image of a remote registry is fetched into the
    /// room.
    #[tracing::instrument(name = "deploy", skip_all, fields(service.name = Empty))]
    pub async fn dry_run(
        &self,
        request: DeployRequest,
        by: &Actor,
        given: &BTreeMap<String, RegistryCredential>,
    ) -> Result<DeployPreview, DeployError> {
        let PreparedDeploy { entry, service, notes, _submitting } =
            self.prepare_deploy(&request, by, given).await?;
        let created = entry.is_none();
        let actual = entry.map(|entry| entry.state().actual());
        let actual = ActualService {
            start_failed: false,
            not_before: None,
            serving_not_before: None,
            ..actual.unwrap_or_default()
        };
        let actions = forecast(DesiredService::of(&service), actual, Timestamp::now());
        Ok(DeployPreview {
            deployed: AcceptedDeploy { revision: service.desired, service, created, notes },
            actions,
        })
    }

    /// Replaces the instance of the wanted revision, with fresh tokens and secrets.
    pub async fn restart(&self, service: &str, by: &Actor) -> Result<AcceptedDeploy, DeployError> {
        self.restart_permitted(service, |spec| by.may_run(spec)).await
    }

    /// Restarts the services that run with a token, so that each gets a fresh one, and returns their names. They get no
    /// more permissions than they have, so the permissions of the users who deployed them are not checked again.
    pub async fn renew_tokens(&self) -> Vec<(ServiceName, Result<(), DeployError>)> {
        let mut renewed = Vec::new();
        for service in self.list().into_iter().map(|state| state.service) {
            let tokens = |revision: &ServiceRevision| {
                revision.spec.env.values().any(|value| matches!(value, EnvValue::Token { .. }))
            };
            if !service.removing && service.target_revision().is_some_and(tokens) {
                let restarted = self.restart_permitted(service.id.as_str(), |_| Ok(())).await;
                renewed.push((service.name, restarted.map(drop)));
            }
        }
        renewed
    }

    #[tracing::instrument(name = "deploy", skip_all, fields(service.name = Empty, revision = Empty))]
    async fn restart_permitted(
        &self,
        service: &str,
        permit: impl Fn(&ServiceSpec) -> Result<(), AccessDenied>,
    ) -> Result<AcceptedDeploy, DeployError> {
        let entry = self.find_entry(service)?;
        record_service(&entry.name());
        let mut permitted = Ok(());
        let changed = entry.change(&*self.shared.ports.store, |stored| {
            // A failed revision is retried if there is no other.
            let number = match stored.target_revision().map(|revision| revision.number) {
                Some(number) => number,
                None => stored.desired,
            };
            let revision = stored.revision_mut(number)?;
            permitted = permit(&revision.spec);
            permitted.is_ok().then_some(())?;
            revision.generation += 1;
            if matches!(revision.outcome, RevisionOutcome::Failed(_)) {
                revision.outcome = RevisionOutcome::Pending;
            }
            Some((stored.clone(), number))
        });
        let changed = changed.await?;
        permitted?;
        let Some((service, revision)) = changed else {
            return Err(DeployError::NotFound { given: service.to_owned() });
        };
        self.begin_rollout(&entry, revision);
        Ok(AcceptedDeploy { service, revision, created: false, notes: Vec::new() })
    }

    /// Creates a new revision with the specification of an earlier one: `revision`, or the last one that was live
    /// before.
    #[tracing::instrument(name = "deploy", skip_all, fields(service.name = Empty, revision = Empty))]
    pub async fn rollback(
        &self,
        service: &str,
        revision: Option<u32>,
        by: &Actor,
    ) -> Result<AcceptedDeploy, DeployError> {
        let entry = self.find_entry(service)?;
        record_service(&entry.name());
        let _submitting = self.shared.submit_lock.lock().await;
        let current = entry.state().service.clone();
        let earlier = match revision {
            Some(number) => current.revision(number).ok_or_else(|| DeployError::NoRevision {
                name: current.name.clone(),
                revision: number,
                kept: current.revisions.iter().map(|revision| revision.number).collect(),
            })?,
            None => previous_live_revision(&current)
                .ok_or_else(|| DeployError::NoEarlierRevision { name: current.name.clone() })?,
        };
        by.may_run(&earlier.spec)?;
        self.shared.check_domains(&current.name, &earlier.spec)?;
        self.shared.ports.mounts.make_sources(&earlier.spec.mounts).await?;
        let next = next_revision(&current, earlier.spec.clone(), &by.name);
        let notes = vec![format!("revision {} runs what revision {} ran", next.number, earlier.number)];
        let changed = entry.change(&*self.shared.ports.store, |stored| {
            push_revision(stored, next);
            (!stored.removing).then(|| stored.clone())
        });
        let Some(service) = changed.await? else {
            return Err(DeployError::Removing { name: current.name });
        };
        self.begin_rollout(&entry, service.desired);
        Ok(AcceptedDeploy { revision: service.desired, service, created: false, notes })
    }

    /// Stops and removes a service. Returns when it is completely removed, or [`DeployError::Removing`] when that takes
    /// longer than `limit`; the removal then continues. Instances get their stop signal and `grace`; zero kills them at
    /// once.
    #[tracing::instrument(name = "deploy", skip_all, fields(service.name = Empty))]
    pub async fn remove(
        &self,
        service: &str,
        grace: Duration,
        limit: Duration,
        by: &Actor,
    ) -> Result<ServiceRecord, DeployError> {
        let entry = self.find_entry(service)?;
        record_service(&entry.name());
        let mut permitted = Ok(());
        let changed = entry.change(&*self.shared.ports.store, |stored| {
            permitted = by.may_change(stored, "remove");
            permitted.is_ok().then_some(())?;
            entry.state().remove_grace = grace;
            stored.removing = true;
            Some(stored.clone())
        });
        let service = changed.await?;
        permitted?;
        tracing::info!(caller = by.name, "service removal accepted");
        entry.wake.notify_one();
        let gone = tokio::time::timeout(limit, entry.removed.cancelled()).await;
        match (service, gone) {
            (Some(service), Ok(())) => Ok(service),
            _ => Err(DeployError::Removing { name: entry.state().service.name.clone() }),
        }
    }

    /// Removes a domain from its service, which keeps running without it: no new revision is created.
    pub async fn remove_route(&self, domain: &ServiceDomain, by: &Actor) -> Result<ServiceName, DeployError> {
        let _submitting = self.shared.submit_lock.lock().await;
        let holds = |entry: &Arc<ServiceEntry>| entry.state().service.domains().contains(domain);
        let entry = self.shared.entries.all().into_iter().find(holds);
        let entry = entry.ok_or_else(|| DeployError::NoRoute(domain.clone()))?;
        by.may_change(&entry.state().service, &format!("take domain `{domain}` from"))?;
        let changed = entry.change(&*self.shared.ports.store, |stored| {
            let kept = [Some(stored.desired), stored.live];
            for revision in
                stored.revisions.iter_mut().filter(|revision| kept.contains(&Some(revision.number)))
            {
                revision.spec.domains.retain(|other| other != domain);
            }
            Some(stored.name.clone())
        });
        let name = changed.await?;
        self.shared.publish_routes().await;
        name.ok_or_else(|| DeployError::NoRoute(domain.clone()))
    }

    fn begin_rollout(&self, entry: &ServiceEntry, revision: u32) {
        {
            let mut state = entry.state();
            state.begin_progress(revision);
            state.forget_attempts();
        }
        record_accepted(revision);
        entry.wake.notify_one();
    }

    /// Validates a deploy and builds the service to be stored. Its last revision is the new one and the desired one.
    async fn prepare_deploy(
        &self,
        request: &DeployRequest,
        by: &Actor,
        given: &BTreeMap<String, RegistryCredential>,
    ) -> Result<PreparedDeploy<'_>, DeployError> {
        let shared = &self.shared;
        if shared.stop.is_cancelled() {
            return Err(DeployError::ShuttingDown);
        }
        let name = merge::service_name_of(request)?;
        record_service(&name);
        self.wait_until_ready().await?;
        let image = shared.ports.images.resolve(&request.image, &by.name, given).await;
        let image = image.map_err(|fault| DeployError::Image(Box::new(fault)))?;
        let mounted = shared.pin_mounts(&request.mounts, &by.name, given).await?;
        if let Some(entry) =
            shared.entries.by_name(name.as_str()).filter(|entry| entry.state().service.removing)
        {
            let gone = tokio::time::timeout(REMOVAL_LIMIT, entry.removed.cancelled()).await;
            gone.map_err(|_| DeployError::Removing { name: name.clone() })?;
        }
        let submitting = shared.submit_lock.lock().await;
        let entry = shared.entries.by_name(name.as_str());
        let existing = entry.as_ref().map(|entry| entry.state().service.clone());
        let MergedSpec { spec, notes } = merge::merge(existing.as_ref(), request, &image, &mounted)?;
        by.may_run(&spec)?;
        shared.options.check_capabilities(&spec)?;
        shared.check_env(&name, &spec).await?;
        shared.check_domains(&name, &spec)?;
        shared.ports.mounts.check_sources(&spec.mounts).await?;
        let service = match existing {
            Some(mut service) => {
                let next = next_revision(&service, spec, &by.name);
                push_revision(&mut service, next);
                service
            }
            None => {
                new_service(name, spec, &by.name, shared.service_bounds().admit(&shared.entries, &by.name)?)
            }
        };
        Ok(PreparedDeploy { entry, service, notes, _submitting: submitting })
    }
}

/// A validated deploy, ready to be stored. It holds the submit lock.
struct PreparedDeploy<'a> {
    entry: Option<Arc<ServiceEntry>>,
    service: ServiceRecord,
    notes: Vec<String>,
    _submitting: tokio::sync::MutexGuard<'a, ()>,
}

impl DeployContext {
    fn service_bounds(&self) -> ServiceBounds<'_> {
        ServiceBounds {
            owners: &self.options.owners,
            max_per_owner: self.options.max_per_owner,
            addresses: self.ports.network.max_addresses(),
        }
    }

    /// Resolves the images among the mounts of a request, by target. An image that is mounted twice resolves to the
    /// same digest in both places.
    async fn pin_mounts(
        &self,
        mounts: &[ServiceMount],
        caller: &str,
        given: &BTreeMap<String, RegistryCredential>,
    ) -> Result<BTreeMap<MountTarget, PinnedImage>, DeployError> {
        let mut found: BTreeMap<&Reference, PinnedImage> = BTreeMap::new();
        let mut pinned = BTreeMap::new();
        for ServiceMount { source, target, .. } in mounts {
            let MountOrigin::Image(reference) = source.origin() else { continue };
            let image = match found.get(reference) {
                Some(image) => image.clone(),
                None => {
                    let image = self.ports.images.resolve_mounted(reference, caller, given).await;
                    image.map_err(|mut fault| {
                        fault.message = format!("mount at `{target}`: {}", fault.message);
                        DeployError::MountedImage(Box::new(fault))
                    })?
                }
            };
            found.insert(reference, image.clone());
            pinned.insert(target.clone(), image);
        }
        Ok(pinned)
    }

    /// Checks that tokens and secrets of the environment are available, before anything changes.
    async fn check_env(&self, name: &ServiceName, spec: &ServiceSpec) -> Result<(), DeployError> {
        let identity = spec.identity.as_deref().unwrap_or(name.as_str());
        for (variable, value) in &spec.env {
            match value {
                EnvValue::Plain(_) => {}
                EnvValue::Token { scope } => {
                    // The token is discarded.
                    let minted = self.ports.tokens.mint(&ServiceId::random(), identity, scope);
                    minted
                        .map(drop)
                        .map_err(|reason| DeployError::InvalidScope { variable: variable.clone(), reason })?;
                }
                EnvValue::Secret { name } => {
                    let (variable, secret) = (variable.clone(), name.clone());
                    match self.ports.secrets.reveal(name).await {
                        Ok(Some(_)) => {}
                        Ok(None) => return Err(DeployError::UnknownSecret { variable, secret }),
                        Err(reason) => return Err(DeployError::Secret { secret, reason }),
                    }
                }
            }
        }
        Ok(())
    }

    fn check_domains(&self, name: &ServiceName, spec: &ServiceSpec) -> Result<(), DeployError> {
        let mut new: Vec<&ServiceDomain> = spec.domains.iter().collect();
        for entry in self.entries.all() {
            let state = entry.state();
            if state.service.name == *name {
                let own = state.service.domains();
                new.retain(|domain| !own.contains(domain));
                continue;
            }
            let taken = state.service.domains();
            let found = spec.domains.iter().find_map(|domain| {
                taken.iter().find(|taken| taken.overlaps(domain)).map(|taken| (domain, *taken))
            });
            if let Some((domain, taken)) = found {
                let (domain, taken) = (domain.clone(), taken.clone());
                return Err(DeployError::DomainTaken { domain, taken, holder: state.service.name.clone() });
            }
        }
        // A public suffix that the service already had may stay.
        match new.into_iter().find(|domain| domain.is_public_suffix()) {
            Some(domain) => Err(DeployError::PublicSuffix { domain: domain.clone() }),
            None => Ok(()),
        }
    }
}

/// Records the name of the service in the span `deploy` of the caller.
fn record_service(name: &ServiceName) {
    Span::current().record("service.name", tracing::field::display(name));
}

/// Records the revision in the span `deploy` of the caller, and logs that the change is stored.
fn record_accepted(revision: u32) {
    Span::current().record("revision", revision);
    tracing::info!("deploy accepted");
}

fn new_service(name: ServiceName, spec: ServiceSpec, caller: &str, owner: ShareOwner) -> ServiceRecord {
    let (created_at, created_by) = (Timestamp::now(), caller.to_owned());
    let revision = ServiceRevision {
        number: 1,
        created_at,
        created_by: created_by.clone(),
        outcome: RevisionOutcome::Pending,
        generation: 0,
        spec,
    };
    ServiceRecord {
        id: ServiceId::random(),
        name,
        repository: revision.spec.repository.clone(),
        created_at,
        created_by,
        share_owner: Some(owner.0),
        desired: 1,
        live: None,
        revisions: vec![revision],
        removing: false,
    }
}

fn next_revision(service: &ServiceRecord, spec: ServiceSpec, caller: &str) -> ServiceRevision {
    let last = service.revisions.iter().map(|revision| revision.number).max().unwrap_or(0);
    ServiceRevision {
        number: last + 1,
        spec,
        created_at: Timestamp::now(),
        created_by: caller.to_owned(),
        outcome: RevisionOutcome::Pending,
        generation: 0,
    }
}

/// Appends a revision and makes it the desired one.
fn push_revision(service: &mut ServiceRecord, revision: ServiceRevision) {
    let (number, desired) = (revision.number, service.desired);
    if let Some(earlier) = service.revision_mut(desired).filter(|r| r.outcome == RevisionOutcome::Pending) {
        earlier.outcome = RevisionOutcome::Superseded { by: number };
    }
    service.revisions.push(revision);
    service.desired = number;
    service.drop_old_revisions();
}

/// Returns the last revision that was live before the desired one.
fn previous_live_revision(service: &ServiceRecord) -> Option<&ServiceRevision> {
    let was_live = |revision: &&ServiceRevision| matches!(revision.outcome, RevisionOutcome::Live { .. });
    // While the desired revision is not live, the serving one is the one to return to.
    let current = service.revision(service.desired).filter(was_live).map(|_| service.desired);
    service.revisions.iter().rev().filter(was_live).find(|revision| Some(revision.number) != current)
}
