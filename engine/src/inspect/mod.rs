//! Looks into the files of a log without opening it: what `kritactl debug` prints.
//!
//! For the person in front of a node that does not start, or that reported damage. Nothing here writes, waits for a
//! runtime or trusts a byte: the functions take bytes through [`ReadAt`] and [`Directory`], read them in pieces of
//! bounded length with the engine's own codecs, and say what they found. Files may be larger than memory.
//!
//! What is wrong is a [`Finding`], never an error: errors are the machine's (a file that cannot be read). Whether an
//! invalid batch is a torn tail or corruption is decided by recovery's rules (`docs/disk_format.md`).
//!
//! ```
//! use krita_engine::inspect::{LogContext, inspect_segment};
//!
//! let zeros = vec![0; 8192];
//! let report = inspect_segment(&zeros, "segment-1", LogContext::with_nonce(7), &mut |_| Ok(())).unwrap();
//! assert_eq!(report.summary.batches, 0);
//! assert!(!report.findings.damaged(), "a file of zeros is one that was being made");
//! ```

mod checkpoint;
mod finding;
mod log;
mod manifest;
mod scan;
mod segment;
mod source;

pub use checkpoint::{CheckpointReport, MetaSummary, inspect_checkpoint};
pub use finding::{FINDINGS_MAX, Finding, Findings, Severity};
pub use log::{ChainSummary, LogReport, inspect_log};
pub use manifest::{
    ChangeInfo, CheckpointSummary, FrameInfo, LogIdentityInfo, ManifestReport, RunSummary, ShardSummary,
    VisitFrame, inspect_manifest,
};
pub use segment::{
    BatchInfo, LogContext, RecordCounts, RecordInfo, RecordName, SegmentItem, SegmentReport, SegmentState,
    SegmentSummary, Stray, Visit, inspect_segment,
};
pub(crate) use source::Window;
pub use source::{Directory, ReadAt};

pub use crate::run::inspect::{RunItem, RunReport, VisitItem, inspect_run};
