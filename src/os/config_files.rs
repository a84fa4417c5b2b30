//! The files that a config includes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use tandemgw_core::config::{self, Config, Diagnostic, Include, Severity, Sources};

/// Files that one config includes at most.
const MOST_FILES: usize = 1024;

/// Parses a config with all files that it includes, whose texts are added to `sources`, each once,
/// as `read` reads them.
///
/// # Errors
/// What is wrong with the first file that can't be added, or with the texts.
pub fn parse_with_included(
    sources: &mut Sources,
    read: impl Fn(&Path) -> io::Result<Vec<u8>>,
) -> Result<(Config, Vec<Diagnostic>), Vec<Diagnostic>> {
    add_included(sources, read)?;
    config::parse_all(sources)
}

/// Parses a config with the files of a [bundle](config::unbundle), in the same order as from the
/// disk.
///
/// # Errors
/// What is wrong with the first file that can't be added, or with the texts.
pub fn parse_unbundled(
    sources: &mut Sources,
    mut files: BTreeMap<PathBuf, &str>,
) -> Result<(Config, Vec<Diagnostic>), Vec<Diagnostic>> {
    let folder = folder_of(sources);
    if files.len() > MOST_FILES {
        return Err(vec![whole(format!(
            "more than {MOST_FILES} files are included"
        ))]);
    }
    for include in sources.includes() {
        let from = plain(&include.folder);
        let is_meant = |file: &Path| {
            let name = file.file_name().and_then(|name| name.to_str());
            file.parent() == Some(&from) && name.is_some_and(|name| include.matches(name))
        };
        let meant: Vec<PathBuf> = files.keys().filter(|it| is_meant(it)).cloned().collect();
        for file in meant {
            if identity(&folder.join(&file)) == identity(sources.main()) {
                let why = format!("{} is the config itself here", file.display());
                return Err(vec![include.unreadable(why)]);
            }
            let text = files.remove(&file).unwrap_or_default();
            sources.include(&folder.join(&file), text)?;
        }
        let named = folder.join(from).join(&include.name);
        if !include.is_pattern() && !sources.files().any(|(file, _)| file == named) {
            let why = format!("{} is not among the files that were pushed", include.name);
            return Err(vec![include.unreadable(why)]);
        }
    }
    if let Some(file) = files.keys().next() {
        let why = format!("`include` asks for no file {}", file.display());
        return Err(vec![whole(why)]);
    }
    config::parse_all(sources)
}

/// A problem of all files together.
fn whole(why: String) -> Diagnostic {
    Diagnostic {
        severity: Severity::Error,
        span: 0..0,
        message: why,
        hint: None,
    }
}

/// Files on the disk that the config would include too, if it were read from there.
pub fn left_over(sources: &Sources) -> Vec<PathBuf> {
    let known: BTreeSet<PathBuf> = sources.files().map(|(file, _)| identity(file)).collect();
    let includes = sources.includes().into_iter();
    let found = includes
        .filter(Include::is_pattern)
        .filter_map(|include| files_of(&folder_of(sources), &include).ok());
    let is_left = |file: &PathBuf| {
        let is_config = file.extension().is_some_and(|ending| ending == "toml");
        is_config && !known.contains(&identity(file))
    };
    found.flatten().filter(is_left).collect()
}

fn folder_of(sources: &Sources) -> PathBuf {
    sources.main().parent().unwrap_or(Path::new("")).to_owned()
}

/// Without `.`, as the names in a bundle are.
fn plain(path: &Path) -> PathBuf {
    let parts = path.components();
    parts.filter(|part| *part != Component::CurDir).collect()
}

/// Adds the texts of all files that a config includes, each once, as `read` reads them.
///
/// # Errors
/// What is wrong with the first file that can't be added.
pub fn add_included(
    sources: &mut Sources,
    read: impl Fn(&Path) -> io::Result<Vec<u8>>,
) -> Result<(), Vec<Diagnostic>> {
    let folder = folder_of(sources);
    // A pattern may match the config itself.
    let mut known = BTreeSet::from([identity(sources.main())]);
    for include in sources.includes() {
        let fail = |why| vec![include.unreadable(why)];
        let files = files_of(&folder, &include).map_err(fail)?;
        for file in files {
            if !known.insert(identity(&file)) {
                continue;
            }
            if known.len() > MOST_FILES {
                return Err(fail(format!("more than {MOST_FILES} files are included")));
            }
            let name = file.display();
            let bytes = read(&file).map_err(|error| fail(format!("{name}: {error}")))?;
            let text = config::decode(bytes).map_err(|(problem, shown)| {
                let line = problem.line(&Sources::new(&file, &shown));
                fail(line)
            })?;
            sources.include(&file, &text)?;
        }
    }
    Ok(())
}

/// The files that are meant, by name; a pattern may match none.
fn files_of(folder: &Path, include: &Include) -> Result<Vec<PathBuf>, String> {
    let folder = folder.join(&include.folder);
    if !include.is_pattern() {
        return Ok(vec![folder.join(&include.name)]);
    }
    let unreadable = |error: io::Error| format!("{}: {error}", folder.display());
    // An empty path is this folder.
    let listed = match folder.as_os_str().is_empty() {
        true => fs::read_dir("."),
        false => fs::read_dir(&folder),
    };
    let mut names = Vec::new();
    for entry in listed.map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        if name.to_str().is_some_and(|name| include.matches(name)) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names.iter().map(|name| folder.join(name)).collect())
}

/// The same for each path to a file.
fn identity(file: &Path) -> PathBuf {
    fs::canonicalize(file).unwrap_or_else(|_| file.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of its own, removed at the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("tgw-{name}-{}", std::process::id()));
            fs::create_dir_all(path.join("policies.d")).unwrap();
            Folder(path)
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.0.join(name), text).unwrap();
        }

        fn read(&self, include: &str) -> Result<Vec<String>, Vec<String>> {
            let text = format!(
                "include = {include}\n[node]\nname = \"a\"\n[[port]]\nname = \"lan\"\n\
                 interface = \"eth0\"\n"
            );
            self.write("gw.toml", &text);
            let mut sources = Sources::new(&self.0.join("gw.toml"), &text);
            let parsed = parse_with_included(&mut sources, |file| fs::read(file));
            let lines = |found: Vec<Diagnostic>| -> Vec<String> {
                found.iter().map(|it| it.line(&sources)).collect()
            };
            let (config, _) = parsed.map_err(lines)?;
            Ok(config.policies.into_iter().map(|it| it.name).collect())
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn policy(name: &str) -> String {
        format!("[[policy]]\nname = \"{name}\"\naction = \"drop\"\n")
    }

    #[test]
    fn a_pattern_is_read_by_name_and_each_file_once() {
        let folder = Folder::new("includes");
        folder.write("policies.d/20-b.toml", &policy("b"));
        folder.write("policies.d/10-a.toml", &policy("a"));
        folder.write("policies.d/10-a.toml.bak", &policy("bak"));
        folder.write("policies.d/.hidden.toml", &policy("hidden"));
        folder.write("z.toml", &policy("z"));
        let include = "[\"policies.d/*.toml\", \"*.toml\", \"policies.d/10-a.toml\"]";
        assert_eq!(folder.read(include).unwrap(), ["a", "b", "z"]);
        assert!(folder.read("[\"policies.d/*.none\"]").unwrap().is_empty());
    }

    #[test]
    fn a_bundle_is_read_as_the_files_are() {
        let folder = Folder::new("bundle");
        for name in ["policies.d/20-z.toml", "policies.d/10-a.toml", "more.toml"] {
            let policy = name.trim_end_matches(".toml").replace(['/', '.'], "-");
            folder.write(
                name,
                &format!("[[policy]]\nname = \"{policy}\"\naction = \"drop\"\n"),
            );
        }
        let main = |include: &str| {
            format!(
                "include = {include}\n[node]\nname = \"a\"\n[[port]]\nname = \"lan\"\n\
                 interface = \"eth0\"\nvirtual-addresses = [\"10.0.0.1/24\"]\n"
            )
        };
        let file = folder.0.join("gw.toml");
        let text = main(r#"["more.toml", "./policies.d/*.toml"]"#);
        let mut sources = Sources::new(&file, &text);
        add_included(&mut sources, |file| fs::read(file)).unwrap();
        let bundle = config::bundle(&sources).unwrap();
        let read = |text: &str| {
            let (own, files) = config::unbundle(text).unwrap();
            let mut sources = Sources::new(&file, own);
            let parsed = parse_unbundled(&mut sources, files);
            parsed.map_err(|problems| problems[0].line(&sources))?;
            Ok::<_, String>(sources)
        };
        let again = read(&bundle).unwrap();
        assert!(again.files().eq(sources.files()), "{bundle}");
        assert_eq!(config::bundle(&again).unwrap(), bundle);
        assert_eq!(left_over(&again), Vec::<PathBuf>::new());
        folder.write("policies.d/30-old.toml", "");
        folder.write("policies.d/key", "");
        let old = folder.0.join("./policies.d/30-old.toml");
        assert_eq!(left_over(&again), [old]);

        for (text, expected) in [
            (main(r#"["more.toml"]"#), "more.toml is not among the files"),
            (
                format!("{}#:file x.toml\n", main("[]")),
                "asks for no file x.toml",
            ),
            (
                format!("{}#:file gw.toml\n", main(r#"["*.toml"]"#)),
                "is the config itself here",
            ),
        ] {
            folder.write("gw.toml", "");
            let found = read(&text).unwrap_err();
            assert!(found.contains(expected), "{found}");
        }
    }

    #[test]
    fn what_can_not_be_read_is_told_where_it_is_included() {
        let folder = Folder::new("unreadable");
        folder.write("policies.d/latin.toml", "x");
        fs::write(folder.0.join("policies.d/latin.toml"), b"# \xe9\n").unwrap();
        for (include, expected) in [
            ("[\"absent.toml\"]", "gw.toml:1:12: "),
            ("[\"absent.d/*.toml\"]", "absent.d: No such file"),
            (
                "[\"policies.d/latin.toml\"]",
                "latin.toml:1:3: the byte 0xe9 is not UTF-8",
            ),
            ("[\"*/x.toml\"]", ""),
            ("[\"..\"]", "`..` is not a file"),
        ] {
            let found = folder.read(include).unwrap_err().join("\n");
            assert!(found.contains(expected), "{found}");
        }
    }
}
