//! Images of the room: tags, manifests, and what they are made of.

pub mod port;
