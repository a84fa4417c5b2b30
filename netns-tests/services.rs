//! Servers that the tests talk to, and the comparison of what came through.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tandemgw_core::random::SplitMix64;

use crate::lab::{Lab, bracketed};
use testkit::system::namespace::Namespace;
use testkit::system::process::{Process, wait_until};

/// nginx on ports 80 of both families: `/whoami` answers with the client's address as the server
/// sees it, `/big` is a file, `/slow` the same file at 2 MB/s.
pub struct Http {
    big: Vec<u8>,
    dir: PathBuf,
    _process: Process,
}

impl Http {
    /// Starts it in `ns`, with a file of `megabytes`.
    pub fn start(lab: &Lab, ns: &Namespace, megabytes: usize) -> Http {
        let dir = lab.dir().join(format!("http-{}", ns.name()));
        fs::create_dir_all(&dir).expect("making a directory");
        let big = pseudo_random(megabytes << 20);
        fs::write(dir.join("big"), &big).expect("writing the file to serve");
        let config = dir.join("nginx.conf");
        fs::write(&config, nginx_config(&dir)).expect("writing nginx.conf");
        let process = ns.spawn(&format!(
            "nginx -p {} -c {}",
            dir.display(),
            config.display()
        ));
        wait_until("nginx answers", || {
            ns.try_run("curl -sf -m 2 http://127.0.0.1/whoami")
                .status
                .success()
        });
        Http {
            big,
            dir,
            _process: process,
        }
    }

    /// Downloads the file from `address` (`HOST[:PORT]`) and compares it with the original.
    #[track_caller]
    pub fn assert_download(&self, client: &Namespace, address: &str) {
        self.get(client, address, "big").finish();
    }

    /// Starts a download that takes half a second a megabyte, the server holding the rest back.
    #[track_caller]
    pub fn start_slow_download(&self, client: &Namespace, address: &str) -> Download<'_> {
        let download = self.get(client, address, "slow");
        wait_until("the download has begun", || download.size() > 0);
        download
    }

    #[track_caller]
    fn get(&self, client: &Namespace, address: &str, path: &str) -> Download<'_> {
        let server = address.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let file = self.dir.join(format!("{}-from-{server}", client.name()));
        // A file of an earlier download does not count as progress.
        let _ = fs::remove_file(&file);
        let line = format!(
            "curl -sSf -m 50 -o {} http://{address}/{path}",
            file.display()
        );
        Download {
            http: self,
            file,
            process: client.spawn(&line),
        }
    }
}

/// A download that runs.
pub struct Download<'a> {
    http: &'a Http,
    file: PathBuf,
    process: Process,
}

impl Download<'_> {
    /// Waits for its end and compares.
    #[track_caller]
    pub fn finish(self) {
        self.process.finish(Duration::from_secs(60)).ok();
        let got = fs::read(&self.file).expect("reading the download");
        assert!(
            got == self.http.big,
            "the download differs from the original"
        );
    }

    fn size(&self) -> u64 {
        fs::metadata(&self.file).map_or(0, |m| m.len())
    }
}

/// The address from which `address` (`HOST[:PORT]`) sees `client`.
#[track_caller]
pub fn whoami(client: &Namespace, address: &str) -> String {
    client
        .run(&format!("curl -sSf -m 5 http://{address}/whoami"))
        .trim()
        .to_owned()
}

/// Sends `bytes` to a TCP port of `server` and checks that they arrived whole.
#[track_caller]
pub fn assert_upload(lab: &Lab, client: &Namespace, server: &Namespace, address: &str) {
    let (source, target) = (lab.dir().join("upload"), lab.dir().join("uploaded"));
    let bytes = pseudo_random(4 << 20);
    fs::write(&source, &bytes).expect("writing the file to send");
    let family = family_number(address);
    let sink = server.spawn(&format!(
        "socat -d -d -u TCP{family}-LISTEN:9000,reuseaddr OPEN:{},creat,trunc",
        target.display()
    ));
    sink.expect_stderr("listening socket", |line| line.contains("listening on"));
    let address = bracketed(address);
    client.run(&format!(
        "socat -u OPEN:{} TCP{family}:{address}:9000",
        source.display()
    ));
    sink.finish(Duration::from_secs(30)).ok();
    assert!(
        fs::read(&target).expect("reading the upload") == bytes,
        "the upload differs"
    );
}

/// A UDP echo server on port 7000.
pub fn udp_echo(server: &Namespace, address: &str) -> Process {
    let family = family_number(address);
    let process = server.spawn(&format!(
        "socat -b 65536 UDP{family}-RECVFROM:7000,fork PIPE"
    ));
    wait_until("the echo server is bound", || {
        server.run("ss -Hlun sport = :7000").contains(":7000")
    });
    process
}

/// Sends one datagram of `size` bytes to the echo server and returns whether it came back.
#[track_caller]
pub fn udp_echoes(lab: &Lab, client: &Namespace, address: &str, size: usize) -> bool {
    let datagram = lab.dir().join(format!("datagram-{size}"));
    fs::write(&datagram, pseudo_random(size)).expect("writing the datagram");
    let (family, address) = (family_number(address), bracketed(address));
    let command = format!(
        "socat -b 65536 -t 0.7 - UDP{family}:{address}:7000 < {0} | cmp - {0} && echo same || true",
        datagram.display()
    );
    client.sh(&command).contains("same")
}

/// iperf3's server.
pub fn iperf_server(server: &Namespace) -> Process {
    let process = server.spawn("iperf3 -s --forceflush");
    process.expect_stdout("listening server", |line| line.contains("listening"));
    process
}

/// Runs iperf3 for a second and returns its report.
#[track_caller]
pub fn iperf(client: &Namespace, arguments: &str) -> serde_json::Value {
    let report = client.run(&format!("iperf3 -t 1 -J {arguments}"));
    serde_json::from_str(&report).expect("iperf3 writes JSON")
}

/// dnsmasq, which knows that test.example is 192.0.2.53.
pub fn dns_server(server: &Namespace) -> Process {
    let process = server.spawn(
        "dnsmasq --no-daemon --user=root --conf-file=/dev/null --no-hosts --no-resolv \
         --address=/test.example/192.0.2.53",
    );
    process.expect_stderr("started server", |line| line.contains("started"));
    process
}

/// 4 or 6.
pub fn family_number(address: &str) -> u8 {
    if address.contains(':') { 6 } else { 4 }
}

/// Bytes that do not repeat soon, the same at each run.
fn pseudo_random(length: usize) -> Vec<u8> {
    let mut random = SplitMix64(1);
    std::iter::repeat_with(|| random.next().to_le_bytes())
        .flatten()
        .take(length)
        .collect()
}

/// One process, in the foreground, with all of its files in `dir`.
fn nginx_config(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "daemon off; master_process off; user root root; pid {dir}/pid; error_log stderr;
        events {{ }}
        http {{
            access_log off; sendfile on;
            client_body_temp_path {dir}/t1; proxy_temp_path {dir}/t2; fastcgi_temp_path {dir}/t3;
            uwsgi_temp_path {dir}/t4; scgi_temp_path {dir}/t5;
            server {{
                listen 80; listen [::]:80; root {dir};
                location = /whoami {{ return 200 $remote_addr; }}
                location = /slow {{ alias {dir}/big; limit_rate 2m; }}
            }}
        }}"
    )
}
