//! The build context: the files of a build as one tree, whatever they come from.

pub mod port;
