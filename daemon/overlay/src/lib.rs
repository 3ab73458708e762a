//! A union file system on a directory: a read-only lower tree, and an upper directory that receives every change.
//!
//! ```text
//! kernel -- fuse --> union::OverlayFs -- lower::LowerTree   (whatever the crate above mounts)
//!                                    '-- union::upper       (a directory that holds all changes)
//! ```
//!
//! The crate knows nothing of builds, rooms or images: the lower tree is a trait. [`beneath`] and [`attr`] open and
//! stat files below a directory; the crates above use them as well.

pub mod attr;
pub mod beneath;
pub mod fuse;
pub mod lower;
pub mod union;
