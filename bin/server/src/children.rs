//! Nodes as child processes of a command. They stop when the command closes their standard input, so that none
//! is left behind however the command ends.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::Failure;
use crate::wait;

/// How long a node may take to stop before it is killed.
const STOP_MAX: Duration = Duration::from_secs(10);

/// How a node is started.
pub(crate) struct NodeStart<'a> {
    /// Its name, for messages.
    pub(crate) name: String,
    /// Its krita.yaml.
    pub(crate) config: &'a Path,
    /// Where it writes its process id.
    pub(crate) pid_file: Option<PathBuf>,
    /// Where its standard output and error go.
    pub(crate) output: Option<PathBuf>,
    /// Keys that win over its file.
    pub(crate) set: &'a [&'a str],
}

/// A node that this command started.
pub(crate) struct NodeProcess {
    /// Its name.
    pub(crate) name: String,
    child: Child,
    ended: Option<ExitStatus>,
}

impl NodeProcess {
    /// Starts this very program as a node.
    pub(crate) fn start(start: &NodeStart<'_>) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::new(format!("cannot start {}: {error}", start.name));
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.arg("node").arg("--config").arg(start.config).arg("--stop-when-stdin-closes");
        if let Some(pid_file) = &start.pid_file {
            command.arg("--pid-file").arg(pid_file);
        }
        for set in start.set {
            command.arg("--set").arg(set);
        }
        // The caller's variables are meant for one node, or for a client; these nodes have files of their own.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("KRITA_") {
                command.env_remove(&name);
            }
        }
        command.stdin(Stdio::piped());
        if let Some(path) = &start.output {
            let file = std::fs::OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
            command.stderr(file.try_clone().map_err(failed)?).stdout(file);
        } else {
            command.stdout(Stdio::null());
        }
        let child = command.spawn().map_err(failed)?;
        Ok(Self { name: start.name.clone(), child, ended: None })
    }

    /// How it ended, the first time that this is seen.
    pub(crate) fn newly_ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_some() {
            return None;
        }
        self.ended = self.child.try_wait().ok().flatten();
        self.ended
    }

    fn is_running(&mut self) -> bool {
        self.newly_ended();
        self.ended.is_none()
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        if self.is_running() {
            // It may have ended just now.
            let _gone = self.child.kill();
            let _gone = self.child.wait();
        }
    }
}

/// Stops all, in good order if they let us. Returns the names of those that had to be killed.
pub(crate) fn stop_all(nodes: &mut [NodeProcess]) -> Vec<String> {
    for node in nodes.iter_mut() {
        drop(node.child.stdin.take());
    }
    let all_ended = || nodes.iter_mut().all(|node| !node.is_running()).then_some(());
    if wait::until(STOP_MAX, None, all_ended).is_ok() {
        return Vec::new();
    }
    let mut killed = Vec::new();
    for node in nodes.iter_mut().filter_map(|node| node.is_running().then_some(node)) {
        killed.push(node.name.clone());
        let _gone = node.child.kill();
        let _gone = node.child.wait();
    }
    killed
}
