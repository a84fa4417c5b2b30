//! Sessions that begin and end, as a reader is told of them, however late it reads.

use std::collections::BTreeMap;

use tandemgw_core::flow::FlowKey;
use tandemgw_core::random::SplitMix64;
use testkit::lab::{LAN, Lab, Net};
use testkit::packets::udp;

/// A change, by the ends of its session: both of the translated flow are told.
type Told = (u16, u16, Option<&'static str>);

fn read(lab: &Lab, after: &mut u64) -> Vec<Told> {
    let mut all = Vec::new();
    while let Some(change) = lab.gateway.session_change_after(*after) {
        assert_eq!(change.sequence, *after + 1, "nothing is missing");
        *after = change.sequence;
        let view = change.session.expect("this unit was primary all the time");
        let FlowKey { src_port, .. } = view.original;
        all.push((src_port, view.translated.src_port, change.end));
        assert!(change.end.is_some() || view.age_s == 0, "it has just begun");
    }
    all
}

#[test]
fn each_session_is_told_as_it_was_whoever_has_its_slot_now() {
    for net in Net::both() {
        for seed in 0..20 {
            let (mut lab, mut random) = (Lab::new(), SplitMix64(seed));
            let mut after = lab.gateway.open_session_log();
            let (mut expected, mut told) = (Vec::new(), Vec::new());
            let mut open: BTreeMap<u32, (u16, u16)> = BTreeMap::new();
            for number in 0..400 {
                let port = 20_000 + number;
                if open.len() < 5 || random.chance(500) {
                    lab.send(LAN, &udp((net.host, port), (net.server, 53)));
                    let page = lab.gateway.page(0, u32::MAX, lab.now).0;
                    let mut new = page.filter(|view| view.original.src_port == port);
                    let view = new.next().unwrap();
                    let ports = (port, view.translated.src_port);
                    open.insert(view.id, ports);
                    expected.push((ports.0, ports.1, None));
                } else {
                    let at = random.below(open.len());
                    let id = *open.keys().nth(at).unwrap();
                    let ports = open.remove(&id).unwrap();
                    assert!(lab.gateway.clear_session(lab.now, id));
                    expected.push((ports.0, ports.1, Some("cleared")));
                }
                if random.chance(20) {
                    told.extend(read(&lab, &mut after));
                    assert_eq!(told, expected);
                }
            }
            told.extend(read(&lab, &mut after));
            assert_eq!(told, expected);
            lab.gateway.close_session_log();
        }
    }
}
