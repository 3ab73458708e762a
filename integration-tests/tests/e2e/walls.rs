//! Attacks of one caller on another, on the machine or on the room: each must fail, and the work of honest callers must
//! not.
//!
//! Each boundary has one file in `walls/`, with a `group()` or several.

use integration_tests::runner::Group;

#[path = "walls/builders.rs"]
mod builders;
#[path = "walls/content.rs"]
mod content;
#[path = "walls/deployed_images.rs"]
mod deployed_images;
#[path = "walls/disk.rs"]
mod disk;
#[path = "walls/identity.rs"]
mod identity;
#[path = "walls/images.rs"]
mod images;
#[path = "walls/ingress.rs"]
mod ingress;
#[path = "walls/limits.rs"]
mod limits;
#[path = "walls/own_addresses.rs"]
mod own_addresses;
#[path = "walls/policy.rs"]
mod policy;
#[path = "walls/repositories.rs"]
mod repositories;
#[path = "walls/revocation.rs"]
mod revocation;
#[path = "walls/services.rs"]
mod services;
#[path = "walls/steps.rs"]
mod steps;

pub fn groups() -> Vec<Group> {
    let mut groups = vec![
        content::group(),
        images::group(),
        deployed_images::group(),
        revocation::group(),
        repositories::group(),
        own_addresses::group(),
        services::group(),
        steps::group(),
        identity::group(),
        policy::group(),
        ingress::group(),
        disk::group(),
    ];
    groups.extend(builders::groups());
    groups.extend(limits::groups());
    groups
}
