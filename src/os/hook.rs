//! Programs that are run for events, by a process of their own.

use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Between two looks at a program that runs.
const PAUSE: Duration = Duration::from_millis(10);

/// Why a program did not do its work.
#[derive(Debug)]
pub enum HookError {
    /// It can't be run, or waited for.
    Io(io::Error),
    /// It ended by itself, with an exit code other than 0 or by a signal.
    Failed(ExitStatus),
    /// It was killed after this time.
    TooSlow(Duration),
}

impl From<io::Error> for HookError {
    fn from(error: io::Error) -> HookError {
        HookError::Io(error)
    }
}

impl fmt::Display for HookError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HookError::Io(error) => error.fmt(f),
            HookError::Failed(status) => status.fmt(f),
            HookError::TooSlow(limit) => {
                write!(
                    f,
                    "it took longer than {} s, and was killed",
                    limit.as_secs()
                )
            }
        }
    }
}

/// Runs `program` with these variables and this input, and waits for its end. One that takes longer
/// than `limit` is killed.
///
/// # Errors
/// If it can't be run, fails, or takes too long.
pub fn run(
    program: &Path,
    variables: &[(&str, String)],
    input: &str,
    limit: Duration,
) -> Result<(), HookError> {
    let mut command = Command::new(program);
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    let mut child = command.stdin(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // It may not want to read; the input fits into the pipe.
        let _ = stdin.write_all(input.as_bytes());
    }
    let begun = Instant::now();
    loop {
        match child.try_wait()? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(HookError::Failed(status)),
            None if begun.elapsed() >= limit => {
                kill(&mut child)?;
                return Err(HookError::TooSlow(limit));
            }
            None => pause(PAUSE),
        }
    }
}

fn kill(child: &mut std::process::Child) -> io::Result<()> {
    child.kill()?;
    child.wait().map(drop)
}

/// Waits, for processes that have nothing else to do.
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_ends_well_or_the_reason_is_told() {
        let run = |program: &str, limit| super::run(Path::new(program), &[], "{}\n", limit);
        let long = Duration::from_secs(20);
        let why = |program: &str| run(program, long).unwrap_err().to_string();
        assert!(run("/bin/true", long).is_ok());
        assert!(why("/bin/false").contains('1'));
        assert!(why("/nowhere").contains("No such file"));
    }

    #[test]
    fn a_program_that_hangs_is_killed() {
        let begun = Instant::now();
        let program = Path::new("/usr/bin/yes");
        let silent = Duration::from_millis(100);
        // Its output goes to that of the test; so a short time.
        let why = run_quietly(program, silent).unwrap_err().to_string();
        assert!(why.contains("was killed"), "{why}");
        assert!(begun.elapsed() < Duration::from_secs(10));
    }

    fn run_quietly(program: &Path, limit: Duration) -> Result<(), HookError> {
        let shell = Path::new("/bin/sh");
        let script = format!("exec {} >/dev/null\n", program.display());
        run(shell, &[], &script, limit)
    }
}
