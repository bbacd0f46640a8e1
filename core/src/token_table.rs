//! What an engine keeps of each registration, found by its token.

use crate::places::Places;
use crate::token::Token;

/// Values by tokens that somebody else gives out: an array by their index, in which each place knows the generation of
/// its occupant.
///
/// It is as long as the largest index in use, since a driver gives small ones first. A [`TokenSlab`](crate::TokenSlab) gives
/// the tokens itself.
#[derive(Debug)]
pub struct TokenTable<T> {
    places: Places<Option<(u32, T)>>,
    entries: usize,
}

impl<T> TokenTable<T> {
    /// An empty table.
    pub const fn new() -> TokenTable<T> {
        TokenTable { places: Places::new(), entries: 0 }
    }

    /// Puts a value into the place of a token. An earlier occupant is dropped: its token is stale from now on.
    pub fn insert(&mut self, token: Token, value: T) {
        let index = token.index();
        self.places.reach(index, || None);
        let before = self.places[index].replace((token.generation(), value));
        self.entries += usize::from(before.is_none());
    }

    /// The value, unless the token is stale.
    #[inline]
    pub fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        match self.places.get_mut(token.index())? {
            Some((generation, value)) if *generation == token.generation() => Some(value),
            _ => None,
        }
    }

    /// Takes the value out, unless the token is stale.
    pub fn remove(&mut self, token: Token) -> Option<T> {
        self.get_mut(token)?;
        let (_, value) = self.places[token.index()].take()?;
        self.entries -= 1;
        self.places.removed(self.entries, Option::is_none);
        Some(value)
    }

    /// All values, by the index of their tokens.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.places.iter().flatten().map(|(_, value)| value)
    }
}

impl<T> Default for TokenTable<T> {
    fn default() -> TokenTable<T> {
        TokenTable::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_token_finds_and_takes_nothing() {
        let mut table = TokenTable::new();
        let (old, new) = (Token::new(3, 1), Token::new(3, 2));
        table.insert(old, 'a');
        assert_eq!(table.get_mut(new), None);
        table.insert(new, 'b');
        assert_eq!(table.get_mut(old), None);
        assert_eq!(table.remove(old), None);
        assert_eq!(table.get_mut(new), Some(&mut 'b'));
        assert_eq!((table.remove(new), table.remove(new)), (Some('b'), None));
        assert_eq!(table.get_mut(new), None);
    }

    #[test]
    fn a_token_beyond_the_end_finds_nothing_until_it_is_there() {
        let mut table = TokenTable::default();
        let far = Token::new(1000, 7);
        assert_eq!(table.get_mut(far), None);
        assert_eq!(table.remove(far), None);
        table.insert(far, 'z');
        table.insert(Token::new(0, 0), 'a');
        assert_eq!(table.get_mut(far), Some(&mut 'z'));
        assert_eq!(table.get_mut(Token::new(999, 7)), None);
        assert_eq!(table.values().collect::<String>(), "az");
        table.remove(far);
        assert_eq!(table.values().collect::<String>(), "a");
    }
}
