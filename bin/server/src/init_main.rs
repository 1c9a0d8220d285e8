//! `init`: writes krita.yaml, certificates and a token into the current directory, and loads example data.

use std::process::ExitCode;

use clap::Parser;
use krita_server::arguments::{InitCommand, InitNode};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments = InitCommand::parse();
    let result = match &arguments.node {
        None => krita_server::init::run(&arguments.init),
        Some(InitNode::Node(node)) => krita_server::node::run(node),
    };
    krita_server::finish("init", result)
}
