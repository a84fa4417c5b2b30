//! Two units that can't see each other, and an etcd on a third network that both reach.

use std::fs;
use std::path::PathBuf;

use crate::cluster::{Clients, Cluster};
use crate::lab::{make_bridge, plug};
use testkit::system::namespace::Namespace;
use testkit::system::process::{Process, wait_until};

/// The etcd's address on the third network; the units have .1 and .2.
const ETCD: &str = "10.77.20.9";

/// How the etcd is reached.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Plain,
    /// With certificates of both sides, and a user with a password.
    Secured,
}

/// A pair with an etcd, and the processes that ask it.
struct Witnessed {
    cluster: Cluster,
    etcd: Namespace,
    way: Way,
    server: Option<Process>,
    askers: Vec<Process>,
    /// Its switch.
    _network: Namespace,
}

impl Witnessed {
    /// gw-a is primary, gw-b is ready, and both have heard of the etcd.
    fn started(way: Way) -> Witnessed {
        let mut cluster = Cluster::new(&[200, 100]);
        let network = cluster.lab.sw_lan.sibling("sw-etcd");
        make_bridge(&network);
        let etcd = network.sibling("etcd");
        plug(&network, &etcd, "adm0");
        etcd.run(&format!("ip addr add {ETCD}/24 dev adm0"));
        for number in 0..2 {
            let unit = &cluster.unit(number).ns;
            plug(&network, unit, "adm0");
            let own = number + 1;
            unit.run(&format!("ip addr add 10.77.20.{own}/24 dev adm0"));
        }
        let dir = cluster.lab.dir().to_owned();
        let options = match way {
            Way::Plain => {
                format!("endpoints = [\"http://10.77.20.8:2379\", \"http://{ETCD}:2379\"]")
            }
            Way::Secured => {
                make_certificates(&etcd, &dir.display().to_string());
                fs::write(dir.join("password"), "open-sesame\n").expect("writing a file");
                let file = |name: &str| format!("\"{}/{name}\"", dir.display());
                format!(
                    "endpoints = [\"https://{ETCD}:2379\"]\nca = {}\ncert = {}\nkey = {}\nuser = \"gw\"\n\
                     password-file = {}\n",
                    file("ca.pem"),
                    file("client.pem"),
                    file("client.key"),
                    file("password")
                )
            }
        };
        for number in 0..2 {
            let config = &mut cluster.unit_mut(number).config;
            config.push_str(&format!("\n[ha.witness]\n{options}\nlease = \"2s\"\n"));
        }
        let mut witnessed = Witnessed {
            cluster,
            etcd,
            way,
            server: None,
            askers: Vec::new(),
            _network: network,
        };
        witnessed.start_etcd();
        if way == Way::Secured {
            witnessed.make_user();
        }
        witnessed.cluster.start();
        let spawn = |number| witnessed.cluster.unit(number).spawn_tandemgw("witness");
        witnessed.askers = (0..2).map(spawn).collect();
        witnessed.wait_until_answered();
        witnessed
    }

    fn dir(&self) -> PathBuf {
        self.cluster.lab.dir().to_owned()
    }

    fn scheme(&self) -> &'static str {
        match self.way {
            Way::Plain => "http",
            Way::Secured => "https",
        }
    }

    fn start_etcd(&mut self) {
        let (dir, scheme) = (self.dir(), self.scheme());
        let dir = dir.display();
        let tls = match self.way {
            Way::Plain => String::new(),
            Way::Secured => format!(
                "--cert-file {dir}/server.pem --key-file {dir}/server.key --client-cert-auth --trusted-ca-file {dir}/ca.pem"
            ),
        };
        self.etcd.run("ip link set lo up");
        let line = format!(
            "etcd --name one --data-dir {dir}/etcd --listen-client-urls {scheme}://{ETCD}:2379 \
             --advertise-client-urls {scheme}://{ETCD}:2379 --listen-peer-urls http://127.0.0.1:2380 \
             --initial-advertise-peer-urls http://127.0.0.1:2380 --initial-cluster one=http://127.0.0.1:2380 {tls}"
        );
        self.server = Some(self.etcd.spawn(&line));
        wait_until("the etcd is well", || {
            let health = self.etcdctl("", "endpoint health");
            self.etcd.try_run(&health).status.success()
        });
    }

    fn etcdctl(&self, login: &str, what: &str) -> String {
        let (dir, scheme) = (self.dir(), self.scheme());
        let dir = dir.display();
        let tls = match self.way {
            Way::Plain => String::new(),
            Way::Secured => {
                format!("--cacert {dir}/ca.pem --cert {dir}/client.pem --key {dir}/client.key")
            }
        };
        format!("env ETCDCTL_API=3 etcdctl --endpoints {scheme}://{ETCD}:2379 {tls} {login} {what}")
    }

    /// A user who may use the keys of this cluster, and no other ones.
    fn make_user(&self) {
        for what in [
            "user add root:secret",
            "user grant-role root root",
            "role add gateways",
            "role grant-permission gateways --prefix=true readwrite tandemgw/",
        ] {
            self.etcd.run(&self.etcdctl("", what));
        }
        let add = self.etcdctl("", "user add gw --interactive=false");
        self.etcd.sh(&format!("echo 'open-sesame' | {add}"));
        self.etcd
            .run(&self.etcdctl("", "user grant-role gw gateways"));
        self.etcd.run(&self.etcdctl("", "auth enable"));
    }

    fn witness(&self, unit: usize) -> serde_json::Value {
        self.cluster.unit(unit).status()["witness"].clone()
    }

    #[track_caller]
    fn wait_until_answered(&self) {
        for unit in 0..2 {
            wait_until(&format!("the witness answers unit {unit}"), || {
                self.witness(unit)["answers"] == true
            });
        }
    }

    /// Who has the lease of the only group, by what a unit was told.
    fn lease(&self, unit: usize) -> serde_json::Value {
        self.cluster.unit(unit).group()["lease"].clone()
    }
}

/// Certificates without a CommonName: etcd, if it has users too, refuses those that have one.
fn make_certificates(ns: &Namespace, dir: &str) {
    ns.sh(&format!(
        "cd {dir}
        openssl req -x509 -newkey ed25519 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=ca 2>/dev/null
        for name in server client; do
            openssl req -newkey ed25519 -nodes -keyout $name.key -out $name.csr -subj /O=$name 2>/dev/null
            echo 'subjectAltName=IP:{ETCD}' >$name.ext
            openssl x509 -req -in $name.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile $name.ext \\
                -out $name.pem 2>/dev/null
        done"
    ));
}

/// Who was primary stays it, and keeps all sessions; when it dies, the other one takes over.
fn one_primary(way: Way) {
    let mut all = Witnessed::started(way);
    let mut clients = Clients::start(&all.cluster.lab, 20);
    all.cluster.wait_until_equal(0, &[1]);
    all.cluster.wait_until_equal(0, &[]);
    assert!(all.lease(0).is_null(), "nobody needed it");
    all.cluster.isolate(1);
    all.cluster
        .unit(1)
        .wait_for_event("the witness gives default to gw-a");
    assert_eq!(all.lease(1), "gw-a");
    // Several leases long.
    for _ in 0..50 {
        all.cluster.wait_for_primaries(&[0], &[]);
        clients.go_on();
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!(all.lease(0), "gw-a");
    let held = all.cluster.held_by(0);
    all.cluster.unit_mut(0).kill();
    all.cluster.wait_for_primaries(&[1], &[0]);
    all.cluster
        .unit(1)
        .wait_for_event("the witness gives default to this unit");
    all.cluster.assert_holds(1, &held);
    // It carries the hosts of the other side too, when the switches are whole again.
    all.cluster.rejoin(1);
    clients.go_on();
    clients.finish();
}

#[test]
fn a_witness_leaves_one_primary_of_two_units_that_are_cut_off_from_each_other() {
    one_primary(Way::Plain);
}

#[test]
fn a_witness_may_want_certificates_and_a_password() {
    one_primary(Way::Secured);
}

#[test]
fn without_its_witness_a_pair_goes_on_as_if_it_had_none_and_says_so() {
    let mut all = Witnessed::started(Way::Plain);
    all.server = None;
    for unit in 0..2 {
        wait_until("it is said that the witness is silent", || {
            let status = all.cluster.unit(unit).status();
            let reason = status["health"]["reason"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            status["witness"]["answers"] == false && reason.contains("the witness does not answer")
        });
        assert!(
            !all.witness(unit)["why"]
                .as_str()
                .unwrap_or_default()
                .is_empty()
        );
        let text = all.cluster.unit(unit).tandemgw("status").ok().stdout;
        assert!(text.contains("witness UNREACHABLE"), "{text}");
    }
    let mut clients = Clients::start(&all.cluster.lab, 10);
    all.cluster.wait_until_equal(0, &[]);
    all.cluster.isolate(1);
    // As without a witness.
    all.cluster.wait_for_primaries(&[0, 1], &[]);
    all.cluster
        .unit(1)
        .wait_for_event("decides without the witness");
    clients.go_on();
    all.cluster.rejoin(1);
    all.cluster.wait_for_one_primary();
    all.start_etcd();
    all.wait_until_answered();
    // The process beside a unit ends: that is said too.
    all.askers.clear();
    wait_until("it is said that nobody asks", || {
        all.witness(0)["why"]
            .as_str()
            .unwrap_or_default()
            .contains("not connected")
    });
    clients.go_on();
    clients.finish();
}
