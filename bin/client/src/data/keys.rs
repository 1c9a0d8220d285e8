//! `list-keys` and `scan`: keys in order, printed as they come, in bounded memory however many there are.

use bytes::Bytes;
use kritaclient::blocking::{Client, Scan};
use kritaclient::{Error, ScanItem, ScanOptions};

use super::arguments::{RangeArguments, key_bytes};
use crate::connection::Target;
use crate::failure::Failure;
use crate::output::Printer;
use crate::print;

/// What is listed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum What {
    /// Keys.
    Keys,
    /// Keys and their values.
    Values,
}

/// Prints a range.
pub(super) fn list(
    range: &RangeArguments,
    what: What,
    target: &Target,
    print: &mut Printer<'_>,
) -> Result<(), Failure> {
    let mut options = options(range)?;
    options.keys_only = what == What::Keys;
    let mut scan = Patient::new(target.client()?, options);
    for item in scan.by_ref() {
        print::scanned(print, &item?, what == What::Values)?;
    }
    scan.say_what_it_saw();
    Ok(print.end_list()?)
}

/// The range that was typed: within the prefix, and narrowed by the ends.
fn options(range: &RangeArguments) -> Result<ScanOptions, Failure> {
    let bytes = |text: &Option<String>| {
        text.as_ref().map(|text| key_bytes(text, range.base64)).transpose().map(Option::unwrap_or_default)
    };
    let mut options = ScanOptions::prefix(key_bytes(&range.prefix, range.base64)?);
    options.start = options.start.max(bytes(&range.start)?);
    if range.start_after.is_some() {
        options.start = options.start.max(behind(&bytes(&range.start_after)?));
    }
    let end = bytes(&range.end)?;
    // An empty end is no end.
    if range.end.is_some() && (options.end.is_empty() || end < options.end) {
        options.end = end;
    }
    options.limit = range.limit;
    options.consistency = range.consistency.consistency();
    if !options.end.is_empty() && options.start >= options.end {
        options.limit = Some(0);
    }
    Ok(options)
}

/// The next key that there can be.
fn behind(key: &[u8]) -> Bytes {
    [key, &[0]].concat().into()
}

/// A scan that goes on behind its last key when a node was lost on the way, as long as it gets anywhere.
pub(super) struct Patient<'c> {
    client: &'c Client,
    options: ScanOptions,
    scan: Scan,
    has_moved: bool,
    was_broken_off: bool,
}

impl<'c> Patient<'c> {
    pub(super) fn new(client: &'c Client, options: ScanOptions) -> Self {
        let scan = client.scan(options.clone());
        Self { client, options, scan, has_moved: false, was_broken_off: false }
    }

    /// Tells the person if shards were seen as of several moments, or by what no quorum confirmed.
    fn say_what_it_saw(&self) {
        let versions = self.scan.versions();
        let newer = versions.values().filter(|version| version.is_newer).count();
        let stale = versions.values().filter(|version| version.is_stale).count();
        if newer > 0 || self.was_broken_off {
            eprintln!(
                "note: some shards were seen as of one moment up to some key, and of a later one from there on"
            );
        }
        if stale > 0 {
            eprintln!("note: no quorum confirmed what {stale} shards gave");
        }
    }

    /// The keys of a prefix from behind a key on.
    pub(super) fn of_prefix(client: &'c Client, prefix: &Bytes, after: Option<&[u8]>) -> Self {
        let mut options = ScanOptions::prefix(prefix.clone());
        if let Some(after) = after {
            options.start = behind(after);
        }
        Self::new(client, options)
    }

    /// The same without values.
    pub(super) fn keys_of_prefix(client: &'c Client, prefix: &Bytes) -> Self {
        Self::new(client, ScanOptions::prefix(prefix.clone()).keys_only())
    }
}

impl Iterator for Patient<'_> {
    type Item = Result<ScanItem, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.scan.next()? {
                Ok(item) => {
                    self.has_moved = true;
                    self.options.start = behind(&item.key);
                    self.options.limit = self.options.limit.map(|limit| limit.saturating_sub(1));
                    return Some(Ok(item));
                }
                Err(Error::Unavailable(_)) if self.has_moved => {
                    self.has_moved = false;
                    self.was_broken_off = true;
                    self.scan = self.client.scan(self.options.clone());
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Arguments, Command};
    use clap::Parser;

    fn range(line: &str) -> (Bytes, Bytes, Option<u64>) {
        let words = ["kritaclient", "scan"].into_iter().chain(line.split_whitespace());
        let Command::Scan(range) = Arguments::parse_from(words).command else { panic!("{line}") };
        let options = options(&range).unwrap();
        (options.start, options.end, options.limit)
    }

    #[test]
    fn ranges_are_narrowed() {
        for (line, start, end, limit) in [
            ("", "", "", None),
            ("b", "b", "c", None),
            ("b --start a --end z", "b", "c", None),
            ("b --start b5 --end b7 --limit 3", "b5", "b7", Some(3)),
            ("--start-after b5", "b5\0", "", None),
            ("b --start c", "c", "c", Some(0)),
            ("b --end a", "b", "a", Some(0)),
            ("/w== --base64", "\u{fffd}", "", None),
        ] {
            let found = range(line);
            assert_eq!((found.1.as_ref(), found.2), (end.as_bytes(), limit), "{line}");
            let expected = if line.contains("base64") { &[0xff][..] } else { start.as_bytes() };
            assert_eq!(found.0.as_ref(), expected, "{line}");
        }
    }
}
