//! `hearth routes`

use clap::Subcommand;
use hearth_proto::v1::ServiceRoute;
use serde::Serialize;

use super::changes::change_each;
use super::{GlobalArgs, complete, connect};
use crate::error::Failure;
use crate::output;

#[derive(Debug, Subcommand)]
pub(super) enum RoutesCommand {
    /// Show the domains and the services that they route to
    #[command(visible_alias = "ls")]
    List,
    /// Remove domains from their services, which keep running
    Rm {
        /// Domains as `hearth routes list` shows them
        #[arg(required = true, add = complete::domains())]
        domains: Vec<String>,
    },
}

#[derive(Serialize)]
struct RouteView<'a> {
    domain: &'a str,
    service: &'a str,
    service_id: &'a str,
    /// Revision that receives the traffic; null while none serves.
    revision: Option<u32>,
    private: bool,
    /// URL of the domain; null for a domain with `*`.
    url: Option<&'a str>,
}

impl<'a> From<&'a ServiceRoute> for RouteView<'a> {
    fn from(route: &'a ServiceRoute) -> Self {
        Self {
            domain: &route.domain,
            service: &route.service,
            service_id: &route.service_id,
            revision: route.revision,
            private: route.private,
            url: Some(route.url.as_str()).filter(|url| !url.is_empty()),
        }
    }
}

impl RouteView<'_> {
    fn row(&self) -> Vec<String> {
        vec![
            output::printable(self.domain),
            output::printable(self.service),
            self.revision.map_or("-".to_owned(), |revision| revision.to_string()),
            if self.private { "private" } else { "public" }.to_owned(),
            self.url.map_or("-".to_owned(), output::printable),
        ]
    }
}

pub(super) async fn run(command: RoutesCommand, globals: &GlobalArgs) -> Result<(), Failure> {
    match command {
        RoutesCommand::List => {
            let routes = connect(globals).await?.list_routes().await?;
            let views: Vec<RouteView<'_>> = routes.iter().map(RouteView::from).collect();
            if globals.json {
                return output::json(&views);
            }
            let rows: Vec<Vec<String>> = views.iter().map(RouteView::row).collect();
            output::table(&["DOMAIN", "SERVICE", "REVISION", "ACCESS", "URL"], &rows)
        }
        RoutesCommand::Rm { domains } => {
            let client = connect(globals).await?;
            change_each("removed", &domains, globals, async |domain| {
                let service = client.remove_route(domain).await?;
                let view = serde_json::json!({"domain": domain, "service": service});
                Ok((view, format!("{domain} no longer routes to {service}")))
            })
            .await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_says_where_it_leads_and_who_may_follow_it() {
        let mut route = ServiceRoute {
            domain: "*.example.com".into(),
            service: "web".into(),
            private: true,
            ..ServiceRoute::default()
        };
        assert_eq!(RouteView::from(&route).row(), ["*.example.com", "web", "-", "private", "-"]);
        (route.revision, route.private) = (Some(3), false);
        route.url = "http://www.example.com/".into();
        assert_eq!(RouteView::from(&route).row()[2..], ["3", "public", "http://www.example.com/"]);
        assert_eq!(serde_json::to_value(RouteView::from(&route)).unwrap()["revision"], 3);
    }
}
