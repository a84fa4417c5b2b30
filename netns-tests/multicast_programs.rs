//! Multicast with programs of others: routers that run smcroute; ssmping, mcfirst, iperf and ffmpeg
//! at the hosts.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::time::Duration;

use crate::lab::{FAR, Lab, SERVER, bracketed};
use crate::multicast::{GROUPS, POLICY, Stream};
use testkit::system::namespace::Namespace;
use testkit::system::process::{Process, wait_until};

const OF_ONE_SOURCE: &str = r#"
[[multicast-policy]]
name = "of-one-source"
from = ["wan"]
to = ["lan"]
group = ["232.0.0.0/8", "ff3e::/16"]
action = "accept"
"#;
const PATIENCE: Duration = Duration::from_secs(30);

/// Has a router send on what comes in by `eth1`.
fn smcroute(router: &Namespace, folder: &Path) -> Process {
    let lines = GROUPS.map(|group| {
        format!("mgroup from eth1 group {group}\nmroute from eth1 group {group} to eth0\n")
    });
    let file = |what: &str| folder.join(format!("{}.{what}", router.name()));
    std::fs::write(file("conf"), lines.concat()).unwrap();
    let daemon = router.spawn(&format!(
        "smcrouted -n -s -f {} -P {} -u {}",
        file("conf").display(),
        file("pid").display(),
        file("sock").display()
    ));
    wait_until("smcroute has started", || file("pid").exists());
    daemon
}

/// A sender two routers away, which know nothing of members: their routes are static.
#[test]
fn a_stream_comes_through_routers_of_others() {
    let mut lab = Lab::new();
    let network = lab.add_far_network(1500);
    let _daemons = network
        .routers
        .each_ref()
        .map(|router| smcroute(router, lab.dir()));
    lab.unit.config += POLICY;
    lab.unit.start();
    for (group, from) in GROUPS.into_iter().zip(FAR) {
        let _stream = Stream::start(&network.far, from, group, Duration::from_millis(5));
        let first = lab
            .lan1
            .spawn(&format!("mcfirst -c 20 -t 20 -I eth0 {group} 5004"));
        let heard = first.finish(PATIENCE).ok().stdout;
        assert!(heard.contains(from), "{heard}");
        let rows = lab.unit.sessions("state=multicast");
        assert_eq!((rows.len(), &rows[0]["src"]), (1, &from.into()), "{rows:?}");
        wait_until("the session ends with its member", || {
            lab.unit.sessions("state=multicast").is_empty()
        });
    }
}

/// The host asks a server, which answers it and a group of which the host wants this source only.
#[test]
fn ssmping_gets_its_answers() {
    let mut lab = Lab::new();
    lab.unit.config += OF_ONE_SOURCE;
    lab.unit.start();
    let _server = lab.server.spawn("ssmpingd");
    for (family, server) in [4, 6].into_iter().zip(SERVER) {
        let ping = lab
            .lan1
            .spawn(&format!("ssmping -{family} -I eth0 -c 5 {server}"));
        let heard = ping.finish(PATIENCE).stdout;
        let answers = heard.lines().filter(|line| line.contains("multicast from"));
        assert!(answers.count() >= 3, "{heard}");
    }
}

/// iperf 2 numbers its datagrams, and its servers say how many are missing.
#[test]
fn iperf_misses_nothing_at_two_hosts() {
    let mut lab = Lab::new();
    lab.unit.config += POLICY;
    lab.unit.config += "\n[metrics]\nlisten = \"127.0.0.1:10747\"\n";
    lab.unit.start();
    for ((group, server), family) in GROUPS.into_iter().zip(SERVER).zip(["IPv4", "IPv6"]) {
        let flag = if family == "IPv6" { "-V" } else { "" };
        let hosts = [&lab.lan1, &lab.lan2];
        let servers = hosts.map(|host| host.spawn(&format!("iperf -s -u {flag} -B {group}%eth0")));
        for host in hosts {
            wait_until("the host has joined", || {
                host.run("ip maddr show dev eth0").contains(group)
            });
        }
        let wanted = format!("tandemgw_multicast_groups{{port=\"lan\",family=\"{family}\"}} 1");
        wait_until("the gateway knows of it", || {
            let scraped = lab.unit.ns.run("curl -s http://127.0.0.1:10747/metrics");
            scraped.contains(&wanted)
        });
        let client = format!("iperf -c {group} -u {flag} -T 8 -B {server} -b 10M -l 1200 -t 2");
        lab.server.spawn(&client).finish(PATIENCE).ok();
        for iperf in servers {
            iperf.expect_stdout("a report without a loss", |line| line.contains(" 0/"));
            iperf.stop();
        }
    }
}

/// A transport stream, as television comes; the host sees pictures without a gap.
#[test]
fn ffmpeg_shows_a_film() {
    const SOURCE: &str = "-re -f lavfi -i testsrc=size=160x120:rate=25 -c:v mpeg2video -f mpegts";
    let mut lab = Lab::new();
    lab.unit.config += POLICY;
    lab.unit.start();
    for (group, server) in GROUPS.into_iter().zip(SERVER) {
        let at = bracketed(group);
        lab.server.sh(&format!("ip route replace {group} dev eth0"));
        lab.lan1.sh(&format!("ip route replace {group} dev eth0"));
        let url = format!("udp://{at}:5004?pkt_size=1316&ttl=8&localaddr={server}");
        let ffmpeg = "ffmpeg -nostdin -v error";
        let _sender = lab.server.spawn(&format!("{ffmpeg} {SOURCE} {url}"));
        let shows = format!("{ffmpeg} -i udp://{at}:5004 -frames:v 50 -f framehash -");
        let shown = lab.lan1.spawn(&shows).finish(PATIENCE).ok();
        let pictures = shown.stdout.lines().filter(|line| !line.starts_with('#'));
        assert_eq!(pictures.count(), 50, "{}", shown.stderr);
    }
}
