//! The config file is read anew: for SIGHUP, and for `tandemgw reload`.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use tandemgw_core::config::{self, Config, Diagnostic};
use tandemgw_core::control::{ReloadOutcome, ReloadRefused};
use tandemgw_core::gateway::Reloaded;
use tandemgw_core::in_quotes::InQuotes;
use tandemgw_core::time::Time;

use super::super::startup::{solicited_groups, with_absolute_paths};
use super::super::steering::RouteEdit;
use super::{Shell, Steering};

/// Routes that are changed in one turn: each is a system call of some 10 µs.
const ROUTES_PER_TURN: usize = 8;

/// Multicast groups that a port joins or leaves in one turn: two system calls each.
const GROUPS_PER_TURN: usize = 4;

/// The longest config file that is read while packets wait.
const MAX_FILE: u64 = 1 << 20;

/// Mistakes, or warnings, of a config that are shown.
const MOST_SHOWN: usize = 20;

/// Reloads that are asked for, and under way.
#[derive(Default)]
pub(super) struct Reloading {
    /// A signal asked for one.
    wanted: bool,
    /// One was made, and clients may wait for its end.
    told: bool,
    /// Routes and multicast groups have yet to follow.
    unfinished: Option<Unfinished>,
}

struct Unfinished {
    outcome: ReloadOutcome,
    ended_before: u64,
    routes: VecDeque<RouteEdit>,
}

impl Shell {
    /// Takes note of a signal.
    pub(super) fn want_reload(&mut self) {
        self.reloading.wanted = true;
    }

    /// Goes on with a reload, or begins one if that is asked for and the last one is through.
    pub(super) fn reload_some(&mut self, now: Time, steering: &mut Steering) {
        self.reloading.told &= self.gateway.is_reloading();
        let wanted = self.reloading.wanted || self.control.wants_reload();
        if wanted && self.reloading.unfinished.is_none() && !self.gateway.is_reloading() {
            self.reloading.wanted = false;
            self.service.reloading();
            self.control.begin_reload();
            self.begin_reload(now, steering);
        }
        if self.reloading.unfinished.is_none() {
            return;
        }
        let (more_groups, failed) = self.join_some();
        let Some(unfinished) = &mut self.reloading.unfinished else {
            return;
        };
        for warning in failed {
            log::warn!("reload warning why={}", InQuotes(&warning));
            unfinished.outcome.warnings.push(warning);
        }
        for _ in 0..ROUTES_PER_TURN {
            let Some(change) = unfinished.routes.pop_front() else {
                break;
            };
            if let Err(error) = steering.carry_out(&change) {
                let warning = format!("the route of a pool address: {error}");
                log::warn!("reload warning why={}", InQuotes(&warning));
                unfinished.outcome.warnings.push(warning);
            }
        }
        if unfinished.routes.is_empty() && !more_groups {
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
            unfinished,
        } = &self.reloading;
        unfinished.is_some() || (*wanted || *told) && !self.gateway.is_reloading()
    }

    fn begin_reload(&mut self, now: Time, steering: &mut Steering) {
        let ended_before = self.gateway.counters().forbidden;
        let file = &self.view.config_file;
        let (result, warnings) = match read(file) {
            Ok((config, warnings)) => {
                (self.gateway.reload(now, &config).map_err(refused), warnings)
            }
            Err(refused) => (Err(refused), Vec::new()),
        };
        let mut routes = VecDeque::new();
        match &result {
            Ok(Reloaded {
                addresses_changed, ..
            }) => {
                if *addresses_changed {
                    routes = steering.readdress(self.gateway.config());
                    self.change_groups();
                }
            }
            Err(ReloadRefused { why, problems, .. }) => {
                log::error!(
                    "reload refused why={} effect=\"nothing has changed\"",
                    InQuotes(&why)
                );
                for problem in problems {
                    log::error!("config mistake error={}", InQuotes(&problem));
                }
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
            routes,
        });
    }

    /// Begins to join the multicast groups of the addresses as they are now.
    fn change_groups(&mut self) {
        let config = self.gateway.config();
        for (port, settings) in self.ports.iter_mut().zip(&config.ports) {
            port.socket.listen_to(solicited_groups(config, settings));
        }
    }

    /// Goes on with that; gives whether there is more to do, and what failed.
    fn join_some(&mut self) -> (bool, Vec<String>) {
        let (mut more, mut failed) = (false, Vec::new());
        for (port, settings) in self.ports.iter_mut().zip(&self.gateway.config().ports) {
            match port.socket.listen_to_some(GROUPS_PER_TURN) {
                Ok(left) => more |= left,
                Err(error) => {
                    let interface = &settings.interface;
                    failed.push(format!("multicast groups on {interface}: {error}"));
                }
            }
        }
        (more, failed)
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
    let text = io::read_to_string(opened.take(MAX_FILE));
    let text = text.map_err(|error| unreadable(error.to_string()))?;
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

/// The problems for a person, with no more of them than are worth the time that packets wait.
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
