//! The example of the front page: a key, a condition, many keys at once, and a scan.
//!
//! It finds the cluster as all clients do: by `KRITA_*`, or by the folder in which `init` or the demo was run.

use kritaclient::{Client, Condition, Error, Operation, Options, Profile, Result, WriteOptions};

#[tokio::main]
async fn main() -> Result<()> {
    front_page(Profile::default().completed()?.options()?).await
}

/// Works for any cluster.
pub(crate) async fn front_page(options: Options) -> Result<()> {
    let client = Client::connect(options).await?;

    let written = client.put("testkey", "testvalue").await?;
    let entry = client.get("testkey").await?.expect("it was just put");
    assert_eq!((&entry.value[..], entry.version), (&b"testvalue"[..], written.version));

    // Compare-and-swap: only if nobody has changed the key since it was read.
    let condition = Condition::IfVersion(entry.version);
    let options = WriteOptions { condition, ..WriteOptions::default() };
    client.put_with("testkey", "another", options.clone()).await?;
    match client.put_with("testkey", "too late", options).await {
        Err(Error::ConditionFailed { current_version, .. }) => assert!(current_version > entry.version),
        Err(Error::UnknownOutcome(_)) => println!("it may have been applied: read the key"),
        other => panic!("the condition cannot hold: {other:?}"),
    }

    // Atomic per shard; each operation has a result of its own.
    for outcome in client.batch(vec![Operation::put("test1", "1"), Operation::put("test2", "2")]).await {
        outcome?;
    }

    let mut keys = client.list_keys("test");
    while let Some(key) = keys.next().await {
        println!("{}", String::from_utf8_lossy(&key?.key));
    }
    Ok(())
}
