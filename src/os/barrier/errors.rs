//! The rules that lead what the kernel says about packets of the gateway to the gateway.
//!
//! The kernel of a unit knows more than the gateway: the MTU of a route, of a tunnel, that a host
//! does not answer, that somebody's packet filter rejects a packet. It says so to the sender of the
//! packet as the gateway has made it: from an address of this unit, with a quote in which clients
//! outside would read an address inside, and which they can't match with anything that they sent.
//! So its errors go to the gateway, which treats them like those of any other router. Rules lead
//! them to a TUN device (`steering/plan.rs`). Of some kinds they do so from the start, without any
//! packet filter, since the kernel says such things only of packets that it forwards. All others
//! are routed once more: a chain of type `route` gives them a mark, and a rule leads the mark.

use super::rules::{
    ICMP, ICMPV6, IPV4, IPV6, NAMES, OWN_IPV4, OWN_IPV6, PORTS, Rule, TUNS, load, source, transport,
};
use crate::os::nftables::Expression;

/// The chain that marks them.
pub(super) const ERRORS: &str = "errors";

/// The chain that lets them out by nothing but a TUN device.
pub(super) const ASTRAY: &str = "errors-astray";

/// After what other programs do there: somebody else's mark would lead them elsewhere.
pub(super) const LATE: i32 = 1000;

/// The mark of a gateway whose tables have numbers from `first_table` on: `tg` in the upper half,
/// and never that of a forwarded packet.
pub fn error_mark(first_table: u32) -> u32 {
    MARK | (first_table & 0xffff)
}

const MARK: u32 = 0x7467_0000;

/// The first table of the gateway that a mark, or the group of a port, is of.
pub fn first_table_of(mark: u32) -> u32 {
    mark & 0xffff
}

/// Whether a number is such a mark, of whatever gateway.
pub fn is_error_mark(number: u32) -> bool {
    number & 0xffff_0000 == MARK
}

const NOTHING: [u8; 4] = [0; 4];

/// At the output hook. What is about a packet for this machine itself concerns nobody else. What is
/// on its way to the gateway is marked too, for a mark of others may have turned it back.
pub(super) fn errors(mark: &[u8; 4]) -> Vec<Rule<'_>> {
    use Expression::{Change, Count, SetMark};
    let mut rules = not_to_lead();
    for (mut steps, comment) in kinds() {
        let marked = Change {
            keep: &NOTHING,
            flip: mark,
        };
        steps.extend([Count, load(libc::NFT_META_MARK), marked, SetMark]);
        rules.push((steps, comment));
    }
    rules
}

/// At the postrouting hook: a rule or a route is missing, or somebody else's comes first, or a
/// later chain has set another mark.
pub(super) fn astray(mark: &[u8; 4]) -> Vec<Rule<'_>> {
    use Expression::{Accept, Count, Drop, Is, IsIn, IsNot, IsNotIn};
    // Most packets come no further than this.
    let others = vec![
        load(libc::NFT_META_L4PROTO),
        IsNot(ICMP),
        IsNot(ICMPV6),
        Accept,
    ];
    let marked = vec![
        load(libc::NFT_META_MARK),
        Is(mark),
        load(libc::NFT_META_OIF),
        IsNotIn(TUNS),
        Count,
        Drop,
    ];
    let of_another = |family, set| {
        vec![
            load(libc::NFT_META_NFPROTO),
            Is(family),
            source(family),
            IsNotIn(set),
            Accept,
        ]
    };
    let mut rules = vec![
        (others, "no error"),
        (marked, "not on its way to the gateway"),
        (of_another(IPV4, OWN_IPV4), "not of this machine"),
        (of_another(IPV6, OWN_IPV6), "not of this machine, IPv6"),
        (
            vec![load(libc::NFT_META_OIF), IsIn(TUNS), Accept],
            "to the gateway",
        ),
    ];
    rules.extend(not_to_lead());
    for (mut steps, comment) in kinds() {
        steps.extend([Count, Drop]);
        rules.push((steps, comment));
    }
    rules
}

/// What the kernel may say itself.
fn not_to_lead<'a>() -> Vec<Rule<'a>> {
    use Expression::{Accept, Is, IsIn, IsNotIn};
    /// Of the quoted packet, which follows the header of eight bytes.
    const IPV4_DESTINATION: (u32, u32) = (8 + 16, 4);
    const IPV6_DESTINATION: (u32, u32) = (8 + 24, 16);
    let own = |mut steps: Vec<_>, (offset, length), set| {
        steps.extend([transport(offset, length), IsIn(set), Accept]);
        steps
    };
    let to_many = || {
        let mut steps = of(IPV6, ICMPV6);
        steps.extend([transport(IPV6_DESTINATION.0, 1), Is(&[0xff]), Accept]);
        steps
    };
    vec![
        (
            vec![
                load(libc::NFT_META_OIF),
                IsNotIn(PORTS),
                load(libc::NFT_META_OIFNAME),
                IsNotIn(NAMES),
                Accept,
            ],
            "not to a port",
        ),
        (
            own(of(IPV4, ICMP), IPV4_DESTINATION, OWN_IPV4),
            "about this machine",
        ),
        (
            own(of(IPV6, ICMPV6), IPV6_DESTINATION, OWN_IPV6),
            "about this machine, IPv6",
        ),
        (to_many(), "about a group"),
    ]
}

/// The errors, by type.
fn kinds<'a>() -> Vec<Rule<'a>> {
    use Expression::{Is, IsAtMost};
    let kind = |mut steps: Vec<Expression<'a>>, types| {
        steps.extend([transport(0, 1), types]);
        steps
    };
    vec![
        (kind(of(IPV4, ICMP), Is(&[3])), "unreachable"),
        (kind(of(IPV4, ICMP), Is(&[11])), "time exceeded"),
        (kind(of(IPV4, ICMP), Is(&[12])), "a bad header"),
        (
            kind(of(IPV6, ICMPV6), IsAtMost(&[127])),
            "any error of IPv6",
        ),
    ]
}

/// Continues if the packet is of a family and protocol.
fn of<'a>(family: &'a [u8], protocol: &'a [u8]) -> Vec<Expression<'a>> {
    vec![
        load(libc::NFT_META_NFPROTO),
        Expression::Is(family),
        load(libc::NFT_META_L4PROTO),
        Expression::Is(protocol),
    ]
}
