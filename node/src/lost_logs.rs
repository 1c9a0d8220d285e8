//! Logs that do not come back whole: what is damaged is kept aside, the shards begin anew, empty, and suspect.
//!
//! A shard that lost its log has forgotten entries and votes, so it must not be taken for a new one, whenever the
//! power goes. Hence a note is written first (`log-NNN.suspect`), durably, then the shards are made, then each is
//! marked in the log itself, and only then the note goes. A note that is found at a start is acted upon again.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use krita_engine::{Corruption, LogError, OpenError, RecoveredShard, Store};
use krita_runtime::Runtime;

use crate::cluster::Cluster;
use crate::config::Config;
use crate::core::NodeFailure;
use crate::open::{log_directory, log_options};
use crate::suspicion::{forgetful_text, key_range};

/// Longest note, in bytes.
const NOTE_BYTES_MAX: usize = 64 << 10;

/// How often a log that cannot be read is tried, and how long between.
const READ_ATTEMPTS: u32 = 5;
const READ_RETRY: Duration = Duration::from_millis(200);

/// Linux's number for a device that could not read or write.
const EIO: i32 = 5;

/// Damaged files of one log are kept aside this many times.
const ASIDE_MAX: u32 = 10_000;

/// Where the note about a log stands.
fn note_path(config: &Config, log: u16) -> PathBuf {
    config.data_directory.join(format!("log-{log:03}.suspect"))
}

/// Why the shards of a log are to be suspect, if they are.
pub(crate) async fn note<R: Runtime>(
    runtime: &R,
    config: &Config,
    log: u16,
) -> Result<Option<String>, NodeFailure> {
    let path = note_path(config, log);
    match runtime.read_small_file(&path, NOTE_BYTES_MAX).await {
        Ok(text) => Ok(Some(String::from_utf8_lossy(&text).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(NodeFailure(format!("{} cannot be read: {error}", path.display()))),
    }
}

/// Notes durably that all shards of a log are to be suspect. The first reason stays.
pub(crate) async fn make_note<R: Runtime>(
    runtime: &R,
    config: &Config,
    log: u16,
    reason: &str,
) -> Result<(), NodeFailure> {
    if note(runtime, config, log).await?.is_some() {
        return Ok(());
    }
    let path = note_path(config, log);
    let written = runtime.replace_small_file(&path, reason.as_bytes()).await;
    written.map_err(|error| NodeFailure(format!("{} cannot be written: {error}", path.display())))
}

/// Makes every shard of a log suspect, durably, and then takes the note back. The reasons come back with the shards.
pub(crate) async fn act_on_note<'a, R: Runtime>(
    runtime: &R,
    config: &Config,
    log: u16,
    store: &Store<R>,
    shards: impl Iterator<Item = &'a mut RecoveredShard>,
) -> Result<(), NodeFailure> {
    let Some(reason) = note(runtime, config, log).await? else { return Ok(()) };
    let text = forgetful_text(&reason);
    let failed = |error: LogError| NodeFailure(format!("log {log}: {error}"));
    for shard in shards {
        // What is known to be damaged is more than that.
        if shard.suspect.is_none() {
            store.mark_suspect(shard.shard, &text).await.map_err(failed)?;
            shard.suspect = Some(text.clone());
        }
    }
    let gone = async {
        runtime.remove_file(&note_path(config, log)).await?;
        runtime.sync_directory(&config.data_directory).await
    };
    gone.await.map_err(|error: io::Error| NodeFailure(format!("the note about log {log} stays: {error}")))
}

/// Opens a log. One that is damaged beyond what its shards can bear is kept aside, and an empty one takes its place;
/// that is noted before, and said by the last part of what comes back.
pub(crate) async fn open<R: Runtime>(
    runtime: &R,
    config: &Config,
    cluster: &Cluster,
    log: u16,
) -> Result<(Store<R>, Vec<RecoveredShard>, bool), NodeFailure> {
    let options = || log_options(config, log, cluster.logs_total);
    let failed = |error: &OpenError| NodeFailure(format!("log {log} cannot be opened: {error}"));
    let mut attempts = 0;
    let reason = loop {
        match krita_engine::open(runtime.clone(), options()).await {
            Ok((store, shards)) => return Ok((store, shards, false)),
            Err(OpenError::Corruption(corruption) | OpenError::ManifestLost(corruption)) => {
                break text_of(&corruption);
            }
            Err(OpenError::Io { path, source }) if is_unreadable(&source) => {
                attempts += 1;
                if attempts == READ_ATTEMPTS {
                    break format!("{} cannot be read: {source}", path.display());
                }
                runtime.sleep(READ_RETRY).await;
            }
            Err(error) => return Err(failed(&error)),
        }
    };
    refuse_if_alone(cluster, log, &reason)?;
    tracing::error!(log, reason, "a log is damaged: its shards are filled anew by their leaders");
    make_note(runtime, config, log, &reason).await?;
    let aside = set_aside(runtime, config, log).await;
    let aside = aside.map_err(|error| NodeFailure(format!("log {log} cannot be kept aside: {error}")))?;
    tracing::warn!(log, aside = %aside.display(), "the damaged files are kept; remove them once they are of no use");
    let (store, shards) =
        krita_engine::open(runtime.clone(), options()).await.map_err(|error| failed(&error))?;
    Ok((store, shards, true))
}

fn text_of(corruption: &Corruption) -> String {
    let range = corruption.sequences.map(|(first, last)| format!(", batches {first} to {last}"));
    format!("{corruption}{}", range.unwrap_or_default())
}

/// Whether the device did not give back what it holds: a bad sector, which is damage like any other, unless it gets
/// better by itself.
fn is_unreadable(error: &io::Error) -> bool {
    // Where the error has been wrapped, its text is left of it.
    error.raw_os_error() == Some(EIO) || error.to_string().contains("(os error 5)")
}

/// What only this node holds cannot be filled anew: the files must stay where they are, and somebody must decide.
pub(crate) fn refuse_if_alone(cluster: &Cluster, log: u16, reason: &str) -> Result<(), NodeFailure> {
    let alone: Vec<String> = cluster
        .shards_of(log)
        .filter(|shard| cluster.began_alone(*shard))
        .map(|shard| format!("shard {shard} ({})", key_range(shard, cluster.shard_count())))
        .collect();
    match alone.is_empty() {
        true => Ok(()),
        false => Err(NodeFailure(format!(
            "log {log} is damaged: {reason}. No other node holds {}: what it held is lost unless its files are \
             restored from a backup. To go on without, remove the data directory and begin anew",
            alone.join(", ")
        ))),
    }
}

/// Moves the files of a log into a folder beside it, and returns that folder.
async fn set_aside<R: Runtime>(runtime: &R, config: &Config, log: u16) -> io::Result<PathBuf> {
    let from = log_directory(config, log);
    let to = free_name(runtime, config, log).await?;
    runtime.create_directory(&to).await?;
    runtime.sync_directory(&config.data_directory).await?;
    for file in runtime.list_directory(&from).await? {
        let Some(name) = file.file_name() else { continue };
        runtime.rename(&from.join(name), &to.join(name)).await?;
    }
    runtime.sync_directory(&to).await?;
    runtime.sync_directory(&from).await?;
    Ok(to)
}

async fn free_name<R: Runtime>(runtime: &R, config: &Config, log: u16) -> io::Result<PathBuf> {
    let taken = runtime.list_directory(&config.data_directory).await?;
    let is_free =
        |name: &String| !taken.iter().any(|path| path.file_name() == Some(Path::new(name).as_os_str()));
    let name = (1..ASIDE_MAX).map(|number| format!("log-{log:03}.damaged-{number}")).find(is_free);
    let name = name.ok_or_else(|| io::Error::other("too many folders of damaged files"))?;
    Ok(config.data_directory.join(name))
}

/// The shards of a log that a start finds missing although they had been made: they begin anew, and suspect.
pub(crate) fn missing_reason(log: u16, missing: &[u32]) -> String {
    format!(
        "log {log} held {} shards that are not there any more: its files were removed or replaced",
        missing.len()
    )
}
