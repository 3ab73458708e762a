//! Suggests a flag for one that is not known. clap compares by Jaro similarity, which prefers `--target` to `--tag` for
//! `--tga`; the distance in typing errors comes first.

use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Number of inserted, missing, wrong or swapped letters up to which a flag is suggested.
const MAX_DISTANCE: usize = 2;

/// Adds the flag of the command that is one or two typing errors away to an error about an unknown flag. Without one,
/// the suggestion of clap stays.
pub(super) fn suggest_flag(error: &mut clap::Error, command: &Command, arguments: &[String]) {
    if error.kind() != ErrorKind::UnknownArgument {
        return;
    }
    let Some(ContextValue::String(given)) = error.get(ContextKind::InvalidArg) else { return };
    let given = given.trim_start_matches('-').split('=').next().unwrap_or_default().to_owned();
    // The last subcommand that is named decides which flags there are.
    let mut innermost = command;
    for word in arguments.iter().skip(1).filter(|word| !word.starts_with('-')) {
        match innermost.find_subcommand(word) {
            Some(below) => innermost = below,
            None if innermost.get_subcommands().next().is_none() => break,
            None => {}
        }
    }
    let global = command.get_arguments().filter(|argument| argument.is_global_set());
    let flags = innermost.get_arguments().chain(global).filter(|argument| !argument.is_hide_set());
    let names = flags
        .flat_map(|flag| flag.get_long().into_iter().chain(flag.get_visible_aliases().into_iter().flatten()));
    let distance = |name: &str| strsim::osa_distance(name, &given);
    let nearest = names.min_by_key(|name| distance(name));
    // A short name with many typing errors is another word.
    if let Some(name) = nearest.filter(|name| distance(name) <= MAX_DISTANCE.min(name.len() / 3)) {
        let suggestion = ContextValue::String(format!("--{name}"));
        error.insert(ContextKind::SuggestedArg, suggestion);
    }
}
