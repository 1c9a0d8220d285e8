//! The example data of `demo` and `init`, and waiting for a cluster to take it.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use krita_runtime::glommio::Signals;
use kritaclient::blocking::Client;
use kritaclient::{MemberHealth, Options};

use crate::Failure;
use crate::wait::{self, Vain};

/// Pairs of `capital:` keys.
#[rustfmt::skip]
const CAPITALS: [(&str, &str); 40] = [
    ("Argentina", "Buenos Aires"), ("Australia", "Canberra"), ("Austria", "Vienna"), ("Belgium", "Brussels"),
    ("Brazil", "Brasilia"), ("Canada", "Ottawa"), ("Chile", "Santiago"), ("China", "Beijing"),
    ("Colombia", "Bogota"), ("Cuba", "Havana"), ("Denmark", "Copenhagen"), ("Egypt", "Cairo"),
    ("Ethiopia", "Addis Ababa"), ("Finland", "Helsinki"), ("France", "Paris"), ("Germany", "Berlin"),
    ("Ghana", "Accra"), ("Greece", "Athens"), ("Hungary", "Budapest"), ("India", "New Delhi"),
    ("Indonesia", "Jakarta"), ("Ireland", "Dublin"), ("Italy", "Rome"), ("Japan", "Tokyo"),
    ("Kenya", "Nairobi"), ("Mexico", "Mexico City"), ("Morocco", "Rabat"), ("Nepal", "Kathmandu"),
    ("Netherlands", "Amsterdam"), ("Norway", "Oslo"), ("Peru", "Lima"), ("Poland", "Warsaw"),
    ("Portugal", "Lisbon"), ("Senegal", "Dakar"), ("Spain", "Madrid"), ("Sweden", "Stockholm"),
    ("Thailand", "Bangkok"), ("Tunisia", "Tunis"), ("Uruguay", "Montevideo"), ("Vietnam", "Hanoi"),
];

const NAMES: [&str; 16] = [
    "Ada", "Alan", "Barbara", "Claude", "Donald", "Edsger", "Frances", "Grace", "Hedy", "Ivan", "Joan",
    "Kathleen", "Leslie", "Margaret", "Niklaus", "Radia",
];

/// `user:` keys, beside the capitals.
const USERS: usize = 960;

/// How long one attempt of a call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// A cluster on this machine.
pub(crate) struct LocalCluster<'a> {
    pub(crate) name: &'a str,
    pub(crate) ports: &'a [u16],
    pub(crate) certificates: &'a Path,
    pub(crate) token: &'a str,
}

impl LocalCluster<'_> {
    /// Waits until every node serves and every shard has a leader.
    pub(crate) fn await_health(
        &self,
        limit: Duration,
        signals: &Signals,
        mut check: impl FnMut() -> Result<(), Failure>,
    ) -> Result<Result<Client, Failure>, Vain> {
        let mut client = None;
        wait::until(limit, Some(signals), || {
            if let Err(failure) = check() {
                return Some(Err(failure));
            }
            if client.is_none() {
                client = self.connect().ok();
            }
            let health = client.as_ref()?.health().ok()?;
            let all = health.len() == self.ports.len() && health.iter().all(is_healthy);
            if all { client.take().map(Ok) } else { None }
        })
    }

    fn connect(&self) -> kritaclient::Result<Client> {
        let nodes = self.ports.iter().map(|port| format!("127.0.0.1:{port}"));
        let options = Options::new(self.name, nodes).certificates(self.certificates)?;
        Client::connect(options.token(self.token).timeout(CALL_TIMEOUT))
    }
}

fn is_healthy(member: &MemberHealth) -> bool {
    member.status.as_ref().is_ok_and(|status| {
        status.state == "serving"
            && status.problems.is_empty()
            && status.shards_with_leader == status.shards_total
    })
}

/// Puts the example data. Returns how many keys there are.
pub(crate) fn load(client: &Client) -> Result<usize, Failure> {
    let pairs = pairs();
    let count = pairs.len();
    for result in client.put_many(pairs) {
        result.map_err(|error| {
            Failure::new(format!("cannot load the example data: {error}\n{}", error.advice()))
        })?;
    }
    Ok(count)
}

fn pairs() -> Vec<(Bytes, Bytes)> {
    let capitals =
        CAPITALS.iter().map(|(country, capital)| (format!("capital:{country}"), (*capital).to_owned()));
    let users = (1..=USERS).map(|number| {
        let name = NAMES[number * 7 % NAMES.len()];
        let (country, _) = CAPITALS[number * 11 % CAPITALS.len()];
        let value = format!("{{\"name\":\"{name}\",\"number\":{number},\"country\":\"{country}\"}}");
        (format!("user:{number:04}"), value)
    });
    capitals.chain(users).map(|(key, value)| (key.into(), value.into())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_a_thousand_keys_and_none_twice() {
        let keys: std::collections::BTreeSet<Bytes> = pairs().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys.len(), 1000);
    }
}
