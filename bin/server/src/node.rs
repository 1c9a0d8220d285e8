//! Runs a node in this process, from its configuration to its exit code.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use krita_node::config::Config;
use krita_node::{CoreMessage, NodeInput, StopSignal, run_core};
use krita_runtime::glommio::{
    GlommioHandoff, GlommioMesh, GlommioRuntime, NodeOptions, Preflight, Signal, Signals, preflight, signals,
    start,
};
use krita_runtime::{CoreId, Disk, Runtime, Spawn, TaskClass};

use crate::Failure;
use crate::arguments::NodeArguments;
use crate::files::{load_certificates, load_config};
use crate::log;

/// A node that was told to stop and has not by then is ended: whatever it has acknowledged is durable anyway.
const STOP_MAX: Duration = Duration::from_secs(9);

/// Segments that a new log starts with: the one being written, and the spare ones behind it.
const SEGMENTS_AT_START: u64 = 3;

/// Runs a node until it is told to stop.
///
/// # Errors
/// It cannot start. A node that fails later ends the process at once.
pub fn run(arguments: &NodeArguments) -> Result<(), Failure> {
    let loaded = load_config(arguments)?;
    let config = loaded.config;
    let certificates = load_certificates(&config)?;
    log::start(config.log_file.as_deref(), &config.log_level)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let options = NodeOptions { cores: cores(&config), ..NodeOptions::default() };
    let machine = preflight(&options).map_err(|error| Failure::new(error.to_string()))?;
    announce(&config, &options, &machine);
    let boot_id = getrandom::u64()
        .map_err(|error| Failure::new(format!("the system gives no random numbers: {error}")))?;
    let stop = StopSignal::default();
    let signals = signals()
        .map_err(|error| Failure::new(format!("cannot take over the process's signals: {error}")))?;
    if arguments.stop_when_stdin_closes {
        stop_when_stdin_closes(stop.clone())?;
    }
    let pid_file = arguments.pid_file.as_deref().map(PidFile::write).transpose()?;
    let is_fresh = fs::read_dir(&config.data_directory).map_or(true, |mut found| found.next().is_none());
    let input = Arc::new(NodeInput { config, certificates, boot_id, stop });
    let handle = start(options, move |runtime, mesh| {
        core_main(runtime, mesh, Arc::clone(&input), signals.clone(), is_fresh)
    })
    .map_err(|error| Failure::new(error.to_string()))?;
    handle.join().map_err(|error| Failure::new(error.to_string()))?;
    tracing::info!("stopped");
    drop(pid_file);
    Ok(())
}

fn cores(config: &Config) -> u16 {
    let available = || {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        u16::try_from(cores).unwrap_or(u16::MAX).min(1024)
    };
    config.cores.unwrap_or_else(available)
}

fn announce(config: &Config, options: &NodeOptions, machine: &Preflight) {
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        cluster = config.cluster_name,
        node = config.node_id,
        address = %config.bind_address,
        cores = options.cores,
        kernel = machine.kernel,
        data = %config.data_directory.display(),
        "starting"
    );
}

/// One core from its first to its last moment. A failure of one core is the node's.
async fn core_main(
    runtime: GlommioRuntime,
    mesh: GlommioMesh<CoreMessage<GlommioHandoff>>,
    input: Arc<NodeInput>,
    signals: Signals,
    is_fresh: bool,
) {
    if runtime.core() == CoreId(0) {
        if let Err(failure) = check_storage(&runtime, &input.config, is_fresh).await {
            give_up(&failure.0);
        }
        runtime.spawn(TaskClass::Foreground, "signals", obey(signals, input.stop.clone()));
    }
    if let Err(failure) = run_core(runtime, mesh, input).await {
        give_up(&failure.0);
    }
}

/// Ends the process at once: a node that cannot go on must not answer any more.
fn give_up(reason: &str) -> ! {
    tracing::error!("{reason}");
    log::flush();
    eprintln!("kritad: {reason}");
    std::process::exit(1);
}

async fn obey(signals: Signals, stop: StopSignal) {
    loop {
        match signals.next().await {
            Signal::Terminate | Signal::Interrupt => {
                tracing::info!("told to stop");
                begin_stop(&stop);
            }
            Signal::Hangup => tracing::info!("SIGHUP: nothing is read again while running; restart the node"),
        }
    }
}

/// Tells the node to stop, and sees to it that it does.
fn begin_stop(stop: &StopSignal) {
    stop.stop();
    let watch = || {
        // The sender lives as long as the receiver waits, so that this can only time out.
        let (_sender, receiver) = mpsc::channel::<()>();
        let _timed_out = receiver.recv_timeout(STOP_MAX);
        give_up("the node did not stop in time and is ended; nothing acknowledged is lost");
    };
    if let Err(error) = std::thread::Builder::new().name("krita-stop".to_owned()).spawn(watch) {
        tracing::warn!(%error, "nobody watches over the stop");
    }
}

fn stop_when_stdin_closes(stop: StopSignal) -> Result<(), Failure> {
    let watch = move || {
        let mut ignored = [0; 256];
        let mut stdin = std::io::stdin();
        while matches!(stdin.read(&mut ignored), Ok(1..)) {}
        tracing::info!("standard input closed: stopping");
        begin_stop(&stop);
    };
    std::thread::Builder::new()
        .name("krita-stdin".to_owned())
        .spawn(watch)
        .map(drop)
        .map_err(|error| Failure::new(format!("cannot start a thread: {error}")))
}

/// A new node needs room for its first segments; an old one has them. Both need the reserve.
async fn check_storage(runtime: &GlommioRuntime, config: &Config, is_fresh: bool) -> Result<(), Failure> {
    let folder = existing_parent(&config.data_directory);
    let segments = if is_fresh { u64::from(cores(config)) * SEGMENTS_AT_START } else { 0 };
    let needed = segments * config.segment_bytes + config.disk_reserve_bytes;
    let free = runtime.available_bytes(&folder).await.map_err(|error| {
        Failure::new(format!("cannot learn how much space {} has: {error}", folder.display()))
    })?;
    warn_of_small_reserve(config);
    if free >= needed {
        return Ok(());
    }
    Err(Failure::new(format!(
        "data directory {}: {} MiB are free, {} MiB are needed ({segments} segments of {} MiB, and \
         disk_reserve_bytes of {} MiB). Free some space, set data_directory to another disk, or lower segment_bytes, \
         cores or disk_reserve_bytes",
        config.data_directory.display(),
        free >> 20,
        needed >> 20,
        config.segment_bytes >> 20,
        config.disk_reserve_bytes >> 20,
    )))
}

/// A full log makes room by moving what is alive in one segment into another, which comes out of the reserve.
fn warn_of_small_reserve(config: &Config) {
    let wanted = u64::from(cores(config)) * config.segment_bytes;
    if config.disk_reserve_bytes < wanted {
        tracing::warn!(
            disk_reserve_bytes = config.disk_reserve_bytes,
            wanted_bytes = wanted,
            "the reserve is smaller than a segment for each core: on a full disk, deletes may make no room"
        );
    }
}

/// The folder itself, or the nearest one above it that exists.
fn existing_parent(path: &Path) -> PathBuf {
    let here = || PathBuf::from(".");
    let exists = |folder: &&Path| !folder.as_os_str().is_empty() && folder.is_dir();
    path.ancestors().find(exists).map_or_else(here, Path::to_owned)
}

/// The file that names this process; removed at an orderly end.
struct PidFile(PathBuf);

impl PidFile {
    fn write(path: &Path) -> Result<Self, Failure> {
        fs::write(path, format!("{}\n", std::process::id()))
            .map_err(|error| Failure::new(format!("cannot write {}: {error}", path.display())))?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Whoever reads a pid file checks whether the process lives.
        let _gone_or_stale = fs::remove_file(&self.0);
    }
}
