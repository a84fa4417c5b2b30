//! The Hello as bytes; it is read in `codec.rs`.

use super::message::{Hello, MAX_FRAME};

/// Appends a Hello whose frame begins at `start`; names that have no room are left out.
pub(super) fn write_hello(out: &mut Vec<u8>, hello: &Hello, start: usize) {
    let (epoch, seq) = hello.resume.unwrap_or_default();
    out.extend_from_slice(&hello.version.to_be_bytes());
    out.extend_from_slice(&hello.epoch.to_be_bytes());
    out.push(hello.group_id);
    out.push(u8::from(hello.resume.is_some()));
    out.extend_from_slice(&epoch.to_be_bytes());
    out.extend_from_slice(&seq.to_be_bytes());
    out.extend_from_slice(&hello.ruleset);
    out.extend_from_slice(&hello.max_sessions.to_be_bytes());
    write_name(out, &hello.node);
    for list in [&hello.ports, &hello.groups, &hello.policies] {
        let place = out.len();
        out.extend_from_slice(&[0, 0]);
        let mut count: u16 = 0;
        for name in list.iter().take(usize::from(u16::MAX)) {
            // Room for this name, for the counts that follow, for the program and the settings.
            let after = 16
                + 256
                + hello.settings.size()
                + size_of_names(&hello.units)
                + size_of_names(&hello.weights);
            if out.len() - start + name.len() + after > MAX_FRAME {
                break;
            }
            write_name(out, name);
            count += 1;
        }
        out[place..place + 2].copy_from_slice(&count.to_be_bytes());
    }
    write_name(out, hello.program.as_deref().unwrap_or_default());
    out.push(u8::from(hello.settings.is_complete));
    let items = &hello.settings.items;
    out.extend_from_slice(&(items.len() as u16).to_be_bytes());
    for (name, hash) in items {
        write_name(out, name);
        out.extend_from_slice(&hash.to_be_bytes());
    }
    out.extend_from_slice(&(hello.units.len() as u16).to_be_bytes());
    for name in &hello.units {
        write_name(out, name);
    }
    out.push(u8::from(hello.takes_configs));
    out.extend_from_slice(&(hello.weights.len() as u16).to_be_bytes());
    for name in &hello.weights {
        write_name(out, name);
    }
    out.extend(hello.copies);
}

fn size_of_names(names: &[String]) -> usize {
    2 + names.iter().map(|name| 1 + name.len()).sum::<usize>()
}

/// A name, cut to 255 bytes: the config allows no longer ones.
fn write_name(out: &mut Vec<u8>, name: &str) {
    let name = &name.as_bytes()[..name.len().min(255)];
    out.push(name.len() as u8);
    out.extend_from_slice(name);
}
