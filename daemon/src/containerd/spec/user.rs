//! User of an instance: resolves `user`, `uid`, `user:group` or `uid:gid` of an image config with the image's own
//! `/etc/passwd` and `/etc/group`.

/// User and group as given by an image config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserSpec<'a> {
    user: &'a str,
    group: Option<&'a str>,
}

/// Numeric ids of a user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvedUser {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups of the user.
    pub groups: Vec<u32>,
    pub home: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserFault {
    #[error("the image has no user `{0}` in its /etc/passwd")]
    User(String),
    #[error("the image has no group `{0}` in its /etc/group")]
    Group(String),
}

/// Maximum number of supplementary groups (NGROUPS_MAX is 65,536; no image needs as many as this).
const MOST_GROUPS: usize = 1024;

/// Home directory of root in an image whose `/etc/passwd` does not name one.
pub const ROOT_HOME: &str = "/root";

impl<'a> UserSpec<'a> {
    pub fn parse(text: &'a str) -> Self {
        let text = text.trim();
        match text.split_once(':') {
            Some((user, group)) => Self { user, group: Some(group).filter(|group| !group.is_empty()) },
            None => Self { user: text, group: None },
        }
    }

    /// Reports whether this is root with its own group only, which needs no lookup. Without a named group, root may
    /// have supplementary groups in `/etc/group`.
    pub fn is_root_without_groups(&self) -> bool {
        matches!(self.user, "" | "0" | "root") && matches!(self.group, Some("0" | "root"))
    }

    /// Resolves the user. A name other than `root` must have an entry; a number need not.
    pub fn resolve(&self, passwd: &str, group: &str) -> Result<ResolvedUser, UserFault> {
        let wanted = if self.user.is_empty() { "0" } else { self.user };
        let entry = fields(passwd).find(|entry| entry.first() == Some(&wanted));
        let number = wanted.parse::<u32>().ok();
        let entry = entry.or_else(|| fields(passwd).find(|entry| number.is_some() && id(entry) == number));
        let uid = entry.as_ref().and_then(|entry| id(entry)).or(number);
        let uid = uid.or_else(|| (wanted == "root").then_some(0));
        let uid = uid.ok_or_else(|| UserFault::User(wanted.chars().take(100).collect()))?;
        let own_gid = entry.as_ref().and_then(|entry| entry.get(3)?.parse().ok()).unwrap_or(0);
        let home = entry.as_ref().and_then(|entry| entry.get(5)).filter(|home| home.starts_with('/'));
        let home = home.map(|home| (*home).to_owned()).or_else(|| (uid == 0).then(|| ROOT_HOME.to_owned()));
        if let Some(wanted) = self.group {
            let found = fields(group).find(|entry| entry.first() == Some(&wanted));
            let gid = found.and_then(|entry| id(&entry)).or_else(|| wanted.parse().ok());
            let gid = gid.ok_or_else(|| UserFault::Group(wanted.chars().take(100).collect()))?;
            return Ok(ResolvedUser { uid, gid, groups: Vec::new(), home });
        }
        let name = entry.as_ref().and_then(|entry| entry.first().copied());
        let member = |entry: &Vec<&str>| {
            name.is_some_and(|name| {
                entry.get(3).is_some_and(|members| members.split(',').any(|one| one == name))
            })
        };
        let mut groups: Vec<u32> = fields(group)
            .filter(member)
            .filter_map(|entry| id(&entry))
            .filter(|gid| *gid != own_gid)
            .collect();
        groups.sort_unstable();
        groups.dedup();
        groups.truncate(MOST_GROUPS);
        Ok(ResolvedUser { uid, gid: own_gid, groups, home })
    }
}

fn fields(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().filter(|line| !line.starts_with('#')).map(|line| line.split(':').collect())
}

/// Returns the numeric id, which is the third field of both files.
fn id(entry: &[&str]) -> Option<u32> {
    entry.get(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\n# no\nweb:x:101:102::/srv/web:/bin/false\n55:x:7:8::/:\nbad\n";
    const GROUP: &str = "root:x:0:\nweb:x:102:\nlog:x:20:root,web\naudio:x:30:web\n";

    fn of(text: &str) -> Result<(u32, u32, Vec<u32>), UserFault> {
        let user = UserSpec::parse(text).resolve(PASSWD, GROUP)?;
        Ok((user.uid, user.gid, user.groups))
    }

    #[test]
    fn names_are_looked_up_and_numbers_need_no_entry() {
        for (text, expected) in [
            ("web", (101, 102, vec![20, 30])),
            ("101", (101, 102, vec![20, 30])),
            ("web:log", (101, 20, vec![])),
            ("web:5", (101, 5, vec![])),
            ("1000", (1000, 0, vec![])),
            ("1000:1000", (1000, 1000, vec![])),
            ("web:", (101, 102, vec![20, 30])),
            // A numeric text is looked up as a name first.
            ("55", (7, 8, vec![])),
            (":log", (0, 20, vec![])),
            ("", (0, 0, vec![20])),
            ("0", (0, 0, vec![20])),
            ("root", (0, 0, vec![20])),
            ("0:0", (0, 0, vec![])),
        ] {
            assert_eq!(of(text).unwrap(), expected, "{text}");
        }
        assert_eq!(UserSpec::parse("web").resolve(PASSWD, GROUP).unwrap().home.as_deref(), Some("/srv/web"));
    }

    #[test]
    fn an_unknown_name_is_reported() {
        assert_eq!(of("nobody"), Err(UserFault::User("nobody".to_owned())));
        assert_eq!(of("-1"), Err(UserFault::User("-1".to_owned())));
        assert_eq!(of("4294967296"), Err(UserFault::User("4294967296".to_owned())));
        assert_eq!(of("web:nobody"), Err(UserFault::Group("nobody".to_owned())));
    }

    #[test]
    fn only_root_with_its_own_group_needs_no_lookup() {
        for root in ["0:0", "root:root", ":0", " 0:root "] {
            assert!(UserSpec::parse(root).is_root_without_groups(), "{root}");
        }
        for other in ["", "0", "root", "web", "0:web", "1"] {
            assert!(!UserSpec::parse(other).is_root_without_groups(), "{other}");
        }
    }

    #[test]
    fn root_needs_no_entry() {
        for root in ["", "0", "root"] {
            let user = UserSpec::parse(root).resolve("", "wheel:x:10:root\n").unwrap();
            assert_eq!((user.uid, user.gid, user.home.as_deref()), (0, 0, Some(ROOT_HOME)), "{root}");
        }
    }
}
