//! The primary dies, stops or loses its power: sessions live on at the other unit.

use crate::capture::Capture;
use crate::conversation::{Conversation, Stream, line_server};
use crate::lab::{LAN_GATEWAY, SERVER, bracketed};
use crate::pair::Pair;
use crate::process::{Process, wait_until};
use crate::services::Http;

/// Sessions of both families through a pair, all of which must live.
struct Sessions {
    lines: Vec<Conversation>,
    _servers: Vec<Process>,
}

impl Sessions {
    fn start(pair: &Pair) -> Sessions {
        let servers = SERVER.map(|address| line_server(&pair.lab.server, address));
        let lines = SERVER.map(|address| Conversation::start(&pair.lab.lan1, address));
        pair.a().wait_for_ready_peer();
        Sessions {
            lines: lines.into(),
            _servers: servers.into(),
        }
    }

    #[track_caller]
    fn go_on(&mut self) {
        self.lines.iter_mut().for_each(Conversation::go_on);
    }

    #[track_caller]
    fn finish(self) {
        self.lines.into_iter().for_each(Conversation::finish);
    }
}

#[test]
fn killed_primary_costs_no_session() {
    let mut pair = Pair::started();
    let http = Http::start(&pair.lab, &pair.lab.server, 8);
    let stream = Stream::start(&pair.lab.lan2, &pair.lab.server, SERVER[0]);
    let mut sessions = Sessions::start(&pair);
    let downloads =
        SERVER.map(|server| http.start_slow_download(&pair.lab.lan1, &bracketed(server)));
    pair.a().wait_for_ready_peer();
    let term = pair.a().term();
    pair.a_mut().kill();
    pair.wait_for_takeover_by_b(term);
    pair.b().wait_for_event("primary of default");
    assert!(
        pair.b().events().iter().any(|e| e.contains("gw-a may be dead")),
        "{:#?}",
        pair.b().events()
    );
    stream.wait_for_more();
    sessions.go_on();
    for download in downloads {
        download.finish();
    }
    sessions.finish();
    assert_eq!(pair.b().peer()["connected"], false);
}
