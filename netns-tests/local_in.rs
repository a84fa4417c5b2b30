//! Packets to the machine itself: `[[local-in]]`.

use crate::lab::{LAN1, LAN2, Lab, bracketed};
use testkit::system::namespace::Namespace;
use testkit::system::process::wait_until;

/// The addresses of the machine itself on its LAN.
const OWN: [&str; 2] = ["10.77.1.2", "fd77:1::2"];

fn reaches(host: &Namespace, addr: &str, port: u16) -> bool {
    let addr = bracketed(addr);
    let connect = format!("socat -u OPEN:/dev/null TCP:{addr}:{port},connect-timeout=1");
    host.try_run(&connect).status.success()
}

fn pings(host: &Namespace, addr: &str) -> bool {
    host.try_run(&format!("ping -c 1 -W 1 {addr}"))
        .status
        .success()
}

#[test]
fn only_what_is_named_reaches_the_machine_by_a_named_port() {
    let mut lab = Lab::new();
    let _services = [22, 80].map(|port| {
        lab.unit.ns.spawn(&format!(
            "socat TCP6-LISTEN:{port},fork,reuseaddr,ipv6only=0 /dev/null"
        ))
    });
    wait_until("both listen", || {
        [22, 80]
            .iter()
            .all(|port| reaches(&lab.unit.ns, OWN[0], *port))
    });
    let before = lab.unit.kernel_state();
    lab.unit.config += &format!(
        r#"
[[local-in]]
name = "nobody"
from = ["lan"]
source = ["{}/32"]
service = ["tcp/22"]
action = "drop"

[[local-in]]
name = "ssh"
from = ["lan"]
source = ["10.77.1.0/24", "fd77:1::/64"]
service = ["tcp/20-22"]
action = "accept"
"#,
        LAN2[0]
    );
    lab.unit.start();
    for own in OWN {
        assert!(reaches(&lab.lan1, own, 22), "{own}");
        assert!(!reaches(&lab.lan1, own, 80), "{own}");
        assert!(!pings(&lab.lan1, own), "{own}");
    }
    assert!(!reaches(&lab.lan2, OWN[0], 22));
    assert!(reaches(&lab.lan2, OWN[1], 22));
    // The machine itself gets its answers, and what is forwarded is not concerned.
    assert!(pings(&lab.unit.ns, LAN1[0]) && pings(&lab.unit.ns, LAN1[1]));
    assert!(pings(&lab.lan1, "10.77.2.100"));
    // A port that is not named stays open.
    for own in ["10.77.2.2", "fd77:2::2"] {
        assert!(reaches(&lab.server, own, 80), "{own}");
        assert!(pings(&lab.server, own), "{own}");
    }
    let config = lab.unit.config_path().display().to_string();
    let told = lab
        .unit
        .tandemgw(&format!("doctor --config {config}"))
        .stdout;
    let told = told.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        told.contains("lan: tcp/22 (from 10.77.1.0/24, fd77:1::/64); wan: tcp/22, tcp/80"),
        "{told}"
    );

    // Somebody removes the rules; and the process is killed.
    lab.unit
        .ns
        .run("nft flush chain inet tandemgw-gw-a local-in");
    wait_until("they are back", || !reaches(&lab.lan1, OWN[0], 80));
    lab.unit.kill();
    assert!(!reaches(&lab.lan1, OWN[0], 80), "a crash opens nothing");
    lab.unit.start();
    lab.unit.edit("action = \"drop\"", "action = \"accept\"");
    let told = lab.unit.reload();
    assert_eq!(told["restart"][0]["key"], "local-in.nobody", "{told}");
    lab.unit.stop();
    assert!(reaches(&lab.lan1, OWN[0], 80), "a clean end removes them");
    assert_eq!(lab.unit.kernel_state(), before);
}
