//! The configs that were in force: the last ones, with the time and who wanted them.
//!
//! One file for each version in a folder of the unit's state directory: a line of JSON, then the
//! texts of the config's files. The loop never waits for it: a thread writes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tandemgw_core::config::{Config, Sources};
use tandemgw_core::control::KeptConfig;
use tandemgw_core::in_quotes::InQuotes;

use super::clock;

/// Versions that are kept.
const MOST_VERSIONS: usize = 20;

/// Bytes that they may take together; the last one is kept whatever its size.
const MOST_BYTES: u64 = 64 << 20;

/// The longest first line of a file.
const LONGEST_HEAD: u64 = 1 << 20;

/// The end of the name of a file.
const ENDING: &str = "config";

/// The first line of a file.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    at: f64,
    who: String,
    how: String,
    files: Vec<HeadFile>,
}

/// A file of the config, whose text follows the first line and the texts before.
#[derive(Debug, Serialize, Deserialize)]
struct HeadFile {
    path: PathBuf,
    bytes: u64,
}

/// Who wants a config in force, and how.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The user; none if it is not known who edited the file.
    pub user: Option<u32>,
    /// An operator or a unit, by name, in place of the user.
    pub name: Option<String>,
    /// `start`, `reload`, `SIGHUP`, `rollback to 3`.
    pub how: String,
}

/// The folder of this unit.
pub fn folder(config: &Config) -> PathBuf {
    let node = &config.node;
    node.state_directory.join(format!("{}.history", node.name))
}

/// Adds a config, unless it is the last one already; forgets the oldest ones. Returns those that
/// are kept, the last one first.
///
/// # Errors
/// What the kernel says about the folder or a file.
pub fn record(folder: &Path, sources: &Sources, origin: &Origin) -> io::Result<Vec<KeptConfig>> {
    fs::create_dir_all(folder)?;
    let mut kept = list(folder)?;
    let is_last = kept.first().is_some_and(|last| {
        let last = read(&last.kept_in);
        last.is_ok_and(|texts| texts.iter().map(pair).eq(sources.files()))
    });
    if !is_last {
        let version = kept.first().map_or(1, |last| last.version + 1);
        kept.insert(0, write(folder, version, sources, origin)?);
    }
    let mut bytes = 0;
    let fits = |kept: &&KeptConfig| {
        bytes += kept.bytes;
        bytes <= MOST_BYTES
    };
    let room = kept.iter().take(MOST_VERSIONS).take_while(fits).count();
    for old in kept.drain(room.max(1)..) {
        fs::remove_file(&old.kept_in)?;
    }
    Ok(kept)
}

/// As [`record`], but a failure is logged, and then returned as a sentence.
///
/// # Errors
/// The sentence.
pub fn try_record(
    folder: &Path,
    sources: &Sources,
    origin: &Origin,
) -> Result<Vec<KeptConfig>, String> {
    record(folder, sources, origin).map_err(|error| {
        log::warn!(
            "config not kept folder={:?} error={} effect=\"a rollback can't return to it\"",
            folder,
            InQuotes(&error)
        );
        format!(
            "the config is in force, but not in the history: {}: {error}",
            folder.display()
        )
    })
}

/// The texts of a version, each with the path of its file.
///
/// # Errors
/// `InvalidData` if it is not the file of a version; otherwise what the kernel says.
pub fn read(kept_in: &Path) -> io::Result<Vec<(PathBuf, String)>> {
    let bytes = fs::read(kept_in)?;
    let damaged = || io::Error::new(ErrorKind::InvalidData, "it is damaged");
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let (head, mut rest) = bytes.split_at(end.ok_or_else(damaged)? + 1);
    let head: Head = serde_json::from_slice(head)?;
    let mut texts = Vec::new();
    for HeadFile { path, bytes } in head.files {
        let length = usize::try_from(bytes).map_err(|_| damaged())?;
        let (text, after) = rest.split_at_checked(length).ok_or_else(damaged)?;
        let text = str::from_utf8(text).map_err(|_| damaged())?;
        texts.push((path, text.to_owned()));
        rest = after;
    }
    match rest.is_empty() && !texts.is_empty() {
        true => Ok(texts),
        false => Err(damaged()),
    }
}

/// What is kept, the last one first. A file that is damaged is left out.
fn list(folder: &Path) -> io::Result<Vec<KeptConfig>> {
    let mut kept = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let number = path
            .file_stem()
            .and_then(|stem| stem.to_str()?.parse().ok());
        let (Some(version), true) = (number, path.extension().is_some_and(|it| it == ENDING))
        else {
            continue;
        };
        match read_head(&path) {
            Ok(head) => kept.push(row(version, path, head)),
            Err(error) => log::warn!(
                "kept config not read file={:?} error={}",
                path,
                InQuotes(&error)
            ),
        }
    }
    kept.sort_by_key(|kept: &KeptConfig| std::cmp::Reverse(kept.version));
    Ok(kept)
}

fn read_head(path: &Path) -> io::Result<Head> {
    let mut line = Vec::new();
    let file = BufReader::new(File::open(path)?);
    io::Read::take(file, LONGEST_HEAD).read_until(b'\n', &mut line)?;
    Ok(serde_json::from_slice(&line)?)
}

fn write(
    folder: &Path,
    version: u64,
    sources: &Sources,
    origin: &Origin,
) -> io::Result<KeptConfig> {
    let file = |(path, text): (&Path, &str)| HeadFile {
        path: path.to_owned(),
        bytes: text.len() as u64,
    };
    let head = Head {
        at: clock::since_1970(clock::now()).as_secs_f64(),
        who: match (&origin.name, origin.user) {
            (Some(name), _) => name.clone(),
            (None, Some(user)) => name_of(user),
            (None, None) => "file".to_owned(),
        },
        how: origin.how.clone(),
        files: sources.files().map(file).collect(),
    };
    let path = folder.join(format!("{version}.{ENDING}"));
    let temporary = folder.join("new");
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(0o640);
    let mut file = options.open(&temporary)?;
    serde_json::to_writer(&mut file, &head)?;
    file.write_all(b"\n")?;
    for (_, text) in sources.files() {
        file.write_all(text.as_bytes())?;
    }
    file.sync_all()?;
    fs::rename(&temporary, &path)?;
    File::open(folder)?.sync_all()?;
    Ok(row(version, path, head))
}

fn row(version: u64, kept_in: PathBuf, head: Head) -> KeptConfig {
    KeptConfig {
        version,
        at: head.at,
        who: head.who,
        how: head.how,
        bytes: head.files.iter().map(|file| file.bytes).sum(),
        files: head.files.len() as u64,
        kept_in,
    }
}

fn pair((path, text): &(PathBuf, String)) -> (&Path, &str) {
    (path, text)
}

/// The name of a user, of those in /etc/passwd (passwd(5)): what a name service knows may take
/// seconds to tell.
pub fn name_of(user: u32) -> String {
    let file = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let named = file.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(user)).then(|| name.to_owned())
    });
    named.unwrap_or_else(|| format!("uid {user}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let name = format!("tandemgw-history-{name}-{}", std::process::id());
            Folder(std::env::temp_dir().join(name))
        }

        fn record(&self, text: &str) -> Vec<KeptConfig> {
            let mut sources = Sources::new(Path::new("/etc/a.toml"), text);
            sources
                .include(Path::new("/etc/b.toml"), "[[policy]]\nname = \"b\"")
                .unwrap();
            let origin = Origin {
                user: Some(0),
                name: None,
                how: "reload".to_owned(),
            };
            record(&self.0, &sources, &origin).unwrap()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn versions(kept: &[KeptConfig]) -> Vec<u64> {
        kept.iter().map(|it| it.version).collect()
    }

    #[test]
    fn texts_come_back_as_they_were() {
        let folder = Folder::new("texts");
        // Without a newline at its end.
        let kept = folder.record("[node]\nname = \"a\"");
        assert_eq!((kept[0].who.as_str(), kept[0].files), ("root", 2));
        let texts = read(&kept[0].kept_in).unwrap();
        assert_eq!(texts[0].0, Path::new("/etc/a.toml"));
        assert_eq!(texts[0].1, "[node]\nname = \"a\"");
        assert_eq!(texts[1].1, "[[policy]]\nname = \"b\"");
        // The same one again is no version.
        assert_eq!(versions(&folder.record("[node]\nname = \"a\"")), [1]);
        assert_eq!(versions(&folder.record("x = 1")), [2, 1]);
        assert_eq!(
            versions(&folder.record("[node]\nname = \"a\"")),
            [3, 2, 1],
            "one of before is"
        );
    }

    #[test]
    fn the_oldest_are_forgotten_and_what_is_damaged_is_left_out() {
        let folder = Folder::new("oldest");
        for n in 0..25 {
            folder.record(&format!("x = {n}"));
        }
        fs::write(folder.0.join("24.config"), "what?").unwrap();
        fs::write(folder.0.join("new"), "half").unwrap();
        fs::write(folder.0.join("notes.txt"), "mine").unwrap();
        let kept = folder.record("x = 25");
        let mut wanted: Vec<u64> = (6..=26).rev().collect();
        wanted.retain(|version| *version != 24);
        assert_eq!(versions(&kept), wanted);
        assert!(read(&folder.0.join("24.config")).is_err());
        // Large ones leave no room for old ones, but the last one is always kept.
        let kept = folder.record(&"x".repeat(MOST_BYTES as usize - 100));
        assert!(kept.len() > 1 && kept.len() <= 5, "{}", kept.len());
        let kept = folder.record(&"y".repeat(MOST_BYTES as usize + 100));
        assert_eq!(versions(&kept), [28]);
    }

    #[test]
    fn a_user_without_a_name_is_a_number() {
        assert_eq!(name_of(0), "root");
        assert_eq!(name_of(u32::MAX - 7), "uid 4294967288");
    }
}
