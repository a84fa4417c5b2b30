//! The page of `tandemgw web` beside a million sessions.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use testkit::system::worker::Result;

use super::{Bench, Best, ROUNDS, millis, ordinary_priority, show, tandemgw, times};

/// What a browser gets before the page is complete; the stream comes last.
const FILES: [&str; 5] = ["/", "/style.css", "/app.js", "/actions.js", "/session"];

/// The largest of all sessions.
const SEARCH: &str = r#"{"sessions":{"filter":[],"sort":"bytes"}}"#;

/// A process that serves the page. It ends with this value.
struct Web {
    process: Child,
    socket: PathBuf,
}

impl Web {
    fn start(gateway: &Path, folder: &Path) -> Result<Web> {
        let socket = folder.join("web.sock");
        let mut command = Command::new(tandemgw());
        // SAFETY: plain system calls, which allocate nothing and take no lock.
        unsafe { command.pre_exec(ordinary_priority) };
        command
            .arg("--socket")
            .arg(gateway)
            .args(["web", "--listen"]);
        let process = command.arg(&socket).stderr(Stdio::null()).spawn()?;
        let web = Web { process, socket };
        while UnixStream::connect(&web.socket).is_err() {
            thread::sleep(Duration::from_millis(1));
        }
        Ok(web)
    }

    /// Reads a page until all of it is there.
    fn open(&self) -> Result<()> {
        for path in FILES {
            let said = self.ask(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"))?;
            if !said.starts_with("HTTP/1.1 200") {
                return Err(format!("{path}: {said}").into());
            }
        }
        let mut stream = self.send("GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        let (mut said, mut piece) = (Vec::new(), [0; 1 << 16]);
        while !said.ends_with(b"}\n\n") {
            let length = stream.read(&mut piece)?;
            if length == 0 {
                return Err("the stream has ended".into());
            }
            said.extend_from_slice(&piece[..length]);
        }
        match String::from_utf8_lossy(&said).contains("\"status\":{") {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&said).into()),
        }
    }

    fn search(&self) -> Result<()> {
        let length = SEARCH.len();
        let said = self.ask(&format!(
            "POST /act HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{SEARCH}"
        ))?;
        match said.contains("\"rows\":[{") {
            true => Ok(()),
            false => Err(said.into()),
        }
    }

    fn ask(&self, request: &str) -> Result<String> {
        let mut said = String::new();
        self.send(request)?.read_to_string(&mut said)?;
        Ok(said)
    }

    fn send(&self, request: &str) -> Result<UnixStream> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.write_all(request.as_bytes())?;
        Ok(stream)
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        // It has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(super) fn measure(bench: &Bench, folder: &Path) -> Result<()> {
    let start = Instant::now();
    let web = Web::start(&bench.socket, folder)?;
    web.open()?;
    let first = millis(start.elapsed());
    show(
        "page, from the start of its process",
        first,
        "ms",
        Some(1000.0),
    );
    let opened = times(20, || web.open())?;
    let worst = millis(opened[opened.len() - 1]);
    show("page complete, worst", worst, "ms", Some(1000.0));
    let searched = times(3, || web.search())?;
    show(
        "page, the largest sessions",
        millis(searched[1]),
        "ms",
        None,
    );
    drop(web);
    let mut best = Best::default();
    for _ in 0..ROUNDS {
        let quiet = bench.probe_for(Duration::from_secs(2))?;
        let web = Web::start(&bench.socket, folder)?;
        let _page = web.send("GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        best.add(quiet, bench.probe_for(Duration::from_secs(6))?);
    }
    best.show("page open");
    Ok(())
}
