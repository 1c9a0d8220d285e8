//! Opening a damaged log: what of each shard is still proven, and how the log goes on.
//!
//! After "Protocol-Aware Recovery for Consensus-Based Storage" (Alagappan and others, FAST '18): damage never makes a
//! log end early in silence, and never takes a whole node down. A shard of which nothing can be missing stays sound.
//! Any other is *suspect*: it may have forgotten entries or a vote that it acknowledged, keeps what is contiguous
//! before the damage, and counts for nothing until a leader has healed it.
//!
//! When the chain of batches has a gap in a shard's range of replay, the shard is sound if behind the last gap
//!
//! - its hard state was written again, or the manifest's is from behind the gap; and
//! - its entries are *proven*: an entry was written that replaces all entries behind the checkpoint, or one whose
//!   predecessor was there before the gap and has the same term. All entries of a term come from one leader's log
//!   (Raft, Log Matching), so what it follows is what was there; and an entry takes back whatever the gap held behind
//!   it.
//!
//! The verdict is one frame of the manifest, written before anything else of the log may change: it makes the suspicion
//! durable, and settles which batches do not count, so that the next opening, which meets the same damage, does not
//! judge again. The log goes on in a new segment above all that were seen. Nothing that is there is overwritten.
//!
//! ```text
//!   entries of a shard      5  6  7 ░░░░ 9 10            term of 8 unknown: 9 and 10 are not proven
//!                           └──┬──┘ from          to     next segment
//!                           kept    └── does not count ──┘
//! ```

use std::collections::VecDeque;
use std::io;

use krita_runtime::{File, Runtime};

use crate::chain::End;
use crate::error::Corruption;
use crate::format::BLOCK;
use crate::log::Head;
use crate::manifest::{ManifestChange, Settled, ShardRecord};
use crate::recovery::Recovery;
use crate::replay::Replaying;
use crate::segment::{self, SEGMENT_BODY, SegmentFile, SegmentHeader, Segments};
use crate::shard::{EntryPlace, Shard};
use crate::types::{Index, Place, SegmentId};

/// How far the numbers of batches jump when the end of a log is lost: above all that may have been there.
const SEQUENCE_JUMP: u64 = 1 << 20;
/// Longest reason for a suspicion that is kept.
pub(crate) const REASON_BYTES_MAX: usize = 512;

/// What a shard's log came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    pub(crate) applied: Index,
    pub(crate) last: Index,
}

/// Something of a shard may be missing.
pub(crate) struct Doubt {
    corruption: Corruption,
    /// The batch from which on nothing counts, unless the entries are proven.
    from: u64,
    /// The entries before it.
    kept: VecDeque<EntryPlace>,
    /// The hard state is from behind the last gap.
    pub(crate) is_hard_state_known: bool,
    is_proven: bool,
    /// The first entry found behind the last gap, while they are not proven.
    behind: Option<Index>,
    /// Whatever follows proves nothing.
    pub(crate) is_hopeless: bool,
}

impl Doubt {
    pub(crate) fn new(
        corruption: Corruption,
        from: u64,
        is_hard_state_known: bool,
        kept: VecDeque<EntryPlace>,
    ) -> Self {
        let (is_proven, behind, is_hopeless) = (false, None, false);
        Self { corruption, from, kept, is_hard_state_known, is_proven, behind, is_hopeless }
    }

    /// Another gap.
    pub(crate) fn again(
        &mut self,
        from: u64,
        is_hard_state_known: bool,
        image: impl FnOnce() -> VecDeque<EntryPlace>,
    ) {
        if self.is_proven {
            (self.from, self.kept) = (from, image());
        }
        (self.is_proven, self.behind) = (false, None);
        self.is_hard_state_known = is_hard_state_known;
    }

    /// An entry is there whole. `continues`: the one before it has the same term.
    pub(crate) fn entry(&mut self, index: Index, continues: bool, facts: Facts) {
        if self.is_proven || index > facts.last.next() {
            return;
        }
        let replaces_all = index <= facts.applied.next();
        let follows_kept = self.behind.is_none_or(|behind| index <= behind) && continues;
        self.is_proven = replaces_all || follows_kept;
        self.behind = Some(self.behind.map_or(index, |behind| behind.min(index)));
    }

    /// Every entry behind `index` was removed.
    pub(crate) fn truncated(&mut self, index: Index, facts: Facts) {
        self.is_proven |= index <= facts.applied;
        self.behind = self.behind.filter(|behind| *behind <= index);
    }
}

/// What is to be done about a shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cut {
    /// Nothing happened.
    None,
    /// All records count; what is missing among them is known not to matter, or made the shard suspect.
    Nothing,
    /// Records from this batch on do not count.
    From(u64),
    /// No record does.
    All,
}

/// A shard as it comes out of the log.
pub(crate) struct Judged<R: Runtime> {
    pub(crate) shard: Shard<R>,
    pub(crate) record: ShardRecord,
    cut: Cut,
    /// The manifest's record has to change.
    is_changed: bool,
}

/// Decides what of a shard counts.
pub(crate) fn judge<R: Runtime>(replaying: Replaying<R>) -> Judged<R> {
    let Replaying { mut shard, record, doubt, ahead_since, .. } = replaying;
    let (mut cut, mut reason) = (Cut::None, None);
    if let Some(doubt) = doubt {
        let what = doubt.corruption.to_string();
        let proven = doubt.is_proven && !doubt.is_hopeless;
        cut = match ahead_since {
            None if proven => Cut::Nothing,
            Some(since) if proven => Cut::From(since),
            None | Some(_) => {
                shard.restore(doubt.kept);
                Cut::From(doubt.from)
            }
        };
        reason = (cut != Cut::Nothing || !doubt.is_hard_state_known).then_some(what);
    } else if let Some(since) = ahead_since {
        cut = Cut::From(since);
        reason = Some(format!("{}: entries behind {} are missing", record.shard, shard.last()));
    }
    if matches!(cut, Cut::From(_)) {
        let settled = record.tail.settled;
        if settled.from < settled.to && settled.to > record.tail.replay.sequence {
            // There is room for one cut.
            shard.restore(VecDeque::new());
            cut = Cut::All;
        }
    }
    shard.gap = false;
    let mut is_changed = cut != Cut::None;
    if shard.damaged.is_some() && !record.damaged {
        reason = reason.or_else(|| shard.damaged.as_ref().map(Corruption::to_string));
        is_changed = true;
    }
    if let Some(reason) = reason {
        tracing::error!(shard = %record.shard, reason, "this replica may have forgotten what it acknowledged");
        let end = reason.floor_char_boundary(REASON_BYTES_MAX);
        shard.suspect.get_or_insert_with(|| reason[..end].to_owned());
    }
    let commit = shard.hard_state.commit.max(shard.checkpoint.applied);
    shard.hard_state.commit = commit.min(shard.last());
    shard.last_queued = shard.last();
    Judged { shard, record, cut, is_changed }
}

impl<R: Runtime> Judged<R> {
    /// The manifest's record of the shard once the log goes on at `next`.
    fn settle(&mut self, next: Place) {
        let (shard, record) = (&mut self.shard, &mut self.record);
        record.suspect.clone_from(&shard.suspect);
        record.damaged = shard.damaged.is_some();
        let tail = &mut record.tail;
        let settled = match self.cut {
            Cut::None => return,
            Cut::Nothing => Settled { before: next.sequence, ..tail.settled },
            Cut::From(from) => Settled { from, to: next.sequence, before: next.sequence },
            Cut::All => Settled::default(),
        };
        tail.hard_state = shard.hard_state;
        tail.hard_state_sequence = next.sequence - 1;
        tail.replay = shard.first_needed().unwrap_or(next);
        tail.settled = if tail.replay == next { Settled::default() } else { settled };
        shard.settled = tail.settled;
    }
}

impl<R: Runtime> Recovery<'_, R> {
    /// Writes down the verdict if there was anything to judge: after this the next opening finds it. Gives where the
    /// log goes on.
    pub(crate) async fn salvage(
        &self,
        segments: &mut Segments<R>,
        end: &End,
        judged: &mut [Judged<R>],
    ) -> io::Result<Option<Head<R>>> {
        let goes_on = end.open || judged.iter().any(|judged| judged.cut != Cut::None);
        let head = if goes_on { Some(self.begin_behind(segments, end).await?) } else { None };
        let mut changes = Vec::new();
        if let Some(head) = &head {
            let newest = self.manifest.lives().last().copied();
            let used =
                segments.used.keys().copied().filter(|life| newest.is_none_or(|newest| *life > newest));
            changes.push(ManifestChange::Lives { used: used.collect(), gone: Vec::new() });
            let next = Place { sequence: head.sequence, segment: head.segment };
            judged.iter_mut().for_each(|judged| judged.settle(next));
        }
        for judged in judged.iter_mut().filter(|judged| judged.is_changed) {
            judged.record.suspect.clone_from(&judged.shard.suspect);
            judged.record.damaged = judged.shard.damaged.is_some();
            changes.push(ManifestChange::Put(Box::new(judged.record.clone())));
        }
        if !changes.is_empty() {
            self.manifest.appender().await.append(self.runtime, changes).await?;
        }
        Ok(head)
    }

    /// Puts a new segment to use, above all that are known.
    async fn begin_behind(&self, segments: &mut Segments<R>, end: &End) -> io::Result<Head<R>> {
        let newest = segments.used.keys().chain(&self.manifest.lives()).max().copied();
        let known = newest.unwrap_or_default().max(self.newest_known());
        // After a lost end the numbers leave a gap as well, which every shard knows of.
        let first_sequence = if end.open { end.sequence_max + SEQUENCE_JUMP } else { end.chain.sequence };
        self.begin_life(segments, SegmentId(known.0 + 1), first_sequence, end.chain.previous).await
    }

    /// Puts a spare segment to use, or a new one.
    pub(crate) async fn begin_life(
        &self,
        segments: &mut Segments<R>,
        segment: SegmentId,
        first_sequence: u64,
        previous: u64,
    ) -> io::Result<Head<R>> {
        let log = self.options.log;
        let mut header = SegmentHeader {
            log,
            file: segments.next_file,
            segment: SegmentId(0),
            first_sequence: 0,
            previous: 0,
        };
        let file = match segments.spare.pop_front() {
            Some(file) => file,
            None => {
                segments.next_file += 1;
                let length = self.manifest.identity.segment_bytes;
                segment::make(self.runtime, &self.options.directory, length, header, self.nonce).await?
            }
        };
        header = SegmentHeader { file: file.number, segment, first_sequence, previous, ..header };
        write_header(&file, &header, self.nonce).await?;
        segments.used.insert(segment, file.clone());
        let (offset, sequence) = (SEGMENT_BODY, first_sequence);
        Ok(Head { segment, file, offset, sequence, previous, sealed: true })
    }

    /// Writes zeros where a segment file was cut short, so that it can be used again once what was there is dead.
    pub(crate) async fn lengthen(&self, file: &SegmentFile<R>) -> io::Result<()> {
        const SLICE: u64 = 1 << 20;
        let (block, whole) = (u64::from(BLOCK), u64::from(self.manifest.identity.segment_bytes));
        let length = file.file.length().await?;
        let mut position = length - length % block;
        while position < whole {
            let rest = file.file.read_at(position, BLOCK as usize).await?;
            let slice = usize::try_from(SLICE.min(whole - position)).unwrap_or(BLOCK as usize);
            let mut buffer = file.file.buffer(slice);
            buffer.fill(0);
            buffer[..rest.len()].copy_from_slice(&rest);
            file.file.write_at(buffer, position).await?;
            position += slice as u64;
            self.runtime.pause().await;
        }
        Ok(())
    }
}

/// Writes a segment's header block, durably.
pub(crate) async fn write_header<R: Runtime>(
    file: &SegmentFile<R>,
    header: &SegmentHeader,
    nonce: u64,
) -> io::Result<()> {
    let mut block = file.file.buffer(BLOCK as usize);
    header.encode(&mut block, nonce);
    file.file.write_at(block, 0).await
}
