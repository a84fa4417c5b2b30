//! Replaces files as a whole: a reader, and a machine that loses power, see the old or the new one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Replaces a file, keeping its mode, and its owner and group as far as this user may give files
/// away: a service that is not root, but may write to the folder, becomes the owner.
///
/// # Errors
/// What the kernel says; the file is as before then.
pub fn replace(file: &Path, text: &str) -> io::Result<()> {
    replace_all(&[(file.to_owned(), text.to_owned())])
}

/// Replaces several files. All new ones are on the disk before the first one takes its place, so
/// that only the end of the machine can leave some old and some new ones.
///
/// # Errors
/// What the kernel says about the first file that fails. Before the last step nothing has changed.
pub fn replace_all(files: &[(PathBuf, String)]) -> io::Result<()> {
    let mut staged: Vec<(PathBuf, PathBuf)> = Vec::new();
    let mut result = Ok(());
    for (file, text) in files {
        match stage(file, files, text) {
            Ok(names) => staged.push(names),
            Err(error) => {
                let what = format!("{}: {error}", file.display());
                result = Err(io::Error::new(error.kind(), what));
                break;
            }
        }
    }
    // The config's own file comes first in a list, and last here: it includes the others.
    for (temporary, file) in staged.iter().rev().filter(|_| result.is_ok()) {
        if let Err(error) = fs::rename(temporary, file) {
            result = Err(error);
            break;
        }
    }
    if result.is_err() {
        for (temporary, _) in &staged {
            // Some have taken their place.
            let _ = fs::remove_file(temporary);
        }
    }
    result?;
    for (_, file) in &staged {
        File::open(folder(file))?.sync_all()?;
    }
    Ok(())
}

/// The folder of a file.
pub fn folder(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        Some(folder) => folder,
        None => Path::new("/"),
    }
}

/// Writes the new content beside the file; returns where it is, and where it belongs.
fn stage(file: &Path, all: &[(PathBuf, String)], text: &str) -> io::Result<(PathBuf, PathBuf)> {
    // A link is to stay one.
    let file = match fs::canonicalize(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => file.to_owned(),
        found => found?,
    };
    let like = match fs::metadata(&file) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let first = all.first().map_or(file.as_path(), |(first, _)| first);
            fs::metadata(first)?
        }
        found => found?,
    };
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let temporary = file.with_file_name(format!(".{name}.new"));
    // Left by a process that was killed; a running one would hold the lock of the folder.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let written = write_like(&temporary, &like, text);
    if written.is_err() {
        // It may never have been created.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    Ok((temporary, file))
}

fn write_like(file: &Path, like: &fs::Metadata, text: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut new = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)?;
    new.write_all(text.as_bytes())?;
    let own = new.metadata()?;
    if (own.uid(), own.gid()) != (like.uid(), like.gid()) {
        give_away(&new, like)?;
    }
    new.set_permissions(fs::Permissions::from_mode(like.mode() & 0o7777))?;
    new.sync_all()
}

/// Only root may give a file to another user; to a group, its members may.
fn give_away(file: &File, like: &fs::Metadata) -> io::Result<()> {
    for (user, group) in [
        (Some(like.uid()), Some(like.gid())),
        (None, Some(like.gid())),
    ] {
        match std::os::unix::fs::fchown(file, user, group) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
            done => return done,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_files_are_replaced_or_none() {
        let folder = std::env::temp_dir().join(format!("tandemgw-replace-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let at = |name: &str| folder.join(name);
        let read = |name: &str| fs::read_to_string(at(name)).unwrap_or_default();
        fs::write(at("a"), "old").unwrap();
        fs::set_permissions(at("a"), fs::Permissions::from_mode(0o640)).unwrap();
        let both = [(at("a"), "1".to_owned()), (at("b"), "2".to_owned())];
        replace_all(&both).unwrap();
        assert_eq!((read("a"), read("b")), ("1".into(), "2".into()));
        let mode = |name: &str| fs::metadata(at(name)).unwrap().mode() & 0o7777;
        assert_eq!((mode("a"), mode("b")), (0o640, 0o640));
        let third = (at("absent/c"), "3".to_owned());
        let error = replace_all(&[(at("a"), "4".to_owned()), third]).unwrap_err();
        assert!(error.to_string().contains("absent/c"), "{error}");
        assert_eq!(read("a"), "1", "nothing has changed");
        let mut names: Vec<_> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["a", "b"], "nothing is left behind");
        fs::remove_dir_all(&folder).unwrap();
    }
}
