//! Reports as JSON for programs. Checksums, roots and nonces are hexadecimal strings: not every reader of JSON keeps
//! 64 bits.

use krita_engine::inspect::{
    BatchInfo, CheckpointReport, CheckpointSummary, Findings, FrameInfo, LogReport, ManifestReport,
    RecordCounts, RecordInfo, RunItem, RunReport, SegmentSummary, Severity, ShardSummary,
};
use krita_engine::{Extent, HardState};
use serde_json::{Map, Value, json};

use crate::output::insert_bytes;

fn hex(number: u64) -> String {
    format!("{number:#018x}")
}

/// Adds what was found to a report, and whether it is sound.
pub(super) fn verdict(report: &mut Value, findings: &Findings) {
    let Value::Object(object) = report else { return };
    object.insert("sound".to_owned(), (!findings.damaged()).into());
    object.insert("damages".to_owned(), findings.count(Severity::Damage).into());
    object.insert("notices".to_owned(), findings.count(Severity::Notice).into());
    let all: Vec<Value> = findings
        .iter()
        .map(|finding| {
            let severity = match finding.severity {
                Severity::Damage => "damage",
                Severity::Notice => "notice",
            };
            json!({
                "severity": severity,
                "file": finding.file,
                "offset": finding.offset,
                "what": finding.what,
                "sequences": finding.sequences.map(|(first, last)| [first, last]),
            })
        })
        .collect();
    object.insert("findings".to_owned(), all.into());
}

/// A log's directory.
pub(super) fn log(path: &str, report: &LogReport) -> Value {
    let shards = report.shards.iter().map(|(shard, of_shard)| {
        let mut value = counts(of_shard);
        value["shard"] = shard.0.into();
        value
    });
    let chain = report.chain.map(|chain| {
        json!({
            "oldest_segment": chain.oldest.0,
            "newest_segment": chain.newest.0,
            "first_sequence": chain.first_sequence,
            "last_sequence": chain.last_sequence,
            "sealed": chain.sealed,
        })
    });
    let mut value = json!({
        "path": path,
        "manifest": report.manifest.as_ref().map(manifest),
        "segments": report.segments.iter().map(segment).collect::<Vec<_>>(),
        "runs": report.runs.iter().map(run).collect::<Vec<_>>(),
        "checkpoints": report.checkpoints.iter().map(checkpoint).collect::<Vec<_>>(),
        "chain": chain,
        "records": counts(&report.records),
        "shards": shards.collect::<Vec<_>>(),
    });
    verdict(&mut value, &report.findings);
    value
}

fn counts(counts: &RecordCounts) -> Value {
    json!({
        "entries": counts.entries,
        "truncations": counts.truncations,
        "hard_states": counts.hard_states,
        "relocated": counts.relocated,
        "pieces": counts.pieces,
        "payload_bytes": counts.payload_bytes,
    })
}

/// A segment.
pub(super) fn segment(summary: &SegmentSummary) -> Value {
    let strays = summary.strays.iter().map(|stray| {
        json!({ "segment": stray.segment.0, "first_sequence": stray.first, "last_sequence": stray.last })
    });
    json!({
        "file": summary.file,
        "length": summary.length,
        "state": summary.state.name(),
        "log": summary.log.0,
        "segment": summary.segment.0,
        "first_sequence": summary.first_sequence,
        "next_sequence": summary.next_sequence,
        "previous": hex(summary.previous),
        "last_checksum": hex(summary.last_checksum),
        "end": summary.end,
        "batches": summary.batches,
        "seals": summary.seals,
        "sealed": summary.sealed,
        "padding_bytes": summary.padding_bytes,
        "records": counts(&summary.records),
        "strays": strays.collect::<Vec<_>>(),
    })
}

/// A batch.
pub(super) fn batch(batch: &BatchInfo) -> Value {
    json!({
        "batch": batch.sequence,
        "segment": batch.segment.0,
        "offset": batch.offset,
        "length": batch.length,
        "padding": batch.padding,
        "records": batch.records,
        "seal": batch.is_seal,
        "checksum": hex(batch.checksum),
        "previous": hex(batch.previous),
    })
}

/// A record.
pub(super) fn record(record: &RecordInfo) -> Value {
    json!({
        "record": record.name.name(),
        "offset": record.offset,
        "shard": record.shard.0,
        "replica": record.replica.0,
        "term": record.term.0,
        "index": record.index.0,
        "entry_kind": record.entry_kind,
        "length": record.length,
        "piece_offset": record.piece_offset,
        "total": record.total,
        "hard_state": record.hard_state.as_ref().map(hard_state),
    })
}

fn hard_state(state: &HardState) -> Value {
    json!({ "term": state.term.0, "vote": state.vote, "commit": state.commit.0 })
}

/// A manifest.
pub(super) fn manifest(report: &ManifestReport) -> Value {
    let identity = report.identity.map(|identity| {
        json!({
            "log": identity.log.0,
            "nonce": hex(identity.nonce),
            "segment_bytes": identity.segment_bytes,
        })
    });
    json!({
        "file": report.file,
        "length": report.length,
        "identity": identity,
        "valid": report.is_valid,
        "frames": report.frames,
        "end": report.end,
        "next_sequence": report.next_sequence,
        "shards": report.shards.iter().map(shard).collect::<Vec<_>>(),
    })
}

fn shard(shard: &ShardSummary) -> Value {
    let checkpoint = match &shard.checkpoint {
        CheckpointSummary::Inline { configuration_bytes, machine_bytes } => {
            json!({ "configuration_bytes": configuration_bytes, "machine_bytes": machine_bytes })
        }
        CheckpointSummary::File { file, length, root } => {
            json!({ "file": file, "length": length, "root": hex(*root) })
        }
    };
    let runs = shard.runs.iter().map(
        |run| json!({ "file": run.file, "length": run.length, "root": hex(run.root), "items": run.items }),
    );
    json!({
        "shard": shard.shard.0,
        "replica": shard.replica.0,
        "generation": shard.generation,
        "applied": shard.applied.0,
        "term": shard.term.0,
        "checkpoint": checkpoint,
        "runs": runs.collect::<Vec<_>>(),
        "hard_state": hard_state(&shard.hard_state),
        "hard_state_sequence": shard.hard_state_sequence,
        "replay_sequence": shard.replay_sequence,
        "replay_segment": shard.replay_segment.0,
        "suspect": shard.suspect,
    })
}

/// A frame of a manifest.
pub(super) fn frame(frame: &FrameInfo) -> Value {
    let changes =
        frame.changes.iter().map(|change| json!({ "change": change.name, "shard": change.shard.0 }));
    json!({
        "frame": frame.sequence,
        "offset": frame.offset,
        "length": frame.length,
        "whole": frame.is_whole,
        "changes": changes.collect::<Vec<_>>(),
    })
}

/// A run.
pub(super) fn run(report: &RunReport) -> Value {
    let segments =
        report.segments.iter().map(|(segment, bytes)| json!({ "segment": segment.0, "bytes": bytes }));
    let mut object = Map::new();
    if let Some((first, last)) = &report.keys {
        insert_bytes(&mut object, "first_key", first);
        insert_bytes(&mut object, "last_key", last);
    }
    let rest = json!({
        "file": report.file,
        "length": report.length,
        "log": report.log.0,
        "shard": report.shard.0,
        "number": report.number,
        "valid": report.is_valid,
        "items": report.items,
        "tombstones": report.tombstones,
        "data_blocks": report.data_blocks,
        "data_bytes": report.data_bytes,
        "large_bytes": report.large_bytes,
        "segments_bytes": report.segments_bytes,
        "filter_bytes": report.filter_bytes,
        "index_bytes": report.index_bytes,
        "root": hex(report.root),
        "segments": segments.collect::<Vec<_>>(),
    });
    if let Value::Object(rest) = rest {
        object.extend(rest);
    }
    Value::Object(object)
}

/// A key of a run.
pub(super) fn run_item(item: &RunItem<'_>) -> Value {
    let mut object = Map::new();
    insert_bytes(&mut object, "key", item.key);
    object.insert("version".to_owned(), item.version.0.into());
    object.insert("deleted".to_owned(), item.extents.is_empty().into());
    object.insert("extents".to_owned(), item.extents.iter().map(extent).collect::<Vec<_>>().into());
    Value::Object(object)
}

fn extent(extent: &Extent) -> Value {
    json!({ "segment": extent.segment.0, "offset": extent.offset, "length": extent.length })
}

/// A checkpoint file.
pub(super) fn checkpoint(report: &CheckpointReport) -> Value {
    let meta = report.meta.as_ref().map(|meta| {
        json!({
            "applied": meta.applied.0,
            "term": meta.term.0,
            "generation": meta.generation,
            "configuration_bytes": meta.configuration.len(),
            "machine_bytes": meta.machine_bytes,
        })
    });
    json!({
        "file": report.file,
        "length": report.length,
        "log": report.log.0,
        "shard": report.shard.0,
        "number": report.number,
        "root": hex(report.root),
        "meta": meta,
    })
}
