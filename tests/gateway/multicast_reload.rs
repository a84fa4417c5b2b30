//! Multicast policies and static members that change while streams run.

use std::path::Path;
use std::time::Duration;

use tandemgw_core::config;
use tandemgw_core::event::DropReason;
use tandemgw_core::flow::{Addr, Family, PortId};
use tandemgw_core::multicast::message::{Message, RecordKind};
use testkit::lab::{CONFIG, DMZ, LAN, Lab, WAN, ip};

use super::multicast::{Net, POLICIES, dropped, exits, joins, lab_of, nets, said, stream};

/// Reloads the usual config with `more`; nothing of it waits.
fn reload(lab: &mut Lab, more: &str) {
    let text = format!("{CONFIG}{more}");
    let (config, _) = config::parse(Path::new("test.toml"), &text).unwrap();
    let reloaded = lab.gateway.reload(lab.now, &config).unwrap();
    assert_eq!(reloaded.waiting, []);
    lab.gateway.check_invariants();
    lab.settle();
    lab.gateway.check_invariants();
}

/// What routers behind a port are told of a group.
fn told(lab: &mut Lab, at: PortId, about: Addr) -> Vec<RecordKind> {
    let said = said(lab.outputs());
    let heard = said.into_iter().filter(|(port, _)| *port == at);
    let records = heard.flat_map(|(_, received)| match received.message {
        Message::Report(records) => records,
        _ => Vec::new(),
    });
    let about = records.filter(|record| record.group == about);
    about.map(|record| record.kind).collect()
}

/// Whether hosts of a port are asked.
fn asks(lab: &mut Lab, at: PortId, family: Family) -> bool {
    said(lab.outputs()).iter().any(|(port, received)| {
        let is_query = matches!(received.message, Message::Query(_));
        *port == at && is_query && received.from.family() == family
    })
}

fn count(lab: &Lab) -> usize {
    lab.gateway.multicast_count()
}

/// The same group on another port.
fn host_of_dmz(net: &Net) -> Addr {
    match net.family {
        Family::V4 => ip("10.77.3.10"),
        Family::V6 => net.host,
    }
}

#[test]
fn what_is_no_longer_allowed_ends_at_once_and_the_rest_goes_on() {
    for net in nets() {
        let mut lab = lab_of(POLICIES);
        joins(&mut lab, LAN, net.host, net.group);
        joins(&mut lab, DMZ, host_of_dmz(&net), net.group);
        joins(&mut lab, LAN, net.host, net.hidden);
        let [tv, hidden] = [net.group, net.hidden].map(|group| stream(net.sender, group));
        assert_eq!(exits(&mut lab, WAN, &tv, net.group), [LAN, DMZ]);
        assert_eq!(exits(&mut lab, WAN, &hidden, net.hidden), [LAN]);
        lab.outputs();

        // Not to the DMZ any more.
        let narrow = POLICIES.replacen("to = [\"lan\", \"dmz\"]", "to = [\"lan\"]", 1);
        reload(&mut lab, &narrow);
        assert_eq!(count(&lab), 2);
        assert_eq!(exits(&mut lab, WAN, &tv, net.group), [LAN]);
        assert_eq!(exits(&mut lab, WAN, &hidden, net.hidden), [LAN]);
        assert_eq!(told(&mut lab, WAN, net.group), [], "it is still wanted");

        // The group is another one's: the session ends without a packet, and so does the wish.
        let other = narrow
            .replace("239.1.0.0/16", "239.3.0.0/16")
            .replace("ff05::/32", "ff05:3::/32");
        reload(&mut lab, &other);
        assert_eq!(count(&lab), 1, "of the other group only");
        assert_eq!(told(&mut lab, WAN, net.group), [RecordKind::ToInclude]);
        assert_eq!(exits(&mut lab, WAN, &hidden, net.hidden), [LAN]);
        let before = dropped(&lab, DropReason::NoPolicy);
        assert!(exits(&mut lab, WAN, &tv, net.group).is_empty());
        assert_eq!(dropped(&lab, DropReason::NoPolicy), before + 1);

        // Back again: its hosts are known still, and the senders are told.
        reload(&mut lab, POLICIES);
        assert!(told(&mut lab, WAN, net.group).contains(&RecordKind::ToExclude));
        assert!(exits(&mut lab, WAN, &tv, net.group).contains(&LAN));
    }
}

#[test]
fn a_router_starts_and_ends_on_a_port() {
    for net in nets() {
        let mut lab = lab_of("");
        let packet = stream(net.sender, net.group);
        reload(&mut lab, POLICIES);
        assert!(asks(&mut lab, LAN, net.family), "who wants what");
        joins(&mut lab, LAN, net.host, net.group);
        assert_eq!(told(&mut lab, WAN, net.group), [RecordKind::ToExclude]);
        assert_eq!(exits(&mut lab, WAN, &packet, net.group), [LAN]);
        lab.pass(Duration::from_secs(2));
        lab.outputs();

        reload(&mut lab, "");
        assert_eq!(count(&lab), 0, "the session has ended");
        assert_eq!(told(&mut lab, WAN, net.group), [RecordKind::ToInclude]);
        lab.pass(Duration::from_secs(2));
        let again = told(&mut lab, WAN, net.group);
        assert_eq!(again, [RecordKind::ToInclude], "said twice, as by a host");
        lab.pass(Duration::from_secs(300));
        assert!(!asks(&mut lab, LAN, net.family), "nobody is asked any more");
        assert_eq!(lab.gateway.multicast_members().count(), 0);
        assert!(exits(&mut lab, WAN, &packet, net.group).is_empty());

        // Streams come the other way round now.
        let back = POLICIES
            .replace("from = [\"wan\"]", "from = [\"dmz\"]")
            .replace("to = [\"lan\", \"dmz\"]", "to = [\"wan\"]");
        reload(&mut lab, &back);
        assert!(asks(&mut lab, WAN, net.family));
    }
}

#[test]
fn static_members_come_and_go() {
    for net in nets() {
        let mut lab = lab_of(POLICIES);
        let (group, sender) = (net.group, net.sender);
        let packet = stream(sender, group);
        assert!(exits(&mut lab, WAN, &packet, group).is_empty());
        lab.outputs();
        let join = |source: Option<Addr>| {
            let member = format!("[[multicast-join]]\nport = \"lan\"\ngroup = \"{group}\"\n");
            let source = source.map_or(String::new(), |it| format!("source = \"{it}\"\n"));
            format!("{POLICIES}\n{member}{source}")
        };
        reload(&mut lab, &join(None));
        assert_eq!(told(&mut lab, WAN, group), [RecordKind::ToExclude]);
        assert_eq!(exits(&mut lab, WAN, &packet, group), [LAN]);
        reload(&mut lab, &join(Some(net.advertiser)));
        assert_eq!(count(&lab), 0, "of another source only");
        assert_eq!(told(&mut lab, WAN, group), [RecordKind::ToInclude]);
        assert!(exits(&mut lab, WAN, &packet, group).is_empty());
        reload(&mut lab, &join(Some(sender)));
        assert_eq!(exits(&mut lab, WAN, &packet, group), [LAN]);
        reload(&mut lab, POLICIES);
        assert_eq!(count(&lab), 0);
    }
}

/// What is listed after a change is what the next packet does, with the name of its policy.
#[test]
fn sessions_are_listed_by_the_policies_in_force() {
    for net in nets() {
        let mut lab = lab_of(POLICIES);
        joins(&mut lab, LAN, net.host, net.group);
        let packet = stream(net.sender, net.group);
        exits(&mut lab, WAN, &packet, net.group);
        let first = "[[multicast-policy]]\nname = \"first\"\nfrom = [\"wan\"]\nto = [\"lan\"]\n\
                     group = [\"239.1.0.0/17\", \"ff05::/33\"]\naction = \"accept\"\n";
        let text = format!("{CONFIG}{first}{POLICIES}");
        let (config, _) = config::parse(Path::new("test.toml"), &text).unwrap();
        lab.gateway.reload(lab.now, &config).unwrap();
        let listed = |lab: &Lab| {
            let page = lab.gateway.multicast_page(None, 9, lab.now);
            let rows = page.flat_map(|(_, views)| views);
            let rows = rows.map(|(view, policy)| (view.out_port, policy.to_owned()));
            rows.collect::<Vec<_>>()
        };
        assert_eq!(listed(&lab), [(LAN, "first".to_owned())], "before a packet");
        lab.settle();
        assert_eq!(listed(&lab), [(LAN, "first".to_owned())]);
    }
}
