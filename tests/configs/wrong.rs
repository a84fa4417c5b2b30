//! Mistakes in configs, and the errors for them.

/// The shortest config.
pub const BASE: &str = r#"[node]
name = "gw"
[[port]]
name = "lan"
interface = "eth0"
virtual-addresses = ["10.0.1.1/24", "fd00:1::1/64"]
[[port]]
name = "wan"
interface = "eth1"
virtual-addresses = ["10.0.2.1/24", "fd00:2::1/64"]
"#;

/// The same with a key.
pub const BASE_HA: &str = r#"[node]
name = "gw"
key = "gw.key"
[[port]]
name = "lan"
interface = "eth0"
virtual-addresses = ["10.0.1.1/24", "fd00:1::1/64"]
[[port]]
name = "wan"
interface = "eth1"
virtual-addresses = ["10.0.2.1/24", "fd00:2::1/64"]
"#;

/// The shortest `[ha]`.
pub const HA: &str = r#"[ha]
group-id = 7
[[ha.link]]
interface = "sync0"
listen = "10.0.9.1:7030"
[[ha.peer]]
name = "gw-b"
addresses = ["10.0.9.2:7030"]
public-key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
"#;

/// Parts that are right, what is appended to them, and the problems, with lines counted in the
/// latter.
pub type Wrong = (
    &'static [&'static str],
    &'static str,
    &'static [&'static str],
);

#[rustfmt::skip]
pub const WRONG: &[Wrong] = &[
    // Leading zeros.
    (&[BASE], r#"[[port]]
name = "dmz"
interface = "eth2"
virtual-addresses = ["10.077.3.1/24", "10.77.3.1/024", "fd00:3::1/064"]
"#, &[
        r#"4:22 error: `077` in `10.077.3.1/24` has a leading zero | leave it out: some programs take such a number for an octal one"#,
        r#"4:39 error: `024` in `10.77.3.1/024` has a leading zero | leave it out: some programs take such a number for an octal one"#,
        r#"4:56 error: `fd00:3::1/064` can't be read as an address | write it as in "10.0.0.1/24""#,
    ]),
    // Syntax.
    (&[], r#"[node]
name = 
[port
"#, &[
        r#"2:8 error: string values must be quoted, expected literal string"#,
        r#"3:6 error: unclosed table, expected `]`"#,
    ]),
    (&[], r#"[node]
name = "a"
name = "b"
"#, &[
        r#"3:1 error: duplicate key"#,
    ]),
    // Structure.
    (&[], r#""#, &[
        r#"1:1 error: `name` is missing in `node` | add `name`: the name of this unit; the peers know it by that (name)"#,
        r#"1:1 error: there is no port | add a `[[port]]` with `name` and `interface`"#,
    ]),
    (&[], r#"node = 3
[port]
name = "lan"
"#, &[
        r#"1:1 error: `name` is missing in `node` | add `name`: the name of this unit; the peers know it by that (name)"#,
        r#"1:8 error: expected a table, found an integer | write `[node]`"#,
        r#"2:1 error: expected an array of tables, found a table | write `[[port]]`"#,
    ]),
    (&[BASE], r#"[timeout]
udp = "5s"
"#, &[
        r#"1:2 error: unknown key `timeout` | did you mean `timeouts`?"#,
    ]),
    (&[BASE], r#"[timeouts]
udp = 300
icmp = "5"
other = "0s"
tcp-syn = "2d"
bogus = 1
"#, &[
        r#"2:7 error: expected a duration, found an integer | write the unit as well, such as "300s" or "300ms""#,
        r#"3:8 error: `5` is not a duration | write a number and a unit, such as "50ms", "2s", "5m", "2h" or "1d""#,
        r#"4:9 error: `other` is 0s; it must be 1s to 1d"#,
        r#"5:11 error: `tcp-syn` is 2d; it must be 1s to 1d"#,
        r#"6:1 error: unknown key `bogus` in `timeouts` | the keys here are tcp-established, tcp-transitory, tcp-syn, tcp-time-wait, tcp-reset, udp, udp-unreplied, icmp, other"#,
    ]),
    (&[BASE], r#"[limits]
half-open-per-source = -1
tcp-pickup = "true"
icmp-errors-per-second = "many"
"#, &[
        r#"2:24 error: `half-open-per-source` is -1; it must be 0 to 65535"#,
        r#"3:14 error: expected true or false, found a string | write true without quotes"#,
        r#"4:26 error: expected an integer, found a string"#,
    ]),
    // Metrics.
    (&[BASE], r#"[metrics]
listen = "localhost:9100"
listn = "127.0.0.1:9100"
"#, &[
        r#"2:10 error: `localhost:9100` is not an address with a port | write "10.0.0.1:80" or "[fd00::1]:80""#,
        r#"3:1 error: unknown key `listn` in `metrics` | did you mean `listen`?"#,
    ]),
    (&[BASE], r#"[metrics]
listen = "[fd00:2::1]:9100"
"#, &[
        r#"2:10 error: `fd00:2::1` is a virtual address | give an address that the kernel of this unit has, such as 127.0.0.1"#,
    ]),
    // Ports.
    (&[BASE], r#"[[port]]
name = "lan"
interface = "eth0"
"#, &[
        r#"2:8 error: a second port named `lan` | each port needs a name of its own"#,
        r#"3:13 error: port `lan` has the same interface | each port needs an interface of its own"#,
    ]),
    (&[BASE], r#"[[port]]
name = "Management-Port"
interface = "an-interface-name"
"#, &[
        r#"2:8 error: the name contains 'M' | use small letters, digits and `-`"#,
        r#"3:13 error: the name has 17 bytes, more than 15"#,
    ]),
    (&[BASE], r#"[[port]]
name = "management-1"
interface = "tgw-lan"
"#, &[
        r#"2:8 error: the name has 12 bytes, more than 11"#,
        r#"3:13 error: `tgw-lan` is a name for the gateway's own devices | name the interface that the hosts are on"#,
    ]),
    (&[BASE], r#"[[port]]
name = "dmz"
"#, &[
        r#"1:1 error: `interface` is missing in `port` | add `interface`: the kernel's interface that the hosts are on (interface)"#,
    ]),
    (&[BASE], r#"[[port]]
name = "dmz"
interface = "eth2"
virtual-addresses = ["10.0.3.0/24", "10.0.3.255/24", "127.0.0.1/8", "224.0.0.1/24", "169.254.1.1/24", "fd00:3::/64", "::ffff:10.0.0.1/120", "10.9.9.9/0"]
"#, &[
        r#"4:22 error: `10.0.3.0` is the network address of 10.0.3.0/24 | give an address of the link that no machine has as its own"#,
        r#"4:37 error: `10.0.3.255` is the broadcast address of 10.0.3.0/24 | give an address of the link that no machine has as its own"#,
        r#"4:54 error: `127.0.0.1` is a loopback address | give an address of the link that no machine has as its own"#,
        r#"4:69 error: `224.0.0.1` is a multicast address | give an address of the link that no machine has as its own"#,
        r#"4:85 error: `169.254.1.1` is a link-local address | give a global address, or a private one"#,
        r#"4:103 error: `fd00:3::` is the subnet-router anycast address of fd00:3::/64 | give an address of the link that no machine has as its own"#,
        r#"4:118 error: `::ffff:10.0.0.1` is an IPv4-mapped address | give an address of the link that no machine has as its own"#,
        r#"4:141 error: `10.9.9.9/0` is on a link with all addresses | write the prefix length of the link"#,
    ]),
    (&[BASE], r#"[[port]]
name = "dmz"
interface = "eth2"
virtual-addresses = ["10.0.3.1", "fd00:3::1", "10.0.3", "10.0.3.1/33"]
"#, &[
        r#"4:22 error: `10.0.3.1` has no prefix length | write the one of the link, such as "10.0.3.1/24""#,
        r#"4:34 error: `fd00:3::1` has no prefix length | write the one of the link, such as "fd00:3::1/64""#,
        r#"4:47 error: `10.0.3` can't be read as an address | write it as in "10.0.0.1/24""#,
        r#"4:57 error: `10.0.3.1/33` can't be read as an address | write it as in "10.0.0.1/24""#,
    ]),
    (&[BASE], r#"[[port]]
name = "dmz"
interface = "eth2"
virtual-addresses = ["10.0.1.1/24", "10.0.2.129/25", "10.0.0.9/20", "10.0.3.1/24", "10.0.3.2/24"]
"#, &[
        r#"4:22 error: `10.0.1.1` is a virtual address of port `lan` already"#,
        r#"4:37 error: the network 10.0.2.128/25 overlaps 10.0.2.0/24 of port `wan` | the kernel could not tell which port a host is on"#,
        r#"4:54 error: the network 10.0.0.0/20 overlaps 10.0.1.0/24 of port `lan` | the kernel could not tell which port a host is on"#,
    ]),
    (&[BASE], r#"[[port]]
name = "dmz"
interface = "eth2"
virtual-addresses = "10.0.3.1/24"
"#, &[
        r#"4:21 error: expected an array, found a string | write ["10.0.3.1/24"]"#,
    ]),
    // Groups.
    (&[BASE_HA, HA], r#"[[group]]
name = "one"
ports = ["lan", "wna"]
virtual-addresses = ["10.0.2.1", "10.0.2.9"]
"#, &[
        r#"3:17 error: unknown port `wna` | did you mean `wan`?"#,
        r#"4:34 error: `10.0.2.9` is not a virtual address of a port | add it to a `[[port]]`"#,
    ]),
    (&[BASE_HA, HA], r#"[[group]]
name = "one"
ports = ["lan"]
virtual-addresses = ["10.0.2.1"]
"#, &[
        r#"-9:37 error: `fd00:2::1` is in no group | name it, or its port, in a `[[group]]`"#,
    ]),
    (&[BASE_HA, HA], r#"[[group]]
name = "one"
ports = ["lan", "wan"]
priority = 256
[[group]]
name = "one"
ports = ["lan"]
"#, &[
        r#"4:12 error: `priority` is 256; it must be 0 to 255"#,
        r#"6:8 error: a second group named `one` | each group needs a name of its own"#,
        r#"7:10 error: `10.0.1.1` is in a group already | each virtual address belongs to one group"#,
        r#"7:10 error: `fd00:1::1` is in a group already | each virtual address belongs to one group"#,
    ]),
    (&[BASE_HA, HA], r#"[[group]]
name = "one"
ports = ["lan"]
[[group]]
name = "two"
ports = ["wan"]
[[nat-pool]]
name = "mixed"
addresses = ["10.0.2.1", "10.0.2.8-10.0.2.9", "10.0.1.1"]
"#, &[
        r#"9:47 error: `10.0.1.1` is in another group than `10.0.2.1` | give each group a pool of its own virtual addresses"#,
    ]),
    (&[BASE], r#"[[group]]
name = "one"
ports = ["lan", "wan"]
"#, &[
        r#"1:1 warning: groups have no effect without `[ha]` | remove the groups, or add `[ha]`"#,
    ]),
    // Answers that may come to another unit.
    (&[BASE_HA, HA], r#"[[port]]
name = "dmz"
interface = "eth2"
virtual-addresses = ["10.0.3.1/24"]
[[group]]
name = "one"
ports = ["lan", "wan"]
[[group]]
name = "two"
ports = ["dmz"]
[[nat-pool]]
name = "pool"
addresses = ["10.0.2.9"]
[[policy]]
name = "pooled"
from = ["dmz"]
to = ["wan"]
source = ["10.0.3.128/25"]
action = "accept"
nat-pool = "pool"
[[policy]]
name = "out"
from = ["lan", "dmz"]
to = ["wan"]
action = "accept"
nat = true
[[policy]]
name = "plain"
from = ["dmz"]
to = ["lan"]
action = "accept"
"#, &[
        r#"15:8 warning: sessions of policy `pooled` from port `dmz` belong to group `two`, but pool `pool` to another one: if another unit has that, their answers go there and are lost | give group `two` a pool of its own, or say `nat = true`"#,
        r#"22:8 warning: sessions of policy `out` from port `dmz` belong to group `two`, but port `wan` has no IPv4 address of it: if another unit has that, their answers go there and are lost | give port `wan` an address of group `two`"#,
        r#"28:8 warning: sessions of policy `plain` from port `dmz` belong to group `two`, but port `lan` has no address of it that answers could be sent to: if another unit has that, their answers go there and are lost | give port `lan` an address of group `two`"#,
    ]),
    // Hosts of one port that may use addresses of several groups; servers of forwards are not such.
    (&[BASE_HA, HA], r#"[[port]]
name = "dmz"
interface = "eth2"
virtual-addresses = ["10.0.3.1/24", "10.0.3.2/24"]
[[port]]
name = "inside"
interface = "eth3"
virtual-addresses = ["10.0.4.1/24", "10.0.4.2/24"]
[[group]]
name = "one"
ports = ["lan", "wan"]
virtual-addresses = ["10.0.3.1", "10.0.4.1"]
[[group]]
name = "two"
virtual-addresses = ["10.0.3.2", "10.0.4.2"]
[[policy]]
name = "out"
from = ["lan", "dmz"]
to = ["wan"]
action = "accept"
nat = true
[[policy]]
name = "in"
from = ["inside"]
to = ["lan"]
action = "accept"
nat = true
[[forward]]
name = "web"
port = "inside"
protocol = "tcp"
external = "10.0.4.2:80"
internal = "10.0.1.9:80"
"#, &[
        r#"17:8 warning: sessions of policy `out` may be lost when a group moves: port `dmz` has addresses of several groups, and a unit that has two of them can't tell which one a host uses | say `asymmetric-flows = true` in `[ha]`, or give the hosts of each group a port of their own"#,
    ]),
    // Policies.
    (&[BASE], r#"[[policy]]
name = "a"
action = "accept"
from = ["lan", "lan"]
to = []
source = ["any"]
"#, &[
        r#"4:16 warning: `lan` is listed twice"#,
        r#"5:6 error: `to` is empty | leave `to` out to match any"#,
        r#"6:11 error: `any` is not a prefix | leave the key out to match any address"#,
    ]),
    (&[BASE], r#"[[policy]]
name = "a"
action = "accept"
from = ["dmz"]
to = ["wam"]
"#, &[
        r#"4:9 error: unknown port `dmz` | known: `lan`, `wan`"#,
        r#"5:7 error: unknown port `wam` | did you mean `wan`?"#,
    ]),
    (&[BASE], r#"[[policy]]
name = "a"
action = "acept"
from = "lan"
[[policy]]
name = "a"
action = "deny"
"#, &[
        r#"3:10 error: unknown action `acept` | did you mean `accept`?"#,
        r#"4:8 error: expected an array, found a string | write ["lan"]"#,
        r#"6:8 error: a second policy named `a` | each policy needs a name of its own"#,
        r#"7:10 error: unknown action `deny` | one of accept, drop, reject"#,
    ]),
    (&[BASE], r#"[[policy]]
name = "a"
action = "accept"
source = ["10.0.1.7/24", "10.0.1.8", "10.0.0.0/40", "::ffff:10.0.0.0/104"]
"#, &[
        r#"4:11 warning: `10.0.1.7/24` has bits set beyond its prefix length | it matches "10.0.1.0/24": write that"#,
        r#"4:38 error: `10.0.0.0/40` can't be read as an address | write it as in "10.0.0.0/8""#,
        r#"4:53 error: `::ffff:10.0.0.0/104` is IPv4-mapped | write the IPv4 prefix"#,
    ]),
    (&[BASE], r#"[[policy]]
name = "a"
action = "accept"
service = ["tcp/0", "tcp/90-80", "tpc/80", "http", "icmp/8", "proto/300", "tcp/80-"]
"#, &[
        r#"4:12 error: `0` is not a port | ports are 1 to 65535"#,
        r#"4:21 error: `90-80` ends before it begins | write 80-90"#,
        r#"4:34 error: unknown service `tpc/80` | did you mean `tcp`?"#,
        r#"4:44 error: unknown service `http` | write tcp/443, tcp/8000-8099, tcp, udp/53, icmp, gre, esp, proto/47 or any"#,
        r#"4:52 error: `icmp` has no ports | write "icmp""#,
        r#"4:62 error: `300` is not a protocol number | protocol numbers are 0 to 255"#,
        r#"4:75 error: `` is not a port | ports are 1 to 65535"#,
    ]),
    (&[BASE], r#"[[policy]]
name = "a"
action = "accept"
source = ["10.0.1.0/24"]
destination = ["fd00::/16"]
"#, &[
        r#"2:8 warning: policy `a` can't match anything | `source` and `destination` share no address family"#,
    ]),
    (&[BASE], r#"[[policy]]
name = "a"
action = "accept"
nat = true
nat-pool = "p"
"#, &[
        r#"5:12 error: unknown NAT pool `p` | there is no NAT pool at all"#,
    ]),
    (&[BASE], r#"[[policy]]
name = "a"
action = "drop"
nat = true
pickup-guarantee = "bounded"
"#, &[
        r#"2:8 warning: `pickup-guarantee` of policy `a` has no effect without `[ha]`"#,
        r#"4:7 warning: translation has no effect here | only "accept" policies translate"#,
    ]),
    (&[BASE], r#"[[port]]
name = "dmz"
interface = "eth2"
[[policy]]
name = "a"
action = "accept"
to = ["dmz"]
nat = true
"#, &[
        r#"8:7 error: port `dmz` has no address that sessions of the policy could get | add an address of the family that the policy matches"#,
    ]),
    (&[BASE], r#"[[port]]
name = "dmz"
interface = "eth2"
virtual-addresses = ["10.0.3.1/24"]
[[policy]]
name = "a"
action = "accept"
from = ["lan"]
to = ["dmz"]
nat = true
"#, &[
        r#"10:7 warning: port `dmz` has no IPv6 address: IPv6 sessions are dropped | add one, or limit `source` to IPv4 prefixes"#,
    ]),
    (&[BASE], r#"[[port]]
name = "dmz"
interface = "eth2"
virtual-addresses = ["10.0.3.1/24"]
[[policy]]
name = "a"
action = "accept"
to = ["dmz"]
source = ["10.0.0.0/8"]
nat = true
"#, &[
    ]),
    (&[BASE], r#"[[policy]]
name = "a"
action = "accept"
from = ["lan"]
service = ["tcp"]
[[policy]]
name = "b"
action = "accept"
from = ["lan"]
source = ["10.0.0.0/8"]
service = ["tcp/80-90"]
[[policy]]
name = "c"
action = "accept"
from = ["lan"]
service = ["udp"]
"#, &[
        r#"7:8 warning: policy `b` is never reached: `a` before it matches all that it matches | move it up, or remove it"#,
    ]),
    (&[BASE], r#"[[policy]]
name = "a"
action = "accept"
source = ["0.0.0.0/0", "::/0"]
[[policy]]
name = "b"
action = "accept"
"#, &[
        r#"6:8 warning: policy `b` is never reached: `a` before it matches all that it matches | move it up, or remove it"#,
    ]),
    // Pools.
    (&[BASE], r#"[[nat-pool]]
name = "p"
addresses = ["10.0.2.9-10.0.2.8", "10.0.2.8-fd00::1", "10.0.2.300", "10.0.2.255", "10.0.2.1-10.9.0.0"]
ports = "0-99"
"#, &[
        r#"3:14 error: `10.0.2.9-10.0.2.8` ends before it begins | write "10.0.2.8-10.0.2.9""#,
        r#"3:35 error: `10.0.2.8-fd00::1` begins in one address family and ends in the other"#,
        r#"3:55 error: `10.0.2.300` can't be read as an address | write it as in "10.0.0.10-10.0.0.12""#,
        r#"3:69 error: `10.0.2.255` is the broadcast address"#,
        r#"3:83 error: the pools have more than 4096 addresses"#,
        r#"4:9 error: `0` is not a port | ports are 1 to 65535"#,
    ]),
    (&[BASE], r#"[[nat-pool]]
name = "p"
addresses = ["10.0.2.8-10.0.2.9", "10.0.2.9", "10.0.7.1"]
[[nat-pool]]
name = "q"
addresses = ["10.0.2.8"]
ports = "60000-60099"
[[nat-pool]]
name = "r"
addresses = []
"#, &[
        r#"3:35 error: `10.0.2.9` is in the pool already"#,
        r#"3:47 warning: the addresses are outside the networks of all ports | hosts on the link ask only for addresses of their network: the others need a route to the gateway"#,
        r#"6:14 error: `10.0.2.8` is in pool `p` already | give the pools addresses of their own, or `ports` that do not overlap"#,
        r#"8:1 error: the pool has no addresses"#,
    ]),
    (&[BASE], r#"[[nat-pool]]
name = "p"
addresses = ["10.0.2.8"]
[[policy]]
name = "a"
action = "accept"
nat-pool = "p"
source = ["fd00::/16"]
"#, &[
        r#"7:12 error: pool `p` has no address that sessions of the policy could get | add an address of the family that the policy matches"#,
    ]),
    // Forwards.
    (&[BASE], r#"[[forward]]
name = "web"
port = "wan"
protocol = "tcp"
external = "10.0.1.1:80"
internal = "fd00:1::5:80"
"#, &[
        r#"5:12 error: `10.0.1.1` is not a virtual address of port `wan` | it is one of port `lan`"#,
        r#"6:12 error: `fd00:1::5:80` is not an address with a port | add brackets and a port, such as "[fd00:1::5:80]:8080""#,
    ]),
    (&[BASE], r#"[[forward]]
name = "web"
port = "wan"
protocol = "tcp"
external = "10.0.2.9:80"
internal = "[fd00:1::5]:80"
"#, &[
        r#"5:12 error: `10.0.2.9` is not a virtual address of port `wan` | add it to the port, or to a `[[nat-pool]]`"#,
        r#"6:12 error: a forward can't change between IPv4 and IPv6 | give both in the same address family"#,
    ]),
    (&[BASE], r#"[[forward]]
name = "web"
port = "wan"
protocol = "tcp"
external = "10.0.2.1:80"
internal = "10.0.1.1:80"
[[forward]]
name = "web2"
port = "wan"
protocol = "tcp"
external = "10.0.2.1:80"
internal = "127.0.0.1:80"
[[forward]]
name = "web3"
port = "wan"
protocol = "icmp"
external = "10.0.2.1:0"
internal = "10.0.1.5"
"#, &[
        r#"6:12 error: `10.0.1.1` is a virtual address of the gateway | give the server's address"#,
        r#"11:12 error: forward `web` has the same external address and port"#,
        r#"12:12 error: `127.0.0.1` is a loopback address | give the server's address"#,
        r#"16:12 error: unknown protocol `icmp` | one of tcp, udp"#,
        r#"17:12 error: port 0 can't be used | ports are 1 to 65535"#,
        r#"18:12 error: `10.0.1.5` is not an address with a port | add a port, such as "10.0.1.5:8080""#,
    ]),
    // High availability.
    (&[BASE], r#"[ha]
group-id = 7
[[ha.link]]
interface = "sync0"
listen = "10.0.9.1:7030"
[[ha.peer]]
name = "b"
addresses = ["10.0.9.2:7030"]
public-key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
"#, &[
        r#"1:1 error: `[ha]` needs a node key | make one with `tandemgw keygen` and name it with `key` in `[node]`"#,
    ]),
    (&[BASE_HA], r#"[ha]
"#, &[
        r#"1:1 error: there is no link to the peers | add an `[[ha.link]]` with `interface` and `listen`"#,
        r#"1:1 error: there is no peer | add an `[[ha.peer]]` with `name`, `addresses` and `public-key`"#,
        r#"1:1 error: `group-id` is missing in `ha` | add `group-id`: units with the same id belong together (integer, 1 to 255)"#,
    ]),
    (&[BASE_HA], r#"[ha]
group-id = 300
heartbeat-interval = "0ms"
heartbeat-lost-threshold = 1
monitor = ["lan", "wann"]
pickup-guarantee = "on"
session-pick-up = true
[[ha.link]]
interface = "sync0"
listen = "10.0.9.1:7030"
[[ha.peer]]
name = "b"
addresses = ["10.0.9.2:7030"]
public-key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
"#, &[
        r#"2:12 error: `group-id` is 300; it must be 1 to 255"#,
        r#"3:22 error: `heartbeat-interval` is 0s; it must be 1ms to 10s"#,
        r#"4:28 error: `heartbeat-lost-threshold` is 1; it must be 2 to 60"#,
        r#"5:19 error: unknown port `wann` | did you mean `wan`?"#,
        r#"6:20 error: unknown pickup-guarantee `on` | one of off, bounded, strict"#,
        r#"7:1 error: unknown key `session-pick-up` in `ha` | did you mean `session-pickup`?"#,
    ]),
    (&[BASE_HA], r#"[ha]
group-id = 7
[[ha.link]]
interface = "sync0"
listen = "0.0.0.0:7030"
[[ha.link]]
interface = "sync1"
listen = "10.0.1.1:7030"
[[ha.peer]]
name = "b"
addresses = ["10.0.9.2:7030"]
public-key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
"#, &[
        r#"5:10 error: `0.0.0.0` is the unspecified address | give an address that the unit alone has on this link"#,
        r#"8:10 error: `10.0.1.1` is a virtual address | give an address that this unit alone has"#,
        r#"11:14 error: the peer's addresses: 1, this unit's links: 2 | give one address a link, in the order of the links"#,
    ]),
    (&[BASE_HA], r#"[ha]
group-id = 7
[[ha.link]]
interface = "sync0"
listen = "10.0.9.1:7030"
[[ha.peer]]
name = "gw"
addresses = ["10.0.9.1:7030", "[fe80::1]:7030"]
public-key = "AAEC"
"#, &[
        r#"7:8 error: the peer is named `gw`, as this unit is | give each unit a name of its own"#,
        r#"8:14 error: `10.0.9.1:7030` is used twice"#,
        r#"8:31 error: the peer's addresses: 2, this unit's links: 1 | give one address a link, in the order of the links"#,
        r#"8:31 error: `fe80::1` is a link-local address | give an address that the unit alone has on this link"#,
        r#"9:14 error: the public key has 3 bytes, not 32 | copy what `tandemgw pubkey` prints on the peer"#,
    ]),
    (&[BASE_HA], r#"[ha]
group-id = 7
[[ha.link]]
interface = "sync0"
listen = "10.0.9.1:7030"
[[ha.peer]]
name = "b"
addresses = ["[fd00:9::2]:7030"]
public-key = "not base64!"
[[ha.peer]]
name = "b"
addresses = ["10.0.9.2:7030"]
public-key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
[[ha.peer]]
name = "b"
addresses = ["10.0.9.3:7030"]
public-key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
"#, &[
        r#"8:14 error: `[fd00:9::2]:7030` can't be reached from 10.0.9.1:7030 | give both in the same address family"#,
        r#"9:14 error: the public key is not valid base64 | copy what `tandemgw pubkey` prints on the peer"#,
        r#"11:8 error: a second peer named `b` | each peer needs a name of its own"#,
        r#"15:8 error: a second peer named `b` | each peer needs a name of its own"#,
        r#"17:14 error: another peer has the same public key | copy what `tandemgw pubkey` prints on this peer"#,
    ]),
    (&[BASE_HA], r#"[ha]
group-id = 7
session-pickup-delay = "2s"
pickup-guarantee = "strict"
[[ha.link]]
interface = "sync0"
listen = "10.0.9.1:7030"
[[ha.peer]]
name = "b"
addresses = ["10.0.9.2:7030"]
public-key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
"#, &[
        r#"4:20 warning: `pickup-guarantee` waits for sessions that `session-pickup-delay` holds back | remove one of them"#,
    ]),
    (&[BASE_HA], r#"[ha]
group-id = 7
session-pickup = false
pickup-guarantee = "strict"
[[ha.link]]
interface = "sync0"
listen = "10.0.9.1:7030"
[[ha.peer]]
name = "b"
addresses = ["10.0.9.2:7030"]
public-key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
"#, &[
        r#"4:20 warning: `pickup-guarantee` has no effect without `session-pickup`"#,
    ]),
    // The node.
    (&[], r#"[node]
name = "a/b"
key = ""
control-socket = "/xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
max-sessions = 1000
routing-table = 254
[[port]]
name = "lan"
interface = ""
"#, &[
        r#"2:8 error: the name contains '/' | use letters, digits, `-`, `_` and `.`"#,
        r#"3:7 error: the path is empty"#,
        r#"4:18 error: the path has 108 bytes, more than 107 | the kernel takes no longer path for a socket"#,
        r#"5:16 error: `max-sessions` is 1000; it must be 1024 to 16777216"#,
        r#"6:17 error: `routing-table` is 254; it must be 256 to 32000"#,
        r#"9:13 error: the name is empty"#,
    ]),
];
