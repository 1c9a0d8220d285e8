//! Reports as text for people.

use std::io::{self, Write};

use krita_engine::inspect::{
    BatchInfo, ChainSummary, CheckpointReport, CheckpointSummary, Findings, FrameInfo, LogReport,
    ManifestReport, RecordCounts, RecordInfo, RecordName, RunItem, RunReport, SegmentState, SegmentSummary,
    Severity, ShardSummary,
};

/// A log's directory.
pub(super) fn log(out: &mut dyn Write, path: &str, report: &LogReport) -> io::Result<()> {
    writeln!(out, "{path}")?;
    if let Some(found) = &report.manifest {
        manifest(out, found)?;
    }
    for summary in &report.segments {
        segment(out, summary)?;
    }
    for run in &report.runs {
        run_lines(out, run)?;
    }
    for found in &report.checkpoints {
        checkpoint_lines(out, found)?;
    }
    if let Some(found) = &report.chain {
        chain(out, found)?;
    }
    writeln!(out, "records: {}", counts(&report.records))?;
    for (shard, of_shard) in &report.shards {
        writeln!(out, "  {shard}: {}", counts(of_shard))?;
    }
    findings(out, &report.findings)
}

fn chain(out: &mut dyn Write, chain: &ChainSummary) -> io::Result<()> {
    let sealed = if chain.sealed { "sealed" } else { "without a seal" };
    writeln!(
        out,
        "chain: batches {} to {} in {} to {}, {sealed}",
        chain.first_sequence, chain.last_sequence, chain.oldest, chain.newest
    )
}

fn counts(counts: &RecordCounts) -> String {
    format!(
        "{} entries, {} truncations, {} hard states, {} relocated; {} pieces; {} bytes of payload",
        counts.entries,
        counts.truncations,
        counts.hard_states,
        counts.relocated,
        counts.pieces,
        counts.payload_bytes
    )
}

/// What was found, and the verdict.
pub(super) fn findings(out: &mut dyn Write, findings: &Findings) -> io::Result<()> {
    for finding in findings.iter() {
        let severity = match finding.severity {
            Severity::Damage => "DAMAGE",
            Severity::Notice => "notice",
        };
        let place = if finding.file.is_empty() { String::new() } else { format!(" {}", finding.file) };
        write!(out, "{severity}{place} byte {}", finding.offset)?;
        if let Some((first, last)) = finding.sequences {
            write!(out, " (batches {first} to {last})")?;
        }
        writeln!(out, ": {}", finding.what)?;
    }
    let more = [Severity::Damage, Severity::Notice].map(|severity| {
        let kept = findings.iter().filter(|finding| finding.severity == severity).count();
        findings.count(severity) - kept
    });
    if more != [0, 0] {
        writeln!(out, "and {} more places of damage, {} more notices", more[0], more[1])?;
    }
    match findings.count(Severity::Damage) {
        0 => writeln!(out, "sound"),
        1 => writeln!(out, "damaged in 1 place"),
        count => writeln!(out, "damaged in {count} places"),
    }
}

/// A segment.
pub(super) fn segment(out: &mut dyn Write, summary: &SegmentSummary) -> io::Result<()> {
    let SegmentSummary { file, length, .. } = summary;
    match summary.state {
        SegmentState::Used => {}
        SegmentState::Spare | SegmentState::Unfinished | SegmentState::Invalid => {
            writeln!(out, "{file}: {}, {length} bytes", summary.state.name())?;
            return summary.strays.iter().try_for_each(|stray| {
                writeln!(out, "  holds batches {} to {} of {}", stray.first, stray.last, stray.segment)
            });
        }
    }
    writeln!(
        out,
        "{file}: {} of {}, {length} bytes, used to byte {}",
        summary.segment, summary.log, summary.end
    )?;
    writeln!(
        out,
        "  batches from {}, next {}: {} valid, {} of them seals; {} bytes of padding",
        summary.first_sequence, summary.next_sequence, summary.batches, summary.seals, summary.padding_bytes
    )?;
    writeln!(out, "  records: {}", counts(&summary.records))
}

/// A batch.
pub(super) fn batch(out: &mut dyn Write, batch: &BatchInfo) -> io::Result<()> {
    let what = if batch.is_seal { "a seal".to_owned() } else { format!("{} records", batch.records) };
    writeln!(
        out,
        "batch {} in {} at byte {}: {} bytes and {} of padding, {what}; checksum {:#018x}, previous {:#018x}",
        batch.sequence,
        batch.segment,
        batch.offset,
        batch.length,
        batch.padding,
        batch.checksum,
        batch.previous
    )
}

/// A record.
pub(super) fn record(out: &mut dyn Write, record: &RecordInfo) -> io::Result<()> {
    write!(out, "  byte {}: {} of {} {}", record.offset, record.name.name(), record.shard, record.replica)?;
    match record.name {
        RecordName::Entry => {
            write!(out, ", {} {} kind {}", record.index, record.term, record.entry_kind)?;
        }
        RecordName::Truncation => write!(out, ", {} stays", record.index)?,
        RecordName::HardState => match &record.hard_state {
            Some(state) => write!(out, ", {}", hard_state(state))?,
            None => write!(out, ", which does not parse")?,
        },
        RecordName::Relocated => {}
    }
    if record.is_piece() {
        let end = record.piece_offset.saturating_add(record.length);
        writeln!(out, ", bytes {} to {end} of {}", record.piece_offset, record.total)
    } else {
        writeln!(out, ", {} bytes", record.length)
    }
}

fn hard_state(state: &krita_engine::HardState) -> String {
    let vote = state.vote.map_or("no vote".to_owned(), |vote| format!("vote for replica{vote}"));
    format!("{}, {vote}, commit {}", state.term, state.commit.0)
}

/// A manifest.
pub(super) fn manifest(out: &mut dyn Write, report: &ManifestReport) -> io::Result<()> {
    let file = &report.file;
    match &report.identity {
        Some(identity) => writeln!(
            out,
            "{file}: {}, nonce {:#018x}, segments of {} bytes",
            identity.log, identity.nonce, identity.segment_bytes
        )?,
        None => writeln!(out, "{file}: {} bytes", report.length)?,
    }
    writeln!(out, "  {} frames to byte {} of {}", report.frames, report.end, report.length)?;
    report.shards.iter().try_for_each(|shard| shard_lines(out, shard))
}

fn shard_lines(out: &mut dyn Write, shard: &ShardSummary) -> io::Result<()> {
    writeln!(
        out,
        "  {}: {}, generation {}, checkpoint at {} {}",
        shard.shard, shard.replica, shard.generation, shard.applied, shard.term
    )?;
    if let Some(reason) = &shard.suspect {
        writeln!(out, "    suspect: {reason}")?;
    }
    match &shard.checkpoint {
        CheckpointSummary::Inline { configuration_bytes, machine_bytes } => {
            writeln!(
                out,
                "    membership {configuration_bytes} bytes, machine {machine_bytes} bytes, in the manifest"
            )?;
        }
        CheckpointSummary::File { file, length, root } => {
            writeln!(out, "    membership and machine in {file}: {length} bytes, root {root:#018x}")?;
        }
    }
    for run in &shard.runs {
        writeln!(out, "    {}: {} keys, {} bytes, root {:#018x}", run.file, run.items, run.length, run.root)?;
    }
    writeln!(
        out,
        "    {} as of batch {}; replay from batch {} in {}",
        hard_state(&shard.hard_state),
        shard.hard_state_sequence,
        shard.replay_sequence,
        shard.replay_segment
    )
}

/// A frame of a manifest.
pub(super) fn frame(out: &mut dyn Write, frame: &FrameInfo) -> io::Result<()> {
    let whole = if frame.is_whole { ", the whole state" } else { "" };
    write!(out, "frame {} at byte {}: {} bytes{whole}", frame.sequence, frame.offset, frame.length)?;
    for change in &frame.changes {
        write!(out, "; {} {}", change.name, change.shard)?;
    }
    writeln!(out)
}

/// A run, with the verdict.
pub(super) fn run(out: &mut dyn Write, report: &RunReport) -> io::Result<()> {
    run_lines(out, report)?;
    for (segment, bytes) in &report.segments {
        writeln!(out, "  {bytes} bytes in {segment}")?;
    }
    findings(out, &report.findings)
}

fn run_lines(out: &mut dyn Write, report: &RunReport) -> io::Result<()> {
    let RunReport { file, log, shard, number, length, .. } = report;
    writeln!(out, "{file}: run {number} of {shard} of {log}, {length} bytes")?;
    if !report.is_valid {
        return Ok(());
    }
    writeln!(
        out,
        "  {} keys, {} of them tombstones, in {} blocks; root {:#018x}",
        report.items, report.tombstones, report.data_blocks, report.root
    )?;
    writeln!(
        out,
        "  bytes: items {}, large {}, segments {}, filter {}, index {}",
        report.data_bytes, report.large_bytes, report.segments_bytes, report.filter_bytes, report.index_bytes
    )?;
    match &report.keys {
        Some((first, last)) => writeln!(out, "  keys from {} to {}", escaped(first), escaped(last)),
        None => Ok(()),
    }
}

/// A key of a run.
pub(super) fn run_item(out: &mut dyn Write, item: &RunItem<'_>) -> io::Result<()> {
    write!(out, "{} version {}", escaped(item.key), item.version.0)?;
    if item.extents.is_empty() {
        return writeln!(out, " deleted");
    }
    for extent in item.extents {
        write!(out, " {}:{}+{}", extent.segment, extent.offset, extent.length)?;
    }
    writeln!(out)
}

/// A checkpoint file, with the verdict.
pub(super) fn checkpoint(out: &mut dyn Write, report: &CheckpointReport) -> io::Result<()> {
    checkpoint_lines(out, report)?;
    findings(out, &report.findings)
}

fn checkpoint_lines(out: &mut dyn Write, report: &CheckpointReport) -> io::Result<()> {
    let CheckpointReport { file, log, shard, number, length, .. } = report;
    writeln!(
        out,
        "{file}: checkpoint {number} of {shard} of {log}, {length} bytes, root {:#018x}",
        report.root
    )?;
    let Some(meta) = &report.meta else { return Ok(()) };
    writeln!(
        out,
        "  applied to {} {}, generation {}; membership {} bytes, machine {} bytes",
        meta.applied,
        meta.term,
        meta.generation,
        meta.configuration.len(),
        meta.machine_bytes
    )
}

/// Bytes as text that names each of them: what is not printable ASCII is escaped.
fn escaped(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes.escape_ascii())
}
