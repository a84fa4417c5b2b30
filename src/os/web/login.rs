//! Who may change something by the page: a password, of which only a hash is kept, and sessions.
//!
//! A session is a secret that the page sends in a header. A browser never sends it by itself, so no
//! page of another origin can use it, and it is no cookie that other ports of this host would see.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use ring::{digest, pbkdf2};

use crate::os::{clock, private_file};
use tandemgw_core::time::Time;

/// Rounds of PBKDF2-HMAC-SHA256 (RFC 8018): what OWASP advises, some 0.2 s.
const ROUNDS: u32 = 600_000;

/// The most rounds that a file may ask for.
const MOST_ROUNDS: u32 = 10_000_000;

/// The name of the hash in the file.
const SCHEME: &str = "pbkdf2-sha256";

/// The shortest password that is taken.
pub const SHORTEST: usize = 12;

/// A session ends when nothing was changed for this time, or when it is this old.
const IDLE: Duration = Duration::from_secs(15 * 60);
const LONGEST: Duration = Duration::from_secs(8 * 3600);

/// Sessions at a time; the one that was used longest ago makes room.
const MOST_SESSIONS: usize = 16;

/// Attempts of a source: so many at once, then one each `PACE`.
const BURST: u32 = 5;
const PACE: Duration = Duration::from_secs(12);

/// Sources whose attempts are counted.
const MOST_SOURCES: usize = 1024;

/// A password, hashed.
pub struct Password {
    rounds: NonZeroU32,
    salt: Vec<u8>,
    hash: Vec<u8>,
}

impl Password {
    /// Makes the file `path`, mode 0600, with the hash of `password`.
    ///
    /// # Errors
    /// If there is a file already, or it can't be written.
    pub fn write(path: &Path, password: &str) -> io::Result<()> {
        let mut file = private_file::create(path)?;
        let line = Password::make(password, ROUNDS)?.line();
        file.write_all(line.as_bytes())?;
        file.sync_all()
    }

    /// A random password, of 120 bits.
    ///
    /// # Errors
    /// If the kernel gives no random bytes.
    pub fn random() -> io::Result<String> {
        Ok(URL_SAFE_NO_PAD.encode(clock::random_bytes::<15>()?))
    }

    /// Reads the file.
    ///
    /// # Errors
    /// If others than its owner may read it, or it has no hash.
    pub fn load(path: &Path) -> io::Result<Password> {
        let file = File::open(path)?;
        if file.metadata()?.mode() & 0o077 != 0 {
            let why = format!("others can read it: run `chmod 600 {}`", path.display());
            return Err(io::Error::other(why));
        }
        let mut text = String::new();
        file.take(4096).read_to_string(&mut text)?;
        let what = "this is no file of `tandemgw web-password`";
        Password::parse(&text).ok_or_else(|| io::Error::other(what))
    }

    fn make(password: &str, rounds: u32) -> io::Result<Password> {
        let salt = clock::random_bytes::<16>()?.to_vec();
        let rounds = NonZeroU32::new(rounds).unwrap_or(NonZeroU32::MIN);
        let mut hash = vec![0; digest::SHA256_OUTPUT_LEN];
        pbkdf2::derive(
            pbkdf2::PBKDF2_HMAC_SHA256,
            rounds,
            &salt,
            password.as_bytes(),
            &mut hash,
        );
        Ok(Password { rounds, salt, hash })
    }

    fn line(&self) -> String {
        let (salt, hash) = (
            STANDARD_NO_PAD.encode(&self.salt),
            STANDARD_NO_PAD.encode(&self.hash),
        );
        format!("{SCHEME}:{}:{salt}:{hash}\n", self.rounds)
    }

    fn parse(text: &str) -> Option<Password> {
        let mut parts = text.trim_end().split(':');
        let (scheme, rounds) = (parts.next()?, parts.next()?.parse().ok()?);
        let salt = STANDARD_NO_PAD.decode(parts.next()?).ok()?;
        let hash = STANDARD_NO_PAD.decode(parts.next()?).ok()?;
        let is_right = scheme == SCHEME
            && rounds <= MOST_ROUNDS
            && salt.len() >= 16
            && hash.len() == digest::SHA256_OUTPUT_LEN
            && parts.next().is_none();
        let rounds = NonZeroU32::new(rounds)?;
        is_right.then_some(Password { rounds, salt, hash })
    }

    /// Whether it is the password, in a time that does not depend on how much of it fits.
    fn is(&self, password: &str) -> bool {
        let Password { rounds, salt, hash } = self;
        let password = password.as_bytes();
        pbkdf2::verify(pbkdf2::PBKDF2_HMAC_SHA256, *rounds, salt, password, hash).is_ok()
    }
}

/// Why a log-in is refused.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is no password.
    NoPassword,
    /// It is not the password.
    Wrong,
    /// The source has tried too often; it may try again after this time.
    TooOften(Duration),
    /// The kernel gave no random bytes.
    NoRandom,
}

/// Lets in who knows the password.
pub struct Login {
    password: Option<Password>,
    state: Mutex<State>,
    /// One hash at a time, however many want to log in.
    hashing: Mutex<()>,
}

#[derive(Default)]
struct State {
    /// By the digest of the secret: how long a search takes tells nothing about it.
    sessions: HashMap<Vec<u8>, Session>,
    /// When a source would have no attempt to its account.
    sources: HashMap<IpAddr, Time>,
}

struct Session {
    begun: Time,
    used: Time,
}

impl Session {
    fn is_over(&self, now: Time) -> bool {
        now >= self.used + IDLE || now >= self.begun + LONGEST
    }
}

impl Login {
    /// Without a password nobody can log in.
    pub fn new(password: Option<Password>) -> Login {
        Login {
            password,
            state: Mutex::default(),
            hashing: Mutex::default(),
        }
    }

    /// Whether there is a password.
    pub fn is_possible(&self) -> bool {
        self.password.is_some()
    }

    /// Begins a session and returns its secret.
    ///
    /// # Errors
    /// Why there is none.
    pub fn enter(&self, source: IpAddr, password: &str, now: Time) -> Result<String, Refused> {
        let known = self.password.as_ref().ok_or(Refused::NoPassword)?;
        self.state().count(source, now)?;
        let is_right = {
            let _one = self.hashing.lock().unwrap_or_else(PoisonError::into_inner);
            known.is(password)
        };
        if !is_right {
            return Err(Refused::Wrong);
        }
        self.state().sources.remove(&owner(source));
        self.begin(now)
    }

    /// Begins a session of somebody who needs no password, and returns its secret.
    ///
    /// # Errors
    /// Why there is none.
    pub fn begin(&self, now: Time) -> Result<String, Refused> {
        let secret = clock::random_bytes::<32>().map_err(|_| Refused::NoRandom)?;
        let secret = URL_SAFE_NO_PAD.encode(secret);
        self.state().begin(&secret, now);
        Ok(secret)
    }

    /// Whether this is the secret of a session; with `uses`, it counts as used.
    pub fn knows(&self, secret: Option<&str>, now: Time, uses: bool) -> bool {
        let Some(secret) = secret else { return false };
        let mut state = self.state();
        state.sessions.retain(|_, session| !session.is_over(now));
        match state.sessions.get_mut(&digest_of(secret)) {
            Some(session) => {
                session.used = if uses { now } else { session.used };
                true
            }
            None => false,
        }
    }

    /// Ends a session.
    pub fn leave(&self, secret: Option<&str>) {
        if let Some(secret) = secret {
            self.state().sessions.remove(&digest_of(secret));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Counts an attempt of a source, before it is known whether it succeeds.
    fn count(&mut self, source: IpAddr, now: Time) -> Result<(), Refused> {
        let source = owner(source);
        let due = self.sources.get(&source).copied().unwrap_or(now).max(now);
        let from = due.since(now);
        let most = PACE * (BURST - 1);
        if from > most {
            return Err(Refused::TooOften(from - most));
        }
        self.sources.retain(|_, due| *due > now);
        if self.sources.len() >= MOST_SOURCES {
            // The one that has tried least.
            let first = self.sources.iter().min_by_key(|(_, due)| **due);
            let first = first.map(|(source, _)| *source);
            first.and_then(|source| self.sources.remove(&source));
        }
        self.sources.insert(source, due + PACE);
        Ok(())
    }

    fn begin(&mut self, secret: &str, now: Time) {
        self.sessions.retain(|_, session| !session.is_over(now));
        if self.sessions.len() >= MOST_SESSIONS {
            let oldest = self.sessions.iter().min_by_key(|(_, session)| session.used);
            let oldest = oldest.map(|(digest, _)| digest.clone());
            oldest.and_then(|digest| self.sessions.remove(&digest));
        }
        let session = Session {
            begun: now,
            used: now,
        };
        self.sessions.insert(digest_of(secret), session);
    }
}

fn digest_of(secret: &str) -> Vec<u8> {
    digest::digest(&digest::SHA256, secret.as_bytes())
        .as_ref()
        .to_vec()
}

/// Who has an address: an IPv6 network of 64 bits is of one owner.
fn owner(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(addr) => IpAddr::V6((addr.to_bits() >> 64 << 64).into()),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(1_000_000 + seconds)
    }

    fn login() -> Login {
        Login::new(Some(Password::make("right", 10).unwrap()))
    }

    #[test]
    fn a_file_keeps_a_hash_and_nothing_else_is_one() {
        let line = Password::make("right", 10).unwrap().line();
        assert!(!line.contains("right"));
        let password = Password::parse(&line).unwrap();
        assert!(password.is("right") && !password.is("wrong") && !password.is(""));
        assert_ne!(line, Password::make("right", 10).unwrap().line(), "salted");
        for wrong in [
            "",
            "right",
            "pbkdf2-sha256:0:AAAAAAAAAAAAAAAAAAAAAA:AA",
            "pbkdf2-sha256:99999999999:AAAAAAAAAAAAAAAAAAAAAA:AA",
            &line.replace("sha256", "sha1"),
            &line.replace('\n', ":x"),
        ] {
            assert!(Password::parse(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_session_ends_when_it_is_not_used_when_it_is_old_and_on_demand() {
        let login = login();
        let secret = login.enter(HERE, "right", at(0)).unwrap();
        let knows = |second, uses| login.knows(Some(&secret), at(second), uses);
        assert!(knows(899, true) && knows(1797, false));
        assert!(!knows(1799, false), "looking is no use");
        assert!(!login.knows(Some(""), at(0), true) && !login.knows(None, at(0), true));
        let secret = login.enter(HERE, "right", at(2000)).unwrap();
        let mut second = 2000;
        while second < 2000 + 8 * 3600 {
            assert!(login.knows(Some(&secret), at(second), true), "{second}");
            second += 600;
        }
        assert!(!login.knows(Some(&secret), at(second), true), "too old");
        let secret = login.enter(HERE, "right", at(90_000)).unwrap();
        login.leave(Some(&secret));
        assert!(!login.knows(Some(&secret), at(90_000), true));
    }

    #[test]
    fn a_source_that_guesses_has_to_wait_and_others_have_not() {
        let login = login();
        for _ in 0..BURST {
            assert_eq!(login.enter(HERE, "guess", at(0)), Err(Refused::Wrong));
        }
        let refused = login.enter(HERE, "right", at(0));
        assert_eq!(
            refused,
            Err(Refused::TooOften(PACE)),
            "even with the right one"
        );
        let other: IpAddr = "192.0.2.1".parse().unwrap();
        assert!(login.enter(other, "right", at(0)).is_ok());
        assert!(login.enter(HERE, "right", at(12)).is_ok());
        // An IPv6 network is one source.
        let mut refused = 0;
        for host in 0..20 {
            let source = format!("2001:db8::{host}").parse().unwrap();
            let said = login.enter(source, "guess", at(20));
            refused += u32::from(matches!(said, Err(Refused::TooOften(_))));
        }
        assert_eq!(refused, 20 - BURST);
    }

    #[test]
    fn neither_sources_nor_sessions_grow_without_bound() {
        let mut state = State::default();
        for number in 0..5000_u32 {
            let source = IpAddr::V4(number.into());
            state.count(source, at(0)).unwrap();
            state.begin(&number.to_string(), at(0));
        }
        assert_eq!(state.sources.len(), MOST_SOURCES);
        assert_eq!(state.sessions.len(), MOST_SESSIONS);
        assert!(login().enter(HERE, "right", at(0)).is_ok());
        let none = Login::new(None);
        assert_eq!(none.enter(HERE, "", at(0)), Err(Refused::NoPassword));
    }
}
