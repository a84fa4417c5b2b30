//! Measures how far the packets of a port come.
//!
//! Somebody else's chains, or anything else in the kernel, may drop them between any two of its
//! hooks, and most of that counts nothing. So while there is reason to look, a table of ours counts
//! at each hook, before and after all others. It drops nothing, and belongs to the socket that made
//! it: the kernel removes it with that, also after a crash.

use super::wire::Wire;
use super::{NF_INET_INGRESS, PRIORITY, Post, found, rules};
use crate::os::netlink::{NetlinkError, interface_name};
use crate::os::nftables::{Expression, Hook, INET, Message, NETDEV, Nftables, attribute};
use tandemgw_core::flow::Family;
use tandemgw_core::in_quotes::InQuotes;

/// Before everybody else, and after.
const FIRST: i32 = -2_000_000_000;
const LAST: i32 = 2_000_000_000;

/// `NF_NETDEV_EGRESS` (linux/netfilter_netdev.h).
const EGRESS: u32 = 1;

/// Packets for this host's MAC address.
const FOR_US: [u8; 1] = [libc::PACKET_HOST];

/// By family, IPv4 first.
type ByFamily = [u64; 2];

/// How many packets have come how far, in the order of their way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// In by the port, before filters of tc.
    pub wire: ByFamily,
    /// The same, after these, and before anybody's chains.
    pub arrived: ByFamily,
    /// The same, before they are routed.
    pub came: ByFamily,
    /// Those of them that are for the machine itself.
    pub own: ByFamily,
    /// Forwarded to the gateway, before other chains see them.
    pub let_pass: ByFamily,
    /// After these.
    pub handed: ByFamily,
    /// From the gateway, before they are routed.
    pub written: ByFamily,
    /// Forwarded to the port, before other chains see them.
    pub released: ByFamily,
    /// After these.
    pub sent: ByFamily,
    /// Out by the port, also from others, before anybody's chains there.
    pub leaving: ByFamily,
    /// After these.
    pub left: ByFamily,
}

impl Passed {
    /// What has come since then.
    pub fn since(self, before: Passed) -> Passed {
        let minus = |now: ByFamily, then: ByFamily| {
            [0, 1].map(|family: usize| now[family].saturating_sub(then[family]))
        };
        Passed {
            wire: minus(self.wire, before.wire),
            arrived: minus(self.arrived, before.arrived),
            came: minus(self.came, before.came),
            own: minus(self.own, before.own),
            let_pass: minus(self.let_pass, before.let_pass),
            handed: minus(self.handed, before.handed),
            written: minus(self.written, before.written),
            released: minus(self.released, before.released),
            sent: minus(self.sent, before.sent),
            leaving: minus(self.leaving, before.leaving),
            left: minus(self.left, before.left),
        }
    }

    fn counter(&mut self, name: &str) -> Option<&mut u64> {
        let (name, family) = name.split_once(' ')?;
        let counts = match name {
            "arrived" => &mut self.arrived,
            "came" => &mut self.came,
            "own" => &mut self.own,
            "let-pass" => &mut self.let_pass,
            "handed" => &mut self.handed,
            "written" => &mut self.written,
            "released" => &mut self.released,
            "sent" => &mut self.sent,
            "leaving" => &mut self.leaving,
            "left" => &mut self.left,
            _ => return None,
        };
        counts.get_mut(usize::from(family == Family::V6.name()))
    }
}

/// A measurement that is under way; it ends when it is dropped.
pub struct Measurement {
    nftables: Nftables,
    table: String,
    wire: Option<Wire>,
}

impl Measurement {
    /// Begins to count the packets of a port.
    ///
    /// # Errors
    /// What the kernel refuses: before Linux 5.12 all of it.
    pub fn begin(barrier: &str, post: &Post) -> Result<Measurement, NetlinkError> {
        let mut nftables = Nftables::open().map_err(NetlinkError::on_open)?;
        // No node has a name with a dot.
        let table = format!("{barrier}.{}", post.tun_name);
        let mut batch = nftables.batch(INET, &table);
        batch.add_table_of_socket();
        for (chain, number, priority, conditions) in chains(post) {
            let device = post.index.and_then(interface_name);
            let devices = device.filter(|_| number == NF_INET_INGRESS);
            let hook = Hook {
                number,
                priority,
                devices: devices.into_iter().collect(),
            };
            batch.add_chain(chain, &hook);
            if number == NF_INET_INGRESS {
                let vlans = rules::arrivals_of_a_port().into_iter().take(2);
                vlans.for_each(|(steps, comment)| batch.add_rule(chain, &steps, comment));
            }
            for (name, condition) in conditions {
                for family in Family::ALL {
                    let number = [match family {
                        Family::V4 => libc::NFPROTO_IPV4 as u8,
                        Family::V6 => libc::NFPROTO_IPV6 as u8,
                    }];
                    let mut steps = vec![load(libc::NFT_META_NFPROTO), Expression::Is(&number)];
                    for (key, value) in &condition {
                        steps.extend([load(*key), Expression::Is(value)]);
                    }
                    steps.push(Expression::Count);
                    batch.add_rule(chain, &steps, &format!("{name} {}", family.name()));
                }
            }
        }
        nftables.commit(batch)?;
        // Before Linux 5.16 nobody's chains see that.
        if let Err(error) = measure_egress(&mut nftables, &table, post) {
            log::debug!("egress not measured error={}", InQuotes(&error));
        }
        let wire = post.index.map(Wire::open).transpose();
        let log = |error: &_| log::debug!("wire not measured error={}", InQuotes(error));
        Ok(Measurement {
            nftables,
            table,
            wire: wire.inspect_err(log).unwrap_or_default(),
        })
    }

    /// What it has counted until now.
    ///
    /// # Errors
    /// If the packet filter can't be read.
    pub fn read(&mut self) -> Result<Passed, NetlinkError> {
        let mut passed = Passed {
            wire: self.wire.as_mut().map_or([0; 2], Wire::read),
            ..Passed::default()
        };
        let table = self.table.clone();
        let of_table = |message: &mut Message| {
            message.text(attribute::TABLE_NAME, &table);
        };
        for family in [INET, NETDEV] {
            self.nftables
                .list(libc::NFT_MSG_GETRULE, family, of_table, |rule| {
                    let is_ours = rule.text(attribute::TABLE_NAME) == Some(&table);
                    if let Some(count) = passed.counter(&found::comment(rule)).filter(|_| is_ours) {
                        *count = found::counted(rule);
                    }
                })?;
        }
        Ok(passed)
    }
}

/// Counts what leaves by the interface of a port, before and after the chains of others there.
fn measure_egress(nftables: &mut Nftables, table: &str, post: &Post) -> Result<(), NetlinkError> {
    let device = post.index.and_then(interface_name);
    let mut batch = nftables.batch(NETDEV, table);
    batch.add_table_of_socket();
    for (chain, priority) in [("leaving", FIRST), ("left", LAST)] {
        let hook = Hook {
            number: EGRESS,
            priority,
            devices: device.iter().cloned().collect(),
        };
        batch.add_chain(chain, &hook);
        for family in Family::ALL {
            let ethertype = match family {
                Family::V4 => libc::ETH_P_IP,
                Family::V6 => libc::ETH_P_IPV6,
            };
            let ethertype = (ethertype as u16).to_be_bytes();
            let steps = [
                load(libc::NFT_META_PROTOCOL),
                Expression::Is(&ethertype),
                Expression::Count,
            ];
            batch.add_rule(chain, &steps, &format!("{chain} {}", family.name()));
        }
    }
    nftables.commit(batch)
}

/// What a packet must be to be counted.
type Condition = Vec<(libc::c_int, Vec<u8>)>;

/// Name, hook, priority, and what it counts under which names.
type Chain = (&'static str, u32, i32, Vec<(&'static str, Condition)>);

fn chains(post: &Post) -> Vec<Chain> {
    let (iif, oif) = (libc::NFT_META_IIF, libc::NFT_META_OIF);
    let number = |number: u32| number.to_ne_bytes().to_vec();
    let (port, tun) = (number(post.index.unwrap_or(0)), number(post.tun));
    let for_us = (libc::NFT_META_PKTTYPE, FOR_US.to_vec());
    let from_port = vec![for_us.clone(), (iif, port.clone())];
    let inward = vec![(iif, port.clone()), (oif, tun.clone())];
    let outward = vec![(iif, tun.clone()), (oif, port)];
    let forwarded = |inside, outside| vec![(inside, inward.clone()), (outside, outward.clone())];
    vec![
        (
            "arrived",
            NF_INET_INGRESS,
            FIRST,
            vec![("arrived", vec![for_us])],
        ),
        (
            "came",
            libc::NF_INET_PRE_ROUTING as u32,
            // After those whose hop limit ends here are gone.
            PRIORITY + 1,
            vec![("came", from_port.clone()), ("written", vec![(iif, tun)])],
        ),
        (
            "own",
            libc::NF_INET_LOCAL_IN as u32,
            FIRST,
            vec![("own", from_port)],
        ),
        (
            "forwarded",
            libc::NF_INET_FORWARD as u32,
            FIRST,
            forwarded("let-pass", "released"),
        ),
        (
            "sent",
            libc::NF_INET_POST_ROUTING as u32,
            LAST,
            forwarded("handed", "sent"),
        ),
    ]
}

fn load(key: libc::c_int) -> Expression<'static> {
    Expression::Load {
        key,
        register: Expression::FIRST,
    }
}
