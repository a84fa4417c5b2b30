//! The file that holds the secret key of this unit.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use super::private_file;
use crate::node_key::NodeKey;
use tandemgw_core::config::HaPeer;
use tandemgw_core::ha::PortKeys;
use tandemgw_core::identity::PublicKey;

/// Far more than a key file has.
const MAX_BYTES: u64 = 4096;

/// Makes a new key, writes it to `path` with mode 0600, and returns its public half.
///
/// Fails if there is a file already: a key that is lost can't be made again.
pub fn generate(path: &Path) -> io::Result<PublicKey> {
    let mut seed = Zeroizing::new([0; 32]);
    SystemRandom::new()
        .fill(&mut seed[..])
        .map_err(|_| io::Error::other("the kernel gave no random bytes"))?;
    let key = NodeKey::from_seed(*seed);
    let mut file = private_file::create(path).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => explain(
            path,
            &error,
            "exists and is not overwritten; choose another name, or remove it first",
        ),
        _ => explain(path, &error, "can't be made"),
    })?;
    file.write_all(key.to_file_text().as_bytes())?;
    file.sync_all()?;
    Ok(key.public())
}

/// The keys that this unit shares with a peer for the data ports. It is logged if there are none.
pub fn port_keys(key: &NodeKey, peer: &HaPeer) -> Option<PortKeys> {
    let keys = key.port_keys(PublicKey(peer.public_key));
    if keys.is_none() {
        log::warn!(
            "public key is not usable on the data ports peer={} effect=\"the peer is not recognised there\" \
             remedy=\"set the key that `tandemgw pubkey` prints on that unit\"",
            peer.name
        );
    }
    keys
}

/// Reads the key in `path`.
///
/// Fails if others than the owner can read the file, or if it holds no key.
pub fn load(path: &Path) -> io::Result<NodeKey> {
    let file = File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => explain(
            path,
            &error,
            "belongs to another user than the gateway runs as (the service runs as tandemgw: \
             `chown tandemgw FILE`), or its folder is closed",
        ),
        _ => explain(path, &error, "can't be opened"),
    })?;
    let mode = file.metadata()?.mode();
    if mode & 0o077 != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "the key {0} can be read by others (mode {1:04o}): run `chmod 600 {0}`, and if \
                 somebody may have read it, make a new one with `tandemgw keygen`",
                path.display(),
                mode & 0o7777
            ),
        ));
    }
    // As much as is read, so that no copy is left behind where it grew.
    let mut text = Zeroizing::new(String::with_capacity(MAX_BYTES as usize + 1));
    file.take(MAX_BYTES)
        .read_to_string(&mut text)
        .map_err(|error| explain(path, &error, "can't be read"))?;
    NodeKey::from_file_text(&text).map_err(|error| {
        let error = io::Error::new(io::ErrorKind::InvalidData, error);
        explain(path, &error, "is not usable")
    })
}

fn explain(path: &Path, error: &io::Error, what: &str) -> io::Error {
    let text = format!("the key {} {what}: {error}", path.display());
    io::Error::new(error.kind(), text)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;

    /// A path in a directory of its own, removed at the end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let dir = std::env::temp_dir().join(format!("key-file-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir(&dir).unwrap();
            Scratch(dir)
        }

        fn key(&self) -> PathBuf {
            self.0.join("node.key")
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_generated_key_loads_and_is_private() {
        let scratch = Scratch::new("load");
        let public = generate(&scratch.key()).unwrap();
        assert_eq!(load(&scratch.key()).unwrap().public(), public);
        let mode = fs::metadata(scratch.key()).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o600);
    }

    #[test]
    fn an_existing_file_is_not_overwritten() {
        let scratch = Scratch::new("overwrite");
        fs::write(scratch.key(), "precious").unwrap();
        let error = generate(&scratch.key()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(scratch.key()).unwrap(), "precious");
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_remedy() {
        let scratch = Scratch::new("mode");
        generate(&scratch.key()).unwrap();
        for mode in [0o640, 0o604, 0o660] {
            fs::set_permissions(scratch.key(), Permissions::from_mode(mode)).unwrap();
            let error = load(&scratch.key()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
    }

    #[test]
    fn what_is_no_key_is_named() {
        let scratch = Scratch::new("text");
        generate(&scratch.key()).unwrap();
        fs::write(scratch.key(), "hello").unwrap();
        let error = load(&scratch.key()).unwrap_err().to_string();
        assert!(
            error.contains("node.key") && error.contains("first line"),
            "{error}"
        );
    }
}
