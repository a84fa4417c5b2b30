//! keepalived, conntrackd and nftables, as the documentation of conntrackd has them work together.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use testkit::system::namespace::Namespace;
use testkit::system::worker::{Result, Worker};

/// Writes what a unit needs, and sets up its kernel.
pub fn configure(namespace: &Namespace, name: &str, folder: &Path) -> Result<()> {
    namespace.sysctl("ipv4/ip_forward", "1");
    namespace.sysctl("ipv4/conf/all/rp_filter", "0");
    namespace.nft(
        "table ip nat {
           chain post {
             type nat hook postrouting priority srcnat
             ip saddr 10.77.1.0/24 oifname eth1 snat to 10.77.2.1
           }
         }",
    )?;
    // The kernel has not seen the windows of connections that it picks up in the middle.
    namespace.sysctl("netfilter/nf_conntrack_tcp_be_liberal", "1");
    let path = |file: &str| folder.join(format!("{name}-{file}"));
    let at = folder.join(format!("{name}-"));
    let at = at.display().to_string();
    std::fs::write(path("conntrackd.conf"), conntrackd(name == "a", &at))?;
    let scripts = [
        ("primary", "-c -f -R -B"),
        ("backup", "-t -n"),
        ("fault", "-t"),
    ];
    for (file, options) in scripts {
        let text = format!(
            "#!/bin/sh
# As the primary-backup.sh that comes with conntrackd.
for option in {options}; do
  /usr/sbin/conntrackd -C {at}conntrackd.conf $option
done >>{at}script.log 2>&1
"
        );
        std::fs::write(path(file), text)?;
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(path(file), executable)?;
    }
    std::fs::write(path("keepalived.conf"), keepalived(name == "a", &at))?;
    Ok(())
}

/// FTFW, its reliable mode, over the sync link; as its example, with room for a benchmark.
fn conntrackd(is_first: bool, at: &str) -> String {
    let (own, other) = if is_first { (1, 2) } else { (2, 1) };
    format!(
        "Sync {{
           Mode FTFW {{
             ResendQueueSize 131072
             ACKWindowSize 300
           }}
           UDP {{
             IPv4_address 10.77.9.{own}
             IPv4_Destination_Address 10.77.9.{other}
             Port 3780
             Interface sync0
             SndSocketBuffer 24985600
             RcvSocketBuffer 24985600
             Checksum on
           }}
         }}
         General {{
           Nice -20
           HashSize 262144
           HashLimit 1048576
           LogFile {at}conntrackd.log
           LockFile {at}conntrackd.lock
           UNIX {{ Path {at}conntrackd.ctl }}
           NetlinkBufferSize 16777216
           NetlinkBufferSizeMaxGrowth 67108864
           Filter From Kernelspace {{
             Protocol Accept {{
               TCP
               UDP
             }}
             Address Ignore {{
               IPv4_address 127.0.0.1
               IPv4_address 10.77.1.1
               IPv4_address 10.77.2.1
               IPv4_address 10.77.9.1
               IPv4_address 10.77.9.2
             }}
           }}
         }}
         "
    )
}

/// VRRP version 3, which has the shortest intervals.
fn keepalived(is_first: bool, at: &str) -> String {
    let priority = if is_first { 200 } else { 100 };
    let instance = |name: &str, interface: &str, id: u8, address: &str| {
        format!(
            "vrrp_instance {name} {{
               interface {interface}
               state BACKUP
               virtual_router_id {id}
               priority {priority}
               advert_int 0.01
               virtual_ipaddress {{ {address} }}
             }}
             "
        )
    };
    format!(
        "global_defs {{
           vrrp_version 3
           vrrp_priority -20
           script_user root
         }}
         vrrp_sync_group both {{
           group {{
             LAN
             WAN
           }}
           notify_master {at}primary
           notify_backup {at}backup
           notify_fault {at}fault
         }}
         {}{}",
        instance("LAN", "eth0", 51, "10.77.1.1/24"),
        instance("WAN", "eth1", 52, "10.77.2.1/24"),
    )
}

/// Starts conntrackd and keepalived, in this order.
pub fn start(namespace: &Namespace, name: &str, folder: &Path) -> Result<Vec<Worker>> {
    let path = |file: &str| folder.join(format!("{name}-{file}"));
    let run = |command: &mut Command, log: &str| -> Result<Worker> {
        let log = File::create(path(log))?;
        command
            .stdin(Stdio::null())
            .stderr(log.try_clone()?)
            .stdout(log);
        namespace.start(command, None)
    };
    let mut command = Command::new("conntrackd");
    let conntrackd = run(
        command.arg("-C").arg(path("conntrackd.conf")),
        "conntrackd.out",
    )?;
    // The scripts ask it things.
    std::thread::sleep(Duration::from_millis(300));
    let mut command = Command::new("keepalived");
    command.args(["--dont-fork", "--log-console", "--vrrp"]);
    command.arg("--use-file").arg(path("keepalived.conf"));
    command.arg("--pid").arg(path("keepalived.pid"));
    command.arg("--vrrp_pid").arg(path("vrrp.pid"));
    let keepalived = run(&mut command, "keepalived.out")?;
    Ok(vec![conntrackd, keepalived])
}

/// Whether the unit has both virtual addresses.
pub fn is_master(namespace: &Namespace) -> Result<bool> {
    let mut command = Command::new("ip");
    command.args(["-o", "-4", "addr", "show"]);
    let output = namespace.enter_on(&mut command, None).output()?;
    let text = String::from_utf8(output.stdout)?;
    Ok(["10.77.1.1/", "10.77.2.1/"]
        .iter()
        .all(|address| text.contains(address)))
}

/// Sessions that the unit's conntrackd holds for the other unit.
pub fn external(namespace: &Namespace, name: &str, folder: &Path) -> Result<u64> {
    let mut command = Command::new("conntrackd");
    command
        .arg("-C")
        .arg(folder.join(format!("{name}-conntrackd.conf")));
    let output = namespace.enter_on(command.arg("-s"), None).output()?;
    let text = String::from_utf8(output.stdout)?;
    let (_, rest) = text
        .split_once("cache external:")
        .ok_or("no external cache")?;
    let number = rest
        .lines()
        .find_map(|line| line.trim().strip_prefix("current active connections:"));
    Ok(number.ok_or("no count")?.trim().parse()?)
}

/// Sessions that the unit's kernel has.
pub fn tracked(namespace: &Namespace) -> Result<u64> {
    let path = "/proc/sys/net/netfilter/nf_conntrack_count";
    let text = namespace.inside(|| std::fs::read_to_string(path))?;
    Ok(text.trim().parse()?)
}

/// A process and its children: keepalived has one.
pub fn family(process: u32) -> Vec<u32> {
    let path = format!("/proc/{process}/task/{process}/children");
    let children = std::fs::read_to_string(path).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|id| id.parse().ok());
    std::iter::once(process).chain(children).collect()
}
