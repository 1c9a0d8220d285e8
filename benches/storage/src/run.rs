//! Starts phases as children of this program, and keeps loaded stores for the commands that only read.

use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use krita_runtime::glommio::{NodeOptions, block_on};

use crate::phase::{self, Outcome, Phase, Task, Written};
use crate::stores::fjall::OpenFjall;
use crate::stores::krita::OpenKrita;
use crate::stores::redb::OpenRedb;
#[cfg(feature = "rocksdb")]
use crate::stores::rocksdb::OpenRocksdb;
use crate::stores::{Budget, Failure, StoreKind};
use crate::work::Work;

/// Beside a store's directory: it holds every key as first put, and nothing else was written to it.
const LOADED: &str = "loaded.json";

/// Where stores are laid out, and what they are given.
#[derive(Clone, Debug)]
pub struct Bench {
    /// The directory for all of them.
    pub directory: PathBuf,
    /// Which stores, in the order of the tables.
    pub stores: Vec<StoreKind>,
    /// Keep loaded stores for the next command.
    pub keep: bool,
}

impl Bench {
    fn home(&self, store: StoreKind, work: Work) -> PathBuf {
        self.directory.join(format!("{}-{}-{}", store.name(), work.keys, work.value_bytes))
    }

    /// A phase of a store that is about this work.
    pub fn phase(&self, store: StoreKind, work: Work, budget: Budget, task: Task) -> Phase {
        Phase { store, directory: self.home(store, work).join("data"), work, budget, task }
    }

    /// Loads a store, unless an earlier command left it loaded. What the load cost is remembered with it.
    pub fn load(&self, store: StoreKind, work: Work, budget: Budget) -> Result<Written, Failure> {
        let home = self.home(store, work);
        let marker = home.join(LOADED);
        if let Ok(text) = fs::read_to_string(&marker)
            && let Ok((kept, written)) = serde_json::from_str::<(Work, Written)>(&text)
            && kept == work
        {
            return Ok(written);
        }
        remove(&home)?;
        fs::create_dir_all(&home)?;
        eprintln!("{}: loading {} keys with values of {} bytes", store.name(), work.keys, work.value_bytes);
        let Outcome::Written(written) = run_child(&self.phase(store, work, budget, Task::Load))? else {
            return Err("a load tells what it wrote".into());
        };
        fs::write(marker, serde_json::to_string(&(work, &written))?)?;
        Ok(written)
    }

    /// What is written from now on is no longer what was loaded.
    pub fn spoil(&self, store: StoreKind, work: Work) -> Result<(), Failure> {
        Ok(fs::remove_file(self.home(store, work).join(LOADED))?)
    }

    /// Removes a store, unless it is loaded and to be kept.
    pub fn finish(&self, store: StoreKind, work: Work) -> Result<(), Failure> {
        let home = self.home(store, work);
        if self.keep && home.join(LOADED).exists() {
            return Ok(());
        }
        remove(&home)
    }
}

fn remove(directory: &Path) -> Result<(), Failure> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// A phase in a process of its own; killed if this goes before it ends.
pub struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    /// Starts it.
    pub fn start(phase: &Phase) -> Result<Self, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("phase").arg(serde_json::to_string(phase)?).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().ok_or("stdout was piped")?;
        Ok(Self { child, lines: BufReader::new(stdout).lines() })
    }

    /// The next outcome that it tells.
    pub fn next(&mut self) -> Result<Outcome, Failure> {
        match self.lines.next() {
            Some(line) => Ok(serde_json::from_str(&line?)?),
            None => Err(format!("a phase ended without an outcome: {}", self.child.wait()?).into()),
        }
    }

    /// Ends it as a crash of its process would (SIGKILL).
    pub fn kill(mut self) -> Result<(), Failure> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a phase in a process of its own.
pub fn run_child(phase: &Phase) -> Result<Outcome, Failure> {
    let mut running = Running::start(phase)?;
    let outcome = running.next()?;
    let status = running.child.wait()?;
    if status.success() { Ok(outcome) } else { Err(format!("a phase failed: {status}").into()) }
}

/// The work of such a process.
pub fn run_here(phase: &Phase) -> Result<(), Failure> {
    let outcome = match phase.store {
        StoreKind::Krita => {
            let main = |runtime| async move { phase::run(&OpenKrita { runtime }, phase).await };
            block_on(NodeOptions::default(), main)?
        }
        StoreKind::Fjall | StoreKind::FjallBlobs => {
            let blobs = phase.store == StoreKind::FjallBlobs;
            pollster::block_on(phase::run(&OpenFjall { blobs }, phase))
        }
        StoreKind::Redb => pollster::block_on(phase::run(&OpenRedb, phase)),
        #[cfg(feature = "rocksdb")]
        StoreKind::Rocksdb | StoreKind::RocksdbBlobs => {
            let blobs = phase.store == StoreKind::RocksdbBlobs;
            pollster::block_on(phase::run(&OpenRocksdb { blobs }, phase))
        }
        #[cfg(not(feature = "rocksdb"))]
        StoreKind::Rocksdb | StoreKind::RocksdbBlobs => Err("built without the feature rocksdb".into()),
    };
    phase::tell(&outcome?)
}

/// What was set for a store, in a few words.
pub fn settings(store: StoreKind, budget: Budget) -> Result<String, Failure> {
    Ok(match store {
        StoreKind::Krita => OpenKrita::settings(budget),
        StoreKind::Fjall => OpenFjall { blobs: false }.settings(budget),
        StoreKind::FjallBlobs => OpenFjall { blobs: true }.settings(budget),
        StoreKind::Redb => OpenRedb.settings(budget),
        #[cfg(feature = "rocksdb")]
        StoreKind::Rocksdb => OpenRocksdb { blobs: false }.settings(budget),
        #[cfg(feature = "rocksdb")]
        StoreKind::RocksdbBlobs => OpenRocksdb { blobs: true }.settings(budget),
        #[cfg(not(feature = "rocksdb"))]
        StoreKind::Rocksdb | StoreKind::RocksdbBlobs => {
            return Err("built without the feature rocksdb".into());
        }
    })
}
