//! The Hello as bytes.

use super::codec::{Reader, Result};
use super::message::{Hello, MAX_FRAME};
use super::settings::Settings;

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
                + size_of_names(&hello.weights)
                + size_of_names(hello.cuts.as_deref().unwrap_or_default());
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
    write_names(out, &hello.units);
    out.push(u8::from(hello.takes_configs));
    write_names(out, &hello.weights);
    out.extend(hello.copies);
    if let Some(cuts) = &hello.cuts {
        write_names(out, cuts);
    }
}

impl Reader<'_> {
    /// Reads a Hello.
    pub(super) fn hello(&mut self) -> Result<Hello> {
        let (version, epoch, group_id) = (self.u16()?, self.u64()?, self.u8()?);
        let (has_resume, resume) = (self.u8()?, (self.u64()?, self.u64()?));
        Ok(Hello {
            version,
            epoch,
            group_id,
            resume: (has_resume != 0).then_some(resume),
            ruleset: self.array()?,
            max_sessions: self.u32()?,
            node: self.name()?,
            ports: self.names()?,
            groups: self.names()?,
            policies: self.names()?,
            // Units up to 0.1.0 end here.
            program: self.name().ok().filter(|name| !name.is_empty()),
            settings: self.settings().unwrap_or_default(),
            units: self.names().unwrap_or_default(),
            takes_configs: self.u8().is_ok_and(|features| features & 1 != 0),
            weights: self.names().unwrap_or_default(),
            copies: self.u8().ok(),
            cuts: self.names().ok(),
        })
    }

    fn settings(&mut self) -> Result<Settings> {
        let is_complete = self.u8()? != 0;
        let items = (0..self.u16()?).map(|_| Ok((self.name()?, self.u32()?)));
        Ok(Settings {
            is_complete,
            items: items.collect::<Result<_>>()?,
        })
    }
}

fn write_names(out: &mut Vec<u8>, names: &[String]) {
    out.extend_from_slice(&(names.len() as u16).to_be_bytes());
    names.iter().for_each(|name| write_name(out, name));
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
