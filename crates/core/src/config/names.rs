//! Names: their syntax, their owners, and suggestions for wrong ones.

use std::collections::BTreeMap;

use super::diagnostic::Report;
use super::reader::{At, Span};

/// The names of one kind of thing, with the index of each.
pub(super) struct Names {
    kind: &'static str,
    known: BTreeMap<String, usize>,
}

impl Names {
    /// No names yet; `kind` is for messages, such as "port".
    pub(super) fn new(kind: &'static str) -> Names {
        Names {
            kind,
            known: BTreeMap::new(),
        }
    }

    /// Assigns `name` to the thing with that index; an error if it is taken.
    ///
    /// `None`, a name that could not be read, was reported before.
    pub(super) fn declare(&mut self, report: &Report, name: Option<&At<String>>, index: usize) {
        let Some(name) = name else { return };
        let (kind, text) = (self.kind, &name.value);
        if self.known.contains_key(text) {
            let hint = format!("each {kind} needs a name of its own");
            report.error(&name.span, format!("a second {kind} named `{text}`"), hint);
            return;
        }
        self.known.insert(text.clone(), index);
    }

    /// The index of the thing with that name; an error if there is none.
    pub(super) fn resolve(&self, report: &Report, name: &At<String>) -> Option<usize> {
        let found = self.known.get(&name.value).copied();
        if found.is_none() {
            let hint = match self.similar(&name.value) {
                Some(hint) => hint,
                None if self.known.is_empty() => format!("there is no {} at all", self.kind),
                None => format!("known: {}", list(self.known.keys())),
            };
            let message = format!("unknown {} `{}`", self.kind, name.value);
            report.error(&name.span, message, hint);
        }
        found
    }

    /// The index of the thing with that name, if there is one.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.known.get(name).copied()
    }

    /// "did you mean `x`?", if one of the names is close to `wrong`.
    pub(super) fn similar(&self, wrong: &str) -> Option<String> {
        did_you_mean(wrong, self.known.keys().map(String::as_str))
    }

    /// As [`Names::resolve`] for a list, in which a name should stand once.
    pub(super) fn resolve_all(&self, report: &Report, names: &[At<String>]) -> Vec<usize> {
        let mut found = Vec::new();
        for name in names {
            match self.resolve(report, name) {
                Some(index) if found.contains(&index) => {
                    report.warn(&name.span, format!("`{}` is listed twice", name.value), "");
                }
                Some(index) => found.push(index),
                None => {}
            }
        }
        found
    }
}

/// "did you mean `x`?", if one of `candidates` is close to `wrong`.
pub fn did_you_mean<'a>(wrong: &str, candidates: impl Iterator<Item = &'a str>) -> Option<String> {
    // Longer words are not typos, and the distance takes quadratic time.
    const LONGEST: usize = 64;
    if wrong.len() > LONGEST {
        return None;
    }
    let allowed = (wrong.chars().count() / 3).max(1);
    let (_, best) = candidates
        .filter(|candidate| candidate.len() <= LONGEST)
        .map(|candidate| {
            let distance = strsim::osa_distance(wrong, candidate);
            // Of two equally close ones, the one that only lacks the end.
            ((distance, !candidate.starts_with(wrong)), candidate)
        })
        .filter(|((distance, _), _)| *distance <= allowed)
        .min()?;
    Some(format!("did you mean `{best}`?"))
}

/// Checks a name that appears on the wire, in filters and in file names.
pub(super) fn check_name(report: &Report, name: Option<&At<String>>) {
    let Some(At { value, span }) = name else {
        return;
    };
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    check_chars(
        report,
        value,
        span,
        63,
        legal,
        "letters, digits, `-`, `_` and `.`",
    );
    if value.starts_with('.') {
        report.error(span, format!("the name `{value}` begins with a dot"), "");
    }
}

/// Checks the name of a port, which becomes the interface `tgw-<name>`.
pub(super) fn check_port_name(report: &Report, name: Option<&At<String>>) {
    let Some(At { value, span }) = name else {
        return;
    };
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    check_chars(
        report,
        value,
        span,
        11,
        legal,
        "small letters, digits and `-`",
    );
}

/// Checks the name of a network interface, as the kernel does (`dev_valid_name`).
pub(super) fn check_interface(report: &Report, name: Option<&At<String>>) {
    let Some(At { value, span }) = name else {
        return;
    };
    let legal = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':' | '%');
    check_chars(
        report,
        value,
        span,
        15,
        legal,
        "printable ASCII without `/`, `:` and `%`",
    );
    if value == "." || value == ".." {
        report.error(span, format!("`{value}` is not an interface name"), "");
    }
    if value.starts_with("tgw-") {
        let message = format!("`{value}` is a name for the gateway's own devices");
        report.error(span, message, "name the interface that the hosts are on");
    }
}

fn check_chars(
    report: &Report,
    name: &str,
    span: &Span,
    longest: usize,
    legal: impl Fn(char) -> bool,
    legal_text: &str,
) {
    if name.is_empty() {
        report.error(span, "the name is empty", "");
    } else if let Some(wrong) = name.chars().find(|c| !legal(*c)) {
        let message = format!("the name contains {wrong:?}");
        report.error(span, message, format!("use {legal_text}"));
    } else if name.len() > longest {
        let message = format!("the name has {} bytes, more than {longest}", name.len());
        report.error(span, message, "");
    }
}

/// "`a`, `b` and 3 more"
fn list<'a>(names: impl ExactSizeIterator<Item = &'a String>) -> String {
    const SHOWN: usize = 8;
    let more = names.len().saturating_sub(SHOWN);
    let shown: Vec<String> = names.take(SHOWN).map(|name| format!("`{name}`")).collect();
    match more {
        0 => shown.join(", "),
        _ => format!("{} and {more} more", shown.join(", ")),
    }
}
