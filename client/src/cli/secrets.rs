//! `hearth secrets`. A value is read from a file, standard input or the keyboard, never from an
//! argument, which other users of the machine could see.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use jiff::Timestamp;
use serde::Serialize;

use super::changes::change_each;
use super::{GlobalArgs, complete, connect};
use crate::error::Failure;
use crate::terminal::EchoOffGuard;
use crate::{output, task};

#[derive(Debug, Subcommand)]
pub(super) enum SecretsCommand {
    /// Create a secret, or replace the value of an existing one
    ///
    /// The value is standard input, without the line end of its last line. Running services keep the value
    /// they were started with until they are restarted.
    #[command(after_help = "\
Examples:
  printf %s \"$PASSWORD\" | hearth secrets set db-password
  hearth secrets set tls-key --from-file key.pem
  hearth deploy --tag my-app:dev --env-secret DB_PASSWORD=db-password")]
    Set {
        /// Name of the secret
        #[arg(add = complete::secrets())]
        name: String,
        /// Use the exact bytes of this file as the value
        #[arg(long, value_name = "FILE")]
        from_file: Option<PathBuf>,
    },
    /// Show the names of the secrets; values are never shown
    #[command(visible_alias = "list")]
    Ls,
    /// Remove secrets
    Rm {
        /// Names of the secrets
        #[arg(required = true, add = complete::secrets())]
        names: Vec<String>,
    },
}

#[derive(Serialize)]
struct SecretView {
    name: String,
    created_at: Option<String>,
    changed_at: Option<String>,
}

impl From<&hearth_proto::v1::Secret> for SecretView {
    fn from(secret: &hearth_proto::v1::Secret) -> Self {
        let time = |time: &Option<prost_types::Timestamp>| {
            output::timestamp(time.as_ref()).map(|time| time.to_string())
        };
        Self {
            name: secret.name.clone(),
            created_at: time(&secret.created_at),
            changed_at: time(&secret.changed_at),
        }
    }
}

/// Maximum size of a value in bytes; the daemon's own limit.
const MAX_SECRET_BYTES: u64 = 64 << 10;
/// Maximum length in bytes of a line that a Linux terminal passes on; it silently drops the rest.
const MAX_TERMINAL_LINE_BYTES: usize = 4095;

pub(super) async fn run(command: SecretsCommand, globals: &GlobalArgs) -> Result<(), Failure> {
    match command {
        SecretsCommand::Set { name, from_file } => {
            // The name is an argument, so a value written there must be refused before it is sent anywhere.
            if name.contains('=') {
                return Err(Failure::usage("a secret's value is not an argument, which others could see")
                    .hint("hearth secrets set NAME, with the value on standard input or in --from-file"));
            }
            let value = read_value(from_file).await?;
            let set = connect(globals).await?.set_secret(&name, value.into()).await?;
            output::note(&format!("secret {name} is set"));
            if !globals.json {
                return Ok(());
            }
            let set = set.unwrap_or_else(|| hearth_proto::v1::Secret { name, ..Default::default() });
            output::json(&SecretView::from(&set))
        }
        SecretsCommand::Ls => {
            let secrets = connect(globals).await?.list_secrets().await?;
            if globals.json {
                return output::json(&secrets.iter().map(SecretView::from).collect::<Vec<_>>());
            }
            let now = Timestamp::now();
            let row = |secret: &hearth_proto::v1::Secret| {
                vec![
                    output::printable(&secret.name),
                    output::age(secret.changed_at.as_ref(), now),
                    output::age(secret.created_at.as_ref(), now),
                ]
            };
            output::table(&["SECRET", "CHANGED", "CREATED"], &secrets.iter().map(row).collect::<Vec<_>>())
        }
        SecretsCommand::Rm { names } => {
            let client = connect(globals).await?;
            change_each("removed", &names, globals, async |name| {
                let removed = client.remove_secret(name).await?;
                let mut note = format!("removed {name}");
                if !removed.used_by.is_empty() {
                    let services = removed.used_by.join(", ");
                    note += &format!("\nwarning: {services} cannot be started again without it");
                }
                Ok((serde_json::json!({"name": name, "used_by": removed.used_by}), note))
            })
            .await
        }
    }
}

async fn read_value(file: Option<PathBuf>) -> Result<Vec<u8>, Failure> {
    // The guard lives in this function, not in the thread that reads the line: Ctrl-C ends only this
    // function.
    let hidden = (file.is_none() && io::stdin().is_terminal()).then(EchoOffGuard::keyboard);
    if hidden.is_some() {
        // Print the prompt after echo is off, so that a user who types at once does not see the value.
        output::note("Type the value, which is not shown, and press enter:");
    }
    let typed = hidden.is_some();
    let read = task::blocking("secret", move || match file {
        Some(path) => read_file(&path),
        None if typed => typed_line(),
        None => Ok(without_line_end(up_to_limit(io::stdin().lock())?)),
    });
    let value = read.await??;
    drop(hidden);
    if value.is_empty() {
        return Err(Failure::usage("the value is empty"));
    }
    if value.len() as u64 > MAX_SECRET_BYTES {
        return Err(Failure::usage(format!("the value is larger than {} KiB", MAX_SECRET_BYTES >> 10)));
    }
    Ok(value)
}

fn read_file(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::File::open(path)
        .and_then(up_to_limit)
        .map_err(|error| Failure::usage(format!("cannot read `{}`: {error}", path.display())))
}

fn typed_line() -> Result<Vec<u8>, Failure> {
    let mut line = Vec::new();
    io::stdin().lock().take(MAX_SECRET_BYTES + 1).read_until(b'\n', &mut line)?;
    let line = without_line_end(line);
    if line.len() >= MAX_TERMINAL_LINE_BYTES {
        let message =
            format!("a terminal takes {MAX_TERMINAL_LINE_BYTES} bytes of a line and drops the others");
        return Err(Failure::usage(message).hint("give the value with --from-file, or through a pipe"));
    }
    Ok(line)
}

fn up_to_limit(from: impl io::Read) -> io::Result<Vec<u8>> {
    let mut value = Vec::new();
    from.take(MAX_SECRET_BYTES + 1).read_to_end(&mut value)?;
    Ok(value)
}

/// Removes one line end, which `echo` and the enter key add to a value.
fn without_line_end(mut value: Vec<u8>) -> Vec<u8> {
    if value.last() == Some(&b'\n') {
        value.pop();
        if value.last() == Some(&b'\r') {
            value.pop();
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_last_line_is_no_part_of_a_value() {
        for (given, value) in [
            (&b"a"[..], &b"a"[..]),
            (b"a\n", b"a"),
            (b"a\r\n", b"a"),
            (b"a\n\n", b"a\n"),
            (b"-- \nb\n", b"-- \nb"),
            (b"a\r", b"a\r"),
        ] {
            assert_eq!(without_line_end(given.to_vec()), value);
        }
    }

    #[tokio::test]
    async fn a_file_is_the_value_byte_by_byte_and_has_a_limit() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read = || read_value(Some(file.path().to_owned()));
        std::fs::write(file.path(), "a\n").unwrap();
        assert_eq!(read().await.unwrap(), b"a\n");
        std::fs::write(file.path(), vec![b'x'; 65537]).unwrap();
        assert!(read().await.unwrap_err().detail.message.contains("64 KiB"));
        std::fs::write(file.path(), "").unwrap();
        assert!(read().await.unwrap_err().detail.message.contains("empty"));
        assert!(
            read_value(Some("/no/such/file".into()))
                .await
                .unwrap_err()
                .detail
                .message
                .contains("cannot read")
        );
    }
}
