//! `krita-bench`: a closed-loop load generator.
use crate::Failure;
/// What can be typed.
#[derive(clap::Parser, Debug)]
pub struct BenchArguments {}
/// Runs it.
pub fn run(_: &BenchArguments) -> Result<(), Failure> {
    Ok(())
}
