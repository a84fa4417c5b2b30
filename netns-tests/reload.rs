//! The config changes while the gateway runs: nothing is lost but what the new one forbids.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use serde_json::Value;

use crate::conversation::{Conversation, Conversations, Streams, line_server};
use crate::lab::{LAN1, Lab, SERVER, WAN_GATEWAY, bracketed};
use crate::pair::Pair;
use crate::services::{Http, udp_echo, udp_echoes, whoami};
use crate::unit::Unit;
use testkit::system::process::{PATIENCE, wait_until};

const POOL: &str = r#"
[[nat-pool]]
name = "pool"
addresses = ["10.77.2.10", "fd77:2::10"]
"#;
const POOL_ADDRESSES: [&str; 2] = ["10.77.2.10", "fd77:2::10"];

/// The keys of a list of the answer.
fn keys(answer: &Value, list: &str) -> Vec<String> {
    let entries = answer[list].as_array().expect("a list").iter();
    entries
        .map(|entry| entry["key"].as_str().expect("a key").to_owned())
        .collect()
}

/// A file that the config includes comes, has a mistake, changes and goes.
#[test]
fn a_reload_reads_the_included_files() {
    let mut lab = Lab::started();
    let path = lab.unit.config_path().to_owned();
    let included = path.with_file_name("more.d").join("10-mail.toml");
    fs::create_dir(included.parent().expect("a folder")).expect("making the folder");
    lab.unit.config = format!("include = [\"more.d/*.toml\"]\n{}", lab.unit.config);
    let write = |action: &str| {
        let policy = format!("[[policy]]\nname = \"no-smtp\"\naction = \"{action}\"\n");
        fs::write(&included, policy).expect("writing the included file");
    };
    write("reject");
    let answer = lab.unit.reload();
    assert_eq!(keys(&answer, "changed"), ["policy.no-smtp"]);

    write("refuse");
    let refused = lab.unit.tandemgw("reload").code(2);
    let place = format!(
        "{}:3:10: error: unknown action `refuse`",
        included.display()
    );
    assert!(refused.stderr.contains(&place), "{}", refused.stderr);
    let check = format!("check --config {}", path.display());
    let checked = lab.unit.tandemgw(&check).code(2);
    assert!(checked.stderr.contains(&place), "{}", checked.stderr);
    let shown = lab.unit.tandemgw("config show").ok().stdout;
    assert!(shown.contains("name = \"no-smtp\""), "{shown}");
    assert!(shown.contains("it has mistakes"), "{shown}");

    write("drop");
    let shown = lab.unit.tandemgw("config show").ok().stdout;
    assert!(shown.contains("policy.no-smtp"), "{shown}");
    let answer = lab.unit.reload();
    assert_eq!(keys(&answer, "changed"), ["policy.no-smtp"]);
    fs::remove_file(&included).expect("removing the included file");
    let answer = lab.unit.reload();
    assert_eq!(keys(&answer, "changed"), ["policy.no-smtp"]);
    assert_eq!(answer["changed"][0]["what"], "removed");
}

#[test]
fn reloads_lose_no_packet_and_no_session() {
    let mut lab = Lab::started();
    let http = Http::start(&lab, &lab.server, 4);
    let mut sessions = Conversations::start(&lab);
    let downloads = SERVER.map(|server| http.start_slow_download(&lab.lan1, &bracketed(server)));
    let streams = Streams::start(&lab);
    let first = lab.unit.config.clone();

    lab.unit
        .prepend_policy("name = \"no-smtp\"\nservice = [\"tcp/25\"]\naction = \"reject\"");
    lab.unit.config.push_str("[timeouts]\nudp = \"100s\"\n");
    let answer = lab.unit.reload();
    assert_eq!(keys(&answer, "changed"), ["policy.no-smtp", "timeouts.udp"]);
    assert_eq!(answer["changed"][1]["what"], "300s to 100s");
    assert_eq!(answer["sessions_ended"], 0);
    streams.wait_for_more();
    sessions.go_on();

    // New sessions go by the pool, those that run keep their address.
    lab.unit.edit("nat = true", "nat-pool = \"pool\"");
    lab.unit.config.push_str(POOL);
    let answer = lab.unit.reload();
    assert_eq!(
        keys(&answer, "changed"),
        ["nat-pool.pool", "policy.lan-out"]
    );
    assert_eq!(answer["sessions_ended"], 0);
    for (server, address) in SERVER.iter().zip(POOL_ADDRESSES) {
        assert_eq!(whoami(&lab.lan2, &bracketed(server)), address);
    }
    streams.wait_for_more();
    sessions.go_on();

    // Back to the start: the pool and its sessions are gone.
    lab.unit.config = first;
    let answer = lab.unit.reload();
    assert_eq!(
        keys(&answer, "changed"),
        [
            "nat-pool.pool",
            "policy.no-smtp",
            "policy.lan-out",
            "timeouts.udp"
        ]
    );
    for (server, address) in SERVER.iter().zip(WAN_GATEWAY) {
        assert_eq!(whoami(&lab.lan2, &bracketed(server)), address);
    }
    // By signal, and several at once. The last of these reloads may come later than this looks, so
    // the file does not change afterwards.
    lab.unit.config.push_str("\n[timeouts]\nudp = \"120s\"\n");
    lab.unit.write_config();
    for _ in 0..5 {
        lab.unit.signal(libc::SIGHUP);
    }
    wait_until("the signal was obeyed", || {
        lab.unit.log().contains("timeouts.udp: 300s to 120s")
    });
    sessions.go_on();
    streams.wait_for_more();
    streams.assert_whole();
    for download in downloads {
        download.finish();
    }
    sessions.finish();
    for reason in [
        "no-policy",
        "tcp-no-session",
        "policy-drop",
        "nat-exhausted",
    ] {
        assert_eq!(lab.unit.dropped(reason), 0, "{reason}");
    }
    let answer = lab.unit.reload();
    assert_eq!(keys(&answer, "changed"), [""; 0]);
}

#[test]
fn sessions_that_are_forbidden_end_and_are_counted() {
    let mut lab = Lab::started();
    let mut sessions = Conversations::start(&lab);
    let streams = Streams::start(&lab);
    let talking = format!("src={}", LAN1[0]);
    assert_eq!(lab.unit.sessions(&talking).len(), 1);
    lab.unit
        .prepend_policy("name = \"not-lan1\"\nsource = [\"10.77.1.100\"]\naction = \"drop\"");
    lab.unit.write_config();
    let said = lab.unit.tandemgw("reload").ok().stdout;
    assert!(said.contains("policy.not-lan1  added"), "{said}");
    assert!(said.contains("1 session ended"), "{said}");
    assert_eq!(lab.unit.sessions(&talking).len(), 0);
    assert_eq!(lab.unit.sessions("proto=tcp").len(), 1, "that of IPv6");
    let counters = &lab.unit.status()["counters"];
    assert_eq!(
        (&counters["forbidden"], &counters["cleared"]),
        (&1.into(), &1.into())
    );
    streams.wait_for_more();
    streams.assert_whole();
    // The other one goes on; the one that ended can't come back.
    sessions.go_on_from(1);
    lab.lan1.try_run("ping -c 1 -W 1 10.77.2.100").code(1);
    assert!(lab.unit.dropped("policy-drop") > 0);

    // A policy of another name that allows the same: nothing ends, and the name is the new one.
    lab.unit.edit("name = \"lan-out\"", "name = \"all-out\"");
    let answer = lab.unit.reload();
    assert_eq!(answer["sessions_ended"], 0);
    let left = lab.unit.sessions("proto=tcp");
    assert_eq!(left[0]["policy"], "all-out");
    sessions.go_on_from(1);
}

#[test]
fn forward_comes_leads_elsewhere_and_goes() {
    let mut lab = Lab::started();
    let server = line_server(&lab.lan1, "10.77.1.100");
    let other = line_server(&lab.lan2, "10.77.1.101");
    lab.unit.config.push_str(
        "[[policy]]\nname = \"in\"\nfrom = [\"wan\"]\nto = [\"lan\"]\nservice = [\"tcp/7100\"]\naction = \"accept\"\n\
         [[nat-pool]]\nname = \"pool\"\naddresses = [\"10.77.2.10\"]\n\
         [[forward]]\nname = \"web\"\nport = \"wan\"\nprotocol = \"tcp\"\n\
         external = \"10.77.2.10:7100\"\ninternal = \"10.77.1.100:7100\"\n",
    );
    let answer = lab.unit.reload();
    assert_eq!(
        keys(&answer, "changed"),
        ["nat-pool.pool", "policy.in", "forward.web"]
    );
    let main = |unit: &Unit| unit.ns.run("ip route show table main");
    assert!(
        main(&lab.unit).contains("10.77.2.10 dev tgw-wan"),
        "{}",
        main(&lab.unit)
    );
    let mut conversation = Conversation::start(&lab.server, "10.77.2.10");
    assert_eq!(lab.unit.reload()["sessions_ended"], 0);
    conversation.go_on();

    lab.unit.edit("10.77.1.100:7100", "10.77.1.101:7100");
    assert_eq!(lab.unit.reload()["sessions_ended"], 1);
    let conversation = Conversation::start(&lab.server, "10.77.2.10");
    let seen = lab.unit.sessions("dst=10.77.2.10");
    assert_eq!(seen[0]["nat_dst"], "10.77.1.101:7100");

    let at = lab.unit.config.find("[[nat-pool]]").expect("the pool");
    lab.unit.config.truncate(at);
    assert_eq!(lab.unit.reload()["sessions_ended"], 1);
    assert!(
        !main(&lab.unit).contains("10.77.2.10"),
        "{}",
        main(&lab.unit)
    );
    lab.server.try_run("ping -c 1 -W 1 10.77.2.10").code(1);
    drop((conversation, server, other));
}

#[test]
fn bad_file_changes_nothing_and_says_why() {
    let mut lab = Lab::started();
    let mut sessions = Conversations::start(&lab);
    let good = lab.unit.config.clone();
    let path = lab.unit.config_path().display().to_string();
    let cases = [
        (
            "to = [\"wan\"]",
            "to = [\"wam\"]",
            ":17:7: error: unknown port `wam`",
        ),
        ("[[policy]]", "[[policy]", ":"),
    ];
    for (from, to, said) in cases {
        lab.unit.config = good.clone();
        lab.unit.edit("nat = true", "nat = true\nlog = true");
        lab.unit.edit(from, to);
        lab.unit.write_config();
        let refused = lab.unit.tandemgw("reload").code(2);
        assert!(
            refused.stderr.contains(&format!("{path}{said}")),
            "{}",
            refused.stderr
        );
        let checked = lab.unit.tandemgw(&format!("check --config {path}")).code(2);
        let end = format!("tandemgw: {path} has mistakes; nothing has changed\n");
        assert_eq!(refused.stderr, checked.stderr + &end);
        let json = lab.unit.tandemgw("reload --json").code(2);
        let answer: Value = serde_json::from_str(&json.stdout).expect("JSON");
        assert!(
            answer["problems"][0]
                .as_str()
                .expect("a line")
                .starts_with(&path)
        );
    }
    lab.unit.signal(libc::SIGHUP);
    wait_until("the signal was obeyed", || {
        lab.unit.log().matches("reload refused").count() == 5
    });
    assert!(lab.unit.log().contains("nothing has changed"));
    fs::remove_file(&path).expect("removing the config");
    let refused = lab.unit.tandemgw("reload").code(2);
    assert!(
        refused.stderr.contains("No such file"),
        "{}",
        refused.stderr
    );
    fs::create_dir(&path).expect("making a folder");
    let refused = lab.unit.tandemgw("reload").code(2);
    assert!(
        refused.stderr.contains("not a regular file"),
        "{}",
        refused.stderr
    );
    fs::remove_dir(&path).expect("removing the folder");
    lab.unit.assert_running();
    sessions.go_on();
    // The log line of a session would say that the policy has changed.
    lab.unit.config = good;
    assert_eq!(keys(&lab.unit.reload(), "changed"), [""; 0]);
    sessions.finish();
}

#[test]
fn what_needs_a_restart_is_named_and_the_rest_applied() {
    let mut lab = Lab::started();
    lab.unit.edit("[node]", "[node]\nmax-sessions = 4096");
    lab.unit.edit(
        "interface = \"eth1\"",
        "interface = \"eth1\"\noffload = false",
    );
    lab.unit.edit("nat = true", "nat = true\nlog = true");
    lab.unit.write_config();
    let said = lab.unit.tandemgw("reload").ok().stdout;
    // The quotas of a source follow the size that the table has, not the one that waits.
    let wanted = "changed:\n  policy.lan-out  changed\n\
                  waits for a restart:\n  node.max-sessions  1048576 to 4096\n  \
                  port.wan.offload   auto to plain\n";
    assert_eq!(said, wanted);
    let log = lab.unit.log();
    let warned = |line: &&str| line.contains("WARN") && line.contains("waits for a restart");
    let warned: Vec<&str> = log.lines().filter(warned).collect();
    assert_eq!(warned.len(), 2, "{log}");
    assert!(warned[0].contains("node.max-sessions"), "{log}");
    assert_eq!(lab.unit.status()["sessions"]["max"], 1_048_576);
    lab.lan1.run("ping -c 1 -W 2 10.77.2.100");
    assert!(
        lab.unit.log().contains("session start policy=lan-out"),
        "the rest is applied"
    );
    // It stays named until then.
    assert_eq!(
        keys(&lab.unit.reload(), "restart"),
        ["node.max-sessions", "port.wan.offload"]
    );
}

#[test]
fn pair_is_in_sync_again_after_both_have_reloaded() {
    let mut pair = Pair::started();
    let mut sessions = Conversations::start(&pair.lab);
    let streams = Streams::start(&pair.lab);
    pair.a().wait_for_ready_peer();
    let (role, term) = (pair.a().is_primary(), pair.a().term());
    pair.edit(
        "[[policy]]",
        "[[policy]]\nname = \"first\"\nservice = [\"tcp/25\"]\naction = \"drop\"\n\n[[policy]]",
    );
    pair.edit("name = \"lan-out\"", "name = \"all-out\"");
    pair.edit("nat = true", "nat-pool = \"pool\"");
    pair.edit("[ha]", &format!("{POOL}[ha]"));
    for unit in [pair.a(), pair.b()] {
        assert_eq!(unit.reload()["sessions_ended"], 0);
        // Neither is ready to take over while the other has other policies.
        let is_same = unit.status()["node"] == pair.b().status()["node"];
        wait_until("both know whether their policies are the same", || {
            pair.a().peer()["config"]["equal"] == is_same && pair.a().peer()["connected"] == true
        });
        if is_same {
            pair.a().wait_for_ready_peer();
            pair.b().wait_until_ready();
        }
        // They go by the pool now: the unit that was not reloaded yet can hold them too.
        let mut more = Conversations::start_more(&pair.lab);
        more.go_on();
        more.finish();
    }
    pair.a().wait_for_ready_peer();
    assert_eq!((pair.a().is_primary(), pair.a().term()), (role, term));
    sessions.go_on();
    streams.wait_for_more();
    let same = pair.wait_for_same_sessions();
    assert!(
        same.iter().all(|session| session.contains("all-out")),
        "{same:#?}"
    );
    let more = Conversations::start_more(&pair.lab);
    pair.a().wait_for_ready_peer();
    pair.a().tandemgw("failover").ok();
    streams.wait_for_more();
    streams.assert_whole();
    for mut sessions in [sessions, more] {
        sessions.go_on();
        sessions.finish();
    }
}

#[test]
fn priority_and_override_are_set_live() {
    let pair = Pair::started();
    let mut sessions = Conversations::start(&pair.lab);
    pair.a().wait_for_ready_peer();
    let said = pair.b().tandemgw("ha set override true").ok().stdout;
    assert!(
        said.starts_with("override is now true, was false\n"),
        "{said}"
    );
    assert!(said.contains("--save"), "{said}");
    assert!(pair.a().is_primary(), "the priorities are as before");
    let said = pair.b().tandemgw("ha set priority 250 --json").ok().stdout;
    let answer: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(
        (&answer["old"], &answer["new"]),
        (&"100".into(), &"250".into())
    );
    wait_until("gw-b has taken over", || pair.b().is_primary());
    wait_until("gw-a has handed over", || !pair.a().is_primary());
    pair.a().wait_for_event("its priority is higher");
    sessions.go_on();
    // Until a reload: the file says 100.
    let answer = pair.b().reload();
    assert_eq!(keys(&answer, "changed"), ["ha.priority", "ha.override"]);
    assert_eq!(pair.b().group()["priority"], 100);
    sessions.finish();
}

#[test]
fn pickup_switches_take_effect_on_new_sessions_and_on_those_that_run() {
    let pair = Pair::started();
    let _echo = udp_echo(&pair.lab.server, SERVER[0]);
    let udp = |unit: &Unit| unit.sessions("proto=udp").len();
    pair.a()
        .tandemgw("ha set session-pickup-connectionless false")
        .ok();
    assert!(udp_echoes(&pair.lab, &pair.lab.lan1, SERVER[0], 10));
    // Replicated changes come in order: a later TCP session has arrived.
    let mut sessions = Conversations::start(&pair.lab);
    wait_until("TCP is replicated", || {
        pair.b().sessions("proto=tcp").len() == 2
    });
    assert_eq!((udp(pair.a()), udp(pair.b())), (1, 0));
    pair.a().wait_for_ready_peer();
    pair.a()
        .tandemgw("ha set session-pickup-connectionless true")
        .ok();
    wait_until("the one that was there is replicated", || {
        udp(pair.b()) == 1
    });
    pair.a().wait_for_ready_peer();
    sessions.go_on();
    sessions.finish();
}

#[test]
fn switch_is_saved_and_the_file_stays_as_it_is() {
    let mut pair = Pair::started();
    let path = pair.a().config_path().to_owned();
    pair.a_mut()
        .edit("priority = 200", "priority = 200    # gw-b has 100");
    pair.a_mut().edit("[ha]", "# The pair in rack 7.\n[ha]");
    pair.a().write_config();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("setting the mode");
    let said = pair.a().tandemgw("ha set priority 210 --save").ok().stdout;
    assert!(said.contains("priority is now 210, was 200"), "{said}");
    let saved = format!("{}: priority = 210, was 200", path.display());
    assert!(said.contains(&saved), "{said}");
    pair.a()
        .tandemgw("ha set session-pickup-delay 2s --save")
        .ok();
    let wanted = pair
        .a()
        .config
        .replace("priority = 200 ", "priority = 210 ")
        .replace(
            "monitor = [\"lan\", \"wan\"]\n",
            "monitor = [\"lan\", \"wan\"]\nsession-pickup-delay = \"2s\"\n",
        );
    assert_eq!(fs::read_to_string(&path).expect("the config"), wanted);
    assert_eq!(
        fs::metadata(&path).expect("the config").mode() & 0o777,
        0o640
    );
    let left = fs::read_dir(pair.lab.dir()).expect("the folder").flatten();
    let temporary = left.filter(|file| file.file_name().to_string_lossy().starts_with('.'));
    assert_eq!(temporary.count(), 0);
    // The file says what is in force.
    let output = pair.a().tandemgw("reload").ok().stdout;
    assert_eq!(output, "nothing has changed\n");

    // A file with a mistake is left alone; the switch is set nevertheless.
    fs::write(&path, format!("{wanted}\nmistake = 1\n")).expect("writing the config");
    let failed = pair.a().tandemgw("ha set priority 220 --save").code(1);
    assert!(failed.stderr.contains("not saved"), "{}", failed.stderr);
    assert!(
        fs::read_to_string(&path)
            .expect("the config")
            .contains("priority = 210")
    );
    assert_eq!(pair.a().group()["priority"], 220);
    let failed = pair.a().tandemgw("ha set priorty 1").code(2);
    assert_eq!(
        failed.stderr,
        "tandemgw: there is no switch `priorty`; did you mean `priority`?\n"
    );
}

/// A policy for each of many hosts that don't exist.
fn many_policies(count: usize) -> String {
    let policy = |n: usize| {
        let [_, b, c, d] = (n as u32).to_be_bytes();
        format!(
            "\n[[policy]]\nname = \"host-{n}\"\nfrom = [\"wan\"]\nto = [\"lan\"]\n\
             destination = [\"10.{}.{c}.{d}/32\"]\nservice = [\"tcp/443\"]\naction = \"accept\"\n",
            100 + b
        )
    };
    (0..count).map(policy).collect()
}

#[test]
fn loop_goes_on_while_a_long_config_is_read() {
    let lab = Lab::started();
    let longer = format!("{}{}", lab.unit.config, many_policies(4000));
    fs::write(lab.unit.config_path(), longer).expect("writing the config");
    let mut reload = lab.unit.spawn_tandemgw("reload --json");
    // Requests are answered meanwhile, and packets flow on.
    let mut answered = 0;
    while reload.is_running() {
        lab.unit.status();
        lab.lan1.run("ping -c 1 -W 1 10.77.2.100");
        answered += 1;
    }
    let told: Value = serde_json::from_str(&reload.finish(PATIENCE).ok().stdout).expect("JSON");
    assert!(answered >= 2, "nobody was answered while it was read");
    let changed = told["changed"].as_array().expect("a list").len();
    assert_eq!(
        changed as u64 + told["more"].as_u64().expect("a number"),
        4000
    );
    assert_eq!(changed, 1000, "no more than anybody reads");
}
