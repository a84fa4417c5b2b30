//! Changes by the page of `tandemgw web`: what a browser does after the log-in, and what nobody can
//! do who has not logged in.

use std::io::Read;
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::browser::Browser;
use crate::lab::SERVER;
use crate::one_config;
use crate::pair::Pair;
use crate::unit::Unit;
use testkit::system::namespace::Namespace;
use testkit::system::process::{Process, wait_until};

const PAGE: &str = "http://127.0.0.1:8748/";

/// A password file of a unit; returns the file and the password.
fn password(pair: &Pair, unit: &Unit) -> (String, String) {
    let file = pair.lab.dir().join("web-password").display().to_string();
    let made = unit.tandemgw(&format!("web-password --out {file}"));
    (file, made.ok().stdout.trim().to_owned())
}

/// The page of a unit, with a log-in.
fn page(unit: &Unit, arguments: &str) -> Process {
    let page = unit.spawn_tandemgw(&format!("web {arguments}"));
    page.expect_stderr("address", |line| line.contains("://"));
    page
}

/// Types values into a form, and asks for its effect.
fn check(browser: &Browser<'_>, form: &str, values: &[(&str, &str)]) -> String {
    for (name, value) in values {
        browser.script(&format!(
            "const input = document.forms['{form}'].elements['{name}']; input.value = '{value}';
             input.dispatchEvent(new Event('input', {{ bubbles: true }}));"
        ));
    }
    browser.script(&format!(
        "document.forms['{form}'].querySelector('pre').textContent = '…';
         document.forms['{form}'].requestSubmit();"
    ));
    result(browser, form)
}

/// Applies what was checked.
fn apply(browser: &Browser<'_>, form: &str) -> String {
    browser.script(&format!(
        "const button = document.forms['{form}'].querySelector('.apply');
         if (button.disabled) throw new Error('nothing to apply');
         document.forms['{form}'].querySelector('pre').textContent = '…'; button.click();"
    ));
    result(browser, form)
}

fn result(browser: &Browser<'_>, form: &str) -> String {
    let shown = format!("document.forms['{form}'].querySelector('pre').textContent");
    browser.wait_until(form, &format!("{shown} !== '…'"));
    text(browser, &shown)
}

fn text(browser: &Browser<'_>, expression: &str) -> String {
    let value = browser.script(&format!("return {expression};"));
    value.as_str().unwrap_or_default().to_owned()
}

fn switch(unit: &Unit, key: &str) -> String {
    let said = unit.tandemgw(&format!("ha get {key}"));
    said.ok().stdout.trim().to_owned()
}

fn log_in(browser: &Browser<'_>, password: &str) {
    browser.wait_until("the log-in", "!document.getElementById('login').hidden");
    browser.script(&format!(
        "document.forms.login.elements.password.value = '{password}'; document.forms.login.requestSubmit();"
    ));
}

#[test]
fn a_browser_changes_the_pair_after_the_log_in() {
    let (pair, _) = one_config::started();
    let (file, password) = password(&pair, pair.a());
    let _page = page(
        pair.a(),
        &format!("--listen 127.0.0.1:8748 --password-file {file}"),
    );
    let browser = Browser::start(&pair.a().ns, pair.lab.dir());
    browser.open(PAGE);
    log_in(&browser, &password);
    browser.wait_until(
        "the forms",
        "!document.getElementById('changes').hidden && document.forms.switch.elements.key.options.length
         && document.forms.failover.elements.to.options.length > 1",
    );

    switches(&pair, &browser);
    sessions_and_packets(&pair, &browser);

    roles(&pair, &browser);

    browser.script("document.getElementById('logout').click();");
    browser.wait_until("it is over", "document.getElementById('changes').hidden");
    let console = browser.console();
    assert!(console.is_empty(), "{console:#?}");
    log_in(&browser, "not the password");
    browser.wait_until(
        "it is refused",
        "document.getElementById('login-result').textContent.includes('not the password')",
    );
}

fn switches(pair: &Pair, browser: &Browser<'_>) {
    // A switch, on all units and in their files: shown before, and seen on both.
    assert_eq!(switch(pair.b(), "session-pickup"), "true");
    for value in ["false", "true"] {
        let values = [
            ("key", "session-pickup"),
            ("value", value),
            ("scope", "all"),
        ];
        let shown = check(browser, "switch", &values);
        for part in ["gw-a:", "gw-b:", "session-pickup"] {
            assert!(shown.contains(part), "{shown}");
        }
        assert_ne!(switch(pair.a(), "session-pickup"), value, "not yet");
        let done = apply(browser, "switch");
        assert!(done.contains("in force on all units"), "{done}");
        for unit in [pair.a(), pair.b()] {
            assert_eq!(switch(unit, "session-pickup"), value);
        }
    }
    let history = pair.a().tandemgw("config history").ok().stdout;
    assert!(history.contains("tandemgw web"), "{history}");
    // One on this unit only.
    let shown = check(
        browser,
        "switch",
        &[("key", "priority"), ("value", "210"), ("scope", "unit")],
    );
    assert!(
        shown.contains("gw-a: priority 200 → 210") && shown.contains("gw-b: no change"),
        "{shown}"
    );
    let command = text(
        browser,
        "document.forms.switch.querySelector('code').textContent",
    );
    assert_eq!(command, "tandemgw ha set priority 210");
    browser.picture_for_book("web-changes.png", 1280, "light");
    apply(browser, "switch");
    assert_eq!(switch(pair.a(), "priority"), "210");
    let wrong = check(browser, "switch", &[("value", "much"), ("scope", "all")]);
    assert!(
        wrong.contains("gw-a") || wrong.contains("priority"),
        "{wrong}"
    );
}

fn roles(pair: &Pair, browser: &Browser<'_>) {
    let shown = check(browser, "failover", &[("to", "gw-b")]);
    assert!(shown.contains("gw-b: in sync"), "{shown}");
    let done = apply(browser, "failover");
    assert!(
        done.contains("gw-b is now primary of group default"),
        "{done}"
    );
    assert!(pair.b().is_primary());
    check(
        browser,
        "maintenance",
        &[("state", "on"), ("minutes", "30")],
    );
    let done = apply(browser, "maintenance");
    assert!(done.contains("standby of all groups"), "{done}");
    assert!(!pair.a().status()["maintenance"].is_null());
    check(browser, "maintenance", &[("state", "off")]);
    apply(browser, "maintenance");
    assert!(pair.a().status()["maintenance"].is_null());
}

fn sessions_and_packets(pair: &Pair, browser: &Browser<'_>) {
    pair.lab.lan1.run(&format!("ping -c 1 -W 2 {}", SERVER[0]));
    let shown = check(browser, "clear", &[("filter", "proto=icmp")]);
    assert!(shown.starts_with("1 sessions match"), "{shown}");
    assert_eq!(pair.a().sessions("proto=icmp").len(), 1, "not yet");
    assert_eq!(apply(browser, "clear"), "1 sessions ended");
    assert!(pair.a().sessions("proto=icmp").is_empty());
    searches(pair, browser);
    let packet = [
        ("source", "10.77.1.100:4000"),
        ("destination", "10.77.2.100:80"),
        ("port", "lan"),
    ];
    let shown = check(browser, "explain", &packet);
    let same = pair
        .a()
        .tandemgw("explain tcp 10.77.1.100:4000 10.77.2.100:80 --in lan");
    assert_eq!(
        shown.lines().next(),
        same.ok().stdout.lines().next(),
        "{shown}"
    );
}

/// Sessions are found, in an order, and summed up, as by the command that is shown.
fn searches(pair: &Pair, browser: &Browser<'_>) {
    for count in [1, 3] {
        let ping = format!("ping -c {count} -i 0.01 -W 2 {}", SERVER[0]);
        pair.lab.lan1.run(&ping);
    }
    let rows = "[...document.querySelectorAll('#found tbody tr')].map((row) => row.innerText)";
    let packets = format!("{rows}.map((row) => row.split('\\t')[9]).join(' ')");
    let values = [("filter", "proto=icmp"), ("what", "sort packets")];
    assert_eq!(check(browser, "search", &values), "2 of 2 sessions");
    assert_eq!(text(browser, &packets), "6 2");
    let command = "document.forms.search.querySelector('code').textContent";
    let same = "tandemgw sessions proto=icmp --limit 200 --sort packets";
    assert_eq!(text(browser, command), same);
    let values = [("filter", ""), ("what", "by source")];
    assert!(check(browser, "search", &values).starts_with("1 of 1"));
    let sums = text(browser, &format!("{rows}.join()"));
    assert!(sums.starts_with("10.77.1.100\t2\t8\t"), "{sums}");
    let wrong = check(browser, "search", &[("filter", "prot=tcp"), ("what", "")]);
    assert!(wrong.contains("did you mean `proto`?"), "{wrong}");
    assert_eq!(text(browser, &format!("{rows}.join()")), "", "nothing old");
}

/// What curl is told: the whole answer, with its head.
fn curl(ns: &Namespace, arguments: &str) -> String {
    ns.sh(&format!("curl -s -k -i --max-time 5 {arguments} || true"))
}

fn post(ns: &Namespace, url: &str, headers: &str, body: &Value) -> String {
    let json = "-H 'Content-Type: application/json'";
    curl(ns, &format!("{json} {headers} -d '{body}' {url}"))
}

/// Logs in and returns the secret.
fn secret(ns: &Namespace, url: &str, password: &str) -> String {
    let said = post(
        ns,
        &format!("{url}login"),
        "",
        &json!({ "password": password }),
    );
    let body = said.split("\r\n\r\n").nth(1).unwrap_or_default();
    let value: Value = serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {said}"));
    value["secret"].as_str().expect("a secret").to_owned()
}

fn set_priority(value: u8) -> Value {
    json!({"ask": {"command": "ha-set", "key": "priority", "value": value.to_string()}})
}

#[track_caller]
fn assert_status(said: &str, status: &str) {
    assert!(
        said.starts_with(&format!("HTTP/1.1 {status}")),
        "{status}: {said}"
    );
}

fn guess_often(ns: &Namespace, password: &str) {
    // Guesses are few, and then not even the right one is looked at.
    let guess = |word: &str| {
        post(
            ns,
            &format!("{PAGE}login"),
            "",
            &json!({ "password": word }),
        )
    };
    let said: Vec<String> = (0..8).map(|_| guess("wrong")).collect();
    assert_status(&said[0], "401");
    assert_status(&said[7], "429");
    assert_status(&guess(password), "429");
    assert!(!said.concat().contains("secret"), "{said:?}");
}

#[test]
fn nobody_changes_anything_without_the_secret_of_a_session() {
    let pair = Pair::started();
    let (file, password) = password(&pair, pair.b());
    let _page = page(
        pair.b(),
        &format!("--listen 127.0.0.1:8748 --password-file {file}"),
    );
    let ns = &pair.b().ns;
    let act = format!("{PAGE}act");
    wait_until("it listens", || curl(ns, PAGE).contains("200 OK"));
    let before = pair.b().tandemgw("ha get").ok().stdout;
    let secret = secret(ns, PAGE, &password);
    let bearer = format!("-H 'Authorization: Bearer {secret}'");
    let change = set_priority(7);
    let all: [(String, &str); 10] = [
        (String::new(), "401"),
        ("-H 'Authorization: Bearer x'".into(), "401"),
        (format!("-H 'Cookie: tandemgw={secret}'"), "401"),
        (format!("-H 'Authorization: Basic {secret}'"), "401"),
        (format!("{bearer} {bearer}"), "400"),
        // A page of another origin, even if it had the secret; a name that leads here.
        (format!("{bearer} -H 'Origin: http://evil.example'"), "403"),
        (format!("{bearer} -H 'Origin: http://127.0.0.1:9'"), "403"),
        (format!("{bearer} -H 'Origin: null'"), "403"),
        (format!("{bearer} -H 'Host: evil.example:8748'"), "403"),
        (format!("{bearer} -H 'Transfer-Encoding: chunked'"), "501"),
    ];
    for (headers, status) in &all {
        assert_status(&post(ns, &act, headers, &change), status);
    }
    // What a form of another page can send, and a request that the page has no use for.
    for kind in ["text/plain", "application/x-www-form-urlencoded"] {
        let form = format!("-H 'Content-Type: {kind}' {bearer} -d '{change}' {act}");
        assert_status(&curl(ns, &form), "415");
    }
    let reload = json!({"ask": {"command": "reload"}});
    assert!(post(ns, &act, &bearer, &reload).contains("does not ask for this"));
    // A key of the config that is no switch.
    let other = json!({"check-switch": {"key": "group-id", "value": "9"}});
    let said = post(ns, &act, &bearer, &other);
    assert!(said.contains("error") && said.contains("switch"), "{said}");
    assert_status(&curl(ns, &format!("{bearer} {act}?{}", "x=1")), "404");
    let preflight = curl(
        ns,
        &format!("-X OPTIONS -H 'Origin: http://evil.example' {act}"),
    );
    assert!(
        !preflight.to_lowercase().contains("access-control-allow"),
        "{preflight}"
    );
    assert_eq!(
        pair.b().tandemgw("ha get").ok().stdout,
        before,
        "nothing has changed"
    );

    // With it, and until its end.
    assert_status(&post(ns, &act, &bearer, &change), "200");
    assert_eq!(switch(pair.b(), "priority"), "7");
    assert_status(
        &post(ns, &format!("{PAGE}logout"), &bearer, &json!({})),
        "200",
    );
    assert_status(&post(ns, &act, &bearer, &set_priority(8)), "401");
    assert_eq!(switch(pair.b(), "priority"), "7");
    guess_often(ns, &password);
}

#[test]
fn the_file_of_the_password_is_for_its_owner_only() {
    let pair = Pair::started();
    let (file, password) = password(&pair, pair.b());
    let text = std::fs::read_to_string(&file).expect("the file");
    assert!(password.len() >= 20 && !text.contains(&password), "{text}");
    let again = pair
        .b()
        .tandemgw(&format!("web-password --out {file}"))
        .code(1);
    assert!(again.stderr.contains("exists"), "{}", again.stderr);
    pair.b().ns.run(&format!("chmod 644 {file}"));
    let command = format!("web --listen 127.0.0.1:8748 --password-file {file}");
    let refused = pair.b().tandemgw(&command).code(2);
    assert!(refused.stderr.contains("chmod 600"), "{}", refused.stderr);
    let short = format!("{file}-short");
    let script = format!(
        "echo short | {} web-password --stdin --out {short}",
        env!("CARGO_BIN_EXE_tandemgw")
    );
    let said = pair.b().ns.sh(&format!("({script}) 2>&1 || true"));
    assert!(said.contains("at least 12 characters"), "{said}");
}

#[test]
fn beyond_loopback_it_speaks_tls_to_those_who_log_in() {
    let pair = Pair::started();
    let (file, password) = password(&pair, pair.b());
    let dir = pair.lab.dir().display();
    pair.b().ns.sh(&format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=gw-b \
         -keyout {dir}/web.key -out {dir}/web.crt 2>&1"
    ));
    let tls = format!("--certificate {dir}/web.crt --key {dir}/web.key");
    let refused = |arguments: &str, part: &str| {
        let said = pair
            .b()
            .tandemgw(&format!("web {arguments}"))
            .code(2)
            .stderr;
        assert!(said.contains(part) && said.lines().count() == 1, "{said}");
    };
    refused("--listen 0.0.0.0:8749", "plain HTTP is for loopback only");
    refused(
        &format!("--listen [::]:8749 --password-file {file}"),
        "plain HTTP is for loopback only",
    );
    refused(&format!("--listen 0.0.0.0:8749 {tls}"), "--password-file");
    let swapped = format!("--certificate {dir}/web.key --key {dir}/web.crt");
    refused(
        &format!("--listen 0.0.0.0:8749 --password-file {file} {swapped}"),
        "web.key",
    );

    let _page = page(
        pair.b(),
        &format!("--listen 0.0.0.0:8749 --password-file {file} {tls} --host gw-b.example"),
    );
    // From the other unit, over the link.
    let (ns, page) = (&pair.a().ns, "https://10.77.9.2:8749/");
    wait_until("it listens", || curl(ns, page).contains("200 OK"));
    let plain = curl(ns, "http://10.77.9.2:8749/");
    assert!(!plain.contains("html"), "{plain}");
    let read = json!({"ask": {"command": "status"}});
    let act = format!("{page}act");
    assert_status(&curl(ns, &format!("{page}stream")), "401");
    assert_status(&post(ns, &act, "", &read), "401");
    assert_status(&curl(ns, &format!("-H 'Host: localhost' {page}")), "403");
    assert_status(
        &curl(ns, &format!("-H 'Host: gw-b.example:8749' {page}")),
        "200",
    );
    let bearer = format!("-H 'Authorization: Bearer {}'", secret(ns, page, &password));
    let said = post(ns, &act, &bearer, &read);
    assert!(said.contains("\"node\":\"gw-b\""), "{said}");
    assert_status(
        &post(
            ns,
            &act,
            &format!("{bearer} -H 'Origin: http://10.77.9.2:8749'"),
            &read,
        ),
        "403",
    );

    // Those who connect and say nothing keep nobody out, and are sent away.
    let slow: Vec<_> = ns.inside(|| {
        let one = |_| TcpStream::connect("10.77.9.2:8749").expect("connecting");
        (0..60).map(one).collect()
    });
    assert_status(&curl(ns, page), "200");
    wait_until("the slow ones are sent away", || {
        slow.iter().all(|mut stream| {
            let _ = stream.set_nonblocking(true);
            stream.read(&mut [0; 64]).is_ok_and(|length| length == 0)
        })
    });
}

/// Makes certificates in `dir` of a unit: `ca`, `web` for the page, `client` signed by the CA, and
/// `other`, which signs itself.
fn make_certificates(unit: &Unit, dir: &str) {
    let new = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    let own = |name: &str| {
        format!(
            "openssl req -x509 {new} -days 2 -subj /CN={name} -keyout {dir}/{name}.key -out {dir}/{name}.crt\n"
        )
    };
    unit.ns.sh(&format!(
        "({} {} {} openssl req {new} -subj /CN=admin -keyout {dir}/client.key -out {dir}/client.csr\n\
         echo extendedKeyUsage=clientAuth > {dir}/client.ext\n\
         openssl x509 -req -extfile {dir}/client.ext -in {dir}/client.csr -CA {dir}/ca.crt -CAkey {dir}/ca.key -CAcreateserial \
         -days 2 -out {dir}/client.crt) 2>&1",
        own("ca"),
        own("web"),
        own("other"),
    ));
}

#[test]
fn a_certificate_takes_the_place_of_the_password() {
    let pair = Pair::started();
    let dir = pair.lab.dir().display().to_string();
    make_certificates(pair.b(), &dir);
    let (file, password) = password(&pair, pair.b());
    let tls = format!("--certificate {dir}/web.crt --key {dir}/web.key --client-ca {dir}/ca.crt");
    let url = |port: u16| format!("https://10.77.9.2:{port}/");
    let shown = |name: &str| format!("--cert {dir}/{name}.crt --key {dir}/{name}.key");
    let ns = &pair.a().ns;
    let log_in = |port: u16, options: &str, body: &Value| {
        post(ns, &format!("{}login", url(port)), options, body)
    };

    // Without a password nobody else gets a word.
    let _page = page(pair.b(), &format!("--listen 10.77.9.2:8749 {tls}"));
    let client = shown("client");
    wait_until("it listens", || {
        curl(ns, &format!("{client} {}", url(8749))).contains("200 OK")
    });
    for nobody in ["", &shown("other")] {
        assert_eq!(curl(ns, &format!("{nobody} {}", url(8749))), "", "{nobody}");
    }
    // It is no session yet: what a page of another origin makes the browser send has no effect.
    let act = format!("{}act", url(8749));
    assert_status(&post(ns, &act, &client, &set_priority(7)), "401");
    assert_status(&log_in(8749, &client, &json!({ "password": "" })), "403");
    let said = log_in(8749, &client, &json!({}));
    let secret = said.rsplit('"').nth(1).expect("a secret");
    let bearer = format!("{client} -H 'Authorization: Bearer {secret}'");
    assert_status(&post(ns, &act, &bearer, &set_priority(7)), "200");
    assert_eq!(switch(pair.b(), "priority"), "7");

    // With one, both ways lead in.
    let _both = page(
        pair.b(),
        &format!("--listen 10.77.9.2:8750 {tls} --password-file {file}"),
    );
    wait_until("it listens", || curl(ns, &url(8750)).contains("200 OK"));
    assert_status(&log_in(8750, "", &json!({})), "401");
    assert_status(&log_in(8750, "", &json!({ "password": password })), "200");
    assert_status(&log_in(8750, &client, &json!({})), "200");
    assert_eq!(curl(ns, &format!("{} {}", shown("other"), url(8750))), "");
    let refused = pair.b().tandemgw("web --client-ca x.crt").code(2);
    assert!(
        refused.stderr.contains("--certificate"),
        "{}",
        refused.stderr
    );
}

#[test]
fn the_page_can_be_a_socket_that_is_a_file() {
    let pair = Pair::started();
    let socket = pair.lab.dir().join("web.sock").display().to_string();
    let listen = format!("--listen {socket}");
    let first = page_at(pair.b(), &socket);
    let ns = &pair.b().ns;
    let ask = |options: &str| curl(ns, &format!("--unix-socket {socket} {options}"));
    wait_until("it listens", || {
        ask("http://localhost:10748/").contains("200 OK")
    });
    let mode = ns.sh(&format!("stat -c %a {socket}"));
    assert_eq!(mode.trim(), "660", "who may write it may look");
    assert_status(&ask("http://evil.example/"), "403");
    let shown = ask("-N --max-time 3 http://localhost/stream");
    assert!(shown.contains("\"node\":\"gw-b\""), "{shown}");
    // Another one there is refused; what a dead one has left is not.
    let second = pair.b().tandemgw(&format!("web {listen}")).code(1);
    assert!(second.stderr.contains("answers there"), "{}", second.stderr);
    drop(first);
    let _again = page_at(pair.b(), &socket);
    wait_until("it listens again", || {
        ask("http://localhost/").contains("200 OK")
    });
    let wrong = pair.b().tandemgw("web --listen here").code(2).stderr;
    assert!(wrong.contains("the path of a socket"), "{wrong}");
}

fn page_at(unit: &Unit, socket: &str) -> Process {
    let page = unit.spawn_tandemgw(&format!("web --listen {socket}"));
    page.expect_stderr("path", |line| line.contains(socket));
    page
}
