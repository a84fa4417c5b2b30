//! Files that nobody but their owner may read.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Makes the file `path` with mode 0600. An existing file, or a symbolic link to somewhere else, is
/// left alone (open(2), `O_EXCL` and `O_NOFOLLOW`): the folder may be one that others write to,
/// such as /tmp.
///
/// # Errors
/// `AlreadyExists` if there is something of that name; what the kernel says otherwise.
pub fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let options = options.write(true).create_new(true).mode(0o600);
    options.custom_flags(libc::O_NOFOLLOW).open(path)
}
