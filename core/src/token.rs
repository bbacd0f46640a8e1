//! Tokens: how the kernel, the engines and the connections name each other.

use slab::Slab;

use crate::places::has_become_few;

/// Names one registration. An index into a slab, and a generation that tells this occupant of the slot from
/// earlier ones: a late event for a connection that is gone does not hit its successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    index: u32,
    /// 24 bits, so that a token and 8 bits of an engine's own fit into the 64 that a kernel hands back.
    generation: u32,
}

const GENERATION_MASK: u32 = (1 << Token::GENERATION_BITS) - 1;

impl Token {
    pub(crate) const GENERATION_BITS: u32 = 24;

    /// A token of these parts; the generation is cut to 24 bits.
    #[inline]
    pub const fn new(index: u32, generation: u32) -> Token {
        Token { index, generation: generation & GENERATION_MASK }
    }

    /// The slot, from 0 on; small, so an engine may keep an array by it.
    #[inline]
    pub const fn index(self) -> usize {
        self.index as usize
    }

    /// The occupant of the slot.
    #[inline]
    pub const fn generation(self) -> u32 {
        self.generation
    }

    /// The token in the lower 56 bits.
    #[inline]
    pub const fn to_bits(self) -> u64 {
        (self.generation as u64) << 32 | self.index as u64
    }

    /// The token in the lower 56 bits of `bits`.
    #[inline]
    pub const fn from_bits(bits: u64) -> Token {
        Token::new(bits as u32, (bits >> 32) as u32)
    }
}

/// A slab whose keys are tokens.
///
/// A generation is given to each insertion, 2²⁴ in turn: a stale token is mistaken only if its slot is taken again
/// exactly that many insertions later.
#[derive(Debug)]
pub struct TokenSlab<T> {
    entries: Slab<(u32, T)>,
    /// So many were inserted; the lower bits are the next one's generation.
    insertions: u64,
}

impl<T> TokenSlab<T> {
    /// An empty slab.
    #[inline]
    pub const fn new() -> TokenSlab<T> {
        TokenSlab::starting_at(0)
    }

    /// An empty slab whose first token has this generation.
    pub const fn starting_at(generation: u32) -> TokenSlab<T> {
        TokenSlab { entries: Slab::new(), insertions: (generation & GENERATION_MASK) as u64 }
    }

    /// Entries that were inserted; the next one's generation is in the lower bits.
    pub(crate) fn insertions(&self) -> u64 {
        self.insertions
    }

    /// Entries in the slab.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Inserts what `make` makes of its own token.
    pub fn insert_with(&mut self, make: impl FnOnce(Token) -> T) -> Token {
        let generation = self.insertions as u32 & GENERATION_MASK;
        self.insertions += 1;
        let vacant = self.entries.vacant_entry();
        // A slab of 2^32 entries would need more memory than a machine has.
        let token = Token::new(vacant.key() as u32, generation);
        vacant.insert((generation, make(token)));
        token
    }

    /// The entry, unless it is gone.
    #[inline]
    pub fn get(&self, token: Token) -> Option<&T> {
        match self.entries.get(token.index()) {
            Some((generation, entry)) if *generation == token.generation => Some(entry),
            _ => None,
        }
    }

    /// The entry, unless it is gone.
    #[inline]
    pub fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        match self.entries.get_mut(token.index()) {
            Some((generation, entry)) if *generation == token.generation => Some(entry),
            _ => None,
        }
    }

    /// The token of the entry in this slot.
    pub fn token_at(&self, index: usize) -> Option<Token> {
        let (generation, _) = self.entries.get(index)?;
        Some(Token::new(index as u32, *generation))
    }

    /// Slots up to the last that was ever used, or that is in use if there are far fewer now.
    pub(crate) fn slots(&self) -> usize {
        self.entries.iter().next_back().map_or(0, |(index, _)| index + 1)
    }

    /// Takes the entry out, unless it is gone.
    pub fn remove(&mut self, token: Token) -> Option<T> {
        self.get(token)?;
        let (_, entry) = self.entries.remove(token.index());
        shrink(&mut self.entries);
        Some(entry)
    }

    /// All entries.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().map(|(_, (_, entry))| entry)
    }

    /// All entries, with their tokens.
    pub fn entries(&self) -> impl Iterator<Item = (Token, &T)> {
        self.tokens().zip(self.iter())
    }

    /// All entries, taken out.
    pub fn into_values(self) -> impl Iterator<Item = T> {
        self.entries.into_iter().map(|(_, (_, entry))| entry)
    }

    /// The tokens of all entries.
    pub fn tokens(&self) -> impl Iterator<Item = Token> {
        self.entries.iter().map(|(index, (generation, _))| Token::new(index as u32, *generation))
    }
}

/// Gives memory back that a burst has left behind, after an entry was taken out.
fn shrink<T>(slab: &mut Slab<T>) {
    if has_become_few(slab.len(), slab.capacity()) {
        slab.shrink_to_fit();
    }
}

impl<T> Default for TokenSlab<T> {
    fn default() -> TokenSlab<T> {
        TokenSlab::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_token_finds_nothing() {
        let mut slab = TokenSlab::new();
        let old = slab.insert_with(|_| 'a');
        assert_eq!(slab.remove(old), Some('a'));
        let new = slab.insert_with(|_| 'b');
        assert_eq!(new.index(), old.index());
        assert_eq!(slab.get(old), None);
        assert_eq!(slab.remove(old), None);
        assert_eq!(slab.get(new), Some(&'b'));
    }

    #[test]
    fn generations_wrap() {
        let mut slab = TokenSlab::starting_at(GENERATION_MASK);
        let last = slab.insert_with(|token| token);
        slab.remove(last);
        let first = slab.insert_with(|token| token);
        assert_eq!((last.generation(), first.generation()), (GENERATION_MASK, 0));
        assert_eq!(slab.get(last), None);
        assert_eq!(slab.get(first), Some(&first));
    }

    #[test]
    fn tokens_survive_the_kernel() {
        let token = Token::new(u32::MAX, GENERATION_MASK);
        assert_eq!(Token::from_bits(token.to_bits() | 0xff << 56), token);
    }
}
