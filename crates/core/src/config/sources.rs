//! The text of a config: that of its file, and of the files that it includes.
//!
//! The texts are read as one, in order. So an included file goes on where the one before it ends:
//! it may add policies, and a table that two files have is an error.

use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::diagnostic::{Diagnostic, Report, Severity};
use super::nodes::ThisUnit;
use super::parse::report_syntax;

/// The files of a config and their texts.
#[derive(Clone, Debug)]
pub struct Sources {
    text: String,
    /// The files, each with the place of its text; at least one.
    files: Vec<(PathBuf, Range<usize>)>,
    unit: Option<ThisUnit>,
}

/// A path that a config includes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Include {
    /// The folder, relative to that of the config.
    pub folder: PathBuf,
    /// The name of the file, in which `*` stands for any characters.
    pub name: String,
    /// Where the config says it.
    pub span: Range<usize>,
}

impl Include {
    /// Whether files may match or not: a name without `*` must exist.
    pub fn is_pattern(&self) -> bool {
        self.name.contains('*')
    }

    /// Whether a file of that name is included; one that begins with a dot never is by a pattern.
    pub fn matches(&self, name: &str) -> bool {
        match self.is_pattern() {
            true => !name.starts_with('.') && matches(&self.name, name),
            false => self.name == name,
        }
    }

    /// The problem that it can't be read.
    pub fn unreadable(&self, why: String) -> Diagnostic {
        Diagnostic {
            severity: Severity::Error,
            span: self.span.clone(),
            message: why,
            hint: None,
        }
    }
}

/// Whether `name` is `pattern` with something in place of each `*`.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(mut name) = name.strip_prefix(start) else {
        return false;
    };
    // Each part at its first place: what follows has the most room then.
    let mut parts = rest.split('*').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return name.ends_with(part);
        }
        let Some(at) = name.find(part) else {
            return false;
        };
        name = &name[at + part.len()..];
    }
    true
}

impl Sources {
    /// A config without included files.
    pub fn new(file: &Path, text: &str) -> Sources {
        Sources {
            text: text.to_owned(),
            files: vec![(file.to_owned(), 0..text.len())],
            unit: None,
        }
    }

    /// The same, for this unit of a config for several.
    pub fn of_unit(self, unit: Option<ThisUnit>) -> Sources {
        Sources { unit, ..self }
    }

    /// Which unit of a config for several this is.
    pub fn unit(&self) -> Option<&ThisUnit> {
        self.unit.as_ref()
    }

    /// The config's own file.
    pub fn main(&self) -> &Path {
        &self.files[0].0
    }

    /// The files, each with its text; the config's own is the first.
    pub fn files(&self) -> impl Iterator<Item = (&Path, &str)> {
        self.files
            .iter()
            .map(|(file, place)| (file.as_path(), &self.text[place.clone()]))
    }

    /// All texts.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The files that the config asks for. None if its text can't be read: parsing tells why.
    pub fn includes(&self) -> Vec<Include> {
        let (document, errors) = DeTable::parse_recoverable(&self.text);
        let listed = document.get_ref().get("include").map(|it| it.get_ref());
        let Some(DeValue::Array(listed)) = listed.filter(|_| errors.is_empty()) else {
            return Vec::new();
        };
        let include = |value: &toml::Spanned<DeValue<'_>>| {
            let path = Path::new(value.get_ref().as_str()?);
            Some(Include {
                folder: path.parent().unwrap_or(Path::new("")).to_owned(),
                name: path.file_name()?.to_str()?.to_owned(),
                span: value.span(),
            })
        };
        listed.iter().filter_map(include).collect()
    }

    /// Adds the text of an included file.
    ///
    /// # Errors
    /// The problems of a text that can't go on where another one ends.
    pub fn include(&mut self, file: &Path, text: &str) -> Result<(), Vec<Diagnostic>> {
        if !self.text.ends_with('\n') {
            self.text.push('\n');
        }
        let start = self.text.len();
        self.text.push_str(text);
        self.files
            .push((file.to_owned(), start..start + text.len()));
        let report = Report::default();
        let (_, errors) = DeTable::parse_recoverable(text);
        report_syntax(&report, text, &errors);
        let mut at = 0;
        for line in text.split_inclusive('\n') {
            let begun = line.trim_start();
            if begun.is_empty() || begun.starts_with('#') {
                at += line.len();
                continue;
            }
            if !begun.starts_with('[') {
                let from = at + line.len() - begun.len();
                let message = "an included file must begin with a table";
                let hint = "write the name of its table above, such as [[policy]]";
                report.error(&(from..from + begun.trim_end().len()), message, hint);
            }
            break;
        }
        let found = report.into_sorted();
        if found.is_empty() {
            return Ok(());
        }
        let moved = found.into_iter().map(|mut problem| {
            problem.span = problem.span.start + start..problem.span.end + start;
            problem
        });
        Err(moved.collect())
    }

    /// The file in which a place of the text is, the file's text, and the place in that.
    pub(super) fn place(&self, span: &Range<usize>) -> (&Path, &str, Range<usize>) {
        let next = self
            .files
            .partition_point(|(_, place)| place.start <= span.start);
        let (file, place) = &self.files[next.max(1) - 1];
        let start = &place.start;
        let after = self.files.get(next);
        let end = after.map_or(self.text.len(), |(_, place)| place.start);
        let moved = span.start - start..span.end.saturating_sub(*start);
        (file, &self.text[*start..end], moved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    const MAIN: &str = "include = [\"policies.d/*.toml\", \"more.toml\"]\n\
        [node]\nname = \"a\"\n[[port]]\nname = \"lan\"\ninterface = \"eth0\"\n\
        [[policy]]\nname = \"first\"\naction = \"drop\"";

    fn policy(name: &str) -> String {
        format!("# Of a team.\n\n[[policy]]\nname = \"{name}\"\naction = \"accept\"\n")
    }

    #[test]
    fn policies_of_included_files_follow_in_order() {
        let mut sources = Sources::new(Path::new("/etc/gw.toml"), MAIN);
        let includes = sources.includes();
        let paths: Vec<_> = includes.iter().map(|it| it.folder.join(&it.name)).collect();
        assert_eq!(
            paths,
            [Path::new("policies.d/*.toml"), Path::new("more.toml")]
        );
        assert!(includes[0].is_pattern() && !includes[1].is_pattern());
        sources.include(Path::new("b.toml"), &policy("b")).unwrap();
        sources.include(Path::new("a.toml"), &policy("a")).unwrap();
        let (config, _) = config::parse_all(&sources).unwrap();
        let names: Vec<_> = config.policies.iter().map(|it| &*it.name).collect();
        assert_eq!(names, ["first", "b", "a"]);
    }

    #[test]
    fn a_problem_is_shown_in_its_file() {
        let mut sources = Sources::new(Path::new("gw.toml"), MAIN);
        let second = policy("b") + "from = [\"lam\"]\n";
        sources.include(Path::new("b.toml"), &second).unwrap();
        sources.include(Path::new("c.toml"), &policy("b")).unwrap();
        let found = config::parse_all(&sources).unwrap_err();
        let lines: Vec<_> = found.iter().map(|it| it.line(&sources)).collect();
        assert_eq!(
            lines,
            [
                "b.toml:6:9: unknown port `lam`; did you mean `lan`?",
                "c.toml:4:8: a second policy named `b`; each policy needs a name of its own",
            ]
        );
        let shown = config::render(&found, &sources, false);
        assert!(shown.contains("6 | from = [\"lam\"]"), "{shown}");
    }

    #[test]
    fn what_can_not_be_included_is_told() {
        for (text, line) in [
            (
                "# x\nname = 1\n[[policy]]\n",
                "b.toml:2:1: an included file must begin with a table",
            ),
            ("[[policy]\n", "b.toml:1:10: unclosed array table"),
            ("[[policy]]\nname = \"\"\"x\n", "b.toml:3:1: invalid"),
        ] {
            let mut sources = Sources::new(Path::new("gw.toml"), MAIN);
            let found = sources.include(Path::new("b.toml"), text).unwrap_err();
            let shown = found[0].line(&sources);
            assert!(shown.starts_with(line), "{shown}");
        }
        // A table of the main file once more.
        let mut sources = Sources::new(Path::new("gw.toml"), MAIN);
        let text = "[node]\nname = \"b\"\n";
        sources.include(Path::new("b.toml"), text).unwrap();
        let found = config::parse_all(&sources).unwrap_err();
        assert!(
            found[0].line(&sources).starts_with("b.toml:1:"),
            "{found:?}"
        );
    }

    #[test]
    fn a_star_stands_for_any_characters() {
        let is = |pattern: &str, name: &str| {
            let include = Include {
                folder: PathBuf::new(),
                name: pattern.to_owned(),
                span: 0..0,
            };
            include.matches(name)
        };
        assert!(is("*.toml", "a.toml") && is("a*b*c", "aXbYc") && is("*", "x"));
        assert!(is("a*a", "aa") && is("x.toml", "x.toml"));
        assert!(!is("*.toml", "a.toml.bak") && !is("*.toml", ".a.toml"));
        assert!(!is("a*a", "a") && !is("a*b*c", "abbX") && !is("x.toml", "y.toml"));
    }
}
