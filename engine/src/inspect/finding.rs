//! What an inspection has to say: damage, and things worth knowing that are none.

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    /// Nothing is lost and recovery passes over it: a torn tail, bytes that nothing refers to.
    Notice,
    /// Bytes that were written are not there as they were: recovery or a read would refuse them.
    Damage,
}

/// One thing that was found, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The file's name, without its directory.
    pub file: String,
    /// The first byte in doubt.
    pub offset: u64,
    /// What it is, for people.
    pub what: String,
    /// The batches in doubt, as log sequence numbers (first, last known).
    pub sequences: Option<(u64, u64)>,
}

/// Most findings of each severity that are kept; the rest is counted.
pub const FINDINGS_MAX: usize = 1_000;

/// All that was found, in the order of finding.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Findings {
    kept: Vec<Finding>,
    damages: usize,
    notices: usize,
}

impl Findings {
    /// Keeps a finding, or counts it if there are too many.
    pub fn add(&mut self, finding: Finding) {
        let count = match finding.severity {
            Severity::Damage => &mut self.damages,
            Severity::Notice => &mut self.notices,
        };
        *count += 1;
        if *count <= FINDINGS_MAX {
            self.kept.push(finding);
        }
    }

    pub(crate) fn damage(&mut self, file: &str, offset: u64, what: impl Into<String>) {
        self.note(Severity::Damage, file, offset, what, None);
    }

    pub(crate) fn notice(&mut self, file: &str, offset: u64, what: impl Into<String>) {
        self.note(Severity::Notice, file, offset, what, None);
    }

    pub(crate) fn note(
        &mut self,
        severity: Severity,
        file: &str,
        offset: u64,
        what: impl Into<String>,
        sequences: Option<(u64, u64)>,
    ) {
        self.add(Finding { severity, file: file.to_owned(), offset, what: what.into(), sequences });
    }

    /// Takes over what another inspection found.
    pub fn append(&mut self, other: Findings) {
        let (damages, notices) = (other.damages, other.notices);
        let kept = |severity| other.kept.iter().filter(|it| it.severity == severity).count();
        let (damages_kept, notices_kept) = (kept(Severity::Damage), kept(Severity::Notice));
        for finding in other.kept {
            self.add(finding);
        }
        self.damages += damages - damages_kept;
        self.notices += notices - notices_kept;
    }

    /// Those that were kept, in the order of finding.
    pub fn iter(&self) -> impl Iterator<Item = &Finding> {
        self.kept.iter()
    }

    /// How many there are of a severity, with those that were not kept.
    pub fn count(&self, severity: Severity) -> usize {
        match severity {
            Severity::Damage => self.damages,
            Severity::Notice => self.notices,
        }
    }

    /// Whether anything is damaged.
    pub fn damaged(&self) -> bool {
        self.damages > 0
    }
}
