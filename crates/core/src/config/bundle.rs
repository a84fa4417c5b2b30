//! A config with the files that it includes as one text, for other units.
//!
//! The config's own text comes first. The text of each included file follows a line that names it,
//! relative to the folder of the config: `#:file policies.d/10-web.toml`. So the text of a config
//! that includes nothing is the bundle.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Component, Path, PathBuf};

use super::sources::Sources;

/// What the line before an included file begins with. It is a comment of TOML.
const MARK: &str = "#:file ";

/// Why the files of a config can't be one text, or a text is no config of several files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BundleError {
    /// A line of the file looks like one that names an included file.
    Marked(PathBuf),
    /// The file is not one of the folder of the config, or below, that ends in `.toml`.
    Elsewhere(PathBuf),
    /// The text names a file that it must not have, or names it twice.
    NotAllowed(PathBuf),
}

impl fmt::Display for BundleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BundleError::Marked(file) => {
                write!(f, "{}: no line may begin with `{MARK}`", file.display())
            }
            BundleError::Elsewhere(file) => write!(
                f,
                "{}: only files in the folder of the config, or below, that end in `.toml` can go \
                 to other units",
                file.display()
            ),
            BundleError::NotAllowed(file) => {
                write!(f, "it can't have the file `{}`", file.display())
            }
        }
    }
}

impl std::error::Error for BundleError {}

/// The text of a config and the files that it includes.
///
/// # Errors
/// A file that can't go to other units.
pub fn bundle(sources: &Sources) -> Result<String, BundleError> {
    let folder = sources.main().parent().unwrap_or(Path::new(""));
    let mut out = String::new();
    for (file, text) in sources.files() {
        if text.lines().any(|line| line.starts_with(MARK)) {
            return Err(BundleError::Marked(file.to_path_buf()));
        }
        if file != sources.main() {
            let name = name(folder, file)?;
            if !out.ends_with('\n') {
                out.push('\n');
            }
            out.push_str(&format!("{MARK}{name}\n"));
        }
        out.push_str(text);
    }
    Ok(out)
}

/// The name of an included file in a bundle.
fn name<'a>(folder: &Path, file: &'a Path) -> Result<&'a str, BundleError> {
    let inside = file
        .strip_prefix(folder)
        .ok()
        .filter(|name| is_inside(name));
    let name = inside.and_then(Path::to_str);
    name.ok_or_else(|| BundleError::Elsewhere(file.to_path_buf()))
}

/// Whether a push may write the file of that name. A pattern like `*` may match keys.
fn is_inside(name: &Path) -> bool {
    let is_plain = |part| matches!(part, Component::Normal(_));
    name.components().all(is_plain)
        && name.extension().is_some_and(|ending| ending == "toml")
        && !name.to_string_lossy().contains(['\n', '\r'])
}

/// The config's own text, and the included files by name.
pub type Unbundled<'a> = (&'a str, BTreeMap<PathBuf, &'a str>);

/// Takes a bundle apart.
///
/// # Errors
/// A file that the text must not have.
pub fn unbundle(text: &str) -> Result<Unbundled<'_>, BundleError> {
    let mut marks = Vec::new();
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if let Some(name) = line.strip_prefix(MARK) {
            marks.push((at, at + line.len(), Path::new(name.trim_end_matches('\n'))));
        }
        at += line.len();
    }
    let own = marks.first().map_or(text, |(start, ..)| &text[..*start]);
    let mut files = BTreeMap::new();
    for (index, (_, begin, name)) in marks.iter().enumerate() {
        let end = marks
            .get(index + 1)
            .map_or(text.len(), |(start, ..)| *start);
        let is_new = files
            .insert(name.to_path_buf(), &text[*begin..end])
            .is_none();
        if !is_new || !is_inside(name) {
            return Err(BundleError::NotAllowed(name.to_path_buf()));
        }
    }
    Ok((own, files))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(files: &[(&str, &str)]) -> Sources {
        let mut sources = Sources::new(Path::new(files[0].0), files[0].1);
        for (file, text) in &files[1..] {
            sources.include(Path::new(file), text).unwrap();
        }
        sources
    }

    const MAIN: &str = "include = [\"p.d/*.toml\"]\n[node]\nname = \"a\"";
    const POLICY: &str = "[[policy]]\nname = \"b\"";

    #[test]
    fn a_bundle_is_taken_apart_into_the_same_files() {
        let alone = sources(&[("/etc/gw.toml", MAIN)]);
        assert_eq!(bundle(&alone).unwrap(), MAIN);
        assert_eq!(unbundle(MAIN).unwrap(), (MAIN, BTreeMap::new()));

        let files = [
            ("/etc/gw.toml", MAIN),
            ("/etc/./p.d/1.toml", POLICY),
            ("/etc/p.d/2.toml", "\n[[policy]]\nname = \"c\"\n"),
        ];
        let text = bundle(&sources(&files)).unwrap();
        let (own, included) = unbundle(&text).unwrap();
        assert_eq!(own, format!("{MAIN}\n"));
        let expected = [
            (PathBuf::from("p.d/1.toml"), format!("{POLICY}\n")),
            (PathBuf::from("p.d/2.toml"), files[2].1.to_owned()),
        ];
        let included: Vec<_> = included
            .into_iter()
            .map(|(k, v)| (k, v.to_owned()))
            .collect();
        assert_eq!(included, expected);
        // What a unit has written makes the same bundle.
        let written = [
            ("/x/gw-b.toml", own),
            ("/x/p.d/1.toml", &expected[0].1),
            ("/x/p.d/2.toml", files[2].1),
        ];
        assert_eq!(bundle(&sources(&written)).unwrap(), text);
    }

    #[test]
    fn no_other_file_is_written() {
        for file in [
            "/etc/gw.key",
            "/elsewhere/a.toml",
            "/etc/p.d/../../a.toml",
            "/etc/a\n.toml",
        ] {
            let files = sources(&[("/etc/gw.toml", MAIN), (file, POLICY)]);
            let why = bundle(&files).unwrap_err();
            assert_eq!(why, BundleError::Elsewhere(PathBuf::from(file)));
            assert!(why.to_string().contains("can go to other units"), "{why}");
        }
        let marked = format!("{POLICY}\n{MARK}x.toml\n");
        let files = [("/etc/gw.toml", MAIN), ("/etc/p.d/1.toml", &*marked)];
        let why = bundle(&sources(&files)).unwrap_err();
        assert_eq!(why, BundleError::Marked(PathBuf::from("/etc/p.d/1.toml")));
        for name in ["../a.toml", "/etc/a.toml", "gw.key", "", "./a.toml", ".."] {
            let text = format!("{MAIN}\n{MARK}{name}\n{POLICY}\n");
            assert!(unbundle(&text).is_err(), "{name}");
        }
        let twice = format!("{MAIN}\n{MARK}a.toml\n{MARK}a.toml\n");
        assert!(unbundle(&twice).is_err());
    }
}
