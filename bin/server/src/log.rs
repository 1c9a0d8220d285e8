//! Where log lines go: standard error or a file, written by a thread of their own so that no core waits for it.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::Failure;

/// Lines that wait to be written, at most; further ones are counted and dropped.
const LINES_MAX: usize = 8192;

/// How long an ending process waits for its last lines.
const FLUSH_MAX: Duration = Duration::from_secs(1);

static WRITER: OnceLock<SyncSender<Message>> = OnceLock::new();
static DROPPED: AtomicU64 = AtomicU64::new(0);

enum Message {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

/// Starts logging for this process. `RUST_LOG` wins over `level`.
///
/// # Errors
/// The file cannot be opened, or a filter is not valid.
pub fn start(file: Option<&Path>, level: &str) -> Result<(), Failure> {
    let from_environment = std::env::var("RUST_LOG").ok().filter(|filter| !filter.trim().is_empty());
    let (source, filter) = match &from_environment {
        Some(filter) => ("RUST_LOG", filter.as_str()),
        None => ("log_level", level),
    };
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        Failure::new(format!("{source} is \"{filter}\": {error}; give error, warn, info, debug or trace"))
    })?;
    let (out, is_terminal): (Box<dyn Write + Send>, bool) = match file {
        None => (Box::new(io::stderr()), io::stderr().is_terminal()),
        Some(path) => {
            let file = OpenOptions::new().create(true).append(true).open(path);
            let file = file.map_err(|error| {
                Failure::new(format!(
                    "cannot open the log file {}: {error}; correct log_file",
                    path.display()
                ))
            })?;
            (Box::new(file), false)
        }
    };
    let (sender, receiver) = sync_channel(LINES_MAX);
    std::thread::Builder::new()
        .name("krita-log".to_owned())
        .spawn(move || write_lines(&receiver, out))
        .map_err(|error| Failure::new(format!("cannot start a thread for the log: {error}")))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(is_terminal)
        .with_writer(Lines(sender.clone()))
        .try_init()
        .map_err(|error| Failure::new(format!("cannot start the log: {error}")))?;
    // The subscriber was started just now, for the first time.
    WRITER.get_or_init(|| sender);
    Ok(())
}

/// Waits, within a bound, until all lines so far are written. Call it before the process ends.
pub fn flush() {
    let Some(writer) = WRITER.get() else { return };
    let (done, wait) = sync_channel(1);
    if writer.try_send(Message::Flush(done)).is_ok() {
        let _written_or_late = wait.recv_timeout(FLUSH_MAX);
    }
}

fn write_lines(lines: &Receiver<Message>, mut out: Box<dyn Write + Send>) {
    for message in lines {
        // A log that cannot be written must not end the node that it tells of.
        let _written = match message {
            Message::Line(line) => out.write_all(&line),
            Message::Flush(done) => {
                let flushed = out.flush();
                // Whoever asked may have given up waiting.
                let _told = done.try_send(());
                flushed
            }
        };
        let dropped = DROPPED.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            let _written = writeln!(out, "{dropped} log lines were dropped: they came too fast");
        }
    }
}

/// Gives each event a writer.
struct Lines(SyncSender<Message>);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(&self.0)
    }
}

/// Takes one event, which the formatter writes at once.
struct Line<'a>(&'a SyncSender<Message>);

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.try_send(Message::Line(bytes.to_vec())).is_err() {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
