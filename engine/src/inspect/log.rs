//! A log's whole directory: the manifest, the chain of batches over all segments, the files that the manifest names.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use crate::format::{BLOCK, CHECKPOINT_PREFIX, MANIFEST_PREFIX, SEGMENT_PREFIX, number_after};
use crate::inspect::checkpoint::{CheckpointReport, inspect_checkpoint};
use crate::inspect::finding::{Findings, Severity};
use crate::inspect::manifest::{CheckpointSummary, ManifestReport, inspect_manifest};
use crate::inspect::segment::{LogContext, RecordCounts, SegmentState, SegmentSummary, Visit, summarize};
use crate::inspect::source::{Directory, ReadAt, Window};
use crate::run::RUN_PREFIX;
use crate::run::inspect::{RunItem, RunReport, inspect_run};
use crate::segment::SegmentHeader;
use crate::types::{Extent, SegmentId, ShardId};

/// The chain of batches as far as it is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChainSummary {
    /// The oldest life that is there.
    pub oldest: SegmentId,
    /// The newest: the one that was being written.
    pub newest: SegmentId,
    /// The number of the oldest batch that is there.
    pub first_sequence: u64,
    /// The number of the last.
    pub last_sequence: u64,
    /// The last batch is a seal, or a segment's header says the same.
    pub sealed: bool,
}

/// What a log's directory holds, and what is wrong with it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogReport {
    /// The manifest that recovery would take; none if there is no valid one.
    pub manifest: Option<ManifestReport>,
    /// What the files were held against; none if no valid manifest said it and the caller did not.
    pub context: Option<LogContext>,
    /// The segments in the order of their lives, then those without one.
    pub segments: Vec<SegmentSummary>,
    /// The runs that the manifest names, by shard, newest first.
    pub runs: Vec<RunReport>,
    /// The checkpoint files that the manifest names, by shard.
    pub checkpoints: Vec<CheckpointReport>,
    /// The chain over all segments.
    pub chain: Option<ChainSummary>,
    /// All valid records.
    pub records: RecordCounts,
    /// The same by shard.
    pub shards: BTreeMap<ShardId, RecordCounts>,
    /// What is wrong.
    pub findings: Findings,
}

/// Inspects a log's directory as recovery would, but to the end: damage is noted and what is behind it is checked too.
/// `nonce` stands in for a manifest that is lost. `visit` is told every valid batch and record in the log's order.
///
/// # Errors
/// Those of reading and of `visit`.
pub fn inspect_log(
    directory: &dyn Directory,
    nonce: Option<u64>,
    visit: &mut Visit<'_>,
) -> io::Result<LogReport> {
    let mut names = directory.names()?;
    names.sort_by_key(|name| (number_after(name.as_ref(), SEGMENT_PREFIX), name.clone()));
    let mut findings = Findings::default();
    let manifest = find_manifest(directory, &names, &mut findings)?;
    let identity = manifest.as_ref().and_then(|manifest| manifest.identity);
    let context = match (nonce, identity) {
        (Some(nonce), Some(identity)) => Some(LogContext { nonce, ..identity.context() }),
        (None, Some(identity)) => Some(identity.context()),
        (Some(nonce), None) => Some(LogContext::with_nonce(nonce)),
        (None, None) => None,
    };
    let manifest = manifest.filter(|manifest| manifest.is_valid);
    let mut report = LogReport {
        manifest,
        context,
        segments: Vec::new(),
        runs: Vec::new(),
        checkpoints: Vec::new(),
        chain: None,
        records: RecordCounts::default(),
        shards: BTreeMap::new(),
        findings,
    };
    if let Some(context) = context {
        report.scan_segments(directory, &names, context, visit)?;
        report.check_chain();
        report.check_references();
        report.check_named_files(directory, context)?;
    }
    report.check_names(&names);
    Ok(report)
}

/// The manifest with the highest number whose first frame is valid; else one that at least says whose the log is.
fn find_manifest(
    directory: &dyn Directory,
    names: &[String],
    findings: &mut Findings,
) -> io::Result<Option<ManifestReport>> {
    let numbered =
        names.iter().filter_map(|name| Some((number_after(name.as_ref(), MANIFEST_PREFIX)?, name)));
    let mut numbered: Vec<(u64, &String)> = numbered.collect();
    numbered.sort_unstable();
    let mut damaged = None;
    while let Some((number, name)) = numbered.pop() {
        let file = directory.open(name)?;
        let mut found = inspect_manifest(file.as_ref(), name, &mut |_| Ok(()))?;
        findings.append(std::mem::take(&mut found.findings));
        if found.is_valid {
            for (_, older) in numbered {
                findings.notice(older, 0, format!("an older manifest; {name} counts"));
            }
            return Ok(Some(found));
        }
        let made_more = number > 1 || names.iter().any(|name| is_of_a_log(name) && !is_manifest(name));
        if numbered.is_empty() && made_more && !findings.damaged() {
            findings.damage(name, 0, "the manifest's first frame is invalid");
        }
        damaged = damaged.or(Some(found).filter(|found| found.identity.is_some()));
    }
    if damaged.is_none() && !names.iter().any(|name| is_manifest(name)) {
        match names.iter().find(|name| is_of_a_log(name)) {
            Some(name) => findings.damage(name, 0, "files of a log, but no manifest"),
            None => findings.notice("", 0, "no file of a log"),
        }
    }
    Ok(damaged)
}

fn is_manifest(name: &str) -> bool {
    number_after(name.as_ref(), MANIFEST_PREFIX).is_some()
}

fn is_of_a_log(name: &str) -> bool {
    is_manifest(name)
        || number_after(name.as_ref(), SEGMENT_PREFIX).is_some()
        || name.starts_with(CHECKPOINT_PREFIX)
        || name.starts_with(RUN_PREFIX)
}

impl LogReport {
    fn scan_segments(
        &mut self,
        directory: &dyn Directory,
        names: &[String],
        context: LogContext,
        visit: &mut Visit<'_>,
    ) -> io::Result<()> {
        let mut order = Vec::new();
        for name in names.iter().filter(|name| number_after(name.as_ref(), SEGMENT_PREFIX).is_some()) {
            let file = directory.open(name)?;
            let mut window = Window::new(file.as_ref())?;
            let header = SegmentHeader::decode(window.get(0, BLOCK as usize)?, context.nonce);
            let life = header.map(|header| header.segment).filter(|segment| *segment != SegmentId(0));
            // Files without a life come last.
            order.push((life.is_none(), life, name));
        }
        order.sort();
        for (_, _, name) in order {
            let file = directory.open(name)?;
            let summary = summarize(file.as_ref(), name, context, &mut self.findings, visit)?;
            self.records.add(&summary.records);
            for (shard, counts) in &summary.shards {
                self.shards.entry(*shard).or_default().add(counts);
            }
            self.segments.push(summary);
        }
        Ok(())
    }

    /// Judges each life's end by the life behind it, and the newest end by all other files: recovery's rules 5 and 6.
    fn check_chain(&mut self) {
        let findings = &mut self.findings;
        let used: Vec<&SegmentSummary> =
            self.segments.iter().filter(|segment| segment.state == SegmentState::Used).collect();
        for pair in used.windows(2) {
            check_succession(pair[0], pair[1], findings);
        }
        let newest = used.last().copied();
        if let Some(newest) = newest
            && let Some(what) = &newest.torn
        {
            let what =
                format!("{what}: torn, or damaged before anything proved it durable; recovery cuts it");
            let sequences = Some((newest.next_sequence, newest.next_sequence));
            findings.note(Severity::Notice, &newest.file, newest.end, what, sequences);
        }
        let next_sequence = newest.map_or(1, |newest| newest.next_sequence);
        for segment in &self.segments {
            let later =
                segment.strays.iter().filter(|stray| stray.last >= next_sequence).max_by_key(|it| it.last);
            if let Some(stray) = later {
                let what = format!(
                    "an invalid segment header, with batch {} at byte {} behind it",
                    stray.last, stray.last_offset
                );
                let sequences = Some((next_sequence, stray.last));
                findings.note(Severity::Damage, &segment.file, 0, what, sequences);
            }
        }
        self.chain = newest.zip(used.first()).map(|(newest, oldest)| ChainSummary {
            oldest: oldest.segment,
            newest: newest.segment,
            first_sequence: oldest.first_sequence,
            last_sequence: newest.next_sequence.saturating_sub(1),
            sealed: newest.sealed || newest.batches == 0,
        });
    }

    /// Every life that the manifest names must be there, and so must all from the oldest replay to the newest.
    fn check_references(&mut self) {
        let Some(manifest) = &self.manifest else { return };
        let lives: BTreeMap<SegmentId, &SegmentSummary> = self
            .segments
            .iter()
            .filter(|segment| segment.state == SegmentState::Used)
            .map(|segment| (segment.segment, segment))
            .collect();
        let (findings, name) = (&mut self.findings, &manifest.file);
        for shard in &manifest.shards {
            // Runs may hold slots that newer layers hide, into lives long gone: those need not be there.
            let replay = shard.replay_segment;
            if !lives.contains_key(&replay) {
                findings.damage(name, 0, format!("{} needs {replay}, which no file holds", shard.shard));
            }
            let end = self.chain.map_or(0, |chain| chain.last_sequence);
            if shard.hard_state_sequence > end {
                let what = format!(
                    "the log ends with batch {end}, but {} knows that batch {} was durable",
                    shard.shard, shard.hard_state_sequence
                );
                let sequences = Some((end.saturating_add(1), shard.hard_state_sequence));
                findings.note(Severity::Damage, name, 0, what, sequences);
            }
        }
        let oldest = manifest.shards.iter().map(|shard| shard.replay_segment).min();
        if let (Some(oldest), Some(chain)) = (oldest, self.chain) {
            let mut expected = oldest;
            // Over what is there, not over numbers: a damaged one may be huge.
            for life in lives.range(oldest..).map(|(life, _)| *life) {
                if life > expected && expected > oldest {
                    let last = SegmentId(life.0 - 1);
                    let what = format!("{expected} to {last} are missing, with {} behind them", chain.newest);
                    findings.damage(name, 0, what);
                }
                expected = SegmentId(life.0.saturating_add(1));
            }
        }
    }

    /// The runs and checkpoint files that the manifest names must be there and be what it says.
    fn check_named_files(&mut self, directory: &dyn Directory, context: LogContext) -> io::Result<()> {
        let shards = self.manifest.as_ref().map_or(&[][..], |manifest| &manifest.shards);
        let findings = &mut self.findings;
        let used = self.segments.iter().filter(|segment| segment.state == SegmentState::Used);
        let ends: BTreeMap<SegmentId, u64> = used.map(|segment| (segment.segment, segment.end)).collect();
        for shard in shards {
            let mut lost = Lost { ends: &ends, keys: BTreeMap::new(), passed_over: 0 };
            let first = self.runs.len();
            // From the oldest on: what a newer run has for a key hides what an older one has.
            for run in shard.runs.iter().rev() {
                let Some(file) = open_named(directory, &run.file, shard.shard, findings)? else { continue };
                let mut found = inspect_run(file.as_ref(), &run.file, context, &mut |item| {
                    lost.look_at(&item);
                    Ok(())
                })?;
                let told = (run.length, run.root, run.items);
                if !found.findings.damaged() && (found.length, found.root, found.items) != told {
                    findings.damage(&run.file, 0, "not the run that the manifest names");
                }
                findings.append(std::mem::take(&mut found.findings));
                self.runs.push(found);
            }
            self.runs[first..].reverse();
            let newest = shard.runs.first().map_or("", |run| run.file.as_str());
            lost.report(newest, shard.shard, findings);
            let CheckpointSummary::File { file: name, length, root } = &shard.checkpoint else { continue };
            let Some(file) = open_named(directory, name, shard.shard, findings)? else { continue };
            let mut found = inspect_checkpoint(file.as_ref(), name, context)?;
            let meta = found.meta.as_ref().map(|meta| (meta.applied, meta.term, meta.generation));
            let right = (found.length, found.root) == (*length, *root)
                && meta == Some((shard.applied, shard.term, shard.generation));
            if !found.findings.damaged() && !right {
                findings.damage(name, 0, "not the checkpoint that the manifest names");
            }
            findings.append(std::mem::take(&mut found.findings));
            self.checkpoints.push(found);
        }
        Ok(())
    }

    /// Files that the manifest does not name.
    fn check_names(&mut self, names: &[String]) {
        let named: BTreeSet<&str> = self
            .runs
            .iter()
            .map(|run| run.file.as_str())
            .chain(self.checkpoints.iter().map(|checkpoint| checkpoint.file.as_str()))
            .collect();
        for name in names {
            let may_be_orphan = name.starts_with(RUN_PREFIX) || name.starts_with(CHECKPOINT_PREFIX);
            if !is_of_a_log(name) {
                self.findings.notice(name, 0, "not a file of a log");
            } else if may_be_orphan && self.manifest.is_some() && !named.contains(name.as_str()) {
                self.findings.notice(name, 0, "nothing refers to it; the next start removes it");
            }
        }
    }
}

/// Keys of a shard whose value lies where no batch is. A slot that a newer run hides may point into a life long gone.
struct Lost<'a> {
    /// Where the chain of batches ends in each life that is there.
    ends: &'a BTreeMap<SegmentId, u64>,
    keys: BTreeMap<Vec<u8>, SegmentId>,
    /// Keys that there was no room for.
    passed_over: u64,
}

/// Most lost keys that are told apart.
const LOST_MAX: usize = 100_000;

impl Lost<'_> {
    /// An item of a run newer than those before.
    fn look_at(&mut self, item: &RunItem<'_>) {
        self.keys.remove(item.key);
        let is_there = |extent: &&Extent| {
            let end = u64::from(extent.offset) + u64::from(extent.length);
            self.ends.get(&extent.segment).is_some_and(|there| end <= *there)
        };
        if let Some(gone) = item.extents.iter().find(|extent| !is_there(extent)) {
            if self.keys.len() < LOST_MAX {
                self.keys.insert(item.key.to_vec(), gone.segment);
            } else {
                self.passed_over += 1;
            }
        }
    }

    fn report(self, file: &str, shard: ShardId, findings: &mut Findings) {
        let mut by_life: BTreeMap<SegmentId, (u64, &[u8])> = BTreeMap::new();
        for (key, segment) in &self.keys {
            by_life.entry(*segment).or_insert((0, key)).0 += 1;
        }
        for (segment, (count, first)) in by_life {
            let first = first.escape_ascii();
            let what = format!(
                "{count} keys of {shard} have values in {segment} where there is no batch, the first is \"{first}\""
            );
            findings.damage(file, 0, what);
        }
        if self.passed_over > 0 {
            let what = format!("up to {} more keys of {shard} may have lost their values", self.passed_over);
            findings.notice(file, 0, what);
        }
    }
}

/// Opens a file that the manifest names.
fn open_named<'d>(
    directory: &'d dyn Directory,
    name: &str,
    shard: ShardId,
    findings: &mut Findings,
) -> io::Result<Option<Box<dyn ReadAt + 'd>>> {
    match directory.open(name) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            findings.damage(name, 0, format!("{shard} needs it, and it is missing"));
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Whether a life ends where the next one's header says.
fn check_succession(before: &SegmentSummary, after: &SegmentSummary, findings: &mut Findings) {
    let name = &before.file;
    if before.segment == after.segment {
        findings.damage(&after.file, 0, format!("{} is in {name} as well", after.segment));
        return;
    }
    let torn = before.torn.clone();
    if before.segment.0.checked_add(1) != Some(after.segment.0) {
        // Lives between them were recycled, and with them what could tell where this one ended.
        if let Some(what) = torn {
            let what = format!("{what}: torn or damaged; the life behind it is gone");
            findings.notice(name, before.end, what);
        }
        return;
    }
    if (before.next_sequence, before.last_checksum) != (after.first_sequence, after.previous) {
        let what = torn.unwrap_or_else(|| "no valid batch".to_owned());
        let last = after.first_sequence.saturating_sub(1);
        let what = match last >= before.next_sequence {
            true => format!("{what}, with {} behind it", after.segment),
            false => format!("the header of {} names another batch before it", after.segment),
        };
        let sequences = Some((before.next_sequence, last.max(before.next_sequence)));
        findings.note(Severity::Damage, name, before.end, what, sequences);
    }
}
