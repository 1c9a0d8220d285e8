//! `export`: keys and values as lines, see [`super::lines`].
//!
//! The file itself is the cursor: an interrupted export goes on behind the last whole line of `FILE.part`. Only a
//! complete one gets its name, so what is called `FILE` is never half an export.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde_json::json;

use super::arguments::AgainArguments;
use super::keys::Patient;
use super::lines::{Header, Line, Lines, end_line, pair_line, parse};
use crate::connection::Target;
use crate::failure::Failure;
use crate::output::Printer;
use crate::progress::Progress;

/// Bytes that are held before they are written to the file.
const OUT_BYTES: usize = 1024 * 1024;

/// Exports to a file, or to stdout.
pub(super) fn run(
    file: &Path,
    prefix: &str,
    again: AgainArguments,
    target: &Target,
    print: &mut Printer<'_>,
) -> Result<(), Failure> {
    let prefix = Bytes::from(prefix.to_owned());
    let header = Header { cluster_name: target.options()?.cluster_name, prefix };
    if file == Path::new("-") {
        return to_stdout(&header, target, print);
    }
    let part = beside(file, ".part");
    refuse_surprises(file, &part, again)?;
    let named = |error: io::Error| Failure::Refused(format!("cannot write {}: {error}", part.display()));
    let client = target.client()?;
    let (mut out, mut done) = if again.resume {
        resumed(&part, &header)?
    } else {
        (File::create(&part).map_err(named)?, Done::default())
    };
    let mut written = BufWriter::with_capacity(OUT_BYTES, &mut out);
    if done.bytes == 0 {
        done.write(&mut written, &header.line()).map_err(named)?;
    }
    let progress = Progress::of_unknown("exporting");
    for item in Patient::of_prefix(client, &header.prefix, done.last.as_deref()) {
        let item = match item {
            Ok(item) => item,
            Err(error) => {
                written.flush().map_err(named)?;
                let done = format!(
                    "{} keys are in {}; the same command with --resume goes on",
                    done.keys,
                    part.display()
                );
                return Err(Failure::Interrupted { error, done });
            }
        };
        done.write(&mut written, &pair_line(&item.key, &item.value, item.version)).map_err(named)?;
        done.keys += 1;
        progress.at(done.keys);
    }
    drop(progress);
    done.write(&mut written, &end_line(done.keys)).map_err(named)?;
    written.flush().map_err(named)?;
    drop(written);
    out.sync_all().map_err(named)?;
    fs::rename(&part, file).map_err(named)?;
    let name = file.display().to_string();
    print.result(
        |out| writeln!(out, "exported {} keys to {name} ({} bytes)", done.keys, done.bytes),
        || json!({ "file": name, "keys": done.keys, "bytes": done.bytes }),
    )?;
    Ok(())
}

fn to_stdout(header: &Header, target: &Target, print: &mut Printer<'_>) -> Result<(), Failure> {
    let mut keys = 0;
    let line = |print: &mut Printer<'_>, line: String| print.bytes((line + "\n").as_bytes());
    let client = target.client()?;
    line(print, header.line())?;
    for item in Patient::of_prefix(client, &header.prefix, None) {
        let item = item?;
        line(print, pair_line(&item.key, &item.value, item.version))?;
        keys += 1;
    }
    Ok(line(print, end_line(keys))?)
}

/// A file's name with something behind it.
pub(super) fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Nothing that is there is replaced or taken for something else unless it was asked for.
fn refuse_surprises(file: &Path, part: &Path, again: AgainArguments) -> Result<(), Failure> {
    let (name, part_name) = (file.display(), part.display());
    match (again.restart, again.resume, file.exists(), part.exists()) {
        (true, _, _, _) | (false, false, false, false) | (false, true, _, true) => Ok(()),
        (false, true, true, false) => Err(Failure::Refused(format!("{name} is complete already"))),
        (false, true, false, false) => {
            Err(Failure::Refused(format!("there is no {part_name} to go on with; leave --resume out")))
        }
        (false, false, _, true) => Err(Failure::Refused(format!(
            "{part_name} is there from an interrupted export: go on with --resume, or begin anew with --restart"
        ))),
        (false, false, true, false) => Err(Failure::Refused(format!(
            "{name} is there already: choose another name, or replace it with --restart"
        ))),
    }
}

/// How far an export is.
#[derive(Default, PartialEq, Eq, Debug)]
struct Done {
    keys: u64,
    bytes: u64,
    last: Option<Bytes>,
}

impl Done {
    fn write(&mut self, out: &mut impl Write, line: &str) -> io::Result<()> {
        out.write_all(line.as_bytes())?;
        out.write_all(b"\n")?;
        self.bytes += line.len() as u64 + 1;
        Ok(())
    }

    /// Goes over what an interrupted export has written, up to the first line that is not whole, or not in order.
    fn of(part: impl io::BufRead, header: &Header) -> Result<Self, Failure> {
        let mut done = Self::default();
        let mut lines = Lines::new(part, 0);
        let mut is_first = true;
        while let Some(line) = lines.next()? {
            if !line.ends_with(b"\n") {
                break;
            }
            match parse(line) {
                Ok(Line::Header(found)) if is_first && found == *header => {}
                Ok(Line::Header(found)) if is_first => {
                    return Err(Failure::Refused(format!(
                        "it is an export of another cluster or prefix ({}); begin anew with --restart",
                        found.line()
                    )));
                }
                Ok(Line::Pair(key, _)) if !is_first && done.last.as_ref().is_none_or(|last| *last < key) => {
                    done.keys += 1;
                    done.last = Some(key);
                }
                Ok(_) | Err(_) => break,
            }
            is_first = false;
            done.bytes = lines.offset;
        }
        Ok(done)
    }
}

/// The file of an interrupted export, cut behind its last whole line.
fn resumed(part: &Path, header: &Header) -> Result<(File, Done), Failure> {
    let named = |error: io::Error| Failure::Refused(format!("cannot go on with {}: {error}", part.display()));
    let mut file = OpenOptions::new().read(true).write(true).open(part).map_err(named)?;
    let done = match Done::of(BufReader::new(&file), header) {
        Ok(done) => done,
        Err(Failure::Io(error)) => return Err(named(error)),
        Err(Failure::Refused(reason)) => {
            return Err(Failure::Refused(format!("cannot go on with {}: {reason}", part.display())));
        }
        Err(other) => return Err(other),
    };
    file.set_len(done.bytes).map_err(named)?;
    file.seek(SeekFrom::End(0)).map_err(named)?;
    Ok((file, done))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupted_export_goes_on_behind_its_last_whole_line() {
        let header = Header { cluster_name: "c".to_owned(), prefix: Bytes::new() };
        let lines = [header.line(), pair_line(b"a", b"1", 1), pair_line(b"b", b"2", 2)];
        let whole = lines.join("\n") + "\n";
        for cut in 0..=whole.len() {
            let done = Done::of(&whole.as_bytes()[..cut], &header).unwrap();
            let lines_whole = whole[..cut].matches('\n').count();
            assert_eq!(done.keys, lines_whole.saturating_sub(1) as u64, "{cut}");
            let end = whole[..cut].rfind('\n').map_or(0, |at| at + 1);
            assert_eq!(done.bytes, end as u64, "{cut}");
        }
        let disordered = format!("{whole}{}\n", pair_line(b"a", b"3", 3));
        assert_eq!(Done::of(disordered.as_bytes(), &header).unwrap().bytes, whole.len() as u64);
        let other = Header { prefix: "p".into(), ..header };
        assert!(matches!(Done::of(whole.as_bytes(), &other), Err(Failure::Refused(_))));
    }
}
