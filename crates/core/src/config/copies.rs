//! How many peers hold the sessions of a group.
//!
//! A unit that does not hold a session can't tell whose it is, except by its packets. So where
//! packets may come to any unit, `copies` needs policies whose answers show their group and slot.

use std::collections::BTreeSet;

use super::diagnostic::Report;
use super::reader::Span;
use super::{Action, Config, Group, Ha, Nat, Policy, Port};
use crate::flow::{GroupId, PortId};

/// With so many units, each of them holds all sessions.
const UNITS_THAT_HOLD_ALL: usize = 3;

impl Config {
    /// How many peers hold the sessions of each group, beside its primary; 0 if all do. That is
    /// `copies`, unless there are no more than three units, or answers would not find their owner.
    pub fn copies(&self) -> u8 {
        match self.ha.as_ref().filter(|ha| are_limited(ha)) {
            Some(ha) if self.untold().is_none() => u8::try_from(ha.copies).unwrap_or(u8::MAX),
            _ => 0,
        }
    }

    /// A policy whose sessions must be on all units, because packets may come to any of them.
    fn untold(&self) -> Option<&Policy> {
        let untold = |policy: &&Policy| !tells_owner(policy, &self.groups, &self.ports);
        self.policies
            .iter()
            .find(|it| self.passes_on() && untold(it))
    }
}

/// Whether there are peers that need not hold all.
fn are_limited(ha: &Ha) -> bool {
    ha.copies > 0 && ha.peers.len() >= UNITS_THAT_HOLD_ALL && (ha.copies as usize) < ha.peers.len()
}

/// Whether an answer to a session of a policy shows which group or slot the session is in: it is
/// for an address of the gateway, or the port that it comes in by has one group only.
fn tells_owner(policy: &Policy, groups: &[Group], ports: &[Port]) -> bool {
    if policy.action != Action::Accept || policy.nat != Nat::Off {
        return true;
    }
    let all: Vec<PortId> = (0..ports.len()).map(PortId::from_index).collect();
    let named = |list: &Vec<PortId>| match list.is_empty() {
        true => all.clone(),
        false => list.clone(),
    };
    let ports = [named(&policy.from), named(&policy.to)]
        .concat()
        .into_iter()
        .filter_map(|port| ports.get(port.index()));
    let groups_of: BTreeSet<GroupId> = ports
        .flat_map(|port| port.virtual_addresses.iter().map(|own| own.group))
        .collect();
    let mut groups = groups_of
        .iter()
        .filter_map(|group| groups.get(usize::from(group.0)));
    let (first, more) = (groups.next(), groups.next());
    let is_cut = first.is_some_and(|group| group.is_cut());
    // The server of a forward is known.
    more.is_none() && (!is_cut || policy.forwarded == Some(true))
}

/// Says what keeps `copies`, whose value is at `span`, from having an effect.
pub(super) fn check(report: &Report, span: &Span, config: &Config) {
    let Some(ha) = config.ha.as_ref().filter(|ha| are_limited(ha)) else {
        return;
    };
    if ha.pickup_guarantee_copies > ha.copies {
        let message =
            "`pickup-guarantee-copies` waits for more peers than `copies` lets hold a session";
        report.warn(
            span,
            message,
            "give `copies` the same value, or a higher one",
        );
    }
    if let Some(policy) = config.untold() {
        let message = format!(
            "`copies` has no effect: answers to sessions of policy `{}` don't show whose they are, so each unit \
             must hold them",
            policy.name
        );
        let hint = "translate its sessions (`nat = true`), or let it match `forwarded = true` only";
        report.warn(span, message, hint);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::{Config, parse};

    fn config(peers: usize, ha: &str, groups: &str, policies: &str) -> (Config, String) {
        let peers: String = (0..peers)
            .map(|at| {
                let octet = at + 2;
                format!(
                    "[[ha.peer]]\nname = \"p{at}\"\naddresses = [\"10.0.9.{octet}:7030\"]\n\
                     public-key = \"A{at}ECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\"\n"
                )
            })
            .collect();
        let text = format!(
            "[node]\nname = \"a\"\nkey = \"k\"\n\
             [[port]]\nname = \"lan\"\ninterface = \"e0\"\nvirtual-addresses = [\"10.1.0.1/24\"]\n\
             [[port]]\nname = \"wan\"\ninterface = \"e1\"\nvirtual-addresses = [\"10.2.0.1/24\"]\n\
             {groups}\n{policies}\n[ha]\ngroup-id = 1\n{ha}\n\
             [[ha.link]]\ninterface = \"e2\"\nlisten = \"10.0.9.1:7030\"\n{peers}"
        );
        match parse(Path::new("a.toml"), &text) {
            Ok((config, found)) => (config, format!("{found:?}")),
            Err(found) => panic!("{found:?}"),
        }
    }

    const CUT: &str = "[[group]]\nname = \"all\"\nports = [\"lan\", \"wan\"]\ndistribute = 4";
    const TWO: &str =
        "[[group]]\nname = \"l\"\nports = [\"lan\"]\n[[group]]\nname = \"w\"\nports = [\"wan\"]";
    const NAT: &str = "[[policy]]\nname = \"out\"\naction = \"accept\"\nnat = true";
    const PLAIN: &str = "[[policy]]\nname = \"in\"\naction = \"accept\"";
    const FORWARDED: &str = "[[policy]]\nname = \"in\"\naction = \"accept\"\nforwarded = true";

    #[test]
    fn copies_are_limited_beyond_three_units() {
        for (peers, wanted, limit) in [(1, 1, 0), (2, 1, 0), (3, 1, 1), (3, 2, 2), (3, 3, 0)] {
            let (config, _) = config(peers, &format!("copies = {wanted}"), "", PLAIN);
            assert_eq!(config.copies(), limit, "{wanted} of {peers} peers");
        }
        assert_eq!(config(7, "", "", PLAIN).0.copies(), 0, "all hold all");
    }

    /// Where packets may come to any unit, one that does not hold a session must know its owner.
    #[test]
    fn every_unit_holds_what_does_not_show_its_owner() {
        for (asymmetric, groups, policy, told) in [
            (false, TWO, PLAIN, true),
            (true, "", PLAIN, true),
            (true, "", NAT, true),
            (true, TWO, NAT, true),
            (true, TWO, PLAIN, false),
            (false, CUT, PLAIN, false),
            (false, CUT, FORWARDED, true),
            (false, CUT, NAT, true),
            (true, TWO, FORWARDED, false),
        ] {
            let ha = format!("copies = 2\nasymmetric-flows = {asymmetric}");
            let (config, found) = config(4, &ha, groups, policy);
            let what = format!("{groups} {policy}: {found}");
            assert_eq!(config.copies(), if told { 2 } else { 0 }, "{what}");
            assert_eq!(found.contains("`copies` has no effect"), !told, "{what}");
        }
    }

    #[test]
    fn a_guarantee_of_more_copies_than_there_are_is_told() {
        let (_, found) = config(4, "copies = 1\npickup-guarantee-copies = 2", "", NAT);
        assert!(found.contains("waits for more peers"), "{found}");
    }
}
