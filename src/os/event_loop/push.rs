//! Carries out what a push wants of this unit: checks a config, puts it in force, writes the file.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tandemgw_core::config::{Change, Config, Difference, Sources, unit_names};
use tandemgw_core::control::KeptConfig;
use tandemgw_core::in_quotes::InQuotes;
use tandemgw_core::push::message::{Changed, MOST_CHANGES, Sum, Verdict};
use tandemgw_core::push::{Task, sum};
use tandemgw_core::time::Time;

use super::super::config_files;
use super::super::file_lock::lock_folder;
use super::super::history::{self, Origin};
use super::super::preflight;
use super::super::replace_file::{folder, replace_all};
use super::super::worker::{Job, Progress};
use super::Shell;
use super::reload::{Pushed, parse_pushed};

/// What is under way for a push: one thing at a time, beside the loop.
#[derive(Default)]
pub(super) struct Pushing {
    next: Option<Task>,
    job: Option<Job<Done>>,
}

/// The result of a job.
enum Done {
    Checked(u64, Verdict),
    Committed(u64, Result<(Sum, Vec<KeptConfig>), String>),
    Remembered,
}

/// What a unit remembers of the last push over restarts.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Remembered {
    generation: u64,
    sum: Sum,
}

impl Shell {
    /// Takes the next step of a push, if there is one.
    pub(super) fn push_some(&mut self, now: Time) {
        if let Some(job) = self.pushing.job.take() {
            match job.progress() {
                Progress::UnderWay => self.pushing.job = Some(job),
                Progress::Done(done) => self.end_push_job(now, done),
                Progress::Failed => log::error!("push failed why=\"a thread has failed\""),
            }
        }
        if self.pushing.job.is_some() {
            return;
        }
        let next = self.pushing.next.take();
        let Some(task) = next.or_else(|| self.gateway.poll_push(now)) else {
            return;
        };
        match task {
            Task::Apply { id, text } if self.is_reload_idle() => {
                self.reload_text(Pushed::Trial(id, text));
            }
            Task::Return if self.is_reload_idle() => self.reload_text(Pushed::Before),
            // After the reload that is under way.
            task @ (Task::Apply { .. } | Task::Return) => self.pushing.next = Some(task),
            Task::Check { id, text } => {
                let (running, file) = (self.gateway.shared_config(), self.view.config_file.clone());
                self.begin_push_job(move || Done::Checked(id, check(&running, &file, &text)));
            }
            Task::Commit {
                id,
                text,
                generation,
                from,
                by,
            } => {
                let (config, file) = (self.gateway.shared_config(), self.view.config_file.clone());
                let how = from
                    .as_ref()
                    .map_or("push".to_owned(), |it| format!("push from {it}"));
                let origin = Origin {
                    user: None,
                    name: by.or(from),
                    how,
                };
                self.begin_push_job(move || {
                    let result = commit(&config, &file, &text, generation, &origin);
                    Done::Committed(id, result)
                });
            }
            Task::Remember { generation, sum } => {
                let config = self.gateway.shared_config();
                self.begin_push_job(move || {
                    if let Err(error) = remember(&config, generation, sum) {
                        log::warn!("push not remembered error={}", InQuotes(&error));
                    }
                    Done::Remembered
                });
            }
        }
    }

    /// Whether [`Shell::push_some`] can go on without waiting for anything.
    pub(super) fn is_push_due(&self) -> bool {
        self.pushing.next.is_some() && self.pushing.job.is_none() && self.is_reload_idle()
    }

    fn begin_push_job(&mut self, work: impl FnOnce() -> Done + Send + 'static) {
        match Job::begin(&self.waker, work) {
            Ok(job) => self.pushing.job = Some(job),
            // The push ends since this unit does not answer.
            Err(error) => log::error!("push failed why={}", InQuotes(&error)),
        }
    }

    fn end_push_job(&mut self, now: Time, done: Done) {
        match done {
            Done::Checked(id, verdict) => self.gateway.push_mut().checked(now, id, verdict),
            Done::Committed(id, result) => {
                let result = result.map(|(sum, kept)| {
                    self.view.history = kept;
                    sum
                });
                self.gateway.push_mut().committed(now, id, result);
            }
            Done::Remembered => {}
        }
    }
}

/// What was remembered of the last push; none if this unit never had one.
pub fn recall(config: &Config) -> Option<(u64, Sum)> {
    let text = fs::read_to_string(remembered_in(config)).ok()?;
    match serde_json::from_str::<Remembered>(&text) {
        Ok(it) => Some((it.generation, it.sum)),
        Err(error) => {
            log::warn!("last push not known error={}", InQuotes(&error));
            None
        }
    }
}

/// What this unit thinks of a config.
fn check(running: &Config, file: &Path, text: &str) -> Verdict {
    let mut verdict = Verdict::default();
    let node = &running.node.name;
    let units = unit_names(text);
    let has_peers = running.ha.as_ref().is_some_and(|ha| !ha.peers.is_empty());
    if has_peers && units.is_empty() {
        let why = "it is for one unit: a config for all has a table [node.NAME] for each";
        verdict.why_not = Some(why.to_owned());
        return verdict;
    }
    let (wanted, sources) = match parse_pushed(file, text, node.clone()) {
        Ok((wanted, _, sources)) => (wanted, sources),
        Err(refused) => {
            let first = refused.problems.into_iter().next();
            verdict.why_not = Some(first.unwrap_or(refused.why));
            return verdict;
        }
    };
    if wanted.node.name != *node {
        verdict.why_not = Some(format!("it is for {}", wanted.node.name));
        return verdict;
    }
    let problems = preflight::check(&wanted, true);
    let fatal = problems.into_iter().find(|problem| problem.fatal);
    verdict.why_not = fatal.map(|problem| format!("{}; {}", problem.what, problem.remedy));
    if verdict.why_not.is_none() {
        verdict.why_not = can_write(&sources).err();
    }
    let change = Change::new(running, &wanted);
    let changed = |needs_restart| {
        move |it: &Difference| Changed {
            key: it.key.clone(),
            what: it.what.clone(),
            needs_restart,
        }
    };
    let applied = change.applied.iter().map(changed(false));
    let mut all: Vec<Changed> = applied
        .chain(change.waiting.iter().map(changed(true)))
        .collect();
    verdict.more = all.len().saturating_sub(MOST_CHANGES) as u32;
    all.truncate(MOST_CHANGES);
    verdict.changes = all;
    verdict
}

/// Whether the files could be replaced.
fn can_write(sources: &Sources) -> Result<(), String> {
    let folders: BTreeSet<&Path> = sources.files().map(|(file, _)| folder(file)).collect();
    for folder in folders {
        // One that is missing is made.
        let there = folder.ancestors().find(|it| it.exists()).unwrap_or(folder);
        let probe = there.join(format!(".tandemgw-{}", std::process::id()));
        let made = File::create(&probe);
        // It may never have been created.
        let _ = fs::remove_file(&probe);
        made.map_err(|error| {
            format!(
                "its gateway can't write to {}: {error}; give it that folder, see the chapter on \
                 pushes",
                there.display()
            )
        })?;
    }
    Ok(())
}

/// Writes the files, and what is remembered with them.
fn commit(
    config: &Config,
    file: &Path,
    text: &Arc<str>,
    generation: u64,
    origin: &Origin,
) -> Result<(Sum, Vec<KeptConfig>), String> {
    let sum = sum(text);
    let parsed = parse_pushed(file, text, config.node.name.clone());
    let (.., sources) = parsed.map_err(|refused| refused.why)?;
    let written = lock_folder(folder(file)).and_then(|_lock| write(&sources));
    written.map_err(|error| format!("{}: {error}", file.display()))?;
    // If this fails, or the machine ends here, the peers tell the generation of this file.
    if let Err(error) = remember(config, generation, sum) {
        log::warn!("push not remembered error={}", InQuotes(&error));
    }
    let kept = history::try_record(&history::folder(config), &sources, origin);
    Ok((sum, kept.unwrap_or_default()))
}

/// Replaces the files, and removes those that a pattern would include in addition.
fn write(sources: &Sources) -> io::Result<()> {
    let owned = |(file, text): (&Path, &str)| (file.to_owned(), text.to_owned());
    let files: Vec<(PathBuf, String)> = sources.files().map(owned).collect();
    for (file, _) in &files {
        fs::create_dir_all(folder(file))?;
    }
    replace_all(&files)?;
    for file in config_files::left_over(sources) {
        fs::remove_file(file)?;
    }
    Ok(())
}

fn remember(config: &Config, generation: u64, sum: Sum) -> io::Result<()> {
    let path = remembered_in(config);
    let folder = folder(&path);
    fs::create_dir_all(folder)?;
    let temporary = path.with_extension("pushed.new");
    let mut file = File::create(&temporary)?;
    serde_json::to_writer(&mut file, &Remembered { generation, sum })?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::rename(&temporary, &path)?;
    File::open(folder)?.sync_all()
}

fn remembered_in(config: &Config) -> PathBuf {
    let node = &config.node;
    node.state_directory.join(format!("{}.pushed", node.name))
}
