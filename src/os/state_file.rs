//! Remembers over restarts whether a unit is in maintenance, and until when.
//!
//! One small file for each unit in the state directory. The loop never waits for it: a thread
//! writes it.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mio::Waker;
use serde::{Deserialize, Serialize};
use tandemgw_core::config::Config;
use tandemgw_core::ha::Maintenance;
use tandemgw_core::in_quotes::InQuotes;
use tandemgw_core::time::Time;

use super::clock;
use super::worker::{Job, Progress};

/// The content of the file; without a maintenance there is no file.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    /// When the maintenance ends by itself, in seconds since 1970; `null` if it does not.
    maintenance_until: Option<f64>,
}

/// The file, and what of it is yet to be written.
pub struct StateFile {
    path: PathBuf,
    /// The content of the file, as far as it is known.
    saved: Option<Saved>,
    job: Option<Job<io::Result<()>>>,
    /// Why the last write failed.
    why_not: Option<String>,
}

impl StateFile {
    /// The file of this unit, and the maintenance that it says is under way.
    pub fn open(config: &Config) -> (StateFile, Option<Maintenance>) {
        let path = config
            .node
            .state_directory
            .join(format!("{}.state", config.node.name));
        let saved = read(&path).unwrap_or_else(|error| {
            log::warn!(
                "state not read file={:?} error={} effect=\"the unit is not in maintenance\"",
                path,
                InQuotes(&error)
            );
            None
        });
        let maintenance = saved.and_then(|saved| saved.under_way(clock::now()));
        let file = StateFile {
            path,
            saved,
            job: None,
            why_not: None,
        };
        (file, maintenance)
    }

    /// Begins to write what has changed. Returns why the last change is not in the file, if so.
    pub fn follow(&mut self, maintenance: Option<Maintenance>, waker: &Arc<Waker>) -> Option<&str> {
        if let Some(job) = self.job.take() {
            match job.progress() {
                Progress::UnderWay => self.job = Some(job),
                Progress::Done(Ok(())) => self.why_not = None,
                Progress::Done(Err(error)) => self.fail(&error.to_string()),
                Progress::Failed => self.fail("the thread that wrote it has failed"),
            }
        }
        let wanted = maintenance.map(|it| Saved {
            maintenance_until: it.until.map(|at| clock::since_1970(at).as_secs_f64()),
        });
        if self.job.is_none() && !same(wanted, self.saved) {
            self.saved = wanted;
            let path = self.path.clone();
            match Job::begin(waker, move || write(&path, wanted)) {
                Ok(job) => self.job = Some(job),
                Err(error) => self.fail(&error.to_string()),
            }
        }
        self.why_not.as_deref()
    }

    fn fail(&mut self, why: &str) {
        log::warn!(
            "state not saved file={:?} error={} effect=\"after a restart it is as before\"",
            self.path,
            InQuotes(&why)
        );
        self.why_not = Some(format!("{}: {why}", self.path.display()));
    }
}

impl Saved {
    fn under_way(self, now: Time) -> Option<Maintenance> {
        let until = match self.maintenance_until {
            None => None,
            Some(at) => {
                let left =
                    Duration::try_from_secs_f64(at - clock::since_1970(now).as_secs_f64()).ok()?;
                Some(now + left)
            }
        };
        Some(Maintenance { since: now, until })
    }
}

/// The clock of the machine may be set meanwhile: that alone is no change.
fn same(a: Option<Saved>, b: Option<Saved>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => match (a.maintenance_until, b.maintenance_until) {
            (Some(a), Some(b)) => (a - b).abs() < 1.0,
            (a, b) => a == b,
        },
        (a, b) => a == b,
    }
}

fn read(path: &Path) -> io::Result<Option<Saved>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(serde_json::from_str(&text)?)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces the file as a whole, so that a reader finds the old or the new state.
fn write(path: &Path, state: Option<Saved>) -> io::Result<()> {
    let Some(state) = state else {
        return match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
    };
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder)?;
    let temporary = path.with_extension("state.new");
    let mut file = File::create(&temporary)?;
    serde_json::to_writer(&mut file, &state)?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_removed() {
        let folder = std::env::temp_dir().join(format!("tandemgw-state-{}", std::process::id()));
        let path = folder.join("a.state");
        assert_eq!(read(&path).unwrap(), None);
        for until in [None, Some(12.5)] {
            let state = Saved {
                maintenance_until: until,
            };
            write(&path, Some(state)).unwrap();
            assert_eq!(read(&path).unwrap(), Some(state));
        }
        fs::write(&path, "what?").unwrap();
        assert!(read(&path).is_err());
        write(&path, None).unwrap();
        write(&path, None).unwrap();
        assert_eq!(read(&path).unwrap(), None);
        fs::remove_dir(&folder).unwrap();
    }

    #[test]
    fn a_maintenance_whose_time_is_over_is_not_under_way() {
        let now = clock::now();
        let ends = |seconds: f64| Saved {
            maintenance_until: Some(clock::since_1970(now).as_secs_f64() + seconds),
        };
        assert_eq!(ends(-1.0).under_way(now), None);
        let left = ends(60.0).under_way(now).and_then(|it| it.until).unwrap();
        let left = left.since(now).as_secs_f64();
        assert!((59.0..61.0).contains(&left), "{left}");
    }
}
