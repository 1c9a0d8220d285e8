//! The example on the front page of the Rust client, run on a real cluster of three nodes with TLS.

#![allow(clippy::disallowed_methods, reason = "this test speaks to real processes")]

use krita_tests::process::Cluster;

#[allow(dead_code, reason = "its main function is for people")]
#[path = "../../clients/rust/examples/front_page.rs"]
mod front_page;

#[test]
fn the_example_of_the_front_page_runs() {
    let cluster = Cluster::start(3);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    let ended = runtime.block_on(front_page::front_page(cluster.client_options()));
    ended.unwrap_or_else(|error| panic!("{error}"));
}
