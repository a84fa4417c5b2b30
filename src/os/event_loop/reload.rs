//! The config file is read anew: for SIGHUP, and for `tandemgw reload`. Reading and compiling it is a job
//! beside the loop.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use tandemgw_core::config::{self, Config, Diagnostic};
use tandemgw_core::control::{ReloadOutcome, ReloadRefused};
use tandemgw_core::gateway::{Basis, Prepared, Reloaded};
use tandemgw_core::in_quotes::InQuotes;
use tandemgw_core::time::Time;

use super::super::config_terms::{solicited_groups, with_absolute_paths};
use super::super::netlink::NetlinkError;
use super::super::upkeep::Order;
use super::super::worker::{self, Job, Progress};
use super::Shell;

/// The longest config file that is read: more than the most policies need.
const MAX_FILE: u64 = 64 << 20;

/// Mistakes, or warnings, of a config that are shown.
const MOST_SHOWN: usize = 20;

/// Reloads that are asked for, and under way.
#[derive(Default)]
pub(super) struct Reloading {
    /// A signal asked for one.
    wanted: bool,
    /// One was made, and clients may wait for its end.
    told: bool,
    /// The file is read and compiled beside the loop.
    preparing: Option<Preparing>,
    /// Routes and multicast groups have yet to follow.
    unfinished: Option<Unfinished>,
}

struct Preparing {
    job: Job<Draft>,
    /// Sessions that reloads had ended before this one.
    ended_before: u64,
}

/// What a job has made of the config file, with warnings.
struct Draft {
    result: Result<Box<(Prepared, Config)>, ReloadRefused>,
    warnings: Vec<String>,
}

struct Unfinished {
    outcome: ReloadOutcome,
    ended_before: u64,
    /// The routes to addresses have yet to follow.
    routes_follow: bool,
}

impl Shell {
    /// Takes note of a signal.
    pub(super) fn want_reload(&mut self) {
        self.reloading.wanted = true;
    }

    /// Goes on with a reload, or begins one if that is asked for and the last one is through.
    pub(super) fn reload_some(&mut self, now: Time) {
        self.reloading.told &= self.gateway.is_reloading();
        let wanted = self.reloading.wanted || self.control.wants_reload();
        let idle = self.reloading.unfinished.is_none() && self.reloading.preparing.is_none();
        if wanted && idle && !self.gateway.is_reloading() {
            self.reloading.wanted = false;
            self.service.reloading();
            self.control.begin_reload();
            self.begin_reload();
        }
        self.install_if_prepared(now);
        if self.reloading.unfinished.is_none() {
            return;
        }
        let more_groups = self.chores.is_busy();
        let Some(unfinished) = &mut self.reloading.unfinished else {
            return;
        };
        if !unfinished.routes_follow && !more_groups {
            self.control
                .tell_reload(&unfinished.outcome, unfinished.ended_before);
            self.service.reloaded();
            self.reloading.unfinished = None;
            self.reloading.told = true;
        }
    }

    /// Whether a reload is to go on without waiting for anything.
    pub(super) fn is_reload_due(&self) -> bool {
        let Reloading {
            wanted,
            told,
            preparing,
            unfinished,
        } = &self.reloading;
        let may_begin = preparing.is_none() && !self.gateway.is_reloading();
        let is_ready = |unfinished: &Unfinished| !unfinished.routes_follow;
        unfinished.as_ref().is_some_and(is_ready) || (*wanted || *told) && may_begin
    }

    fn begin_reload(&mut self) {
        let (basis, file) = (self.gateway.basis(), self.view.config_file.clone());
        self.prepare(self.gateway.counters().forbidden, move || {
            let (result, warnings) = match read(&file) {
                Ok((config, warnings)) => (prepare(basis, config), warnings),
                Err(refused) => (Err(refused), Vec::new()),
            };
            Draft { result, warnings }
        });
    }

    fn prepare(&mut self, ended_before: u64, work: impl FnOnce() -> Draft + Send + 'static) {
        match Job::begin(&self.waker, work) {
            Ok(job) => self.reloading.preparing = Some(Preparing { job, ended_before }),
            Err(error) => {
                let why = format!("there is no thread to read the file: {error}");
                self.conclude(ended_before, Err(refused(why)), Vec::new(), false);
            }
        }
    }

    /// Puts in force what was prepared, if it is ready: what is left to do by then is a swap.
    fn install_if_prepared(&mut self, now: Time) {
        let Some(Preparing { job, ended_before }) = &self.reloading.preparing else {
            return;
        };
        let ended_before = *ended_before;
        let draft = match job.progress() {
            Progress::UnderWay => return,
            Progress::Done(draft) => draft,
            Progress::Failed => Draft {
                result: Err(refused("reading it failed: see the log".to_owned())),
                warnings: Vec::new(),
            },
        };
        self.reloading.preparing = None;
        let Draft { result, warnings } = draft;
        let (prepared, wanted) = match result {
            Ok(ready) => *ready,
            Err(refused) => {
                return self.conclude(ended_before, Err(refused), warnings, false);
            }
        };
        if !self.gateway.is_current(&prepared) {
            let basis = self.gateway.basis();
            return self.prepare(ended_before, move || Draft {
                result: prepare(basis, wanted),
                warnings,
            });
        }
        let mut routes_follow = false;
        let result = match self.gateway.install(now, prepared) {
            Ok((reloaded, retired)) => {
                if let Some(peers) = &mut self.peers {
                    peers.revoke(&wanted);
                }
                worker::discard(&self.waker, (retired, wanted));
                if reloaded.addresses_changed {
                    self.order(Order::Readdress(self.gateway.shared_config()));
                    routes_follow = true;
                    self.change_groups();
                }
                Ok(reloaded)
            }
            Err(why) => Err(refused(why)),
        };
        self.conclude(ended_before, result, warnings, routes_follow);
    }

    /// Says what has come of it; clients are told when routes and multicast groups have followed.
    fn conclude(
        &mut self,
        ended_before: u64,
        result: Result<Reloaded, ReloadRefused>,
        warnings: Vec<String>,
        routes_follow: bool,
    ) {
        if let Err(ReloadRefused { why, problems, .. }) = &result {
            log::error!(
                "reload refused why={} effect=\"nothing has changed\"",
                InQuotes(&why)
            );
            for problem in problems {
                log::error!("config mistake error={}", InQuotes(&problem));
            }
        }
        for warning in &warnings {
            log::warn!("reload warning why={}", InQuotes(&warning));
        }
        let outcome = ReloadOutcome {
            config_file: self.view.config_file.clone(),
            result,
            warnings,
        };
        self.reloading.unfinished = Some(Unfinished {
            outcome,
            ended_before,
            routes_follow,
        });
    }

    /// Begins to join the multicast groups of the addresses as they are now.
    fn change_groups(&mut self) {
        let config = self.gateway.config();
        for (port, settings) in self.ports.iter_mut().zip(&config.ports) {
            port.socket.listen_to(solicited_groups(config, settings));
        }
        self.note_groups();
    }

    /// Routes to addresses have followed, but for these.
    pub(super) fn routes_followed(&mut self, errors: &[NetlinkError]) {
        for error in errors {
            let warning = format!("the route of a pool address: {error}");
            log::warn!("reload warning why={}", InQuotes(&warning));
            self.warn_of_reload(warning);
        }
        if let Some(unfinished) = &mut self.reloading.unfinished {
            unfinished.routes_follow = false;
        }
    }

    /// Says of the reload that is under way what went wrong after it, if there is one.
    pub(super) fn warn_of_reload(&mut self, warning: String) {
        if let Some(unfinished) = &mut self.reloading.unfinished {
            unfinished.outcome.warnings.push(warning);
        }
    }
}

fn prepare(basis: Basis, wanted: Config) -> Result<Box<(Prepared, Config)>, ReloadRefused> {
    match Prepared::new(basis, &wanted) {
        Ok(prepared) => Ok(Box::new((prepared, wanted))),
        Err(why) => Err(refused(why)),
    }
}

/// The config in the file, and its warnings.
fn read(file: &Path) -> Result<(Config, Vec<String>), ReloadRefused> {
    let unreadable = |error| refused(format!("{}: {error}", file.display()));
    let mut options = OpenOptions::new();
    // A pipe, or what else may be there by mistake, is not waited for.
    let opened = options.read(true).custom_flags(libc::O_NONBLOCK).open(file);
    let opened = opened.map_err(|error| unreadable(error.to_string()))?;
    let kind = opened
        .metadata()
        .map_err(|error| unreadable(error.to_string()))?;
    if !kind.is_file() {
        return Err(unreadable("it is not a regular file".to_owned()));
    }
    if kind.len() > MAX_FILE {
        return Err(unreadable(format!(
            "it is longer than {MAX_FILE} bytes: restart to apply it"
        )));
    }
    let mut bytes = Vec::new();
    let read = opened.take(MAX_FILE).read_to_end(&mut bytes);
    read.map_err(|error| unreadable(error.to_string()))?;
    let text = config::decode(bytes).map_err(|(problem, shown)| ReloadRefused {
        why: format!("{} has mistakes", file.display()),
        problems: vec![problem.line(file, &shown)],
        text: render(&[problem], file, &shown),
    })?;
    let lines = |found: &[Diagnostic]| -> Vec<String> {
        let shown = found.iter().take(MOST_SHOWN);
        let more = found.len().saturating_sub(MOST_SHOWN);
        let more = (more > 0).then(|| format!("{more} more; `tandemgw check` shows all"));
        shown.map(|d| d.line(file, &text)).chain(more).collect()
    };
    match config::parse(file, &text) {
        Ok((config, warnings)) => match with_absolute_paths(config) {
            Ok(config) => Ok((config, lines(&warnings))),
            Err(error) => Err(unreadable(error.to_string())),
        },
        Err(problems) => Err(ReloadRefused {
            why: format!("{} has mistakes", file.display()),
            problems: lines(&problems),
            text: render(&problems, file, &text),
        }),
    }
}

/// The problems for a person, with no more of them than anybody reads.
fn render(problems: &[Diagnostic], file: &Path, text: &str) -> String {
    let shown = &problems[..problems.len().min(MOST_SHOWN)];
    let mut out = config::render(shown, file, text, false);
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
