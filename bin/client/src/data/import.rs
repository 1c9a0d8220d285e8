//! `import`: puts the keys and values of a file, piece by piece.
//!
//! A file is read twice: first all of it is checked, then it is put. How far that is stands in `FILE.import-state`
//! after each piece, so that an interrupted import goes on there; a piece that was put twice is put once.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::path::Path;

use bytes::Bytes;
use kritaclient::Error;
use kritaclient::blocking::Client;
use serde_json::{Value, json};

use super::arguments::AgainArguments;
use super::export::beside;
use super::lines::{Line, Lines, parse};
use super::write::open;
use crate::connection::Target;
use crate::failure::Failure;
use crate::output::Printer;
use crate::progress::Progress;

/// A piece has at most so many keys, and not much more than so many bytes.
const PIECE_KEYS: usize = 4_096;
const PIECE_BYTES: usize = 8 * 1024 * 1024;

/// How often a piece is tried while nodes come and go; each time has the whole time-out.
const ATTEMPTS: usize = 5;

/// Checks a file, and counts.
pub(super) fn check(file: &Path, print: &mut Printer<'_>) -> Result<(), Failure> {
    let keys = if file == Path::new("-") {
        checked(io::stdin().lock(), "stdin", |_| ())?
    } else {
        let progress = Progress::of_bytes("checking", length(file)?);
        checked(BufReader::new(open(file)?), &file.display().to_string(), |at| progress.at(at))?
    };
    report(print, file, keys, true)
}

/// Imports a file, or stdin.
pub(super) fn run(
    file: &Path,
    again: AgainArguments,
    target: &Target,
    print: &mut Printer<'_>,
) -> Result<(), Failure> {
    if file == Path::new("-") {
        if again.resume {
            return Err(Failure::Usage("--resume needs a file: stdin cannot be read again".to_owned()));
        }
        let client = target.client()?;
        let mut import = Import { client, keys: 0, piece: Piece::default() };
        import.put_all(io::stdin().lock(), 0, "stdin", |_, _| Ok(()))?;
        return report(print, file, import.keys, false);
    }
    let name = file.display().to_string();
    let bytes = length(file)?;
    let cluster_name = target.options()?.cluster_name;
    let state_file = beside(file, ".import-state");
    let begun = begun(&state_file, again)?;
    let state = match begun {
        None => State { cluster_name, bytes, offset: 0, keys: 0 },
        Some(state) if state.bytes == bytes && state.cluster_name == cluster_name => state,
        Some(_) => {
            return Err(Failure::Refused(format!(
                "{name} or the cluster is another one than when the import began: begin anew with --restart"
            )));
        }
    };
    let checking = Progress::of_bytes("checking", bytes);
    let total = checked(BufReader::new(open(file)?), &name, |at| checking.at(at))?;
    drop(checking);
    let progress = Progress::of_bytes("importing", bytes);
    let mut import = Import { client: target.client()?, keys: state.keys, piece: Piece::default() };
    let mut from = BufReader::new(open(file)?);
    from.seek(SeekFrom::Start(state.offset))?;
    import.put_all(from, state.offset, &name, |offset, keys| {
        progress.at(offset);
        let state = State { cluster_name: state.cluster_name.clone(), bytes, offset, keys };
        state.write(&state_file)
    })?;
    drop(progress);
    if import.keys != total {
        return Err(Failure::Refused(format!(
            "{} keys were put, but {name} has {total}: it was changed meanwhile; begin anew with --restart",
            import.keys
        )));
    }
    remove(&state_file)?;
    report(print, file, total, false)
}

fn report(print: &mut Printer<'_>, file: &Path, keys: u64, dry_run: bool) -> Result<(), Failure> {
    let name = file.display().to_string();
    let verb = if dry_run { "would import" } else { "imported" };
    print.result(
        |out| writeln!(out, "{verb} {keys} keys from {name}"),
        || json!({ "file": name, "keys": keys, "dry_run": dry_run }),
    )?;
    Ok(())
}

fn length(file: &Path) -> Result<u64, Failure> {
    match open(file)?.metadata() {
        Ok(found) if found.is_file() => Ok(found.len()),
        Ok(_) => Err(Failure::Refused(format!(
            "{} is no regular file; pipe it in: import - < {0}",
            file.display()
        ))),
        Err(error) => Err(Failure::Refused(format!("cannot read {}: {error}", file.display()))),
    }
}

/// What an interrupted import left, if it shall be gone on with.
fn begun(state_file: &Path, again: AgainArguments) -> Result<Option<State>, Failure> {
    let name = state_file.display();
    match (again.resume, again.restart, state_file.exists()) {
        (true, _, true) => State::read(state_file).map(Some),
        (true, _, false) => {
            Err(Failure::Refused(format!("there is no {name} to go on from; leave --resume out")))
        }
        (false, true, _) => remove(state_file).map(|()| None),
        (false, false, false) => Ok(None),
        (false, false, true) => Err(Failure::Refused(format!(
            "{name} is there from an interrupted import: go on with --resume, or begin anew with --restart"
        ))),
    }
}

fn remove(state_file: &Path) -> Result<(), Failure> {
    match fs::remove_file(state_file) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::Refused(format!("cannot remove {}: {error}", state_file.display()))),
    }
}

/// Goes over a whole file. Returns how many keys it has.
fn checked(from: impl BufRead, name: &str, at: impl Fn(u64)) -> Result<u64, Failure> {
    let mut lines = Lines::new(from, 0);
    let mut order = Order::default();
    while let Some(line) = next(&mut lines, name, 0)? {
        order.take(&line).map_err(|reason| wrong(name, &lines, &reason, 0))?;
        at(lines.offset);
    }
    order.end().map_err(|reason| Failure::Refused(format!("{name}: {reason}; nothing was imported")))?;
    Ok(order.keys)
}

fn next<R: BufRead>(lines: &mut Lines<R>, name: &str, keys: u64) -> Result<Option<Line>, Failure> {
    let line = match lines.next() {
        Ok(None) => return Ok(None),
        Ok(Some(line)) => parse(line),
        Err(error) => Err(error.to_string()),
    };
    line.map(Some).map_err(|reason| wrong(name, lines, &reason, keys))
}

fn wrong<R>(name: &str, lines: &Lines<R>, reason: &str, keys: u64) -> Failure {
    let done = match keys {
        0 => "nothing was imported".to_owned(),
        keys => format!("{keys} keys before it were imported"),
    };
    Failure::Refused(format!("{name}, line {}: {reason}; {done}", lines.number))
}

/// What may follow what. A file without a first line of its own is a list of pairs from elsewhere.
#[derive(Default)]
struct Order {
    keys: u64,
    has_header: bool,
    has_end: bool,
}

impl Order {
    fn take(&mut self, line: &Line) -> Result<(), String> {
        if self.has_end {
            return Err("there is more behind the last line of the export".to_owned());
        }
        match line {
            Line::Pair(..) => self.keys += 1,
            Line::Header(_) if self.keys == 0 && !self.has_header => self.has_header = true,
            Line::Header(_) => return Err("the first line of an export in the middle of another".to_owned()),
            Line::End(keys) if *keys != self.keys => {
                return Err(format!("the export had {keys} keys, the file has {}", self.keys));
            }
            Line::End(_) => self.has_end = true,
        }
        Ok(())
    }

    fn end(&self) -> Result<(), String> {
        if self.has_header && !self.has_end {
            return Err("the export's last line is missing: the file is cut off".to_owned());
        }
        Ok(())
    }
}

/// Pairs that are put together.
#[derive(Default)]
struct Piece {
    pairs: Vec<(Bytes, Bytes)>,
    /// A key may come once in a piece.
    keys: BTreeSet<Bytes>,
    bytes: usize,
}

impl Piece {
    fn is_full_for(&self, key: &Bytes) -> bool {
        self.pairs.len() >= PIECE_KEYS || self.bytes >= PIECE_BYTES || self.keys.contains(key)
    }
}

struct Import<'c> {
    client: &'c Client,
    /// Acknowledged, those before this attempt included.
    keys: u64,
    piece: Piece,
}

impl Import<'_> {
    /// Puts everything from `offset` on. After each piece `at` is told up to which byte all is put, and how many keys
    /// that are.
    fn put_all(
        &mut self,
        from: impl BufRead,
        offset: u64,
        name: &str,
        mut at: impl FnMut(u64, u64) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut lines = Lines::new(from, offset);
        let mut order = Order { has_header: offset > 0, keys: self.keys, has_end: false };
        loop {
            let before = lines.offset;
            let line = next(&mut lines, name, self.keys)?;
            let is_full = match &line {
                None => true,
                Some(Line::Pair(key, _)) => self.piece.is_full_for(key),
                Some(Line::Header(_) | Line::End(_)) => false,
            };
            if is_full && !self.piece.pairs.is_empty() {
                self.put_piece()?;
                at(before, self.keys)?;
            }
            let Some(line) = line else { break };
            // From elsewhere, a file has neither first nor last line; what was checked before is in order.
            order.take(&line).map_err(|reason| wrong(name, &lines, &reason, self.keys))?;
            if let Line::Pair(key, value) = line {
                self.piece.bytes += key.len() + value.len();
                self.piece.keys.insert(key.clone());
                self.piece.pairs.push((key, value));
            }
        }
        let is_whole = offset > 0 || order.end().is_ok();
        if is_whole {
            return Ok(());
        }
        Err(Failure::Refused(format!("{name} is cut off; {} keys that it had were imported", self.keys)))
    }

    fn put_piece(&mut self) -> Result<(), Failure> {
        let piece = std::mem::take(&mut self.piece);
        let count = piece.pairs.len() as u64;
        let mut pairs = piece.pairs;
        for attempt in 1..=ATTEMPTS {
            let results = self.client.put_many(pairs.clone());
            let mut failed = None;
            let mut left = Vec::new();
            for (pair, result) in pairs.into_iter().zip(results) {
                if let Err(error) = result {
                    failed = Some(error);
                    left.push(pair);
                }
            }
            match failed {
                None => break,
                // To put the same twice is to put it once, so an unknown outcome may be tried again as well.
                Some(Error::Unavailable(_) | Error::UnknownOutcome(_)) if attempt < ATTEMPTS => pairs = left,
                Some(error) => {
                    let done = format!(
                        "{} keys are imported; the same command with --resume goes on (from a pipe: all again)",
                        self.keys
                    );
                    return Err(Failure::Interrupted { error, done });
                }
            }
        }
        self.keys += count;
        Ok(())
    }
}

/// How far an import is: the contents of its state file.
#[derive(Clone, PartialEq, Eq, Debug)]
struct State {
    cluster_name: String,
    /// The length of the file, by which another one is told from it.
    bytes: u64,
    /// All lines before this byte are put.
    offset: u64,
    keys: u64,
}

impl State {
    fn read(path: &Path) -> Result<Self, Failure> {
        let unreadable = |reason: String| {
            Failure::Refused(format!(
                "{} cannot be read ({reason}); begin anew with --restart",
                path.display()
            ))
        };
        let text = fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))?;
        let value: Value = serde_json::from_str(&text).map_err(|error| unreadable(error.to_string()))?;
        let number = |name: &str| value[name].as_u64().ok_or_else(|| unreadable(format!("no {name}")));
        let cluster_name = value["cluster_name"].as_str().unwrap_or_default().to_owned();
        let state =
            Self { cluster_name, bytes: number("bytes")?, offset: number("offset")?, keys: number("keys")? };
        if state.offset > state.bytes {
            Err(unreadable("it is beyond the end".to_owned()))
        } else {
            Ok(state)
        }
    }

    /// Replaces it whole, so that it can be read at any moment.
    fn write(&self, path: &Path) -> Result<(), Failure> {
        let text = json!({
            "cluster_name": self.cluster_name,
            "bytes": self.bytes,
            "offset": self.offset,
            "keys": self.keys,
        });
        let new = beside(path, ".new");
        let written = File::create(&new)
            .and_then(|mut file| io::Write::write_all(&mut file, format!("{text}\n").as_bytes()))
            .and_then(|()| fs::rename(&new, path));
        written.map_err(|error| Failure::Refused(format!("cannot write {}: {error}", path.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::lines::{Header, end_line, pair_line};

    fn check_lines(lines: &[String]) -> Result<u64, String> {
        checked((lines.join("\n") + "\n").as_bytes(), "f", |_| ()).map_err(|error| error.message().unwrap())
    }

    #[test]
    fn a_file_is_whole_or_refused() {
        let header = Header { cluster_name: "c".to_owned(), prefix: Bytes::new() }.line();
        let pair = |key: &str| pair_line(key.as_bytes(), b"v", 1);
        let whole = vec![header.clone(), pair("a"), pair("b"), end_line(2)];
        assert_eq!(check_lines(&whole), Ok(2));
        assert_eq!(check_lines(&[pair("a"), pair("a")]), Ok(2), "a list from elsewhere needs no ends");
        for (lines, reason) in [
            (whole[..3].to_vec(), "cut off"),
            (vec![header.clone(), pair("a"), end_line(2)], "line 3: the export had 2 keys, the file has 1"),
            ([&whole[..], &[pair("c")]].concat(), "line 5: there is more"),
            (vec![pair("a"), header.clone()], "in the middle"),
            (vec![header, "{\"key\":\"a\"}".to_owned()], "line 2: no \"value\""),
        ] {
            let error = check_lines(&lines).unwrap_err();
            assert!(error.contains(reason) && error.contains("nothing was imported"), "{error}");
        }
    }

    #[test]
    fn a_state_reads_back() {
        let path = std::env::temp_dir().join(format!("krita-import-{}", std::process::id()));
        let state = State { cluster_name: "c".to_owned(), bytes: 10, offset: 7, keys: 3 };
        state.write(&path).unwrap();
        assert_eq!(State::read(&path).unwrap(), state);
        fs::write(&path, "{\"bytes\":1,\"offset\":2,\"keys\":0}").unwrap();
        assert!(matches!(State::read(&path), Err(Failure::Refused(_))));
        fs::remove_file(&path).unwrap();
    }
}
