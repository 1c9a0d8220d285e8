//! `kritactl debug`: reads files of a stopped node through the engine's inspector, and prints what is there.

use std::io::{self, Write};
use std::path::Path;

use krita_engine::inspect::{
    BatchInfo, Directory, Findings, LogContext, RecordInfo, SegmentItem, inspect_checkpoint, inspect_log,
    inspect_manifest, inspect_run, inspect_segment,
};

use crate::control::files::{Folder, OpenFile, logs, named};
use crate::control::{Debug, FileArguments, json, lock, text};
use crate::failure::Failure;
use crate::output::Printer;

/// Does what was typed behind `debug`.
///
/// # Errors
/// A file cannot be read, a node uses it, or damage was found.
pub fn run(command: &Debug, print: &mut Printer<'_>) -> Result<(), Failure> {
    let files = match command {
        Debug::Log { files, .. }
        | Debug::Segment { files, .. }
        | Debug::Run { files, .. }
        | Debug::Checkpoint { files }
        | Debug::Manifest { files, .. } => files,
    };
    refuse_if_in_use(files)?;
    let damaged = match command {
        Debug::Log { files, records } => log(files, *records, print)?,
        Debug::Segment { files, records, batch } => {
            let which = match (records, batch) {
                (true, _) => Which::All,
                (false, Some(batch)) => Which::One(*batch),
                (false, None) => Which::None,
            };
            segment(files, which, print)?
        }
        Debug::Run { files, keys } => run_file(files, *keys, print)?,
        Debug::Checkpoint { files } => checkpoint(files, print)?,
        Debug::Manifest { files, frames } => manifest(files, *frames, print)?,
    };
    print.end_list()?;
    if !damaged {
        return Ok(());
    }
    if !files.force && lock::is_in_use(&files.path)? {
        warn(
            "a node was started meanwhile: what looks like damage may be its writes; stop it and look again",
        );
    }
    Err(Failure::Damaged)
}

fn warn(what: &str) {
    let _closed = writeln!(io::stderr(), "kritactl: {what}");
}

fn refuse_if_in_use(files: &FileArguments) -> Result<(), Failure> {
    let path = &files.path;
    if !lock::is_in_use(path).map_err(|error| named(path, error))? {
        return Ok(());
    }
    if !files.force {
        return Err(Failure::Refused(format!(
            "{}: a running node uses it; stop the node, or look all the same with --force",
            path.display()
        )));
    }
    warn("a running node uses these files: what it writes meanwhile may look like damage");
    Ok(())
}

/// Which batches are listed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    None,
    All,
    One(u64),
}

/// Prints batches and records as they come.
struct Lister<'o, 'w> {
    print: &'o mut Printer<'w>,
    which: Which,
    /// Whether the records that come belong to a batch that is listed.
    listing: bool,
}

impl Lister<'_, '_> {
    fn show(&mut self, item: SegmentItem<'_>) -> io::Result<()> {
        match item {
            SegmentItem::Batch(batch) => {
                self.listing = self.which == Which::All || self.which == Which::One(batch.sequence);
                if self.listing { self.batch(batch) } else { Ok(()) }
            }
            SegmentItem::Record(record, _) if self.listing => self.record(record),
            SegmentItem::Record(..) => Ok(()),
        }
    }

    fn batch(&mut self, batch: &BatchInfo) -> io::Result<()> {
        self.print.item(|out| text::batch(out, batch), || json::batch(batch))
    }

    fn record(&mut self, record: &RecordInfo) -> io::Result<()> {
        self.print.item(|out| text::record(out, record), || json::record(record))
    }
}

fn log(files: &FileArguments, records: bool, print: &mut Printer<'_>) -> Result<bool, Failure> {
    let mut damaged = false;
    for path in logs(&files.path)? {
        let which = if records { Which::All } else { Which::None };
        let mut lister = Lister { print: &mut *print, which, listing: false };
        let report = inspect_log(&Folder(path.clone()), files.nonce, &mut |item| lister.show(item))?;
        if report.context.is_none() && !report.findings.damaged() {
            let what =
                format!("{}: no log: name a folder such as log-000, or a data directory", path.display());
            return Err(Failure::Refused(what));
        }
        damaged |= report.findings.damaged();
        let path = path.display().to_string();
        print.item(|out| text::log(out, &path, &report), || json::log(&path, &report))?;
    }
    Ok(damaged)
}

/// The folder of a file and its name.
fn place(path: &Path) -> (Folder, String) {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    (Folder(parent.to_owned()), name)
}

/// What the manifest beside a file says of the log, or the nonce that was typed.
fn context(files: &FileArguments) -> Result<LogContext, Failure> {
    let (folder, _) = place(&files.path);
    let mut identity = None;
    for name in folder.names()?.iter().filter(|name| name.starts_with("manifest-")) {
        let report = inspect_manifest(folder.open(name)?.as_ref(), name, &mut |_| Ok(()))?;
        identity = report.identity.or(identity);
    }
    match (files.nonce, identity) {
        (None, Some(identity)) => Ok(identity.context()),
        (Some(nonce), Some(identity)) => Ok(LogContext { nonce, ..identity.context() }),
        (Some(nonce), None) => Ok(LogContext::with_nonce(nonce)),
        (None, None) => Err(Failure::Refused(format!(
            "{}: no manifest beside it tells the seed of its checksums: name it by --nonce",
            files.path.display()
        ))),
    }
}

fn segment(files: &FileArguments, which: Which, print: &mut Printer<'_>) -> Result<bool, Failure> {
    let context = context(files)?;
    let (_, name) = place(&files.path);
    let file = OpenFile::open(&files.path)?;
    let mut lister = Lister { print: &mut *print, which, listing: false };
    let report = inspect_segment(&file, &name, context, &mut |item| lister.show(item))?;
    print.item(
        |out| {
            text::segment(out, &report.summary)?;
            text::findings(out, &report.findings)
        },
        || verdict(json::segment(&report.summary), &report.findings),
    )?;
    Ok(report.findings.damaged())
}

fn verdict(mut value: serde_json::Value, findings: &Findings) -> serde_json::Value {
    json::verdict(&mut value, findings);
    value
}

fn run_file(files: &FileArguments, keys: bool, print: &mut Printer<'_>) -> Result<bool, Failure> {
    let context = context(files)?;
    let (_, name) = place(&files.path);
    let file = OpenFile::open(&files.path)?;
    let report = inspect_run(&file, &name, context, &mut |item| match keys {
        false => Ok(()),
        true => print.item(|out| text::run_item(out, &item), || json::run_item(&item)),
    })?;
    print.item(|out| text::run(out, &report), || verdict(json::run(&report), &report.findings))?;
    Ok(report.findings.damaged())
}

fn checkpoint(files: &FileArguments, print: &mut Printer<'_>) -> Result<bool, Failure> {
    let context = context(files)?;
    let (_, name) = place(&files.path);
    let report = inspect_checkpoint(&OpenFile::open(&files.path)?, &name, context)?;
    print.item(
        |out| text::checkpoint(out, &report),
        || verdict(json::checkpoint(&report), &report.findings),
    )?;
    Ok(report.findings.damaged())
}

fn manifest(files: &FileArguments, frames: bool, print: &mut Printer<'_>) -> Result<bool, Failure> {
    let (_, name) = place(&files.path);
    let file = OpenFile::open(&files.path)?;
    let report = inspect_manifest(&file, &name, &mut |frame| match frames {
        false => Ok(()),
        true => print.item(|out| text::frame(out, frame), || json::frame(frame)),
    })?;
    print.item(
        |out| {
            text::manifest(out, &report)?;
            text::findings(out, &report.findings)
        },
        || verdict(json::manifest(&report), &report.findings),
    )?;
    Ok(report.findings.damaged())
}
