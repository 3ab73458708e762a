//! Link groups of one daemon. The firewall recognizes the links of its instances, and which of them are isolated, by
//! group and not by a list that changes with each instance.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkGroups(u32);

impl LinkGroups {
    /// Derives the groups from a seed, which differs between the daemons of a host. Group 0 contains all other links.
    pub(super) fn of(seed: u32) -> Self {
        Self((seed & !1).max(2))
    }

    /// Group of the links of instances that reach each other.
    pub(super) const fn open(self) -> u32 {
        self.0
    }

    /// Group of the links of isolated instances.
    pub(super) const fn isolated(self) -> u32 {
        self.0 | 1
    }

    pub(super) const fn has(self, group: u32) -> bool {
        group & !1 == self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_groups_are_distinguished_from_each_other_and_from_those_of_other_links() {
        for seed in [0, 1, 2, 3, 0x8000_0001, u32::MAX] {
            let group = LinkGroups::of(seed);
            assert_ne!(group.open(), group.isolated());
            assert!(group.has(group.open()) && group.has(group.isolated()));
            assert!(!group.has(0) && !group.has(1), "{seed}");
        }
        assert!(!LinkGroups::of(8).has(LinkGroups::of(10).open()));
    }
}
