//! Chromium without a window, driven by Debian's chromedriver through WebDriver
//! (<https://www.w3.org/TR/webdriver2/>).

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use testkit::system::namespace::Namespace;
use testkit::system::process::{Process, wait_until};

const PORT: u16 = 9515;

/// Longer than a browser takes to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A browser on the machine of a unit; it ends with this value.
pub struct Browser<'a> {
    ns: &'a Namespace,
    session: String,
    _driver: Process,
}

impl<'a> Browser<'a> {
    /// Starts it; its files go into `dir`.
    ///
    /// # Panics
    /// If it is not installed.
    #[track_caller]
    pub fn start(ns: &'a Namespace, dir: &Path) -> Browser<'a> {
        for (program, package) in [
            ("chromium", "chromium"),
            ("chromedriver", "chromium-driver"),
        ] {
            let is_there = ns.try_run(&format!("which {program}")).status.success();
            assert!(
                is_there,
                "this test needs {program}: apt-get install {package}, or scripts/test"
            );
        }
        let mut command = ns.command("chromedriver");
        command.arg(format!("--port={PORT}")).env("HOME", dir);
        let driver = Process::spawn(command, "chromedriver");
        wait_until("chromedriver answers", || {
            let status = ask(ns, "GET", "/status", None);
            status.is_ok_and(|it| it["value"]["ready"] == true)
        });
        // Its sandbox needs rights that root of a namespace lacks; it sees this page only.
        let args = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--no-first-run",
            "--hide-scrollbars",
            &format!("--user-data-dir={}", dir.join("chromium").display()),
        ];
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "acceptInsecureCerts": true,
            "goog:chromeOptions": {"args": args},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let begun = ask(ns, "POST", "/session", Some(&wanted)).expect("chromedriver answers");
        let session = begun["value"]["sessionId"].as_str();
        Browser {
            ns,
            session: session
                .unwrap_or_else(|| panic!("chromium does not start: {begun:#}"))
                .to_owned(),
            _driver: driver,
        }
    }

    /// Goes to a page.
    #[track_caller]
    pub fn open(&self, url: &str) {
        self.post("url", &json!({ "url": url }));
    }

    /// Runs a script in the page and returns its result.
    #[track_caller]
    pub fn script(&self, script: &str) -> Value {
        self.post("execute/sync", &json!({"script": script, "args": []}))
    }

    /// Waits until an expression of the page is true.
    #[track_caller]
    pub fn wait_until(&self, what: &str, expression: &str) {
        let script = format!("return Boolean({expression});");
        wait_until(what, || self.script(&script) == true);
    }

    /// What the page wrote to the console since the last call, violations of its policy too.
    #[track_caller]
    pub fn console(&self) -> Vec<String> {
        let entries = self.post("se/log", &json!({"type": "browser"}));
        let entries = entries.as_array().cloned().unwrap_or_default();
        entries.iter().map(Value::to_string).collect()
    }

    /// A picture of the whole page, `width` pixels wide, in light or dark.
    #[track_caller]
    pub fn picture(&self, width: u32, scheme: &str) -> Vec<u8> {
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.devtools("Emulation.setEmulatedMedia", &media);
        let size = |height: u64| {
            let size =
                json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
            self.devtools("Emulation.setDeviceMetricsOverride", &size);
        };
        size(400);
        let height = self.script("return document.documentElement.scrollHeight;");
        size(height.as_u64().expect("a number of pixels"));
        let taken = self.get("screenshot");
        let text = taken.as_str().expect("a picture as text");
        self.devtools("Emulation.clearDeviceMetricsOverride", &json!({}));
        STANDARD.decode(text).expect("a picture in base64")
    }

    /// Writes the picture into the book, if `TANDEMGW_SCREENSHOTS` is set; checks that there is
    /// one.
    #[track_caller]
    pub fn picture_for_book(&self, name: &str, width: u32, scheme: &str) {
        let picture = self.picture(width, scheme);
        assert!(picture.starts_with(b"\x89PNG"), "{name} is a picture");
        let file = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("docs")
            .join(name);
        if std::env::var_os("TANDEMGW_SCREENSHOTS").is_some() {
            fs::write(&file, picture).expect("writing a picture");
        }
        assert!(file.exists(), "TANDEMGW_SCREENSHOTS=1 makes {name}");
    }

    /// A command of the DevTools protocol.
    #[track_caller]
    fn devtools(&self, command: &str, params: &Value) {
        self.post(
            "goog/cdp/execute",
            &json!({"cmd": command, "params": params}),
        );
    }

    #[track_caller]
    fn post(&self, command: &str, body: &Value) -> Value {
        self.ask("POST", command, Some(body))
    }

    #[track_caller]
    fn get(&self, command: &str) -> Value {
        self.ask("GET", command, None)
    }

    #[track_caller]
    fn ask(&self, method: &str, command: &str, body: Option<&Value>) -> Value {
        let path = format!("/session/{}/{command}", self.session);
        let answer = ask(self.ns, method, &path, body).expect("chromedriver answers");
        let error = &answer["value"]["error"];
        assert!(error.is_null(), "{command}: {answer:#}");
        answer["value"].clone()
    }
}

impl Drop for Browser<'_> {
    fn drop(&mut self) {
        // Chromium ends with it.
        let _ = ask(
            self.ns,
            "DELETE",
            &format!("/session/{}", self.session),
            None,
        );
    }
}

/// One request to chromedriver.
fn ask(ns: &Namespace, method: &str, path: &str, body: Option<&Value>) -> io::Result<Value> {
    let body = body.map(Value::to_string).unwrap_or_default();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost:{PORT}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    ns.inside(|| {
        let mut stream = TcpStream::connect(("127.0.0.1", PORT))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(request.as_bytes())?;
        read_answer(&mut BufReader::new(stream))
    })
}

/// Chromedriver leaves the connection open: an answer is as long as its head says.
fn read_answer(stream: &mut impl BufRead) -> io::Result<Value> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    serde_json::from_slice(&body).map_err(io::Error::other)
}
