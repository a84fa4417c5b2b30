//! Notifications to systemd (sd_notify(3)): ready, reloading, stopping, alive, and a status line.
//!
//! The gateway's loop itself reports that it is alive, after each completed turn. So a hanging loop
//! is restarted, which a separate thread could not guarantee.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use super::clock;
use tandemgw_core::gateway::{Gateway, Role};
use tandemgw_core::in_quotes::InQuotes;
use tandemgw_core::time::Time;

/// How often to check whether the status has changed.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// The service manager, if there is one. Without one, each call only checks an `Option`.
///
/// Legal calls: [`turn_ended`](Self::turn_ended) after each turn, [`reloading`](Self::reloading)
/// and [`reloaded`](Self::reloaded) around a reload, [`stopping`](Self::stopping) once.
pub struct ServiceManager {
    link: Option<ManagerLink>,
}

struct ManagerLink {
    socket: UnixDatagram,
    /// How often it expects a sign of life; `None` for never.
    watchdog: Option<Duration>,
    next_watchdog: Time,
    next_status: Time,
    /// The first of these; notifications that failed are repeated then.
    due: Time,
    status: String,
    /// It must still be told that the gateway is ready; otherwise it would kill it.
    has_to_say_ready: bool,
}

impl ServiceManager {
    /// The one from the environment: `NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID`.
    pub fn from_environment() -> ServiceManager {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET") else {
            return ServiceManager { link: None };
        };
        let link = match connect(name.as_bytes()) {
            Ok(socket) => Some(ManagerLink::new(socket, watchdog())),
            Err(error) => {
                log::warn!(
                    "service manager not reached socket={name:?} error={}",
                    InQuotes(&error)
                );
                None
            }
        };
        ServiceManager { link }
    }

    /// Call it after each turn of the loop. It reports that the gateway is ready, after the first
    /// turn; that it is alive, when that is due; and its status, when that has changed.
    #[inline]
    pub fn turn_ended(&mut self, now: Time, gateway: &Gateway) {
        if let Some(link) = self.link.as_mut().filter(|link| now >= link.due) {
            link.say_what_is_due(now, gateway);
        }
    }

    /// When the service manager next needs a turn of the loop.
    #[inline]
    pub fn timeout(&self) -> Option<Time> {
        self.link.as_ref().map(|link| link.due)
    }

    /// Reports that the config is being reloaded; [`reloaded`](Self::reloaded) must follow,
    /// whatever the result.
    pub fn reloading(&self) {
        let micros = clock::monotonic().as_micros();
        self.say(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
    }

    /// Reports at the end of the turn that a reload has ended.
    pub fn reloaded(&mut self) {
        if let Some(link) = &mut self.link {
            link.has_to_say_ready = true;
            link.due = Time::ZERO;
        }
    }

    /// Reports that the gateway is about to end, and why that may take a while.
    pub fn stopping(&mut self) {
        self.say("STOPPING=1\nSTATUS=handing over and removing what was added to the kernel");
    }

    fn say(&self, text: &str) {
        if let Some(link) = &self.link {
            link.say(text);
        }
    }
}

impl ManagerLink {
    fn new(socket: UnixDatagram, watchdog: Option<Duration>) -> ManagerLink {
        ManagerLink {
            socket,
            watchdog,
            next_watchdog: Time::ZERO,
            next_status: Time::ZERO,
            due: Time::ZERO,
            status: String::new(),
            has_to_say_ready: true,
        }
    }

    #[cold]
    fn say_what_is_due(&mut self, now: Time, gateway: &Gateway) {
        self.say_ready();
        if let Some(interval) = self.watchdog.filter(|_| now >= self.next_watchdog) {
            // Half of what is allowed, as sd_watchdog_enabled(3) recommends.
            self.next_watchdog = now + interval / 2;
            self.say("WATCHDOG=1");
        }
        if now >= self.next_status {
            self.next_status = now + STATUS_INTERVAL;
            let status = status(gateway);
            if status != self.status {
                self.say(&format!("STATUS={status}"));
                self.status = status;
            }
        }
        let watchdog = self.watchdog.map(|_| self.next_watchdog);
        self.due = watchdog.map_or(self.next_status, |at| at.min(self.next_status));
    }

    fn say_ready(&mut self) {
        if self.has_to_say_ready {
            self.has_to_say_ready = !self.say("READY=1");
        }
    }

    /// Returns whether it was sent. Does not wait.
    fn say(&self, text: &str) -> bool {
        let sent = self.socket.send(text.as_bytes());
        if let Err(error) = &sent {
            log::debug!(
                "service manager not told text={text:?} error={}",
                InQuotes(&error)
            );
        }
        sent.is_ok()
    }
}

/// Roles and sessions in a line, for `systemctl status`.
fn status(gateway: &Gateway) -> String {
    let of = |role: Role| {
        let names = gateway
            .groups()
            .filter(|group| gateway.role_of(*group) == role);
        let names: Vec<&str> = names.map(|group| gateway.group_name(group)).collect();
        (!names.is_empty()).then(|| format!("{} of {}", role.name(), names.join(", ")))
    };
    let roles = [of(Role::Primary), of(Role::Standby)];
    let roles: Vec<String> = roles.into_iter().flatten().collect();
    roles.join("; ")
}

fn connect(name: &[u8]) -> io::Result<UnixDatagram> {
    let address = match name.split_first() {
        Some((b'@', rest)) => SocketAddr::from_abstract_name(rest)?,
        _ => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name))?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The time within which a sign of life is expected, if it is expected from this process.
fn watchdog() -> Option<Duration> {
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    let is_other = number("WATCHDOG_PID").is_some_and(|pid| pid != u64::from(std::process::id()));
    let micros = number("WATCHDOG_USEC").filter(|micros| *micros > 0 && !is_other)?;
    Some(Duration::from_micros(micros))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 256];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    #[test]
    fn reaches_sockets_by_path_and_by_abstract_name() {
        let name = format!("tandemgw-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let path = std::env::temp_dir().join(&name);
        let listeners = [
            UnixDatagram::bind_addr(&address).unwrap(),
            UnixDatagram::bind(&path).unwrap(),
        ];
        let names = [format!("@{name}"), path.to_string_lossy().into_owned()];
        for (listener, name) in listeners.iter().zip(names) {
            let link = ManagerLink::new(connect(name.as_bytes()).unwrap(), None);
            let manager = ServiceManager { link: Some(link) };
            manager.reloading();
            let text = received(listener);
            assert!(text.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{text}");
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_manager_that_does_not_read_is_not_waited_for() {
        let (socket, unread) = UnixDatagram::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut link = ManagerLink::new(socket, None);
        while link.say("WATCHDOG=1") {}
        // Without that word it would end a gateway that forwards.
        link.say_ready();
        assert!(link.has_to_say_ready);
        assert_eq!(received(&unread), "WATCHDOG=1");
        link.say_ready();
        assert!(!link.has_to_say_ready);
        let mut said = received(&unread);
        while said != "READY=1" {
            said = received(&unread);
        }
    }
}
