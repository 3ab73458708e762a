//! Commands of `hearth`: one file for each command, with its arguments beside the function that runs
//! it.

mod assignments;
mod audit;
mod base;
mod build;
mod builds;
mod changes;
mod complete;
mod completions;
mod content;
mod context;
mod deploy;
mod explain;
mod images;
mod init;
mod man;
mod overview;
mod pack;
mod registry;
mod room;
mod routes;
mod secrets;
mod services;
mod storage;
mod suggestion;
mod system;
mod token;
mod token_origin;
mod up;
mod views;
mod wait_limit;

use std::ffi::OsString;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, Command, CommandFactory as _, Parser, Subcommand};

use crate::client::{Client, ClientError, DaemonAddress};
use crate::error::{Failure, FailureKind};
use crate::exit;
use crate::interrupt::InterruptListener;
use crate::output;
use crate::rooms::{self, RoomEnvironment, RoomError, RoomFlags, RoomSelection, RoomsFile};
use hearth_proto::error_code::ErrorCode;

/// Packs directories into images, builds images inside a room, and runs them there as services.
///
/// A room is an address and a token. The client finds a daemon on this machine without any setup;
/// `hearth room add` registers other rooms. Data goes to standard output, everything else to standard
/// error. Without a command, `hearth` shows what is in the room.
#[derive(Debug, Parser)]
#[command(name = "hearth", version, after_help = EXAMPLES)]
pub struct CliArguments {
    #[command(flatten)]
    pub globals: GlobalArgs,
    #[command(subcommand)]
    command: Option<CliCommand>,
}

const EXAMPLES: &str = "\
Examples:
  hearth up ./my-app --domain my-app.example.com
      Send a directory to the room, build it there and run it as a service
  hearth build --tag my-app:dev ./my-app
      Send a directory to the room and build its Dockerfile there
  hearth build --tag my-app:dev --mount-room-path apps/my-app
      Build from files that are already in the room
  hearth pack ./my-app -o my-app.oci.tar
      Turn a directory into an OCI archive, without any room
  hearth builds logs 7f3k --tail 50
      The end of a build's log
  hearth deploy --tag my-app:dev --domain my-app.example.com
      Run an image as a service of the room

Exit codes:
  0 done   1 failed   2 usage   3 denied   4 room not reachable   130 interrupted
  A failed build exits with the exit code of its failed step, when it has one, and
  `services exec` with that of its command.";

/// Options that every command accepts.
#[derive(Debug, Clone, Default, Args)]
pub struct GlobalArgs {
    /// Room to use [env: HEARTH_ROOM, MESHAGENT_ROOM; else the current room of `hearth room`]
    #[arg(long, global = true, value_name = "NAME", help_heading = "Room", add = complete::rooms())]
    pub room: Option<String>,
    /// Daemon to use, `unix:///path` or `http://host:port` [env: HEARTH_ADDR]
    #[arg(long, global = true, value_name = "URL", help_heading = "Room")]
    pub addr: Option<String>,
    /// File with the participant token, `-` for standard input [env: HEARTH_TOKEN or MESHAGENT_TOKEN hold the token itself]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Room")]
    pub token_file: Option<PathBuf>,
    /// Print data and errors as JSON on standard output
    #[arg(long, global = true)]
    pub json: bool,
    /// Log what the client does to standard error [env: HEARTH_LOG for a filter such as `hearth=trace`]
    #[arg(short, long, global = true)]
    pub verbose: bool,
}

impl GlobalArgs {
    /// True when the command line itself says which room is meant.
    fn names_a_room(&self) -> bool {
        self.room.is_some() || self.addr.is_some() || self.token_file.is_some()
    }

    fn room_flags(&self) -> RoomFlags {
        RoomFlags { room: self.room.clone(), addr: self.addr.clone(), token_file: self.token_file.clone() }
    }
}

#[derive(Debug, Subcommand)]
enum CliCommand {
    Init(init::InitArgs),
    Up(Box<up::UpArgs>),
    Pack(Box<pack::PackArgs>),
    Build(Box<build::BuildArgs>),
    Deploy(Box<deploy::DeployArgs>),
    /// List, follow, cancel and forget builds
    #[command(subcommand)]
    Builds(builds::BuildsCommand),
    /// Show and control the services of the room: status, logs, restarts, rollbacks
    #[command(subcommand)]
    Services(Box<services::ServicesCommand>),
    /// List and remove the domains that route to services
    #[command(subcommand)]
    Routes(routes::RoutesCommand),
    /// List, set and remove the secrets that services receive as environment variables
    #[command(subcommand)]
    Secrets(secrets::SecretsCommand),
    /// Work with the images in the room's registry
    #[command(subcommand)]
    Images(images::ImagesCommand),
    /// All image commands in one place: `hearth image build` is `hearth build`
    #[command(subcommand)]
    Image(ImageCommand),
    /// List, compare and mount the files that a build would see
    #[command(subcommand)]
    Context(context::ContextCommand),
    /// Work with the files of the room and its project
    #[command(subcommand)]
    Storage(storage::StorageCommand),
    /// Manage the rooms that this client knows
    #[command(subcommand)]
    Room(room::RoomCommand),
    /// Make, rotate and revoke participant tokens
    #[command(subcommand)]
    Token(token::TokenCommand),
    Audit(audit::AuditArgs),
    /// Show whether the room is ready: its daemon and the components it needs
    Doctor {
        /// Verify all images that the room stores, and quarantine damaged content; needs the `admin` grant
        #[arg(long)]
        verify: bool,
    },
    /// Inspect the daemon of the room; without a subcommand the same as `doctor`
    System {
        #[command(subcommand)]
        command: Option<system::SystemCommand>,
    },
    Explain(explain::ExplainArgs),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    Pack(Box<pack::PackArgs>),
    Build(Box<build::BuildArgs>),
    Deploy(Box<deploy::DeployArgs>),
    #[command(flatten)]
    Images(images::ImagesCommand),
}

/// Outcome of parsing a command line that names no command to run: a help request or an error.
#[derive(Debug)]
pub struct CliParseError {
    error: clap::Error,
    json: bool,
}

impl CliParseError {
    /// Prints the help text or the error, and returns the exit code.
    pub fn report(&self) -> ExitCode {
        let shown = self.error.render().to_string();
        let shown = shown.trim_end();
        if !self.error.use_stderr() {
            let printed = match self.error.kind() {
                ErrorKind::DisplayVersion if self.json => {
                    output::json(&serde_json::json!({"version": env!("CARGO_PKG_VERSION")}))
                }
                _ if self.json => output::json(&serde_json::json!({"help": shown})),
                _ => output::line(shown),
            };
            return exit::report(printed, false);
        }
        output::note(shown);
        let failure = usage_failure(shown);
        if self.json
            && let Err(error) = exit::print_error_document(&failure)
        {
            tracing::debug!(?error, "failed to print the error");
        }
        ExitCode::from(exit::exit_code(&failure))
    }
}

/// Converts clap's text of a usage error: the error with the names that it lists becomes the message, a tip the hint.
fn usage_failure(shown: &str) -> Failure {
    let is_rest = |line: &&str| line.starts_with("Usage:") || line.starts_with("For more information");
    let lines =
        shown.lines().take_while(|line| !is_rest(line)).map(str::trim).filter(|line| !line.is_empty());
    let (tips, message): (Vec<&str>, Vec<&str>) = lines.partition(|line| line.starts_with("tip: "));
    let message = message.join(" ");
    let failure = Failure::usage(message.strip_prefix("error: ").unwrap_or(&message));
    match tips.first() {
        Some(tip) => failure.hint(tip.trim_start_matches("tip: ")),
        None => failure,
    }
}

/// Answers a shell that asks for completions and ends the process. Returns if none asks.
pub fn complete_for_shell() {
    clap_complete::CompleteEnv::with_factory(CliArguments::command)
        .var(completions::COMPLETION_VARIABLE)
        .bin("hearth")
        .complete();
}

/// Parses the command line.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<CliArguments, CliParseError> {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    // What follows `--` belongs to another program.
    let json = arguments.iter().take_while(|argument| *argument != "--").any(|argument| argument == "--json");
    let words = arguments.iter().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>();
    // Only then is the definition of the command line needed before it is parsed.
    if words.iter().any(|word| word.starts_with("--no-cache=")) {
        build::mark_attached_stages(
            &mut arguments,
            CliArguments::command().get_subcommands().map(Command::get_name),
        );
    }
    CliArguments::try_parse_from(arguments).map_err(|mut error| {
        suggestion::suggest_flag(&mut error, &CliArguments::command(), &words);
        CliParseError { error, json }
    })
}

/// Starts the logging of the client itself, which is silent unless `--verbose` or `HEARTH_LOG` is
/// given.
pub fn start_tracing(verbose: bool) {
    use tracing_subscriber::EnvFilter;
    let filter = match std::env::var("HEARTH_LOG") {
        Ok(filter) if !filter.is_empty() => EnvFilter::new(filter),
        _ if verbose => EnvFilter::new("hearth=debug"),
        _ => return,
    };
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}

/// Runs the command.
pub async fn run(arguments: CliArguments) -> Result<(), Failure> {
    let CliArguments { globals, command } = arguments;
    run_command(command, &globals).await.map_err(|failure| {
        token_origin::name_token_origin(failure, &globals.room_flags(), &RoomEnvironment::from_process())
    })
}

async fn run_command(command: Option<CliCommand>, globals: &GlobalArgs) -> Result<(), Failure> {
    let mut interrupts = InterruptListener::listen()?;
    let Some(command) = command else {
        return interrupts.run_interruptible(Box::pin(overview::run(globals))).await;
    };
    // Ctrl-C has a different effect at each stage of the commands that return here, so they handle it themselves. It
    // cancels all others at any point.
    let work: Pin<Box<dyn Future<Output = Result<(), Failure>> + '_>> = match command {
        CliCommand::Build(args) | CliCommand::Image(ImageCommand::Build(args)) => {
            return Box::pin(build::run(*args, globals, &mut interrupts)).await;
        }
        CliCommand::Deploy(args) | CliCommand::Image(ImageCommand::Deploy(args)) => {
            return Box::pin(deploy::run(*args, globals, &mut interrupts)).await;
        }
        CliCommand::Up(args) => return Box::pin(up::run(*args, globals, &mut interrupts)).await,
        CliCommand::Services(command) => {
            return Box::pin(services::run(*command, globals, &mut interrupts)).await;
        }
        CliCommand::Pack(args) | CliCommand::Image(ImageCommand::Pack(args)) if args.runs_commands() => {
            return Box::pin(build::run(args.into_build()?, globals, &mut interrupts)).await;
        }
        CliCommand::Pack(args) | CliCommand::Image(ImageCommand::Pack(args)) => {
            Box::pin(pack::run(*args, globals))
        }
        CliCommand::Images(command) | CliCommand::Image(ImageCommand::Images(command)) => {
            Box::pin(images::run(command, globals))
        }
        CliCommand::Init(args) => Box::pin(async move { init::run(&args, globals) }),
        CliCommand::Builds(command) => return Box::pin(builds::run(command, globals, &mut interrupts)).await,
        CliCommand::Routes(command) => Box::pin(routes::run(command, globals)),
        CliCommand::Secrets(command) => Box::pin(secrets::run(command, globals)),
        CliCommand::Context(command) => Box::pin(context::run(command, globals)),
        CliCommand::Storage(command) => Box::pin(storage::run(command, globals)),
        CliCommand::Room(command) => Box::pin(room::run(command, globals)),
        CliCommand::Token(command) => Box::pin(token::run(command, globals)),
        CliCommand::Audit(args) => Box::pin(audit::run(args, globals)),
        CliCommand::Doctor { verify } => Box::pin(system::run(verify, globals)),
        CliCommand::System { command: None } => Box::pin(system::run(false, globals)),
        CliCommand::System { command: Some(command) } => Box::pin(system::run_command(command, globals)),
        CliCommand::Explain(args) => Box::pin(async move { explain::run(&args, globals) }),
        CliCommand::Completions(args) => Box::pin(async move { completions::run(&args, globals) }),
        CliCommand::Man(args) => Box::pin(async move { man::run(&args, globals, CliArguments::command()) }),
    };
    interrupts.run_interruptible(work).await
}

/// Connects to the room that the options select, and verifies that the daemon belongs to that room.
async fn connect(globals: &GlobalArgs) -> Result<Client, Failure> {
    let rooms = match RoomsFile::path() {
        Ok(path) => RoomsFile::read(&path)?,
        Err(_) => RoomsFile::default(),
    };
    let selection = rooms::select_room(
        &globals.room_flags(),
        &RoomEnvironment::from_process(),
        &rooms,
        &DaemonAddress::local(),
    )?;
    tracing::debug!(?selection, "selected a room");
    connect_to(&selection, &rooms).await
}

async fn connect_to(selection: &RoomSelection, rooms: &RoomsFile) -> Result<Client, Failure> {
    let address = selection.address.to_string();
    let unknown = |name: &str, local| RoomError::Unknown {
        name: name.to_owned(),
        known: rooms.names_for_message(),
        local,
    };
    let client = match Client::connect(&selection.target()?).await {
        Ok(client) => client,
        // The default socket is our own guess, so the error is the missing choice of a room, not the missing
        // socket.
        Err(ClientError::Unreachable { .. }) if selection.is_fallback && !may_exist(&selection.address) => {
            return Err(match &selection.expected_room {
                Some(name) => unknown(name, format!("no daemon listens on this machine at {address}")),
                None => RoomError::NoRoom { local: address },
            }
            .into());
        }
        Err(error) => return Err(error.into()),
    };
    let Some(name) = &selection.expected_room else { return Ok(client) };
    let found = client.info().await?.room;
    if found == *name {
        return Ok(client);
    }
    if selection.is_fallback {
        return Err(unknown(name, format!("the daemon on this machine is room `{found}`")).into());
    }
    Err(Failure::new(
        FailureKind::Usage,
        ErrorCode::WrongRoom,
        format!("the daemon at {address} is room `{found}`, not `{name}`"),
    )
    .hint(format!("use --room {found}, or leave --room, HEARTH_ROOM and MESHAGENT_ROOM out")))
}

fn may_exist(address: &DaemonAddress) -> bool {
    match address {
        DaemonAddress::Unix(path) => path.exists(),
        DaemonAddress::Tcp(_) => true,
    }
}

#[cfg(test)]
mod tests;
