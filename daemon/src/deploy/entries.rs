//! Table of the services, by id.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::entry::ServiceEntry;
use crate::model::id::ServiceId;

/// The entries of all services. Its lock is held only for the time of a lookup.
#[derive(Default)]
pub(super) struct ServiceEntries(Mutex<BTreeMap<ServiceId, Arc<ServiceEntry>>>);

impl ServiceEntries {
    pub(super) fn all(&self) -> Vec<Arc<ServiceEntry>> {
        self.0.lock().values().cloned().collect()
    }

    pub(super) fn add(&self, entry: Arc<ServiceEntry>) {
        self.0.lock().insert(entry.id.clone(), entry);
    }

    pub(super) fn remove(&self, id: &ServiceId) {
        self.0.lock().remove(id);
    }

    pub(super) fn get(&self, id: &ServiceId) -> Option<Arc<ServiceEntry>> {
        self.0.lock().get(id).cloned()
    }

    pub(super) fn by_name(&self, name: &str) -> Option<Arc<ServiceEntry>> {
        self.0.lock().values().find(|entry| entry.state().service.name.as_str() == name).cloned()
    }

    /// Finds a service by its id or its name.
    pub(super) fn find(&self, given: &str) -> Option<Arc<ServiceEntry>> {
        let by_id = given.parse::<ServiceId>().ok().and_then(|id| self.get(&id));
        by_id.or_else(|| self.by_name(given))
    }
}
