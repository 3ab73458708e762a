//! Deploys: images of the room that run as its services.

pub mod port;
