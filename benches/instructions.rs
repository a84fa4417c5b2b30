//! Instructions a packet, counted by valgrind, so that a machine under load gives the same numbers
//! as an idle one: `cargo bench --bench instructions`.

use std::fs;
use std::hint::black_box;
use std::process::{Command, ExitCode};

use tandemgw_core::event::{Offload, Verdict};
use tandemgw_core::flow::{Family, PortId};
use testkit::lab::{CONFIG, LAN, Lab, Net, WAN};
use testkit::packets::{ACK, Pkt, SYN, SYN_ACK, echo_request, tcp, udp};

/// Packets of a run.
const PACKETS: usize = 1000;

/// A flow of packets all alike, or nearly.
struct Workload {
    name: &'static str,
    port: PortId,
    verdict: Verdict,
    packet: fn(&mut Lab, &Net, u16) -> Pkt,
    /// The policies before the last one, which is for all that leaves; none for those of the lab.
    policies: Option<fn(u16) -> String>,
}

/// A workload of new sessions under many policies, of which the last one is for them.
const fn policies(name: &'static str, policies: fn(u16) -> String) -> Workload {
    Workload {
        name,
        port: LAN,
        verdict: Verdict::Forward,
        packet: udp_new,
        policies: Some(policies),
    }
}

const WORKLOADS: &[Workload] = &[
    Workload {
        name: "UDP of a session",
        port: LAN,
        verdict: Verdict::Forward,
        packet: udp_out,
        policies: None,
    },
    Workload {
        name: "UDP answer",
        port: WAN,
        verdict: Verdict::Forward,
        packet: udp_back,
        policies: None,
    },
    Workload {
        name: "TCP of a session",
        port: LAN,
        verdict: Verdict::Forward,
        packet: tcp_out,
        policies: None,
    },
    Workload {
        name: "TCP answer, 1000 bytes",
        port: WAN,
        verdict: Verdict::Forward,
        packet: tcp_back,
        policies: None,
    },
    Workload {
        name: "new UDP session",
        port: LAN,
        verdict: Verdict::Forward,
        packet: udp_new,
        policies: None,
    },
    Workload {
        name: "ping answered",
        port: LAN,
        verdict: Verdict::Consumed,
        packet: ping,
        policies: None,
    },
    Workload {
        name: "dropped: no policy",
        port: WAN,
        verdict: Verdict::Drop(tandemgw_core::event::DropReason::NoPolicy),
        packet: unwanted,
        policies: None,
    },
    Workload {
        name: "SYN, all ports taken",
        port: LAN,
        verdict: Verdict::Drop(tandemgw_core::event::DropReason::NatExhausted),
        packet: syn_in_vain,
        policies: Some(|_| String::new()),
    },
    policies("1 policy", |_| String::new()),
    policies("5000: a source each", |n| {
        format!("source = [\"10.9.{}.{}\"]", n / 256, n % 256)
    }),
    policies("5000: a port each", |n| {
        format!("service = [\"udp/{}\"]", n + 1000)
    }),
    policies("5000: 8 ports each", |n| {
        format!("service = [\"udp/{}-{}\"]", 8 * n + 1000, 8 * n + 1007)
    }),
    policies("5000: pairs of networks", |n| {
        format!(
            "source = [\"10.{}.0.0/16\", \"fd77:{:x}::/32\"]\ndestination = [\"198.{}.0.0/16\", \"2001:{:x}::/32\"]\nservice = [\"udp/1\"]",
            70 + n / 71,
            n / 71,
            1 + n % 71,
            n % 71,
        )
    }),
];

fn udp_out(lab: &mut Lab, net: &Net, index: u16) -> Pkt {
    let query = udp((net.host, 40000), (net.server, 53));
    if index == 0 {
        let answer = query.clone().src(net.wan_vip).answer();
        lab.flood([(LAN, query.clone()), (WAN, answer)].into_iter());
    }
    query
}

fn udp_back(lab: &mut Lab, net: &Net, index: u16) -> Pkt {
    udp_out(lab, net, index).src(net.wan_vip).answer()
}

fn tcp_out(lab: &mut Lab, net: &Net, index: u16) -> Pkt {
    let out = tcp((net.host, 40000), (net.server, 443), SYN, 100, 0);
    let ack = out.clone().segment(ACK, 101, 501);
    if index == 0 {
        let answer = out
            .clone()
            .src(net.wan_vip)
            .answer()
            .segment(SYN_ACK, 500, 101);
        lab.flood([(LAN, out), (WAN, answer), (LAN, ack.clone())].into_iter());
    }
    ack
}

fn tcp_back(lab: &mut Lab, net: &Net, index: u16) -> Pkt {
    let ack = tcp_out(lab, net, index).src(net.wan_vip).answer();
    ack.segment(ACK, 501, 101).payload(&[1; 1000])
}

fn udp_new(_: &mut Lab, net: &Net, index: u16) -> Pkt {
    udp((net.host, 20000 + index), (net.server, 53))
}

fn ping(_: &mut Lab, net: &Net, _: u16) -> Pkt {
    echo_request((net.host, 7), net.lan_vip).payload(&[1; 56])
}

fn unwanted(_: &mut Lab, net: &Net, index: u16) -> Pkt {
    udp((net.server, 20000 + index), (net.host, 53))
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if let [_, flag, workload, family] = args.as_slice()
        && flag == "--run"
    {
        run(workload.parse().expect("a number"), family);
        return ExitCode::SUCCESS;
    }
    match count_all() {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("instructions: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// A SYN towards a port of the server to which all ports of the pool are taken.
fn syn_in_vain(lab: &mut Lab, net: &Net, index: u16) -> Pkt {
    let syn = |host, port| tcp((host, port), (net.server, 9), SYN, 1, 0);
    if index == 0 {
        // The second search sees that the first one has seen all there are.
        let all = (0..FEW_PORTS + 400).map(|port| syn(net.neighbor, 30_000 + port));
        for packet in all {
            lab.send(LAN, &packet);
        }
    }
    syn(net.neighbor, 20_000 + index)
}

/// Ports of the pool of [`syn_in_vain`].
const FEW_PORTS: u16 = 256;

/// IPv4 while `tandemgw ipfix` reads; the page and `tandemgw events` only ask now and then.
const READ: &str = "v4 read";

/// The config for a workload.
fn config(workload: &Workload) -> String {
    let all = CONFIG.replace("max-sessions = 1024", "max-sessions = 8192");
    let Some(conditions) = workload.policies else {
        return all;
    };
    let (before, _) = all.split_once("[[policy]]").expect("policies");
    let mut config = before.to_owned();
    let count = if conditions(0).is_empty() { 0 } else { 4999 };
    for number in 0..count {
        config += &format!(
            "[[policy]]\nname = \"{number}\"\naction = \"drop\"\n{}\n",
            conditions(number)
        );
    }
    if workload.name.starts_with("SYN") {
        config += &format!(
            "[[nat-pool]]\nname = \"few\"\naddresses = [\"10.77.2.9\", \"fd77:2::9\"]\nports = \"20000-{}\"\n\
             [[policy]]\nname = \"few\"\nto = [\"wan\"]\nservice = [\"tcp/9\"]\naction = \"accept\"\nnat-pool = \"few\"\n",
            20_000 + FEW_PORTS - 1
        );
    }
    config
        + "[[policy]]\nname = \"out\"\nfrom = [\"lan\"]\nto = [\"wan\"]\naction = \"accept\"\nnat = true\n"
}

/// One workload, with the counting around [`counted_packets`] only.
fn run(workload: usize, family: &str) {
    let workload = &WORKLOADS[workload];
    let is_v6 = family == "v6";
    let net = Net::of(if is_v6 { Family::V6 } else { Family::V4 });
    let mut lab = Lab::of(&config(workload));
    if family == READ {
        lab.gateway.open_session_log();
    }
    let mut packets: Vec<Vec<u8>> = (0..PACKETS as u16)
        .map(|index| (workload.packet)(&mut lab, &net, index).bytes())
        .collect();
    let as_expected = counted_packets(&mut lab, workload.port, &mut packets, workload.verdict);
    assert_eq!(as_expected, PACKETS, "{}", workload.name);
}

#[inline(never)]
fn counted_packets(
    lab: &mut Lab,
    port: PortId,
    packets: &mut [Vec<u8>],
    verdict: Verdict,
) -> usize {
    let mut as_expected = 0;
    for packet in packets {
        let now = lab.now;
        let seen = lab
            .gateway
            .handle_packet(now, port, black_box(packet), Offload::default());
        as_expected += usize::from(seen == verdict);
    }
    as_expected
}

fn count_all() -> Result<(), String> {
    println!(
        "{:<24} {:>8} {:>8} {:>10}   instructions a packet",
        "", "IPv4", "IPv6", "IPv4, read"
    );
    for (index, workload) in WORKLOADS.iter().enumerate() {
        let (v4, v6) = (count(index, "v4")?, count(index, "v6")?);
        let read = count(index, READ)?;
        println!("{:<24} {v4:>8} {v6:>8} {read:>10}", workload.name);
    }
    Ok(())
}

fn count(workload: usize, family: &str) -> Result<u64, String> {
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    let out = std::env::temp_dir().join(format!("tandemgw-callgrind.{}", std::process::id()));
    let output = Command::new("valgrind")
        .args([
            "--tool=callgrind",
            "--collect-atstart=no",
            "--toggle-collect=*counted_packets*",
        ])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(this)
        .args(["--run", &workload.to_string(), family])
        .output()
        .map_err(|error| format!("valgrind: {error}; install it: apt-get install valgrind"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let profile =
        fs::read_to_string(&out).map_err(|error| format!("{}: {error}", out.display()))?;
    let _ = fs::remove_file(&out);
    let total = profile
        .lines()
        .find_map(|line| line.strip_prefix("totals: ")?.trim().parse::<u64>().ok())
        .filter(|total| *total > 0)
        .ok_or("callgrind counted nothing: is the function inlined?")?;
    Ok(total / PACKETS as u64)
}
