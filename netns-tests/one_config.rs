//! One config for all units: `[node.NAME]` tables, and `tandemgw push`.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::pair::Pair;
use crate::service::sandbox;
use crate::unit::Unit;
use testkit::system::process::wait_until;

/// The configs of both units as one.
fn one_text(pair: &Pair) -> String {
    let parts = |unit: &Unit| {
        let (shared, rest) = unit.config.split_once("[[ha.link]]").expect("a link");
        let (link, peer) = rest.split_once("[[ha.peer]]").expect("a peer");
        (shared.to_owned(), link.to_owned(), peer.to_owned())
    };
    let (shared, link_a, peer_b) = parts(pair.a());
    let (_, link_b, peer_a) = parts(pair.b());
    let shared = shared.replace("key = \"gw-a.key\"\n", "");
    let shared = shared.replace("name = \"gw-a\"\n", "");
    let shared = shared.replace("priority = 200\n", "accept-push = [\"gw-a\", \"gw-b\"]\n");
    let unit = |name: &str, priority: u8, link: &str| {
        format!(
            "[node.{name}]\nkey = \"{name}.key\"\n[node.{name}.ha]\npriority = {priority}\n\
             [[node.{name}.ha.link]]{link}\n"
        )
    };
    let units = unit("gw-a", 200, &link_a) + &unit("gw-b", 100, &link_b);
    format!("{shared}\n[[ha.peer]]{peer_a}\n[[ha.peer]]{peer_b}\n{units}")
}

/// A pair that runs from two copies of one text.
pub fn started() -> (Pair, String) {
    started_by("exec \"$@\"")
}

/// The same, with a launcher.
fn started_by(launcher: &str) -> (Pair, String) {
    let mut pair = Pair::new();
    let text = one_text(&pair);
    pair.a_mut().config = text.clone();
    pair.b.config = text.clone();
    let launcher = launcher.replace("DIR", &pair.lab.dir().display().to_string());
    for unit in [&mut pair.lab.unit, &mut pair.b] {
        let name = unit.ns.name().to_owned();
        unit.launch_by(&format!("{launcher} --node {name}"));
    }
    pair.start();
    (pair, text)
}

fn report(unit: &Unit) -> Value {
    let said = unit.tandemgw("push --status --json").ok().stdout;
    serde_json::from_str(&said).unwrap_or_else(|e| panic!("not JSON: {e}\n{said}"))
}

/// The texts in force and in the file of a unit, as far as they tell whether ICMP is dropped.
fn drops(unit: &Unit) -> (bool, bool) {
    let shown = unit.tandemgw("config show").ok().stdout;
    let file = fs::read_to_string(unit.config_path()).expect("the config");
    let has = |text: &str| text.contains("name = \"no-ping\"");
    (has(&shown), has(&file))
}

fn with_policy(text: &str) -> String {
    let policy = "[[policy]]\nname = \"no-ping\"\nservice = [\"icmp\"]\naction = \"drop\"\n\n";
    text.replacen("[[policy]]", &format!("{policy}[[policy]]"), 1)
}

/// Writes a config that is to be pushed.
fn stage(pair: &Pair, text: &str) -> String {
    let path = pair.lab.dir().join("wanted.toml");
    fs::write(&path, text).expect("writing the config");
    path.display().to_string()
}

#[test]
fn one_file_runs_a_pair() {
    let (pair, text) = started();
    pair.lab.lan1.run("ping -c 1 -W 2 10.77.2.100");
    assert_eq!(pair.a().peer()["name"], "gw-b");
    let path = pair.a().config_path().display().to_string();
    // Each command reads it in the same way.
    for command in ["check", "doctor"] {
        let said = pair
            .a()
            .tandemgw(&format!("{command} --config {path} --node gw-c"));
        let said = said.code(2).stderr;
        assert!(
            said.contains("there is no unit `gw-c` here, but `gw-a`, `gw-b`"),
            "{said}"
        );
    }
    pair.a()
        .tandemgw(&format!("check --config {path} --node gw-b"))
        .ok();
    let said = pair
        .a()
        .tandemgw(&format!("check --config {path}"))
        .code(2)
        .stderr;
    assert!(said.contains("this host is `"), "{said}");
    let shown = pair.b().tandemgw("config show").ok().stdout;
    assert!(
        shown.contains("says the same") && shown.contains("priority = 100"),
        "{shown}"
    );
    assert!(!shown.contains("node.gw-a"), "{shown}");
    let changed = text.replace("priority = 100", "priority = 90");
    fs::write(pair.b().config_path(), changed).expect("writing the config");
    let said = pair.b().tandemgw("reload").ok().stdout;
    assert!(said.contains("100 to 90"), "{said}");
    pair.a().tandemgw("ha set priority 210 --save").ok();
    let file = fs::read_to_string(&path).expect("the config");
    assert!(
        file.contains("priority = 210") && file.contains("priority = 100"),
        "{file}"
    );
}

/// With the rights of the unit file, and a config of root in a folder of root that the group of the
/// service may write to.
#[test]
fn a_push_reaches_the_files_of_the_packaged_service() {
    let launcher = sandbox().replace(
        "exec $limits",
        "chown root \"$folder\" $folder/*.toml; chgrp 65534 $folder || true; chmod 2770 $folder; exec $limits",
    );
    let (pair, text) = started_by(&launcher);
    let path = stage(&pair, &with_policy(&text));
    pair.a().tandemgw(&format!("push --yes {path}")).ok();
    for unit in [pair.a(), pair.b()] {
        let file = format!("/run/tandemgw-test/{}.toml", unit.ns.name());
        wait_until("the file follows", || {
            unit.ns.run(&format!("cat {file}")).contains("no-ping")
        });
        assert_eq!(unit.ns.run(&format!("stat -c %a {file}")), "644\n");
        assert!(!unit.log().contains("ERROR"), "{}", unit.log());
    }
}

#[test]
fn a_push_is_in_force_on_both_or_on_none() {
    let (pair, text) = started();
    let ping = "ping -c 1 -W 1 10.77.2.100";
    pair.lab.lan1.run("ping -c 1 -W 2 10.77.2.100");
    let path = stage(&pair, &with_policy(&text));
    let said = pair
        .a()
        .tandemgw(&format!("push --check {path}"))
        .ok()
        .stdout;
    assert_eq!(said.matches("policy.no-ping  added").count(), 2, "{said}");
    assert_eq!([drops(pair.a()), drops(pair.b())], [(false, false); 2]);

    // Nobody confirms it.
    let said = pair
        .a()
        .tandemgw(&format!("push --yes --confirm 3s {path}"))
        .ok()
        .stdout;
    assert!(said.contains("is in force on all units until"), "{said}");
    assert_eq!(
        [drops(pair.a()), drops(pair.b())],
        [(true, false); 2],
        "on trial"
    );
    pair.lab.lan1.try_run(ping).code(1);
    let said = pair.b().tandemgw("reload").code(2).stderr;
    assert!(said.contains("a pushed config is on trial"), "{said}");
    wait_until("both go back", || {
        [drops(pair.a()), drops(pair.b())] == [(false, false); 2]
    });
    pair.lab.lan1.run("ping -c 1 -W 2 10.77.2.100");

    // Somebody does, after which it survives a restart.
    pair.a().wait_for_ready_peer();
    pair.a()
        .tandemgw(&format!("push --yes --confirm 60s {path}"))
        .ok();
    let said = pair.a().tandemgw("push --accept").ok().stdout;
    assert!(said.contains("is in force, and in the files"), "{said}");
    assert_eq!([drops(pair.a()), drops(pair.b())], [(true, true); 2]);
    let said = pair.b().tandemgw("config history").ok().stdout;
    assert!(said.contains("push from gw-a"), "{said}");
    wait_until("they say that they have the same", || {
        report(pair.b())["units"][1]["compared"] == "same"
    });
}

#[test]
fn a_unit_that_can_not_have_it_stops_the_push_for_all() {
    let (pair, text) = started();
    let other = with_policy(&text).replace(
        "[node.gw-b]\n",
        "[node.gw-b]\nport.wan.interface = \"eth7\"\n",
    );
    let path = stage(&pair, &other);
    let said = pair.a().tandemgw(&format!("push --yes {path}")).code(1);
    assert!(
        said.stdout.contains("gw-b:") && said.stdout.contains("eth7"),
        "{}",
        said.stdout
    );
    assert!(
        said.stderr.contains("nothing has changed"),
        "{}",
        said.stderr
    );
    let path = stage(
        &pair,
        &with_policy(&text).replace("action = \"drop\"", "action = \"dorp\""),
    );
    pair.a().tandemgw(&format!("push --yes {path}")).code(1);
    assert_eq!([drops(pair.a()), drops(pair.b())], [(false, false); 2]);
    // A unit that lets nobody configure it.
    let mut pair = pair;
    pair.b.config = text.replace("accept-push = [\"gw-a\", \"gw-b\"]", "accept-push = []");
    pair.b.reload();
    pair.a().wait_for_ready_peer();
    let path = stage(&pair, &with_policy(&text));
    let said = pair
        .a()
        .tandemgw(&format!("push --yes {path}"))
        .code(1)
        .stdout;
    assert!(said.contains("it takes no config from gw-a"), "{said}");
}

/// Each unit has a folder `policies.d` of its own: `own-gw-a`, `own-gw-b`.
const OWN_FOLDERS: &str = "exec unshare --mount sh -ec '
    for name; do true; done
    mkdir -p DIR/policies.d DIR/own-$name
    mount --bind DIR/own-$name DIR/policies.d
    exec \"$@\"' sh \"$@\"";

#[test]
fn files_that_are_included_are_pushed_too() {
    let (mut pair, text) = started_by(OWN_FOLDERS);
    let staged = pair.lab.dir().join("staged");
    fs::create_dir_all(staged.join("policies.d")).expect("a folder");
    let write = |name: &str, text: &str| fs::write(staged.join(name), text).expect("writing");
    let policy = |name: &str| format!("[[policy]]\nname = \"{name}\"\naction = \"drop\"\n");
    write(
        "wanted.toml",
        &format!("include = [\"policies.d/*.toml\"]\n{text}"),
    );
    write("policies.d/10-ping.toml", &policy("no-ping"));
    write("policies.d/20-web.toml", &policy("no-web"));
    let own = |name: &str, file: &str| pair.lab.dir().join(format!("own-{name}/{file}"));
    // What a pattern would include in addition at the next start goes.
    fs::write(own("gw-b", "99-old.toml"), policy("old")).expect("writing");
    fs::write(own("gw-b", "README"), "kept").expect("writing");
    let push = format!("push --yes {}", staged.join("wanted.toml").display());
    let said = pair.a().tandemgw(&push).ok().stdout;
    assert!(
        said.contains("policy.no-ping") && said.contains("gw-b"),
        "{said}"
    );
    for unit in [pair.a(), pair.b()] {
        let name = unit.ns.name();
        wait_until("the files follow", || {
            let read = fs::read_to_string(own(name, "20-web.toml"));
            read.is_ok_and(|text| text == policy("no-web")) && drops(unit).0
        });
    }
    wait_until("the other is gone", || !own("gw-b", "99-old.toml").exists());
    assert!(own("gw-b", "README").exists());
    // After a restart it is still the config that was pushed.
    pair.b.kill();
    pair.b.config = fs::read_to_string(pair.b.config_path()).expect("the config");
    pair.b.start();
    wait_until("it has the same config", || {
        report(pair.a())["units"][1]["compared"] == "same"
    });
    // One file less, on trial: back at the end, with its file.
    fs::remove_file(staged.join("policies.d/20-web.toml")).expect("removing");
    pair.a().tandemgw(&format!("{push} --confirm 1s")).ok();
    assert!(
        own("gw-b", "20-web.toml").exists(),
        "not before it is confirmed"
    );
    wait_until("they go back", || {
        let shown = pair.b().tandemgw("config show").ok().stdout;
        shown.contains("no-web") && report(pair.a())["state"] == "failed"
    });
    pair.a().tandemgw(&push).ok();
    wait_until("it is gone", || !own("gw-b", "20-web.toml").exists());
    // Only what may go there.
    write("../outside.toml", &policy("outside"));
    write(
        "wanted.toml",
        &format!("include = [\"../outside.toml\"]\n{text}"),
    );
    let refused = pair.a().tandemgw(&push).code(1).stderr;
    assert!(refused.contains("only files in the folder"), "{refused}");
}

#[test]
fn a_leader_that_dies_on_trial_leaves_the_old_config() {
    let (mut pair, text) = started();
    let path = stage(&pair, &with_policy(&text));
    pair.a()
        .tandemgw(&format!("push --yes --confirm 2s {path}"))
        .ok();
    assert_eq!(drops(pair.b()), (true, false));
    pair.a_mut().kill();
    wait_until("gw-b goes back by itself", || {
        drops(pair.b()) == (false, false)
    });
    pair.a_mut().start();
    assert_eq!(drops(pair.a()), (false, false));
}

#[test]
fn a_unit_that_was_away_gets_it_and_a_conflict_is_shown() {
    let (mut pair, text) = started();
    let path = stage(&pair, &text);
    pair.a().tandemgw(&format!("push --yes {path}")).ok();
    pair.b.kill();
    wait_until("gw-b is gone", || pair.a().peer()["connected"] == false);
    let wanted = with_policy(&text);
    let path = stage(&pair, &wanted);
    let said = pair.a().tandemgw(&format!("push --yes {path}")).ok().stdout;
    assert!(said.contains("gw-b: away"), "{said}");
    pair.b.start();
    wait_until("gw-b has it", || drops(pair.b()) == (true, true));
    // What it remembers of the push comes after the file, and a conflict is one with that.
    wait_until("both know that they have the same", || {
        [pair.a(), pair.b()].map(|unit| report(unit)["units"][1]["compared"] == "same") == [true; 2]
    });
    // Both are changed while they do not hear each other.
    pair.b.kill();
    wait_until("gw-b is gone", || pair.a().peer()["connected"] == false);
    let path = stage(&pair, &text);
    pair.a().tandemgw(&format!("push --yes {path}")).ok();
    pair.b.config = format!("{wanted}# by hand\n");
    pair.b.start();
    wait_until("the conflict is shown", || {
        report(pair.a())["units"][1]["compared"] == "conflict"
            && report(pair.b())["units"][1]["compared"] == "conflict"
    });
    assert_eq!(
        [drops(pair.a()), drops(pair.b())],
        [(false, false), (true, true)]
    );
    let said = pair.a().tandemgw("events").ok().stdout;
    let conflict = "the config differs from that of gw-b, and both were changed";
    assert!(said.contains(conflict), "{said}");
}

/// The figure of the book: 1000 policies to two units, within a second, without a lost packet.
#[test]
fn a_thousand_policies_are_pushed_while_packets_flow() {
    let (pair, text) = started();
    let mut many = String::new();
    for n in 0..1000 {
        let (high, low) = (n / 250, n % 250);
        many += &format!(
            "[[policy]]\nname = \"p{n}\"\nfrom = [\"lan\"]\nto = [\"wan\"]\n\
             destination = [\"10.9.{high}.{low}/32\"]\nservice = [\"tcp/443\"]\naction = \"drop\"\n\n"
        );
    }
    let path = stage(
        &pair,
        &text.replacen("[[policy]]", &format!("{many}[[policy]]"), 1),
    );
    let pings = pair.lab.lan1.spawn("ping -i 0.01 -c 400 -W 2 10.77.2.100");
    let begin = Instant::now();
    pair.a().tandemgw(&format!("push --yes {path}")).ok();
    let took = begin.elapsed();
    let said = pings.finish(Duration::from_secs(30)).ok().stdout;
    println!("pushed in {took:?}: {said}");
    assert!(said.contains(" 0% packet loss"), "{said}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    let shown = pair.b().tandemgw("config show").ok().stdout;
    assert!(shown.contains("name = \"p999\""), "not in force on gw-b");
}
