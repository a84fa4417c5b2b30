//! Reloads of the config file, for SIGHUP and for `tandemgw reload`: one state machine, [`State`].

use std::cell::Cell;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use tandemgw_core::config::{self, Config, Diagnostic, Sources, ThisUnit};
use tandemgw_core::control::{KeptConfig, ReloadOutcome, ReloadRefused};
use tandemgw_core::gateway::{Basis, Prepared, Reloaded};
use tandemgw_core::in_quotes::InQuotes;
use tandemgw_core::push::Text;
use tandemgw_core::time::Time;

use super::super::config_files::{self, parse_with_included};
use super::super::config_terms::with_absolute_paths;
use super::super::history::{self, Origin};
use super::super::upkeep::Order;
use super::super::worker::{self, Job, Progress};
use super::Shell;

/// The longest config file that is read: more than the most policies need.
const MAX_FILE: u64 = 64 << 20;

/// Mistakes, or warnings, of a config that are shown.
const MOST_SHOWN: usize = 20;

/// Reloads: the one that is asked for, and the one that is under way.
#[derive(Default)]
pub(super) struct Reloading {
    /// A signal asked for one since the last one began.
    wanted: bool,
    /// What a push wants.
    pushed: Option<Pushed>,
    /// Who asked for the one that is under way.
    origin: Option<Origin>,
    state: State,
}

/// What a push puts in force.
pub(super) enum Pushed {
    /// A text that no file has yet, and what the push calls it.
    Trial(u64, Arc<str>),
    /// The file again, which is as it was before.
    Before,
}

/// How far the reload that is under way is. One turn of the loop makes at most one step.
#[derive(Default)]
enum State {
    /// There is none. The next one begins when it is asked for.
    #[default]
    Idle,
    /// A job beside the loop reads and compiles the file.
    Preparing(Job<Draft>, Source),
    /// It is compiled, and put in force as soon as the gateway compares no sessions with its rules.
    Prepared(Draft),
    /// It is in force, or refused; routes and multicast groups of addresses follow.
    Following(Unfinished),
    /// The gateway compares the sessions with the new rules.
    Comparing(Unfinished),
}

/// A config file that a job has read, with warnings.
struct Draft {
    result: Result<Box<Ready>, ReloadRefused>,
    source: Source,
    warnings: Vec<String>,
}

/// Where a text comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    File,
    /// From a push, which is told the result.
    Push(u64),
}

/// A config that can be put in force.
struct Ready {
    prepared: Prepared,
    wanted: Config,
    /// What it was read from.
    sources: Sources,
    /// Its text for the peers.
    text: Text,
}

/// A reload that is in force, or refused, and not told yet.
struct Unfinished {
    outcome: ReloadOutcome,
    /// Sessions that the gateway had ended for its rules before.
    forbidden_before: u64,
    /// The thread that keeps rules and routes in place has yet to change those to addresses.
    routes_follow: bool,
    /// The config is being added to the history.
    recording: Option<Job<Result<Vec<KeptConfig>, String>>>,
}

impl Draft {
    fn refused(why: String, source: Source) -> Draft {
        Draft {
            result: Err(refused(why)),
            source,
            warnings: Vec::new(),
        }
    }
}

impl Shell {
    /// Takes note of a signal.
    pub(super) fn want_reload(&mut self) {
        self.reloading.wanted = true;
    }

    /// Takes the next step of a reload, if that can be taken.
    pub(super) fn reload_some(&mut self, now: Time) {
        self.reloading.state = match std::mem::take(&mut self.reloading.state) {
            State::Idle if self.is_reload_wanted() => self.begin_reload(),
            State::Idle => State::Idle,
            State::Preparing(job, source) => match job.progress() {
                Progress::UnderWay => State::Preparing(job, source),
                Progress::Done(draft) => State::Prepared(draft),
                Progress::Failed => {
                    let why = "reading it failed: see the log".to_owned();
                    State::Prepared(Draft::refused(why, source))
                }
            },
            State::Prepared(draft) if self.gateway.is_reloading() => State::Prepared(draft),
            State::Prepared(draft) => self.install_if_ready(now, draft),
            State::Following(unfinished) => self.end_following(unfinished),
            State::Comparing(unfinished) => self.end_if_compared(unfinished),
        };
    }

    /// Whether the next step can be taken without waiting for anything.
    pub(super) fn is_reload_due(&self) -> bool {
        match &self.reloading.state {
            State::Idle => self.is_reload_wanted(),
            // The job wakes the loop.
            State::Preparing(..) => false,
            State::Following(unfinished) => !unfinished.routes_follow,
            State::Prepared(_) => !self.gateway.is_reloading(),
            State::Comparing(unfinished) => {
                unfinished.recording.is_none() && !self.gateway.is_reloading()
            }
        }
    }

    fn is_reload_wanted(&self) -> bool {
        let pushed = self.reloading.pushed.is_some();
        pushed || self.reloading.wanted || self.control.wants_reload()
    }

    /// Puts a text in force as soon as no reload is under way.
    pub(super) fn reload_text(&mut self, pushed: Pushed) {
        self.reloading.pushed = Some(pushed);
    }

    /// Whether no reload is under way, and none is wanted.
    pub(super) fn is_reload_idle(&self) -> bool {
        matches!(self.reloading.state, State::Idle) && self.reloading.pushed.is_none()
    }

    fn begin_reload(&mut self) -> State {
        self.service.reloading();
        if let Some(pushed) = self.reloading.pushed.take() {
            return self.begin_pushed(pushed);
        }
        self.reloading.wanted = false;
        let asked = self.control.begin_reload();
        let (user, how) = asked.unwrap_or((None, "SIGHUP".to_owned()));
        let name = None;
        self.reloading.origin = Some(Origin { user, name, how });
        if self.gateway.push().is_on_trial() {
            let why = "a pushed config is on trial: confirm it by `tandemgw push --accept`, or end \
                       it by `push --abort`";
            return State::Prepared(Draft::refused(why.to_owned(), Source::File));
        }
        self.begin_from_file()
    }

    fn begin_from_file(&mut self) -> State {
        let (basis, file) = (self.gateway.basis(), self.view.config_file.clone());
        let node = self.gateway.config().node.name.clone();
        self.prepare(Source::File, move || match read(&file, node) {
            Ok((wanted, warnings, sources)) => (prepare(basis, wanted, sources), warnings),
            Err(refused) => (Err(refused), Vec::new()),
        })
    }

    fn begin_pushed(&mut self, pushed: Pushed) -> State {
        let (id, text) = match pushed {
            Pushed::Trial(id, text) => (id, text),
            Pushed::Before => {
                // It is the last one of the history already, unless somebody has edited it.
                self.reloading.origin = Some(Origin {
                    user: None,
                    name: None,
                    how: "return after a push".to_owned(),
                });
                return self.begin_from_file();
            }
        };
        let (basis, file) = (self.gateway.basis(), self.view.config_file.clone());
        let node = self.gateway.config().node.name.clone();
        self.prepare(Source::Push(id), move || {
            match parse_pushed(&file, &text, node) {
                Ok((wanted, warnings, sources)) => (prepare(basis, wanted, sources), warnings),
                Err(refused) => (Err(refused), Vec::new()),
            }
        })
    }

    fn prepare(
        &mut self,
        source: Source,
        work: impl FnOnce() -> (Result<Box<Ready>, ReloadRefused>, Vec<String>) + Send + 'static,
    ) -> State {
        let draft = move || {
            let (result, warnings) = work();
            Draft {
                result,
                source,
                warnings,
            }
        };
        match Job::begin(&self.waker, draft) {
            Ok(job) => State::Preparing(job, source),
            Err(error) => {
                let why = format!("there is no thread to read the file: {error}");
                State::Prepared(Draft::refused(why, source))
            }
        }
    }

    /// Puts in force what was prepared, if there is room for its addresses; otherwise makes some.
    fn install_if_ready(&mut self, now: Time, mut draft: Draft) -> State {
        let room = match &mut draft.result {
            Ok(ready) => self.gateway.number_some(&mut ready.prepared),
            Err(_) => Ok(true),
        };
        match room {
            Ok(false) => State::Prepared(draft),
            Ok(true) => self.install(now, draft),
            Err(why) => {
                draft.result = Err(refused(why.to_string()));
                self.install(now, draft)
            }
        }
    }

    /// Puts in force what was prepared: what is left to do by now is a swap.
    fn install(&mut self, now: Time, draft: Draft) -> State {
        let Draft {
            result,
            source,
            mut warnings,
        } = draft;
        let forbidden_before = self.gateway.counters().forbidden;
        let (mut routes_follow, mut recording) = (false, None);
        let result = match result.map(|ready| *ready) {
            Ok(ready) if !self.gateway.is_current(&ready.prepared) => {
                let basis = self.gateway.basis();
                return self.prepare(source, move || {
                    (prepare(basis, ready.wanted, ready.sources), warnings)
                });
            }
            Ok(ready) => {
                let result = self.put_in_force(now, ready.prepared, ready.wanted);
                if result.is_ok() && source == Source::File {
                    self.gateway.push_mut().set_config(ready.text);
                    recording = self.record(ready.sources);
                }
                result
            }
            Err(refused) => Err(refused),
        };
        if let Source::Push(id) = source {
            let told = result
                .as_ref()
                .map(|_| ())
                .map_err(|refused| refused.why.clone());
            self.gateway.push_mut().applied(now, id, told);
        }
        let [multicast, addresses] = match &result {
            Ok(reloaded) => [reloaded.multicast_changed, reloaded.addresses_changed],
            Err(_) => [false; 2],
        };
        if multicast {
            warnings.extend(self.follow_streams());
        }
        if multicast || addresses {
            self.order(Order::Readdress(self.gateway.shared_config()));
            routes_follow = true;
        }
        log_outcome(&result, &warnings);
        let outcome = ReloadOutcome {
            config_file: self.view.config_file.clone(),
            result,
            warnings,
            sessions_ended: 0,
        };
        State::Following(Unfinished {
            outcome,
            forbidden_before,
            routes_follow,
            recording,
        })
    }

    /// Begins to add a config that is in force to the history.
    fn record(&mut self, sources: Sources) -> Option<Job<Result<Vec<KeptConfig>, String>>> {
        let origin = self.reloading.origin.take()?;
        let folder = history::folder(self.gateway.config());
        let record = move || history::try_record(&folder, &sources, &origin);
        match Job::begin(&self.waker, record) {
            Ok(job) => Some(job),
            Err(error) => {
                log::warn!("config not kept error={}", InQuotes(&error));
                None
            }
        }
    }

    fn put_in_force(
        &mut self,
        now: Time,
        prepared: Prepared,
        wanted: Config,
    ) -> Result<Reloaded, ReloadRefused> {
        if let Some(peers) = &self.peers {
            let checked = peers.check(&wanted);
            checked.map_err(|error| refused(error.to_string()))?;
        }
        let installed = self.gateway.install(now, prepared);
        let (reloaded, retired) = installed.map_err(|why| refused(why.to_string()))?;
        worker::discard(&self.waker, (retired, wanted));
        if let Some(peers) = self.peers.as_mut().filter(|_| reloaded.peers_changed) {
            let followed = peers.follow(&mut self.gateway);
            followed.map_err(|error| refused(format!("a peer can't be connected to: {error}")))?;
        }
        Ok(reloaded)
    }

    fn end_following(&mut self, unfinished: Unfinished) -> State {
        if unfinished.routes_follow {
            return State::Following(unfinished);
        }
        self.service.reloaded();
        State::Comparing(unfinished)
    }

    fn end_if_compared(&mut self, mut unfinished: Unfinished) -> State {
        if let Some(job) = unfinished.recording.take() {
            match job.progress() {
                Progress::UnderWay => unfinished.recording = Some(job),
                Progress::Done(Ok(kept)) => self.view.history = kept,
                Progress::Done(Err(why)) => unfinished.outcome.warnings.push(why),
                Progress::Failed => {}
            }
        }
        if unfinished.recording.is_some() {
            return State::Comparing(unfinished);
        }
        if self.gateway.is_reloading() && unfinished.outcome.result.is_ok() {
            return State::Comparing(unfinished);
        }
        let forbidden = self.gateway.counters().forbidden;
        let ended = forbidden.saturating_sub(unfinished.forbidden_before);
        unfinished.outcome.sessions_ended = ended;
        self.control.end_reload(&unfinished.outcome);
        State::Idle
    }

    /// Routes to addresses and multicast groups have followed; what went wrong.
    pub(super) fn routes_followed(&mut self, warnings: Vec<String>) {
        for warning in warnings {
            log::warn!("reload warning why={}", InQuotes(&warning));
            self.warn_of_reload(warning);
        }
        if let State::Following(unfinished) = &mut self.reloading.state {
            unfinished.routes_follow = false;
        }
    }

    /// Says of the reload that is under way what went wrong after it, if there is one.
    fn warn_of_reload(&mut self, warning: String) {
        if let State::Following(unfinished) = &mut self.reloading.state {
            unfinished.outcome.warnings.push(warning);
        }
    }
}

fn log_outcome(result: &Result<Reloaded, ReloadRefused>, warnings: &[String]) {
    if let Err(ReloadRefused { why, problems, .. }) = result {
        log::error!(
            "reload refused why={} effect=\"nothing has changed\"",
            InQuotes(&why)
        );
        for problem in problems {
            log::error!("config mistake error={}", InQuotes(&problem));
        }
    }
    for warning in warnings {
        log::warn!("reload warning why={}", InQuotes(warning));
    }
}

fn prepare(basis: Basis, wanted: Config, sources: Sources) -> Result<Box<Ready>, ReloadRefused> {
    match Prepared::new(basis, &wanted) {
        Ok(prepared) => Ok(Box::new(Ready {
            prepared,
            wanted,
            text: Text::of(&sources),
            sources,
        })),
        Err(why) => Err(refused(why.to_string())),
    }
}

/// A config, its warnings, and what it was read from.
pub(super) type Parsed = Result<(Config, Vec<String>, Sources), ReloadRefused>;

/// A pushed text as the config of the unit `node`.
pub(super) fn parse_pushed(file: &Path, text: &str, node: String) -> Parsed {
    let (own, included) = config::unbundle(text).map_err(|why| refused(why.to_string()))?;
    let mut sources = Sources::new(file, own).of_unit(Some(ThisUnit::Named(node)));
    let parsed = config_files::parse_unbundled(&mut sources, included);
    finish(parsed, sources)
}

/// The config of the unit `node` in the file and those that it includes.
fn read(file: &Path, node: String) -> Parsed {
    // Of all files together.
    let left = Cell::new(MAX_FILE);
    let bytes =
        read_bytes(file, &left).map_err(|error| refused(format!("{}: {error}", file.display())))?;
    let text = config::decode(bytes)
        .map_err(|(problem, shown)| has_mistakes(&[problem], &Sources::new(file, &shown)))?;
    let mut sources = Sources::new(file, &text).of_unit(Some(ThisUnit::Named(node)));
    let parsed = parse_with_included(&mut sources, |file| read_bytes(file, &left));
    finish(parsed, sources)
}

fn finish(parsed: Result<(Config, Vec<Diagnostic>), Vec<Diagnostic>>, sources: Sources) -> Parsed {
    match parsed {
        Ok((config, warnings)) => match with_absolute_paths(config) {
            Ok(config) => {
                let warnings = lines(&warnings, &sources);
                Ok((config, warnings, sources))
            }
            Err(error) => Err(refused(error.to_string())),
        },
        Err(problems) => Err(has_mistakes(&problems, &sources)),
    }
}

fn has_mistakes(problems: &[Diagnostic], sources: &Sources) -> ReloadRefused {
    ReloadRefused {
        why: format!("{} has mistakes", sources.main().display()),
        problems: lines(problems, sources),
        text: render(problems, sources),
    }
}

/// The content of a file of no more than `left` bytes, which are used up.
fn read_bytes(file: &Path, left: &Cell<u64>) -> io::Result<Vec<u8>> {
    let mut options = OpenOptions::new();
    // A pipe, or what else may be there by mistake, is not waited for.
    let opened = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(file)?;
    let kind = opened.metadata()?;
    if !kind.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let Some(rest) = left.get().checked_sub(kind.len()) else {
        let why = format!("the config is longer than {MAX_FILE} bytes: restart to apply it");
        return Err(io::Error::other(why));
    };
    left.set(rest);
    let mut bytes = Vec::new();
    let read = opened.take(kind.len() + 1).read_to_end(&mut bytes)?;
    match read as u64 == kind.len() {
        true => Ok(bytes),
        false => Err(io::Error::other(
            "somebody writes it: reload once that is done",
        )),
    }
}

fn lines(found: &[Diagnostic], sources: &Sources) -> Vec<String> {
    let shown = found.iter().take(MOST_SHOWN);
    let more = found.len().saturating_sub(MOST_SHOWN);
    let more = (more > 0).then(|| format!("{more} more; `tandemgw check` shows all"));
    shown.map(|it| it.line(sources)).chain(more).collect()
}

/// The problems for a person, with no more of them than anybody reads.
fn render(problems: &[Diagnostic], sources: &Sources) -> String {
    let shown = &problems[..problems.len().min(MOST_SHOWN)];
    let mut out = config::render(shown, sources, false);
    if shown.len() < problems.len() {
        let more = problems.len() - shown.len();
        out.push_str(&format!("{more} more; `tandemgw check` shows all\n"));
    }
    out
}

fn refused(why: String) -> ReloadRefused {
    ReloadRefused {
        why,
        problems: Vec::new(),
        text: String::new(),
    }
}
