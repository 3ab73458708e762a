//! Kernel capabilities that instance networks need, so that an error names the missing one.

use crate::capability::{self, NeededCapability};

const NEEDED: [NeededCapability; 2] = [
    (12, "CAP_NET_ADMIN", "links, addresses and rules are made"),
    (21, "CAP_SYS_ADMIN", "network namespaces are made and mounted"),
];

pub(super) fn check() -> Result<(), String> {
    match capability::missing_capabilities(&NEEDED)? {
        None => Ok(()),
        Some(missing) => Err(format!(
            "services cannot have a network here: missing {missing}; run hearthd as root, and in a container with `--privileged`"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_capability_is_named() {
        // Docker's capabilities of an unprivileged container, and of one with `--cap-add NET_ADMIN`.
        let missing = |status| capability::missing_capabilities_in(status, &NEEDED).collect::<Vec<_>>();
        assert_eq!(missing("Name:\tx\nCapEff:\t00000000a80425fb\n").len(), 2);
        assert_eq!(missing("CapEff:\t00000000a80435fb\n")[0].1, "CAP_SYS_ADMIN");
        assert!(missing("CapEff:\t000001ffffffffff\n").is_empty());
        assert_eq!(missing("").len(), NEEDED.len());
    }
}
