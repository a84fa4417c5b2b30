//! Packets that gateways were seen to drop or to spoil, as real programs send them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::capture::Capture;
use crate::lab::{LAN1, LAN2, Lab, SERVER, WAN_GATEWAY, bracketed};
use crate::services::family_number;
use testkit::system::namespace::Namespace;
use testkit::system::process::wait_until;

/// NFS servers with `secure`, and rsh before them, trust ports below 1024 (RFC 4787, REQ-3a).
#[test]
fn source_ports_below_1024_stay_below() {
    let lab = Lab::started();
    // The second host has chosen the same ports.
    for (server, host) in SERVER
        .into_iter()
        .flat_map(|server| [(server, &lab.lan1), (server, &lab.lan2)])
    {
        for (source, range) in [(512, 512..1024), (1023, 512..1024), (111, 1..512)] {
            let seen = Capture::start(&lab.server, "eth0", "udp and dst port 2049");
            host.sh(&format!(
                "echo x | socat -u - UDP{}:{}:2049,sourceport={source}",
                family_number(server),
                bracketed(server)
            ));
            let line = seen.expect(&[&format!("> {server}.2049")]);
            let (before, _) = line.rsplit_once(" > ").expect("a packet");
            let port = before.rsplit('.').next().expect("a port");
            let port: u16 = port.parse().expect("a number");
            assert!(range.contains(&port), "{source} became {port}: {line}");
        }
    }
}

#[test]
fn a_range_of_ports_is_forwarded_port_by_port() {
    let mut lab = Lab::new();
    lab.unit.config.push_str(
        "[[forward]]\nname = \"range\"\nport = \"wan\"\nprotocol = \"udp\"\n\
         external = \"10.77.2.1:5000-5100\"\ninternal = \"10.77.1.100:6000-6100\"\n\
         [[policy]]\nname = \"in\"\nfrom = [\"wan\"]\nto = [\"lan\"]\naction = \"accept\"\n",
    );
    lab.unit.start();
    for port in [5000, 5042, 5100] {
        let seen = Capture::start(&lab.lan1, "eth0", "udp");
        lab.server.sh(&format!(
            "echo x | socat -u - UDP4:{}:{port}",
            WAN_GATEWAY[0]
        ));
        seen.expect(&[&format!("> 10.77.1.100.{}", port + 1000)]);
    }
}

/// A gateway is one hop, in what ping records too.
#[test]
fn record_route_has_the_gateway_once() {
    let lab = Lab::started();
    let said = lab.lan1.run(&format!("ping -R -c 1 -W 2 {}", SERVER[0]));
    let slots: Vec<&str> = said
        .lines()
        .skip_while(|line| !line.starts_with("RR:"))
        .take_while(|line| !line.trim().is_empty())
        .map(|line| line.trim_start_matches("RR:").trim())
        .collect();
    let ours = slots
        .iter()
        .filter(|slot| ["10.77.1.1", "10.77.1.2", "10.77.2.1", "10.77.2.2"].contains(*slot));
    // One on the way there, one on the way back.
    assert_eq!(ours.count(), 2, "{said}");
    // With a timestamp, where there are four slots; the second is that of the server.
    let said = lab
        .lan1
        .run(&format!("ping -T tsandaddr -c 1 -W 2 {}", SERVER[0]));
    let mut slots = said.lines().skip_while(|line| !line.starts_with("TS:"));
    let named = |line: Option<&str>, host: &str| {
        assert!(
            line.is_some_and(|line| line.contains(host)),
            "{host}: {said}"
        );
    };
    named(slots.next(), LAN1[0]);
    let gateway = slots.next();
    assert!(
        gateway.is_some_and(|line| line.contains("10.77.")),
        "{said}"
    );
    named(slots.next(), SERVER[0]);
}

/// A host on this machine leaves checksums to the hardware: that of the tunnel is none, that of the
/// connection in it is unfinished when the gateway sees it.
#[test]
fn tunnels_with_unfinished_checksums_inside_pass() {
    let lab = Lab::started();
    lab.lan1.sh(&format!(
        "ip link add tunnel type vxlan id 7 dev eth0 dstport 4789 remote {} noudpcsum
         ip addr add 192.168.7.1/24 dev tunnel
         ip link set tunnel up",
        SERVER[0]
    ));
    lab.server.sh(&format!(
        "ip link add tunnel type vxlan id 7 dev eth0 dstport 4789 remote {} noudpcsum
         ip addr add 192.168.7.2/24 dev tunnel
         ip link set tunnel up
         ip neigh add 192.168.7.1 dev tunnel lladdr 02:00:00:00:00:07",
        WAN_GATEWAY[0]
    ));
    let mac = lab.server.mac_text("tunnel");
    lab.lan1
        .run(&format!("ip neigh add 192.168.7.2 dev tunnel lladdr {mac}"));
    let inside = Capture::start(&lab.server, "tunnel", "tcp and dst port 80");
    let connect = lab
        .lan1
        .spawn("socat -u OPEN:/dev/null TCP4:192.168.7.2:80,connect-timeout=3");
    let syn = inside.expect(&["192.168.7.1", "Flags [S]"]);
    drop(connect);
    // tcpdump says so with -v only; the server's kernel has no other way to say it.
    assert!(!syn.contains("incorrect"), "{syn}");
    let counters = || lab.server.run("cat /proc/net/snmp");
    let wrong = |text: &str| {
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("Tcp:"))
            .collect();
        let at = lines[0].split(' ').position(|word| word == "InCsumErrors");
        lines[1]
            .split(' ')
            .nth(at.expect("a counter"))
            .map(str::to_owned)
    };
    let received = |text: &str| {
        let line = text.lines().filter(|line| line.starts_with("Tcp:")).nth(1);
        line.and_then(|line| line.split(' ').nth(10)?.parse::<u64>().ok())
    };
    wait_until("the server's TCP has seen it", || {
        received(&counters()) > Some(0)
    });
    assert_eq!(wrong(&counters()).as_deref(), Some("0"), "{}", counters());
}

/// As two programs behind one gateway do that have learned their external endpoints from a STUN
/// server, and try each other's (RFC 4787, REQ-9; RFC 8445).
#[test]
fn two_hosts_inside_talk_by_their_external_endpoints() {
    let lab = Lab::started();
    for family in [0, 1] {
        let open = |host: &Namespace, address: &str| {
            let local = format!("{}:5000", bracketed(address));
            let socket = host.inside(|| UdpSocket::bind(&local).expect("the port is free"));
            let patience = Some(Duration::from_millis(50));
            socket.set_read_timeout(patience).expect("a timeout");
            socket
        };
        let stun = open(&lab.server, SERVER[family]);
        let server = stun.local_addr().expect("its address");
        let sockets = [open(&lab.lan1, LAN1[family]), open(&lab.lan2, LAN2[family])];
        let external = |socket: &UdpSocket| {
            let begin = Instant::now();
            loop {
                socket.send_to(b"who am I?", server).expect("a route");
                match stun.recv_from(&mut [0; 64]) {
                    Ok((_, from)) => return from,
                    Err(_) => assert!(begin.elapsed() < Duration::from_secs(20)),
                }
            }
        };
        let ends = [external(&sockets[0]), external(&sockets[1])];
        assert_eq!(ends[0].ip().to_string(), WAN_GATEWAY[family]);
        assert_ne!(ends[0], ends[1]);
        let (begin, mut heard) = (Instant::now(), [false; 2]);
        while heard != [true; 2] {
            assert!(begin.elapsed() < Duration::from_secs(20), "{heard:?}");
            for me in [0, 1] {
                let sent = sockets[me].send_to(b"hello", ends[1 - me]);
                sent.expect("a route");
                let mut answer = [0; 64];
                if let Ok((length, from)) = sockets[me].recv_from(&mut answer) {
                    assert_eq!((&answer[..length], from), (&b"hello"[..], ends[1 - me]));
                    heard[me] = true;
                }
            }
        }
    }
}

/// The same by TCP: both have a connection to a server that tells them their external endpoints,
/// and connect to each other from the same ports at once (RFC 5382, REQ-8; RFC 6544).
#[test]
fn two_hosts_inside_connect_by_their_external_endpoints() {
    const PATIENCE: Duration = Duration::from_secs(20);
    let lab = Lab::started();
    for family in [0, 1] {
        let listen = format!("{}:3478", bracketed(SERVER[family]));
        let server = lab
            .server
            .inside(|| TcpListener::bind(&listen))
            .expect("the port is free");
        let there = server.local_addr().expect("its address");
        let connect = |host: &Namespace, from: &str, to: SocketAddr| {
            let socket = host.inside(|| Socket::new(Domain::for_address(to), Type::STREAM, None));
            let socket = socket.expect("a socket");
            socket.set_reuse_address(true).expect("an option");
            socket.set_reuse_port(true).expect("an option");
            let local: SocketAddr = format!("{}:5000", bracketed(from))
                .parse()
                .expect("an address");
            socket.bind(&local.into()).expect("the port is free");
            socket
                .connect_timeout(&to.into(), PATIENCE)
                .map(|()| TcpStream::from(socket))
        };
        let hosts = [(&lab.lan1, LAN1[family]), (&lab.lan2, LAN2[family])];
        let known = hosts.map(|(host, address)| {
            let stream = connect(host, address, there).expect("the server answers");
            let (_, external) = server.accept().expect("a client");
            assert_eq!(external.ip().to_string(), WAN_GATEWAY[family]);
            (stream, external)
        });
        assert_ne!(known[0].1, known[1].1);
        let talk = |me: usize| {
            let (host, address) = hosts[me];
            let other = known[1 - me].1;
            let mut stream = connect(host, address, other).expect("the other one opens too");
            assert_eq!(stream.peer_addr().expect("an address"), other);
            stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            stream
                .write_all(&[me as u8; 5000])
                .expect("it is connected");
            let mut heard = vec![9; 5000];
            stream.read_exact(&mut heard).expect("all arrives");
            assert!(heard.iter().all(|byte| *byte == 1 - me as u8));
        };
        thread::scope(|scope| {
            scope.spawn(|| talk(0));
            talk(1);
        });
    }
}
