//! Settings of an image as the user gives them: the words of a command, and changes to the base's config.

mod command;
mod flags;

pub use command::{CommandError, parse_command};
pub use flags::{ConfigError, ConfigFlags};

#[cfg(test)]
mod tests;
