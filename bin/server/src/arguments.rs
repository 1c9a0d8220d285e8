//! The command lines of `kritad` and `init`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

const AFTER_HELP: &str = "\
Without a command, a node is run from krita.yaml in the current directory. KRITA_* variables win over the file, flags
over both; docs/configuration.md lists all keys. RUST_LOG says what is logged.";

/// Runs a node of Krita, or a whole demonstration cluster.
#[derive(Parser, Debug)]
#[command(name = "kritad", version, after_help = AFTER_HELP, args_conflicts_with_subcommands = true)]
pub struct Arguments {
    /// How the node is run.
    #[command(flatten)]
    pub node: NodeArguments,
    /// Something else than running a node.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// `init` as a command of its own.
#[derive(Parser, Debug)]
#[command(name = "init", version)]
pub struct InitCommand {
    /// What to lay out.
    #[command(flatten)]
    pub init: InitArguments,
    /// How `init` starts itself as the node that it loads the example data into.
    #[command(subcommand)]
    pub node: Option<InitNode>,
}

/// The hidden command of `init`.
#[derive(Subcommand, Debug)]
pub enum InitNode {
    /// Runs a node.
    #[command(hide = true)]
    Node(NodeArguments),
}

/// What `kritad` does.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Runs a cluster of nodes on this machine, with example data, until Ctrl-C.
    Demo(DemoArguments),
    /// Writes krita.yaml, certificates and a token into the current directory, and loads example data.
    Init(InitArguments),
    /// Runs a node; the same as no command.
    #[command(hide = true)]
    Node(NodeArguments),
}

/// How a node is run.
#[derive(Args, Debug, Clone, Default)]
pub struct NodeArguments {
    /// The configuration file [default: krita.yaml].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The cluster's name.
    #[arg(long, value_name = "NAME")]
    pub cluster_name: Option<String>,
    /// This node's name.
    #[arg(long, value_name = "NAME")]
    pub node_id: Option<String>,
    /// Where everything durable lives.
    #[arg(long, value_name = "FOLDER")]
    pub data_directory: Option<String>,
    /// The one port.
    #[arg(long)]
    pub port: Option<u16>,
    /// The folder with ca.crt, node.crt and node.key.
    #[arg(long, value_name = "FOLDER")]
    pub tls_cert_path: Option<String>,
    /// The admin token; prefer KRITA_TOKEN, which other users cannot see.
    #[arg(long)]
    pub token: Option<String>,
    /// Plain text instead of TLS, and no token needed: for trials on one machine.
    #[arg(long)]
    pub insecure: bool,
    /// Any other key of krita.yaml.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Write the process id here; removed at an orderly end.
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Stop in good order when standard input closes: for programs that start nodes.
    #[arg(long)]
    pub stop_when_stdin_closes: bool,
}

/// How the demo is run.
#[derive(Args, Debug)]
pub struct DemoArguments {
    /// How many nodes [default: 3, or as many as there were].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=9))]
    pub nodes: Option<u16>,
    /// The first node's port; the others follow [default: 8080, or what it was].
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..=65_000))]
    pub base_port: Option<u16>,
    /// Where the demo keeps its state.
    #[arg(long, value_name = "FOLDER", default_value = ".krita-demo")]
    pub directory: PathBuf,
}

/// What `init` lays out.
#[derive(Args, Debug)]
pub struct InitArguments {
    /// How many nodes; more than one get a folder each.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=9))]
    pub nodes: u16,
    /// The first node's port; further nodes get the next ones.
    #[arg(long, alias = "base-port", default_value_t = 8080, value_parser = clap::value_parser!(u16).range(1..=65_000))]
    pub port: u16,
    /// The cluster's name.
    #[arg(long, value_name = "NAME", default_value = "mycluster")]
    pub cluster_name: String,
    /// Load no example data.
    #[arg(long)]
    pub no_examples: bool,
}

impl NodeArguments {
    /// The flags as keys of krita.yaml with their values; an error names the `--set` that is none.
    pub fn keys(&self) -> Result<Vec<(String, String)>, String> {
        let port = self.port.map(|port| port.to_string());
        let named = [
            ("cluster_name", &self.cluster_name),
            ("node_id", &self.node_id),
            ("data_directory", &self.data_directory),
            ("port", &port),
            ("tls_cert_path", &self.tls_cert_path),
            ("token", &self.token),
        ];
        let given = named.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value.clone()?)));
        let mut keys: Vec<(String, String)> = given.collect();
        if self.insecure {
            keys.push(("insecure".to_owned(), "true".to_owned()));
        }
        for set in &self.set {
            let (key, value) =
                set.split_once('=').ok_or_else(|| format!("--set {set}: give KEY=VALUE, as in cores=2"))?;
            keys.push((key.trim().to_owned(), value.to_owned()));
        }
        Ok(keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_lines_are_consistent() {
        Arguments::command().debug_assert();
        InitCommand::command().debug_assert();
    }

    #[test]
    fn flags_become_keys() {
        let line = "kritad --port 9 --insecure --set cores=2 --set log_level=a=debug";
        let arguments = Arguments::parse_from(line.split(' '));
        let keys = arguments.node.keys().unwrap();
        let keys: Vec<_> = keys.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(keys, [("port", "9"), ("insecure", "true"), ("cores", "2"), ("log_level", "a=debug")]);
        assert!(Arguments::parse_from(["kritad", "--set", "x"]).node.keys().is_err());
    }

    #[test]
    fn commands_are_told_from_flags() {
        let demo = Arguments::parse_from(["kritad", "demo", "--nodes", "1"]);
        assert!(matches!(demo.command, Some(Command::Demo(DemoArguments { nodes: Some(1), .. }))));
        assert!(Arguments::try_parse_from(["kritad", "--port", "1", "demo"]).is_err());
        assert!(Arguments::try_parse_from(["kritad", "demo", "--nodes", "0"]).is_err());
    }
}
