//! The way to each peer: its name, its port, a hello with the cluster's name and the token, and its clock.

use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kritaclient::blocking::Client;
use kritaclient::{Error, Profile};

use super::Check;

/// How long one step of the way may take.
const STEP_MAX: Duration = Duration::from_secs(3);

/// How far a peer's clock may be from ours before somebody should look, in milliseconds.
const CLOCK_DIFFERENCE_MAX_MS: i64 = 500;

/// Peers that are asked at once.
const AT_ONCE: usize = 32;

/// All peers' checks, in the order of the peers.
pub(super) fn checks(known: &Profile) -> Vec<Check> {
    let addresses = if known.nodes.is_empty() { vec![known.address()] } else { known.nodes.clone() };
    let mut checks = Vec::new();
    for some in addresses.chunks(AT_ONCE) {
        thread::scope(|scope| {
            let asked: Vec<_> = some.iter().map(|address| scope.spawn(|| peer(address, known))).collect();
            for asked in asked {
                checks.push(asked.join().expect("asking a peer does not panic"));
            }
        });
    }
    checks
}

fn peer(address: &str, known: &Profile) -> Check {
    let resolved = match resolve(address) {
        Ok(resolved) => resolved,
        Err(reason) => {
            return Check::bad(
                "peer",
                format!("{address}: its name cannot be resolved: {reason}"),
                "correct it in peers, in DNS or in /etc/hosts",
            );
        }
    };
    if let Err(error) = connect(&resolved) {
        return Check::bad(
            "peer",
            format!("{address}: no connection to {}: {error}", shown(&resolved)),
            "is the node running there? does a firewall stand between?",
        );
    }
    match ask(address, known) {
        Ok(difference_ms) if difference_ms.abs() > CLOCK_DIFFERENCE_MAX_MS => Check::warning(
            "peer",
            format!("{address}: it answers, but its clock is {difference_ms} ms from this machine's"),
            "keep all clocks right with chrony or systemd-timesyncd",
        ),
        Ok(difference_ms) => Check::good(
            "peer",
            format!("{address} ({}) answers; its clock is {difference_ms} ms from ours", shown(&resolved)),
        ),
        Err(error @ Error::Denied(_)) => Check::warning(
            "peer",
            format!("{address}: it can be reached, but {error}"),
            "the token is not this cluster's",
        ),
        Err(error) => {
            Check::bad("peer", format!("{address}: it can be reached, but {error}"), error.advice())
        }
    }
}

fn shown(resolved: &[SocketAddr]) -> String {
    let texts: Vec<String> = resolved.iter().map(|address| address.ip().to_string()).collect();
    texts.join(", ")
}

/// Resolves a name within a bound, which the system's resolver alone does not keep.
fn resolve(address: &str) -> Result<Vec<SocketAddr>, String> {
    let (done, wait) = channel();
    let name = address.to_owned();
    thread::spawn(move || {
        let resolved = name.to_socket_addrs().map(Iterator::collect::<Vec<_>>);
        // Whoever asked may have given up.
        let _late = done.send(resolved);
    });
    match wait.recv_timeout(STEP_MAX) {
        Ok(Ok(resolved)) if resolved.is_empty() => Err("it has no address".to_owned()),
        Ok(Ok(resolved)) => Ok(resolved),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", STEP_MAX.as_secs())),
    }
}

/// Tries each address; the last error if none takes the connection.
fn connect(resolved: &[SocketAddr]) -> std::io::Result<()> {
    let mut last = None;
    for address in resolved {
        match TcpStream::connect_timeout(address, STEP_MAX) {
            Ok(_) => return Ok(()),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| std::io::ErrorKind::NotFound.into()))
}

/// Says hello and asks for the time. How far its clock is ahead of ours, in milliseconds: the middle of the question
/// counts as the moment of the answer.
fn ask(address: &str, known: &Profile) -> Result<i64, Error> {
    let one = Profile { nodes: vec![address.to_owned()], timeout: Some(STEP_MAX), ..known.clone() };
    let client = Client::connect(one.options()?)?;
    let (asked, since) = (now_ms(), Instant::now());
    let theirs = i64::try_from(client.cluster_status()?.log_time_ms).unwrap_or(i64::MAX);
    let half = i64::try_from(since.elapsed().as_millis() / 2).unwrap_or(0);
    Ok(theirs.saturating_sub(asked + half))
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::doctor::Verdict;
    use std::net::TcpListener;

    #[test]
    fn each_step_of_the_way_has_its_own_words() {
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let known = Profile { insecure: true, ..Profile::default() };
        let unresolved = peer("no-such-host.invalid:1", &known);
        assert_eq!(unresolved.verdict, Verdict::Bad);
        assert!(unresolved.found.contains("resolved"), "{unresolved:?}");
        let gone = peer(&nobody.to_string(), &known);
        assert!(gone.verdict == Verdict::Bad && gone.found.contains("no connection"), "{gone:?}");
    }
}
