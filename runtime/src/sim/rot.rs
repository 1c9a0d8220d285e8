//! Damage to files at rest that strikes somewhere: the seed chooses the file and the place.

use std::path::PathBuf;
use std::rc::Rc;

use super::disk::DiskState;
use super::options::DiskFaultOptions;
use super::storage::Inode;
use super::world::World;
use crate::BLOCK_SIZE;

/// How often a block is drawn anew because it holds nothing but zeros, in which damage would mostly be harmless.
const DRAWS_MAX: usize = 16;

/// A kind of damage to a file at rest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Damage {
    /// One bit is another.
    FlippedBit,
    /// A block is zeros.
    ZeroedBlock,
    /// A block holds what belongs in another block, of this file or of another.
    MisplacedBlock,
    /// The file ends early.
    TruncatedFile,
    /// The file is gone.
    DeletedFile,
}

impl Damage {
    /// Every kind.
    pub const ALL: [Self; 5] =
        [Self::FlippedBit, Self::ZeroedBlock, Self::MisplacedBlock, Self::TruncatedFile, Self::DeletedFile];

    fn chance(self, chances: &DiskFaultOptions) -> f64 {
        match self {
            Self::FlippedBit => chances.flipped_bit,
            Self::ZeroedBlock => chances.zeroed_block,
            Self::MisplacedBlock => chances.misplaced_block,
            Self::TruncatedFile => chances.truncated_file,
            Self::DeletedFile => chances.deleted_file,
        }
    }
}

/// Damage that was done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damaged {
    /// What was done.
    pub damage: Damage,
    /// To which file.
    pub path: PathBuf,
    /// The first byte concerned; a truncated file's new length.
    pub offset: u64,
}

impl DiskState {
    /// What an operation's time is enough for, if the seed wants it.
    pub(crate) fn rot(&self, world: &World) {
        for damage in Damage::ALL {
            if self.wants(|chances| damage.chance(chances), None) {
                self.damage(world, damage);
            }
        }
    }

    /// Damages some file that is not spared. `None` if there is none in which this kind of damage shows.
    pub(crate) fn damage(&self, world: &World, damage: Damage) -> Option<Damaged> {
        let (path, inode) = self.draw_file(|inode| inode.block_count() > 0 && inode.length() > 0)?;
        let offset = match damage {
            Damage::FlippedBit => {
                let block = self.draw_block(&inode)?;
                let length = inode.length().saturating_sub(block).min(BLOCK_SIZE as u64);
                let offset = block + self.chance.below(length.max(1));
                let bit = self.chance.below(8);
                inode.patch(offset, 1, |_, byte| byte ^ (1 << bit)).then_some(offset)?
            }
            Damage::ZeroedBlock => {
                let block = self.draw_block(&inode)?;
                inode.patch(block, BLOCK_SIZE, |_, _| 0).then_some(block)?
            }
            Damage::MisplacedBlock => {
                let (_, from) = self.draw_file(|inode| inode.block_count() > 0 && inode.length() > 0)?;
                let source = from.read(self.draw_block(&from)?, BLOCK_SIZE);
                let block = self.draw_block(&inode)?;
                let content = |index| source.get(index).copied().unwrap_or(0);
                inode.patch(block, BLOCK_SIZE, |index, _| content(index)).then_some(block)?
            }
            Damage::TruncatedFile => {
                // Half of the time at the end of a block, where a cut is hardest to see.
                let length = self.chance.below(inode.length());
                let is_whole = self.chance.chance(0.5);
                let length = if is_whole { length - length % BLOCK_SIZE as u64 } else { length };
                inode.truncate(length);
                length
            }
            Damage::DeletedFile => self.storage.borrow_mut().erase(&path).is_ok().then_some(0)?,
        };
        world.count(|statistics| match damage {
            Damage::FlippedBit => statistics.flipped_bits += 1,
            Damage::ZeroedBlock => statistics.zeroed_blocks += 1,
            Damage::MisplacedBlock => statistics.misplaced_blocks += 1,
            Damage::TruncatedFile => statistics.truncated_files += 1,
            Damage::DeletedFile => statistics.deleted_files += 1,
        });
        tracing::info!(?damage, path = %path.display(), offset, "a file is damaged");
        Some(Damaged { damage, path, offset })
    }

    fn draw_file(&self, fits: impl Fn(&Inode) -> bool) -> Option<(PathBuf, Rc<Inode>)> {
        let storage = self.storage.borrow();
        let spares = self.options.borrow().faults.spares;
        let files: Vec<(&PathBuf, &Rc<Inode>)> =
            storage.named_files().filter(|(path, inode)| fits(inode) && !spares(path)).collect();
        if files.is_empty() {
            return None;
        }
        let (path, inode) = files[self.chance.index(files.len())];
        Some((path.clone(), Rc::clone(inode)))
    }

    /// The position of a block of a file, rather one that holds something.
    fn draw_block(&self, inode: &Inode) -> Option<u64> {
        let mut block = None;
        for _ in 0..DRAWS_MAX {
            block = inode.block_at(self.chance.index(inode.block_count().max(1)));
            if block.is_some_and(|block| inode.read(block, BLOCK_SIZE).iter().any(|byte| *byte != 0)) {
                break;
            }
        }
        block
    }
}
