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
}

const WORKLOADS: &[Workload] = &[
    Workload {
        name: "UDP of a session",
        port: LAN,
        verdict: Verdict::Forward,
        packet: udp_out,
    },
    Workload {
        name: "UDP answer",
        port: WAN,
        verdict: Verdict::Forward,
        packet: udp_back,
    },
    Workload {
        name: "TCP of a session",
        port: LAN,
        verdict: Verdict::Forward,
        packet: tcp_out,
    },
    Workload {
        name: "TCP answer, 1000 bytes",
        port: WAN,
        verdict: Verdict::Forward,
        packet: tcp_back,
    },
    Workload {
        name: "new UDP session",
        port: LAN,
        verdict: Verdict::Forward,
        packet: udp_new,
    },
    Workload {
        name: "ping answered",
        port: LAN,
        verdict: Verdict::Consumed,
        packet: ping,
    },
    Workload {
        name: "dropped: no policy",
        port: WAN,
        verdict: Verdict::Drop(tandemgw_core::event::DropReason::NoPolicy),
        packet: unwanted,
    },
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
        run(workload.parse().expect("a number"), family == "v6");
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

/// One workload, with the counting around [`counted_packets`] only.
fn run(workload: usize, v6: bool) {
    let workload = &WORKLOADS[workload];
    let net = Net::of(if v6 { Family::V6 } else { Family::V4 });
    let mut lab = Lab::of(&CONFIG.replace("max-sessions = 1024", "max-sessions = 4096"));
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
        "{:<24} {:>8} {:>8}   instructions a packet",
        "", "IPv4", "IPv6"
    );
    for (index, workload) in WORKLOADS.iter().enumerate() {
        let (v4, v6) = (count(index, "v4")?, count(index, "v6")?);
        println!("{:<24} {v4:>8} {v6:>8}", workload.name);
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
