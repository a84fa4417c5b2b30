//! Packet filters of others hide from the kernel where hosts are: requests that it sends, or the
//! answers to them. The gateway sees both on its packet sockets, asks in its place, and tells it.

use std::time::{Duration, Instant};

use testkit::system::process::{PATIENCE, Process, wait_until};

use crate::lab::{Lab, SERVER, SERVER2};

/// Hides requests, answers, or both, of one family or of both.
const FILTERS: &[&str] = &[
    "nft 'add chain inet fw i { type filter hook input priority 0; policy drop; }'",
    "nft 'add chain inet fw o { type filter hook output priority 0; policy drop; }'",
    "nft add table ip6 six; nft 'add chain ip6 six i { type filter hook input priority 0; }'; \
     nft 'add rule ip6 six i icmpv6 type nd-neighbor-advert drop'",
    "nft add table arp a; nft 'add chain arp a i { type filter hook input priority 0; policy drop; }'",
    "nft add table arp a; nft 'add chain arp a o { type filter hook output priority 0; policy drop; }'",
    "nft add table arp a; nft 'add chain arp a i { type filter hook input priority 0; policy drop; }'; \
     nft 'add chain arp a o { type filter hook output priority 0; policy drop; }'; \
     nft 'add chain inet fw i { type filter hook input priority 0; policy drop; }'; \
     nft 'add chain inet fw o { type filter hook output priority 0; policy drop; }'",
];

/// A lab whose kernel doubts after a second or two what it knows of hosts.
fn forgetful_lab() -> Lab {
    let lab = Lab::new();
    for family in ["ipv4", "ipv6"] {
        for interface in ["eth0", "eth1"] {
            let folder = format!("{family}/neigh/{interface}");
            lab.unit
                .ns
                .sysctl(&format!("{folder}/base_reachable_time_ms"), "1000");
            lab.unit
                .ns
                .sysctl(&format!("{folder}/delay_first_probe_time"), "1");
        }
    }
    lab.unit.ns.sh("nft add table inet fw");
    lab
}

/// Ten packets a second to each address; the result is what `ping` says at the end.
fn ask_all(lab: &Lab, servers: [&str; 2], count: u32) -> Vec<(String, Process)> {
    let ping = |server: &str| {
        let command = format!("ping -q -i 0.1 -W 1 -c {count} {server}");
        (server.to_owned(), lab.lan1.spawn(&command))
    };
    servers.into_iter().map(ping).collect()
}

fn lost(output: &str) -> u32 {
    let (before, _) = output.split_once("% packet loss").expect("a summary");
    let share = before
        .rsplit(' ')
        .next()
        .and_then(|it| it.parse::<f64>().ok());
    share.expect("a number").ceil() as u32
}

/// Traffic flows on past the time at which the kernel would forget the hosts, and hosts that it
/// has not known before are found.
#[test]
fn hosts_that_a_filter_hides_are_found() {
    assert_found(&FILTERS[..3]);
}

#[test]
fn hosts_that_a_filter_of_arp_hides_are_found() {
    assert_found(&FILTERS[3..]);
}

fn assert_found(filters: &[&str]) {
    for filter in filters {
        let mut lab = forgetful_lab();
        lab.unit.start();
        wait_until("hosts are served", || serves(&lab, SERVER));
        lab.unit.ns.sh(filter);
        let pings = ask_all(&lab, SERVER, 120);
        for (server, ping) in pings {
            let output = ping.finish(PATIENCE).stdout;
            // Without the gateway's help all are lost from the second second on.
            assert!(lost(&output) <= 20, "{filter}: {server}: {output}");
        }
        // The kernel takes three seconds to give up.
        let begin = Instant::now();
        wait_until("unknown hosts are served", || serves(&lab, SERVER2));
        let took = begin.elapsed();
        assert!(took < Duration::from_secs(15), "{filter}: it took {took:?}");
        // It fails if entries come back while it looks, which under traffic they do.
        lab.unit.ns.sh("ip neigh flush all || true");
        let begin = Instant::now();
        wait_until("forgotten hosts are served", || serves(&lab, SERVER));
        let took = begin.elapsed();
        assert!(took < Duration::from_secs(8), "{filter}: it took {took:?}");
        let log = lab.unit.log();
        assert!(
            log.contains("hosts found for the kernel"),
            "{filter}: {log}"
        );
    }
}

/// Where nothing is hidden, nothing is said or changed.
#[test]
fn a_kernel_that_finds_its_hosts_is_left_alone() {
    let mut lab = forgetful_lab();
    lab.unit.start();
    for (server, ping) in ask_all(&lab, SERVER, 80) {
        let output = ping.finish(PATIENCE).stdout;
        assert_eq!(lost(&output), 0, "{server}: {output}");
    }
    let log = lab.unit.log();
    assert!(!log.contains("hosts found for the kernel"), "{log}");
    let asks = lab
        .unit
        .ns
        .sh("cat /proc/sys/net/ipv[46]/neigh/eth[01]/app_solicit");
    assert_eq!(asks.replace('\n', ""), "0000");
}

fn serves(lab: &Lab, servers: [&str; 2]) -> bool {
    servers.iter().all(|server| {
        let ping = lab.lan1.try_run(&format!("ping -c 1 -W 0.5 {server}"));
        ping.status.success()
    })
}
