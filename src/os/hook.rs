//! Programs that are run for events, by a process of their own.

use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Between two looks at a program that runs.
const PAUSE: Duration = Duration::from_millis(10);

/// Runs `program` with these variables and this input, and waits for its end. One that takes longer than `limit`
/// is killed.
///
/// # Errors
/// Why it did not end well, in words.
pub fn run(
    program: &Path,
    variables: &[(&str, String)],
    input: &str,
    limit: Duration,
) -> Result<(), String> {
    let mut command = Command::new(program);
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    let mut child = command
        .stdin(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    if let Some(mut stdin) = child.stdin.take() {
        // It may not want to read; the input fits into the pipe.
        let _ = stdin.write_all(input.as_bytes());
    }
    let begun = Instant::now();
    loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(status.to_string()),
            None if begun.elapsed() >= limit => {
                kill(&mut child).map_err(|error| error.to_string())?;
                return Err(format!(
                    "it took longer than {} s, and was killed",
                    limit.as_secs()
                ));
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
        assert_eq!(run("/bin/true", long), Ok(()));
        assert!(run("/bin/false", long).is_err_and(|why| why.contains('1')));
        assert!(run("/nowhere", long).is_err_and(|why| why.contains("No such file")));
    }

    #[test]
    fn a_program_that_hangs_is_killed() {
        let begun = Instant::now();
        let program = Path::new("/usr/bin/yes");
        let silent = Duration::from_millis(100);
        // Its output goes to that of the test; so a short time.
        let why = run_quietly(program, silent).unwrap_err();
        assert!(why.contains("was killed"), "{why}");
        assert!(begun.elapsed() < Duration::from_secs(10));
    }

    fn run_quietly(program: &Path, limit: Duration) -> Result<(), String> {
        let shell = Path::new("/bin/sh");
        let script = format!("exec {} >/dev/null\n", program.display());
        run(shell, &[], &script, limit)
    }
}
