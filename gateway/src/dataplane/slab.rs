//! The table of receiver indices: a slot and a small generation in the local bits of a [`ReceiverIndex`], freed slots
//! quarantined before they are used again, so that a late record meets nobody rather than a stranger.

use std::collections::VecDeque;

use jump_crypto::ids::ReceiverIndex;
use jump_session::gateway::Nanos;

/// Bits of the local part that number the slot; the rest is its generation.
const SLOT_BITS: u32 = 17;
const SLOT_MASK: u32 = (1 << SLOT_BITS) - 1;
const GENERATIONS: u32 = 1 << (ReceiverIndex::LOCAL_BITS - SLOT_BITS);

/// Most entries of a table; slot 0 is never used, because mesh records carry local part 0.
pub const ENTRIES_MAX: usize = SLOT_MASK as usize;

#[derive(Debug)]
struct Cell<T> {
    generation: u8,
    value: Option<T>,
}

/// The table. Looking up costs one bounds check and one compare.
#[derive(Debug)]
pub struct Slab<T> {
    cells: Vec<Cell<T>>,
    /// Freed slots with the time from which they may be used again, in that order per queue.
    resting: [VecDeque<(u32, Nanos)>; 2],
    len: usize,
}

/// How long a freed slot rests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// Records of an established session may still be under way.
    Long,
    /// Only an unconfirmed handshake knew the index.
    Short,
}

impl Rest {
    const fn nanos(self) -> Nanos {
        match self {
            Self::Long => 10_000_000_000,
            Self::Short => 1_000_000_000,
        }
    }
}

impl<T> Slab<T> {
    /// An empty table.
    pub fn new() -> Self {
        Self {
            cells: vec![Cell { generation: 0, value: None }],
            resting: [VecDeque::new(), VecDeque::new()],
            len: 0,
        }
    }

    /// Entries in use.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when no entry is in use.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Puts `value` under a free local index; gives it back when none is free at `now`.
    ///
    /// # Errors
    /// The value, when the table is full.
    pub fn insert(&mut self, value: T, now: Nanos) -> Result<u32, T> {
        let rested = self
            .resting
            .iter_mut()
            .filter(|queue| queue.front().is_some_and(|(_, from)| *from <= now))
            .find_map(VecDeque::pop_front)
            .map(|(slot, _)| slot);
        let slot = match rested {
            Some(slot) => slot,
            None if self.cells.len() <= ENTRIES_MAX => {
                self.cells.push(Cell { generation: 0, value: None });
                (self.cells.len() - 1) as u32
            }
            None => return Err(value),
        };
        let cell = &mut self.cells[slot as usize];
        cell.value = Some(value);
        self.len += 1;
        Ok((u32::from(cell.generation) << SLOT_BITS) | slot)
    }

    fn cell(&self, local: u32) -> Option<&Cell<T>> {
        self.cells
            .get((local & SLOT_MASK) as usize)
            .filter(|cell| u32::from(cell.generation) == local >> SLOT_BITS)
    }

    /// The entry of a local index.
    pub fn get(&self, local: u32) -> Option<&T> {
        self.cell(local)?.value.as_ref()
    }

    /// The entry of a local index.
    #[inline]
    pub fn get_mut(&mut self, local: u32) -> Option<&mut T> {
        self.cells
            .get_mut((local & SLOT_MASK) as usize)
            .filter(|cell| u32::from(cell.generation) == local >> SLOT_BITS)?
            .value
            .as_mut()
    }

    /// Slots, used or not, for going through all entries a few at a time with [`Self::at_slot`].
    pub(super) fn slots(&self) -> usize {
        self.cells.len()
    }

    /// The entry in a slot.
    pub(super) fn at_slot(&mut self, slot: usize) -> Option<&mut T> {
        self.cells.get_mut(slot)?.value.as_mut()
    }

    /// Takes the entry out and lets its slot rest under the next generation.
    pub fn remove(&mut self, local: u32, rest: Rest, now: Nanos) -> Option<T> {
        self.get(local)?;
        let cell = &mut self.cells[(local & SLOT_MASK) as usize];
        let value = cell.value.take()?;
        cell.generation = ((u32::from(cell.generation) + 1) % GENERATIONS) as u8;
        self.len -= 1;
        let queue = match rest {
            Rest::Long => 0,
            Rest::Short => 1,
        };
        self.resting[queue].push_back((local & SLOT_MASK, now.saturating_add(rest.nanos())));
        Some(value)
    }

    /// Replaces the entry of a local index in place, keeping the index.
    pub fn replace(&mut self, local: u32, value: T) -> Option<T> {
        self.get_mut(local).map(|entry| std::mem::replace(entry, value))
    }

    /// The local indices in use, in the order of their slots.
    pub fn locals(&self) -> impl Iterator<Item = u32> {
        self.cells
            .iter()
            .enumerate()
            .filter(|(_, cell)| cell.value.is_some())
            .map(|(slot, cell)| (u32::from(cell.generation) << SLOT_BITS) | slot as u32)
    }
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Nanos = 1_000_000_000;

    #[test]
    fn a_freed_index_finds_nothing_and_its_slot_rests_before_it_comes_back_as_another_index() {
        let mut slab = Slab::new();
        let first = slab.insert('a', 0).unwrap();
        assert_eq!(slab.remove(first, Rest::Long, 0), Some('a'));
        assert_eq!((slab.get(first), slab.len()), (None, 0));
        let second = slab.insert('b', 9 * SECOND).unwrap();
        assert_ne!(second & SLOT_MASK, first & SLOT_MASK, "the slot did not rest");
        let third = slab.insert('c', 10 * SECOND).unwrap();
        assert_eq!(third & SLOT_MASK, first & SLOT_MASK);
        assert_ne!(third, first, "the index came back unchanged");
        assert_eq!(slab.get(first), None);
    }

    #[test]
    fn local_part_zero_is_never_given_out() {
        let mut slab = Slab::new();
        for i in 0..ENTRIES_MAX {
            assert_ne!(slab.insert(i, 0).unwrap() & SLOT_MASK, 0);
        }
        assert_eq!(slab.insert(0, 0), Err(0), "more entries than slots");
        assert!(slab.get(0).is_none());
    }

    #[test]
    fn removing_twice_frees_one_slot_once() {
        let mut slab = Slab::new();
        let local = slab.insert((), 0).unwrap();
        assert!(slab.remove(local, Rest::Short, 0).is_some());
        assert!(slab.remove(local, Rest::Short, 0).is_none());
        let one = slab.insert((), SECOND).unwrap();
        let two = slab.insert((), SECOND).unwrap();
        assert_ne!(one & SLOT_MASK, two & SLOT_MASK);
    }

    #[test]
    fn every_local_index_fits_the_receiver_index() {
        let mut slab = Slab::new();
        for _ in 0..100 {
            let local = slab.insert((), u64::MAX).unwrap();
            assert!(local < 1 << ReceiverIndex::LOCAL_BITS);
            slab.remove(local, Rest::Short, 0);
        }
    }
}
