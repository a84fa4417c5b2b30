//! Whatever an authenticated peer sends, the receiver stays sound and within its limits.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use tandemgw_core::config::{Config, parse};
use tandemgw_core::evidence::Holding;
use tandemgw_core::flow::{GroupId, PeerId};
use tandemgw_core::policy::Ruleset;
use tandemgw_core::store::{Keys, SessionStore};
use tandemgw_core::sync::message::{Hello, Message, VERSION};
use tandemgw_core::sync::{Context, Received, Replicator, codec};
use tandemgw_core::time::Time;

const CONFIG: &str = r#"
[node]
name = "gw-a"
key = "gw-a.key"
max-sessions = 1024
[[port]]
name = "lan"
interface = "eth0"
virtual-addresses = ["10.0.0.1/24"]
[[port]]
name = "wan"
interface = "eth1"
virtual-addresses = ["192.0.2.1/24"]
[[policy]]
name = "out"
action = "accept"
nat = true
[ha]
group-id = 7
[[ha.link]]
interface = "eth2"
listen = "10.9.0.1:7700"
[[ha.peer]]
name = "gw-b"
addresses = ["10.9.0.2:7700"]
public-key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
"#;

/// A Hello that is accepted, and a claim to the only group: what comes then is the input.
fn greeting() -> Vec<u8> {
    let names = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    let hello = Hello {
        version: VERSION,
        epoch: 2,
        group_id: 7,
        node: "gw-b".into(),
        ports: names(&["lan", "wan"]),
        groups: names(&["default"]),
        policies: names(&["out"]),
        ..Hello::default()
    };
    let mut bytes = Vec::new();
    codec::encode(&mut bytes, &Message::Hello(Box::new(hello)));
    let claim = Message::Claim {
        group: 0,
        term: 5,
        basis: Holding::default(),
    };
    codec::encode(&mut bytes, &claim);
    bytes
}

fn config() -> Config {
    match parse(Path::new("fuzz.toml"), CONFIG) {
        Ok((config, _)) => config,
        Err(found) => panic!("{found:?}"),
    }
}

fuzz_target!(|input: (bool, Option<u64>, &[u8])| {
    let (greeted, term, bytes) = input;
    let config = config();
    let keys = Keys {
        nat: [1; 16],
        table: [2; 16],
    };
    let mut store = SessionStore::new(&config, &keys);
    let mut sync = Replicator::new(&config, 1, &Ruleset::new(&config)).expect("it has [ha]");
    let (peer, group, now) = (PeerId(0), GroupId(0), Time::from_nanos(1 << 40));
    sync.set_sending(group, term, store.journal_mut());
    sync.peer_connected(peer, store.journal_mut());
    let mut stream = if greeted { greeting() } else { Vec::new() };
    stream.extend_from_slice(bytes);
    let mut rest = &stream[..];
    loop {
        let mut context = Context {
            store: &mut store,
            now,
        };
        match sync.receive(peer, rest, &mut context) {
            Ok(Received {
                taken: 0,
                more: false,
            })
            | Err(_) => break,
            Ok(done) => rest = &rest[done.taken..],
        }
        while sync.poll_event().is_some() {}
        let mut out = Vec::new();
        sync.poll_transmit(peer, &mut out, 4096, &mut store, now);
        assert!(out.len() <= 128 * 1024, "a bounded answer");
    }
    store.check_invariants();
    sync.check_invariants(store.journal());
});
