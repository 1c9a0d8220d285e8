//! `kritactl doctor`: what would keep a node on this machine from starting, or from being heard by the others.
//!
//! It looks at the machine ([`machine`]), at the certificates and secrets ([`certificates`]) and at the way to each
//! peer ([`peers`]), and asks the nodes with whom they can talk themselves ([`pairs`]). It needs no running node, and
//! changes nothing.

mod certificates;
mod machine;
mod pairs;
mod peers;

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::connection::ConnectionArguments;
use crate::failure::Failure;
use crate::output::{Printer, Style};
use crate::profile::{self, NodeFile};

/// How a check ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    /// All is well.
    Good,
    /// It works, and may not for long or not everywhere.
    Warning,
    /// It must be mended.
    Bad,
    /// It could not be looked at.
    Unknown,
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Warning => "warning",
            Self::Bad => "bad",
            Self::Unknown => "unknown",
        }
    }

    fn shown(self, style: Style) -> String {
        let name = format!("{:7}", self.name());
        match self {
            Self::Good => style.good(&name),
            Self::Warning | Self::Unknown => style.doubtful(&name),
            Self::Bad => style.bad(&name),
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    found: String,
    /// What to do; empty where nothing is.
    advice: String,
}

impl Check {
    fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Good, found: found.into(), advice: String::new() }
    }

    fn warning(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warning, found: found.into(), advice: advice.into() }
    }

    fn bad(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Bad, found: found.into(), advice: advice.into() }
    }

    fn unknown(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Unknown, found: found.into(), advice: String::new() }
    }

    fn print(&self, print: &mut Printer<'_>) -> std::io::Result<()> {
        let verdict = self.verdict.shown(print.style());
        let name = print.style().strong(&format!("{:13}", self.name));
        print.item(
            |out| match self.advice.as_str() {
                "" => writeln!(out, "{verdict}  {name}  {}", self.found),
                advice => writeln!(out, "{verdict}  {name}  {}; {advice}", self.found),
            },
            || {
                json!({
                    "check": self.name,
                    "verdict": self.verdict.name(),
                    "found": self.found,
                    "advice": self.advice,
                })
            },
        )
    }
}

/// What of a node's configuration doctor looks at.
struct Subject {
    data_directory: PathBuf,
    reserve_bytes: u64,
    cores: u64,
    certificates: Option<PathBuf>,
    is_node: bool,
}

/// Where no configuration says otherwise: docs/configuration.md.
const RESERVE_BYTES: u64 = 256 << 20;

impl Subject {
    fn of(config: Option<&NodeFile>, certificates: Option<PathBuf>) -> Self {
        let available = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
        let Some(node) = config else {
            let data_directory = PathBuf::from(".");
            return Self {
                data_directory,
                reserve_bytes: RESERVE_BYTES,
                cores: available,
                certificates,
                is_node: false,
            };
        };
        let reserve = node.text("disk_reserve_bytes").and_then(|text| size(&text));
        let own = if node.is_insecure() { None } else { node.path("tls_cert_path") };
        let beside = || node.beside("certs");
        Self {
            data_directory: node.path("data_directory").unwrap_or_else(|| PathBuf::from(".")),
            reserve_bytes: reserve.unwrap_or(RESERVE_BYTES),
            cores: node.text("cores").and_then(|cores| cores.parse().ok()).unwrap_or(available),
            certificates: if node.is_insecure() { None } else { own.or_else(|| Some(beside())) },
            is_node: true,
        }
    }
}

/// Bytes, or with KiB, MiB or GiB, as krita.yaml has them.
fn size(text: &str) -> Option<u64> {
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30)];
    let text = text.trim();
    match units.iter().find_map(|(unit, bits)| Some((text.strip_suffix(unit)?, bits))) {
        Some((number, bits)) => number.trim().parse::<u64>().ok()?.checked_mul(1 << bits),
        None => text.parse().ok(),
    }
}

/// Looks at everything.
pub(super) fn run(
    config: Option<&Path>,
    connection: &ConnectionArguments,
    print: &mut Printer<'_>,
) -> Result<(), Failure> {
    let found = match config {
        Some(path) => Some(path.to_owned()),
        None => profile::config(connection.profile.as_deref(), Path::new(""))?,
    };
    let node = match &found {
        Some(path) => Some(NodeFile::read(path)?),
        None => None,
    };
    let mut known = connection.known(Path::new(""))?;
    if let (Some(_), Some(node)) = (config, &node) {
        // The configuration that was named rules over the profile of the current folder.
        known.nodes = node.nodes();
        known.cluster_name = connection.cluster_name.clone().or_else(|| node.text("cluster_name"));
        let certificates = connection.tls_cert_path.clone().or_else(|| node.certificates());
        known.certificates = certificates.or(known.certificates);
        known.insecure = connection.insecure || node.is_insecure();
    }
    let subject = Subject::of(node.as_ref(), known.certificates.clone());
    let mut has_bad = false;
    let mut show = |check: Check, print: &mut Printer<'_>| {
        has_bad |= check.verdict == Verdict::Bad;
        // Each line as it comes: a peer that does not answer takes its time.
        check.print(print)
    };
    show(configuration(found.as_deref()), print)?;
    for check in machine::checks(&subject).into_iter().chain(certificates::checks(&subject, &known)) {
        show(check, print)?;
    }
    for check in peers::checks(&known) {
        show(check, print)?;
    }
    for check in pairs::checks(&known) {
        show(check, print)?;
    }
    print.end_list()?;
    if has_bad { Err(Failure::Unhealthy) } else { Ok(()) }
}

fn configuration(found: Option<&Path>) -> Check {
    match found {
        Some(path) => Check::good("configuration", path.display().to_string()),
        None => Check::warning(
            "configuration",
            "no krita.yaml here or in the profile: the defaults are looked at",
            "name it with --config, or the profile with --profile",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_the_configuration_has_them() {
        for (text, bytes) in
            [("17", Some(17)), ("32MiB", Some(32 << 20)), ("1 GiB", Some(1 << 30)), ("4MB", None)]
        {
            assert_eq!(size(text), bytes, "{text}");
        }
    }
}
