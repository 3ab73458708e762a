//! Services, their exclusive domains, and the images that they pin.

mod relocation;

use std::collections::BTreeSet;

use async_trait::async_trait;
use rusqlite::{OptionalExtension as _, Transaction, params};

use super::{StateStore, StateStoreError};
use crate::deploy::port;
use crate::deploy::port::ServiceStore;
use crate::model::service::{ServiceDomain, ServiceName, ServiceRecord};

impl From<StateStoreError> for port::ServiceStoreError {
    fn from(error: StateStoreError) -> Self {
        Self::Database(error.into())
    }
}

#[async_trait]
impl ServiceStore for StateStore {
    async fn services(&self) -> Result<Vec<ServiceRecord>, port::ServiceStoreError> {
        let work = |transaction: &Transaction<'_>| {
            let mut statement = transaction.prepare_cached("SELECT record FROM services ORDER BY name")?;
            let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
            rows.map(|text| Ok(serde_json::from_str(&text?)?)).collect()
        };
        Ok(self.transaction(work).await?)
    }

    async fn put(&self, service: &ServiceRecord) -> Result<(), port::ServiceStoreError> {
        let service = service.clone();
        match self.transaction(move |transaction| put(transaction, &service)).await? {
            PutOutcome::Stored => Ok(()),
            PutOutcome::NameTaken(name) => Err(port::ServiceStoreError::NameTaken(name)),
            PutOutcome::DomainTaken(domain, holder) => {
                Err(port::ServiceStoreError::DomainTaken { domain, holder })
            }
        }
    }

    async fn remove(&self, service: &ServiceRecord) -> Result<(), port::ServiceStoreError> {
        let id = service.id.clone();
        let work = move |transaction: &Transaction<'_>| {
            transaction.execute("DELETE FROM services WHERE id = ?1", [id.as_str()])?;
            Ok(())
        };
        Ok(self.transaction(work).await?)
    }
}

enum PutOutcome {
    Stored,
    NameTaken(ServiceName),
    DomainTaken(ServiceDomain, ServiceName),
}

/// Stores a service. Conflicts are checked before the first write, so that a refusal changes nothing.
fn put(transaction: &Transaction<'_>, service: &ServiceRecord) -> Result<PutOutcome, StateStoreError> {
    let (id, name) = (service.id.as_str(), service.name.as_str());
    let other = transaction
        .prepare_cached("SELECT 1 FROM services WHERE name = ?1 AND id <> ?2")?
        .exists(params![name, id])?;
    if other {
        return Ok(PutOutcome::NameTaken(service.name.clone()));
    }
    let domains = service.domains();
    for domain in &domains {
        let query = "SELECT services.name FROM service_domains JOIN services ON services.id = service
                     WHERE domain = ?1 AND service <> ?2";
        let holder: Option<String> = transaction
            .prepare_cached(query)?
            .query_row(params![domain.as_str(), id], |row| row.get(0))
            .optional()?;
        if let Some(holder) = holder {
            let holder = serde_json::from_value(serde_json::Value::String(holder))?;
            return Ok(PutOutcome::DomainTaken((*domain).clone(), holder));
        }
    }
    transaction
        .prepare_cached(
            "INSERT INTO services (id, name, record) VALUES (?1, ?2, ?3)
             ON CONFLICT (id) DO UPDATE SET name = ?2, record = ?3",
        )?
        .execute(params![id, name, serde_json::to_string(service)?])?;
    for table in ["service_domains", "service_images"] {
        transaction.prepare_cached(&format!("DELETE FROM {table} WHERE service = ?1"))?.execute([id])?;
    }
    let mut insert =
        transaction.prepare_cached("INSERT INTO service_domains (domain, service) VALUES (?1, ?2)")?;
    for domain in domains {
        insert.execute(params![domain.as_str(), id])?;
    }
    let images: BTreeSet<(String, String)> = service
        .revisions
        .iter()
        .flat_map(|revision| revision.spec.images())
        .map(|(repository, digest)| (repository.to_string(), digest.to_string()))
        .collect();
    let mut insert = transaction
        .prepare_cached("INSERT INTO service_images (service, repository, digest) VALUES (?1, ?2, ?3)")?;
    for (repository, digest) in images {
        insert.execute(params![id, repository, digest])?;
    }
    Ok(PutOutcome::Stored)
}

#[cfg(test)]
mod tests;
