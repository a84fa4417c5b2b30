//! `tandemgw web`: the page, its stream, and who is refused.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::browser::Browser;
use crate::lab::SERVER;
use crate::pair::Pair;
use testkit::system::namespace::Namespace;
use testkit::system::process::wait_until;

/// The page and its files, and what is none.
fn assert_files(ns: &Namespace) {
    let curl = |arguments: &str| ns.sh(&format!("curl -s -i --max-time 5 {arguments} || true"));
    let html = curl("http://127.0.0.1:8748/");
    assert!(
        html.contains("Content-Security-Policy: default-src 'none'; script-src 'self'"),
        "{html}"
    );
    assert!(
        !html.contains("<script>") && !html.contains("onclick"),
        "{html}"
    );
    for (path, part) in [
        ("app.js", "TextDecoderStream"),
        ("actions.js", "FORMS"),
        ("style.css", "color-scheme"),
    ] {
        let file = curl(&format!("http://localhost:8748/{path}"));
        assert!(file.contains("200 OK") && file.contains(part), "{file}");
        assert!(
            !file.contains("http://") && !file.contains("https://"),
            "nothing from elsewhere: {path}"
        );
    }
    for (refused, status) in [
        ("-H 'Host: evil.example' http://127.0.0.1:8748/", "403"),
        ("-X PUT http://127.0.0.1:8748/", "405"),
        ("http://127.0.0.1:8748/etc/passwd", "404"),
    ] {
        let said = curl(refused);
        assert!(said.starts_with(&format!("HTTP/1.1 {status}")), "{said}");
    }
}

#[test]
fn the_page_shows_the_pair_as_it_changes_and_lets_nobody_else_in() {
    let mut pair = Pair::started();
    let page = pair.b().spawn_tandemgw("web --listen 127.0.0.1:8748");
    page.expect_stderr("address", |line| line.contains("http://127.0.0.1:8748/"));
    let ns = &pair.b().ns;
    let curl = |arguments: &str| ns.sh(&format!("curl -s -i --max-time 5 {arguments} || true"));
    wait_until("it listens", || {
        curl("http://127.0.0.1:8748/").contains("200 OK")
    });
    assert_files(ns);
    let stream = pair.b().ns.spawn("curl -s -N http://127.0.0.1:8748/stream");
    let last = || -> Option<Value> {
        let stdout = stream.stdout();
        let line = stdout
            .lines()
            .rfind(|line| line.starts_with("data: {") && line.ends_with('}'))?;
        serde_json::from_str(line.strip_prefix("data: ")?).ok()
    };
    wait_until("the pair is shown", || {
        last().is_some_and(|data| data["status"]["peers"][0]["connected"] == true)
    });
    let data = last().expect("it came");
    assert_eq!(data["policies"][0]["name"], "lan-out", "{data:#}");
    pair.a_mut().kill();
    wait_until("the page turns", || {
        last().is_some_and(|data| data["status"]["groups"][0]["role"] == "primary")
    });
    wait_until("the event is shown", || {
        let data = last().unwrap_or_default();
        let events = data["events"].as_array().cloned().unwrap_or_default();
        events.iter().any(|event| event["id"] == "peer-gone")
    });
    pair.b.kill();
    wait_until("it says that the gateway is gone", || {
        last().is_some_and(|data| {
            data["error"]
                .as_str()
                .is_some_and(|why| why.contains("no running gateway"))
        })
    });
    pair.b.start();
    wait_until("it is back", || {
        last().is_some_and(|data| data["status"]["node"] == "gw-b")
    });
    let refused = pair.b().tandemgw("web --listen 0.0.0.0:8749").code(2);
    assert!(refused.stderr.contains("ssh -L"), "{}", refused.stderr);
}

/// Notes in `window.turned` when the page shows this unit as primary.
const NOTE_TURN: &str = "
    window.turned = 0;
    const units = document.getElementById('units');
    new MutationObserver(() => {
      const role = units.querySelector('tbody tr td:nth-child(2)');
      if (!window.turned && role && role.textContent === 'primary') window.turned = Date.now();
    }).observe(units, { childList: true, subtree: true });";

/// The graphs are drawn from what the process has seen.
fn shows_the_last_hour(browser: &Browser<'_>) {
    wait_until("the hour has a point", || {
        let hour = browser.script("return post('act', 'history');");
        let last = |graph: &str| hour[graph][359].as_u64();
        assert!(hour["bits"][0].is_null(), "nobody looked an hour ago");
        // This unit is the standby: nothing passes by it.
        last("bits") == Some(0) && last("packets") == Some(0) && last("sessions") >= Some(1)
    });
    browser.script("historyDue = 0;");
    let drawn = |id: &str| {
        format!(
            "document.getElementById('{id}').getContext('2d').getImageData(0, 0, 720, 120).data.some(Boolean)"
        )
    };
    for id in ["graph-bits", "graph-sessions"] {
        browser.wait_until(id, &drawn(id));
    }
    browser.wait_until(
        "the words below",
        "document.getElementById('most-sessions').textContent === 'sessions, at most 1'
         && document.getElementById('most-bits').textContent.includes('0 bit/s')",
    );
}

#[test]
fn a_browser_shows_the_takeover_within_a_second() {
    let mut pair = Pair::started();
    wait_until("all is well", || {
        pair.b().status()["health"]["state"] == "good"
    });
    let _pings = pair
        .lab
        .lan1
        .spawn(&format!("ping -q -i 0.01 {}", SERVER[0]));
    wait_until("the session is on both", || {
        !pair.b().sessions("proto=icmp").is_empty()
    });
    let page = pair.b().spawn_tandemgw("web --listen 127.0.0.1:8748");
    page.expect_stderr("address", |line| line.contains("http://127.0.0.1:8748/"));
    let browser = Browser::start(&pair.b.ns, pair.lab.dir());
    browser.open("http://127.0.0.1:8748/");
    browser.wait_until(
        "the page is complete",
        "document.querySelector('#units tbody tr:nth-child(2)') && document.querySelector('#hosts table')",
    );
    shows_the_last_hour(&browser);
    browser.picture_for_book("web.png", 1280, "light");
    browser.picture_for_book("web-phone.png", 390, "dark");
    let shown = browser.script("return document.body.innerText;");
    let shown = shown.as_str().expect("text");
    assert!(
        shown.contains("gw-a") && shown.contains("lan-out"),
        "{shown}"
    );

    browser.script(NOTE_TURN);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let killed = now.expect("after 1970").as_millis() as i64;
    pair.lab.unit.kill();
    browser.wait_until("the page turns", "window.turned");
    let turned = browser.script("return window.turned;");
    let took = turned.as_i64().expect("a time") - killed;
    println!("the page turned {took} ms after the death of the primary");
    assert!((0..=1000).contains(&took), "{took} ms");
    // The traffic of the other unit comes by this one now.
    wait_until("the hour shows it", || {
        let hour = browser.script("return post('act', 'history');");
        hour["bits"][359].as_u64().is_some_and(|bits| bits > 1000)
    });
    browser.wait_until(
        "it says what is wrong",
        "document.getElementById('health').textContent.includes('gw-a is gone')",
    );
    let console = browser.console();
    assert!(console.is_empty(), "{console:#?}");
}
