//! Mistakes in the config and in the machine's setup are reported in one sentence, before anything
//! is changed.

use std::fs;

use crate::lab::Lab;
use crate::unit::Unit;

/// Writes the config as edited, checks it, and returns the output.
#[track_caller]
fn check_fails(unit: &Unit) -> String {
    fs::write(unit.config_path(), &unit.config).expect("writing the config");
    unit.tandemgw(&format!("check --config {}", unit.config_path().display()))
        .code(2)
        .stderr
}

#[test]
fn check_accepts_the_default() {
    let lab = Lab::new();
    fs::write(lab.unit.config_path(), &lab.unit.config).expect("writing the config");
    lab.unit
        .tandemgw(&format!(
            "check --config {}",
            lab.unit.config_path().display()
        ))
        .ok();
}

#[test]
fn check_points_at_each_mistake() {
    let cases = [
        ("interface = \"eth1\"", "interfaec = \"eth1\"", "11:1"),
        ("action = \"accept\"", "action = \"acept\"", "18:10"),
        ("\"10.77.2.1/24\"", "\"10.77.2.300/24\"", "12:22"),
        ("to = [\"wan\"]", "to = [\"wam\"]", "17:7"),
        ("name = \"wan\"", "name = \"lan\"", "10:8"),
        ("nat = true", "nat = yes", "19:7"),
        ("10.77.2.1/24", "10.77.1.1/24", "12:22"),
    ];
    for (from, to, place) in cases {
        let mut lab = Lab::new();
        lab.unit.edit(from, to);
        let said = check_fails(&lab.unit);
        let expected = format!("{}:{place}", lab.unit.config_path().display());
        assert!(said.contains(&expected), "`{to}`: no {expected} in\n{said}");
        // run says the same, and does nothing.
        let before = lab.unit.kernel_state();
        lab.unit.start_in_vain().code(2);
        assert_eq!(lab.unit.kernel_state(), before);
    }
}

#[test]
fn check_tells_all_mistakes_at_once() {
    let mut lab = Lab::new();
    lab.unit.edit("to = [\"wan\"]", "to = [\"wam\"]");
    lab.unit.edit("\"10.77.1.1/24\"", "\"10.77.1.1/33\"");
    let said = check_fails(&lab.unit);
    for line in [":7:", ":17:"] {
        assert!(said.contains(line), "no {line} in\n{said}");
    }
}

#[test]
fn what_is_not_utf8_has_a_place() {
    let lab = Lab::started();
    let path = lab.unit.config_path();
    let shown = path.display().to_string();
    let mut bytes = lab.unit.config.clone().into_bytes();
    bytes.extend(b"# Stra\xdfe\n");
    let line = bytes.split(|byte| *byte == b'\n').count() - 1;
    std::fs::write(path, bytes).expect("writing the config");
    for command in [format!("check --config {shown}"), "reload".to_owned()] {
        let said = lab.unit.tandemgw(&command).code(2).stderr;
        let place = format!("{shown}:{line}:7: ");
        assert!(
            said.contains(&place) && said.contains("0xdf"),
            "{command}: {said}"
        );
    }
    lab.unit.tandemgw("status --json").ok();
}

#[test]
fn memory_that_does_not_suffice_is_said_by_the_name_of_its_option() {
    let mut lab = Lab::new();
    lab.unit.edit("[node]", "[node]\nmax-sessions = 16777216");
    lab.unit.launch_by("ulimit -v 1000000; exec \"$@\"");
    let said = lab.unit.start_in_vain().code(2).stderr;
    assert!(said.contains("max-sessions = 16777216"), "{said}");
    assert!(said.contains("lower `max-sessions`"), "{said}");
}

#[test]
fn missing_config_file_is_named() {
    let lab = Lab::new();
    let said = lab
        .unit
        .tandemgw("check --config /nonexistent.toml")
        .code(2)
        .stderr;
    assert!(said.contains("/nonexistent.toml"), "{said}");
}

/// Starts on a machine that is not fit: refused, `words` are said, and nothing has changed.
#[track_caller]
fn refuses(prepare: &str, words: &[&str]) {
    let mut lab = Lab::new();
    lab.unit.ns.sh(prepare);
    let before = lab.unit.kernel_state();
    let said = lab.unit.start_in_vain().code(2).stderr;
    for word in words {
        assert!(
            said.contains(word),
            "after `{prepare}`: no `{word}` in\n{said}"
        );
    }
    assert!(!said.contains("panicked"), "{said}");
    assert_eq!(lab.unit.kernel_state(), before, "something is left behind");
}

#[test]
fn absent_interface_is_refused() {
    refuses("ip link del eth1", &["eth1"]);
}

#[test]
fn strict_reverse_path_filter_is_refused() {
    refuses(
        "echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter",
        &["rp_filter"],
    );
}

#[test]
fn routing_table_in_use_is_refused() {
    refuses(
        "ip route add 192.0.2.0/24 dev eth0 table 7700",
        &["7700", "routing-table"],
    );
}

#[test]
fn virtual_address_of_the_kernel_is_refused() {
    refuses("ip addr add 10.77.2.1/24 dev eth1", &["10.77.2.1", "eth1"]);
    refuses(
        "ip addr add fd77:1::1/64 dev eth0 nodad",
        &["fd77:1::1", "eth0"],
    );
}

#[test]
fn foreign_device_of_our_name_is_refused() {
    refuses(
        "ip link add tgw-lan type veth peer name foreign0",
        &["tgw-lan"],
    );
}

#[test]
fn missing_tun_device_is_refused() {
    refuses("mount -t tmpfs tmpfs /dev/net", &["/dev/net/tun"]);
}

/// The output, without the hints about the clock of the machine and the offloads of virtual links.
fn check_system(unit: &Unit) -> String {
    let config = unit.config_path().display();
    let checked = unit.tandemgw(&format!("check --config {config} --system"));
    let is_hint = |line: &&str| {
        let hints = ["clock is not synchronised", "generic receive offload"];
        hints.iter().any(|hint| line.contains(hint))
    };
    let said = checked.ok().stderr;
    let lines: Vec<&str> = said.lines().filter(|line| !is_hint(line)).collect();
    lines.join("\n")
}

#[test]
fn check_of_the_machine_beside_the_running_gateway_finds_nothing() {
    let lab = Lab::started();
    let said = check_system(&lab.unit);
    assert!(said.trim_end().ends_with("no errors"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    // A second one is refused as usual.
    let config = lab.unit.config_path().display();
    let said = lab.unit.tandemgw(&format!("run --config {config}")).code(2);
    assert!(said.stderr.contains("in use by process"), "{}", said.stderr);
    lab.lan1.run("ping -c 1 -W 2 10.77.2.100");
}

#[test]
fn forward_chain_that_drops_is_told_with_a_remedy_that_works() {
    let lab = Lab::started();
    lab.unit.ns.sh("nft add table inet filter
        nft 'add chain inet filter forward { type filter hook forward priority 0; policy drop; }'");
    let ping = "ping -c 1 -W 1 10.77.2.100";
    lab.lan1.try_run(ping).code(1);
    let said = check_system(&lab.unit);
    let (warning, remedies) = said.split_once("accepts it; ").expect("a warning");
    assert!(warning.starts_with("warning: "), "{said}");
    assert!(
        warning.contains("chain forward of table inet filter"),
        "{said}"
    );
    for remedy in remedies.split_inclusive("accept'").take(2) {
        lab.unit.ns.sh(remedy.trim_start_matches(" and "));
    }
    let ping = "ping -c 1 -W 2 10.77.2.100";
    lab.lan1.run(ping);
    let said = check_system(&lab.unit);
    assert!(!said.contains("warning"), "{said}");
}
