//! `docs/reference/configuration.md`: the flags of `hearthd` and its configuration file.

use std::fs;

use clap::CommandFactory as _;
use hearthd::config::DaemonFlags;

const HEAD: &str = "\
# Configuration of hearthd

<!-- Made by a test from `daemon/src/config/flags.rs` and `deploy/config/hearthd.toml`. Write it again with
`HEARTH_REGENERATE=1 cargo test -p hearthd --test reference`. -->

A flag wins over its environment variable, which wins over the file. `hearthd --dump-config` prints what is in force.
";

#[test]
fn the_page_is_what_the_flags_and_the_example_file_say() {
    let help = DaemonFlags::command().term_width(100).render_long_help().to_string();
    let help: Vec<&str> = help.lines().map(str::trim_end).collect();
    let file = fs::read_to_string(super::repository().join("deploy/config/hearthd.toml")).unwrap();
    let text = format!(
        "{HEAD}\n## Flags\n\n```text\n{}\n```\n\n## File\n\n```toml\n{}\n```\n",
        help.join("\n").trim_end(),
        file.trim_end()
    );
    super::assert_current("configuration.md", &text);
}
