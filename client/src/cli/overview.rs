//! `hearth` without a command: what is in the room, or the help where no room can be reached.

use std::time::Duration;

use clap::CommandFactory as _;
use hearth_proto::v1::{Build, GetInfoResponse, ListBuildsRequest, Service};
use jiff::{Timestamp, tz::TimeZone};
use serde::Serialize;

use super::services::ServiceView;
use super::system::UsageView;
use super::views::BuildView;
use super::{CliArguments, GlobalArgs, builds, connect, services};
use crate::client::{Client, ClientError};
use crate::error::{Failure, FailureKind};
use crate::output;

/// Time limit of the first answer; without one the help is shown.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// Time limit of everything else.
const READ_LIMIT: Duration = Duration::from_secs(5);
/// Maximum number of builds that are read, and of those that are shown as text.
const MAX_BUILDS: usize = 200;
const MAX_SHOWN_BUILDS: usize = 10;

/// The parts of the overview: the room's builds of today, its services and its disk usage. A part that the caller may
/// not see is `None`.
struct Overview {
    room: GetInfoResponse,
    address: String,
    /// Builds that were submitted today, newest first.
    builds: Option<Vec<Build>>,
    services: Option<Vec<Service>>,
    disk: Option<UsageView>,
}

#[derive(Serialize)]
struct OverviewView<'a> {
    room: &'a str,
    address: &'a str,
    version: &'a str,
    ready: bool,
    builds: Option<Vec<BuildView>>,
    services: Option<Vec<ServiceView>>,
    disk: Option<&'a UsageView>,
}

pub(super) async fn run(globals: &GlobalArgs) -> Result<(), Failure> {
    let first = async {
        let client = connect(globals).await?;
        let room = client.info().await?;
        Ok((client, room))
    };
    let (client, room) = match within(ANSWER_LIMIT, Box::pin(first)).await {
        Ok(found) => found,
        // A room that was asked for, and a program, get the error.
        Err(failure) if globals.json || globals.names_a_room() => return Err(failure),
        Err(failure) => return Err(help(&failure)),
    };
    let overview = within(READ_LIMIT, Box::pin(Overview::read(&client, room))).await?;
    if globals.json { output::json(&overview.view()) } else { overview.print() }
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
        Err(Failure::from(ClientError::Unreachable {
            address: "the room".to_owned(),
            reason: format!("it did not answer within {} s", limit.as_secs()),
        }))
    })
}

/// Prints the help, and below it why there is no overview if a room is configured. Returns the failure that has the
/// exit code of a missing command and no message of its own.
fn help(failure: &Failure) -> Failure {
    let mut text = CliArguments::command().render_help().to_string();
    if failure.kind != FailureKind::Usage {
        text += &format!("\n\nThe room is not shown: {}", output::printable(&failure.detail.message));
    }
    output::note(text.trim_end());
    Failure::program_exited(2)
}

impl Overview {
    async fn read(client: &Client, room: GetInfoResponse) -> Result<Self, Failure> {
        let (builds, services, disk) = tokio::join!(
            client.list_builds(ListBuildsRequest::default(), MAX_BUILDS),
            client.list_services(),
            client.disk_usage(),
        );
        let mut builds = permitted(builds)?;
        if let Some(builds) = &mut builds {
            let start = start_of_day(Timestamp::now());
            builds.retain(|build| output::timestamp(build.created_at.as_ref()) >= Some(start));
        }
        let (services, disk) = (permitted(services)?, permitted(disk)?.map(UsageView::from));
        Ok(Self { room, address: client.address().to_owned(), builds, services, disk })
    }

    fn view(&self) -> OverviewView<'_> {
        OverviewView {
            room: &self.room.room,
            address: &self.address,
            version: &self.room.version,
            ready: self.room.ready,
            builds: self.builds.as_ref().map(|builds| builds.iter().map(BuildView::from).collect()),
            services: self.services.as_ref().map(|services| services.iter().map(ServiceView::from).collect()),
            disk: self.disk.as_ref(),
        }
    }

    fn print(self) -> Result<(), Failure> {
        let Self { room, address, builds, services, disk } = self;
        let state = if room.ready { "" } else { ", NOT READY: hearth doctor" };
        output::line(&format!("room {} at {address}, hearthd {}{state}", room.room, room.version))?;
        match services.as_deref() {
            None => {}
            Some([]) => output::line("\nno services; hearth up ./my-app makes one")?,
            Some(services) => {
                output::line("")?;
                services::print_table(services)?;
            }
        }
        match builds.as_deref() {
            None => {}
            Some([]) => output::line("\nno builds today")?,
            Some(today) => {
                output::line("")?;
                let shown = &today[..today.len().min(MAX_SHOWN_BUILDS)];
                builds::print_table(shown)?;
                if shown.len() < today.len() {
                    output::line(&format!("{} more today: hearth builds list", today.len() - shown.len()))?;
                }
            }
        }
        match disk {
            None => Ok(()),
            Some(usage) => output::line(&format!("\n{}", usage.summary())),
        }
    }
}

/// Leaves out what the caller's token does not permit.
fn permitted<T>(answer: Result<T, ClientError>) -> Result<Option<T>, Failure> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(ClientError::Denied(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Start of the day in the time zone of this machine.
fn start_of_day(now: Timestamp) -> Timestamp {
    now.to_zoned(TimeZone::system()).start_of_day().map_or(now, |start| start.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_begins_at_most_a_long_day_ago() {
        let now = Timestamp::now();
        let start = start_of_day(now);
        assert!(start <= now && now.duration_since(start).as_secs() <= 25 * 3600);
    }

    #[tokio::test]
    async fn the_wait_is_limited_and_named() {
        let never = std::future::pending::<Result<(), Failure>>();
        let failure = within(Duration::from_millis(1), never).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Unreachable);
        assert_eq!(permitted::<()>(Err(ClientError::Denied(Box::default()))).unwrap(), None);
    }
}
