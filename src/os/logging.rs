//! The log on stderr: one line per event, and it never waits for the reader.
//!
//! Lines are written at once, without blocking. Lines that the reader does not take wait in a
//! bounded buffer; when that is full, lines are lost and counted. There is no thread for it: a lock
//! that it would share with the loop could delay a packet as well.
//!
//! Under systemd each line begins with its priority, `<6>`, and has no timestamp, since the journal
//! adds one (sd-daemon(3)).

mod sink;

use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use env_logger::fmt::Formatter;
use log::{Level, Log, Metadata, Record};

use super::clock;
use sink::Sink;
use tandemgw_core::in_quotes::InQuotes;
use tandemgw_core::log_limit::{LogLimits, Rate};
use tandemgw_core::time::Time;

/// How often a reader that has fallen behind is tried again.
const RETRY: Duration = Duration::from_millis(50);
/// How long the end of the process waits for a reader that has fallen behind.
const LAST_CHANCE: Duration = Duration::from_secs(1);
const NEVER: u64 = u64::MAX;

static SINK: Mutex<Option<Sink>> = Mutex::new(None);
static LIMITS: Mutex<LogLimits> = Mutex::new(LogLimits::new());
/// When [`tick`] has something to do. The locks above are only touched by lines and when this is
/// due.
static DUE: AtomicU64 = AtomicU64::new(NEVER);

/// Begins to log to stderr, as `RUST_LOG` says; from `info` on if that is not set.
pub fn init() {
    let sink = Sink::stderr();
    let for_journal = is_journal(&sink);
    with(&SINK, |slot| *slot = Some(sink));
    let environment = env_logger::Env::default().default_filter_or("info");
    let lines = env_logger::Builder::from_env(environment)
        .format(move |out, record| match for_journal {
            true => journal_line(out, record),
            false => plain_line(out, record),
        })
        .target(env_logger::Target::Pipe(Box::new(Stderr)))
        .build();
    log::set_max_level(lines.filter());
    // Fails only if there is a logger already, which then stays.
    let _ = log::set_boxed_logger(Box::new(Limited { lines }));
}

/// Writes what is due: lines that had to wait, and how many were left out or lost. Costs nothing if
/// nothing is.
pub fn tick(now: Time) {
    if DUE.load(Ordering::Relaxed) > now.as_nanos() {
        return;
    }
    DUE.store(NEVER, Ordering::Relaxed);
    while let Some(left_out) = with(&LIMITS, |limits| limits.poll_summary(now)) {
        log::warn!(
            "log lines suppressed={} event={} why=\"too many a second\"",
            left_out.count,
            InQuotes(&left_out.event)
        );
    }
    let lost = with_sink(|sink| {
        sink.flush();
        sink.take_lost()
    });
    if let Some(count) = lost.flatten() {
        log::warn!("log lines lost={count} why=\"the reader of stderr is too slow\"");
    }
    set_due(now);
}

/// When [`tick`] is to be called; `None` if nothing waits.
pub fn timeout() -> Option<Time> {
    let due = DUE.load(Ordering::Relaxed);
    (due != NEVER).then(|| Time::from_nanos(due))
}

/// Gives a reader that has fallen behind a last chance, at the end of the process.
pub fn close() {
    let start = Instant::now();
    // As if all that is counted were due.
    DUE.store(0, Ordering::Relaxed);
    tick(clock::now() + LAST_CHANCE);
    while with_sink(Sink::is_waiting) == Some(true) && start.elapsed() < LAST_CHANCE {
        std::thread::sleep(RETRY / 10);
        with_sink(Sink::flush);
    }
}

fn set_due(now: Time) {
    let retry = (with_sink(Sink::is_waiting) == Some(true)).then(|| now + RETRY);
    let summary = with(&LIMITS, |limits| limits.poll_timeout());
    if let Some(due) = [retry, summary].into_iter().flatten().min() {
        DUE.fetch_min(due.as_nanos(), Ordering::Relaxed);
    }
}

/// There is one thread, so no lock is ever waited for.
fn with<T, R>(mutex: &Mutex<T>, f: impl FnOnce(&mut T) -> R) -> R {
    f(&mut mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner))
}

fn with_sink<R>(f: impl FnOnce(&mut Sink) -> R) -> Option<R> {
    with(&SINK, |sink| sink.as_mut().map(f))
}

/// Suppresses lines that come too often. DEBUG and TRACE are only on by request, and not limited.
struct Limited {
    lines: env_logger::Logger,
}

impl Log for Limited {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.lines.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.lines.matches(record) {
            return;
        }
        let now = clock::now();
        if record.level() > Level::Info || may_write(now, record) {
            self.lines.log(record);
        }
        set_due(now);
    }

    fn flush(&self) {
        with_sink(Sink::flush);
    }
}

fn may_write(now: Time, record: &Record<'_>) -> bool {
    let kind = (
        record.file_static().unwrap_or(""),
        record.line().unwrap_or(0),
    );
    let event = || words(&record.args().to_string());
    with(&LIMITS, |limits| {
        limits.allow(now, kind, Rate::of(record.target()), event)
    })
}

/// The words that a line begins with, before the first `key=value`.
fn words(line: &str) -> String {
    let words: Vec<&str> = line
        .split_whitespace()
        .take_while(|word| !word.contains('='))
        .collect();
    words.join(" ")
}

/// Whether stderr is the journal's: systemd tells which socket that is (sd_journal_stream_fd(3)).
fn is_journal(sink: &Sink) -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let own = sink.metadata().map(|own| (own.dev(), own.ino()));
    let told = stream.split_once(':').and_then(|(device, inode)| {
        Some((device.parse::<u64>().ok()?, inode.parse::<u64>().ok()?))
    });
    own.is_some() && own == told
}

fn journal_line(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let priority = match record.level() {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    writeln!(out, "<{priority}>{}", one_line(record))
}

fn plain_line(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    writeln!(
        out,
        "[{} {:<5} {}] {}",
        out.timestamp_micros(),
        record.level(),
        record.target(),
        one_line(record)
    )
}

/// The text with what would break the line, or steer a terminal, written out: some of it is a
/// peer's.
fn one_line(record: &Record<'_>) -> String {
    let text = record.args().to_string();
    if !text.contains(char::is_control) {
        return text;
    }
    let shown = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    text.chars().map(shown).collect()
}

/// Where env_logger writes to; it writes whole lines.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        with_sink(|sink| sink.push(line));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_named_by_the_words_before_its_fields() {
        assert_eq!(
            words("session start policy=a flow=\"b c\""),
            "session start"
        );
        assert_eq!(words("ready"), "ready");
    }

    #[test]
    fn what_would_break_a_line_is_written_out() {
        let shown = |text: &str| {
            let args = format_args!("{text}").to_string();
            one_line(&Record::builder().args(format_args!("{args}")).build())
        };
        assert_eq!(shown("a\nb\u{1b}[1m é"), "a\\nb\\u{1b}[1m é");
    }
}
