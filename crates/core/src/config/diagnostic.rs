//! Problems of a config file, and how they are shown.

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

use super::sources::Sources;

/// Problems of one file that are reported: each takes some 10 µs, and the file may be something
/// else altogether.
const MOST: usize = 1000;

/// How bad a [`Diagnostic`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The config is refused.
    Error,
    /// The config is accepted, but is unlikely to do what its author meant.
    Warning,
}

/// One problem of a config file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// Where: a byte range of the file's text.
    pub span: Range<usize>,
    /// One line, which names the key or table; the place is in [`Diagnostic::span`].
    pub message: String,
    /// A suggested fix.
    pub hint: Option<String>,
}

/// The text of a config file.
///
/// # Errors
/// The first place that is not UTF-8, and the text as far as it can be shown.
pub fn decode(bytes: Vec<u8>) -> Result<String, (Diagnostic, String)> {
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let byte = error.as_bytes().get(at).copied().unwrap_or_default();
        let shown = String::from_utf8_lossy(error.as_bytes()).into_owned();
        let problem = Diagnostic {
            severity: Severity::Error,
            span: at..at + char::REPLACEMENT_CHARACTER.len_utf8(),
            message: format!("the byte 0x{byte:02x} is not UTF-8"),
            hint: Some("save the file as UTF-8, as in: iconv -f ISO-8859-1 -t UTF-8".to_owned()),
        };
        (problem, shown)
    })
}

impl Diagnostic {
    /// The problem in one line: `FILE:LINE:COL: message; hint`.
    pub fn line(&self, sources: &Sources) -> String {
        let (file, text, span) = sources.place(&self.span);
        let place = Place::of(&span, text);
        let hint = self.hint.as_ref().map(|hint| format!("; {hint}"));
        format!(
            "{}:{}:{}: {}{}",
            file.display(),
            place.line,
            place.column,
            self.message.replace('\n', " "),
            hint.unwrap_or_default()
        )
    }
}

/// Shows `diagnostics` about the texts of a config to a person.
///
/// Each begins with `FILE:LINE:COL: ` (lines and columns from 1, columns in characters) and shows
/// the line with a caret and the hint. `color` adds ANSI escapes.
pub fn render(diagnostics: &[Diagnostic], sources: &Sources, color: bool) -> String {
    let renderer = match color {
        true => Renderer::styled(),
        false => Renderer::plain(),
    };
    let mut out = String::new();
    for diagnostic in diagnostics {
        render_one(&mut out, &renderer, diagnostic, sources, color);
    }
    out
}

/// The problems found so far. Shared by all readers of one document, hence the cell.
#[derive(Default)]
pub(super) struct Report {
    found: RefCell<Vec<Diagnostic>>,
    errors: Cell<usize>,
    /// Problems that were found when there were enough.
    left_out: Cell<usize>,
}

impl Report {
    /// Records an error. An empty `hint` means none.
    pub(super) fn error(
        &self,
        span: &Range<usize>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.errors.set(self.errors.get() + 1);
        self.push(Severity::Error, span, message.into(), hint.into());
    }

    /// Records a warning. An empty `hint` means none.
    pub(super) fn warn(
        &self,
        span: &Range<usize>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.push(Severity::Warning, span, message.into(), hint.into());
    }

    /// The number of errors: checks that build on a part of the file are skipped if it has some.
    pub(super) fn errors(&self) -> usize {
        self.errors.get()
    }

    /// All of them, in the order of the file.
    pub(super) fn into_sorted(self) -> Vec<Diagnostic> {
        let mut found = self.found.into_inner();
        found.sort_by_key(|d| (d.span.start, d.span.end));
        let left_out = self.left_out.get();
        if left_out > 0 {
            found.push(Diagnostic {
                severity: match self.errors.get() {
                    0 => Severity::Warning,
                    _ => Severity::Error,
                },
                span: usize::MAX..usize::MAX,
                message: format!("{left_out} more problems are not shown"),
                hint: None,
            });
        }
        found
    }

    fn push(&self, severity: Severity, span: &Range<usize>, message: String, hint: String) {
        if self.found.borrow().len() >= MOST {
            self.left_out.set(self.left_out.get() + 1);
            return;
        }
        self.found.borrow_mut().push(Diagnostic {
            severity,
            span: span.clone(),
            message,
            hint: Some(hint).filter(|hint| !hint.is_empty()),
        });
    }
}

fn render_one(
    out: &mut String,
    renderer: &Renderer,
    diagnostic: &Diagnostic,
    sources: &Sources,
    color: bool,
) {
    let (file, text, span) = sources.place(&diagnostic.span);
    let place = Place::of(&span, text);
    let (level, word, style) = match diagnostic.severity {
        Severity::Error => (Level::ERROR, "error", "\x1b[1;31m"),
        Severity::Warning => (Level::WARNING, "warning", "\x1b[1;33m"),
    };
    let (style, reset) = if color { (style, "\x1b[0m") } else { ("", "") };
    let snippet = Snippet::source(place.text)
        .line_start(place.line)
        .annotation(AnnotationKind::Primary.span(place.span));
    let mut group = Group::with_level(level).element(snippet);
    if let Some(hint) = &diagnostic.hint {
        group = group.element(Level::HELP.message(hint.as_str()));
    }
    let (file, line, column) = (file.display(), place.line, place.column);
    let message = &diagnostic.message;
    // Writing to a String can't fail.
    let _ = writeln!(
        out,
        "{file}:{line}:{column}: {style}{word}{reset}: {message}"
    );
    let _ = writeln!(out, "{}", renderer.render(&[group]));
}

/// The line in which a span begins.
struct Place<'a> {
    line: usize,
    column: usize,
    text: &'a str,
    /// The part of the span that lies in `text`.
    span: Range<usize>,
}

impl<'a> Place<'a> {
    fn of(span: &Range<usize>, text: &'a str) -> Place<'a> {
        let start = char_boundary(text, span.start);
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
        let shown = text[line_start..line_end].trim_end_matches('\r');
        let end = char_boundary(text, span.end.clamp(start, line_end));
        Place {
            line: text[..line_start].matches('\n').count() + 1,
            column: text[line_start..start].chars().count() + 1,
            text: shown,
            span: (start - line_start).min(shown.len())..(end - line_start).min(shown.len()),
        }
    }
}

/// The last boundary of characters up to `at`.
fn char_boundary(text: &str, at: usize) -> usize {
    let at = at.min(text.len());
    (0..=at)
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_file_that_is_no_config_is_told_at_length_but_not_without_an_end() {
        let text = "no toml\n".repeat(20_000);
        let found = crate::config::parse(Path::new("f"), &text).unwrap_err();
        assert_eq!(found.len(), MOST + 1);
        let last = found[MOST].line(&Sources::new(Path::new("f"), &text));
        assert_eq!(last, "f:20001:1: 19000 more problems are not shown");
    }

    #[test]
    fn a_problem_begins_with_its_place_and_shows_the_line() {
        let text = "[node]\nname = \"ä\" # x\n";
        let problem = Diagnostic {
            severity: Severity::Error,
            span: 14..18,
            message: "no".into(),
            hint: Some("try `a`".into()),
        };
        let shown = render(
            &[problem],
            &Sources::new(Path::new("a/b.toml"), text),
            false,
        );
        let expected = "a/b.toml:2:8: error: no\n  |\n2 | name = \"ä\" # x\n  |        ^^^\n  |\n  = help: try `a`\n";
        assert_eq!(shown, expected);
    }

    proptest! {
        #[test]
        fn any_span_of_any_text_can_be_shown(text in "(?s).{0,60}", a in 0usize..80, b in 0usize..80) {
            let problem = Diagnostic {
                severity: Severity::Warning,
                span: a..b,
                message: "m".into(),
                hint: None,
            };
            let shown = render(&[problem], &Sources::new(Path::new("f"), &text), true);
            prop_assert!(shown.starts_with("f:"));
        }
    }
}
